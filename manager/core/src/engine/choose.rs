//! Choice of the engines: KVM and QEMU on Linux, bhyve elsewhere, unless one is named.

use std::path::Path;

use super::{
    Engine, Error,
    bhyve::{Bhyve, Rctl},
};
use crate::checkpoint::{Accelerator, manifest::EngineKind};

/// How the engines are configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineConfig {
    /// The only engine whose checkpoints are restored, if one is named.
    pub only: Option<EngineKind>,
    /// What executes the instructions of new QEMU guests, if it is named.
    pub accelerator: Option<Accelerator>,
    /// Limits of bhyve's guests.
    pub rctl: Rctl,
}

/// The engines of this host. Where they need processes of brood's own, they run `program`.
///
/// # Errors
/// [`Error::Unavailable`] when the one that is named is not for this system.
pub fn choose(program: &Path, config: &EngineConfig) -> Result<Box<dyn Engine>, Error> {
    match config.only {
        // On Linux only stand-ins for bhyve run, in a world of their own.
        Some(EngineKind::Bhyve) => Ok(bhyve(program, &config.rctl)),
        only => of_system(program, config, only),
    }
}

fn bhyve(program: &Path, rctl: &Rctl) -> Box<dyn Engine> {
    let engine = Bhyve::new().with_binary(program);
    Box::new(engine.limited(rctl.clone()))
}

#[cfg(target_os = "linux")]
#[expect(
    clippy::unnecessary_wraps,
    reason = "other systems lack engines that may be named"
)]
fn of_system(
    program: &Path,
    config: &EngineConfig,
    only: Option<EngineKind>,
) -> Result<Box<dyn Engine>, Error> {
    let kvm = super::kvm::Kvm::with_binary(program.to_owned());
    let qemu = super::qemu::Qemu::new(program, config.accelerator);
    Ok(Box::new(super::Several::new(
        Box::new(kvm),
        vec![Box::new(super::kvm::KvmLinux::new(program)), Box::new(qemu)],
        only,
    )))
}

#[cfg(not(target_os = "linux"))]
fn of_system(
    program: &Path,
    config: &EngineConfig,
    only: Option<EngineKind>,
) -> Result<Box<dyn Engine>, Error> {
    let (engine, reason) = match only {
        None | Some(EngineKind::Bhyve) => return Ok(bhyve(program, &config.rctl)),
        Some(EngineKind::Kvm) => ("KVM", "it is part of Linux"),
        Some(EngineKind::Qemu) => ("QEMU", "brood runs it on Linux only"),
    };
    Err(Error::Unavailable {
        engine,
        reason: reason.to_owned(),
    })
}
