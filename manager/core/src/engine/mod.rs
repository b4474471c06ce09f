//! Engines: the programs and kernel interfaces that run guests, behind one trait. No module above
//! this one knows which engine runs.
//!
//! An engine works inside a *run folder* that its caller names. What it keeps there (control
//! sockets, records of how guests ended) belongs to it alone.

mod agent_ask;
mod agent_calls;
mod agent_session;
pub mod bhyve;
#[cfg(target_os = "linux")]
mod boot;
pub mod bounded_log;
mod choose;
mod demo;
mod error;
#[cfg(target_os = "linux")]
mod file_rules;
#[cfg(target_os = "linux")]
mod guest_disks;
mod identity;
#[cfg(target_os = "linux")]
pub mod kvm;
mod memory_map;
mod network;
mod park;
pub(crate) mod process;
#[cfg(target_os = "linux")]
pub mod qemu;
#[cfg(target_os = "linux")]
mod resource_limits;
pub mod restore_lock;
mod restore_threads;
mod session;
mod several;
#[cfg(target_os = "linux")]
mod template_lock;

use std::{
    fmt,
    fs::{self, File},
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

pub use agent_session::broker;
#[cfg(target_os = "linux")]
pub use boot::{Boot, BootImage, BootObserver, BootRoot, Booted};
pub use choose::{EngineConfig, choose};
pub use demo::make_demo_checkpoint;
pub use error::Error;
#[cfg(target_os = "linux")]
pub use guest_disks::BootDisk;
pub use identity::Identity;
pub use memory_map::MemoryMap;
pub use network::{Forward, GuestNetwork, ParsePublishError, Publish, Tap, check as check_network};
pub use park::{ParkAfter, ParseParkAfterError};
pub use process::{Confinement, Handle as ProcessHandle, Process, ProcessState};
pub use session::{GuestOrder, Outcome, RestoredProcess, Session, SessionTerms};
pub use several::Several;

use crate::{
    agent::Agent,
    checkpoint::{
        BundlePath, Checkpoint, FileStamp, NoteSeal, Watch,
        manifest::{DiskSnapshot, EngineKind, Manifest},
    },
    disk,
    guest_id::GuestId,
    host,
    host::facts::HostFacts,
    units::Bytes,
};

/// A connection to a guest's console, which nobody else has until this is dropped.
#[derive(Debug)]
pub struct ConsoleLine {
    /// What the guest says, and what is typed.
    pub stream: UnixStream,
    /// The lock that keeps others away.
    pub lock: File,
}

/// A guest that is found without any record: its process, or what is left of it on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// The guest's id, when its process tells it.
    pub id: Option<GuestId>,
    /// The guest's name, or the first 15 bytes of it.
    pub name: String,
    /// Its process; none when it has ended, and something else of the guest is left.
    pub process: Option<Process>,
    /// The bundle that its memory is of, when that can be told.
    pub checkpoint: Option<String>,
}

/// A suspend that was interrupted between the guest's end and the seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsealedSuspend {
    /// The bundle that was to be.
    pub bundle: BundlePath,
    /// The memory file, with the others beside it.
    pub memory: PathBuf,
}

/// How much memory a guest costs, as far as it can be told from its process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Guest memory that this guest has written and has to itself.
    pub private: Bytes,
    /// Guest memory that it has touched and shares with the checkpoint.
    pub shared: Bytes,
    /// Memory of its process that is not guest memory.
    pub process: Bytes,
    /// Page tables of its process.
    pub page_tables: Bytes,
}

/// A guest, as its process describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessDescription {
    /// Name of its process: the guest's name, or its beginning.
    pub name: String,
    /// The bundle that it has mapped, `DIR/NAME`.
    pub checkpoint: String,
    /// Its memory.
    pub memory: Bytes,
}

/// A guest of an engine: the run folder that the engine works in, and the guest's id.
#[derive(Clone, Copy, Debug)]
pub struct GuestRef<'a> {
    /// The run folder.
    pub run_dir: &'a Path,
    /// The guest's id.
    pub id: &'a GuestId,
    /// The engine that runs it, when that is known; else the run folder tells.
    pub engine: Option<EngineKind>,
}

impl<'a> GuestRef<'a> {
    /// The guest with this id in this run folder.
    #[must_use]
    pub fn new(run_dir: &'a Path, id: &'a GuestId) -> Self {
        Self {
            run_dir,
            id,
            engine: None,
        }
    }

    /// The same guest, run by this engine.
    #[must_use]
    pub fn of(self, engine: Option<EngineKind>) -> Self {
        Self { engine, ..self }
    }
}

/// Takes the snapshots of a stopped guest's disks for the bundle that is being written.
pub(crate) type TakeDisks<'a> = &'a mut dyn FnMut() -> Result<Vec<DiskSnapshot>, disk::Error>;

/// What becomes of a guest that is written into a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It ends: the bundle is the guest.
    End,
    /// It stays stopped, as it was. Only a full bundle is written so.
    Pause,
}

/// A suspend: from a running guest to a sealed bundle.
pub struct Suspend<'a> {
    /// The guest's name.
    pub name: &'a str,
    /// The checkpoint that the guest was restored from.
    pub from: &'a Checkpoint,
    /// The new bundle.
    pub to: &'a BundlePath,
    /// Whether the bundle is a delta of `from`: only the pages that the guest has to itself.
    pub delta: bool,
    /// What becomes of the guest when the bundle is sealed.
    pub after: After,
    /// Takes the snapshots of the guest's disks. The engine calls it once, when the guest is stopped
    /// and the bundle is locked, and seals what it returns.
    pub disks: TakeDisks<'a>,
    /// Called with the manifest before the bundle has its name.
    pub note: NoteSeal<'a>,
    /// Is told how far the writing is, and can end it.
    pub progress: Watch<'a>,
}

/// The flag of work that is never cancelled.
pub static NEVER: AtomicBool = AtomicBool::new(false);

/// How long an answer is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Limit<'a> {
    /// No longer than so.
    pub timeout: Duration,
    /// Ends the wait when set: the requester has gone.
    pub cancelled: &'a AtomicBool,
}

impl Limit<'static> {
    /// So long, whatever happens.
    #[must_use]
    pub fn of(timeout: Duration) -> Self {
        Self {
            timeout,
            cancelled: &NEVER,
        }
    }
}

impl Limit<'_> {
    /// Whether the wait was cancelled.
    #[must_use]
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Says that a checkpoint is for another engine.
fn wrong_engine(maker: EngineKind) -> String {
    let maker = maker.name();
    format!("it was made by {maker}, and only {maker} can restore it: --engine {maker}")
}

/// A guest's answer, for people and for programs.
pub trait Answer: fmt::Display + fmt::Debug {
    /// The answer as JSON.
    fn to_json(&self) -> serde_json::Value;
}

/// What runs guests.
pub trait Engine: fmt::Debug + Send + Sync {
    /// Which one it is; of several, the one for what no checkpoint decides.
    fn kind(&self) -> EngineKind;

    /// Engines whose checkpoints it restores.
    fn kinds(&self) -> Vec<EngineKind> {
        vec![self.kind()]
    }

    /// Whether it is the one that restores such a checkpoint.
    fn restores(&self, manifest: &Manifest) -> bool {
        manifest.engine == self.kind()
    }

    /// Which one runs a guest.
    fn kind_of(&self, _guest: GuestRef<'_>) -> EngineKind {
        self.kind()
    }

    /// The kernel of the host that its guests run on.
    fn host(&self) -> host::HostSource {
        host::HostSource::default()
    }

    /// Examines which parts of the engine are installed, which takes longer than reading facts.
    fn examine(&self, _: &mut HostFacts) {}

    /// Checks that guests of a checkpoint can have such a network.
    ///
    /// # Errors
    /// When they cannot, with the reason.
    fn can_network(&self, _checkpoint: &Checkpoint, wanted: &GuestNetwork) -> Result<(), Error> {
        if *wanted == GuestNetwork::default() {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "--net and --publish are for Linux guests of QEMU and KVM, and these are others, of {}",
            self.kind().name()
        )))
    }

    /// Whether guests of a checkpoint read a disk of their own, which then must be in their orders.
    ///
    /// # Errors
    /// When they should, and none of their devices, or more than one, could have it.
    fn reads_disk(&self, _checkpoint: &Checkpoint) -> Result<bool, Error> {
        Ok(false)
    }

    /// Whether the disk of a checkpoint's guest may be an overlay: a file that refers to another one.
    fn reads_overlays(&self, _checkpoint: &Checkpoint) -> bool {
        false
    }

    /// Whether the disk of a checkpoint's guest is a copy where files share no blocks and nobody has
    /// said how it is made.
    fn copies_disks(&self, _checkpoint: &Checkpoint) -> bool {
        false
    }

    /// Checks that guests of a checkpoint can be restored without a disk of their own.
    ///
    /// # Errors
    /// When they have a device that would read none, with the reason.
    fn can_do_without_disk(&self, _checkpoint: &Checkpoint) -> Result<(), Error> {
        Ok(())
    }

    /// Where the disk is that a guest has to itself and reads.
    ///
    /// # Errors
    /// When that cannot be told.
    fn own_disk(&self, _guest: GuestRef<'_>) -> Result<Option<PathBuf>, Error> {
        Ok(None)
    }

    /// The network device of this host that leads to a guest, if it has one to itself.
    ///
    /// # Errors
    /// When that cannot be told.
    fn tap(&self, _guest: GuestRef<'_>) -> Result<Option<Tap>, Error> {
        Ok(None)
    }

    /// The suspend of a guest that was interrupted after the guest's end. Suspending the guest to
    /// the same bundle again completes it.
    ///
    /// # Errors
    /// When that cannot be told.
    fn unsealed(&self, _guest: GuestRef<'_>) -> Result<Option<UnsealedSuspend>, Error> {
        Ok(None)
    }

    /// The bundle that the guest's own process is writing. That process goes on after the requester
    /// has gone, and ends when the guest is written.
    ///
    /// # Errors
    /// When that cannot be told.
    fn suspending(&self, _guest: GuestRef<'_>) -> Result<Option<BundlePath>, Error> {
        Ok(None)
    }

    /// Refuses a checkpoint that no guest of this engine can be restored from, before its memory is
    /// read.
    ///
    /// # Errors
    /// [`Error::Checkpoint`], with the reason.
    fn suits(&self, checkpoint: &Checkpoint) -> Result<(), Error>;

    /// Starts restoring from a checkpoint. `lock` is held by all that may still be restoring.
    ///
    /// # Errors
    /// When the engine or the checkpoint cannot be used.
    fn session(
        &self,
        checkpoint: &Checkpoint,
        run_dir: &Path,
        lock: &File,
        terms: &SessionTerms,
    ) -> Result<Box<dyn Session>, Error>;

    /// Notes for later guests that a memory file with this stamp has the sealed content, so that
    /// they need not read it to check.
    fn note_whole(&self, _run_dir: &Path, _: &FileStamp, _sha256: &str) {}

    /// Checks that the kernel can enforce private limits of a checkpoint's guests, and prepares for
    /// it.
    ///
    /// # Errors
    /// [`Error::LimitNotEnforceable`], with the reason.
    fn can_enforce_limits(&self, _checkpoint: &Checkpoint) -> Result<(), Error> {
        let why = "this engine's guests have no control group of their own";
        Err(Error::LimitNotEnforceable(why.to_owned()))
    }

    /// The process of a guest whose restore was interrupted before the guest was recorded, or that may
    /// have been recorded in another boot; `None` when there is no such guest. It is the guest's own by
    /// more than its number and its start, which another process may have after a reboot.
    ///
    /// # Errors
    /// When that cannot be told.
    fn find(&self, guest: GuestRef<'_>) -> Result<Option<Process>, Error>;

    /// Whether the run folder shows that a guest is this engine's. The first of several engines need
    /// not tell: it has what the others have not.
    fn has(&self, _guest: GuestRef<'_>) -> bool {
        false
    }

    /// The guest that a file or folder of this name in the run folder is of: one of the names that
    /// each guest has one of.
    fn guest_in(&self, name: &str) -> Option<GuestId>;

    /// Guests that have something in the run folder, whether or not they are recorded anywhere.
    ///
    /// # Errors
    /// When the folder cannot be read.
    fn seen(&self, run_dir: &Path) -> io::Result<Vec<GuestId>> {
        let mut guests = Vec::new();
        for entry in fs::read_dir(run_dir)? {
            let name = entry?.file_name();
            guests.extend(name.to_str().and_then(|name| self.guest_in(name)));
        }
        Ok(guests)
    }

    /// Guests' processes that work in the run folder, recorded or not, even if that folder has been
    /// removed; and guests whose processes have ended, but that still have other parts on the host.
    ///
    /// # Errors
    /// When processes cannot be looked at.
    fn strays(&self, run_dir: &Path) -> Result<Vec<Stray>, Error>;

    /// Removes all parts of a stray on the host; its process has ended.
    ///
    /// # Errors
    /// When that cannot be removed.
    fn forget_stray(&self, _guest: GuestRef<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Removes the guests in the run folder that a command was booting for a checkpoint when it was
    /// killed. Returns those of commands that go on: nobody else may touch these.
    ///
    /// # Errors
    /// When the folder cannot be read.
    fn sweep_templates(&self, _run_dir: &Path) -> Result<Vec<GuestId>, Error> {
        Ok(Vec::new())
    }

    /// A description of a guest without a record, from its process or the run folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    fn describe(
        &self,
        guest: GuestRef<'_>,
        process: Process,
    ) -> Result<Option<ProcessDescription>, Error>;

    /// Puts a request in words to a running guest.
    ///
    /// # Errors
    /// When the words make no request, or no answer comes.
    fn ask(
        &self,
        guest: GuestRef<'_>,
        words: &[String],
        limit: Limit<'_>,
    ) -> Result<Box<dyn Answer>, Error>;

    /// Begins a session with the agent in a running guest, beside all others that there are.
    ///
    /// # Errors
    /// When the engine's guests have none, or it does not answer within the limit.
    fn agent(&self, _guest: GuestRef<'_>, _limit: Limit<'_>) -> Result<Agent, Error> {
        Err(Error::Refused(format!(
            "guests of {} have no agent that runs programs",
            self.kind().name()
        )))
    }

    /// The file that has what the guest's console said.
    ///
    /// # Errors
    /// When the engine's guests have no console.
    fn console(&self, _guest: GuestRef<'_>) -> Result<PathBuf, Error> {
        Err(Error::NoConsole(self.kind()))
    }

    /// Connects to the console of a running guest: what is written is typed there. One at a time may
    /// have it, and has it until the connection is closed.
    ///
    /// # Errors
    /// When the engine's guests have no console, or another has it ([`Error::Busy`]).
    fn open_console(&self, _guest: GuestRef<'_>) -> Result<ConsoleLine, Error> {
        Err(Error::NoConsole(self.kind()))
    }

    /// Suspends a guest into a new bundle; the guest ends, or stays as [`Suspend::after`] says. When
    /// anything fails, it goes on.
    ///
    /// # Errors
    /// When the bundle cannot be written, the guest not be stopped, its disks' snapshots not be taken,
    /// or the engine cannot do what is wanted: a delta, or a guest that stays.
    fn suspend(&self, guest: GuestRef<'_>, suspend: Suspend<'_>) -> Result<Manifest, Error>;

    /// Whether [`Self::suspend`] can write a delta of a guest.
    fn writes_deltas(&self, _guest: GuestRef<'_>) -> bool {
        false
    }

    /// Begins to stop a guest: from a moment soon on, which its process's state shows, it does
    /// nothing until [`Self::unfreeze`] or [`Self::resume`]. `false` when its process is gone.
    ///
    /// # Errors
    /// When it may not be signalled.
    fn stop(&self, _guest: GuestRef<'_>, process: Process) -> io::Result<bool> {
        process.signal(Signal::SIGSTOP)
    }

    /// Guests that have lost the memory that they were restored from, and why: they would compute
    /// with data that they never wrote. Every list of guests asks for them, so this costs next to
    /// nothing when there are none.
    fn lost(&self) -> Vec<(GuestId, String)> {
        Vec::new()
    }

    /// Lets a stopped guest run on, and waits for nothing. `false` when its process is gone.
    ///
    /// # Errors
    /// When it may not be signalled.
    fn unfreeze(&self, _guest: GuestRef<'_>, process: Process) -> io::Result<bool> {
        process.signal(Signal::SIGCONT)
    }

    /// Lets a guest run on that may be stopped, and waits until it shows that it does.
    ///
    /// # Errors
    /// When it is gone, or shows nothing within the limit.
    fn resume(&self, guest: GuestRef<'_>, process: Process, limit: Limit<'_>) -> Result<(), Error>;

    /// Memory of a guest.
    ///
    /// # Errors
    /// When its process cannot be looked at.
    fn usage(&self, guest: GuestRef<'_>, process: Process) -> Result<Usage, Error>;

    /// Where a guest's memory is its own, in at most that many cells; `None` when that cannot be
    /// told from its process.
    ///
    /// # Errors
    /// When its process cannot be looked at.
    fn memory_map(
        &self,
        _guest: GuestRef<'_>,
        _process: Process,
        _cells: u32,
    ) -> Result<Option<MemoryMap>, Error> {
        Ok(None)
    }

    /// How a guest ended, in words, when that was recorded.
    ///
    /// # Errors
    /// When the record cannot be read.
    fn ended(&self, guest: GuestRef<'_>) -> Result<Option<String>, Error>;

    /// Removes a guest's files in the run folder. Comes after the end of its process, and also
    /// prevents a later record of that end.
    ///
    /// # Errors
    /// When the run folder cannot be written.
    fn forget(&self, guest: GuestRef<'_>) -> Result<(), Error>;
}
