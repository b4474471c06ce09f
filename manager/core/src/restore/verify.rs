//! Verification of a checkpoint before a restore: its memory by its digest, and that nobody removes
//! it meanwhile.

use std::{fs, io, os::unix::fs::MetadataExt};

use jiff::Timestamp;

use super::error::Error;
use crate::{
    checkpoint::{self, Checkpoint, FileStamp, Watch},
    engine::Engine,
    state::{BundleAction, BundleUse, State},
};

/// A memory file changed more recently than this is digested again next time: a later change
/// within the same tick of the file's clock would not show.
const FRESH: i128 = 2_000_000_000;

/// Verifies the memory file of `checkpoint`, and those of its parents when it is a delta, by their
/// digests. Does not read a file again whose digest is recorded and that has not changed since.
/// Refuses before reading: a checkpoint that the engine cannot restore from, one that wants more of
/// this host than its own files and is not trusted ([`State::trust`]), one that is not signed where
/// that is required, and one that everybody may change. Nobody can remove the checkpoint until the result is dropped; keep it until the guests
/// are recorded.
///
/// # Errors
/// When the content differs, or cannot be read.
pub fn verify(
    state: &State,
    engine: &dyn Engine,
    checkpoint: &Checkpoint,
    progress: Watch<'_>,
) -> Result<Option<BundleUse>, Error> {
    let wants = checkpoint.manifest().wants();
    if !wants.is_empty() && !state.is_trusted(checkpoint)? {
        let bundle = checkpoint.path().clone();
        return Err(checkpoint::Error::NotTrusted { bundle, wants }.into());
    }
    state.refuse_unsigned(checkpoint)?;
    checkpoint.refuse_exposed()?;
    let mut in_use = None;
    checkpoint.refuse_writers()?;
    if checkpoint.parent().is_some() {
        // Protects its parents from removal, however it came here.
        state.note_bundle_folder(checkpoint.path().dir())?;
    }
    for layer in checkpoint.layers() {
        let stamp = layer.stamp();
        let sealed = &layer.manifest().files.ckp.sha256;
        if state.verified_digest(&stamp)?.as_ref() == Some(sealed) {
            continue;
        }
        if in_use.is_none() {
            // The session checks this too; but reading the file first could take terabytes of
            // reads.
            engine.suits(checkpoint)?;
            in_use = Some(read_bundle(state, checkpoint)?);
        }
        layer.verify_layer(progress)?;
        if !is_fresh(&stamp) {
            state.note_verified(&stamp, sealed)?;
            engine.note_whole(&state.run_dir(), &stamp, sealed);
        }
    }
    Ok(in_use)
}

/// Notes that this process reads a checkpoint with its parents, until the result is dropped, so
/// that nobody removes them meanwhile.
///
/// # Errors
/// When one of them is being removed, or the note cannot be written.
pub fn read_bundle(state: &State, checkpoint: &Checkpoint) -> Result<BundleUse, Error> {
    let in_use = state.use_bundle(checkpoint.path(), BundleAction::Read)?;
    refuse_removal(state, checkpoint)?;
    Ok(in_use)
}

/// Checks that no process removes the checkpoint or a parent of it, and that the open memory files
/// still have their names.
pub(super) fn refuse_removal(state: &State, checkpoint: &Checkpoint) -> Result<(), Error> {
    let users = state.bundle_users()?;
    let removers = users.iter().filter(|u| u.action == BundleAction::Remove);
    for layer in checkpoint.layers() {
        let bundle = layer.path().absolute()?;
        let named = bundle.to_string();
        if let Some(remover) = removers.clone().find(|user| user.bundle == named) {
            let by = remover.to_string();
            return Err(checkpoint::Error::BeingRemoved { bundle, by }.into());
        }
        let then = layer.stamp();
        let there = match fs::metadata(bundle.ckp()) {
            Ok(now) => (now.dev(), now.ino()) == (then.device, then.inode),
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        };
        if !there {
            let file = bundle.ckp();
            return Err(checkpoint::Error::NotFound { bundle, file }.into());
        }
    }
    Ok(())
}

pub(super) fn is_fresh(stamp: &FileStamp) -> bool {
    Timestamp::now().as_nanosecond() - stamp.ctime_ns.max(stamp.mtime_ns) < FRESH
}
