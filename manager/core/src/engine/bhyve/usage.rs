//! Memory usage of a guest. The kernel answers by vmm_vnode(4)'s own requests, without a program
//! for each guest. Where it cannot (another system, no module), two commands do: sysctl(8) lists
//! private pages for each virtual machine, bhyvectl(8) resident ones.

use vmm_sys::{GuestMemory, Vm};

use super::host::Host;
use crate::{
    engine::{Error, Process, Usage},
    units::{Bytes, PAGE_SIZE},
};

/// Lines `VM segid=N ... private_resident=PAGES private_swapped=PAGES ...`.
const LIST: &str = "hw.vmm.vnode.list";

/// Memory of the guest that this virtual machine and process are.
///
/// # Errors
/// When the kernel can count it, and refuses to.
pub(super) fn read(host: &Host, vm: &str, memory: Bytes, process: Process) -> Result<Usage, Error> {
    let asked = if host.is_this_machine() {
        ask(vm)
    } else {
        Err(vmm_sys::Error::NotFreeBsd {
            device: vm.to_owned(),
        })
    };
    let counted = counted(asked, memory, || told(host, vm, memory))?;
    let resident = process_memory(process).unwrap_or_default();
    Ok(Usage {
        private: counted.private,
        shared: counted.shared,
        process: own_memory(resident, counted.private, memory),
        page_tables: page_tables(process.pid).unwrap_or_default(),
    })
}

/// Guest memory, by whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MemoryByOwner {
    private: Bytes,
    shared: Bytes,
}

/// Asks the kernel.
fn ask(vm: &str) -> Result<GuestMemory, vmm_sys::Error> {
    Vm::open(&vm.parse()?)?.guest_memory()
}

/// What counts: the kernel's answer; what commands tell, where the kernel has no answer to give.
fn counted(
    asked: Result<GuestMemory, vmm_sys::Error>,
    memory: Bytes,
    told: impl FnOnce() -> MemoryByOwner,
) -> Result<MemoryByOwner, Error> {
    use nix::errno::Errno;
    use vmm_sys::Error as Kernel;
    match asked {
        Ok(asked) => Ok(MemoryByOwner {
            private: Bytes(asked.private),
            shared: Bytes(asked.shared),
        }),
        Err(Kernel::NotFreeBsd { .. } | Kernel::Unsupported { .. } | Kernel::AbiVersion { .. }) => {
            Ok(told())
        }
        // bhyve has read the checkpoint, though the module is there.
        Err(Kernel::Request {
            errno: Errno::ENOENT,
            ..
        }) => Ok(MemoryByOwner {
            private: memory,
            shared: Bytes(0),
        }),
        // The machine has gone meanwhile.
        Err(Kernel::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::Gone)
        }
        Err(Kernel::Request {
            errno: Errno::ENXIO,
            ..
        }) => Err(Error::Gone),
        Err(e) => Err(Error::Refused(match e.hint() {
            Some(hint) => format!("{e}: {hint}"),
            None => e.to_string(),
        })),
    }
}

/// What commands tell.
fn told(host: &Host, vm: &str, memory: Bytes) -> MemoryByOwner {
    // Without the provider bhyve has read the checkpoint, and all of it is the guest's own.
    let list = host.run("sysctl", &["-n", LIST]).unwrap_or_default();
    let private = private(&list, vm).unwrap_or(memory);
    let stats = host.run("bhyvectl", &["--get-stats", &format!("--vm={vm}")]);
    let resident = stats.as_deref().ok().and_then(resident).unwrap_or(private);
    MemoryByOwner {
        private,
        shared: resident.saturating_sub(private),
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

/// `Resident memory` of `bhyvectl --get-stats`: guest memory that is mapped for the guest, in
/// bytes.
fn resident(stats: &str) -> Option<Bytes> {
    let line = stats
        .lines()
        .find_map(|line| line.trim().strip_prefix("Resident memory"))?;
    line.trim().parse().ok().map(Bytes)
}

/// A process's own memory without guest memory. A bhyve that has read the checkpoint has touched
/// all of the guest's memory; for one that shares it, none was counted.
fn own_memory(resident: Bytes, private: Bytes, memory: Bytes) -> Bytes {
    if cfg!(not(target_os = "linux")) && private == memory {
        resident.saturating_sub(memory)
    } else {
        resident
    }
}

/// Resident memory of a process that belongs to no file.
#[cfg(target_os = "linux")]
fn process_memory(process: Process) -> Option<Bytes> {
    status(process.pid, "RssAnon:")
}

/// Page tables of a process.
#[cfg(target_os = "linux")]
fn page_tables(pid: i32) -> Option<Bytes> {
    status(pid, "VmPTE:")
}

/// FreeBSD does not tell, of one process; a density run has those of all.
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

/// Resident memory of a process that is its own. Guest memory that shares a checkpoint is a mapping
/// of that file and is not counted; guest memory that the checkpoint was read into is.
#[cfg(not(target_os = "linux"))]
fn process_memory(process: Process) -> Option<Bytes> {
    crate::engine::process::own_memory(process)
}

#[cfg(test)]
mod tests {
    use std::io;

    use nix::errno::Errno;
    use vmm_sys::Feature;

    use super::*;

    const MEMORY: Bytes = Bytes::mib(4);
    const TOLD: MemoryByOwner = MemoryByOwner {
        private: Bytes(1),
        shared: Bytes(2),
    };

    fn refused(errno: Errno) -> vmm_sys::Error {
        vmm_sys::Error::Request {
            action: "count private pages",
            device: "/dev/vmm/g1".to_owned(),
            request: "VM_VNODE_STATS",
            errno,
        }
    }

    #[test]
    fn commands_are_asked_only_where_the_kernel_has_no_answer() {
        let unasked = || -> MemoryByOwner { panic!("the kernel has answered") };
        let asked = GuestMemory {
            private: 8192,
            shared: 4096,
        };
        let counted_by_kernel = counted(Ok(asked), MEMORY, unasked).unwrap();
        assert_eq!(
            counted_by_kernel,
            MemoryByOwner {
                private: Bytes(8192),
                shared: Bytes(4096)
            }
        );
        for lacking in [
            vmm_sys::Error::NotFreeBsd {
                device: String::new(),
            },
            vmm_sys::Error::Unsupported {
                action: "share memory with a checkpoint",
                what: Feature::VnodeProvider,
            },
            vmm_sys::Error::AbiVersion { module: 2, ours: 1 },
        ] {
            assert_eq!(counted(Err(lacking), MEMORY, || TOLD).unwrap(), TOLD);
        }
        let all = counted(Err(refused(Errno::ENOENT)), MEMORY, unasked).unwrap();
        assert_eq!((all.private, all.shared), (MEMORY, Bytes(0)));
        let open = |kind: io::ErrorKind| vmm_sys::Error::Open {
            device: "/dev/vmm/g1".to_owned(),
            source: kind.into(),
        };
        for gone in [refused(Errno::ENXIO), open(io::ErrorKind::NotFound)] {
            let error = counted(Err(gone), MEMORY, unasked).unwrap_err();
            assert!(matches!(error, Error::Gone), "{error}");
        }
        let denied = open(io::ErrorKind::PermissionDenied);
        let error = counted(Err(denied), MEMORY, unasked).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot open /dev/vmm/g1: permission denied: be root; in a jail, allow.vmm must be set"
        );
    }

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
