//! Suspend of a Linux guest: its agent makes it ready (hooks, frozen file systems), then its process
//! calls its processors back and writes it. Where that fails, the guest goes on.

use std::time::Duration;

use super::{
    engine::{KvmLinux, machine_of},
    folder::Folder,
};
use crate::{
    agent::{Access, StepLimits, prepare_suspend, undo_suspend},
    checkpoint::{
        Checkpoint, Description, Writer,
        manifest::{EngineKind, Manifest},
    },
    engine::{
        After, Error, GuestRef, Limit, Suspend,
        agent_calls::AgentCalls,
        guest_disks,
        kvm::{
            device::{engine_version, open_kvm},
            guest::control::Conversation,
            usage,
        },
    },
};

/// How long the agent has for its part.
const AGENT_LIMIT: Duration = Duration::from_secs(30);
/// How long a guest may take to be written out.
const WRITE_LIMIT: Duration = Duration::from_secs(120);
/// Pages that a guest may write between the look at its memory and its stop.
const ROOM: u64 = 4096;

/// Suspends a guest.
pub(super) fn suspend(
    engine: &KvmLinux,
    guest: GuestRef<'_>,
    suspend: Suspend<'_>,
) -> Result<Manifest, Error> {
    if suspend.delta && suspend.after == After::Pause {
        return Err(Error::Refused(
            "a guest that stays is written in full".to_owned(),
        ));
    }
    let folder = Folder::of(guest.run_dir, guest.id);
    let process = folder.living().map_err(super::engine::look)?;
    let process = process.ok_or(Error::Gone)?;
    // What could keep the bundle from being written is looked for while the guest runs.
    let writer = if suspend.delta {
        let used = usage::read(process).map_err(usage::not_measured)?;
        let most = used.private.pages();
        // It goes on writing until it stands still.
        Writer::create_delta(suspend.to, suspend.from, most + most / 4 + ROOM)?
    } else {
        Writer::create(suspend.to, suspend.from.manifest().memory.size)?
    };
    // A guest that is paused runs on for its part of it, and stops itself when it is written.
    engine.unfreeze_process(process)?;
    let limit = Limit::of(AGENT_LIMIT);
    engine.with_agent(guest, Access::Short, limit, |agent| {
        prepare_suspend(&agent, StepLimits::default())
            .map_err(|e| crate::engine::agent_ask::Error::Other(Error::Refused(e.to_string())))
    })?;
    let (to, after) = (suspend.to, suspend.after);
    let sealed = seal(guest, writer, suspend);
    match &sealed {
        Ok(_) if after == After::End => folder.set_suspended(&to.to_string()),
        _ => {
            // It thaws by itself after a while, if this does not come through.
            let thaw = |agent| {
                let _ = undo_suspend(&agent);
                Ok(())
            };
            if sealed.is_err() {
                let _ = engine.with_agent(guest, Access::Short, limit, thaw);
            }
        }
    }
    sealed
}

/// Everything from the stop of the guest until its bundle is sealed.
fn seal(guest: GuestRef<'_>, mut writer: Writer, suspend: Suspend<'_>) -> Result<Manifest, Error> {
    let Suspend {
        name,
        from,
        to,
        delta,
        after,
        disks,
        note,
        progress,
    } = suspend;
    let conversation = Conversation::open(guest.run_dir, guest.id, Limit::of(WRITE_LIMIT))?;
    let state = if delta {
        let (state, pages) = conversation.suspend_delta(writer.memory(), progress)?;
        writer.set_pages(pages);
        state
    } else {
        match after {
            After::End => conversation.suspend(writer.memory(), progress)?,
            After::Pause => conversation.snapshot(writer.memory(), progress)?,
        }
    };
    machine_of(&state)?;
    writer.write_kern(&state)?;
    let manifest = from.manifest();
    if let Some(linux) = manifest.linux.clone() {
        writer.set_linux(linux);
    }
    let has_disk = manifest
        .linux
        .as_ref()
        .is_some_and(|linux| linux.disk.is_some());
    let disks = guest_disks::of_suspended(disks()?, has_disk, from, to, progress)?;
    let description = Description {
        guest: name.to_owned(),
        engine: EngineKind::Kvm,
        engine_version: engine_version(&open_kvm()?),
        memory: manifest.memory.clone(),
        vcpus: manifest.vcpus,
        devices: manifest.devices.clone(),
        disks: disks.clone(),
        working_set: Vec::new(),
    };
    let now = jiff::Timestamp::now();
    let manifest = writer
        .seal_noted(description, now, note, progress)
        .inspect_err(|_| guest_disks::forget_shared(to, &disks))?;
    // A delta's parents may have gone meanwhile: the guest ends only for what can be restored.
    if delta && let Err(e) = Checkpoint::open(to) {
        crate::checkpoint::remove(to)?;
        guest_disks::forget_shared(to, &disks);
        return Err(e.into());
    }
    // The bundle is whole: from here on it is the guest, and the process is not. One that stays
    // stops when the conversation is over.
    if after == After::End {
        conversation.commit()?;
    }
    Ok(manifest)
}
