//! Checkpoint bundle: `X.ckp`, `X.ckp.kern`, `X.ckp.meta` as bhyve names them, and brood's manifest
//! `X.ckp.brood`.
//!
//! A [`Writer`] writes a bundle under temporary names and seals it (read-only, with the SHA-256 of
//! each file). The manifest appears last: a bundle that has a manifest is complete. A reader opens
//! a sealed bundle once ([`Checkpoint`]); everything afterwards uses the descriptors of that
//! opening, so what was checked is what is mapped.
//!
//! A *delta* is a bundle whose `.ckp` holds only the pages that differ from those of its parent,
//! another bundle. Opening it opens its parents; all of them together make up the guest's memory.
//!
//! Digests find damage and mix-ups. They do not prove who made a bundle: whoever can replace all
//! four files can make a consistent set. A signature does ([`sign`]).

mod bhyve_guest;
mod catalogue;
mod compose;
mod copy;
mod error;
mod exposure;
mod flatten;
mod folder;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
pub(crate) mod hash;
mod json;
#[cfg(target_os = "linux")]
pub(crate) mod lease;
mod lineage;
mod linux_guest;
pub mod manifest;
pub mod meta;
mod open;
mod pages;
mod path;
mod qemu_guest;
mod rebase;
mod signature;
mod stamp;
mod trust;
mod validate;
mod writer;
mod writers;

pub use bhyve_guest::{AgentProtocol, BhyveGuest, Readiness};
pub use catalogue::{BundleState, CatalogueEntry, list, remove};
pub(crate) use catalogue::{is_being_written, remove_draft};
pub use compose::Extent;
#[cfg(target_os = "linux")]
pub(crate) use copy::copy_range;
pub use error::Error;
pub use exposure::Exposure;
pub use flatten::flatten;
#[cfg(target_os = "linux")]
pub(crate) use hash::interrupted;
pub use hash::{Progress, Watch, is_interrupted, sha256_file, until, unwatched};
pub use lineage::{Target, parents_of};
pub(crate) use lineage::{is_sealed, manifest_of};
pub use linux_guest::LinuxGuest;
pub(crate) use open::read_at_most;
pub use open::{Checkpoint, DELTAS_MAX};
pub use pages::{PageList, ParsePagesError};
pub use path::BundlePath;
pub use qemu_guest::{Accelerator, Network, QemuGuest};
pub use rebase::{find_parent, rebase};
pub use signature::{sign, signer_of};
pub use stamp::FileStamp;
pub use validate::Invalid;
pub(crate) use validate::{KERN_MAX, META_MAX};
pub use writer::{Description, NoteSeal, Writer, unnoted};
