//! Exit record: how a guest ended, in a small file beside its control socket, `ID.exit`.
//!
//! The nursery writes it. What a guest's process knows of its end it tells the nursery before
//! ([`messages`](super::fork_server::messages)). `destroy` removes the socket first, and no
//! record is kept without a socket.

use std::{fs, io, path::Path};

use crate::{engine::kvm::exit_reason::ExitReason, guest_id::GuestId};

/// Exit code of a guest process that found its checkpoint file cut short under its memory.
pub(crate) const EXIT_CHECKPOINT_CUT: i32 = 77;

/// Exit code of a guest process whose guest cannot go on.
pub(crate) const EXIT_DIED: i32 = 1;
/// Exit code of a guest process whose guest was suspended: its bundle is the guest.
pub(crate) const EXIT_SUSPENDED: i32 = 78;

/// Name of a guest's control socket in the run folder.
pub(crate) fn socket_name(id: &GuestId) -> String {
    format!("{id}.sock")
}

/// The same, without an allocation: a guest's process would touch pages by it that are its own from
/// then on.
pub(crate) fn socket_address(id: &GuestId) -> [u8; 21] {
    let mut name = *b"0000000000000000.sock";
    name[..16].copy_from_slice(&id.hex());
    name
}

/// The guest whose control socket has this name.
pub(crate) fn guest_of_socket(name: &str) -> Option<GuestId> {
    name.strip_suffix(".sock")?.parse().ok()
}

fn record_name(id: &GuestId) -> String {
    format!("{id}.exit")
}

/// Records, in the current folder, how a guest ended, unless that is known already.
pub(crate) fn ended(id: &GuestId, reason: &ExitReason) {
    let name = record_name(id);
    if !Path::new(&socket_name(id)).exists() || Path::new(&name).exists() {
        return;
    }
    let unfinished = format!("{name}.new");
    let text = serde_json::to_vec(reason).expect("a reason is plain data");
    // The disk may be full: then the guest's end goes without a reason.
    if fs::write(&unfinished, text).is_ok() {
        let _ = fs::rename(&unfinished, &name);
    }
    // A destroy removes the guest's socket first and this record after it; a record written in
    // between would stay.
    if !Path::new(&socket_name(id)).exists() {
        let _ = fs::remove_file(&name);
        let _ = fs::remove_file(&unfinished);
    }
}

/// Removes, in the current folder, the socket of a guest that was suspended: its end is no death.
pub(crate) fn suspended(id: &GuestId) {
    let _ = fs::remove_file(socket_name(id));
}

/// Reads the record of a guest in `run_dir`.
///
/// # Errors
/// When a record exists and cannot be read: this differs from no record.
pub(crate) fn read(run_dir: &Path, id: &GuestId) -> io::Result<Option<ExitReason>> {
    match fs::read(run_dir.join(record_name(id))) {
        // A record that a crash of the host has damaged counts as none.
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Removes everything that a guest has in `run_dir`.
pub(crate) fn forget(run_dir: &Path, id: &GuestId) -> io::Result<()> {
    for name in [
        socket_name(id),
        record_name(id),
        format!("{}.new", record_name(id)),
    ] {
        match fs::remove_file(run_dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
