//! Linux guests of the KVM engine: an ordinary Linux in the machine of crate `brood-machine`, whose
//! processors run in threads of the guest's process.
//!
//! ```text
//! manager ── orders ──▶ nursery ── fork ──▶ guest process: main thread, a thread for each vCPU
//!    ▲                                           ▲
//!    └── agent's channel, log, console, suspend ─┴── control socket
//! ```
//!
//! A guest's process opens nothing. The channel to the agent, the file of its console and the
//! console's line, and its disk, are descriptors that it is handed over its control socket.

mod body;
mod calls;
mod disk;
mod engine;
mod folder;
mod guest;
mod log;
mod machine;
mod make;
mod network;
mod parking;
mod passt;
mod queue;
mod session;
mod suspend;
mod tap;
mod working_set;

pub use engine::KvmLinux;
pub(super) use guest::LinuxKind;

/// Version of the devices that a guest has, and of the form of its state.
const MACHINE_VERSION: u32 = 1;
