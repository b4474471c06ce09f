//! The `.meta` of a bundle, in both layouts of bhyve; before it the length of the `.kern`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some((kern, text)) = input.split_first_chunk() {
        brood_core::fuzzing::meta(text, u64::from_le_bytes(*kern));
    }
});
