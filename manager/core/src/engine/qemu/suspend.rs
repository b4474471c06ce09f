//! Suspend of a guest: from a running guest to a sealed bundle.
//!
//! The guest is made ready by its agent (hooks, frozen file systems), then QEMU stands still and
//! writes the state of its devices; its memory is read from its process. The file `suspending` in
//! the guest's folder is there before the guest stands still, and is locked by the command that
//! writes it. A later command that finds it and gets the lock knows that the other was killed, and
//! lets the guest run on.

use std::{
    fs::{self, File, TryLockError},
    io,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    command::devices,
    folder::Folder,
    memory_image::copy_data,
    pages::Memory,
    qmp::{self, Qmp},
};
use crate::{
    agent::{prepare_suspend, undo_suspend},
    checkpoint::{
        Checkpoint, Description, KERN_MAX, Progress, QemuGuest, Writer,
        manifest::{Device, DiskSnapshot, EngineKind, Manifest},
        read_at_most,
    },
    engine::{After, Error, Limit, Process, Suspend, agent_ask, guest_disks, process},
    owner_only,
};

/// How long the agent has for its part.
const AGENT_LIMIT: Duration = Duration::from_secs(30);
/// How long QEMU may take to end.
const QUIT_PATIENCE: Duration = Duration::from_secs(10);
/// Name of the file that a suspend locks.
const MARK: &str = "suspending";
/// Name of the file with the bundle that the guest became.
pub(super) const SUSPENDED: &str = "suspended";
/// Name of the file with the state of the devices.
const STATE: &str = "state";

fn io(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

fn lost(error: agent_ask::Error) -> Error {
    let (agent_ask::Error::Lost(e) | agent_ask::Error::Other(e)) = error;
    e
}

/// Lets a guest run on whose suspend was killed.
pub(super) fn mend(folder: &Folder) -> Result<(), Error> {
    let mark = match File::open(folder.file(MARK)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        mark => mark.map_err(io("see whether it is being suspended"))?,
    };
    match mark.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::Suspending);
        }
        Err(TryLockError::Error(e)) => return Err(io("see whether it is being suspended")(e)),
    }
    Qmp::open(folder)?.execute("cont", &json!({}))?;
    if let Ok(agent) = folder.short_agent(Limit::of(AGENT_LIMIT)) {
        // It thaws by itself after a while.
        let _ = undo_suspend(&agent);
    }
    fs::remove_file(folder.file(MARK)).map_err(io("forget the suspend that was killed"))
}

/// The mark of a suspend, which goes with this value.
struct Mark<'a> {
    folder: &'a Folder,
    _locked: File,
}

impl<'a> Mark<'a> {
    fn take(folder: &'a Folder) -> Result<Self, Error> {
        mend(folder)?;
        let file = folder.create_file(MARK).map_err(io("note the suspend"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self {
                folder,
                _locked: file,
            }),
            Err(TryLockError::WouldBlock) => Err(Error::Busy),
            Err(TryLockError::Error(e)) => Err(io("note the suspend")(e)),
        }
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.folder.file(MARK));
        let _ = fs::remove_file(self.folder.file(STATE));
    }
}

/// Suspends a guest.
pub(super) fn suspend(
    folder: &Folder,
    process: Process,
    suspend: Suspend<'_>,
) -> Result<Manifest, Error> {
    if suspend.delta && suspend.after == After::Pause {
        return Err(Error::Refused(
            "a guest that stays is written in full".to_owned(),
        ));
    }
    let record = folder.record().map_err(io("look at the guest"))?;
    let record = record.ok_or(Error::Gone)?;
    // What could keep the bundle from being written is looked for while the guest runs.
    let writer = if suspend.delta {
        let most = super::usage::read(process)
            .map_err(super::usage::not_measured)?
            .private
            .pages();
        // It goes on writing until it stands still.
        let room = most + most / 4 + ROOM;
        Writer::create_delta(suspend.to, suspend.from, room)?
    } else {
        Writer::create(suspend.to, suspend.from.manifest().memory.size)?
    };
    let stays = suspend.after == After::Pause;
    if stays {
        process
            .signal(Signal::SIGCONT)
            .map_err(io("signal its process"))?;
    }
    let written = write(folder, process, record.guest, writer, suspend);
    if stays {
        process
            .signal(Signal::SIGSTOP)
            .map_err(io("signal its process"))?;
    }
    written
}

/// Pages that a guest may write between the look at its memory and its stop.
const ROOM: u64 = 4096;

fn write(
    folder: &Folder,
    process: Process,
    guest: QemuGuest,
    writer: Writer,
    mut suspend: Suspend<'_>,
) -> Result<Manifest, Error> {
    let mark = Mark::take(folder)?;
    let agent = folder.short_agent(Limit::of(AGENT_LIMIT)).map_err(lost)?;
    prepare_suspend(&agent, super::step_limits(&guest))
        .map_err(|e| Error::Refused(e.to_string()))?;
    drop(agent);
    let goes_on = |qmp: Option<&mut Qmp>| {
        // What failed matters more than that this did: the mark stays away only when it worked.
        if let Some(qmp) = qmp {
            let _ = qmp.execute("cont", &json!({}));
        }
        if let Ok(agent) = folder.short_agent(Limit::of(AGENT_LIMIT)) {
            let _ = undo_suspend(&agent);
        }
    };
    let mut qmp = match Qmp::open(folder) {
        Ok(qmp) => qmp,
        Err(e) => {
            goes_on(None);
            return Err(e.into());
        }
    };
    let after = suspend.after;
    match seal(folder, process, guest, writer, &mut suspend, &mut qmp) {
        Ok(manifest) if after == After::End => {
            // The bundle is whole: from here on it is the guest, and the process is not. Who has a
            // program in the guest is told so.
            let _ = folder.write(SUSPENDED, suspend.to.to_string().as_bytes());
            end(&mut qmp, process)?;
            drop(mark);
            Ok(manifest)
        }
        result => {
            goes_on(Some(&mut qmp));
            result
        }
    }
}

/// Everything from the stop of the guest until its bundle is sealed.
fn seal(
    folder: &Folder,
    process: Process,
    guest: QemuGuest,
    mut writer: Writer,
    suspend: &mut Suspend<'_>,
    qmp: &mut Qmp,
) -> Result<Manifest, Error> {
    qmp.execute("stop", &json!({}))?;
    let state = save_state(folder, qmp)?;
    let memory = Memory::of(process).map_err(io("look at the guest's memory"))?;
    let total = suspend.from.manifest().memory.size;
    let go_on = || {
        let told = Progress {
            done: crate::units::Bytes(0),
            total,
        };
        (suspend.progress)(told).is_continue()
    };
    let written = if suspend.delta {
        let pages = memory.private.clone();
        let written = memory.write_private(writer.memory(), |_, before| before, &go_on);
        writer.set_pages(pages);
        written
    } else {
        let image = super::memory_image::MemoryImage::of(suspend.from, folder.run_dir())
            .and_then(|image| File::open(image.path()));
        image
            .and_then(|image| copy_data(&image, writer.memory(), total.0))
            .and_then(|()| memory.write_private(writer.memory(), |first, _| first, &go_on))
    };
    written.map_err(|e| match e.kind() {
        io::ErrorKind::Interrupted => Error::Interrupted,
        _ => io("write the guest's memory")(e),
    })?;
    writer.write_kern(&state)?;
    let (devices, has_disk) = (devices(&guest), guest.disk.is_some());
    writer.set_qemu(guest);
    let disks = (suspend.disks)()?;
    let disks =
        guest_disks::of_suspended(disks, has_disk, suspend.from, suspend.to, suspend.progress)?;
    let from = suspend.from.manifest();
    let description = description(suspend.name, from, devices, disks.clone());
    let now = jiff::Timestamp::now();
    let manifest = writer
        .seal_noted(description, now, &mut *suspend.note, suspend.progress)
        .inspect_err(|_| guest_disks::forget_shared(suspend.to, &disks))?;
    // A delta's parents may have gone meanwhile: the guest ends only for what can be restored.
    if suspend.delta
        && let Err(e) = Checkpoint::open(suspend.to)
    {
        crate::checkpoint::remove(suspend.to)?;
        guest_disks::forget_shared(suspend.to, &disks);
        return Err(e.into());
    }
    Ok(manifest)
}

/// Has QEMU write the state of its devices, and reads that.
pub(super) fn save_state(folder: &Folder, qmp: &mut Qmp) -> Result<Vec<u8>, Error> {
    // It may make no file: it may have a user of its own.
    let mut options = owner_only::options();
    let file = options.write(true).create(true).truncate(true);
    let file = file.open(folder.file(STATE));
    let file = file.map_err(io("make a file for the state"))?;
    let set = qmp.hand_over(&file)?;
    // "live" would give up disks that it does not have.
    let with = json!({ "filename": format!("/dev/fdset/{set}"), "live": false });
    let saved = qmp.execute("xen-save-devices-state", &with);
    // Else it would have the file open until nobody has its monitor.
    qmp.execute("remove-fd", &json!({ "fdset-id": set }))?;
    saved?;
    let state = read_at_most(&folder.file(STATE), KERN_MAX);
    let _ = fs::remove_file(folder.file(STATE));
    Ok(state?)
}

/// Ends a guest's QEMU.
pub(super) fn end(qmp: &mut Qmp, process: Process) -> Result<(), Error> {
    let asked = qmp.execute("quit", &json!({}));
    let Some(handle) = process.open().map_err(io("end its process"))? else {
        return Ok(());
    };
    let begin = Instant::now();
    let quits = matches!(asked, Ok(_) | Err(qmp::Error::Closed));
    if quits && process::wait_for_end(&handle, QUIT_PATIENCE).map_err(io("end its process"))? {
        return Ok(());
    }
    process::send(&handle, Signal::SIGKILL).map_err(io("end its process"))?;
    let left = super::END_PATIENCE.saturating_sub(begin.elapsed());
    if process::wait_for_end(&handle, left).map_err(io("end its process"))? {
        Ok(())
    } else {
        Err(Error::Timeout(super::END_PATIENCE))
    }
}

/// What a bundle says of a guest that came from another.
fn description(
    name: &str,
    from: &Manifest,
    devices: Vec<Device>,
    disks: Vec<DiskSnapshot>,
) -> Description {
    Description {
        guest: name.to_owned(),
        engine: EngineKind::Qemu,
        engine_version: from.engine_version.clone(),
        memory: from.memory.clone(),
        vcpus: from.vcpus,
        devices,
        disks,
        working_set: Vec::new(),
    }
}
