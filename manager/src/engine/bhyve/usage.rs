//! What a guest costs. Private pages are counted by the provider of guest memory, vmm_vnode(4),
//! whose sysctl(8) node lists them for each virtual machine; resident ones by vmm(4).

use super::host::Host;
use crate::{
    engine::{Process, Usage},
    units::{Bytes, PAGE_SIZE},
};

/// Lines `VM segid=N ... private_resident=PAGES private_swapped=PAGES ...`.
const LIST: &str = "hw.vmm.vnode.list";

/// Memory of the guest that this virtual machine and process are.
pub(super) fn read(host: &Host, vm: &str, memory: Bytes, process: Process) -> Usage {
    // Without the provider bhyve has read the checkpoint, and all of it is the guest's own.
    let list = host.run("sysctl", &["-n", LIST]).unwrap_or_default();
    let private = private(&list, vm).unwrap_or(memory);
    let stats = host.run("bhyvectl", &["--get-stats", &format!("--vm={vm}")]);
    let resident = stats.as_deref().ok().and_then(resident).unwrap_or(private);
    Usage {
        private,
        shared: resident.saturating_sub(private),
        process: process_memory(host, process.pid).unwrap_or_default(),
        page_tables: page_tables(process.pid).unwrap_or_default(),
    }
}

/// Memory that a virtual machine has written, from the provider's list.
fn private(list: &str, vm: &str) -> Option<Bytes> {
    let mut pages = None;
    for line in list.lines() {
        let Some(rest) = line.strip_prefix(vm).and_then(|r| r.strip_prefix(' ')) else {
            continue;
        };
        for word in rest.split_whitespace() {
            if let Some(("private_resident" | "private_swapped", number)) = word.split_once('=') {
                *pages.get_or_insert(0_u64) += number.parse::<u64>().unwrap_or(0);
            }
        }
    }
    pages.map(|pages| Bytes(pages * PAGE_SIZE))
}

/// `Resident memory` of `bhyvectl --get-stats`: guest memory that is mapped for the guest, in bytes.
fn resident(stats: &str) -> Option<Bytes> {
    let line = stats
        .lines()
        .find_map(|line| line.trim().strip_prefix("Resident memory"))?;
    line.trim().parse().ok().map(Bytes)
}

/// What of a process is in memory and not guest memory.
#[cfg(target_os = "linux")]
fn process_memory(_: &Host, pid: i32) -> Option<Bytes> {
    // Anonymous memory: what of the process is of no file.
    status(pid, "RssAnon:")
}

/// Page tables of a process.
#[cfg(target_os = "linux")]
fn page_tables(pid: i32) -> Option<Bytes> {
    status(pid, "VmPTE:")
}

/// FreeBSD does not tell.
#[cfg(not(target_os = "linux"))]
fn page_tables(_: i32) -> Option<Bytes> {
    None
}

#[cfg(target_os = "linux")]
fn status(pid: i32, key: &str) -> Option<Bytes> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib = line.trim().trim_end_matches("kB").trim();
    Some(Bytes::kib(kib.parse().ok()?))
}

/// What of a process is in memory. bhyve maps all guest memory, so what of that it has touched is
/// counted too.
#[cfg(not(target_os = "linux"))]
fn process_memory(host: &Host, pid: i32) -> Option<Bytes> {
    let kib = host
        .run("ps", &["-o", "rss=", "-p", &pid.to_string()])
        .ok()?;
    Some(Bytes::kib(kib.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_pages_are_those_of_the_very_machine() {
        let list = "\
brood-1 segid=0 offset=0 pages=1024 private_resident=3 private_swapped=1 file_resident=900
brood-10 segid=0 offset=0 pages=1024 private_resident=70 private_swapped=0 file_resident=900
";
        assert_eq!(private(list, "brood-1"), Some(Bytes(4 * 4096)));
        assert_eq!(private(list, "brood-10"), Some(Bytes(70 * 4096)));
        assert_eq!(private(list, "brood"), None);
    }

    #[test]
    fn resident_memory_is_found_among_the_statistics() {
        let stats = "vcpu0 stats:\nnumber of ticks\t12\nResident memory                         \t8192\nWired memory\t0\n";
        assert_eq!(resident(stats), Some(Bytes(8192)));
        assert_eq!(resident("vcpu0 stats:\n"), None);
    }
}
