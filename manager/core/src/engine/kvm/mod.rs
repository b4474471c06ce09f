//! KVM engine: one process for each guest, forked by a *nursery* (a fork server), with a private
//! mapping of the checkpoint and its deltas as the guest's memory. `docs/kvm.md` describes all of
//! it.
//!
//! ```text
//! manager ── orders ──▶ nursery ── fork ──▶ guest process (VM, vCPU, private mapping of the .ckp)
//!    ▲                                           │    ▲
//!    └──────────── "it has answered" ────────────┘    └── control socket: ask, suspend
//! ```

pub mod demo;
mod device;
mod exit_reason;
mod exit_record;
mod fork_server;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod guest;
mod jail;
mod limit_group;
mod linux;
pub(in crate::engine) mod memory_map;
mod remains;
mod signals;
mod strays;
pub(in crate::engine) mod usage;
mod verdict;
mod vm;
mod wire;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

pub(super) use demo::make_demo_checkpoint;
use demo::{DemoPort, words};
use device::{engine_version, open_kvm};
use guest::{control::Conversation, port::GuestPort};
use limit_group::ParentGroup;
use verdict::Verdicts;
use vm::vcpu::VcpuState;
use wire::StartGuest;

pub use brood_machine::cpu_template::CpuTemplate;
pub use exit_reason::ExitReason;
pub use fork_server::client::NURSERY_COMMAND;
pub use linux::KvmLinux;

use super::{
    After, Answer, Engine, Error, GuestRef, Limit, MemoryMap, Process, ProcessDescription, Session,
    SessionTerms, Stray, Suspend, Usage, wrong_engine,
};
use crate::{
    checkpoint::{
        Checkpoint, Description, FileStamp, Writer,
        manifest::{DiskSnapshot, EngineKind, Manifest},
    },
    guest_id::GuestId,
    host::{
        facts::{HostFacts, System},
        linux::RunFolder,
        proc::ProcRoot,
    },
};

/// How long a guest may take to be written out.
const SUSPEND_PATIENCE: Duration = Duration::from_secs(120);

/// Runs a nursery on descriptor 3 until it has nothing left to do. Never returns.
pub fn nursery() -> ! {
    fork_server::server::main(|start, checkpoint| match start.guest {
        StartGuest::Demo => fork_server::server::run::<demo::Demo>(start, checkpoint),
        StartGuest::Linux(_) => fork_server::server::run::<linux::LinuxKind>(start, checkpoint),
    })
}

/// The engine. Guests are started by running `binary` as a nursery.
#[derive(Clone, Debug)]
pub struct Kvm {
    binary: PathBuf,
}

impl Kvm {
    /// An engine whose nurseries are this very program.
    ///
    /// # Errors
    /// When the program cannot find itself.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            binary: std::env::current_exe()?,
        })
    }

    /// An engine whose nurseries are run from the `brood` binary given.
    #[must_use]
    pub fn with_binary(binary: PathBuf) -> Self {
        Self { binary }
    }
}

impl Engine for Kvm {
    fn kind(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn restores(&self, manifest: &Manifest) -> bool {
        manifest.engine == EngineKind::Kvm && manifest.linux.is_none()
    }

    fn examine(&self, facts: &mut HostFacts) {
        if let System::Linux(linux) = &mut facts.system {
            let state = &facts.state_folder.path;
            // Leaves out what cannot be read.
            linux.run = RunFolder::read(&ProcRoot::default(), state).ok();
        }
    }

    fn suits(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        suits(checkpoint)
    }

    fn session(
        &self,
        checkpoint: &Checkpoint,
        run_dir: &Path,
        lock: &File,
        terms: &SessionTerms,
    ) -> Result<Box<dyn Session>, Error> {
        suits(checkpoint)?;
        open_kvm()?;
        Ok(Box::new(fork_server::nurseries::Nurseries::start(
            &self.binary,
            checkpoint,
            run_dir,
            lock,
            terms,
            fork_server::client::Kind {
                guest: StartGuest::Demo,
                files: &[],
                identity_bytes: DemoPort::identity_bytes,
            },
        )?))
    }

    fn note_whole(&self, run_dir: &Path, stamp: &FileStamp, sha256: &str) {
        if let Ok(verdicts) = Verdicts::of_state(run_dir) {
            verdicts.note_whole(stamp, sha256);
        }
    }

    fn can_enforce_limits(&self, _: &Checkpoint) -> Result<(), Error> {
        ParentGroup::prepare(&ProcRoot::default()).map(drop)
    }

    fn find(&self, guest: GuestRef<'_>) -> Result<Option<Process>, Error> {
        match Conversation::open(guest.run_dir, guest.id, Limit::of(Duration::from_secs(1))) {
            Ok(conversation) => conversation.process(),
            Err(Error::Gone) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn guest_in(&self, name: &str) -> Option<GuestId> {
        exit_record::guest_of_socket(name)
    }

    fn strays(&self, run_dir: &Path) -> Result<Vec<Stray>, Error> {
        strays::find(run_dir).map_err(|source| Error::Io {
            action: "look for guests among all processes",
            source,
        })
    }

    fn forget_stray(&self, guest: GuestRef<'_>) -> Result<(), Error> {
        limit_group::remove_stray(guest.id).map_err(|source| Error::Io {
            action: "remove its control group",
            source,
        })
    }

    fn describe(
        &self,
        _: GuestRef<'_>,
        process: Process,
    ) -> Result<Option<ProcessDescription>, Error> {
        usage::describe(process).map_err(|source| Error::Io {
            action: "look at the guest's process",
            source,
        })
    }

    fn ask(
        &self,
        guest: GuestRef<'_>,
        request: &[String],
        limit: Limit<'_>,
    ) -> Result<Box<dyn Answer>, Error> {
        let asked = words::parse(request).map_err(|e| Error::Refused(e.to_string()))?;
        let answer =
            Conversation::open(guest.run_dir, guest.id, limit)?.ask(&asked.request.to_wire())?;
        let answered = words::AnswerText::new(&asked, demo::DemoAnswer::of_wire(answer))
            .map_err(|e| Error::Refused(e.to_owned()))?;
        Ok(Box::new(answered))
    }

    fn suspend(&self, guest: GuestRef<'_>, suspend: Suspend<'_>) -> Result<Manifest, Error> {
        let Suspend {
            name,
            from,
            to,
            progress,
            ..
        } = suspend;
        if suspend.delta && suspend.after == After::Pause {
            return Err(Error::Refused(
                "a guest that stays is written in full".to_owned(),
            ));
        }
        let limit = Limit::of(SUSPEND_PATIENCE);
        let conversation = Conversation::open(guest.run_dir, guest.id, limit)?;
        let (mut writer, state) = if suspend.delta {
            let process = conversation.process()?.ok_or(Error::Gone)?;
            let most = self.usage(guest, process)?.private.pages();
            let mut writer = Writer::create_delta(to, from, most)?;
            let (state, pages) = conversation.suspend_delta(writer.memory(), progress)?;
            writer.set_pages(pages);
            (writer, state)
        } else {
            let writer = Writer::create(to, from.manifest().memory.size)?;
            let state = match suspend.after {
                After::End => conversation.suspend(writer.memory(), progress)?,
                After::Pause => conversation.snapshot(writer.memory(), progress)?,
            };
            (writer, state)
        };
        readable(&state)?;
        writer.write_kern(&state)?;
        let description = suspended(name, from.manifest(), (suspend.disks)()?)?;
        let now = jiff::Timestamp::now();
        let manifest = writer.seal_noted(description, now, suspend.note, progress)?;
        // A delta's parents may have gone meanwhile: the guest ends only for what can be restored.
        if suspend.delta
            && let Err(e) = Checkpoint::open(to)
        {
            crate::checkpoint::remove(to)?;
            return Err(e.into());
        }
        // The bundle is whole: from here on it is the guest, and the process is not. One that stays
        // stops when the conversation is over.
        if suspend.after == After::End {
            conversation.commit()?;
        }
        Ok(manifest)
    }

    fn writes_deltas(&self, _: GuestRef<'_>) -> bool {
        true
    }

    fn resume(&self, guest: GuestRef<'_>, process: Process, limit: Limit<'_>) -> Result<(), Error> {
        if !self.unfreeze(guest, process).map_err(not_signalled)? {
            return Err(Error::Gone);
        }
        self.ask(guest, &["ping".to_owned()], limit).map(drop)
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
        remains::ended(guest)
    }

    fn forget(&self, guest: GuestRef<'_>) -> Result<(), Error> {
        remains::forget(guest)
    }
}

fn not_signalled(source: io::Error) -> Error {
    Error::Io {
        action: "signal its process",
        source,
    }
}

/// Checks that a guest's state can be restored.
fn readable(state: &[u8]) -> Result<(), Error> {
    VcpuState::from_bytes(state)
        .map(|_| ())
        .map_err(|e| Error::Refused(format!("the guest sent a state that cannot be read: {e}")))
}

/// The bundle's description of a guest that is being suspended.
fn suspended(name: &str, from: &Manifest, disks: Vec<DiskSnapshot>) -> Result<Description, Error> {
    Ok(Description {
        guest: name.to_owned(),
        engine: EngineKind::Kvm,
        engine_version: engine_version(&open_kvm()?),
        memory: from.memory.clone(),
        vcpus: from.vcpus,
        devices: from.devices.clone(),
        disks,
        working_set: from.working_set.clone(),
    })
}

/// Says why a checkpoint is not for this engine.
fn suits(checkpoint: &Checkpoint) -> Result<(), Error> {
    let manifest = checkpoint.manifest();
    let memory = &manifest.memory;
    let reason = if manifest.engine != EngineKind::Kvm {
        wrong_engine(manifest.engine)
    } else if manifest.vcpus != 1 {
        format!(
            "it has {} virtual CPUs; this engine restores guests with one",
            manifest.vcpus
        )
    } else if memory.segments.len() != 1
        || memory.segments[0].guest_address != 0
        || memory.size > *demo::layout::MEMORY.end()
        || memory.size < *demo::layout::MEMORY.start()
    {
        format!(
            "its memory ({}) is not one segment from address 0, of 4 MiB to 3 GiB",
            memory.size
        )
    } else if manifest.devices.iter().any(|d| d.model != "brood-channel") {
        "it has devices that this engine does not have".to_owned()
    } else if manifest.working_set.is_empty() {
        "its working set is empty: the guest could not execute its first instruction".to_owned()
    } else if let Err(e) = VcpuState::from_bytes(checkpoint.kern()) {
        format!("{}: {e}", checkpoint.path().kern().display())
    } else {
        return Ok(());
    };
    Err(Error::Checkpoint {
        checkpoint: checkpoint.path().to_string(),
        reason,
    })
}
