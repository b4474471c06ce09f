//! Layers of an image (tar). Where the first byte is odd, each block gets the checksum that a header has.
#![no_main]

use std::{fs::File, sync::OnceLock};

/// What parts layers.
const EDGE: &[u8] = b"--";
const BLOCK: usize = 512;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((mode, rest)) = input.split_first() else {
        return;
    };
    let mut layers: Vec<Vec<u8>> = Vec::new();
    let mut rest = rest;
    while let Some(at) = rest.windows(EDGE.len()).position(|bytes| bytes == EDGE) {
        layers.push(rest[..at].to_vec());
        rest = &rest[at + EDGE.len()..];
    }
    layers.push(rest.to_vec());
    if mode & 1 == 1 {
        for layer in &mut layers {
            layer.chunks_exact_mut(BLOCK).for_each(seal);
        }
    }
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    static CONTENTS: OnceLock<File> = OnceLock::new();
    let contents = CONTENTS.get_or_init(|| tempfile::tempfile().unwrap());
    brood::fuzzing::layers(&layers, contents);
});

/// Puts the checksum of a header (POSIX ustar) into a block.
fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}
