//! Flattening: joins a delta and its parents into one full bundle. [`crate::disk::flatten`] does it
//! for a bundle with disks.

use super::{
    copy::copy_range,
    error::Error,
    hash::{Progress, Watch},
    manifest::{DiskSnapshot, Manifest},
    open::Checkpoint,
    path::BundlePath,
    writer::{Description, Writer},
};
use crate::units::PAGE_SIZE;

/// Writes a full bundle at `path` with the memory and the state of `delta`. The whole chain is
/// compared with its digests first. `disks` puts the disks beside the new bundle when the memory is
/// there and the bundle is not yet sealed; if it is not sealed then, they are the caller's to remove.
///
/// # Errors
/// [`Error::NotADelta`] for a full checkpoint; what verifying the chain, `disks`, or writing a bundle
/// answers. Then nothing of the new bundle is left.
pub fn flatten<E: From<Error>>(
    delta: &Checkpoint,
    path: &BundlePath,
    disks: impl FnOnce() -> Result<Vec<DiskSnapshot>, E>,
    watch: Watch<'_>,
) -> Result<Manifest, E> {
    let layers = delta.layers();
    let [base, _, ..] = layers[..] else {
        let bundle = delta.path().clone();
        return Err(Error::NotADelta { bundle }.into());
    };
    let Manifest {
        guest,
        engine,
        engine_version,
        memory,
        vcpus,
        devices,
        working_set,
        qemu,
        linux,
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
    if let Some(linux) = linux {
        writer.set_linux(linux);
    }
    let description = Description {
        guest,
        engine,
        engine_version,
        memory,
        vcpus,
        devices,
        disks: disks()?,
        working_set,
    };
    Ok(writer.seal(description, jiff::Timestamp::now(), watch)?)
}
