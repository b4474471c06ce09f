//! Strays of the KVM engine: guests without a record, found by their processes. Such a process
//! works in the run folder as a nursery's children do, and has a guest's name.

use std::{fs, io, os::unix::ffi::OsStrExt, path::Path};

use super::{
    limit_group,
    usage::{self, there},
};
use crate::engine::kvm::fork_server::client::NURSERY_COMMAND;
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
        // A process that may not be looked at is another user's; one that has ended is no guest.
        found.extend(guest(pid, &run_dir)?);
    }
    Ok(found)
}

fn guest(pid: i32, run_dir: &Path) -> io::Result<Option<Stray>> {
    let Some(process) = Process::with_pid(pid)? else {
        return Ok(None);
    };
    if !process.works_in(run_dir) {
        return Ok(None);
    }
    let (Some(command), Some(name)) = (
        there(fs::read(format!("/proc/{pid}/cmdline")))?,
        there(fs::read(format!("/proc/{pid}/comm")))?,
    ) else {
        return Ok(None);
    };
    let name = name.strip_suffix(b"\n").unwrap_or(&name);
    if !is_guests(&command, name) {
        return Ok(None);
    }
    let described = usage::describe(process)?;
    let groups = there(fs::read_to_string(format!("/proc/{pid}/cgroup")))?;
    let stray = Stray {
        id: groups.and_then(|groups| limit_group::guest_of(&groups)),
        name: String::from_utf8_lossy(name).into_owned(),
        process: Some(process),
        checkpoint: described.map(|guest| guest.checkpoint),
    };
    Ok(Some(stray).filter(|_| process.may_live()))
}

/// Whether a process with this command line and name is a guest. A nursery, and what it has forked
/// to become a guest, have the program's name yet.
fn is_guests(command: &[u8], name: &[u8]) -> bool {
    let mut words = command.split(|byte| *byte == 0);
    let program = words.next().map(std::ffi::OsStr::from_bytes);
    let Some(program) = program.and_then(|program| Path::new(program).file_name()) else {
        return false;
    };
    let program = program.as_bytes();
    words.next() == Some(NURSERY_COMMAND.as_bytes())
        && name != &program[..program.len().min(NAME_MAX)]
}

/// Longest name of a process, in bytes (prctl(2), `PR_SET_NAME`).
const NAME_MAX: usize = 15;
