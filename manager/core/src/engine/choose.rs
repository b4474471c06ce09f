//! Choice of the engine: KVM on Linux, bhyve elsewhere, unless the environment names one.

use std::{env, path::Path};

use super::{
    Engine, Error,
    bhyve::{Bhyve, Rctl},
};

/// Environment variable that names the engine.
pub const ENGINE_VARIABLE: &str = "BROOD_ENGINE";

/// The engine of this host. Where it needs processes of brood's own, they run `program`. Guests of
/// bhyve have limits of `rctl`.
///
/// # Errors
/// [`Error::Unavailable`] when the one that is named is none, or not for this system.
pub fn choose(program: &Path, rctl: &Rctl) -> Result<Box<dyn Engine>, Error> {
    let named = env::var(ENGINE_VARIABLE).unwrap_or_default();
    match named.as_str() {
        "" if cfg!(target_os = "linux") => kvm(program),
        "kvm" => kvm(program),
        "qemu" => qemu(program),
        "" | "bhyve" => Ok(Box::new(Bhyve::new().limited(rctl.clone()))),
        other => Err(Error::NoSuchEngine(other.to_owned())),
    }
}

#[cfg(target_os = "linux")]
#[expect(
    clippy::unnecessary_wraps,
    reason = "other systems have no KVM to return"
)]
fn kvm(program: &Path) -> Result<Box<dyn Engine>, Error> {
    Ok(Box::new(super::kvm::Kvm::with_binary(program.to_owned())))
}

#[cfg(target_os = "linux")]
fn qemu(program: &Path) -> Result<Box<dyn Engine>, Error> {
    Ok(Box::new(super::qemu::Qemu::of_host(program)?))
}

#[cfg(not(target_os = "linux"))]
fn qemu(_program: &Path) -> Result<Box<dyn Engine>, Error> {
    Err(Error::Unavailable {
        engine: "QEMU",
        reason: "brood runs it on Linux only".to_owned(),
    })
}

#[cfg(not(target_os = "linux"))]
fn kvm(_program: &Path) -> Result<Box<dyn Engine>, Error> {
    Err(Error::Unavailable {
        engine: "KVM",
        reason: "it is part of Linux".to_owned(),
    })
}
