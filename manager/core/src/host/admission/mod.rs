//! Admission: decides whether a restore fits on the host before anything is started.
//!
//! A thousand clones that each write a little are cheap, and a thousand that each write everything
//! are not. The operator says how much private memory each guest may come to hold (the private
//! limit), and a restore is admitted only if every guest could take all of it at once. Memory that
//! earlier guests were promised and have not used yet counts against the same budget; so several
//! restores, one after the other or at once, cannot together exceed it.
//!
//! Running out of pids is worse than running out of memory: then nobody can fork on the whole host,
//! not even a shell to clean up. So those limits keep a reserve and are never overcommitted.

mod freebsd;
mod remedy;
#[cfg(test)]
mod tests;
mod verdict;

pub use verdict::{AdmissionLimit, Error, Unit, Verdict};

use crate::{
    host::{
        facts::{HostFacts, System},
        linux::Linux,
    },
    units::Bytes,
};

/// Tasks that brood itself needs beside its guests: manager, nursery and their threads.
pub(crate) const OWN_PIDS: u64 = 8;
/// Descriptors that the manager needs, however many guests there are.
pub(crate) const OWN_FILES: u64 = 64;
/// Open files that one guest takes: its memory file, virtual machine, vCPU, channel, and so on.
pub(crate) const FILES_PER_GUEST: u64 = 10;

/// Demand of a restore on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Guests to restore.
    pub guests: u64,
    /// What a guest takes before it writes anything: kernel and process memory.
    pub overhead: Bytes,
    /// The most private memory that the operator allows each guest to come to hold.
    pub private_limit: Bytes,
    /// Memory of one guest; a private limit past it means nothing.
    pub memory_size: Bytes,
    /// Memory promised to earlier guests and not used yet: for a live guest its private limit less
    /// its private memory, for a guest that was admitted and not started yet also the overhead.
    pub outstanding: Bytes,
    /// Tasks of guests that were admitted and do not exist yet.
    pub outstanding_pids: u64,
}

impl Demand {
    /// The same on this host: a guest that does not share the checkpoint's memory takes all its
    /// own from the start, whatever it is allowed to write.
    #[must_use]
    pub(crate) fn on(&self, facts: &HostFacts) -> Self {
        Self {
            private_limit: private(facts, self.private_limit, self.memory_size),
            ..*self
        }
    }

    /// The most memory that one guest can come to take on the host.
    #[must_use]
    pub(crate) fn worst_per_guest(&self) -> Bytes {
        self.overhead + self.private_limit.min(self.memory_size)
    }
}

/// The most private memory that a guest with this private limit can come to hold on this host.
#[must_use]
pub fn private(facts: &HostFacts, private_limit: Bytes, memory_size: Bytes) -> Bytes {
    if facts.sharing().shared {
        private_limit.min(memory_size)
    } else {
        memory_size
    }
}

/// Holds a demand against every limit of the host.
#[must_use]
pub(crate) fn admit(facts: &HostFacts, demand: &Demand) -> Verdict {
    let demand = &demand.on(facts);
    let mut limits = match &facts.system {
        System::Linux(linux) => {
            let mut limits = pid_limits(linux, demand);
            limits.extend(file_limits(facts, demand));
            limits.extend(memory_limits(facts, linux, demand));
            limits
        }
        System::Freebsd(freebsd) => freebsd::limits(facts, freebsd, demand),
    };
    if facts.never_overcommits() {
        limits.push(commit_limit(facts, demand));
    }
    Verdict::new(demand.guests, limits)
}

/// Kept free of pids for the rest of the host: a tenth, at least 1,000.
fn host_pid_reserve(limit: u64) -> u64 {
    (limit / 10).max(1000)
}

/// Kept free of pids where a limit is brood's own: enough for a shell to clean up with.
fn own_pid_reserve(limit: u64) -> u64 {
    (limit / 20).clamp(4, 1000)
}

/// Kept free of memory: a fiftieth, at least 128 MiB and at most 1 GiB.
fn memory_reserve(whole: u64) -> u64 {
    (whole / 50).clamp(Bytes::mib(128).0, Bytes::gib(1).0)
}

fn pid_limits(linux: &Linux, demand: &Demand) -> Vec<AdmissionLimit> {
    let pids = &linux.pids;
    let limit = |name: &str, limit: u64, used: u64, reserve: fn(u64) -> u64| {
        AdmissionLimit::new(name, Unit::Pids)
            .room(limit.saturating_sub(used), reserve(limit))
            .needs(
                demand.guests,
                linux.kvm.pids_per_guest(),
                OWN_PIDS.saturating_add(demand.outstanding_pids),
            )
            .remedy(|needed| remedy::pids(name, needed, used, reserve))
    };
    let mut limits = vec![
        limit("kernel.pid_max", pids.pid_max, pids.tasks, host_pid_reserve),
        limit(
            "kernel.threads-max",
            pids.threads_max,
            pids.tasks,
            host_pid_reserve,
        ),
    ];
    if let Some(group) = &linux.groups.pids {
        let name = group.file.display().to_string();
        limits.push(limit(&name, group.limit, group.used, own_pid_reserve));
    }
    if let Some(nproc) = pids.nproc_limit.filter(|_| pids.nproc_binds) {
        limits.push(limit(
            "RLIMIT_NPROC",
            nproc,
            pids.user_tasks,
            own_pid_reserve,
        ));
    }
    limits
}

fn file_limits(facts: &HostFacts, demand: &Demand) -> [AdmissionLimit; 2] {
    let files = &facts.files;
    let unborn = unborn_guests(facts, demand);
    [
        AdmissionLimit::new("RLIMIT_NOFILE", Unit::Files)
            .room(files.soft.unwrap_or(u64::MAX), 0)
            .needs(demand.guests, 0, OWN_FILES)
            .remedy(|needed| remedy::own_files(needed, files.hard)),
        AdmissionLimit::new("fs.file-max", Unit::Files)
            .room(files.max.saturating_sub(files.open), 0)
            .needs(
                demand.guests,
                FILES_PER_GUEST,
                OWN_FILES.saturating_add(unborn.saturating_mul(FILES_PER_GUEST)),
            )
            .remedy(|needed| remedy::host_files(needed, files.open)),
    ]
}

fn memory_limits(facts: &HostFacts, linux: &Linux, demand: &Demand) -> Vec<AdmissionLimit> {
    let memory = &facts.memory;
    let limit = |name: &str, available: u64, whole: u64| {
        AdmissionLimit::new(name, Unit::Bytes)
            .room(available, memory_reserve(whole))
            .needs(
                demand.guests,
                demand.worst_per_guest().0,
                demand.outstanding.0,
            )
            .promise()
    };
    let mut limits = vec![
        limit("MemAvailable", memory.available.0, memory.total.0).remedy(|_| remedy::memory()),
    ];
    if let Some(group) = &linux.groups.memory {
        let name = group.file.display().to_string();
        limits.push(
            limit(&name, group.room(), group.limit)
                .remedy(|needed| remedy::group_memory(group, needed, memory_reserve)),
        );
    }
    limits
}

/// Where the kernel counts every private mapping in full and refuses the one that does not fit,
/// whatever its guest would write: no promise about use helps, so it is never skipped.
fn commit_limit(facts: &HostFacts, demand: &Demand) -> AdmissionLimit {
    let memory = &facts.memory;
    let per_guest = (demand.overhead + demand.memory_size).0;
    let fixed = unborn_guests(facts, demand).saturating_mul(per_guest);
    AdmissionLimit::new("CommitLimit", Unit::Bytes)
        .room(
            memory.commit_limit.saturating_sub(memory.committed).0,
            memory_reserve(memory.commit_limit.0),
        )
        .needs(demand.guests, per_guest, fixed)
        .remedy(|_| remedy::commit())
}

/// Guests that were admitted and do not exist yet, from the tasks they will take.
fn unborn_guests(facts: &HostFacts, demand: &Demand) -> u64 {
    demand.outstanding_pids.div_ceil(facts.pids_per_guest())
}
