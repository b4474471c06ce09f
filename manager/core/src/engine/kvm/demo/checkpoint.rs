//! Checkpoint of the demo guest: a virtual machine boots it, asks it once and suspends it.

use super::{
    boot::{BootError, boot},
    layout,
};
use crate::{
    checkpoint::{
        BundlePath, Description, Watch, Writer,
        manifest::{Device, EngineKind, Manifest, Memory, PageRange, Segment},
    },
    engine::{
        Error, Identity,
        kvm::device::{engine_version, open_kvm},
    },
    units::{Bytes, PAGE_SIZE},
};

/// Makes the checkpoint.
///
/// # Errors
/// When the machine cannot run it, or the bundle cannot be written.
pub(crate) fn make_demo_checkpoint(
    path: &BundlePath,
    memory: Bytes,
    progress: Watch<'_>,
) -> Result<Manifest, Error> {
    if !layout::MEMORY.contains(&memory) || !memory.0.is_multiple_of(PAGE_SIZE) {
        let (least, most) = (*layout::MEMORY.start(), *layout::MEMORY.end());
        return Err(Error::Refused(format!(
            "the demo guest cannot have {memory} of memory: give it {least} to {most}, in whole pages"
        )));
    }
    let kvm = open_kvm()?;
    let identity = Identity::fresh(path.name()).map_err(|source| Error::Io {
        action: "make an identity",
        source,
    })?;
    let mut writer = Writer::create(path, memory)?;
    let state = boot(&kvm, writer.memory(), memory, &identity, progress).map_err(|e| match e {
        BootError::Interrupted => Error::Interrupted,
        e => Error::Boot(e.to_string()),
    })?;
    writer.write_kern(&state.to_bytes())?;
    let range = layout::WORKING_SET;
    let description = Description {
        guest: path.name().to_owned(),
        engine: EngineKind::Kvm,
        engine_version: engine_version(&kvm),
        memory: Memory {
            size: memory,
            segments: vec![Segment {
                guest_address: 0,
                size: memory,
                file_offset: 0,
            }],
        },
        vcpus: 1,
        devices: vec![Device {
            name: "channel".to_owned(),
            model: "brood-channel".to_owned(),
        }],
        disks: Vec::new(),
        working_set: vec![PageRange {
            first: range.start,
            count: range.end - range.start,
        }],
    };
    Ok(writer.seal(description, jiff::Timestamp::now(), progress)?)
}
