//! Flattening of a checkpoint that has disks: the full bundle gets the delta's disks as well, which
//! are whole in a delta too.

use super::{Error, link, unlink, verify};
use crate::checkpoint::{
    self, BundlePath, Checkpoint, Watch,
    manifest::{DiskProvider, Manifest},
};

/// Writes a full bundle at `to` with the memory, the state and the disks of `delta`, all compared
/// with their digests first.
///
/// # Errors
/// [`checkpoint::Error::NotADelta`] for a full checkpoint, [`checkpoint::Error::OwnDisk`] for one
/// whose disk is a snapshot of ZFS; what verifying the chain or writing a bundle answers. Then
/// nothing of the new bundle is left.
pub fn flatten<E>(delta: &Checkpoint, to: &BundlePath, watch: Watch<'_>) -> Result<Manifest, E>
where
    E: From<checkpoint::Error> + From<Error>,
{
    let disks = &delta.manifest().disks;
    if disks.iter().any(|disk| disk.provider == DiskProvider::Zfs) {
        let bundle = delta.path().clone();
        return Err(checkpoint::Error::OwnDisk { bundle }.into());
    }
    let mut linked = Vec::with_capacity(disks.len());
    let link_all = || {
        // Only now the new bundle has a folder.
        let (from, to) = (delta.path().absolute()?, to.absolute()?);
        verify(&from, disks, watch)?;
        for disk in disks {
            linked.push(link(&from, disk, &to, watch)?);
        }
        Ok(linked.clone())
    };
    let flattened = checkpoint::flatten(delta, to, link_all, watch);
    if flattened.is_err()
        && let Ok(to) = to.absolute()
    {
        for disk in &linked {
            // What cannot be removed now is found again: it is in no bundle.
            let _ = unlink(&to, disk);
        }
    }
    flattened
}
