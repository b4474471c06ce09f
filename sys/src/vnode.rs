//! vmm_vnode(4): memory of a virtual machine that it shares with others through a checkpoint.

use std::os::fd::{AsFd, AsRawFd};

use crate::{Error, SegmentId, Vm, abi, error::Feature, request, vm::unknown};

/// What vmm_vnode(4) adds to a virtual machine's device: segments that read as a file until the
/// guest writes to them.
///
/// ```no_run
/// use std::fs::File;
/// use vmm_sys::{SegmentId, Vm};
///
/// let vm = Vm::open(&"guest-1".parse()?)?;
/// let checkpoint = File::open("/checkpoints/base.ckp").expect("a checkpoint");
/// let provider = vm.vnode_provider()?;
/// provider.attach(SegmentId::SYSTEM, &checkpoint, 0, 256 << 20)?;
/// println!("{} private pages", provider.books(SegmentId::SYSTEM)?.private_resident);
/// # Ok::<(), vmm_sys::Error>(())
/// ```
#[derive(Debug)]
pub struct VnodeProvider<'vm> {
    vm: &'vm Vm,
    capabilities: Capabilities,
}

/// What the module can do (`struct vm_vnode_caps` of `kmod/vmm_vnode.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Bytes in a page: the unit of offsets, lengths and counts.
    pub page_size: u64,
    /// Segments can be attached.
    pub attach: bool,
    /// The books of a segment can be read.
    pub statistics: bool,
    /// [`Books::private_swapped`] is counted.
    pub swapped: bool,
    /// Guest and host see each other's writes. A kernel that lacks it lacks the fix of
    /// FreeBSD-SA-22:11.vm.
    pub coherent: bool,
    /// [`Books::file_lost`] is reported.
    pub state: bool,
}

/// The books of one segment, in pages (`struct vm_vnode_stats` of `kmod/vmm_vnode.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Books {
    /// Where the segment starts in the file, in bytes.
    pub offset: u64,
    /// Length of the segment.
    pub pages: u64,
    /// Private pages in memory: written by this guest, or read from a hole of a file on tmpfs.
    pub private_resident: u64,
    /// Private pages in swap and not in memory: no page counts here and in
    /// [`Books::private_resident`].
    pub private_swapped: u64,
    /// Pages of the file in memory, shared by all its guests. On UFS the pages of its indirect
    /// blocks count, too.
    pub file_resident: u64,
    /// In the guest's page tables, private and shared, and the pages of these tables themselves.
    pub guest_mapped: u64,
    /// The file system was unmounted by force: what is not private reads as zeros, and the guest
    /// must not go on.
    pub file_lost: bool,
}

impl<'vm> VnodeProvider<'vm> {
    /// Asks for the module's version and capabilities (`VM_VNODE_CAPS`).
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the module is not loaded, or the kernel lacks the patch that
    /// lets it work; [`Error::AbiVersion`] if it speaks another version of the ABI.
    pub fn of(vm: &'vm Vm) -> Result<Self, Error> {
        let action = "share memory with a checkpoint";
        let mut caps = abi::vm_vnode_caps::default();
        // SAFETY: the argument holds no pointers.
        let result = unsafe {
            vm.device()
                .request(action, request::VM_VNODE_CAPS, &mut caps)
        };
        result.map_err(|error| {
            let missing = Error::Unsupported {
                action,
                what: Feature::VnodeProvider,
            };
            if unknown(&error) { missing } else { error }
        })?;
        if caps.version != abi::VM_VNODE_ABI {
            return Err(Error::AbiVersion {
                module: caps.version,
                ours: abi::VM_VNODE_ABI,
            });
        }
        let has = |feature| caps.features & feature != 0;
        let capabilities = Capabilities {
            page_size: caps.page_size,
            attach: has(abi::VM_VNODE_F_ATTACH),
            statistics: has(abi::VM_VNODE_F_STATS),
            swapped: has(abi::VM_VNODE_F_SWAPPED),
            coherent: has(abi::VM_VNODE_F_COHERENT),
            state: has(abi::VM_VNODE_F_STATE),
        };
        Ok(Self { vm, capabilities })
    }

    /// What the module can do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Creates a system memory segment of `length` bytes that reads as `file` from `offset` on,
    /// until the guest writes (`VM_VNODE_ATTACH`). Both are multiples of the page size. The file
    /// must be open for reading, and may be closed afterwards; it cannot be written to or cut
    /// short while the machine lives.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the kernel would let guest and host see different memory
    /// ([`Capabilities::coherent`]); [`Error::TooLarge`]; [`Error::Request`] with the errors that
    /// vmm_vnode(4) lists, each of which has a hint.
    pub fn attach(
        &self,
        segment: SegmentId,
        file: impl AsFd,
        offset: u64,
        length: u64,
    ) -> Result<(), Error> {
        let action = "attach a checkpoint";
        if !self.capabilities.coherent {
            return Err(Error::Unsupported {
                action,
                what: Feature::CoherentCopies,
            });
        }
        let offset = i64::try_from(offset).map_err(|_| Error::TooLarge {
            action,
            what: "the offset",
            value: offset,
            most: i64::MAX as u64,
        })?;
        let mut attach = abi::vm_vnode_attach {
            version: abi::VM_VNODE_ABI,
            segid: segment.number(),
            fd: file.as_fd().as_raw_fd(),
            offset,
            len: length,
            ..Default::default()
        };
        // SAFETY: the argument holds no pointers, and the descriptor in it is open.
        unsafe {
            self.vm
                .device()
                .request(action, request::VM_VNODE_ATTACH, &mut attach)
        }
    }

    /// The books of a segment (`VM_VNODE_STATS`). This walks the segment's pages.
    ///
    /// # Errors
    /// [`Error::Request`]: `ENOENT` if the segment is not one of this module.
    pub fn books(&self, segment: SegmentId) -> Result<Books, Error> {
        let mut stats = abi::vm_vnode_stats {
            version: abi::VM_VNODE_ABI,
            segid: segment.number(),
            ..Default::default()
        };
        let action = "count private pages";
        // SAFETY: the argument holds no pointers.
        unsafe {
            self.vm
                .device()
                .request(action, request::VM_VNODE_STATS, &mut stats)?;
        };
        Ok(Books {
            // What was attached was not negative.
            offset: u64::try_from(stats.offset).unwrap_or(0),
            pages: stats.pages,
            private_resident: stats.private_resident,
            private_swapped: stats.private_swapped,
            file_resident: stats.file_resident,
            guest_mapped: stats.guest_mapped,
            file_lost: stats.state & u64::from(abi::VM_VNODE_STATE_FILE_LOST) != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::errno::Errno;

    use super::*;
    use crate::made_up::Kernel;

    fn vm(kernel: Kernel) -> Vm {
        Vm::made_up(kernel, tempfile::tempfile().unwrap())
    }

    fn module(version: u32, features: u32) -> Kernel {
        Kernel::new().on(request::VM_VNODE_CAPS, move |caps| {
            (caps.version, caps.features, caps.page_size) = (version, features, 4096);
            Ok(())
        })
    }

    #[test]
    fn a_kernel_without_the_module_says_what_to_do() {
        let error = vm(Kernel::new()).vnode_provider().unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot share memory with a checkpoint: the vmm_vnode kernel module, or the patch it \
             needs, is missing"
        );
        let hint = error.hint().unwrap();
        assert!(hint.contains("tools/freebsd/kernel") && hint.contains("kldload vmm_vnode"));
    }

    #[test]
    fn another_version_is_refused_before_anything_is_asked_of_it() {
        let kernel = module(2, u32::MAX);
        let error = vm(kernel.clone()).vnode_provider().unwrap_err();
        assert!(
            matches!(error, Error::AbiVersion { module: 2, ours: 1 }),
            "{error}"
        );
        assert_eq!(kernel.answered(), ["VM_VNODE_CAPS"]);
    }

    #[test]
    fn each_feature_is_one_bit() {
        for bit in 0..5 {
            let vm = vm(module(1, 1 << bit));
            let capabilities = vm.vnode_provider().unwrap().capabilities();
            let Capabilities {
                page_size,
                attach,
                statistics,
                swapped,
                coherent,
                state,
            } = capabilities;
            assert_eq!(page_size, 4096);
            let mut expected = [false; 5];
            expected[bit] = true;
            assert_eq!([attach, statistics, swapped, coherent, state], expected);
        }
    }

    #[test]
    fn attaching_names_the_segment_the_file_and_the_range() {
        let file = File::open("/dev/null").unwrap();
        let fd = file.as_raw_fd();
        let kernel = module(1, 0xf).on(request::VM_VNODE_ATTACH, move |attach| {
            let expected = abi::vm_vnode_attach {
                version: 1,
                flags: 0,
                segid: 2,
                fd,
                offset: 8192,
                len: 1 << 20,
                reserved: [0; 4],
            };
            assert_eq!(format!("{attach:?}"), format!("{expected:?}"));
            Ok(())
        });
        let vm = vm(kernel.clone());
        let provider = vm.vnode_provider().unwrap();
        let segment = SegmentId::system(2).unwrap();
        provider.attach(segment, &file, 8192, 1 << 20).unwrap();
        let error = provider.attach(segment, &file, u64::MAX, 4096).unwrap_err();
        assert!(
            matches!(
                error,
                Error::TooLarge {
                    value: u64::MAX,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(kernel.answered(), ["VM_VNODE_CAPS", "VM_VNODE_ATTACH"]);
    }

    #[test]
    fn memory_that_could_differ_is_not_attached() {
        let kernel = module(1, 0x7);
        let vm = vm(kernel.clone());
        let file = File::open("/dev/null").unwrap();
        let provider = vm.vnode_provider().unwrap();
        let error = provider
            .attach(SegmentId::SYSTEM, &file, 0, 4096)
            .unwrap_err();
        let missing = matches!(
            error,
            Error::Unsupported {
                what: Feature::CoherentCopies,
                ..
            }
        );
        assert!(missing, "{error}");
        assert_eq!(kernel.answered(), ["VM_VNODE_CAPS"]);
    }

    #[test]
    fn each_refusal_of_the_manual_page_that_can_be_helped_has_a_hint() {
        for errno in [
            Errno::ETXTBSY,
            Errno::ENODEV,
            Errno::EOPNOTSUPP,
            Errno::EACCES,
            Errno::EPERM,
            Errno::EBUSY,
            Errno::ERANGE,
        ] {
            let kernel = module(1, 0xf).on(request::VM_VNODE_ATTACH, move |_| Err(errno));
            let vm = vm(kernel);
            let file = File::open("/dev/null").unwrap();
            let provider = vm.vnode_provider().unwrap();
            let error = provider
                .attach(SegmentId::SYSTEM, &file, 0, 4096)
                .unwrap_err();
            assert!(error.hint().is_some(), "{error}");
        }
    }

    #[test]
    fn the_books_are_read_member_by_member() {
        let kernel = module(1, 0xf).on(request::VM_VNODE_STATS, |stats| {
            assert_eq!((stats.version, stats.segid, stats.reserved), (1, 0, [0; 3]));
            assert_eq!(stats.state, 0);
            stats.offset = 4096;
            stats.pages = 1;
            stats.private_resident = 2;
            stats.private_swapped = 3;
            stats.file_resident = 4;
            stats.guest_mapped = 5;
            stats.state = 1;
            Ok(())
        });
        let vm = vm(kernel);
        assert_eq!(
            vm.vnode_provider()
                .unwrap()
                .books(SegmentId::SYSTEM)
                .unwrap(),
            Books {
                offset: 4096,
                pages: 1,
                private_resident: 2,
                private_swapped: 3,
                file_resident: 4,
                guest_mapped: 5,
                file_lost: true,
            }
        );
    }
}
