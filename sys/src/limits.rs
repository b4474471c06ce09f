//! Limits on the number of guests: the sysctl variables of vmm(4) and vmm_vnode(4), and other
//! limits of the system.

use std::io;

use crate::{Error, Feature, sysctl};

/// What limits how many virtual machines a host can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `hw.vmm.maxvmms`: virtual machines of one user; 4 per processor unless it was raised. None
    /// where the kernel has no such limit: up to FreeBSD 15.0.
    pub max_vms: Option<u64>,
    /// `RLIMIT_VMM`, soft: virtual machines of this process's user. None where the kernel has no
    /// such limit (up to FreeBSD 15.0), or it is unlimited.
    pub user_vms: Option<u64>,
    /// `hw.vmm.maxcpu`: virtual CPUs of one machine.
    pub max_vcpus: u64,
    /// `kern.maxproc`: processes of the host. A guest is at least one.
    pub max_processes: u64,
    /// `kern.maxprocperuid`: processes of one user that is not root.
    pub max_processes_per_user: u64,
}

/// The sums over all segments of vmm_vnode(4) (`hw.vmm.vnode`), in pages where not said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VnodeTotals {
    /// `abi`: version of the module's ABI.
    pub abi: u64,
    /// `segments`: number of segments that live now.
    pub segments: u64,
    /// `attached`: number of segments attached since the module was loaded.
    pub attached: u64,
    /// `refused`: number of requests to attach that failed since the module was loaded.
    pub refused: u64,
    /// `pages`: what the guests would take if nothing were shared.
    pub pages: u64,
    /// `private_resident`: guests' own and in memory.
    pub private_resident: u64,
    /// `private_swapped`: guests' own and in swap only.
    pub private_swapped: u64,
    /// `file_resident`: of the files and in memory, each file counted once.
    pub file_resident: u64,
    /// `file_lost`: number of segments whose file went with a forced unmount
    /// ([`Books::file_lost`](crate::Books::file_lost)).
    pub file_lost: u64,
}

impl Limits {
    /// Reads the limits of this host.
    ///
    /// # Errors
    /// [`Error::NotFreeBsd`] elsewhere; [`Error::Unsupported`] if the module of the variables is
    /// not loaded; [`Error::Sysctl`] else.
    pub fn read() -> Result<Self, Error> {
        Self::read_by(number, user_vms())
    }

    /// A variable that is not there is a limit that is not there, if it came with a later release.
    fn read_by(
        number: impl Fn(&'static str) -> Result<u64, Error>,
        user_vms: Option<u64>,
    ) -> Result<Self, Error> {
        let max_vms = match number("hw.vmm.maxvmms") {
            Ok(limit) => Some(limit),
            Err(Error::Unsupported { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            max_vms,
            user_vms,
            max_vcpus: number("hw.vmm.maxcpu")?,
            max_processes: number("kern.maxproc")?,
            max_processes_per_user: number("kern.maxprocperuid")?,
        })
    }
}

impl VnodeTotals {
    /// Reads the sums. This walks the pages of all segments.
    ///
    /// # Errors
    /// [`Error::NotFreeBsd`] elsewhere; [`Error::Unsupported`] if the module of the variables is
    /// not loaded; [`Error::Sysctl`] else.
    pub fn read() -> Result<Self, Error> {
        Self::read_by(number)
    }

    fn read_by(number: impl Fn(&'static str) -> Result<u64, Error>) -> Result<Self, Error> {
        Ok(Self {
            abi: number("hw.vmm.vnode.abi")?,
            segments: number("hw.vmm.vnode.segments")?,
            attached: number("hw.vmm.vnode.attached")?,
            refused: number("hw.vmm.vnode.refused")?,
            pages: number("hw.vmm.vnode.pages")?,
            private_resident: number("hw.vmm.vnode.private_resident")?,
            private_swapped: number("hw.vmm.vnode.private_swapped")?,
            file_resident: number("hw.vmm.vnode.file_resident")?,
            file_lost: number("hw.vmm.vnode.file_lost")?,
        })
    }
}

/// `RLIMIT_VMM` of `sys/resource.h`. FreeBSD 15.0 has no such limit; a kernel without it refuses
/// the number.
#[cfg(target_os = "freebsd")]
const RLIMIT_VMM: libc::c_int = 16;

/// `RLIMIT_VMM`, soft; none where the kernel does not know it, or it is unlimited.
#[must_use]
pub fn user_vms() -> Option<u64> {
    #[cfg(target_os = "freebsd")]
    {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: `limit` is valid for writes of one `struct rlimit`; an unknown resource is
        // refused with EINVAL.
        let told = unsafe { libc::getrlimit(RLIMIT_VMM, &raw mut limit) };
        (told == 0 && limit.rlim_cur != libc::RLIM_INFINITY)
            .then(|| u64::try_from(limit.rlim_cur).unwrap_or(0))
    }
    #[cfg(not(target_os = "freebsd"))]
    None
}

fn number(name: &'static str) -> Result<u64, Error> {
    match sysctl::read(name) {
        Ok(value) => count(name, &value),
        Err(error) => Err(failure(name, &error)),
    }
}

/// An `int`, `u_int` or `uint64_t` that is not negative, as the kernel gives it.
fn count(name: &'static str, value: &[u8]) -> Result<u64, Error> {
    if let Ok(value) = value.try_into() {
        Ok(u64::from_ne_bytes(value))
    } else if let Ok(value) = value.try_into() {
        Ok(u32::from_ne_bytes(value).into())
    } else {
        let reason = format!("it has {} bytes, a count has 4 or 8", value.len());
        Err(Error::Sysctl { name, reason })
    }
}

/// A variable that does not exist is a module that is not loaded, for those of a module.
fn failure(name: &'static str, error: &io::Error) -> Error {
    let what = match error.kind() {
        io::ErrorKind::Unsupported => {
            let device = format!("sysctl {name}");
            return Error::NotFreeBsd { device };
        }
        io::ErrorKind::NotFound if name.starts_with("hw.vmm.vnode.") => Feature::VnodeProvider,
        io::ErrorKind::NotFound if name.starts_with("hw.vmm.") => Feature::Vmm,
        _ => {
            let reason = error.to_string();
            return Error::Sysctl { name, reason };
        }
    };
    let action = "read the sysctl variables of vmm";
    Error::Unsupported { action, what }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet};

    use super::*;

    /// Gives each variable another value, so that a mix-up shows.
    fn host() -> (
        impl Fn(&'static str) -> Result<u64, Error>,
        &'static RefCell<Vec<&'static str>>,
    ) {
        let asked: &RefCell<Vec<&'static str>> = Box::leak(Box::default());
        let number = move |name| {
            asked.borrow_mut().push(name);
            Ok(asked.borrow().len() as u64)
        };
        (number, asked)
    }

    #[test]
    fn limits_are_those_of_vmm_and_of_processes() {
        let (number, asked) = host();
        let limits = Limits::read_by(number, Some(64)).unwrap();
        assert_eq!(
            limits,
            Limits {
                max_vms: Some(1),
                user_vms: Some(64),
                max_vcpus: 2,
                max_processes: 3,
                max_processes_per_user: 4
            }
        );
        assert_eq!(
            *asked.borrow(),
            [
                "hw.vmm.maxvmms",
                "hw.vmm.maxcpu",
                "kern.maxproc",
                "kern.maxprocperuid"
            ]
        );
    }

    /// FreeBSD 15.0 has no `hw.vmm.maxvmms`: that is no limit, and the others are read all the
    /// same.
    #[test]
    fn a_kernel_without_maxvmms_has_its_other_limits() {
        let number = |name| match name {
            "hw.vmm.maxvmms" => Err(failure(name, &io::ErrorKind::NotFound.into())),
            _ => Ok(7),
        };
        let limits = Limits::read_by(number, None).unwrap();
        assert_eq!((limits.max_vms, limits.user_vms), (None, None));
        assert_eq!((limits.max_vcpus, limits.max_processes), (7, 7));
        // The error says why it cannot be read.
        let denied = |name| match name {
            "hw.vmm.maxvmms" => Err(failure(name, &io::ErrorKind::PermissionDenied.into())),
            _ => Ok(7),
        };
        assert!(matches!(
            Limits::read_by(denied, None),
            Err(Error::Sysctl { .. })
        ));
    }

    /// The manual page is the list of the module's variables.
    #[test]
    fn totals_are_the_variables_of_the_manual_page() {
        let (number, asked) = host();
        let totals = VnodeTotals::read_by(number).unwrap();
        assert_eq!((totals.abi, totals.pages, totals.file_resident), (1, 5, 8));
        let page = include_str!("../../kmod/vmm_vnode.4");
        let documented: BTreeSet<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix(".It Va "))
            .flat_map(|names| names.split(" , "))
            .filter(|name| name.starts_with("hw."))
            .filter(|name| *name != "hw.vmm.vnode.list")
            .collect();
        assert_eq!(
            asked.borrow().iter().copied().collect::<BTreeSet<_>>(),
            documented
        );
    }

    #[test]
    fn a_missing_variable_is_a_missing_module() {
        let error = io::Error::from(io::ErrorKind::NotFound);
        for (name, module) in [
            ("hw.vmm.vnode.abi", Some(Feature::VnodeProvider)),
            ("hw.vmm.maxvmms", Some(Feature::Vmm)),
            ("kern.nonsense", None),
        ] {
            match (failure(name, &error), module) {
                (Error::Unsupported { what, .. }, Some(module)) => assert_eq!(what, module),
                (Error::Sysctl { name: told, .. }, None) => assert_eq!(told, name),
                (error, _) => panic!("{error}"),
            }
        }
        let refused = failure("hw.vmm.vnode.abi", &io::ErrorKind::PermissionDenied.into());
        assert_eq!(
            refused.to_string(),
            "cannot read sysctl hw.vmm.vnode.abi: permission denied"
        );
    }

    #[test]
    fn counts_have_the_size_of_a_c_type() {
        let name = "kern.maxproc";
        assert_eq!(count(name, &u64::MAX.to_ne_bytes()).unwrap(), u64::MAX);
        assert_eq!(count(name, &13_000_u32.to_ne_bytes()).unwrap(), 13_000);
        for bad in [0, 1, 3, 5, 7, 9, 16] {
            let error = count(name, &vec![1; bad]).unwrap_err();
            assert!(matches!(error, Error::Sysctl { .. }), "{error}");
        }
    }

    #[cfg(not(target_os = "freebsd"))]
    #[test]
    fn elsewhere_reading_is_a_typed_error() {
        assert!(matches!(Limits::read(), Err(Error::NotFreeBsd { .. })));
        assert!(matches!(VnodeTotals::read(), Err(Error::NotFreeBsd { .. })));
    }
}
