//! Strays: bhyve guests without a record, found by their processes, or by their folders and virtual
//! machines once the processes have ended.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::Path,
};

use vmm_sys::sysctl;

use super::{
    folder::Folder,
    host::Host,
    marks,
    restore::{VM_PREFIX, vm_name},
};
use crate::{
    directory,
    engine::{Process, Stray, process},
    guest_id::GuestId,
};

/// Guests of a run folder, which may itself be gone; and guests without any process and run folder,
/// of whichever state folder: nobody can use what is left of them.
pub(super) fn find(host: &Host, run_dir: &Path) -> io::Result<Vec<Stray>> {
    // Processes last: a guest that began between the looks has one.
    let mut ids: BTreeSet<GuestId> = match Folder::all(run_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
        all => all?.into_iter().collect(),
    };
    ids.extend(machines(host)?);
    let run_dir_now = process::absolute(run_dir)?;
    let mut found = Vec::new();
    let mut processes: HashMap<GuestId, Process> = HashMap::new();
    for marked in marks::of_all_folders()? {
        processes.insert(marked.id, marked.process);
        if marked.process.works_in(&run_dir_now) {
            let checkpoint = marks::checkpoint(&marked.command);
            found.push(stray(run_dir, marked.id, Some(marked.process), checkpoint));
        }
    }
    for id in ids {
        if !processes.contains_key(&id) {
            found.push(stray(run_dir, id, None, None));
        }
    }
    Ok(found)
}

fn stray(
    run_dir: &Path,
    id: GuestId,
    process: Option<Process>,
    checkpoint: Option<String>,
) -> Stray {
    // A record that cannot be read does not keep the guest out of sight.
    let record = Folder::of(run_dir, &id).record().ok().flatten();
    let (name, recorded) = match record {
        Some(record) => (record.name, Some(record.checkpoint)),
        None => (vm_name(&id), None),
    };
    Stray {
        id: Some(id),
        name,
        process,
        checkpoint: checkpoint.or(recorded),
    }
}

/// Guests that have a virtual machine (vmm(4)).
fn machines(host: &Host) -> io::Result<Vec<GuestId>> {
    // In a jail, the processes of those outside are not seen, though their machines may be.
    if host.is_this_machine() && is_jailed() {
        return Ok(Vec::new());
    }
    let mut guests = Vec::new();
    for entry in directory::entries(&host.path("/dev/vmm"))? {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix(VM_PREFIX));
        guests.extend(id.and_then(|id| id.parse::<GuestId>().ok()));
    }
    Ok(guests)
}

/// Whether this process is in a jail, or that cannot be told (jail(8), `security.jail.jailed`).
fn is_jailed() -> bool {
    sysctl::read("security.jail.jailed").map_or(true, |value| value.iter().any(|byte| *byte != 0))
}
