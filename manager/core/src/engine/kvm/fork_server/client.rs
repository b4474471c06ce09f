//! Client side of a nursery: the manager starts it, sends orders and receives reports.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, IoSlice, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{
            AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, sendmsg,
            shutdown, socketpair,
        },
        stat::Mode,
    },
};
use zerocopy::FromZeros;

use crate::engine::kvm::{
    fork_server::descriptors::SOCKET,
    vm::layers::Plan,
    wire::{
        IdentityBytes, Order as WireOrder, REPORT_READY, REPORT_RESTORED, REPORT_UNUSABLE_KERN,
        Report, Start, StartGuest, receive_message, send_message,
    },
};
use crate::{
    checkpoint::Checkpoint,
    engine::{
        Error, Identity, Outcome, Process, ProcessHandle, RestoredProcess, SessionTerms,
        restore_lock::{self, LockOwner},
    },
};

/// The hidden command by which the binary becomes a nursery.
pub const NURSERY_COMMAND: &str = "nursery";
/// Guest processes held ready for orders: enough for the next to be there when one is taken.
const SPARES: usize = 3;
/// Stack of a thread that does nothing but wait, in bytes.
const WAITER_STACK: usize = 64 << 10;
/// How long a nursery may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the children of a killed nursery may take to end. A guest that was stopped when it had
/// answered keeps the socket open, and does not die.
const CHILDREN_PATIENCE: Duration = Duration::from_secs(2);

/// A nursery at work.
#[derive(Debug)]
pub(super) struct Nursery {
    pub(super) socket: OwnedFd,
    /// Tells of the nursery's end. The socket does not when a guest was stopped that has answered
    /// and not let go of it yet.
    pub(super) handle: ProcessHandle,
    // It goes on as its guests' parent. There until this is dropped.
    process: Option<Child>,
    /// Whether it has said that it takes orders.
    pub(super) is_ready: bool,
    /// Whether it may be given orders: not after [`Nursery::relieve`].
    pub(super) takes_orders: bool,
    /// How many orders it was given.
    pub(super) given: u32,
    /// Those of them without an outcome.
    pub(super) under_way: HashSet<u64>,
}

/// What a nursery is to know of the guests beside their checkpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind<'a> {
    pub(crate) guest: StartGuest,
    /// Files that all of them read.
    pub(crate) files: &'a [File],
    /// How guests take their identity.
    pub(crate) identity_bytes: fn(&Identity) -> IdentityBytes,
}

impl Nursery {
    /// Starts a nursery. It can be given orders at once, and takes them when it is ready.
    pub(super) fn start(parts: &NurseryParts) -> Result<Self, Error> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(|e| Error::Io {
            action: "make a socket pair",
            source: e.into(),
        })?;
        let nursery = spawn(&parts.binary, &theirs)
            .map_err(|e| Error::Nursery(format!("{}: {e}", parts.binary.display())))?;
        drop(theirs);
        let (process, handle) = hold(nursery, &parts.lock)?;
        let nursery = Self {
            socket: ours,
            handle,
            process: Some(process),
            is_ready: false,
            takes_orders: true,
            given: 0,
            under_way: HashSet::new(),
        };
        let fds = parts.descriptors();
        sendmsg::<()>(
            nursery.socket.as_raw_fd(),
            &[IoSlice::new(&[0])],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(|e| Error::Nursery(format!("cannot send it its descriptors: {e}")))?;
        Ok(nursery)
    }

    /// Waits until the nursery takes orders.
    pub(super) fn wait_until_ready(&mut self, parts: &NurseryParts) -> Result<(), Error> {
        let mut fds =
            [self.socket.as_fd(), self.handle.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let begin = Instant::now();
        loop {
            let left = READY_TIMEOUT.saturating_sub(begin.elapsed());
            match poll(
                &mut fds,
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
            ) {
                Err(nix::Error::EINTR) => {}
                Ok(0) => {
                    let seconds = READY_TIMEOUT.as_secs();
                    return Err(Error::Nursery(format!(
                        "it was not ready within {seconds} s"
                    )));
                }
                Ok(_) => break,
                Err(e) => return Err(not_heard(e.into())),
            }
        }
        let Ok(Some(report)) = self.hear() else {
            return Err(self.broken());
        };
        if report.kind == REPORT_READY {
            self.is_ready = true;
            return Ok(());
        }
        let text = String::from(&report.text);
        let reason = match report.kind {
            REPORT_UNUSABLE_KERN => format!("{}: {text}", parts.kern_path.display()),
            _ => text,
        };
        Err(Error::Checkpoint {
            checkpoint: parts.checkpoint.clone(),
            reason,
        })
    }

    /// The next report; `None` when the nursery has ended.
    fn hear(&self) -> io::Result<Option<Report>> {
        let mut report = Report::new_zeroed();
        let socket = self.socket.as_raw_fd();
        match receive_message(socket, &mut report, MsgFlags::MSG_DONTWAIT) {
            Ok(true) => Ok(Some(report)),
            Ok(false) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Gives it an order.
    pub(super) fn order(&mut self, order: &WireOrder) -> Result<(), Error> {
        send_message(self.socket.as_raw_fd(), order).map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.broken(),
            _ => Error::Io {
                action: "order a guest from the nursery",
                source,
            },
        })?;
        self.given += 1;
        self.under_way.insert(order.seq);
        Ok(())
    }

    /// Takes what there is to read of its socket.
    pub(super) fn take_report(&mut self) -> Result<Heard, Error> {
        let report = match self.hear() {
            Ok(Some(report)) => report,
            Ok(None) => return Ok(Heard::End),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::Nothing),
            Err(e) => return Err(not_heard(e)),
        };
        if report.kind == REPORT_READY {
            self.is_ready = true;
            return Ok(Heard::Nothing);
        }
        if !self.is_ready {
            return Err(Error::Nursery(String::from(&report.text)));
        }
        self.under_way.remove(&report.seq);
        self.dismiss_when_done();
        Ok(Heard::Outcome(outcome(report)))
    }

    /// Gives it no more orders. When those that it has are done, it lets its spares go and stays for
    /// its guests.
    pub(super) fn relieve(&mut self) {
        self.takes_orders = false;
        self.dismiss_when_done();
    }

    fn dismiss_when_done(&self) {
        if self.takes_orders || !self.under_way.is_empty() {
            return;
        }
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
    }

    /// Ends it with all guests that have not answered.
    pub(super) fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
        self.wait_for_children();
    }

    /// Waits until those of its children have ended that die with it. Each has its signal by now,
    /// and still ends the call that it is in: one that names its control socket would leave that
    /// behind whoever removes what is left. The other end of the socket is theirs, too.
    fn wait_for_children(&self) {
        let begin = Instant::now();
        loop {
            let left = CHILDREN_PATIENCE.saturating_sub(begin.elapsed());
            let mut closed = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut closed, timeout) {
                Err(nix::Error::EINTR) => {}
                _ => return,
            }
        }
    }

    pub(super) fn broken(&self) -> Error {
        let pid = self.process.as_ref().map_or(0, Child::id);
        Error::Nursery(format!("process {pid} ended unasked"))
    }
}

/// What a nursery's socket had to say.
pub(super) enum Heard {
    Outcome(Outcome),
    /// Nothing about an order.
    Nothing,
    /// The nursery has ended.
    End,
}

fn not_heard(source: io::Error) -> Error {
    Error::Io {
        action: "hear from the nursery",
        source,
    }
}

/// What each nursery of a session is started with.
#[derive(Debug)]
pub(super) struct NurseryParts {
    binary: PathBuf,
    /// The checkpoint and its `.kern`, for people.
    checkpoint: String,
    kern_path: PathBuf,
    start: File,
    kern: File,
    run_dir: OwnedFd,
    lock: File,
    /// What all guests of this kind read.
    files: Vec<File>,
    layers: Vec<File>,
}

impl NurseryParts {
    pub(super) fn new(
        binary: &Path,
        checkpoint: &Checkpoint,
        run_dir: &Path,
        lock: &File,
        terms: &SessionTerms,
        kind: &Kind<'_>,
    ) -> Result<Self, Error> {
        let again = |file: &File| {
            file.try_clone().map_err(|source| Error::Io {
                action: "keep a file open",
                source,
            })
        };
        let start = Start {
            guest: kind.guest,
            layers: Plan::of(checkpoint),
            working_set: checkpoint.manifest().working_set.clone(),
            park_after: terms.park_after,
            enforces_limits: terms.enforces_limits,
            spares: SPARES,
        };
        let start = serde_json::to_vec(&start).expect("the orders are plain data");
        let run_dir = open(run_dir, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        let layers = checkpoint.layers();
        Ok(Self {
            binary: binary.to_owned(),
            checkpoint: checkpoint.path().to_string(),
            kern_path: checkpoint.path().kern(),
            start: memory_file(&start)?,
            kern: memory_file(checkpoint.kern())?,
            run_dir: run_dir.map_err(|e| Error::Io {
                action: "open the run folder",
                source: e.into(),
            })?,
            lock: again(lock)?,
            files: kind.files.iter().map(again).collect::<Result<_, _>>()?,
            layers: layers
                .iter()
                .map(|layer| again(layer.memory_file()))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Those that a nursery is sent, in their order.
    fn descriptors(&self) -> Vec<RawFd> {
        let mut fds = vec![
            self.start.as_raw_fd(),
            self.kern.as_raw_fd(),
            self.run_dir.as_raw_fd(),
            self.lock.as_raw_fd(),
        ];
        fds.extend(self.files.iter().map(AsRawFd::as_raw_fd));
        fds.extend(self.layers.iter().map(AsRawFd::as_raw_fd));
        fds
    }
}

/// What a report says became of an order.
fn outcome(report: Report) -> Outcome {
    let result = match report.kind {
        REPORT_RESTORED => Ok(RestoredProcess {
            pid: report.pid,
            nonce: report.nonce,
            counter: report.counter,
            landlock: Some(report.landlock),
        }),
        _ => Err(String::from(&report.text)),
    };
    Outcome {
        order: report.seq,
        result,
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        let Some(mut nursery) = self.process.take() else {
            return;
        };
        // A nursery that goes on is waited for on the side: it outlives this session, and a
        // process that lives long must not collect the ended ones. A thread that cannot be
        // started costs no more than that.
        if let Ok(None) = nursery.try_wait() {
            let _ = thread::Builder::new()
                .name("nursery's end".to_owned())
                .stack_size(WAITER_STACK)
                .spawn(move || nursery.wait());
        }
    }
}

fn spawn(binary: &Path, socket: &OwnedFd) -> io::Result<Child> {
    let socket = socket.as_raw_fd();
    let mut command = Command::new(binary);
    command
        .arg(NURSERY_COMMAND)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let place = move || -> io::Result<()> {
        if socket == SOCKET {
            // SAFETY: the descriptor is open: the parent holds it until the child has started.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket) };
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        } else {
            // SAFETY: dup2 touches no memory. The child has nothing else at this number yet that
            // it will need: all it inherits is close-on-exec.
            if unsafe { libc::dup2(socket, SOCKET as RawFd) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are made (fcntl, dup2).
    unsafe { command.pre_exec(place) };
    command.spawn()
}

/// Takes hold of a nursery that was just started, and notes it in the file of the restore's lock;
/// ends it when that cannot be done.
fn hold(mut nursery: Child, lock: &File) -> Result<(Child, ProcessHandle), Error> {
    // No wait(2) has collected it, so the process with this id is it, even if it is dead.
    let process = Process::with_pid(nursery.id().cast_signed());
    let held = process.and_then(|process| match process {
        Some(process) => {
            restore_lock::sign(lock, LockOwner::Nursery(process))?;
            process.open()
        }
        None => Ok(None),
    });
    if let Ok(Some(handle)) = held {
        return Ok((nursery, handle));
    }
    let _ = nursery.kill();
    let _ = nursery.wait();
    Err(match held {
        Ok(_) => Error::Nursery("it ended at once".to_owned()),
        Err(source) => Error::Io {
            action: "take hold of the nursery",
            source,
        },
    })
}

fn memory_file(bytes: &[u8]) -> Result<File, Error> {
    let io = |source| Error::Io {
        action: "make a memory file",
        source,
    };
    let mut file =
        File::from(memfd_create(c"brood-start", MFdFlags::MFD_CLOEXEC).map_err(|e| io(e.into()))?);
    file.write_all(bytes).map_err(io)?;
    Ok(file)
}
