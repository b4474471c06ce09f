//! Flattening: joins a delta and its parents into one full bundle.

use super::{
    copy::copy_range,
    error::Error,
    hash::{Progress, Watch},
    manifest::Manifest,
    open::Checkpoint,
    path::BundlePath,
    writer::{Description, Writer},
};
use crate::units::PAGE_SIZE;

/// Writes a full bundle at `path` with the memory and the state of `delta`. The whole chain is
/// compared with its digests first.
///
/// # Errors
/// [`Error::NotADelta`] for a full checkpoint, [`Error::OwnDisk`] for one with a disk; what
/// verifying the chain or writing a bundle answers. Then nothing of the new bundle is left.
pub fn flatten(delta: &Checkpoint, path: &BundlePath, watch: Watch<'_>) -> Result<Manifest, Error> {
    let layers = delta.layers();
    let [base, _, ..] = layers[..] else {
        return Err(Error::NotADelta {
            bundle: delta.path().clone(),
        });
    };
    if !delta.manifest().disks.is_empty() {
        return Err(Error::OwnDisk {
            bundle: delta.path().clone(),
        });
    }
    let Manifest {
        guest,
        engine,
        engine_version,
        memory,
        vcpus,
        devices,
        disks,
        working_set,
        qemu,
        ..
    } = delta.manifest().clone();
    let mut writer = Writer::create(path, memory.size)?;
    delta.verify_memory(watch)?;
    let copied = |cause| Error::io("copy the memory to", &path.ckp(), cause);
    let to = writer.memory();
    // Progress counts the verified bytes; the copy takes less time.
    let told = Progress {
        done: memory.size,
        total: memory.size,
    };
    let go_on = || watch(told).is_continue();
    copy_range(base.memory_file(), 0, to, 0, memory.size.0, &go_on).map_err(copied)?;
    for extent in delta.extents() {
        let [from, at, size] =
            [extent.file_page, extent.first, extent.count].map(|pages| pages * PAGE_SIZE);
        let file = layers[extent.layer].memory_file();
        copy_range(file, from, to, at, size, &go_on).map_err(copied)?;
    }
    // What was copied is what was verified.
    delta.unchanged()?;
    writer.write_kern(delta.kern())?;
    if let Some(qemu) = qemu {
        writer.set_qemu(qemu);
    }
    let description = Description {
        guest,
        engine,
        engine_version,
        memory,
        vcpus,
        devices,
        disks,
        working_set,
    };
    writer.seal(description, jiff::Timestamp::now(), watch)
}
