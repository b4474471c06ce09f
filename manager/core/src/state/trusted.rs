//! Trusted checkpoints: those that may have this host do more than use their own files. They were
//! imported, made of an image or suspended here, or an operator has trusted them by a command.
//!
//! Each has a file in `STATE/trusted`, named by the SHA-256 of the checkpoint's manifest, which
//! holds the digests of all other files. So trust moves with a checkpoint, ends with any change of
//! it, and outlasts the database.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Error, State};
use crate::{
    checkpoint::{self, BundlePath, Checkpoint, manifest::Manifest},
    other_writer::OtherWriter,
    owner_only,
};

impl State {
    /// Whether the checkpoint is trusted. Bundles of suspended claims in the state folder are:
    /// nobody else writes there.
    ///
    /// # Errors
    /// When the state folder cannot be read.
    pub fn is_trusted(&self, checkpoint: &Checkpoint) -> Result<bool, Error> {
        if self.is_suspended_claim(checkpoint) {
            return Ok(true);
        }
        let file = self.trusted(checkpoint);
        let look = |path: &Path| match fs::symlink_metadata(path) {
            // What others may put there says nothing.
            Ok(facts) => Ok(OtherWriter::of(&facts).is_none()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::Io {
                action: "look for",
                path: path.to_owned(),
                source,
            }),
        };
        Ok(look(&self.dir.join("trusted"))? && look(&file)?)
    }

    /// Whether this is the bundle of a suspended claim, in the state folder.
    fn is_suspended_claim(&self, checkpoint: &Checkpoint) -> bool {
        let cold = BundlePath::new(&self.suspended_dir().join("any")).and_then(|p| p.absolute());
        match (cold, checkpoint.path().absolute()) {
            (Ok(cold), Ok(path)) => cold.dir() == path.dir(),
            _ => false,
        }
    }

    /// Requires from now on that each checkpoint is signed with a key in this folder. Bundles of
    /// suspended claims in the state folder need no signature: nobody else writes there.
    #[must_use]
    pub fn with_signers(mut self, signers: Option<PathBuf>) -> Self {
        self.signers = signers;
        self
    }

    /// Refuses a checkpoint that is not signed, where that is required.
    pub(crate) fn refuse_unsigned(&self, checkpoint: &Checkpoint) -> Result<(), checkpoint::Error> {
        match &self.signers {
            Some(signers) if !self.is_suspended_claim(checkpoint) => {
                checkpoint::signer_of(checkpoint, signers).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Trusts a checkpoint from now on. Writes nothing for a checkpoint that wants nothing of this
    /// host.
    ///
    /// # Errors
    /// When the state folder cannot be written.
    pub fn trust(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        if checkpoint.manifest().wants().is_empty() {
            return Ok(());
        }
        self.trust_manifest(checkpoint.manifest_sha256())
    }

    /// Trusts a checkpoint that is made here, before it has its name: one that is whole is trusted,
    /// wherever its maker was killed. When that cannot be noted, a log line says so: somebody can
    /// still trust it later.
    pub fn trust_seal(&self, manifest: &Manifest, sha256: &str) {
        if manifest.wants().is_empty() {
            return;
        }
        if let Err(error) = self.trust_manifest(sha256) {
            tracing::warn!(%error, guest = manifest.guest, "its checkpoint is not trusted: `brood checkpoint trust` does that");
        }
    }

    fn trust_manifest(&self, sha256: &str) -> Result<(), Error> {
        let folder = self.dir.join("trusted");
        let file = folder.join(sha256);
        let note = || {
            owner_only::create_folder(&folder)?;
            owner_only::options()
                .create(true)
                .append(true)
                .open(&file)?;
            fs::File::open(&folder)?.sync_all()
        };
        note().map_err(|source: io::Error| Error::Io {
            action: "write",
            path: file.clone(),
            source,
        })
    }

    fn trusted(&self, checkpoint: &Checkpoint) -> PathBuf {
        self.dir.join("trusted").join(checkpoint.manifest_sha256())
    }
}
