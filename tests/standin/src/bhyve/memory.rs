//! Guest memory: a copy of a checkpoint, or the checkpoint itself with the written pages over it.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt};

pub(crate) const PAGE: u64 = 4096;
const PAGE_BYTES: usize = 4096;

#[derive(Debug)]
enum Base {
    /// Nothing but zeroes.
    Zero,
    /// Copied: all of it is this VM's own.
    Copy(Vec<u8>),
    /// The checkpoint's `.ckp`, by vmm_vnode(4).
    Shared(File),
}

/// The memory of a guest.
#[derive(Debug)]
pub(crate) struct Memory {
    base: Base,
    length: u64,
    written: BTreeMap<u64, Box<[u8]>>,
}

impl Memory {
    /// Memory of a guest that boots.
    pub(crate) fn zero(length: u64) -> Self {
        Self::over(Base::Zero, length)
    }

    /// The contents of a file, copied.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn copy(file: &File, length: u64) -> io::Result<Self> {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Self::over(Base::Copy(bytes), length))
    }

    /// The file itself, never written.
    pub(crate) fn shared(file: File, length: u64) -> Self {
        Self::over(Base::Shared(file), length)
    }

    fn over(base: Base, length: u64) -> Self {
        Self {
            base,
            length,
            written: BTreeMap::new(),
        }
    }

    /// Length in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Pages that this guest has to itself.
    pub(crate) fn private(&self) -> u64 {
        match self.base {
            Base::Copy(_) => self.length.div_ceil(PAGE),
            Base::Zero | Base::Shared(_) => self.written.len() as u64,
        }
    }

    /// A page's contents.
    ///
    /// # Errors
    /// When the checkpoint cannot be read.
    pub(crate) fn page(&self, page: u64) -> io::Result<Box<[u8]>> {
        if let Some(bytes) = self.written.get(&page) {
            return Ok(bytes.clone());
        }
        let mut bytes = vec![0; PAGE_BYTES].into_boxed_slice();
        let rest = self.length.saturating_sub(page * PAGE);
        let here = usize::try_from(rest).map_or(PAGE_BYTES, |rest| rest.min(PAGE_BYTES));
        match &self.base {
            Base::Zero => {}
            Base::Copy(all) => {
                let start = usize::try_from(page * PAGE).map_err(io::Error::other)?;
                bytes[..here].copy_from_slice(&all[start..start + here]);
            }
            Base::Shared(file) => file.read_exact_at(&mut bytes[..here], page * PAGE)?,
        }
        Ok(bytes)
    }

    /// Writes to a page, which is this guest's own from then on.
    ///
    /// # Errors
    /// When the checkpoint cannot be read.
    pub(crate) fn write(&mut self, page: u64, at: usize, bytes: &[u8]) -> io::Result<()> {
        let mut copy = self.page(page)?;
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        self.written.insert(page, copy);
        Ok(())
    }

    /// Writes pages `from..to` to a file, at their own places. Zeroes become holes.
    ///
    /// # Errors
    /// When a file fails.
    pub(crate) fn save(&self, file: &File, from: u64, to: u64) -> io::Result<()> {
        for page in from..to {
            let bytes = self.page(page)?;
            if bytes.iter().any(|byte| *byte != 0) {
                let rest = self.length - page * PAGE;
                let here = usize::try_from(rest).map_or(PAGE_BYTES, |rest| rest.min(PAGE_BYTES));
                file.write_all_at(&bytes[..here], page * PAGE)?;
            }
        }
        if to >= self.length.div_ceil(PAGE) {
            file.set_len(self.length)?;
        }
        Ok(())
    }
}
