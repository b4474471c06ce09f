//! Manifest of a bundle.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    brood_core::fuzzing::manifest(text);
});
