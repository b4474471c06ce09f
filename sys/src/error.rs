//! Errors of the devices of vmm(4), each with a hint what to do.

use std::io;

use nix::errno::Errno;

/// Why a device of vmm(4) could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This is not FreeBSD/amd64: there is no such device, or its requests are others.
    #[error(
        "cannot open {device}: it is FreeBSD/amd64's, and this is {}/{}",
        std::env::consts::OS,
        std::env::consts::ARCH
    )]
    NotFreeBsd {
        /// Path of the device, or name of the sysctl variable.
        device: String,
    },
    /// Not a name that a virtual machine can have.
    #[error("`{name}` cannot be a virtual machine's name: {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A device cannot be opened.
    #[error("cannot open {device}: {source}")]
    Open {
        /// Path of the device.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel, as it is now, has no such thing.
    #[error("cannot {action}: {what} is missing")]
    Unsupported {
        /// What was tried.
        action: &'static str,
        /// What the kernel lacks.
        what: Feature,
    },
    /// The vmm_vnode(4) module and this program speak different versions.
    #[error("vmm_vnode speaks version {module} of its ABI, this program version {ours}")]
    AbiVersion {
        /// The module's version.
        module: u32,
        /// The version that this crate was built for.
        ours: u32,
    },
    /// The kernel refused a request.
    #[error("cannot {action} on {device}: {request}: {}", errno.desc())]
    Request {
        /// What was tried.
        action: &'static str,
        /// Path of the device.
        device: String,
        /// Name of the request in FreeBSD's headers.
        request: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Guest memory cannot be read, written or mapped.
    #[error("cannot {action} {length} bytes of guest memory at {address:#x} on {device}: {source}")]
    Memory {
        /// What was tried.
        action: &'static str,
        /// Path of the device.
        device: String,
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        length: usize,
        /// Why.
        source: io::Error,
    },
    /// A value that no request can hold.
    #[error("cannot {action}: {what} is {value}, at most {most}")]
    TooLarge {
        /// What was tried.
        action: &'static str,
        /// Which value.
        what: &'static str,
        /// It.
        value: u64,
        /// The largest one.
        most: u64,
    },
    /// A sysctl variable cannot be read.
    #[error("cannot read sysctl {name}: {reason}")]
    Sysctl {
        /// Its name.
        name: &'static str,
        /// Why.
        reason: String,
    },
}

/// Something that not every FreeBSD kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// The vmm(4) module, loaded.
    Vmm,
    /// `VMMCTL_CREATE_DESTROY_ON_CLOSE`.
    DestroyOnClose,
    /// The vmm_vnode(4) module, loaded, in a kernel with brood's patch.
    VnodeProvider,
    /// The fix of FreeBSD-SA-22:11.vm, without which guest and host may not see each other's
    /// writes to memory that is backed by a file.
    CoherentCopies,
    /// The kernel option `BHYVE_SNAPSHOT`.
    Snapshot,
}

impl std::fmt::Display for Feature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vmm => "the vmm kernel module",
            Self::DestroyOnClose => "the destruction of virtual machines on close",
            Self::VnodeProvider => "the vmm_vnode kernel module, or the patch it needs,",
            Self::CoherentCopies => "the fix of FreeBSD-SA-22:11.vm",
            Self::Snapshot => "the kernel option BHYVE_SNAPSHOT",
        })
    }
}

impl Error {
    /// What to do about it, in one line, if there is something.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        let hint = match self {
            Self::NotFreeBsd { .. } => "on Linux brood uses its KVM engine",
            Self::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "be root; in a jail, allow.vmm must be set"
            }
            Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "no such virtual machine: /dev/vmm has those that exist"
            }
            Self::Unsupported {
                what: Feature::Vmm, ..
            } => "kldload vmm; for each boot, vmm_load=\"YES\" in /boot/loader.conf",
            Self::Unsupported {
                what: Feature::VnodeProvider,
                ..
            } => "build kernel and module with tools/freebsd/kernel, then: kldload vmm_vnode",
            Self::Unsupported {
                what: Feature::Snapshot,
                ..
            } => "build kernel or vmm.ko with `options BHYVE_SNAPSHOT`: tools/freebsd/kernel does",
            Self::Unsupported {
                what: Feature::CoherentCopies,
                ..
            } => "update FreeBSD",
            Self::Unsupported {
                what: Feature::DestroyOnClose,
                ..
            } => "update FreeBSD, or create the machine to live until it is destroyed",
            Self::AbiVersion { .. } => "build the module and brood from the same sources",
            Self::Request {
                request: "VMMCTL_VM_CREATE",
                errno: Errno::ENOMEM,
                ..
            } => "as many machines exist as one user may have: raise sysctl hw.vmm.maxvmms",
            Self::Request {
                request: "VMMCTL_VM_CREATE",
                errno: Errno::EEXIST,
                ..
            } => "destroy the old one: bhyvectl --destroy --vm=NAME",
            Self::Request {
                request: "VMMCTL_VM_DESTROY",
                errno: Errno::EINVAL,
                ..
            } => "no such virtual machine: /dev/vmm has those that exist",
            Self::Request {
                request: "VM_VNODE_ATTACH",
                errno,
                ..
            } => return attach_hint(*errno),
            _ => return None,
        };
        Some(hint)
    }
}

/// The errors of `VM_VNODE_ATTACH` are listed in vmm_vnode(4).
fn attach_hint(errno: Errno) -> Option<&'static str> {
    let hint = match errno {
        Errno::ETXTBSY => "the file is open for writing: close it there first",
        Errno::ENODEV => "keep the checkpoint in a regular file on UFS, tmpfs or ZFS",
        Errno::EOPNOTSUPP => "keep the checkpoint on a local file system",
        Errno::EACCES | Errno::EPERM => "own the checkpoint, or be root",
        Errno::EBUSY => "machines with passed-through devices cannot share memory",
        Errno::ERANGE => "the file is shorter than the memory: verify the checkpoint",
        _ => return None,
    };
    Some(hint)
}
