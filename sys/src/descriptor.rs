//! Open device: the one place where requests are issued.
//!
//! A device opens on FreeBSD/amd64 only; elsewhere opening is a typed error. Tests replace the
//! device by a fake kernel, so that they check on any platform what the safe types ask of the
//! kernel, and how they read its answers.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::{errno::Errno, sys::ioctl::ioctl_num_type};

use crate::{Error, request::Request};

/// A device of vmm(4), open for reading and writing.
#[derive(Debug)]
pub(crate) struct Descriptor {
    path: String,
    file: File,
    #[cfg(test)]
    kernel: Option<crate::made_up::Kernel>,
}

impl Descriptor {
    /// Opens `path`, on the one platform whose requests are known.
    pub(crate) fn open(path: &str) -> Result<Self, Error> {
        if !cfg!(all(target_os = "freebsd", target_arch = "x86_64")) {
            return Err(Error::NotFreeBsd {
                device: path.to_owned(),
            });
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| Error::Open {
                device: path.to_owned(),
                source,
            })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            #[cfg(test)]
            kernel: None,
        })
    }

    /// A device of a fake kernel; `memory` is what reading, writing and mapping go to.
    #[cfg(test)]
    pub(crate) fn made_up(path: &str, memory: File, kernel: crate::made_up::Kernel) -> Self {
        Self {
            path: path.to_owned(),
            file: memory,
            kernel: Some(kernel),
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Issues a request, and says what was tried (`action`) if it fails.
    ///
    /// # Safety
    /// Each pointer in `argument` must point to what the kernel reads or writes for this request,
    /// as the header of the request says.
    pub(crate) unsafe fn request<T>(
        &self,
        action: &'static str,
        request: Request<T>,
        argument: &mut T,
    ) -> Result<(), Error> {
        // SAFETY: the same as this function's.
        unsafe { self.issue(request, argument) }.map_err(|errno| Error::Request {
            action,
            device: self.path.clone(),
            request: request.name(),
            errno,
        })
    }

    /// Issues a request, and leaves its error to the caller.
    ///
    /// # Safety
    /// As [`Descriptor::request`].
    pub(crate) unsafe fn issue<T>(
        &self,
        request: Request<T>,
        argument: &mut T,
    ) -> Result<(), Errno> {
        #[cfg(test)]
        if let Some(kernel) = &self.kernel {
            return kernel.answer(request.number(), std::ptr::from_mut(argument).cast());
        }
        #[allow(
            clippy::unnecessary_cast,
            reason = "c_int with some C libraries, else c_ulong"
        )]
        let number = request.number() as ioctl_num_type;
        // SAFETY: the descriptor is open for as long as `self` is; the kernel reads and writes as
        // many bytes at `argument` as the size in the number says, which is that of `T`, and the
        // caller answers for the pointers in it.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), number, argument as *mut T) };
        Errno::result(result).map(drop)
    }

    /// The error of an operation on guest memory.
    pub(crate) fn memory_error(
        &self,
        action: &'static str,
        address: u64,
        length: usize,
        source: io::Error,
    ) -> Error {
        Error::Memory {
            action,
            device: self.path.clone(),
            address,
            length,
            source,
        }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
