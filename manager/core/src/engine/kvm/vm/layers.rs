//! Layers of a guest's memory: the file of a full checkpoint, and those of the deltas over it.

use std::{
    borrow::Cow,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::Signal,
    unistd::{Pid, getppid},
};
use serde::{Deserialize, Serialize};

use crate::engine::kvm::verdict::Verdicts;
use crate::{
    checkpoint::{
        Checkpoint, Extent, FileStamp, copy_range,
        lease::{self, Grant},
    },
    units::{Bytes, PAGE_SIZE},
};

/// The signal by which the kernel tells a nursery that somebody wants to write to a file.
pub(crate) const WRITER: Signal = Signal::SIGIO;
/// How long a guest that was asked waits for writers to leave, and how many bytes per second of the
/// files the nursery is given to read them then.
const PATIENCE: Duration = Duration::from_secs(3);
const READING: u64 = 100 << 20;
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Digest and stamp of a file when it was verified.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SealedFile {
    pub(crate) stamp: FileStamp,
    pub(crate) sha256: String,
}

/// Message to a nursery: which files there are, and which pages come from which. The files
/// themselves come as descriptors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) memory: Bytes,
    pub(crate) sealed: Vec<SealedFile>,
    pub(crate) extents: Vec<Extent>,
}

impl Plan {
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        let sealed = |layer: &&Checkpoint| SealedFile {
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
pub(crate) struct Layers {
    files: Vec<File>,
    stamps: Vec<FileStamp>,
    plan: Plan,
    verdicts: Verdicts,
    /// Files of which the nursery has a lease; its guests see by the same openings whether it still
    /// has them.
    leased: Vec<bool>,
    /// The process that keeps the leases.
    keeper: Pid,
}

impl Layers {
    pub(crate) fn new(files: Vec<File>, plan: Plan, run_dir: &Path) -> Result<Self, String> {
        let within = |extent: &Extent| extent.layer < files.len();
        if files.is_empty() || files.len() != plan.sealed.len() || !plan.extents.iter().all(within)
        {
            return Err("its memory files are not those of its orders".to_owned());
        }
        let verdicts = Verdicts::of_nursery(run_dir, &files)
            .map_err(|e| format!("cannot make a memory file: {e}"))?;
        Ok(Self {
            leased: vec![false; files.len()],
            keeper: Pid::this(),
            files,
            stamps: plan.sealed.iter().map(|sealed| sealed.stamp).collect(),
            plan,
            verdicts,
        })
    }

    /// Takes a lease of each file, for this process to keep. The openings are its own from then on: in
    /// those that the manager sent, the manager could give a lease back.
    ///
    /// # Errors
    /// When somebody may write to one.
    pub(crate) fn lease(&mut self) -> Result<(), String> {
        self.keeper = Pid::this();
        for (file, leased) in self.files.iter_mut().zip(&mut self.leased) {
            let Ok(own) = lease::reopen(file) else {
                continue;
            };
            match lease::take(&own, WRITER) {
                Grant::Granted => (*file, *leased) = (own.into(), true),
                Grant::Unavailable => {}
                Grant::Written => return Err(written()),
            }
        }
        Ok(())
    }

    /// The files that there is a lease of.
    pub(crate) fn leased(&self) -> impl Iterator<Item = &File> {
        let leased = self.files.iter().zip(&self.leased);
        leased.filter(|(_, leased)| **leased).map(|(file, _)| file)
    }

    /// The same files in openings of their own, which guests do not have.
    pub(crate) fn reopen_leased(&self) -> io::Result<Vec<OwnedFd>> {
        self.leased().map(lease::reopen).collect()
    }

    /// Waits while somebody may write to a file: until the keeper of the leases has seen to it that the
    /// content is what was sealed. Without a keeper, stamps must do.
    fn await_leases(&self) -> Result<(), String> {
        let is_held = || self.leased().all(lease::is_held);
        if is_held() {
            return Ok(());
        }
        let bytes: u64 = self.stamps.iter().map(|stamp| stamp.size).sum();
        let patience = PATIENCE + Duration::from_secs(bytes / READING);
        let begin = Instant::now();
        while getppid() == self.keeper {
            if is_held() {
                return Ok(());
            }
            if begin.elapsed() > patience {
                return Err(written());
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Reads all files, and returns whether their content is what was sealed.
    pub(crate) fn are_whole(&self) -> bool {
        let mut files = self.files.iter().zip(&self.plan.sealed);
        files.all(|(file, sealed)| matches!(self.verdicts.anew(file, &sealed.sha256), Ok(Some(_))))
    }

    /// Size of the guest's memory.
    pub(crate) fn memory(&self) -> Bytes {
        self.plan.memory
    }

    /// The full checkpoint's memory file: whatever no extent covers.
    pub(crate) fn base(&self) -> &File {
        &self.files[0]
    }

    /// Parts of the memory that lie in deltas, ascending.
    pub(crate) fn extents(&self) -> &[Extent] {
        &self.plan.extents
    }

    /// The file that an extent lies in.
    pub(crate) fn file(&self, extent: &Extent) -> &File {
        &self.files[extent.layer]
    }

    /// Places of the extents that have pages in `[first, end)`.
    pub(crate) fn extents_in(&self, first: u64, end: u64) -> std::ops::Range<usize> {
        let extents = self.extents();
        let from = extents.partition_point(|extent| extent.end() <= first);
        let to = extents.partition_point(|extent| extent.first < end);
        from..to.max(from)
    }

    /// Reads a page as the checkpoint has it.
    pub(crate) fn read_page(&self, page: u64, bytes: &mut [u8]) -> io::Result<()> {
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

    /// Writes all of the checkpoint's memory to `to`, as long as `go_on` says so.
    pub(crate) fn copy_to(&self, to: &File, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        copy_range(self.base(), 0, to, 0, self.memory().0, go_on)?;
        self.extents().iter().try_for_each(|extent| {
            let [from, at, size] =
                [extent.file_page, extent.first, extent.count].map(|pages| pages * PAGE_SIZE);
            copy_range(self.file(extent), from, to, at, size, go_on)
        })
    }

    /// Checks that the files are still as they were sealed. The error says what has changed.
    ///
    /// While somebody may write to one, that is not known: what is stored through a mapping need not
    /// change anything but the content.
    ///
    /// A change of a file's content changes its size or times. A change of its attributes (mode,
    /// name, links) does too, and times can be set. In these cases the content itself decides; one
    /// guest reads it for all guests of all nurseries, and the new stamp replaces the old one in
    /// `stamps`.
    pub(crate) fn check(&self, stamps: &mut Cow<'_, [FileStamp]>) -> Result<(), String> {
        self.await_leases()?;
        for (n, (file, sealed)) in self.files.iter().zip(&self.plan.sealed).enumerate() {
            let stamp = stamps[n];
            let now = FileStamp::of(file).map_err(|e| e.to_string())?;
            if now == stamp {
                continue;
            }
            if now.size != stamp.size {
                return Err(format!(
                    "its file had {} bytes and has {}",
                    stamp.size, now.size
                ));
            }
            match self.verdicts.of(file, &sealed.sha256) {
                Ok(Some(now)) => stamps.to_mut()[n] = now,
                Ok(None) => return Err("its content is not what was sealed".to_owned()),
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(())
    }

    /// The files' stamps when they were verified.
    pub(crate) fn stamps(&self) -> &[FileStamp] {
        &self.stamps
    }
}

fn written() -> String {
    "a process has its file open for writing, or mapped so".to_owned()
}
