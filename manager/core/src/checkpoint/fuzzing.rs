//! What fuzz targets need of this module's own functions.

use std::{collections::BTreeMap, path::Path};

use super::{compose, meta::Meta, open::parse_manifest, pages::PageList};
use crate::units::Bytes;

pub(crate) fn manifest(text: &[u8]) -> bool {
    let file = Path::new("fuzz.ckp.brood");
    let Ok(manifest) = parse_manifest(file, text) else {
        return false;
    };
    let written = serde_json::to_vec(&manifest).unwrap();
    let again = parse_manifest(file, &written).expect("what was written is read");
    assert_eq!(manifest, again);
    assert_eq!(manifest.memory_sha256(), again.memory_sha256());
    true
}

pub(crate) fn meta_again(meta: &Meta, kern: u64) {
    let written = meta.to_json().unwrap();
    let again = Meta::parse(Path::new("fuzz.ckp.meta"), &written, Bytes(kern));
    assert_eq!(*meta, again.expect("what was written is read"));
}

pub(crate) fn compose(lists: &[PageList]) {
    let composed = compose::compose(lists);
    let mut before = 0;
    for extent in &composed {
        assert!(extent.count > 0 && extent.first >= before, "{composed:?}");
        assert!((1..=lists.len()).contains(&extent.layer));
        before = extent.first.checked_add(extent.count).unwrap();
    }
    // The model counts pages one by one: lists of many are only checked for their order.
    if lists
        .iter()
        .map(PageList::count)
        .fold(0, u64::saturating_add)
        > 4096
    {
        return;
    }
    let mut expected = BTreeMap::new();
    for (layer, list) in (1..).zip(lists) {
        let pages = list
            .ranges()
            .iter()
            .flat_map(|r| r.first..r.first + r.count);
        expected.extend(pages.zip(0..).map(|(page, at)| (page, (layer, at))));
    }
    let found = composed.iter().flat_map(|extent| {
        (0..extent.count).map(move |n| (extent.first + n, (extent.layer, extent.file_page + n)))
    });
    assert_eq!(found.collect::<BTreeMap<_, _>>(), expected);
}
