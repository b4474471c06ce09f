//! Tests of both engines: one body, run on KVM of this machine and on bhyve of a fake one
//! ([`crate::Machine`]).

use brood_core::checkpoint::manifest::EngineKind;

/// Runs each of these functions as two tests, one on each engine, which is its argument.
#[macro_export]
macro_rules! on_both_engines {
    ($($test:ident),* $(,)?) => {
        mod kvm {
            $(#[test] fn $test() { super::$test($crate::EngineKind::Kvm); })*
        }
        mod bhyve {
            $(#[test] fn $test() { super::$test($crate::EngineKind::Bhyve); })*
        }
    };
}

/// What a test needs on this engine. A fake bhyve is some ten processes for each restore, so
/// that its crowds are smaller, its rounds fewer, and its random moments longer.
pub fn by_engine<T>(engine: EngineKind, kvm: T, bhyve: T) -> T {
    match engine {
        EngineKind::Kvm | EngineKind::Qemu => kvm,
        EngineKind::Bhyve => bhyve,
    }
}
