//! bhyve's `.meta` in both of its layouts, from hand-made files (see the fixtures' README).

use std::{fs, path::Path};

use brood_core::{
    checkpoint::{
        BundlePath, Checkpoint, Error,
        manifest::{EngineKind, FileSeal, Manifest},
        meta::Meta,
        sha256_file,
    },
    units::Bytes,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::sample::{KERN, Sample, replace};

const NEW: &str = include_str!("../../../../tests/fixtures/checkpoint/freebsd-15.meta");
const NEW_KERN: Bytes = Bytes(11_024);
/// What a running bhyve wrote, word for word.
const REAL: &str = include_str!("../../../../tests/fixtures/checkpoint/freebsd-14.2.meta");
const REAL_KERN: Bytes = Bytes(7_572);
const OLD: &str = include_str!("../../../../tests/fixtures/checkpoint/freebsd-13.meta");
const OLD_KERN: Bytes = Bytes(8_704);

fn parse(text: &str, kern: Bytes) -> Result<Meta, Error> {
    Meta::parse(Path::new("web.ckp.meta"), text.as_bytes(), kern)
}

/// The field of the refusal, which must also be in its message, with the file.
fn refused(document: &Value, kern: Bytes) -> String {
    let error = parse(&document.to_string(), kern).expect_err(&document.to_string());
    let field = error.field().unwrap().to_owned();
    let shown = error.to_string();
    assert!(
        shown.contains("web.ckp.meta") && shown.contains(&field),
        "{shown}"
    );
    field
}

#[test]
fn what_a_running_bhyve_wrote_is_read() {
    assert_eq!(REAL.len(), 1_166);
    let real = parse(REAL, REAL_KERN).unwrap();
    assert_eq!(
        (real.ncpus, real.vmname.as_str(), real.memsize),
        (1, "a", Bytes::mib(16))
    );
    let last = real.devices.last().unwrap();
    // The keyboard controller has no address.
    assert_eq!(last.name, "atkbdc");
    assert_eq!(last.file_offset + last.size.0, REAL_KERN.0);
    let lengths: Vec<u64> = real.structs.iter().map(|part| part.size.0).collect();
    assert_eq!(lengths, [284, 312, 388, 4169, 772, 172, 118, 4, 140]);
}

#[test]
fn both_layouts_are_read() {
    let new = parse(NEW, NEW_KERN).unwrap();
    assert_eq!(
        (new.ncpus, new.vmname.as_str(), new.memsize),
        (2, "web-1", Bytes::kib(64))
    );
    assert_eq!((new.structs.len(), new.devices.len()), (9, 5));
    assert_eq!(
        (new.structs[1].name.as_str(), new.structs[1].file_offset),
        ("vm", 248)
    );
    assert_eq!(new.devices[4].name, "atkbdc");
    assert_eq!(new.manifest_fields, None);

    let old = parse(OLD, OLD_KERN).unwrap();
    assert_eq!(
        (old.ncpus, old.vmname.as_str(), old.memsize),
        (1, "old", Bytes::mib(256))
    );
    assert_eq!((old.structs.len(), old.devices.len()), (5, 5));
    assert_eq!(
        (old.structs[2].name.as_str(), old.structs[2].size),
        ("vmx", Bytes(512))
    );
    assert_eq!(old.devices[3].size, Bytes(0));
}

#[test]
fn every_offset_and_size_is_checked() {
    for (text, kern, lists) in [
        (NEW, NEW_KERN, ["kern_structs", "devices"]),
        (OLD, OLD_KERN, ["structs", "devices"]),
    ] {
        let document: Value = serde_json::from_str(text).unwrap();
        for list in lists {
            for n in 0..document[list].as_array().unwrap().len() {
                for field in ["size", "file_offset"] {
                    for value in [json!(kern.0 + 1), json!(u64::MAX), json!(i64::MAX)] {
                        let mut damaged = document.clone();
                        damaged[list][n][field] = value;
                        assert_eq!(refused(&damaged, kern), format!("{list}[{n}].file_offset"));
                    }
                    for value in [json!(-1), json!("1"), json!(1.5), json!(null), json!([])] {
                        let mut damaged = document.clone();
                        damaged[list][n][field] = value;
                        assert_eq!(refused(&damaged, kern), format!("{list}[{n}].{field}"));
                    }
                    let mut damaged = document.clone();
                    damaged[list][n].as_object_mut().unwrap().remove(field);
                    assert_eq!(refused(&damaged, kern), format!("{list}[{n}].{field}"));
                }
            }
        }
        // The last part ends where the file ends.
        parse(text, Bytes(kern.0 - 1)).unwrap_err();
    }
}

#[test]
fn what_bhyve_could_not_have_written_is_refused() {
    let document: Value = serde_json::from_str(NEW).unwrap();
    for field in ["ncpus", "vmname", "memsize", "memflags"] {
        let mut damaged = document.clone();
        damaged["basic metadata"]
            .as_object_mut()
            .unwrap()
            .remove(field);
        assert_eq!(
            refused(&damaged, NEW_KERN),
            format!("basic metadata.{field}")
        );
        damaged["basic metadata"][field] = json!({});
        assert_eq!(
            refused(&damaged, NEW_KERN),
            format!("basic metadata.{field}")
        );
    }
    for list in ["basic metadata", "kern_structs", "devices"] {
        let mut damaged = document.clone();
        damaged.as_object_mut().unwrap().remove(list);
        assert_eq!(refused(&damaged, NEW_KERN), list);
    }
    let mut both = document.clone();
    both["structs"] = json!([]);
    assert_eq!(refused(&both, NEW_KERN), "structs");
    let mut twice = document.clone();
    twice["devices"][1] = twice["devices"][0].clone();
    assert_eq!(refused(&twice, NEW_KERN), "devices[1].device");
    let mut nameless = document.clone();
    nameless["kern_structs"][3]
        .as_object_mut()
        .unwrap()
        .remove("device");
    assert_eq!(refused(&nameless, NEW_KERN), "kern_structs[3].device");
    // Keys of a later bhyve are passed over.
    let mut later = document;
    later["compatibility"] = json!(1);
    parse(&later.to_string(), NEW_KERN).unwrap();
}

/// Puts another `.meta` and `.kern` into a bundle, with a manifest that vouches for them.
fn with_meta(sample: &Sample, meta: &str, kern: &[u8], engine: EngineKind) -> Manifest {
    replace(&sample.path.meta(), meta.as_bytes());
    replace(&sample.path.kern(), kern);
    let seal = |file: &Path| {
        let file = fs::File::open(file).unwrap();
        let size = Bytes(file.metadata().unwrap().len());
        FileSeal {
            size,
            sha256: sha256_file(&file, &brood_core::checkpoint::unwatched).unwrap(),
        }
    };
    let mut manifest = sample.manifest.clone();
    manifest.files.meta = seal(&sample.path.meta());
    manifest.files.kern = seal(&sample.path.kern());
    manifest.engine = engine;
    replace(
        &sample.path.manifest(),
        &serde_json::to_vec(&manifest).unwrap(),
    );
    manifest
}

#[test]
fn a_bundle_of_bhyve_is_opened() {
    let sample = Sample::new();
    let kern = vec![7; 11_024];
    with_meta(&sample, NEW, &kern, EngineKind::Bhyve);
    let checkpoint = sample.check().unwrap();
    assert_eq!(checkpoint.kern(), kern);
    assert_eq!(checkpoint.meta().devices.len(), 5);
    // A KVM bundle's .meta vouches for its manifest; without that it is none.
    with_meta(&sample, NEW, &kern, EngineKind::Kvm);
    assert_eq!(sample.refusal("no digests").field(), Some("engine"));
}

#[test]
fn manifest_and_meta_must_agree() {
    for (key, value, field) in [
        ("ncpus", json!(1), "vcpus"),
        ("memsize", json!(131_072), "memory.size"),
        ("vmname", json!("web-2"), "guest"),
    ] {
        let sample = Sample::new();
        let mut document: Value = serde_json::from_str(NEW).unwrap();
        document["basic metadata"][key] = value;
        with_meta(
            &sample,
            &document.to_string(),
            &[7; 11_024],
            EngineKind::Bhyve,
        );
        let error = sample.refusal(key);
        assert_eq!(error.field(), Some(field), "{error}");
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[test]
fn what_brood_writes_is_the_new_layout() {
    let sample = Sample::new();
    let document: Value = serde_json::from_slice(&fs::read(sample.path.meta()).unwrap()).unwrap();
    let expected = json!({ "ncpus": 2, "vmname": "web-1", "memsize": 65_536, "memflags": 0 });
    assert_eq!(document["basic metadata"], expected);
    let state = json!([{ "device": "brood-kvm", "size": KERN.len(), "file_offset": 0 }]);
    assert_eq!(document["kern_structs"], state);
    assert_eq!(document["devices"], json!([]));
    let path = BundlePath::new(&sample.dir.path().join("web.ckp.meta")).unwrap();
    assert_eq!(
        Checkpoint::open(&path).unwrap().meta().structs[0].name,
        "brood-kvm"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,300}", kern in any::<u64>()) {
        let _ = parse(&text, Bytes(kern));
    }

    #[test]
    fn any_change_is_read_or_refused(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        kern in 0_u64..20_000,
        old in any::<bool>(),
    ) {
        let mut text = if old { OLD } else { NEW }.as_bytes().to_vec();
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(meta) = Meta::parse(Path::new("web.ckp.meta"), &text, Bytes(kern)) {
            for part in meta.structs.iter().chain(&meta.devices) {
                prop_assert!(part.file_offset + part.size.0 <= kern);
            }
        }
    }
}
