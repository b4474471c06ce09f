//! Source disk of a restore: opened and checked before the first guest gets a clone of it.

use std::{fs::File, io, path::PathBuf};

use super::{error::Error, verify::is_fresh};
use crate::{
    checkpoint::{BundlePath, Checkpoint, FileStamp, Watch, manifest::DiskSnapshot, sha256_file},
    disk::{self, Choice, Provider, SealedDisk, Source},
    engine::{Engine, restore_lock::RestoreLock},
    faults::{self, Point},
    guest_id::GuestId,
    state::State,
};

/// Source of the disks of a restore's guests.
#[derive(Debug)]
pub(super) struct DiskSources {
    /// Its name.
    pub(super) source: Source,
    /// What makes the clones.
    pub(super) provider: Box<dyn Provider>,
    /// Whether guests read them.
    pub(super) read: bool,
}

impl DiskSources {
    /// Makes a guest's disk; returns where it is, if the guest is to read it.
    pub(super) fn clone_for(
        &self,
        id: &GuestId,
        watch: Watch<'_>,
    ) -> Result<Option<PathBuf>, disk::Error> {
        faults::at(Point::RestoreDisk).map_err(|cause| disk::Error::Io {
            action: "clone",
            file: PathBuf::from(self.source.to_string()),
            cause,
        })?;
        self.provider.clone_for(id, watch)?;
        if !self.read {
            return Ok(None);
        }
        match self.provider.location(id)? {
            Some(location) => Ok(Some(location)),
            None => Err(disk::Error::Missing {
                disk: format!("made of {}", self.source),
            }),
        }
    }
}

/// Opens the source of the clones, and checks that it is unchanged since the checkpoint was sealed.
/// `None` when the guests get no disk.
pub(super) fn open(
    state: &State,
    engine: &dyn Engine,
    checkpoint: &Checkpoint,
    choice: &Choice,
    lock: &RestoreLock,
    watch: Watch<'_>,
) -> Result<Option<DiskSources>, Error> {
    let bundle = checkpoint.path().absolute()?;
    let failed = |source| Error::Disk {
        checkpoint: bundle.to_string(),
        source,
    };
    let disks = &checkpoint.manifest().disks;
    verify_shared(state, &bundle, disks, watch).map_err(failed)?;
    let chosen = disk::choose(&bundle, disks, choice).map_err(failed)?;
    let Some((mut source, sealed)) = chosen else {
        engine.can_do_without_disk(checkpoint)?;
        return Ok(None);
    };
    let read = engine.reads_disk(checkpoint)?;
    let overlays = engine.reads_overlays(checkpoint);
    if matches!(source, Source::Overlay { .. }) && !overlays {
        return Err(failed(disk::Error::NoOverlays {
            disk: source.to_string(),
        }));
    }
    let mut provider = disk::provider(&source, state.owner(), Some(lock.file()));
    let sealed = sealed.map(|disk| SealedDisk {
        bundle: &bundle,
        disk,
    });
    let opened = provider.open(sealed, &|file| digest(state, file, watch));
    match (opened, &source) {
        (Ok(()), _) => {}
        // Nobody named a way to make the clones: then the one that works.
        (Err(disk::Error::CannotShare { .. }), Source::Reflink { file, .. })
            if *choice == Choice::Sealed && (overlays || engine.copies_disks(checkpoint)) =>
        {
            let file = file.clone();
            source = match overlays {
                true => Source::Overlay { file },
                false => Source::Reflink { file, copy: true },
            };
            provider = disk::provider(&source, state.owner(), Some(lock.file()));
            let opened = provider.open(sealed, &|file| digest(state, file, watch));
            opened.map_err(failed)?;
        }
        (Err(e), _) => return Err(failed(e)),
    }
    // Before the first clone, so that leftovers of a crash are searched there.
    state.note_disk_place(&source.place())?;
    Ok(Some(DiskSources {
        source,
        provider,
        read,
    }))
}

/// Checks the disks that all guests of a checkpoint read.
fn verify_shared(
    state: &State,
    bundle: &BundlePath,
    disks: &[DiskSnapshot],
    watch: Watch<'_>,
) -> Result<(), disk::Error> {
    for disk in disks.iter().filter(|disk| disk.is_shared()) {
        let source = Source::Reflink {
            file: disk::shared_file(bundle, disk)?,
            copy: true,
        };
        let provider = disk::provider(&source, state.owner(), None);
        let sealed = SealedDisk { bundle, disk };
        provider.open(Some(sealed), &|file| digest(state, file, watch))?;
    }
    Ok(())
}

/// SHA-256 of a disk's file. Reuses a recorded digest when the file was not changed since.
fn digest(state: &State, file: &File, watch: Watch<'_>) -> io::Result<String> {
    let stamp = FileStamp::of(file)?;
    if let Some(known) = state.verified_digest(&stamp).map_err(io::Error::other)? {
        return Ok(known);
    }
    let sha256 = sha256_file(file, watch)?;
    if FileStamp::of(file)? != stamp {
        return Err(io::Error::other("it changed while it was read"));
    }
    if !is_fresh(&stamp) {
        state
            .note_verified(&stamp, &sha256)
            .map_err(io::Error::other)?;
    }
    Ok(sha256)
}
