//! Checkpoint of the demo guest, for engines that have such a guest.

#[cfg(target_os = "linux")]
use super::kvm::make_demo_checkpoint as kvm;
use super::{Engine, Error};
use crate::{
    checkpoint::{
        BundlePath, Watch,
        manifest::{EngineKind, Manifest},
    },
    units::Bytes,
};

/// Makes a checkpoint by booting the demo guest and suspending it.
///
/// # Errors
/// When the engine has no such guest, the machine cannot run it, or the bundle cannot be written.
pub fn make_demo_checkpoint(
    engine: &dyn Engine,
    path: &BundlePath,
    memory: Bytes,
    progress: Watch<'_>,
) -> Result<Manifest, Error> {
    match engine.kind() {
        EngineKind::Kvm => kvm(path, memory, progress),
        EngineKind::Qemu => Err(Error::Refused(
            "QEMU has no demo guest: build an image with `brood image build --minimal NAME`, and \
             boot it with `brood checkpoint make NAME CHECKPOINT`"
                .to_owned(),
        )),
        EngineKind::Bhyve => Err(Error::Refused(
            "bhyve has no demo guest: suspend one of yours with `bhyvectl --suspend`, and seal it \
             with `brood checkpoint import`"
                .to_owned(),
        )),
    }
}

#[cfg(not(target_os = "linux"))]
fn kvm(_: &BundlePath, _: Bytes, _: Watch<'_>) -> Result<Manifest, Error> {
    Err(Error::Unavailable {
        engine: "KVM",
        reason: "it is part of Linux".to_owned(),
    })
}
