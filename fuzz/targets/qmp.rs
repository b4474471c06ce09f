//! What a QEMU says on its monitor.
#![no_main]

libfuzzer_sys::fuzz_target!(|said: &[u8]| {
    brood_core::fuzzing::qmp(said);
});
