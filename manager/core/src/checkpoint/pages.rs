//! Page list of a delta: which pages its `.ckp` holds, as ascending ranges such as `8,256-511,600`.
//!
//! The pages lie in the `.ckp` in the list's order, one after the other, so the list alone says
//! where each page is. A range takes a few bytes as text, and would take sixty as a JSON object; a
//! guest may have hundreds of thousands.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::manifest::PageRange;

/// Pages in ascending order, each at most once. Adjacent pages are always in one range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageList {
    ranges: Vec<PageRange>,
    count: u64,
}

/// A text that is no list of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParsePagesError {
    /// Something that is neither a number nor a range.
    #[error("must be ranges of pages such as 8,256-511")]
    Range,
    /// A range that does not lie above the one before it with a page between.
    #[error("its ranges must ascend, and adjacent ones be one")]
    Order,
}

impl PageList {
    /// How many pages there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The ranges, ascending.
    #[must_use]
    pub fn ranges(&self) -> &[PageRange] {
        &self.ranges
    }

    /// One more than the last page; 0 when there is none.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |r| r.first + r.count)
    }

    /// Adds a page above all others.
    ///
    /// # Errors
    /// [`ParsePagesError::Order`] when it is not above them.
    pub fn push(&mut self, page: u64) -> Result<(), ParsePagesError> {
        match self.ranges.last_mut() {
            Some(last) if last.first + last.count == page => last.count += 1,
            _ => return self.push_range(page, 1),
        }
        self.count += 1;
        Ok(())
    }

    fn push_range(&mut self, first: u64, count: u64) -> Result<(), ParsePagesError> {
        if !self.ranges.is_empty() && first <= self.end() {
            return Err(ParsePagesError::Order);
        }
        self.ranges.push(PageRange { first, count });
        self.count += count;
        Ok(())
    }
}

impl fmt::Display for PageList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.ranges.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma}{}", range.first)?;
            if range.count > 1 {
                write!(f, "-{}", range.first + range.count - 1)?;
            }
        }
        Ok(())
    }
}

impl FromStr for PageList {
    type Err = ParsePagesError;

    fn from_str(text: &str) -> Result<Self, ParsePagesError> {
        // `parse` would accept more than the plain digits that the writer writes.
        let number = |text: &str| match text.as_bytes() {
            [b'1'..=b'9', ..] | b"0" => text.parse::<u64>().ok().filter(|n| *n < u64::MAX >> 1),
            _ => None,
        };
        let mut pages = Self::default();
        if text.is_empty() {
            return Ok(pages);
        }
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first), number(last).filter(|_| first != last)),
                None => (number(part), number(part)),
            };
            match (first, last) {
                (Some(first), Some(last)) if first <= last => {
                    pages.push_range(first, last - first + 1)?;
                }
                _ => return Err(ParsePagesError::Range),
            }
        }
        Ok(pages)
    }
}

impl Serialize for PageList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PageList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any set of pages is what its text is read as.
        #[test]
        fn written_and_read_back(pages in prop::collection::btree_set(0_u64..400, 0..300)) {
            let mut list = PageList::default();
            for page in &pages {
                list.push(*page).unwrap();
            }
            prop_assert_eq!(list.count(), pages.len() as u64);
            let back: PageList = list.to_string().parse().unwrap();
            prop_assert_eq!(&back, &list);
            let listed: BTreeSet<u64> =
                back.ranges().iter().flat_map(|r| r.first..r.first + r.count).collect();
            prop_assert_eq!(listed, pages);
        }

        /// What is read at all is written as it was.
        #[test]
        fn one_list_has_one_text(text in "[0-9,+ -]{0,12}") {
            if let Ok(list) = text.parse::<PageList>() {
                prop_assert_eq!(list.to_string(), text);
            }
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            ",", "1,", "-", "1-", "5-4", "4-4", "01", "+1", "1 ", "a", "1-2-3",
        ] {
            assert_eq!(
                text.parse::<PageList>(),
                Err(ParsePagesError::Range),
                "{text:?}"
            );
        }
        assert_eq!(
            "18446744073709551615".parse::<PageList>(),
            Err(ParsePagesError::Range)
        );
        for text in ["1,1", "1,2", "5,3", "1-5,5", "1-5,6-7"] {
            assert_eq!(
                text.parse::<PageList>(),
                Err(ParsePagesError::Order),
                "{text:?}"
            );
        }
    }
}
