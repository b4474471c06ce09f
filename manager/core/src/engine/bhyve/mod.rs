//! The production engine: FreeBSD's bhyve, a process per guest, run through the commands of the
//! base system.
//!
//! ```text
//! manager ── bhyve -k CONF -r CKP ──▶ guest process ── null modem ──▶ agent in the guest
//!    │                                     ▲
//!    └── ifconfig (taps), bhyvectl (create, suspend, destroy), sysctl (memory)
//! ```
//!
//! With the kernel patch and `vmm_vnode.ko` guest memory is the checkpoint file; without them bhyve
//! reads it (a patched one says so in its log, a stock one does not). All of this is processes, files and terminals, so it builds on any Unix.

mod agent;
mod agent_calls;
pub mod config;
mod folder;
mod folder_lock;
mod framed;
mod guest_config;
mod host;
mod kernel;
mod lost;
mod marks;
mod network;
mod probe;
mod rctl;
mod ready;
mod removal;
mod restore;
mod serial;
mod strays;
mod suspend;
mod usage;
mod vendor;

use std::{
    fs::File,
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

pub use host::Host;
pub use probe::probe;
pub use rctl::{ParseRctlError, Rctl};

use super::{
    After, Answer, Engine, Error, GuestRef, Limit, Process, ProcessDescription, ProcessState,
    Session, SessionTerms, Stray, Suspend, UnsealedSuspend, Usage, agent_calls::AgentCalls,
    restore_threads::RestoreThreads,
};
use crate::{
    agent::{Access, Agent},
    checkpoint::{
        AgentProtocol, BhyveGuest, BundlePath, Checkpoint, NoteSeal, Watch,
        manifest::{EngineKind, Manifest},
    },
    guest_id::GuestId,
    host::{
        HostSource,
        facts::{HostFacts, System},
    },
};
use folder::Folder;
use guest_config::{checked, guest_of, sealed_disk};
use ready::Sign;
use serial::{Line, Wait};

/// Longest name of a checkpoint's memory file, with its folders: bhyve makes another of it, in
/// `NAME_MAX` bytes (`strcat_extension()` of snapshot.c).
const PATH_MAX: usize = 255 - ".kern".len();

/// How often a guest that was stopped is looked at until it shows that it runs on.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The engine.
#[derive(Clone, Debug, Default)]
pub struct Bhyve {
    host: Host,
    rctl: Rctl,
    /// The brood binary.
    program: PathBuf,
}

impl Bhyve {
    /// The engine of this host.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The engine of a host.
    #[must_use]
    pub fn on(host: Host) -> Self {
        Self {
            host,
            ..Self::default()
        }
    }

    /// The same, whose guests' brokers run `program`, the brood binary.
    #[must_use]
    pub fn with_binary(self, program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            ..self
        }
    }

    /// The same, with limits for each guest that it restores.
    #[must_use]
    pub fn limited(self, rctl: Rctl) -> Self {
        Self { rctl, ..self }
    }

    /// Seals a checkpoint that `bhyvectl --suspend=RAW` wrote. Its three files, `RAW`, `RAW.kern`
    /// and `RAW.meta`, become the bundle's: they must be in the same file system. `note` is told of
    /// the manifest before the bundle has its name.
    ///
    /// # Errors
    /// When they are not of a guest with this configuration, or cannot be sealed; then they stay.
    pub fn import(
        &self,
        raw: &Path,
        path: &BundlePath,
        guest: BhyveGuest,
        note: NoteSeal<'_>,
        progress: Watch<'_>,
    ) -> Result<Manifest, Error> {
        let seal = suspend::Seal {
            raw,
            to: path,
            name: path.name(),
            guest,
            engine_version: self.version(),
            disks: &mut || Ok(Vec::new()),
            note,
            progress,
        };
        seal.run()
    }

    fn version(&self) -> String {
        let release = self.host.run("sysctl", &["-n", "kern.osreldate"]);
        format!(
            "brood {}, bhyve of FreeBSD {}",
            env!("CARGO_PKG_VERSION"),
            release.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
        )
    }

    /// A guest that has answered: its folder and process.
    fn alive(&self, guest: GuestRef<'_>) -> Result<(Folder, Process), Error> {
        let folder = Folder::of(guest.run_dir, guest.id);
        let process = folder.living().map_err(look)?.ok_or(Error::Gone)?;
        Ok((folder, process))
    }
}

fn look(source: io::Error) -> Error {
    Error::Io {
        action: "look at the guest",
        source,
    }
}

impl Engine for Bhyve {
    fn kind(&self) -> EngineKind {
        EngineKind::Bhyve
    }

    fn host(&self) -> HostSource {
        kernel::source(&self.host)
    }

    fn examine(&self, facts: &mut HostFacts) {
        if let System::Freebsd(freebsd) = &mut facts.system {
            let tools = probe(&self.host, facts.checkpoint_folder.as_ref());
            freebsd.tools = Some(tools);
        }
    }

    fn suits(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        guest_of(checkpoint).map(|_| ())
    }

    fn session(
        &self,
        checkpoint: &Checkpoint,
        run_dir: &Path,
        lock: &File,
        _: &SessionTerms,
    ) -> Result<Box<dyn Session>, Error> {
        let refuse = |reason: String| Error::Checkpoint {
            checkpoint: checkpoint.path().to_string(),
            reason,
        };
        let manifest = checkpoint.manifest();
        let (guest, config) = guest_of(checkpoint)?;
        let bundle = checkpoint.path().absolute()?;
        let ckp = bundle.ckp();
        if ckp.as_os_str().len() > PATH_MAX {
            return Err(refuse(format!(
                "bhyve cannot open files with more than {PATH_MAX} bytes in their names"
            )));
        }
        // bhyve opens the files by their names: they must be those that were checked.
        checkpoint.unchanged()?;
        if let Some(reason) = probe(&self.host, None).missing() {
            return Err(Error::Unavailable {
                engine: "bhyve",
                reason,
            });
        }
        if let Some(reason) = vendor::mismatch(checkpoint.meta(), &self.host) {
            return Err(refuse(reason));
        }
        let lock = lock.try_clone().map_err(|source| Error::Io {
            action: "hand on the lock",
            source,
        })?;
        Ok(Box::new(RestoreThreads::new(restore::Source {
            host: self.host.clone(),
            run_dir: run_dir.to_owned(),
            ckp,
            bundle: bundle.to_string(),
            memory: manifest.memory.size,
            guest,
            config,
            sealed_disk: sealed_disk(manifest),
            rctl: self.rctl.clone(),
            lock,
            called_off: AtomicBool::new(false),
        })))
    }

    fn find(&self, guest: GuestRef<'_>) -> Result<Option<Process>, Error> {
        match Folder::of(guest.run_dir, guest.id).found() {
            // A crash of the host left the file so: its guest ended by that.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(None),
            found => found.map_err(look),
        }
    }

    fn has(&self, guest: GuestRef<'_>) -> bool {
        Folder::of(guest.run_dir, guest.id).exists()
    }

    fn guest_in(&self, name: &str) -> Option<GuestId> {
        folder::id_in(name)
    }

    fn strays(&self, run_dir: &Path) -> Result<Vec<Stray>, Error> {
        strays::find(&self.host, run_dir).map_err(look)
    }

    fn forget_stray(&self, guest: GuestRef<'_>) -> Result<(), Error> {
        removal::remove_lost(&self.host, guest.run_dir, guest.id).map_err(Error::from)
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
        let begin = Instant::now();
        let (folder, process) = self.alive(guest)?;
        let record = folder.record().map_err(look)?.ok_or(Error::Gone)?;
        if record.guest.agent_protocol == AgentProtocol::Frames {
            return self.ask_agent(guest, words, limit);
        }
        let agent = record
            .agent
            .ok_or_else(|| Error::Refused("this guest has no agent to ask".to_owned()))?;
        let request = words.join(" ");
        let plain = !request.trim().is_empty() && !request.chars().any(char::is_control);
        if !plain || request.len() > agent::REQUEST_MAX {
            return Err(Error::Refused(format!(
                "a request is one line of at most {} bytes",
                agent::REQUEST_MAX
            )));
        }
        let io = |source| Error::Io {
            action: "talk to the guest",
            source,
        };
        let _mine = loop {
            if let Some(lock) = folder.lock().map_err(io)? {
                break lock;
            }
            if limit.is_cancelled() {
                return Err(Error::Interrupted);
            }
            if begin.elapsed() >= limit.timeout {
                return Err(Error::Busy);
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let wait = Wait {
            until: begin + limit.timeout,
            still: &|| process.may_live() && !limit.is_cancelled(),
        };
        let mut line = Line::open(&self.host.path(&agent)).map_err(io)?;
        match line.ask(&request, wait) {
            Ok(answer) => Ok(Box::new(agent::Words(answer))),
            Err(serial::Error::Refused(why)) => Err(Error::Refused(why)),
            Err(serial::Error::Timeout) => Err(Error::Timeout(limit.timeout)),
            Err(serial::Error::GivenUp) if limit.is_cancelled() => Err(Error::Interrupted),
            Err(serial::Error::GivenUp) => Err(Error::Died(self.ended(guest)?.unwrap_or_default())),
            Err(serial::Error::Io(source)) if !process.may_live() => Err(Error::Died(
                self.ended(guest)?.unwrap_or_else(|| source.to_string()),
            )),
            Err(serial::Error::Io(source)) => Err(io(source)),
        }
    }

    fn agent(&self, guest: GuestRef<'_>, limit: Limit<'_>) -> Result<Agent, Error> {
        self.with_agent(guest, Access::Shared, limit, Ok)
    }

    fn resume(&self, guest: GuestRef<'_>, process: Process, limit: Limit<'_>) -> Result<(), Error> {
        let begin = Instant::now();
        let record = Folder::of(guest.run_dir, guest.id).record().map_err(look)?;
        let record = record.ok_or(Error::Gone)?;
        if !self.unfreeze(guest, process).map_err(|source| Error::Io {
            action: "signal its process",
            source,
        })? {
            return Err(Error::Gone);
        }
        if record.guest.agent_protocol == AgentProtocol::Frames {
            return self.wake_agent(guest, limit);
        }
        if record.agent.is_some() {
            return match self.ask(guest, &["ping".to_owned()], limit) {
                // That it cannot is an answer as well.
                Ok(_) | Err(Error::Refused(_)) => Ok(()),
                Err(e) => Err(e),
            };
        }
        let Some(sign) = Sign::of(&record.guest.readiness, &record.name) else {
            // Words that it wrote once to its console tell nothing of now: its process does.
            return Ok(());
        };
        loop {
            if sign.is_seen(&self.host, limit.timeout.saturating_sub(begin.elapsed())) {
                return Ok(());
            }
            if !process.may_live() {
                return Err(Error::Died(self.ended(guest)?.unwrap_or_default()));
            }
            if limit.is_cancelled() {
                return Err(Error::Interrupted);
            }
            if begin.elapsed() >= limit.timeout {
                return Err(Error::Timeout(limit.timeout));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn suspend(&self, guest: GuestRef<'_>, suspend: Suspend<'_>) -> Result<Manifest, Error> {
        if suspend.delta {
            return Err(Error::Refused(
                "its engine writes no deltas: suspend it in full, without --delta".to_owned(),
            ));
        }
        if suspend.after == After::Pause {
            return Err(Error::Refused(
                "bhyve ends a guest that it writes: suspend it (`brood suspend`), and restore it \
                 from its checkpoint"
                    .to_owned(),
            ));
        }
        let Suspend {
            name,
            to: path,
            disks,
            note,
            progress,
            ..
        } = suspend;
        let raw = suspend::raw(&path.absolute()?);
        let cut_off = self.unsealed(guest)?.filter(|u| u.memory == raw);
        let folder = Folder::of(guest.run_dir, guest.id);
        let record = folder.record().map_err(look)?.ok_or(Error::Gone)?;
        match cut_off {
            // Its files are all that there is of it: only the seal is missing, if even that.
            Some(_) => {
                if let Some(manifest) = suspend::sealed_already(&raw, path)? {
                    folder.suspended();
                    return Ok(manifest);
                }
            }
            None => {
                let (_, process) = self.alive(guest)?;
                // What could keep the bundle from being sealed is looked for while the guest runs.
                drop(crate::checkpoint::Writer::create(path, record.memory)?);
                let prepared = self.prepare_suspend(guest, &folder, &record)?;
                let written = suspend::write(&self.host, &folder, &record.vm, process, &raw);
                if written.is_err() && prepared {
                    // The guest thaws by itself when this fails.
                    let _ = self.undo_suspend(guest);
                }
                written?;
            }
        }
        let device = record.disk.and_then(|disk| {
            let config = checked(&record.guest).ok()?;
            config.device_of(&disk.device)
        });
        // bhyve stopped the guest and its disks before it wrote the first byte, and has ended
        // without continuing them: the disk is unchanged since then.
        let mut disks = || {
            let mut taken = disks()?;
            for disk in &mut taken {
                disk.device.clone_from(&device);
            }
            Ok(taken)
        };
        let seal = suspend::Seal {
            raw: &raw,
            to: path,
            name,
            guest: record.guest,
            engine_version: self.version(),
            disks: &mut disks,
            note,
            // The guest has ended for this suspend, so complete it.
            progress: &|told| {
                let _ = progress(told);
                ControlFlow::Continue(())
            },
        };
        let manifest = seal.run()?;
        folder.suspended();
        Ok(manifest)
    }

    fn reads_disk(&self, checkpoint: &Checkpoint) -> Result<bool, Error> {
        let refuse = |reason: String| Error::Checkpoint {
            checkpoint: checkpoint.path().to_string(),
            reason,
        };
        let Some(guest) = &checkpoint.manifest().bhyve else {
            // A restore reports what is wrong with it.
            return Ok(false);
        };
        let config = checked(guest).map_err(refuse)?;
        let sealed = sealed_disk(checkpoint.manifest());
        match config.own_disk(sealed.as_deref()) {
            Ok(_) => Ok(true),
            Err(e) => Err(refuse(format!("{e}; {}", e.hint()))),
        }
    }

    fn own_disk(&self, guest: GuestRef<'_>) -> Result<Option<PathBuf>, Error> {
        let record = Folder::of(guest.run_dir, guest.id).record().map_err(look)?;
        let disk = record.and_then(|record| record.disk);
        Ok(disk.map(|disk| disk.path.into()))
    }

    fn unsealed(&self, guest: GuestRef<'_>) -> Result<Option<UnsealedSuspend>, Error> {
        let folder = Folder::of(guest.run_dir, guest.id);
        let ended = || -> io::Result<Option<PathBuf>> {
            match folder.ready()? {
                Some(process) if process.state()? == ProcessState::Gone => {
                    Ok(folder.suspending()?.map(|begun| begun.memory))
                }
                _ => Ok(None),
            }
        };
        let Some(memory) = ended().map_err(look)? else {
            return Ok(None);
        };
        let Some(bundle) = suspend::bundle(&memory) else {
            return Ok(None);
        };
        // All but the last of its names may be gone when it was sealed.
        let all =
            suspend::is_memory_of(&memory, &bundle) || suspend::is_whole(&memory).map_err(look)?;
        Ok(all.then_some(UnsealedSuspend { bundle, memory }))
    }

    fn suspending(&self, guest: GuestRef<'_>) -> Result<Option<BundlePath>, Error> {
        let begun = Folder::of(guest.run_dir, guest.id)
            .suspending()
            .map_err(look)?;
        Ok(begun.and_then(|begun| suspend::bundle(&begun.memory)))
    }

    fn usage(&self, guest: GuestRef<'_>, process: Process) -> Result<Usage, Error> {
        match Folder::of(guest.run_dir, guest.id).record().map_err(look)? {
            Some(record) if process.may_live() => {
                usage::read(&self.host, &record.vm, record.memory, process)
            }
            _ => Err(Error::Gone),
        }
    }

    fn lost(&self) -> Vec<(GuestId, String)> {
        lost::guests(&self.host)
    }

    fn ended(&self, guest: GuestRef<'_>) -> Result<Option<String>, Error> {
        let folder = Folder::of(guest.run_dir, guest.id);
        if folder.ready().map_err(look)?.is_none() || folder.living().map_err(look)?.is_some() {
            return Ok(None);
        }
        if let Some(UnsealedSuspend { bundle, memory }) = self.unsealed(guest)? {
            let record = folder.record().map_err(look)?;
            let name = record.map_or_else(|| guest.id.to_string(), |record| record.name);
            return Ok(Some(format!(
                "it was suspended to {}, which was not sealed: `brood suspend {name} {bundle}` does",
                memory.display()
            )));
        }
        Ok(Some(match folder.last_words() {
            Some(words) => format!("bhyve ended; the last it said: {words}"),
            None => "bhyve ended and said nothing".to_owned(),
        }))
    }

    fn forget(&self, guest: GuestRef<'_>) -> Result<(), Error> {
        removal::remove(&self.host, guest.run_dir, guest.id).map_err(Error::from)
    }
}

impl From<restore::Error> for Error {
    fn from(error: restore::Error) -> Self {
        match error {
            restore::Error::Io { action, source } => Self::Io { action, source },
            other => Self::Io {
                action: "remove what the guest has on this host",
                source: io::Error::other(other.to_string()),
            },
        }
    }
}
