//! QEMU engine: guests that run an ordinary Linux, each in a QEMU of its own, with the processor's
//! virtualization where the host has it and by translation where not.
//!
//! ```text
//! manager ── qemu-system-x86_64 -incoming ──▶ guest process ── virtio-serial ──▶ agent in the guest
//!    │                                           ▲
//!    └── QMP: stop, device state, quit ──────────┘
//! ```
//!
//! A checkpoint has the guest's memory as a raw file, and beside it the state of QEMU's devices
//! without any memory (`xen-save-devices-state`). A clone maps the memory privately and loads the
//! state, so it reads nothing and copies only what it writes.

mod boot;
mod cancelled;
mod command;
mod folder;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod host;
mod jail;
mod memory_image;
mod pages;
mod qmp;
mod restore;
mod strays;
mod suspend;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, atomic::AtomicBool},
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    Answer, ConsoleLine, Engine, Error, GuestNetwork, GuestRef, Limit, MemoryMap, Process,
    ProcessDescription, ProcessState, Session, SessionTerms, Stray, Suspend, Usage, agent_ask,
    agent_calls::AgentCalls,
    guest_disks,
    kvm::{memory_map, usage},
    network, process,
    restore_threads::RestoreThreads,
    template_lock::{self, Templates},
    wrong_engine,
};
use crate::{
    agent::{Access, Agent, StepLimits},
    checkpoint::{
        Accelerator, Checkpoint, Network, QemuGuest,
        manifest::{EngineKind, Manifest},
    },
    guest_id::GuestId,
    host::{
        facts::{HostFacts, System},
        linux::QemuFacts,
    },
};
use folder::Folder;

pub use host::{PROGRAM, QemuHost, kvm_obstacle};

/// Guests that are booted.
const TEMPLATES: Templates = Templates {
    suffix: ".template",
    remove,
};
/// How long a killed QEMU is waited for.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// The engine.
#[derive(Clone, Debug)]
pub struct Qemu {
    host: QemuHost,
    /// The brood binary.
    program: PathBuf,
}

impl Qemu {
    /// The engine of this host. Brokers run `program`, the brood binary. This accelerator executes
    /// the instructions of new guests; without a name the best that the host has.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, accelerator: Option<Accelerator>) -> Self {
        Self {
            host: QemuHost::new(accelerator),
            program: program.into(),
        }
    }

    /// A guest that has answered: its folder and process.
    fn alive(guest: GuestRef<'_>) -> Result<(Folder, Process), Error> {
        let folder = Folder::of(guest.run_dir, guest.id);
        let process = folder.living().map_err(look)?.ok_or(Error::Gone)?;
        Ok((folder, process))
    }
}

impl AgentCalls for Qemu {
    fn open_agent(
        &self,
        guest: GuestRef<'_>,
        access: Access,
        limit: Limit<'_>,
    ) -> Result<(Process, Result<Agent, agent_ask::Error>), Error> {
        let (folder, process) = Self::alive(guest)?;
        suspend::mend(&folder)?;
        Ok((process, folder.agent(access, &self.program, limit)))
    }
}

fn look(source: io::Error) -> Error {
    Error::Io {
        action: "look at the guest",
        source,
    }
}

/// How long an image's programs have for their part. Translated instructions take many times longer.
fn step_limits(guest: &QemuGuest) -> StepLimits {
    let limits = StepLimits::default();
    match guest.accelerator {
        Accelerator::Kvm => limits,
        Accelerator::Tcg => StepLimits {
            hook: 3 * limits.hook,
            ..limits
        },
    }
}

/// What a checkpoint says of its QEMU.
/// Refuses a network that QEMU's guests do not have here.
fn has_network(network: Network) -> Result<(), Error> {
    match network {
        Network::None | Network::User => Ok(()),
        Network::Tap => Err(Error::Refused(
            "--net tap is for guests of the KVM engine (--engine kvm); QEMU's have --net user"
                .to_owned(),
        )),
    }
}

fn guest_of(checkpoint: &Checkpoint) -> Result<QemuGuest, Error> {
    let manifest = checkpoint.manifest();
    let refuse = |reason: String| Error::Checkpoint {
        checkpoint: checkpoint.path().to_string(),
        reason,
    };
    let guest = match (manifest.engine, &manifest.qemu) {
        (EngineKind::Qemu, Some(guest)) => guest.clone(),
        (EngineKind::Qemu, None) => {
            return Err(refuse("it does not say which QEMU made it".to_owned()));
        }
        (other, _) => return Err(refuse(wrong_engine(other))),
    };
    if guest.devices_version != command::DEVICES_VERSION {
        return Err(refuse(format!(
            "its devices are of version {}, and this brood's of version {}",
            guest.devices_version,
            command::DEVICES_VERSION
        )));
    }
    Ok(guest)
}

impl Engine for Qemu {
    fn kind(&self) -> EngineKind {
        EngineKind::Qemu
    }

    fn examine(&self, facts: &mut HostFacts) {
        if let System::Linux(linux) = &mut facts.system {
            let (accelerator, why) = self.host.accelerator();
            linux.qemu = Some(QemuFacts {
                program: PROGRAM.to_owned(),
                version: self.host.version().ok(),
                accelerator: accelerator.to_string(),
                why,
            });
        }
    }

    fn suits(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        let guest = guest_of(checkpoint)?;
        // A host that cannot ask its QEMU, for want of descriptors, is no fault of the checkpoint.
        let _ = self.host.version()?;
        self.host.suits(&guest).map_err(|reason| Error::Checkpoint {
            checkpoint: checkpoint.path().to_string(),
            reason,
        })
    }

    fn can_network(&self, checkpoint: &Checkpoint, wanted: &GuestNetwork) -> Result<(), Error> {
        let card = guest_of(checkpoint)?.network;
        network::can_have(checkpoint, card, wanted)?;
        has_network(wanted.network.unwrap_or(card))
    }

    fn session(
        &self,
        checkpoint: &Checkpoint,
        run_dir: &Path,
        lock: &File,
        _: &SessionTerms,
    ) -> Result<Box<dyn Session>, Error> {
        self.suits(checkpoint)?;
        let guest = guest_of(checkpoint)?;
        checkpoint.unchanged()?;
        let cannot = |action| move |source| Error::Io { action, source };
        let lock = lock.try_clone().map_err(cannot("hand on the lock"))?;
        let run_dir = run_dir.canonicalize().map_err(look)?;
        let root = guest.root.then(|| guest_disks::root_of(checkpoint));
        let image = memory_image::MemoryImage::of(checkpoint, &run_dir)
            .map_err(cannot("lay out the memory that guests share"))?;
        Ok(Box::new(RestoreThreads::new(restore::Source {
            bundle: checkpoint.path().absolute()?.to_string(),
            memory: checkpoint.manifest().memory.size,
            vcpus: checkpoint.manifest().vcpus,
            state: checkpoint.kern().to_vec(),
            root: root.transpose()?,
            guest,
            image,
            run_dir,
            lock,
            called_off: AtomicBool::new(false),
            restoring: Mutex::default(),
            restored: Mutex::default(),
        })))
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

    fn strays(&self, run_dir: &Path) -> Result<Vec<Stray>, Error> {
        strays::find(run_dir).map_err(look)
    }

    fn forget_stray(&self, guest: GuestRef<'_>) -> Result<(), Error> {
        self.forget(guest)
    }

    fn sweep_templates(&self, run_dir: &Path) -> Result<Vec<GuestId>, Error> {
        template_lock::sweep(&TEMPLATES, run_dir).map_err(look)
    }

    fn describe(
        &self,
        guest: GuestRef<'_>,
        _: Process,
    ) -> Result<Option<ProcessDescription>, Error> {
        let record = Folder::of(guest.run_dir, guest.id).record().map_err(look)?;
        Ok(record.map(|record| ProcessDescription {
            name: record.name,
            checkpoint: record.checkpoint,
            memory: record.memory,
        }))
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
        Ok(Folder::of(guest.run_dir, guest.id).file(folder::CONSOLE))
    }

    fn open_console(&self, guest: GuestRef<'_>) -> Result<ConsoleLine, Error> {
        let (folder, _) = Self::alive(guest)?;
        let failed = |source| Error::Io {
            action: "connect to the guest's console",
            source,
        };
        folder.open_console().map_err(failed)?.ok_or(Error::Busy)
    }

    fn suspend(&self, guest: GuestRef<'_>, suspend: Suspend<'_>) -> Result<Manifest, Error> {
        let (folder, process) = Self::alive(guest)?;
        suspend::suspend(&folder, process, suspend)
    }

    fn writes_deltas(&self, _: GuestRef<'_>) -> bool {
        true
    }

    fn resume(&self, guest: GuestRef<'_>, process: Process, limit: Limit<'_>) -> Result<(), Error> {
        if !self.unfreeze(guest, process).map_err(|source| Error::Io {
            action: "signal its process",
            source,
        })? {
            return Err(Error::Gone);
        }
        self.wake_agent(guest, limit)
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

    fn reads_disk(&self, checkpoint: &Checkpoint) -> Result<bool, Error> {
        Ok(guest_of(checkpoint)?.disk.is_some())
    }

    fn reads_overlays(&self, checkpoint: &Checkpoint) -> bool {
        guest_of(checkpoint).is_ok_and(|guest| guest.disk.is_some())
    }

    fn can_do_without_disk(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        guest_disks::can_do_without(checkpoint, guest_of(checkpoint)?.disk)
    }

    fn own_disk(&self, guest: GuestRef<'_>) -> Result<Option<PathBuf>, Error> {
        let record = Folder::of(guest.run_dir, guest.id).record().map_err(look)?;
        Ok(record.and_then(|record| Some(record.disk?.path)))
    }

    fn ended(&self, guest: GuestRef<'_>) -> Result<Option<String>, Error> {
        let folder = Folder::of(guest.run_dir, guest.id);
        if folder.ready().map_err(look)?.is_none() || folder.living().map_err(look)?.is_some() {
            return Ok(None);
        }
        Ok(Some(folder.reason()))
    }

    fn forget(&self, guest: GuestRef<'_>) -> Result<(), Error> {
        remove(guest.run_dir, guest.id).map_err(|source| Error::Io {
            action: "remove the guest's files",
            source,
        })
    }
}

/// Removes what a guest has on this host: its process, if it has not ended, and its folder; and the
/// memory image, when nobody else needs it.
fn remove(run_dir: &Path, id: &GuestId) -> io::Result<()> {
    let folder = Folder::of(run_dir, id);
    if let Some(process) = folder.started()?
        && let Some(handle) = process.open()?
    {
        process::send(&handle, Signal::SIGKILL)?;
        if !process::wait_for_end(&handle, END_PATIENCE)? && process.state()? != ProcessState::Gone
        {
            let pid = process.pid;
            return Err(io::Error::other(format!("its process {pid} does not end")));
        }
    }
    let image = folder.record().ok().flatten().map(|record| record.image);
    folder.remove()?;
    match image {
        Some(image) => memory_image::remove_if_unused(run_dir, &image),
        // Its maker may have been killed when it had laid out the image, and nothing else.
        None => memory_image::remove_unused(run_dir),
    }
}
