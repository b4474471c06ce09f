//! The sysctl variables of vmm(4) and vmm_vnode(4), and what else limits the number of guests.

use crate::Error;

/// What limits how many virtual machines a host can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `hw.vmm.maxvmms`: virtual machines of one user; 4 per processor unless it was raised.
    pub max_vms: u64,
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
    /// `private_resident`: written by guests and in memory.
    pub private_resident: u64,
    /// `private_swapped`: written by guests and in swap.
    pub private_swapped: u64,
    /// `file_resident`: of the files and in memory, each file counted once.
    pub file_resident: u64,
}

impl Limits {
    /// Reads the limits of this host.
    ///
    /// # Errors
    /// As [`number`].
    pub fn read() -> Result<Self, Error> {
        Self::read_by(number)
    }

    fn read_by(number: impl Fn(&'static str) -> Result<u64, Error>) -> Result<Self, Error> {
        Ok(Self {
            max_vms: number("hw.vmm.maxvmms")?,
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
    /// As [`number`].
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
        })
    }
}

/// A variable that is a number, of whatever C type.
///
/// # Errors
/// [`Error::NotFreeBsd`] elsewhere; [`Error::Unsupported`] if it is one of vmm(4) or vmm_vnode(4)
/// and the module is not loaded; [`Error::Sysctl`] if there is no such variable, if it may not be
/// read, or if it is not a number, or a negative one.
pub fn number(name: &'static str) -> Result<u64, Error> {
    #[cfg(not(target_os = "freebsd"))]
    {
        Err(Error::NotFreeBsd {
            device: format!("sysctl {name}"),
        })
    }
    #[cfg(target_os = "freebsd")]
    {
        use sysctl::{Ctl, Sysctl, SysctlError};

        match Ctl::new(name).and_then(|ctl| ctl.value_string()) {
            Ok(value) => parse(name, &value),
            Err(SysctlError::NotFound(_)) => Err(missing(name)),
            Err(error) => Err(Error::Sysctl {
                name,
                reason: error.to_string(),
            }),
        }
    }
}

#[cfg(any(target_os = "freebsd", test))]
fn parse(name: &'static str, value: &str) -> Result<u64, Error> {
    let reason = || format!("`{value}` is not a count");
    value.parse().map_err(|_| Error::Sysctl {
        name,
        reason: reason(),
    })
}

/// The error of a variable that does not exist: those of a module come with it.
#[cfg(any(target_os = "freebsd", test))]
fn missing(name: &'static str) -> Error {
    use crate::Feature;

    let what = if name.starts_with("hw.vmm.vnode.") {
        Feature::VnodeProvider
    } else if name.starts_with("hw.vmm.") {
        Feature::Vmm
    } else {
        return Error::Sysctl {
            name,
            reason: "there is no such variable".to_owned(),
        };
    };
    Error::Unsupported {
        action: "read the sysctl variables of vmm",
        what,
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet};

    use super::*;
    use crate::Feature;

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
        let limits = Limits::read_by(number).unwrap();
        assert_eq!(
            limits,
            Limits {
                max_vms: 1,
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
            .filter(|name| *name != "hw.vmm.vnode.list")
            .collect();
        assert_eq!(
            asked.borrow().iter().copied().collect::<BTreeSet<_>>(),
            documented
        );
    }

    #[test]
    fn a_missing_variable_is_a_missing_module() {
        for (name, module) in [
            ("hw.vmm.vnode.abi", Some(Feature::VnodeProvider)),
            ("hw.vmm.maxvmms", Some(Feature::Vmm)),
            ("kern.nonsense", None),
        ] {
            match (missing(name), module) {
                (Error::Unsupported { what, .. }, Some(module)) => assert_eq!(what, module),
                (Error::Sysctl { name: told, .. }, None) => assert_eq!(told, name),
                (error, _) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn only_counts_are_counts() {
        assert_eq!(
            parse("kern.maxproc", "18446744073709551615").unwrap(),
            u64::MAX
        );
        for bad in ["", "-1", "12 ", "[Node]", "0x10", "1.5"] {
            let error = parse("kern.maxproc", bad).unwrap_err().to_string();
            let expected = format!("cannot read sysctl kern.maxproc: `{bad}` is not a count");
            assert_eq!(error, expected);
        }
    }

    #[cfg(not(target_os = "freebsd"))]
    #[test]
    fn elsewhere_reading_is_a_typed_error() {
        assert!(matches!(Limits::read(), Err(Error::NotFreeBsd { .. })));
        assert!(matches!(VnodeTotals::read(), Err(Error::NotFreeBsd { .. })));
    }
}
