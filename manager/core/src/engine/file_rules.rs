//! File rules: which files a process may still reach, and those that it starts (Landlock,
//! landlock(7)). What has open files keeps them. Nor does such a process reach processes that have
//! not these rules, by ptrace(2), by a signal or by an abstract socket; nor anybody by TCP.
//!
//! Each kernel enforces what it knows: files since 5.13, truncation since 6.2, TCP since 6.7, devices
//! since 6.10, signals and abstract sockets since 6.12.

use std::{
    io,
    os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd},
    path::Path,
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};

use crate::host;

/// The newest version of Landlock whose rights are taken away; the newest that was tried.
const NEWEST: ABI = ABI::V7;

/// A right, or several.
pub(in crate::engine) type Rights = BitFlags<AccessFs>;

/// All rights that there are.
pub(in crate::engine) fn all() -> Rights {
    AccessFs::from_all(NEWEST)
}

/// To read files and folders, and to execute files.
pub(in crate::engine) fn read() -> Rights {
    AccessFs::from_read(NEWEST)
}

/// Rules that a process can take.
#[derive(Debug)]
pub(in crate::engine) struct FileRules {
    rules: OwnedFd,
    version: u32,
}

impl FileRules {
    /// Rules with these rights below these files and folders, of which those that are not there are
    /// left out. `None` where the kernel has no Landlock.
    ///
    /// # Errors
    /// When the kernel refuses them.
    pub(in crate::engine) fn new<'a>(
        allowed: impl IntoIterator<Item = (&'a Path, Rights)>,
    ) -> io::Result<Option<Self>> {
        let rules = Self::none().handle_access(AccessNet::from_all(NEWEST));
        rules
            .map_err(io::Error::other)
            .and_then(|rules| Self::made(rules, allowed))
    }

    /// The same for a process that listens and connects by TCP.
    pub(in crate::engine) fn with_tcp<'a>(
        allowed: impl IntoIterator<Item = (&'a Path, Rights)>,
    ) -> io::Result<Option<Self>> {
        Self::made(Self::none(), allowed)
    }

    fn none() -> Ruleset {
        Ruleset::default().set_compatibility(CompatLevel::BestEffort)
    }

    fn made<'a>(
        rules: Ruleset,
        allowed: impl IntoIterator<Item = (&'a Path, Rights)>,
    ) -> io::Result<Option<Self>> {
        let mut rules = rules
            .handle_access(all())
            .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
            .and_then(Ruleset::create)
            .map_err(io::Error::other)?;
        for (path, rights) in allowed {
            let Ok(there) = PathFd::new(path) else {
                continue;
            };
            let rights = match path.is_dir() {
                true => rights,
                false => rights & AccessFs::from_file(NEWEST),
            };
            rules = rules
                .add_rule(PathBeneath::new(there, rights))
                .map_err(|e: RulesetError| io::Error::other(e))?;
        }
        let version = host::jail::landlock().min(NEWEST as u32);
        Ok(Option::<OwnedFd>::from(rules).map(|rules| Self { rules, version }))
    }

    /// Version of Landlock that they are of: the kernel's, or the newest that brood knows.
    pub(in crate::engine) fn version(&self) -> u32 {
        self.version
    }

    /// Their descriptor, which stays open.
    pub(in crate::engine) fn into_raw_fd(self) -> RawFd {
        self.rules.into_raw_fd()
    }

    /// Their descriptor.
    pub(in crate::engine) fn as_raw_fd(&self) -> RawFd {
        self.rules.as_raw_fd()
    }

    /// Confines this thread to the rules, for good. It has no_new_privs.
    pub(in crate::engine) fn enter(&self) -> io::Result<()> {
        enter(self.rules.as_raw_fd())
    }
}

/// Confines this thread to the rules that have this descriptor. It has no_new_privs. Async-signal-safe.
pub(in crate::engine) fn enter(rules: RawFd) -> io::Result<()> {
    // SAFETY: touches no memory of this process.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
