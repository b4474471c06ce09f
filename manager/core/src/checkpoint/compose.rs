//! Composition of a chain of deltas over its base: which pages come from which file.

use serde::{Deserialize, Serialize};

use super::pages::PageList;

/// Adjacent pages of a guest's memory that lie together in one delta's `.ckp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First page in the memory.
    pub first: u64,
    /// How many pages; never zero.
    pub count: u64,
    /// Which layer's file it lies in. The base is layer 0 and never named here.
    pub layer: usize,
    /// First page in that file.
    pub file_page: u64,
}

impl Extent {
    /// One more than its last page.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.count
    }

    /// The part of it below `page` and the part from there on.
    fn split(self, page: u64) -> (Self, Self) {
        let below = page - self.first;
        let rest = Self {
            first: page,
            count: self.count - below,
            file_page: self.file_page + below,
            ..self
        };
        let below = Self {
            count: below,
            ..self
        };
        (below, rest)
    }
}

/// Where the pages lie that are not the base's, ascending and without overlap. `deltas` are the
/// lists of the deltas over the base, the oldest first; of two that hold a page the later counts.
pub(super) fn compose<'a>(deltas: impl IntoIterator<Item = &'a PageList>) -> Vec<Extent> {
    let mut composed = Vec::new();
    for (layer, pages) in (1..).zip(deltas) {
        composed = over(&composed, &in_file(layer, pages));
    }
    composed
}

fn in_file(layer: usize, pages: &PageList) -> Vec<Extent> {
    let mut file_page = 0;
    let mut extents = Vec::with_capacity(pages.ranges().len());
    for range in pages.ranges() {
        extents.push(Extent {
            first: range.first,
            count: range.count,
            layer,
            file_page,
        });
        file_page += range.count;
    }
    extents
}

/// Lays `upper` over `lower`. Both ascend, and so does what comes of it.
fn over(lower: &[Extent], upper: &[Extent]) -> Vec<Extent> {
    let mut result = Vec::with_capacity(lower.len() + upper.len());
    let mut upper = upper.iter().copied().peekable();
    for extent in lower {
        let mut left = Some(*extent);
        while let (Some(now), Some(cover)) = (left, upper.peek().copied()) {
            if cover.first >= now.end() {
                break;
            }
            if cover.first > now.first {
                result.push(now.split(cover.first).0);
            }
            left = (cover.end() < now.end()).then(|| now.split(cover.end().max(now.first)).1);
            // An extent that reaches further may also cover the next one.
            if cover.end() <= now.end() {
                result.push(cover);
                upper.next();
            }
        }
        result.extend(left);
    }
    result.extend(upper);
    result
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a map of single pages.
        #[test]
        fn later_deltas_cover_earlier_ones(
            deltas in prop::collection::vec(prop::collection::btree_set(0_u64..60, 0..50), 0..6),
        ) {
            let mut expected = BTreeMap::new();
            let mut lists = Vec::new();
            for (layer, pages) in (1..).zip(&deltas) {
                let mut list = PageList::default();
                for (at, page) in (0..).zip(pages) {
                    list.push(*page).unwrap();
                    expected.insert(*page, (layer, at));
                }
                lists.push(list);
            }
            let composed = compose(&lists);
            let mut found = BTreeMap::new();
            let mut before = 0;
            for extent in &composed {
                prop_assert!(extent.count > 0 && extent.first >= before, "{:?}", composed);
                before = extent.end();
                for n in 0..extent.count {
                    found.insert(extent.first + n, (extent.layer, extent.file_page + n));
                }
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn nothing_composes_to_nothing() {
        assert_eq!(compose(&Vec::<PageList>::new()), []);
        assert_eq!(compose(&[PageList::default()]), []);
    }
}
