//! FreeBSD's vmm(4), and brood's vmm_vnode(4), in three layers:
//!
//! 1. [`abi`]: structures and constants as C has them, generated from FreeBSD's headers;
//! 2. [`request`]: the table of all requests, each number asserted against the C compiler's;
//! 3. safe types, one per descriptor: [`VmmCtl`] is `/dev/vmmctl`, [`Vm`] is `/dev/vmm/NAME`,
//!    [`VnodeProvider`] is what vmm_vnode(4) adds to it; [`Limits`] and [`VnodeTotals`] are the
//!    sysctl variables beside them.
//!
//! The crate builds everywhere, so that what depends on it can be written and tested anywhere; it
//! opens devices on FreeBSD/amd64 only. Elsewhere opening fails with [`Error::NotFreeBsd`].

pub mod abi;
mod control;
mod descriptor;
mod error;
mod limits;
#[cfg(test)]
mod made_up;
mod name;
pub mod request;
pub mod sysctl;
mod vm;
mod vnode;

pub use control::{Lifetime, VmmCtl};
pub use error::{Error, Feature};
pub use limits::{Limits, VnodeTotals, user_vms};
pub use name::VmName;
pub use vm::{
    GuestMapping, GuestMemory, KernelState, Mapping, Protection, Segment, SegmentId, SuspendReason,
    Topology, Vm,
};
pub use vnode::{Books, Capabilities, VnodeProvider};

/// Control device through which virtual machines are created and destroyed (vmm(4)).
pub const VMM_CTL_PATH: &str = "/dev/vmmctl";

/// Folder that holds one character device per virtual machine (vmm(4)).
pub const VMM_DEVICE_DIR: &str = "/dev/vmm";
