//! FreeBSD's error numbers and their words (errno(2)). Linux has other numbers and other words for
//! some of them, and both end up in messages and exit codes.

use std::io;

use nix::errno::Errno as Host;

/// An error of FreeBSD's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno {
    /// Its number.
    pub(crate) number: i32,
    /// What strerror(3) says.
    pub(crate) text: &'static str,
}

const fn errno(number: i32, text: &'static str) -> Errno {
    Errno { number, text }
}

pub(crate) const ENOENT: Errno = errno(2, "No such file or directory");
pub(crate) const ESRCH: Errno = errno(3, "No such process");
pub(crate) const EIO: Errno = errno(5, "Input/output error");
pub(crate) const ENXIO: Errno = errno(6, "Device not configured");
pub(crate) const ENOMEM: Errno = errno(12, "Cannot allocate memory");
pub(crate) const EACCES: Errno = errno(13, "Permission denied");
pub(crate) const EBUSY: Errno = errno(16, "Device busy");
pub(crate) const EEXIST: Errno = errno(17, "File exists");
pub(crate) const ENODEV: Errno = errno(19, "Operation not supported by device");
pub(crate) const ENOTDIR: Errno = errno(20, "Not a directory");
pub(crate) const EISDIR: Errno = errno(21, "Is a directory");
pub(crate) const EINVAL: Errno = errno(22, "Invalid argument");
pub(crate) const ENOTTY: Errno = errno(25, "Inappropriate ioctl for device");
pub(crate) const ETXTBSY: Errno = errno(26, "Text file busy");
pub(crate) const ENOSPC: Errno = errno(28, "No space left on device");
pub(crate) const EALREADY: Errno = errno(37, "Operation already in progress");
pub(crate) const EOPNOTSUPP: Errno = errno(45, "Operation not supported");
pub(crate) const EADDRINUSE: Errno = errno(48, "Address already in use");
pub(crate) const ECONNREFUSED: Errno = errno(61, "Connection refused");
pub(crate) const ENAMETOOLONG: Errno = errno(63, "File name too long");

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Self::from(&error)
    }
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        match error.raw_os_error().map(Host::from_raw) {
            Some(Host::ENOENT) => ENOENT,
            Some(Host::ENXIO) => ENXIO,
            Some(Host::ENOMEM) => ENOMEM,
            Some(Host::EACCES | Host::EPERM) => EACCES,
            Some(Host::EBUSY) => EBUSY,
            Some(Host::EEXIST) => EEXIST,
            Some(Host::ENOTDIR) => ENOTDIR,
            Some(Host::EISDIR) => EISDIR,
            Some(Host::EINVAL) => EINVAL,
            Some(Host::ETXTBSY) => ETXTBSY,
            Some(Host::ENOSPC) => ENOSPC,
            Some(Host::EADDRINUSE) => EADDRINUSE,
            Some(Host::ECONNREFUSED) => ECONNREFUSED,
            Some(Host::ENAMETOOLONG) => ENAMETOOLONG,
            _ => EIO,
        }
    }
}
