//! The files that a guest's memory is read from: a full checkpoint, and the deltas over it.

use std::{fs::File, io, os::unix::fs::FileExt};

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{Checkpoint, Extent, FileStamp, copy_range, sha256_file},
    units::{Bytes, PAGE_SIZE},
};

/// What a file was when it was verified.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Sealed {
    pub(super) stamp: FileStamp,
    pub(super) sha256: String,
}

/// Which files, and which pages come from which: what a nursery is told. The files themselves come
/// as descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) memory: Bytes,
    pub(super) sealed: Vec<Sealed>,
    pub(super) extents: Vec<Extent>,
}

impl Plan {
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        let sealed = |layer: &&Checkpoint| Sealed {
            stamp: layer.stamp(),
            sha256: layer.manifest().files.ckp.sha256.clone(),
        };
        Self {
            memory: checkpoint.manifest().memory.size,
            sealed: checkpoint.layers().iter().map(sealed).collect(),
            extents: checkpoint.extents(),
        }
    }
}

/// The files, open, the full checkpoint first.
#[derive(Debug)]
pub(super) struct Layers {
    files: Vec<File>,
    plan: Plan,
}

impl Layers {
    pub(super) fn new(files: Vec<File>, plan: Plan) -> Result<Self, String> {
        let within = |extent: &Extent| extent.layer < files.len();
        if files.is_empty() || files.len() != plan.sealed.len() || !plan.extents.iter().all(within)
        {
            return Err("its memory files are not those of its orders".to_owned());
        }
        Ok(Self { files, plan })
    }

    /// Size of the guest's memory.
    pub(super) fn memory(&self) -> Bytes {
        self.plan.memory
    }

    /// The full checkpoint's memory file: whatever no extent covers.
    pub(super) fn base(&self) -> &File {
        &self.files[0]
    }

    /// Parts of the memory that lie in deltas, ascending.
    pub(super) fn extents(&self) -> &[Extent] {
        &self.plan.extents
    }

    /// The file that an extent lies in.
    pub(super) fn file(&self, extent: &Extent) -> &File {
        &self.files[extent.layer]
    }

    /// Places of the extents that have pages in `[first, end)`.
    pub(super) fn extents_in(&self, first: u64, end: u64) -> std::ops::Range<usize> {
        let extents = self.extents();
        let from = extents.partition_point(|extent| extent.end() <= first);
        let to = extents.partition_point(|extent| extent.first < end);
        from..to.max(from)
    }

    /// Reads a page as the checkpoint has it.
    pub(super) fn read_page(&self, page: u64, bytes: &mut [u8]) -> io::Result<()> {
        let at = self.extents_in(page, page + 1);
        match self.extents()[at].first() {
            Some(extent) => {
                let file_page = extent.file_page + (page - extent.first);
                self.file(extent)
                    .read_exact_at(bytes, file_page * PAGE_SIZE)
            }
            None => self.base().read_exact_at(bytes, page * PAGE_SIZE),
        }
    }

    /// Writes all of the checkpoint's memory to `to`.
    pub(super) fn copy_to(&self, to: &File) -> io::Result<()> {
        copy_range(self.base(), 0, to, 0, self.memory().0)?;
        self.extents().iter().try_for_each(|extent| {
            let [from, at, size] =
                [extent.file_page, extent.first, extent.count].map(|pages| pages * PAGE_SIZE);
            copy_range(self.file(extent), from, to, at, size)
        })
    }

    /// Makes sure that the files are still what was sealed. Says what has changed, if something has.
    ///
    /// A change to a file's content changes its size or times. Its attributes (mode, name, links)
    /// change one of the times as well; then the content itself is looked at, once, and the new
    /// stamp takes the old one's place in `stamps`.
    pub(super) fn check(&self, stamps: &mut [FileStamp]) -> Result<(), String> {
        for ((file, sealed), stamp) in self.files.iter().zip(&self.plan.sealed).zip(stamps) {
            let now = FileStamp::of(file).map_err(|e| e.to_string())?;
            if now == *stamp {
                continue;
            }
            if now.size != stamp.size {
                return Err(format!(
                    "its file had {} bytes and has {}",
                    stamp.size, now.size
                ));
            }
            if now.mtime_ns != stamp.mtime_ns {
                return Err("its file was written to".to_owned());
            }
            match sha256_file(file, &|_| {}) {
                Ok(sha256) if sha256 == sealed.sha256 => *stamp = now,
                Ok(_) => return Err("its content is not what was sealed".to_owned()),
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(())
    }

    /// The files' stamps when they were verified.
    pub(super) fn stamps(&self) -> Vec<FileStamp> {
        self.plan.sealed.iter().map(|sealed| sealed.stamp).collect()
    }

    /// Whether the files are now what they were when they were verified.
    pub(super) fn unchanged(&self) -> bool {
        let now: Result<Vec<_>, _> = self.files.iter().map(FileStamp::of).collect();
        now.is_ok_and(|now| now == self.stamps())
    }
}
