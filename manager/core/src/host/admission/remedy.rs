//! Remedies: for each limit, the command that raises it far enough.

use crate::{host::cgroup::GroupLimit, units::Bytes};

/// The kernel's own upper bound of `kernel.pid_max` on 64-bit hosts (`PID_MAX_LIMIT`).
const PID_MAX_LIMIT: u64 = 4 << 20;

/// Limits to choose from: powers of two from 1,024.
pub(super) fn powers_of_two() -> impl Iterator<Item = u64> {
    (10..63).map(|shift| 1_u64 << shift)
}

/// The smallest power of two that holds `needed` above `used` and its own reserve.
fn enough(needed: u64, used: u64, reserve: fn(u64) -> u64) -> Option<u64> {
    powers_of_two().find(|limit| {
        u128::from(*limit) >= u128::from(needed) + u128::from(used) + u128::from(reserve(*limit))
    })
}

/// For `kernel.pid_max`, `kernel.threads-max`, `RLIMIT_NPROC` or the path of a `pids.max`.
pub(super) fn pids(name: &str, needed: u64, used: u64, reserve: fn(u64) -> u64) -> String {
    let Some(limit) = enough(needed, used, reserve).filter(|limit| *limit <= PID_MAX_LIMIT) else {
        return format!("no setting is large enough: Linux has at most {PID_MAX_LIMIT} pids");
    };
    match name {
        "RLIMIT_NPROC" => format!("raise it: ulimit -u {limit}"),
        path if path.starts_with('/') => format!("raise it: echo {limit} > {path}"),
        sysctl => format!("raise it: sysctl -w {sysctl}={limit}"),
    }
}

pub(super) fn own_files(needed: u64, hard: Option<u64>) -> String {
    let limit = needed.next_power_of_two().max(1024);
    if hard.is_some_and(|hard| hard < needed) {
        format!("raise it as root: prlimit --pid $$ --nofile={limit}:{limit}")
    } else {
        format!(
            "raise it: ulimit -n {}",
            hard.map_or(limit, |hard| hard.min(limit))
        )
    }
}

pub(super) fn host_files(needed: u64, open: u64) -> String {
    match enough(needed, open, |_| 0) {
        Some(limit) => format!("raise it: sysctl -w fs.file-max={limit}"),
        None => "no setting is large enough".to_owned(),
    }
}

pub(super) fn memory() -> String {
    "free memory, or allow each guest less private memory".to_owned()
}

pub(super) fn group_memory(group: &GroupLimit, needed: u64, reserve: fn(u64) -> u64) -> String {
    let file = group.file.display();
    // Rounded up to whole MiB; the reserve grows with the limit and is at most 1 GiB.
    let limit = needed
        .saturating_add(group.used)
        .saturating_add(Bytes::gib(1).0);
    let exact = needed
        .saturating_add(group.used)
        .saturating_add(reserve(limit));
    let mib = exact.div_ceil(Bytes::mib(1).0);
    format!("raise it: echo {mib}M > {file}, or allow each guest less private memory")
}

pub(super) fn commit() -> String {
    "with vm.overcommit_memory=2 each guest counts in full: sysctl -w vm.overcommit_memory=0"
        .to_owned()
}
