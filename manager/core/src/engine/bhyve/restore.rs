//! Restore of one guest from a checkpoint, step by step. Each step is noted in the guest's folder
//! before it is taken, so that [`removal::remove`] finds what a crash left after any of them.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::unistd::setsid;

use super::{
    agent,
    config::{BackEnds, BhyveConfig, DeriveError},
    folder::{Folder, OwnDisk, Record},
    folder_lock::{self, FolderLock},
    framed,
    host::{self, Host},
    network,
    rctl::Rctl,
    ready::Sign,
    removal,
    serial::{self, Line, Wait},
};
use crate::{
    agent::{StepLimits, prepare_clone},
    checkpoint::{AgentProtocol, BhyveGuest, Readiness},
    engine::{
        GuestOrder, Process, RestoredProcess, agent_ask, agent_session::Attempts,
        restore_threads::Restorer,
    },
    guest_id::GuestId,
    owner_only,
    units::Bytes,
};

/// How long a guest may take from its process's start to its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(50);
/// How long a disk's device may take to appear.
const DEVICE_PATIENCE: Duration = Duration::from_secs(10);
/// How often a guest that is waited for is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// Has bhyve's allocator keep little for itself (jemalloc(3)): docs/freebsd-footprint.md.
const MALLOC: &str = "narenas:1,tcache:false,dirty_decay_ms:0,muzzy_decay_ms:0";

/// Writes its own process id, limits itself, then becomes bhyve. A bhyve that aborts (for example
/// without iasl(8)) leaves no core file among the guests' folders. Its standard input is the
/// restore lock, which is thus held until the process id can be found: no command looks for the
/// process before. The arguments before `--` are rules of rctl(8) without their subject.
const BECOME: &str = r#"umask 077; ulimit -c 0; echo $$ >"$1" && shift || exit
while [ "$1" != -- ]; do rctl -a "process:$$:$1" </dev/null || exit; shift; done
shift
exec "$@" </dev/null"#;

/// Why a guest was not restored.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot copy lpc.bootvars {path}: {source}")]
    Variables { path: String, source: io::Error },
    #[error("cannot {action}: {source}")]
    Io {
        action: &'static str,
        source: io::Error,
    },
    #[error(transparent)]
    Host(#[from] host::Error),
    #[error(transparent)]
    Derive(#[from] DeriveError),
    #[error("bhyve ended ({status}){}", .said.as_ref().map(|s| format!(": {s}")).unwrap_or_default())]
    Ended {
        status: ExitStatus,
        said: Option<String>,
    },
    #[error("it was not ready within {} s: {waited_for}", ANSWER_TIMEOUT.as_secs())]
    NotReady { waited_for: String },
    #[error("its agent did not take its identity: {0}")]
    Agent(String),
    #[error("the disk that was made for {device} is not there: {}", .path.display())]
    NoDisk { device: String, path: PathBuf },
    #[error("the restore was called off")]
    CalledOff,
    #[error("another command has removed it")]
    Removed,
    #[error("its virtual machine {0} does not go: `bhyvectl --destroy --vm={0}` should remove it")]
    MachineStays(String),
    #[error(transparent)]
    Locked(#[from] folder_lock::Error),
}

pub(super) fn io(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

/// What all guests of a session have in common.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) host: Host,
    pub(super) run_dir: PathBuf,
    /// The memory file, absolute.
    pub(super) ckp: PathBuf,
    /// The bundle, `DIR/NAME`.
    pub(super) bundle: String,
    pub(super) memory: Bytes,
    pub(super) guest: BhyveGuest,
    pub(super) config: BhyveConfig,
    /// The device whose disk was sealed with the checkpoint.
    pub(super) sealed_disk: Option<String>,
    /// Limits of each guest.
    pub(super) rctl: Rctl,
    /// Held by all that may still be restoring.
    pub(super) lock: File,
    pub(super) called_off: AtomicBool,
}

impl Restorer for Source {
    fn restore(&self, order: &GuestOrder) -> Result<(RestoredProcess, Child), String> {
        restore(self, order).map_err(|e| e.to_string())
    }

    fn call_off(&self) {
        self.called_off.store(true, Ordering::Relaxed);
    }
}

fn restore(source: &Source, order: &GuestOrder) -> Result<(RestoredProcess, Child), Error> {
    let folder = Folder::of(&source.run_dir, &order.id);
    let started = prepare(source, order, &folder)
        .and_then(|record| Ok((start(source, &folder, &record)?, record)));
    let result = started.and_then(|(mut child, record)| {
        match bring_up(source, order, &folder, &record, &mut child) {
            Ok(restored) => Ok((restored, child)),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(e)
            }
        }
    });
    if result.is_err() {
        // The error is reported; a later command finds by the folder what cannot be removed now.
        let _ = removal::remove(&source.host, &source.run_dir, &order.id);
    }
    result
}

/// Everything from the start of bhyve to the guest's readiness.
fn bring_up(
    source: &Source,
    order: &GuestOrder,
    folder: &Folder,
    record: &Record,
    child: &mut Child,
) -> Result<RestoredProcess, Error> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut guest = RestoringGuest {
        source,
        id: &order.id,
        folder,
        child,
        deadline,
    };
    let (nonce, counter) = match &record.agent {
        Some(agent) => {
            guest.await_bhyve()?;
            match source.guest.agent_protocol {
                AgentProtocol::Lines => guest.introduce(agent, order)?,
                AgentProtocol::Frames => guest.prepare(agent, order)?,
            }
        }
        None => (0, 0),
    };
    if !record.taps.is_empty() {
        let lock = FolderLock::take(folder)?.ok_or(Error::Removed)?;
        for (number, bridge) in record.taps.iter().zip(source.config.bridges()) {
            network::connect(&lock, &source.host, *number, bridge.as_deref())?;
        }
    }
    guest.await_ready(&order.identity.name)?;
    let process = Process::with_pid(guest.child.id().cast_signed());
    let process = process.map_err(io("look at the guest's process"))?;
    let process = process.filter(Process::may_live);
    let process = process.ok_or_else(|| guest.ended())?;
    folder.set_ready(process).map_err(io("record the guest"))?;
    Ok(RestoredProcess {
        pid: process.pid,
        nonce,
        counter,
        landlock: None,
    })
}

/// Everything that must be there before bhyve is.
fn prepare(source: &Source, order: &GuestOrder, folder: &Folder) -> Result<Record, Error> {
    let Source { host, guest, .. } = source;
    folder.create().map_err(io("make the guest's folder"))?;
    let lock = FolderLock::take(folder)?.ok_or(Error::Removed)?;
    let end = |com: u8, side: char| null_modem(&order.id, com, side);
    let mut record = Record {
        name: order.identity.name.clone(),
        vm: vm_name(&order.id),
        checkpoint: source.bundle.clone(),
        memory: source.memory,
        guest: guest.clone(),
        taps: Vec::new(),
        agent: guest.agent.map(|com| end(com, 'B')),
        disk: None,
    };
    let note = |record: &Record| folder.set_record(record).map_err(io("record the guest"));
    note(&record)?;
    let (cards, _) = source.config.needs();
    let mut number = network::first_number(&order.id);
    for _ in 0..cards {
        record.taps.push(number);
        note(&record)?;
        while !network::create(&lock, host, number, &order.id)? {
            number = network::next_number(number);
            record.taps.pop();
            record.taps.push(number);
            note(&record)?;
        }
        number = network::next_number(number);
    }
    if let Some(location) = &order.disk {
        record.disk = Some(own_disk(source, location)?);
        note(&record)?;
    }
    let bootvars = match &source.config.bootvars {
        Some(from) => Some(copy_variables(source, from, folder)?),
        None => None,
    };
    let own = record.disk.as_ref();
    let back_ends = BackEnds {
        bootvars,
        disk: own.map(|disk| (disk.device.clone(), disk.path.clone())),
        vm: record.vm.clone(),
        taps: record.taps.iter().copied().map(network::tap_name).collect(),
        consoles: source
            .config
            .com
            .keys()
            .map(|com| end(com.number(), 'A'))
            .collect(),
    };
    let config = source.config.derive(&order.identity, &back_ends)?;
    folder
        .write("conf", config.render().as_bytes())
        .map_err(io("write the guest's configuration"))?;
    if config.bootrom.is_none() {
        // bhyve makes a virtual machine only for a boot ROM (do_open() of bhyverun.c).
        lock.run(
            host,
            "bhyvectl",
            &["--create", &format!("--vm={}", record.vm)],
        )?;
    }
    Ok(record)
}

/// Copies the firmware's variables into the guest's folder: the guest writes to them, and they go
/// with it. Returns where they are.
fn copy_variables(source: &Source, from: &str, folder: &Folder) -> Result<String, Error> {
    let to = folder.file("uefi-vars");
    let cannot = |source| Error::Variables {
        path: from.to_owned(),
        source,
    };
    let mut original = File::open(source.host.file(Path::new(from))).map_err(cannot)?;
    let mut copy = owner_only::options()
        .write(true)
        .create_new(true)
        .open(&to)
        .map_err(cannot)?;
    io::copy(&mut original, &mut copy).map_err(cannot)?;
    to.into_os_string()
        .into_string()
        .map_err(|path| cannot(io::Error::other(format!("{} is not UTF-8", path.display()))))
}

/// The back end that is a guest's own disk, once it is there. A folder is a ZFS file system, and
/// has in it a file that is called as the checkpoint's disk is.
fn own_disk(source: &Source, location: &Path) -> Result<OwnDisk, Error> {
    let device = source.config.own_disk(source.sealed_disk.as_deref())?;
    let mut path = location.to_owned();
    if source.host.file(location).is_dir() {
        let was = source.config.disk_path(&device).unwrap_or_default();
        path.push(Path::new(was).file_name().unwrap_or_default());
    }
    let (begin, file) = (Instant::now(), source.host.file(&path));
    // A volume's device appears a moment after the volume (zvol_create_minors() of OpenZFS).
    while !file.exists() && begin.elapsed() < DEVICE_PATIENCE {
        thread::sleep(RETRY);
    }
    match path.to_str() {
        Some(text) if file.exists() => Ok(OwnDisk {
            device,
            path: text.to_owned(),
        }),
        _ => Err(Error::NoDisk { device, path }),
    }
}

/// One side of the null modem between a guest's serial port, at `A`, and the host, at `B`.
fn null_modem(id: &GuestId, com: u8, side: char) -> String {
    format!("/dev/nmdm{id}c{com}{side}")
}

/// What names of guests' virtual machines begin with; the guest's id follows.
pub(super) const VM_PREFIX: &str = "brood-";

/// Where a guest's bhyve takes requests for checkpoints (init_checkpoint_thread() of snapshot.c).
pub(super) fn checkpoint_socket(id: &GuestId) -> String {
    format!("/var/run/bhyve/{}", vm_name(id))
}

/// Name of a guest's virtual machine, which no other state folder on this host uses.
pub(super) fn vm_name(id: &GuestId) -> String {
    format!("{VM_PREFIX}{id}")
}

fn start(source: &Source, folder: &Folder, record: &Record) -> Result<Child, Error> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.file("log"))
        .map_err(io("make the guest's log"))?;
    let both = log.try_clone().map_err(io("make the guest's log"))?;
    let lock = source.lock.try_clone().map_err(io("hand on the lock"))?;
    let mut command = source.host.command("/bin/sh");
    command
        .args(["-c", BECOME, "sh"])
        .arg(folder.file("pid"))
        .args(source.rctl.rules())
        .args(["--", "bhyve", "-k"])
        .arg(folder.file("conf"))
        .arg("-r")
        .arg(&source.ckp)
        .args(["-o", "snapshot.vnode_restore=true", "-H", "-A", "-P"])
        .arg(&record.vm)
        .env("MALLOC_CONF", MALLOC)
        .current_dir(&source.run_dir)
        .stdin(Stdio::from(lock))
        .stdout(Stdio::from(log))
        .stderr(Stdio::from(both));
    // A session of its own, not just a process group: a group becomes orphaned when this process
    // ends, and the kernel sends an orphaned group that has a stopped member SIGHUP and SIGCONT
    // (POSIX, _exit(); orphanpg() of kern_proc.c). A session's leader has no group to lose, so
    // guests that are stopped outlive whoever restored them.
    // SAFETY: setsid(2) is async-signal-safe, and the closure allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| setsid().map(drop).map_err(io::Error::from));
    }
    command.spawn().map_err(io("start bhyve"))
}

/// A guest on its way.
struct RestoringGuest<'a> {
    source: &'a Source,
    id: &'a GuestId,
    folder: &'a Folder,
    child: &'a mut Child,
    deadline: Instant,
}

impl RestoringGuest<'_> {
    /// How its process ended, as an error.
    fn ended(&mut self) -> Error {
        match self.child.wait() {
            Ok(status) => Error::Ended {
                status,
                said: self.folder.last_words(),
            },
            Err(source) => Error::Io {
                action: "see how bhyve ended",
                source,
            },
        }
    }

    /// Why a wait was given up.
    fn why(&mut self, what: &str) -> Error {
        self.because(Error::NotReady {
            waited_for: what.to_owned(),
        })
    }

    /// Waits on a serial line, as long as the guest may still answer.
    fn on_line<T>(
        &mut self,
        what: &str,
        act: impl FnOnce(Wait<'_>) -> Result<T, serial::Error>,
    ) -> Result<T, Error> {
        let process = Process::with_pid(self.child.id().cast_signed());
        let process = process.map_err(io("look at the guest's process"))?;
        let called_off = &self.source.called_off;
        let still = || !called_off.load(Ordering::Relaxed) && process.is_some_and(|p| p.may_live());
        let wait = Wait {
            until: self.deadline,
            still: &still,
        };
        match act(wait) {
            Ok(value) => Ok(value),
            Err(serial::Error::Timeout | serial::Error::GivenUp) => Err(self.why(what)),
            Err(serial::Error::Refused(why)) => Err(Error::Agent(why)),
            Err(serial::Error::Io(source)) => Err(Error::Io {
                action: "talk to the guest",
                source,
            }),
        }
    }

    /// Waits until bhyve has opened its consoles: nmdm(4) drops what is written before the other
    /// side is open. bhyve opens them before it makes its checkpoint socket, and a virtual machine's
    /// name is never used twice.
    fn await_bhyve(&mut self) -> Result<(), Error> {
        let socket = self.source.host.path(&checkpoint_socket(self.id));
        self.again_and_again("bhyve's checkpoint socket", |_| socket.exists())
    }

    /// Has `brood-agent` make the guest a clone of its own; returns its nonce and counter.
    fn prepare(&mut self, agent: &str, order: &GuestOrder) -> Result<(u64, u64), Error> {
        let path = self.source.host.path(agent);
        let process = Process::with_pid(self.child.id().cast_signed());
        let process = process.map_err(io("look at the guest's process"))?;
        let process = process.ok_or_else(|| self.ended())?;
        let source = self.source;
        let wanted = || !source.called_off.load(Ordering::Relaxed) && process.may_live();
        let mut attempts = Attempts::new();
        let agent = loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !wanted() {
                return Err(self.why("its agent's answer"));
            }
            match framed::attempt(&path, process, left, &mut attempts, &wanted) {
                Ok(Some(agent)) => break agent,
                Ok(None) => {}
                Err(agent_ask::Error::Lost(e) | agent_ask::Error::Other(e)) => {
                    return Err(self.because(Error::Agent(e.to_string())));
                }
            }
        };
        let (cards, _) = self.source.config.needs();
        let identity = agent_ask::clone_identity(&order.identity, cards > 0);
        let prepared = prepare_clone(&agent, &identity, None, StepLimits::default());
        let ready = match prepared {
            Ok(report) => report.ready,
            Err(e) => return Err(self.because(Error::Agent(e.to_string()))),
        };
        Ok(ready.map_or((0, 0), |ready| {
            (agent_ask::short(&ready.nonce), ready.counter)
        }))
    }

    /// The reason behind an error: that the restore was called off, or that bhyve has ended.
    fn because(&mut self, error: Error) -> Error {
        if self.source.called_off.load(Ordering::Relaxed) {
            Error::CalledOff
        } else if self.child.try_wait().ok().flatten().is_some() {
            self.ended()
        } else {
            error
        }
    }

    /// Tells the guest who it is now; returns its nonce and counter.
    fn introduce(&mut self, agent: &str, order: &GuestOrder) -> Result<(u64, u64), Error> {
        let path = self.source.host.path(agent);
        let request = agent::identity(&order.identity);
        let answer = self.on_line("its agent's answer", |wait| {
            Line::open_when_there(&path, wait)?.insist(&request, wait)
        })?;
        Ok(agent::counters(&answer))
    }

    /// Waits for what the checkpoint says a guest does when it is ready.
    fn await_ready(&mut self, name: &str) -> Result<(), Error> {
        match &self.source.guest.readiness {
            Readiness::Agent => Ok(()),
            Readiness::Console { com, words } => {
                let path = self.source.host.path(&null_modem(self.id, *com, 'B'));
                self.on_line(&format!("{words:?} on com{com}"), |wait| {
                    Line::open_when_there(&path, wait)?.expect(words, wait)
                })
            }
            readiness @ (Readiness::Tcp { .. } | Readiness::Command { .. }) => {
                let Some(sign) = Sign::of(readiness, name) else {
                    return Ok(());
                };
                let host = &self.source.host;
                self.again_and_again(&sign.to_string(), |left| sign.is_seen(host, left))
            }
        }
    }

    fn again_and_again(
        &mut self,
        what: &str,
        mut ready: impl FnMut(Duration) -> bool,
    ) -> Result<(), Error> {
        loop {
            if ready(self.deadline.saturating_duration_since(Instant::now())) {
                return Ok(());
            }
            let ended = self.child.try_wait().ok().flatten().is_some();
            let called_off = self.source.called_off.load(Ordering::Relaxed);
            if ended || called_off || Instant::now() >= self.deadline {
                return Err(self.why(what));
            }
            thread::sleep(RETRY);
        }
    }
}
