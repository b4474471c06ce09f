//! Full disk: which errors say so, and the hint that all of them have.

use std::io;

/// What to do about a full disk.
pub const HINT: &str = "free disk space, then try again";

/// Whether an operation failed because the file system is full, or the user's quota of it is.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
