//! Working folder of a benchmark, with brood's state and the checkpoint, and the guests that must
//! be gone before the folder may go.

use std::{io, os::unix::fs::symlink, path::Path};

use brood::density::step::Machine;
use brood_core::host::HostSource;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tempfile::TempDir;

use super::{Measurement, Options, brood::Brood, command::Interrupt, error::Error, floor::Floor};

/// The folder, and the commands that work in it.
#[derive(Debug)]
pub(crate) struct Workplace {
    /// brood, with a checkpoint to restore from.
    pub(crate) brood: Brood,
    /// The floor.
    pub(crate) floor: Floor,
    /// How often each is measured.
    pub(crate) rounds: u32,
    /// Guests in place of a measurement's own number.
    pub(crate) guests: Option<u32>,
    /// Restores at once.
    pub(crate) concurrency: u32,
    /// None once it is gone.
    folder: Option<TempDir>,
    /// What brood's folder of sockets is a link to.
    sockets: Option<TempDir>,
}

/// Keeps guests' sockets in memory, as `brood doctor` would have it where it matters: an ext4
/// without a journal takes the longer to make files the more were deleted in the last minutes, and
/// a measurement must not depend on what was measured before.
fn sockets_in_memory(state: &Path) -> io::Result<Option<TempDir>> {
    let memory = Path::new("/dev/shm");
    if !statfs(memory).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC) {
        return Ok(None);
    }
    let sockets = tempfile::Builder::new()
        .prefix("brood-bench.")
        .tempdir_in(memory)?;
    symlink(sockets.path(), state.join("run"))?;
    Ok(Some(sockets))
}

impl Workplace {
    /// Makes the folder and the checkpoint.
    pub(crate) fn prepare(options: &Options, interrupt: Interrupt) -> Result<Self, Error> {
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(Error::io(format!("find {}", path.display())))
        };
        let dir = absolute(&options.dir)?;
        let make = || format!("make a folder in {}", dir.display());
        let folder = tempfile::Builder::new()
            .prefix("brood-bench.")
            .tempdir_in(&dir)
            .map_err(Error::io(make()))?;
        let (state, checkpoints) = (
            folder.path().join("state"),
            folder.path().join("checkpoints"),
        );
        for inner in [&state, &checkpoints] {
            std::fs::create_dir(inner).map_err(Error::io(make()))?;
        }
        let sockets = sockets_in_memory(&state).map_err(Error::io(make()))?;
        let cores = std::thread::available_parallelism()
            .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        let mut workplace = Self {
            brood: Brood {
                binary: absolute(&options.brood)?,
                state,
                checkpoint: checkpoints.join("demo"),
                engine: None,
                interrupt,
            },
            floor: Floor {
                binary: absolute(&options.floor)?,
                dir,
                memory: options.memory.clone(),
            },
            rounds: options.rounds,
            guests: options.guests,
            concurrency: options.concurrency.unwrap_or(cores),
            folder: Some(folder),
            sockets,
        };
        // Linux guests have a checkpoint of their own, and need no KVM.
        let needed = options.measurements.is_empty()
            || options
                .measurements
                .iter()
                .any(|one| *one != Measurement::Linux);
        let made = match needed {
            true => workplace.brood.make_checkpoint(&options.memory),
            false => Ok(()),
        };
        if made.is_err() {
            // No guest was restored: nothing is to be found there.
            workplace.folder = None;
        }
        made.map(|()| workplace)
    }

    /// Facts of this host, for the reader of a table.
    pub(crate) fn machine(&self) -> Result<Machine, Error> {
        let facts = HostSource::default().facts(self.brood.state.clone(), None)?;
        Ok(Machine::of(&facts))
    }

    /// Destroys all guests and removes the folder; if guests are left, keeps it, so that they can
    /// be found.
    pub(crate) fn clean(&mut self) -> Result<(), Error> {
        let Some(folder) = self.folder.take() else {
            return Ok(());
        };
        let brood = self.brood.uninterrupted();
        let destroyed = brood.destroy_all();
        match brood.count() {
            Ok(0) => {
                let shown = folder.path().display().to_string();
                folder
                    .close()
                    .map_err(Error::io(format!("remove {shown}")))?;
                destroyed
            }
            counted => {
                let _ = folder.keep();
                let _ = self.sockets.take().map(TempDir::keep);
                destroyed?;
                Err(Error::LeftBehind {
                    guests: counted?,
                    state: brood.state,
                })
            }
        }
    }
}

impl Drop for Workplace {
    /// For a panic.
    fn drop(&mut self) {
        if let Err(error) = self.clean() {
            eprintln!("bench: {error}");
        }
    }
}
