//! Strays of the QEMU engine: guests without a record, found by their processes and folders.

use std::{collections::BTreeSet, fs, io, path::Path};

use super::folder::{Folder, command_line, id_in_command};
use crate::{
    engine::{Process, Stray, process},
    guest_id::GuestId,
};

/// All guests of a run folder, which may be gone itself.
pub(super) fn find(run_dir: &Path) -> io::Result<Vec<Stray>> {
    // Processes last: a guest that began between the looks has one.
    let mut ids: BTreeSet<GuestId> = match Folder::all(run_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
        all => all?.into_iter().collect(),
    };
    let run_dir_now = process::absolute(run_dir)?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|pid| pid.parse().ok()) else {
            continue;
        };
        let Some(process) = Process::with_pid(pid)? else {
            continue;
        };
        // A process that may not be looked at is another user's.
        if !process.works_in(&run_dir_now) {
            continue;
        }
        let line = command_line(process, &run_dir_now)?.unwrap_or_default();
        if let Some(id) = id_in_command(&line)
            && process.may_live()
        {
            ids.remove(&id);
            found.push(stray(run_dir, id, Some(process)));
        }
    }
    found.extend(ids.into_iter().map(|id| stray(run_dir, id, None)));
    Ok(found)
}

fn stray(run_dir: &Path, id: GuestId, process: Option<Process>) -> Stray {
    // A record that cannot be read does not keep the guest out of sight.
    let record = Folder::of(run_dir, &id).record().ok().flatten();
    let (name, checkpoint) = match record {
        Some(record) => (record.name, Some(record.checkpoint)),
        None => (format!("qemu-{id}"), None),
    };
    Stray {
        id: Some(id),
        name,
        process,
        checkpoint,
    }
}
