//! Paths, arguments and variables as a Unix kernel has them.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// A path, an argument or a variable: bytes, in no encoding.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct OsBytes(#[serde(with = "serde_bytes")] Vec<u8>);

impl OsBytes {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same for what takes an [`OsStr`].
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// The same for what takes a [`Path`].
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(self.as_os_str())
    }

    /// The same as an owned [`PathBuf`].
    #[must_use]
    pub fn to_path_buf(&self) -> PathBuf {
        self.as_path().to_path_buf()
    }
}

impl fmt::Debug for OsBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_os_str().fmt(f)
    }
}

impl From<&str> for OsBytes {
    fn from(text: &str) -> OsBytes {
        OsBytes(text.as_bytes().to_vec())
    }
}

impl From<String> for OsBytes {
    fn from(text: String) -> OsBytes {
        OsBytes(text.into_bytes())
    }
}

impl From<Vec<u8>> for OsBytes {
    fn from(bytes: Vec<u8>) -> OsBytes {
        OsBytes(bytes)
    }
}

impl From<&Path> for OsBytes {
    fn from(path: &Path) -> OsBytes {
        path.as_os_str().into()
    }
}

impl From<&OsStr> for OsBytes {
    fn from(text: &OsStr) -> OsBytes {
        OsBytes(text.as_bytes().to_vec())
    }
}

impl From<OsString> for OsBytes {
    fn from(text: OsString) -> OsBytes {
        OsBytes(text.into_vec())
    }
}
