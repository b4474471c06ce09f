//! Types for FreeBSD's vmm(4), the kernel half of bhyve, and for brood's vmm_vnode(4), which lets
//! guests share a checkpoint's memory.
//!
//! Three layers, each usable without the one above it:
//!
//! 1. [`abi`]: structures and constants as C has them, generated from FreeBSD's headers;
//! 2. [`request`]: the table of all requests, each number asserted against the C compiler's;
//! 3. safe types, one for each descriptor: [`VmmCtl`] is `/dev/vmmctl`, [`Vm`] is `/dev/vmm/NAME`,
//!    [`VnodeProvider`] is what vmm_vnode(4) adds to it. [`Limits`], [`VnodeTotals`] and
//!    [`sysctl`] read the kernel's variables beside them.
//!
//! # Platforms
//!
//! The crate builds everywhere, so that programs that depend on it can be written and tested
//! anywhere. It opens devices on FreeBSD/amd64 only; elsewhere that fails with
//! [`Error::NotFreeBsd`]. The committed ABI is that of 15.0. The feature `host-headers` takes it
//! from the headers of the FreeBSD host that builds.
//!
//! # Example
//!
//! A virtual machine whose memory is a checkpoint's until it writes, from its creation to its end.
//! It needs root, vmm.ko and vmm_vnode.ko.
//!
//! ```no_run
//! use std::fs::File;
//! use vmm_sys::{Lifetime, Mapping, Protection, SegmentId, VmName, VmmCtl};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     const LENGTH: usize = 256 << 20;
//!     let checkpoint = File::open("/ckp/web.ckp")?;
//!     let name: VmName = "web-1".parse()?;
//!
//!     // The kernel destroys the machine when `control` is closed, also when this process is killed.
//!     let control = VmmCtl::open()?;
//!     let vm = control.create(&name, Lifetime::UntilClosed)?;
//!
//!     // System memory that reads as the file, and becomes the guest's own where it writes.
//!     let provider = vm.vnode_provider()?;
//!     provider.attach(SegmentId::SYSTEM, &checkpoint, 0, LENGTH as u64)?;
//!     vm.map_segment(&Mapping {
//!         address: 0,
//!         segment: SegmentId::SYSTEM,
//!         offset: 0,
//!         length: LENGTH,
//!         protection: Protection::ALL,
//!         wired: false,
//!     })?;
//!
//!     vm.write_memory(0x1000, b"this page is web-1's own now")?;
//!     let memory = vm.guest_memory()?;
//!     println!("{} bytes private, {} shared", memory.private, memory.shared);
//!     control.destroy(&name)?;
//!     Ok(())
//! }
//! ```
//!
//! No virtual CPU runs here: this crate has no requests for running one. brood has bhyve(8) do
//! that.
//!
//! # Errors
//!
//! [`Error`] tells what the kernel lacks ([`Error::Unsupported`], with a [`Feature`]) from what it
//! refused ([`Error::Request`], with the request's name in FreeBSD's headers and the errno).

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
