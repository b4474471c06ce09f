//! Jail of a guest's process: what a guest that takes over its process can still do.
//!
//! The nursery prepares it before it forks, and its guests inherit that at no cost: it gives up all
//! capabilities, and the right to ever get any; it leaves the host's networks and System V objects;
//! it keeps only the files that it needs (Landlock); and it lowers what it may use (resource limits).
//! A guest's process then takes rules of its own, which leave it one thing to do with files, and a
//! filter of system calls (seccomp), while it is a spare and waits for its order. The filter leaves
//! what a guest's process does: it names the one socket that it has made, runs its virtual machine,
//! talks to clients that come to the socket, and reads and writes descriptors that it has or is sent.
//! It opens nothing, starts nothing, connects to nothing and signals nobody but itself.

mod filter;
mod limits;
mod user;

use std::{
    io,
    os::fd::{BorrowedFd, RawFd},
    path::Path,
};

use caps::{CapSet, CapsHashSet};
use landlock::AccessFs;
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
    unistd::{Pid, getppid},
};

use crate::{
    engine::{
        file_rules::{self, FileRules, Rights},
        kvm::{jail::filter::Filter, limit_group},
    },
    host::{jail::JailFacts, proc::ProcRoot},
    units::Bytes,
};

/// Gives up all capabilities but `kept`, and the right to get any by executing a program.
fn give_up_privileges(kept: &CapsHashSet) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot give up its privileges: {e}");
    nix::sys::prctl::set_no_new_privs().map_err(|e| failed(&e))?;
    for set in [CapSet::Ambient, CapSet::Bounding] {
        // Only a process that has CAP_SETPCAP may change these, and without a privilege they
        // give none.
        let _ = caps::clear(None, set);
    }
    caps::clear(None, CapSet::Inheritable).map_err(|e| failed(&e))?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, kept).map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// Leaves the host's networks, and its System V and POSIX message queues, semaphores and shared
/// memory; where this process may not, it stays.
///
/// A namespace of mounts would add nothing to [`FileRules`], and keep each file system of the host
/// busy as long as there is a guest; one of process ids would take a process of its own.
fn leave_namespaces() {
    for namespace in [CloneFlags::CLONE_NEWNET, CloneFlags::CLONE_NEWIPC] {
        let _ = unshare(namespace);
    }
}

/// The files that a nursery still needs: it and its guests change the run folder, which is the
/// current one, and it looks for open files of its children. For private limits that are enforced,
/// control groups are made.
fn of_nursery(enforces_limits: bool) -> io::Result<Option<FileRules>> {
    let run_folder = AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::MakeSym
        | AccessFs::RemoveFile;
    let groups = match enforces_limits {
        true => limit_group::mounts(),
        false => Vec::new(),
    };
    let allowed = [
        (Path::new("."), run_folder),
        (Path::new("/proc"), AccessFs::ReadFile | AccessFs::ReadDir),
    ];
    let groups = groups.iter().map(|mount| (&**mount, file_rules::all()));
    FileRules::new(allowed.into_iter().chain(groups))
}

/// The jail, made once for all guests of a nursery.
#[derive(Debug)]
pub(crate) struct Jail {
    filter: Filter,
    /// Where the kernel has Landlock. A guest closes its descriptor and writes nothing here, for
    /// the page would be a page of its own from then on.
    file_rules: Option<RawFd>,
    /// Version of Landlock that those are of; 0 without them.
    landlock: u32,
    /// Whether each guest has a user of its own.
    has_users: bool,
}

impl Jail {
    /// Puts this nursery into its own jail, and makes that of its guests, of which none writes a
    /// file that is larger than `largest`. The current folder is the run folder.
    pub(crate) fn of_guests(enforces_limits: bool, largest: Bytes) -> Result<Self, String> {
        let failed = |e: io::Error| format!("cannot restrict what files it may reach: {e}");
        let host = JailFacts::read(&ProcRoot::default()).map_err(|e| e.to_string())?;
        if host.namespaces {
            leave_namespaces();
        }
        let kept = match host.users {
            true => user::prepare().map_err(|e| format!("cannot leave its groups: {e}"))?,
            false => CapsHashSet::new(),
        };
        give_up_privileges(&kept)?;
        limits::enter(largest).map_err(|e| format!("cannot lower its resource limits: {e}"))?;
        let bind: Rights = AccessFs::MakeSock.into();
        let file_rules = FileRules::new([(Path::new("."), bind)]).map_err(failed)?;
        if let Some(rules) = of_nursery(enforces_limits).map_err(failed)? {
            rules.enter().map_err(failed)?;
        }
        Ok(Self {
            filter: Filter::new(),
            landlock: file_rules.as_ref().map_or(0, FileRules::version),
            file_rules: file_rules.map(FileRules::into_raw_fd),
            has_users: host.users,
        })
    }

    /// Version of Landlock whose rules a guest's process takes; 0 when the kernel has none.
    pub(crate) fn landlock(&self) -> u32 {
        self.landlock
    }

    /// Makes this process, which has named its socket, another user's than its siblings', where that
    /// can be. Its end hangs on that of its nursery as it did before.
    #[inline(never)]
    pub(crate) fn change_user(&self, nursery: Pid) -> Result<(), String> {
        if self.has_users {
            user::become_own().map_err(|e| format!("cannot become its own user: {e}"))?;
            // Who becomes another user no longer hangs on anybody.
            let hang = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            hang.map_err(|e| format!("cannot have its nursery end it: {e}"))?;
            if getppid() != nursery {
                return Err("its nursery has ended".to_owned());
            }
        }
        Ok(())
    }

    /// Confines this process for good. It may still give the socket `control` its address, once.
    pub(crate) fn enter(&self, control: BorrowedFd<'_>) -> Result<(), String> {
        let failed = |e: io::Error| format!("cannot enter its jail: {e}");
        if self.has_users {
            limits::enter_guest().map_err(|e| failed(e.into()))?;
        }
        if let Some(rules) = self.file_rules {
            file_rules::enter(rules).map_err(failed)?;
            // SAFETY: this process's descriptor, which nothing in it uses from here on.
            unsafe { libc::close(rules) };
        }
        self.filter.enter(control).map_err(failed)
    }
}

#[cfg(test)]
mod tests;
