//! The configuration file.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    brood::fuzzing::configuration(text);
});
