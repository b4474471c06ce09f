//! Snapshot of the host's memory: what the kernel says it is used for, before and after a step.

use serde::{Deserialize, Serialize};

use brood_core::{
    host::{
        HostSource,
        freebsd::{self, Kernel},
        proc::{Error, ProcRoot, kib_field},
    },
    units::{Bytes, PAGE_SIZE},
};

/// Memory of the host at one moment, as far as guests move it: from `/proc/meminfo` on Linux, see
/// proc_meminfo(5), from `vm.stats` and `vm.pmap` on FreeBSD. A value that the kernel does not
/// report is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySnapshot {
    /// `MemAvailable`, and the free pages that wait in the lists of each core: see `waiting`.
    /// FreeBSD: pages that are free, inactive or in the laundry.
    pub available: Bytes,
    /// `Slab`: kernel objects. FreeBSD: `vm.uma_kmem_total`, its zones and large allocations.
    pub slab: Bytes,
    /// `SUnreclaim`: the part of [`Self::slab`] that cannot be given back.
    pub slab_unreclaimable: Bytes,
    /// `VmallocUsed`: among others KVM's arrays for each memory slot. FreeBSD: wired memory that is
    /// neither in [`Self::slab`] nor in [`Self::page_tables`], such as kernel stacks.
    pub vmalloc: Bytes,
    /// `KernelStack`.
    pub kernel_stack: Bytes,
    /// `PageTables`: of processes. FreeBSD: `vm.pmap.user_pt_page_count`, with those of guests, and
    /// `vm.pmap.pv_page_count`, the lists of who has a page mapped.
    pub page_tables: Bytes,
    /// `SecPageTables`: of guests. Zero on kernels before 6.0, which do not say.
    pub secondary_page_tables: Bytes,
    /// `AnonPages`: private pages of guests and processes. FreeBSD does not tell them apart.
    pub anonymous: Bytes,
    /// `Percpu`.
    pub percpu: Bytes,
    /// `Shmem`.
    pub shared_memory: Bytes,
    /// `Cached`: page cache, among it the checkpoint.
    pub cached: Bytes,
}

/// How memory changed from one snapshot to a later one, in MiB. Positive is more use; for
/// [`Self::available`] that means less is available.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of MemorySnapshot")]
pub struct MemoryDelta {
    pub available: f64,
    pub slab: f64,
    pub slab_unreclaimable: f64,
    pub vmalloc: f64,
    pub kernel_stack: f64,
    pub page_tables: f64,
    pub secondary_page_tables: f64,
    pub anonymous: f64,
    pub percpu: f64,
    pub shared_memory: f64,
    pub cached: f64,
}

impl MemorySnapshot {
    /// Asks the kernel of a host.
    ///
    /// # Errors
    ///
    /// If it does not say how much memory is available.
    pub fn of(host: &HostSource) -> Result<Self, Error> {
        match host {
            HostSource::Linux(root) => Self::read(root),
            HostSource::Freebsd { kernel, .. } => Self::ask(&**kernel),
        }
    }

    /// Asks a FreeBSD kernel.
    fn ask(kernel: &dyn Kernel) -> Result<Self, Error> {
        let slab = Bytes(freebsd::number(kernel, "vm.uma_kmem_total")?);
        // Not all processors' code counts them. For each mapping of a page there is an entry in a
        // list, so that the page can be unmapped everywhere: in a process and, again, in a guest.
        let counted = |name| freebsd::pages(kernel, name).unwrap_or_default();
        let page_tables = counted("vm.pmap.user_pt_page_count") + counted("vm.pmap.pv_page_count");
        let wired = freebsd::pages(kernel, "vm.stats.vm.v_wire_count")?;
        Ok(Self {
            available: freebsd::available(kernel)?,
            slab,
            page_tables,
            vmalloc: wired.saturating_sub(slab).saturating_sub(page_tables),
            ..Self::default()
        })
    }

    /// Reads `/proc/meminfo`.
    ///
    /// # Errors
    ///
    /// If it cannot be read or does not say `MemAvailable`. Another line that a kernel does not
    /// have counts as zero.
    pub fn read(root: &ProcRoot) -> Result<Self, Error> {
        const FILE: &str = "/proc/meminfo";
        let text = root.text(FILE)?;
        let amount = |key| kib_field(&text, key).unwrap_or_default();
        let available =
            kib_field(&text, "MemAvailable").ok_or_else(|| root.missing(FILE, "MemAvailable"))?;
        Ok(Self {
            available: available + waiting(&root.optional("/proc/zoneinfo").unwrap_or_default()),
            slab: amount("Slab"),
            slab_unreclaimable: amount("SUnreclaim"),
            vmalloc: amount("VmallocUsed"),
            kernel_stack: amount("KernelStack"),
            page_tables: amount("PageTables"),
            secondary_page_tables: amount("SecPageTables"),
            anonymous: amount("AnonPages"),
            percpu: amount("Percpu"),
            shared_memory: amount("Shmem"),
            cached: amount("Cached"),
        })
    }

    /// Memory used between `self` and `after`.
    #[must_use]
    pub fn delta(&self, after: &Self) -> MemoryDelta {
        let grown = |field: fn(&Self) -> Bytes| field(after).as_mib() - field(self).as_mib();
        MemoryDelta {
            available: -grown(|s| s.available),
            slab: grown(|s| s.slab),
            slab_unreclaimable: grown(|s| s.slab_unreclaimable),
            vmalloc: grown(|s| s.vmalloc),
            kernel_stack: grown(|s| s.kernel_stack),
            page_tables: grown(|s| s.page_tables),
            secondary_page_tables: grown(|s| s.secondary_page_tables),
            anonymous: grown(|s| s.anonymous),
            percpu: grown(|s| s.percpu),
            shared_memory: grown(|s| s.shared_memory),
            cached: grown(|s| s.cached),
        }
    }
}

/// Free pages that wait in the lists of a core for its next allocation, from `/proc/zoneinfo`.
///
/// The kernel counts them as used, keeps hundreds of MiB there after many guests died, and lets go
/// of them within a minute or so: without them, a measurement taken meanwhile is wrong by as much.
/// Each core has its list in each zone, as `count:`, in pages.
fn waiting(zoneinfo: &str) -> Bytes {
    let counts = zoneinfo
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("count:"));
    Bytes(PAGE_SIZE).saturating_mul(
        counts
            .filter_map(|count| count.trim().parse::<u64>().ok())
            .sum(),
    )
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        path::{Path, PathBuf},
    };

    use super::*;
    use brood_core::host::{folder::MountedOn, freebsd::Value};

    /// A FreeBSD kernel that tells of pages, and of its zones.
    struct Pages {
        free: u64,
        wired: u64,
        tables: Option<u64>,
        /// Of lists of mappings.
        lists: Option<u64>,
        zones: u64,
    }

    impl Kernel for Pages {
        fn sysctl(&self, name: &str) -> io::Result<Value> {
            let number = match name {
                "vm.stats.vm.v_page_size" => 4096,
                "vm.stats.vm.v_free_count" => self.free,
                "vm.stats.vm.v_inactive_count" => 20,
                "vm.stats.vm.v_laundry_count" => 3,
                "vm.stats.vm.v_wire_count" => self.wired,
                "vm.uma_kmem_total" => self.zones,
                "vm.pmap.user_pt_page_count" => self.tables.ok_or(io::ErrorKind::NotFound)?,
                "vm.pmap.pv_page_count" => self.lists.ok_or(io::ErrorKind::NotFound)?,
                _ => return Err(io::ErrorKind::NotFound.into()),
            };
            Ok(Value::Raw(number.to_ne_bytes().to_vec()))
        }

        fn processes(&self, _: Option<u32>) -> io::Result<u64> {
            panic!("nobody asked")
        }

        fn mounted(&self, _: &Path) -> Option<MountedOn> {
            panic!("nobody asked")
        }

        fn machines_of_user(&self) -> Option<u64> {
            panic!("nobody asked")
        }

        fn bhyve(&self) -> Option<PathBuf> {
            panic!("nobody asked")
        }
    }

    #[test]
    fn a_freebsd_kernel_is_asked_and_compared() {
        let mut kernel = Pages {
            free: 5120,
            wired: 2048,
            tables: Some(256),
            lists: None,
            zones: 1 << 20,
        };
        let before = MemorySnapshot::ask(&kernel).unwrap();
        assert_eq!(before.available, Bytes((5120 + 20 + 3) * 4096));
        assert_eq!(before.vmalloc, Bytes((2048 - 256 - 256) * 4096));
        (kernel.free, kernel.wired) = (2560, 3072);
        (kernel.tables, kernel.zones) = (Some(512), 2 << 20);
        let delta = before.delta(&MemorySnapshot::ask(&kernel).unwrap());
        assert_eq!(
            (
                delta.available,
                delta.slab,
                delta.page_tables,
                delta.vmalloc
            ),
            (10.0, 1.0, 1.0, 2.0)
        );
        // Lists of mappings are wired, and no large allocation.
        kernel.lists = Some(128);
        let with_lists = before.delta(&MemorySnapshot::ask(&kernel).unwrap());
        assert_eq!((with_lists.page_tables, with_lists.vmalloc), (1.5, 1.5));
        (kernel.tables, kernel.lists) = (None, None);
        let without = MemorySnapshot::ask(&kernel).unwrap();
        assert_eq!(without.page_tables, Bytes(0));
    }

    #[test]
    fn a_made_up_meminfo_is_read_and_compared() {
        let folder = tempfile::tempdir().unwrap();
        let root = ProcRoot::at(folder.path());
        let read = |text: &str| {
            std::fs::create_dir_all(root.path("/proc")).unwrap();
            std::fs::write(root.path("/proc/meminfo"), text).unwrap();
            MemorySnapshot::read(&root)
        };
        let before = read("MemAvailable: 4096 kB\nSlab: 1024 kB\nPageTables: 512 kB\n").unwrap();
        let after = read("MemAvailable: 1024 kB\nSlab: 3072 kB\nPageTables: 256 kB\n").unwrap();
        let delta = before.delta(&after);
        assert_eq!(
            (delta.available, delta.slab, delta.page_tables),
            (3.0, 2.0, -0.25)
        );
        assert_eq!(delta.secondary_page_tables, 0.0);
        // What waits for the next allocation is not used.
        std::fs::write(
            root.path("/proc/zoneinfo"),
            "  pagesets\n    cpu: 0\n              count:    4\n              high:     9\n    \
             cpu: 1\n              count:    252\n",
        )
        .unwrap();
        let waiting = read("MemAvailable: 1024 kB\n").unwrap();
        assert_eq!(after.delta(&waiting).available, -1.0);
        let error = read("MemTotal: 1 kB\n").unwrap_err().to_string();
        assert!(
            error.ends_with("/proc/meminfo does not say MemAvailable"),
            "{error}"
        );
    }
}
