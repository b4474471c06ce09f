//! The engine of Linux guests.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Duration,
};

use brood_machine::{
    machine::VCPUS_MAX,
    memory::{check_size, parts},
    state::MachineState,
};
use nix::sys::signal::Signal;

use super::{
    MACHINE_VERSION,
    folder::{self, Folder},
    guest::identity_bytes,
    machine::devices,
    network as host_end,
    session::{LinuxSession, Source},
    suspend,
};
use crate::{
    agent::{Access, Agent},
    checkpoint::{
        Checkpoint, LinuxGuest,
        manifest::{EngineKind, Manifest, Segment},
    },
    engine::{
        Answer, ConsoleLine, Engine, Error, GuestNetwork, GuestRef, Limit, MemoryMap, Process,
        ProcessDescription, Session, SessionTerms, Stray, Suspend, Tap, Usage, agent_ask,
        agent_calls::AgentCalls,
        guest_disks,
        kvm::{
            device::{open_kvm, virtualization},
            fork_server::{client::Kind, nurseries::Nurseries},
            limit_group::ParentGroup,
            memory_map, remains, signals, usage,
            wire::{LinuxDevices, StartGuest},
        },
        network, process,
        template_lock::{self, Templates},
        wrong_engine,
    },
    guest_id::GuestId,
    host::proc::ProcRoot,
    units::Bytes,
};

/// Guests that are booted. They run in the process of the command, and end with it.
pub(super) const TEMPLATES: Templates = Templates {
    suffix: ".linux.template",
    remove: |run_dir, id| Folder::of(run_dir, id).remove(),
};
/// How long a killed guest is waited for.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// The engine.
#[derive(Clone, Debug)]
pub struct KvmLinux {
    /// The brood binary.
    program: PathBuf,
}

pub(super) fn look(source: io::Error) -> Error {
    Error::Io {
        action: "look at the guest",
        source,
    }
}

/// Checks that a guest's state can be restored.
pub(super) fn machine_of(state: &[u8]) -> Result<MachineState, Error> {
    MachineState::from_bytes(state).map_err(|e| Error::Refused(e.to_string()))
}

/// Memory of this size, as a manifest has it.
pub(super) fn segments(size: Bytes) -> Vec<Segment> {
    let segment = |(guest_address, file_offset, size)| Segment {
        guest_address,
        size: Bytes(size),
        file_offset,
    };
    parts(size.0).into_iter().map(segment).collect()
}

impl KvmLinux {
    /// An engine whose nurseries and brokers are run from the `brood` binary given.
    #[must_use]
    pub fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
        }
    }

    /// A guest that was handed out: its folder and process.
    fn alive(guest: GuestRef<'_>) -> Result<(Folder, Process), Error> {
        let folder = Folder::of(guest.run_dir, guest.id);
        let process = folder.living().map_err(look)?.ok_or(Error::Gone)?;
        Ok((folder, process))
    }

    /// Lets a guest's process go on.
    pub(super) fn unfreeze_process(&self, process: Process) -> Result<(), Error> {
        let there = process.signal(Signal::SIGCONT);
        match there.map_err(|source| Error::Io {
            action: "signal its process",
            source,
        })? {
            true => Ok(()),
            false => Err(Error::Gone),
        }
    }
}

impl AgentCalls for KvmLinux {
    fn open_agent(
        &self,
        guest: GuestRef<'_>,
        access: Access,
        limit: Limit<'_>,
    ) -> Result<(Process, Result<Agent, agent_ask::Error>), Error> {
        let (folder, process) = Self::alive(guest)?;
        Ok((process, folder.agent(access, &self.program, limit)))
    }
}

/// Opens the file with the root file system of a checkpoint's guests.
fn open_root(checkpoint: &Checkpoint) -> Result<File, Error> {
    File::open(guest_disks::root_of(checkpoint)?).map_err(|source| Error::Io {
        action: "open the guests' root disk",
        source,
    })
}

/// What a checkpoint says of its machine.
fn guest_of(checkpoint: &Checkpoint) -> Result<LinuxGuest, Error> {
    let manifest = checkpoint.manifest();
    let refuse = |reason: String| Error::Checkpoint {
        checkpoint: checkpoint.path().to_string(),
        reason,
    };
    let guest = match (manifest.engine, &manifest.linux) {
        (EngineKind::Kvm, Some(guest)) => guest.clone(),
        (EngineKind::Kvm, None) => return Err(refuse("it has no machine for Linux".to_owned())),
        (other, _) => return Err(refuse(wrong_engine(other))),
    };
    let here = virtualization();
    if guest.machine_version != MACHINE_VERSION {
        return Err(refuse(format!(
            "its machine is of version {}, and this brood's of version {MACHINE_VERSION}",
            guest.machine_version
        )));
    }
    if guest.virtualization != here {
        return Err(refuse(format!(
            "it was made where {} virtualises the processor, and here it is {here}",
            guest.virtualization
        )));
    }
    if manifest.devices != devices(&guest) {
        return Err(refuse(
            "it has devices that this machine does not have".to_owned(),
        ));
    }
    if manifest.vcpus > VCPUS_MAX.into() {
        return Err(refuse(format!(
            "it has {} virtual CPUs; {VCPUS_MAX} are possible",
            manifest.vcpus
        )));
    }
    let size = manifest.memory.size;
    check_size(size.0).map_err(|e| refuse(e.to_string()))?;
    if manifest.memory.segments != segments(size) {
        return Err(refuse(
            "its memory does not lie where this machine has it".to_owned(),
        ));
    }
    Ok(guest)
}

impl Engine for KvmLinux {
    fn kind(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn restores(&self, manifest: &Manifest) -> bool {
        manifest.engine == EngineKind::Kvm && manifest.linux.is_some()
    }

    fn suits(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        guest_of(checkpoint)?;
        let refuse = |reason: String| Error::Checkpoint {
            checkpoint: checkpoint.path().to_string(),
            reason,
        };
        let state = MachineState::from_bytes(checkpoint.kern());
        let state =
            state.map_err(|e| refuse(format!("{}: {e}", checkpoint.path().kern().display())))?;
        let kvm = open_kvm()?;
        match state.missing_feature(&kvm) {
            Ok(None) => Ok(()),
            Ok(Some(feature)) => Err(refuse(format!(
                "its guests have been given a feature of the processor that this host does not have: {feature}"
            ))),
            Err(e) => Err(refuse(e.to_string())),
        }
    }

    fn session(
        &self,
        checkpoint: &Checkpoint,
        run_dir: &Path,
        lock: &File,
        terms: &SessionTerms,
    ) -> Result<Box<dyn Session>, Error> {
        self.suits(checkpoint)?;
        let guest = guest_of(checkpoint)?;
        let root = match guest.root {
            true => vec![open_root(checkpoint)?],
            false => Vec::new(),
        };
        let nursery = Nurseries::start(
            &self.program,
            checkpoint,
            run_dir,
            lock,
            terms,
            Kind {
                guest: StartGuest::Linux(LinuxDevices {
                    root: guest.root,
                    disk: guest.disk,
                    card: guest.network.has_card(),
                }),
                files: &root,
                identity_bytes,
            },
        )?;
        Ok(Box::new(LinuxSession::new(
            nursery,
            Source {
                run_dir: run_dir.canonicalize().map_err(look)?,
                guest,
                called_off: AtomicBool::new(false),
            },
        )?))
    }

    fn can_network(&self, checkpoint: &Checkpoint, wanted: &GuestNetwork) -> Result<(), Error> {
        let card = guest_of(checkpoint)?.network;
        network::can_have(checkpoint, card, wanted)?;
        host_end::check(wanted.network.unwrap_or(card))
    }

    fn reads_disk(&self, checkpoint: &Checkpoint) -> Result<bool, Error> {
        Ok(guest_of(checkpoint)?.disk.is_some())
    }

    fn copies_disks(&self, checkpoint: &Checkpoint) -> bool {
        guest_of(checkpoint).is_ok_and(|guest| guest.disk.is_some())
    }

    fn can_do_without_disk(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        guest_disks::can_do_without(checkpoint, guest_of(checkpoint)?.disk)
    }

    fn own_disk(&self, guest: GuestRef<'_>) -> Result<Option<PathBuf>, Error> {
        Folder::of(guest.run_dir, guest.id).disk().map_err(look)
    }

    fn tap(&self, guest: GuestRef<'_>) -> Result<Option<Tap>, Error> {
        Folder::of(guest.run_dir, guest.id).tap().map_err(look)
    }

    fn sweep_templates(&self, run_dir: &Path) -> Result<Vec<GuestId>, Error> {
        template_lock::sweep(&TEMPLATES, run_dir).map_err(look)
    }

    fn can_enforce_limits(&self, _: &Checkpoint) -> Result<(), Error> {
        ParentGroup::prepare(&ProcRoot::default()).map(drop)
    }

    fn find(&self, guest: GuestRef<'_>) -> Result<Option<Process>, Error> {
        Folder::of(guest.run_dir, guest.id).found().map_err(look)
    }

    fn has(&self, guest: GuestRef<'_>) -> bool {
        Folder::of(guest.run_dir, guest.id).exists()
    }

    fn guest_in(&self, name: &str) -> Option<GuestId> {
        folder::id_in(name)
    }

    /// The KVM engine finds the nurseries' guests of all kinds.
    fn strays(&self, _: &Path) -> Result<Vec<Stray>, Error> {
        Ok(Vec::new())
    }

    fn forget_stray(&self, guest: GuestRef<'_>) -> Result<(), Error> {
        Folder::of(guest.run_dir, guest.id).remove().map_err(look)
    }

    fn describe(
        &self,
        _: GuestRef<'_>,
        process: Process,
    ) -> Result<Option<ProcessDescription>, Error> {
        usage::describe(process).map_err(look)
    }

    fn ask(
        &self,
        guest: GuestRef<'_>,
        words: &[String],
        limit: Limit<'_>,
    ) -> Result<Box<dyn Answer>, Error> {
        self.ask_agent(guest, words, limit)
    }

    fn agent(&self, guest: GuestRef<'_>, limit: Limit<'_>) -> Result<Agent, Error> {
        self.with_agent(guest, Access::Shared, limit, Ok)
    }

    fn console(&self, guest: GuestRef<'_>) -> Result<PathBuf, Error> {
        Ok(Folder::of(guest.run_dir, guest.id).console())
    }

    fn open_console(&self, guest: GuestRef<'_>) -> Result<ConsoleLine, Error> {
        let (folder, _) = Self::alive(guest)?;
        folder.open_console()?.ok_or(Error::Busy)
    }

    fn suspend(&self, guest: GuestRef<'_>, suspend: Suspend<'_>) -> Result<Manifest, Error> {
        suspend::suspend(self, guest, suspend)
    }

    fn writes_deltas(&self, _: GuestRef<'_>) -> bool {
        true
    }

    fn resume(&self, guest: GuestRef<'_>, process: Process, limit: Limit<'_>) -> Result<(), Error> {
        self.unfreeze_process(process)?;
        self.wake_agent(guest, limit)
    }

    fn stop(&self, _: GuestRef<'_>, process: Process) -> io::Result<bool> {
        process.signal(signals::STOP)
    }

    fn usage(&self, _: GuestRef<'_>, process: Process) -> Result<Usage, Error> {
        usage::read(process).map_err(usage::not_measured)
    }

    fn memory_map(
        &self,
        _: GuestRef<'_>,
        process: Process,
        cells: u32,
    ) -> Result<Option<MemoryMap>, Error> {
        memory_map::read(process, cells)
            .map(Some)
            .map_err(usage::not_measured)
    }

    fn ended(&self, guest: GuestRef<'_>) -> Result<Option<String>, Error> {
        if let Some(bundle) = Folder::of(guest.run_dir, guest.id).suspended() {
            return Ok(Some(format!("it was suspended to {bundle}")));
        }
        remains::ended(guest)
    }

    fn forget(&self, guest: GuestRef<'_>) -> Result<(), Error> {
        remove(guest.run_dir, guest.id)
    }
}

/// Removes what a guest has on this host: its process, if it has not ended, and its files.
pub(super) fn remove(run_dir: &Path, id: &GuestId) -> Result<(), Error> {
    let guest = GuestRef::new(run_dir, id);
    let folder = Folder::of(run_dir, id);
    let process = match folder.found().map_err(look)? {
        Some(process) => Some(process),
        // It was never handed out.
        None => match folder.conversation() {
            Ok(conversation) => conversation.process()?,
            Err(Error::Gone) => None,
            Err(e) => return Err(e),
        },
    };
    if let Some(handle) = process
        .map(|p| p.open())
        .transpose()
        .map_err(look)?
        .flatten()
    {
        process::send(&handle, Signal::SIGKILL).map_err(look)?;
        process::wait_for_end(&handle, END_PATIENCE).map_err(look)?;
    }
    remains::forget(guest)?;
    folder.remove().map_err(look)
}
