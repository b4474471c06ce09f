//! Removal of a guest: everything that it has on this host goes, its folder last.
//!
//! Any number of processes may remove a guest at once, and each may be killed at any step. They
//! take turns by the folder's lock, each looks again at what exists when it has the lock, and each
//! step passes over what is gone already. So a process that comes after a crash finishes the
//! removal, and of two processes the second finds nothing.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    folder::Folder,
    folder_lock::FolderLock,
    host::{self, Host},
    marks, network,
    restore::{Error, checkpoint_socket, io, vm_name},
    suspend,
};
use crate::{
    engine::{Process, process},
    guest_id::GuestId,
    owner_only,
};

/// How long a killed bhyve may take to go.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// How long a virtual machine that was destroyed may take to go.
const MACHINE_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked at.
const RETRY: Duration = Duration::from_millis(20);

/// Removes everything that a guest has on this host: its process, virtual machine, socket, taps
/// and folder. Repeating it is no error, and neither is a guest that there is nothing of.
pub(super) fn remove(host: &Host, run_dir: &Path, id: &GuestId) -> Result<(), Error> {
    let folder = Folder::of(run_dir, id);
    let Some(lock) = FolderLock::take(&folder)? else {
        return Ok(());
    };
    lock.sign(&folder);
    for process in processes(&folder, run_dir, id)? {
        end(process).map_err(io("kill bhyve"))?;
    }
    destroy_machine(&lock, host, id)?;
    remove_socket(host, id)?;
    for number in taps(&folder, host, id)? {
        network::destroy(&lock, host, number, id)?;
    }
    // Nobody can use half a suspend; a complete one may still be sealed.
    let begun = match folder.suspending() {
        // A crash of the host left it so: the place of the files is unknown.
        Err(e) if e.kind() == io::ErrorKind::InvalidData => None,
        begun => begun.map_err(io("see whether the guest is being suspended"))?,
    };
    if let Some(raw) = begun.map(|begun| begun.memory) {
        let whole = suspend::is_whole(&raw).map_err(io("look at what bhyve wrote"))?;
        if !whole {
            suspend::remove_files(&raw).map_err(io("remove what bhyve had begun to write"))?;
        }
    }
    folder.remove().map_err(io("remove the guest's folder"))
}

/// Removes the parts of a guest whose folder was lost. Makes the folder again, so that there is one
/// to lock, and to find after a crash.
pub(super) fn remove_lost(host: &Host, run_dir: &Path, id: &GuestId) -> Result<(), Error> {
    let made = owner_only::create_folder(run_dir).and_then(|()| Folder::of(run_dir, id).create());
    match made {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(io("make the guest's folder")(e)),
        _ => remove(host, run_dir, id),
    }
}

/// The processes of a guest.
fn processes(folder: &Folder, run_dir: &Path, id: &GuestId) -> Result<Vec<Process>, Error> {
    let look = io("look at the guest's process");
    match folder.started() {
        Ok(process) => Ok(process.into_iter().collect()),
        // A crash of the host left the file so, or a user changed it.
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            let mut all = marks::find(run_dir).map_err(look)?;
            all.retain(|marked| marked.id == *id);
            Ok(all.into_iter().map(|marked| marked.process).collect())
        }
        Err(e) => Err(look(e)),
    }
}

/// Kills a process and waits until it is gone.
fn end(process: Process) -> io::Result<()> {
    let Some(handle) = process.open()? else {
        return Ok(());
    };
    process::send(&handle, Signal::SIGKILL)?;
    if process::wait_for_end(&handle, KILL_PATIENCE)? {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::TimedOut))
    }
}

fn destroy_machine(lock: &FolderLock, host: &Host, id: &GuestId) -> Result<(), Error> {
    let vm = vm_name(id);
    let device = host.path(&format!("/dev/vmm/{vm}"));
    let begin = Instant::now();
    loop {
        match lock.run(host, "bhyvectl", &["--destroy", &format!("--vm={vm}")]) {
            // It was never made, or has gone with its guest.
            Err(host::Error::Failed { said, .. }) if is_missing(&said) => return Ok(()),
            // It is on its way.
            Err(host::Error::Failed { said, .. })
                if said.contains("Device not configured") || said.contains("Device busy") => {}
            Err(e) => return Err(e.into()),
            // That bhyvectl(8) succeeds says nothing: vm_destroy() has no result.
            Ok(_) => match fs::symlink_metadata(&device) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(io("look at the guest's virtual machine")(e)),
            },
        }
        if begin.elapsed() >= MACHINE_PATIENCE {
            return Err(Error::MachineStays(vm));
        }
        thread::sleep(RETRY);
    }
}

/// Whether bhyvectl(8) says that there is no such virtual machine. A machine that may not be opened
/// exists.
fn is_missing(said: &str) -> bool {
    said.contains("could not be opened") && said.contains("No such file or directory")
}

/// bhyve never removes its socket (init_checkpoint_thread() of snapshot.c).
fn remove_socket(host: &Host, id: &GuestId) -> Result<(), Error> {
    match fs::remove_file(host.path(&checkpoint_socket(id))) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io("remove the checkpoint socket")(e)),
        _ => Ok(()),
    }
}

/// Numbers of the guest's taps by its record, or without a readable record by the taps'
/// descriptions.
fn taps(folder: &Folder, host: &Host, id: &GuestId) -> Result<Vec<u16>, Error> {
    match folder.record() {
        Ok(Some(record)) => Ok(record.taps),
        Err(e) if e.kind() != io::ErrorKind::InvalidData => Err(io("read the guest's record")(e)),
        _ => Ok(network::of_guest(host, id)?),
    }
}
