//! What an image says of its programs: a file in the guest, which the image's builder writes and the
//! agent reads.

use serde::{Deserialize, Serialize};

use crate::{list, os_bytes::OsBytes};

/// What programs of an image begin with, and which one the image is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageProcess {
    /// Variables.
    #[serde(with = "list")]
    pub env: Vec<(OsBytes, OsBytes)>,
    /// Folder.
    pub cwd: Option<OsBytes>,
    /// User, by name or number: `USER[:GROUP]`.
    pub user: Option<String>,
    /// The program that the image is for, and its first arguments.
    #[serde(with = "list")]
    pub entrypoint: Vec<OsBytes>,
    /// Its other arguments, unless others are given; the program where there is no entry point.
    #[serde(with = "list")]
    pub command: Vec<OsBytes>,
}

/// The first byte of the file: how the rest is encoded.
const FORMAT: u8 = 1;

impl ImageProcess {
    /// Where the file is in a guest.
    pub const PATH: &'static str = "/usr/lib/brood/process";

    /// The file's content.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let encoded = postcard::to_extend(self, vec![FORMAT]);
        encoded.expect("lists and texts in memory are encoded")
    }

    /// What a file says; none when it is not one of these.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<ImageProcess> {
        let rest = bytes.strip_prefix(&[FORMAT])?;
        postcard::from_bytes(rest).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_it_was_made_of() {
        let process = ImageProcess {
            env: vec![("A".into(), "b\nc".into())],
            cwd: Some("/srv".into()),
            user: Some("app:app".to_owned()),
            entrypoint: vec!["/bin/app".into()],
            command: vec!["--serve".into(), "".into()],
        };
        let bytes = process.to_bytes();
        assert_eq!(ImageProcess::from_bytes(&bytes), Some(process));
        for cut in 0..bytes.len() {
            assert_eq!(ImageProcess::from_bytes(&bytes[..cut]), None, "{cut}");
        }
        assert_eq!(ImageProcess::from_bytes(b"\x02\0\0\0\0\0"), None);
    }
}
