//! The checkpoint bundle: `X.ckp`, `X.ckp.kern`, `X.ckp.meta` as bhyve names them, and brood's
//! manifest `X.ckp.brood`.
//!
//! A bundle is written under temporary names ([`Writer`]), sealed (read-only, with the SHA-256 of
//! each file), and its manifest appears last: a bundle that has a manifest is whole. A sealed
//! bundle is opened once ([`Checkpoint`]); everything afterwards uses the descriptors of that
//! opening, so what was checked is what is mapped.
//!
//! Digests find damage and mix-ups. They do not prove who made a bundle: whoever can replace all
//! four files can make a consistent set.

mod catalogue;
mod error;
mod folder;
mod hash;
mod json;
pub mod manifest;
pub mod meta;
mod open;
mod path;
mod stamp;
mod validate;
mod writer;

pub use catalogue::{Listed, State, list, remove};
pub use error::Error;
pub use hash::{Progress, sha256_file};
pub use open::Checkpoint;
pub use path::BundlePath;
pub use stamp::FileStamp;
pub use validate::{
    Invalid, KERN_MAX, MANIFEST_MAX, MEMORY_MAX, META_MAX, VCPUS_MAX, WORKING_SET_MAX,
};
pub use writer::{Description, Writer};
