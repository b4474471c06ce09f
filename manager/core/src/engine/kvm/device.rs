//! KVM device: `/dev/kvm`, and the version of the engine that stands on it.

use kvm_ioctls::Kvm;

use crate::engine::Error;

/// Opens `/dev/kvm`.
pub(crate) fn open_kvm() -> Result<Kvm, Error> {
    Kvm::new().map_err(|e| Error::Unavailable {
        engine: "KVM",
        reason: format!("cannot open /dev/kvm: {e}"),
    })
}

/// What virtualises the processor: `svm`, `vmx` or `pvm`, by the module of KVM that is loaded or
/// built in.
pub(crate) fn virtualization() -> &'static str {
    let known = [("kvm_amd", "svm"), ("kvm_intel", "vmx"), ("kvm_pvm", "pvm")];
    let is_there = |module: &str| std::path::Path::new("/sys/module").join(module).exists();
    let found = known.iter().find(|(module, _)| is_there(module));
    found.map_or("unknown", |(_, name)| name)
}

/// The version of this engine, as a manifest names it.
pub(crate) fn engine_version(kvm: &Kvm) -> String {
    let kernel = nix::sys::utsname::uname().map_or_else(
        |_| "unknown".to_owned(),
        |u| u.release().to_string_lossy().into_owned(),
    );
    format!(
        "brood {}, KVM API {}, Linux {kernel}",
        env!("CARGO_PKG_VERSION"),
        kvm.get_api_version()
    )
}
