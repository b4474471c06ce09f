//! Root disks of guests: where they come from, and how they stay consistent with the guests'
//! memory.
//!
//! A guest's disk is a clone of a snapshot that costs no space until the guest writes. A
//! [`Provider`] makes it before the guest starts, takes a snapshot of it while the guest is
//! suspended, and removes it when the guest is gone. There are two: [`Zfs`] (datasets) and
//! [`Reflink`] (files that share blocks, are copies, or refer to their source: qcow2).
//!
//! Every action can be repeated: after a crash between any two of its steps, doing it again ends in
//! the same state. The name of a clone or snapshot says what it belongs to, so that [`find`] finds
//! those that belong to nothing any more:
//!
//! ```text
//! zfs      PARENT/brood-OWNER-GUEST                  a guest's disk, beside the dataset it came from
//!          DATASET@brood-TOKEN                       a bundle's snapshot; property brood:bundle names it
//! reflink  DIR/brood-disks/OWNER-GUEST.disk          a guest's disk, beside the file it came from
//!          DIR/brood-disks/OWNER-GUEST.qcow2         one that refers to that file
//!          DIR/NAME.ckp.disk-TOKEN                   a bundle's snapshot, beside the bundle, or a disk
//!                                                    that all guests of the bundle read
//! ```
//!
//! The demo guest of the KVM engine has no block device. Its disk is a companion: made, snapshot
//! and removed at the same moments, but not read by the guest.

mod error;
mod flatten;
mod found;
mod name;
mod owner;
mod qcow2;
mod reflink;
mod shared;
mod zfs;

use std::{fmt, fs::File, io, path::PathBuf};

pub use error::Error;
pub use flatten::flatten;
pub(crate) use found::may_have;
pub use found::{FoundItem, find};
pub use name::{Choice, Place, Source};
pub use owner::{Owner, Token};
#[cfg(target_os = "linux")]
pub(crate) use qcow2::overlay_base;
pub use reflink::Reflink;
use shared::link;
#[cfg(target_os = "linux")]
pub(crate) use shared::link_shared;
pub(crate) use shared::unlink;
pub use zfs::{Command, CommandAnswer, Runner, Zfs};

use crate::{
    checkpoint::{
        BundlePath, Watch,
        manifest::{DiskProvider, DiskSnapshot},
        sha256_file,
    },
    guest_id::GuestId,
    units::Bytes,
};

/// Computes the SHA-256 of an open file, or remembers it.
pub type Digest<'a> = &'a dyn Fn(&File) -> io::Result<String>;

/// A disk that was sealed with a bundle.
#[derive(Clone, Copy, Debug)]
pub struct SealedDisk<'a> {
    /// The bundle, with an absolute path.
    pub bundle: &'a BundlePath,
    /// What its manifest says of the disk.
    pub disk: &'a DiskSnapshot,
}

/// The file of a bundle's disk that all of its guests read.
pub(crate) fn shared_file(bundle: &BundlePath, disk: &DiskSnapshot) -> Result<PathBuf, Error> {
    reflink::snapshot_file(bundle, disk)
}

/// Makes, keeps and removes the disks that come from one source.
pub trait Provider: fmt::Debug + Send + Sync {
    /// Checks that the source exists and, if a bundle recorded it, that it is the sealed one.
    ///
    /// # Errors
    /// [`Error::Missing`] when it is not there, [`Error::Other`] when it is another one.
    fn open(&self, sealed: Option<SealedDisk<'_>>, digest: Digest<'_>) -> Result<(), Error>;

    /// Makes the guest's disk. Leaves an existing one as it is.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when `watch` ends it, and nothing is left; when the source is gone or changed, or the file system or pool refuses.
    fn clone_for(&self, guest: &GuestId, watch: Watch<'_>) -> Result<(), Error>;

    /// The path that a guest's device would have as its back end; `None` when there is no such
    /// disk.
    ///
    /// # Errors
    /// When it cannot be asked for.
    fn location(&self, guest: &GuestId) -> Result<Option<PathBuf>, Error>;

    /// Bytes that the guest's disk takes where it lies, without those that it shares with others;
    /// `None` when there is no such disk.
    ///
    /// # Errors
    /// When it cannot be asked for.
    fn own_bytes(&self, guest: &GuestId) -> Result<Option<Bytes>, Error>;

    /// Removes the guest's disk. It is no error if it is gone already. A dataset that holds a
    /// bundle's snapshot stays until that bundle is removed.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn release(&self, guest: &GuestId) -> Result<(), Error>;

    /// Takes a snapshot of the guest's disk for `bundle`, which the caller is writing. The guest
    /// must not run. On an error nothing is left, as far as that can be had.
    ///
    /// # Errors
    /// When the disk is not there, or the file system or pool refuses.
    fn snapshot(
        &self,
        guest: &GuestId,
        bundle: &BundlePath,
        token: &Token,
        watch: Watch<'_>,
    ) -> Result<DiskSnapshot, Error>;

    /// Removes a snapshot of a bundle that is gone or never was sealed. It is no error if it is
    /// gone already.
    ///
    /// # Errors
    /// [`Error::InUse`] while a guest's disk is a clone of it.
    fn discard(&self, bundle: &BundlePath, snapshot: &DiskSnapshot) -> Result<(), Error>;
}

/// What guests restored from a bundle get as their disk, and whether it was sealed with it.
///
/// # Errors
/// [`Error::Mismatch`] when the chosen disk is not the sealed one, [`Error::Many`] when more than
/// one was sealed, [`Error::Missing`] when the chosen file does not exist.
pub fn choose<'a>(
    bundle: &BundlePath,
    sealed: &'a [DiskSnapshot],
    choice: &Choice,
) -> Result<Option<(Source, Option<&'a DiskSnapshot>)>, Error> {
    let mut own = sealed.iter().filter(|disk| !disk.is_shared());
    let its_own = match (own.next(), own.count()) {
        _ if *choice == Choice::None => return Ok(None),
        (None, _) => None,
        (Some(one), 0) => Some((sealed_source(bundle, one)?, one)),
        (Some(_), more) => return Err(Error::Many(1 + more)),
    };
    match (choice, its_own) {
        (Choice::Source(source), None) => Ok(Some((source.clone().absolute()?, None))),
        (Choice::Source(given), Some((source, disk))) => {
            // The same one may be named to have it copied.
            let given = given.clone().absolute()?;
            if !given.is_same_as(&source) {
                return Err(Error::Mismatch {
                    given: given.to_string(),
                    sealed: source.to_string(),
                });
            }
            Ok(Some((given, Some(disk))))
        }
        (_, its_own) => Ok(its_own.map(|(source, disk)| (source, Some(disk)))),
    }
}

/// What clones of a sealed disk are made of.
pub(crate) fn sealed_source(bundle: &BundlePath, disk: &DiskSnapshot) -> Result<Source, Error> {
    Ok(match disk.provider {
        DiskProvider::Zfs => Source::Zfs(disk.snapshot.parse()?),
        DiskProvider::Reflink | DiskProvider::Shared => Source::Reflink {
            file: reflink::snapshot_file(bundle, disk)?,
            copy: false,
        },
    })
}

/// Makes sure that the disks that were sealed with a bundle are there, and are those.
///
/// # Errors
/// [`Error::Missing`] or [`Error::Other`] for the first that is not.
pub fn verify(bundle: &BundlePath, disks: &[DiskSnapshot], watch: Watch<'_>) -> Result<(), Error> {
    // The owner does not matter here, because this makes no clones.
    let owner = Owner::of(bundle.dir());
    disks.iter().try_for_each(|disk| {
        // Nor does whether they could share its blocks.
        let source = match sealed_source(bundle, disk)? {
            Source::Reflink { file, .. } => Source::Reflink { file, copy: true },
            other => other,
        };
        let provider = provider(&source, owner, None);
        let sealed = SealedDisk { bundle, disk };
        provider.open(Some(sealed), &|file| sha256_file(file, watch))
    })
}

/// The provider of a source. Commands that it starts hold on to `lock`, so that it lasts as long
/// as they do.
#[must_use]
pub fn provider(source: &Source, owner: Owner, lock: Option<&File>) -> Box<dyn Provider> {
    match source {
        Source::Zfs(snapshot) => Box::new(Zfs::new(
            owner,
            snapshot.clone(),
            Box::new(Command::holding(lock)),
        )),
        Source::Reflink { file, copy } => Box::new(Reflink::new(owner, file.clone(), *copy)),
        Source::Overlay { file } => Box::new(Reflink::overlays(owner, file.clone())),
    }
}
