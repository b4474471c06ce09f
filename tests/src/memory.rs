//! Expected content of a checkpoint's memory, computed by the test, to compare guests' answers
//! with.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use sha2::{Digest, Sha256};

/// First address that `poke` may write.
pub const USER: u64 = 0x1_0000;
/// First address that `dirty` writes.
pub const HEAP: u64 = 0x10_0000;

/// The memory file of a checkpoint, open.
#[derive(Debug)]
pub struct Words(File);

impl Words {
    /// Opens it.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        Self(File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// The word at `address`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn at(&self, address: u64) -> u64 {
        let mut word = [0; 8];
        self.0
            .read_exact_at(&mut word, address)
            .expect("the address is in the file");
        u64::from_le_bytes(word)
    }

    /// What `sum ADDRESS LENGTH STRIDE` must answer.
    ///
    /// # Panics
    /// When the range is not in the file.
    #[must_use]
    pub fn sum(&self, address: u64, length: u64, stride: u64) -> String {
        let count = length.div_ceil(stride);
        let sum = (0..count).fold(0_u64, |sum, n| {
            sum.rotate_left(5)
                .wrapping_add(self.at(address + n * stride))
        });
        format!("{sum:016x}")
    }

    /// Size of the memory in bytes.
    ///
    /// # Panics
    /// When the file cannot be looked at.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.metadata().expect("an open file").len()
    }
}

/// Digest of a file, in hexadecimal.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn sha256(path: &Path) -> String {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut digest = Sha256::new();
    io::copy(&mut file, &mut Hashing(&mut digest)).expect("the file can be read");
    digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

struct Hashing<'a>(&'a mut Sha256);

impl io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
