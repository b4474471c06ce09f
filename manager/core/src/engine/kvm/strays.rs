//! Strays: guests that no record knows, found by their processes. They run in the run folder as a
//! nursery's children do, and have a guest's name.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{session::NURSERY_COMMAND, usage};
use crate::engine::{Process, Stray, process};

/// All guests' processes of a run folder, which may be gone itself.
pub(super) fn find(run_dir: &Path) -> io::Result<Vec<Stray>> {
    let run_dir = process::absolute(run_dir)?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|pid| pid.parse().ok()) else {
            continue;
        };
        // One that may not be looked at is another user's; one that has ended is nobody's.
        if let Some(stray) = guest(pid, &run_dir) {
            found.push(stray);
        }
    }
    Ok(found)
}

fn guest(pid: i32, run_dir: &Path) -> Option<Stray> {
    let process = Process::with_pid(pid).ok().flatten()?;
    if !process.works_in(run_dir) {
        return None;
    }
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = command.split(|byte| *byte == 0);
    let program = PathBuf::from(std::ffi::OsStr::from_bytes(words.next()?));
    if words.next()? != NURSERY_COMMAND.as_bytes() {
        return None;
    }
    // A nursery, and what it has forked to become a guest, have the program's name yet.
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name = name.strip_suffix(b"\n").unwrap_or(&name);
    let program = program.file_name()?.as_bytes();
    if name == &program[..program.len().min(NAME_MAX)] {
        return None;
    }
    let described = usage::describe(process);
    Some(Stray {
        id: None,
        name: String::from_utf8_lossy(name).into_owned(),
        process,
        checkpoint: described.map(|guest| guest.checkpoint),
    })
    .filter(|stray| stray.process.may_live())
}

/// Longest name of a process, in bytes (prctl(2), `PR_SET_NAME`).
const NAME_MAX: usize = 15;
