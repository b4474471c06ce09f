//! Parts of a URL.

use std::fmt::{self, Display};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but the characters that RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A word as one segment of a path, or as a value in a query.
pub(crate) struct Segment<'a>(pub(crate) &'a str);

impl Display for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // These two are no names but steps; routes have none of them.
            "." => f.write_str("%2E"),
            ".." => f.write_str("%2E%2E"),
            word => utf8_percent_encode(word, RESERVED).fmt(f),
        }
    }
}
