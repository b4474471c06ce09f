//! The `.kern` of a bundle of the KVM engine: the state of a vCPU.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    brood_core::fuzzing::vcpu_state(bytes);
});
