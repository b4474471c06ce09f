//! sysctl(3): values of the kernel, as the bytes that it returns.

use std::io;

/// The value of the variable of this name, such as `hw.vmm.maxcpu`.
///
/// # Errors
/// `NotFound` when this kernel has no such variable, or its module is not loaded; `Unsupported`
/// off FreeBSD; or what sysctl(3) says.
pub fn read(name: &str) -> io::Result<Vec<u8>> {
    system::read(name)
}

/// The value at a place of the kernel's tree, such as `[CTL_KERN, KERN_PROC, KERN_PROC_PID, pid]`.
///
/// # Errors
/// As [`read`]; a place for a process that is not there gives `ESRCH`.
pub fn read_at(place: &[i32]) -> io::Result<Vec<u8>> {
    system::read_at(place)
}

#[cfg(target_os = "freebsd")]
mod system {
    use std::{ffi::CString, io, ptr};

    pub(super) fn read(name: &str) -> io::Result<Vec<u8>> {
        let name = CString::new(name)?;
        whole(|value, length| {
            // SAFETY: the name ends in NUL; the kernel writes at most `length` bytes to `value`,
            // which `whole` has room for, and nothing is set.
            unsafe { libc::sysctlbyname(name.as_ptr(), value, length, ptr::null(), 0) }
        })
    }

    pub(super) fn read_at(place: &[i32]) -> io::Result<Vec<u8>> {
        let count = u32::try_from(place.len()).map_err(io::Error::other)?;
        whole(|value, length| {
            // SAFETY: `count` is the length of `place`; the kernel writes at most `length` bytes
            // to `value`, which `whole` has room for, and nothing is set.
            unsafe { libc::sysctl(place.as_ptr(), count, value, length, ptr::null(), 0) }
        })
    }

    /// Asks for the length, then for the value; again while the value grows in between.
    fn whole(ask: impl Fn(*mut libc::c_void, *mut usize) -> libc::c_int) -> io::Result<Vec<u8>> {
        loop {
            let mut length = 0;
            if ask(ptr::null_mut(), &raw mut length) != 0 {
                return Err(io::Error::last_os_error());
            }
            // Lists of processes grow; the kernel itself adds some room to their length.
            let mut value = vec![0_u8; length];
            if ask(value.as_mut_ptr().cast(), &raw mut length) == 0 {
                value.truncate(length);
                return Ok(value);
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ENOMEM) {
                return Err(error);
            }
        }
    }
}

#[cfg(not(target_os = "freebsd"))]
mod system {
    use std::io;

    fn unsupported<T>() -> io::Result<T> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "sysctl(3) is read on FreeBSD only",
        ))
    }

    pub(super) fn read(_: &str) -> io::Result<Vec<u8>> {
        unsupported()
    }

    pub(super) fn read_at(_: &[i32]) -> io::Result<Vec<u8>> {
        unsupported()
    }
}

#[cfg(all(test, not(target_os = "freebsd")))]
mod tests {
    #[test]
    fn other_systems_are_told_apart() {
        let error = super::read("kern.boot_id").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
        let error = super::read_at(&[1, 14, 1, 1]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
    }
}
