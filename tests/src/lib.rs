//! Shared parts of the tests: a home for each test (state folder, checkpoints, the real `brood`
//! binary), and a look at the processes that belong to it.
//!
//! The tests run the `brood` binary from the folder that they were built into themselves: build it
//! first (`cargo build -p brood`, with the same `--release` and `CARGO_TARGET_DIR`); `tools/test`
//! does. `BROOD_BINARY` names another one.
//!
//! Where `/dev/kvm` cannot be used, a test that needs it is skipped with one line on standard
//! error, which is also appended to the file that `BROOD_SKIP_LOG` names; with
//! `BROOD_REQUIRE_KVM=1` it fails instead.

pub mod agent;
mod binary;
pub mod browser;
mod crowd;
mod daemon;
mod engines;
mod filesystem;
pub mod handbook;
mod home;
mod json;
mod lab;
pub mod linux_agent;
mod linux_guest;
mod machine;
mod memory;
mod namespaces;
mod patience;
mod pool;
mod procs;
mod ran;
mod random;
pub mod scripted_guest;
mod skip;
mod storage;
mod terminal;
mod traced;
mod tracer;
pub mod vnode_model;
mod watcher;
mod zpool;

pub use binary::{brood, brood_agent, standin};
pub use brood_core::checkpoint::manifest::EngineKind;
pub use browser::Browser;
pub use crowd::{Crowd, crowd};
pub use daemon::{Daemon, Events, TOKEN, content_type, with_a_daemon_and_without};
pub use engines::by_engine;
pub use filesystem::{FileSystem, Kind};
pub use home::{Demo, Home};
pub use json::{array, keys, number, text, whole};
pub use lab::{Lab, Peak};
pub use linux_agent::guest_program;
pub use linux_guest::{image_builder, later_kernel, linux_guest, passt, write_layout};
pub use machine::Machine;
pub use memory::{HEAP, USER, Words, sha256};
pub use namespaces::namespaces;
pub use patience::{PATIENCE, until, until_within};
pub use pool::pool_home;
pub use procs::{Proc, processes_in, processes_of, signal};
pub use ran::{Ran, Running};
pub use random::Random;
pub use skip::{skip, without_kvm, without_qemu};
pub use storage::{IMAGE, Storage, image};
pub use terminal::acts_on_terminal;
pub use traced::traced;
pub use tracer::{Call, Then, Tracer};
pub use zpool::ZfsPool;
