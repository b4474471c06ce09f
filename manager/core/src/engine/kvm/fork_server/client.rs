//! Client side of the nursery: the manager starts it, sends orders and receives reports.

use std::{
    fs::File,
    io::{self, IoSlice, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{
            AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
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
        Error, GuestOrder, Identity, Outcome, Process, ProcessHandle, RestoredProcess,
        SessionTerms,
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

/// A nursery at work.
#[derive(Debug)]
pub(crate) struct Session {
    socket: OwnedFd,
    /// Tells of the nursery's end. The socket does not when a guest was stopped that has answered
    /// and not let go of it yet.
    handle: ProcessHandle,
    // It goes on as its guests' parent. There until this is dropped.
    nursery: Option<Child>,
    next: u64,
    /// How guests take their identity.
    identity_bytes: fn(&Identity) -> IdentityBytes,
}

impl Session {
    /// Starts a nursery for `checkpoint` and waits until it is ready.
    pub(crate) fn start(
        binary: &Path,
        checkpoint: &Checkpoint,
        run_dir: &Path,
        lock: &File,
        terms: &SessionTerms,
        guest: StartGuest,
        identity_bytes: fn(&Identity) -> IdentityBytes,
    ) -> Result<Self, Error> {
        let io = |action| {
            move |source: nix::Error| Error::Io {
                action,
                source: source.into(),
            }
        };
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(io("make a socket pair"))?;
        let nursery = spawn(binary, &theirs)
            .map_err(|e| Error::Nursery(format!("{}: {e}", binary.display())))?;
        drop(theirs);
        let (nursery, handle) = hold(nursery, lock)?;

        let manifest = checkpoint.manifest();
        let start = Start {
            guest,
            layers: Plan::of(checkpoint),
            working_set: manifest.working_set.clone(),
            park_after: terms.park_after,
            enforces_limits: terms.enforces_limits,
            spares: SPARES,
        };
        let start = serde_json::to_vec(&start).expect("the orders are plain data");
        let start = memory_file(&start)?;
        let kern = memory_file(checkpoint.kern())?;
        let run_dir = open(run_dir, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(io("open the run folder"))?;
        let mut fds = vec![
            start.as_raw_fd(),
            kern.as_raw_fd(),
            run_dir.as_raw_fd(),
            lock.as_raw_fd(),
        ];
        let layers = checkpoint.layers();
        fds.extend(layers.iter().map(|layer| layer.memory_file().as_raw_fd()));
        sendmsg::<()>(
            ours.as_raw_fd(),
            &[IoSlice::new(&[0])],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(|e| Error::Nursery(format!("cannot send it its descriptors: {e}")))?;

        let session = Self {
            socket: ours,
            handle,
            nursery: Some(nursery),
            next: 0,
            identity_bytes,
        };
        session.wait_until_ready(checkpoint)?;
        Ok(session)
    }

    /// Waits until the nursery takes orders.
    fn wait_until_ready(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        let Some(report) = self.receive(READY_TIMEOUT, None)? else {
            let seconds = READY_TIMEOUT.as_secs();
            return Err(Error::Nursery(format!(
                "it was not ready within {seconds} s"
            )));
        };
        let text = String::from(&report.text);
        let reason = match report.kind {
            REPORT_READY => return Ok(()),
            REPORT_UNUSABLE_KERN => format!("{}: {text}", checkpoint.path().kern().display()),
            _ => text,
        };
        Err(Error::Checkpoint {
            checkpoint: checkpoint.path().to_string(),
            reason,
        })
    }

    /// Waits as [`Session::wait`](crate::engine::Session::wait) does, and also ends the wait when
    /// `other` can be read.
    pub(crate) fn wait_beside(
        &mut self,
        other: BorrowedFd<'_>,
        timeout: Duration,
    ) -> Result<Option<Outcome>, Error> {
        Ok(self.receive(timeout, Some(other))?.map(outcome))
    }

    fn receive(
        &self,
        timeout: Duration,
        other: Option<BorrowedFd<'_>>,
    ) -> Result<Option<Report>, Error> {
        let mut fds: Vec<_> = [self.socket.as_fd(), self.handle.as_fd()]
            .into_iter()
            .chain(other)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(
            &mut fds,
            PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(0) | Err(nix::Error::EINTR) => return Ok(None),
            Ok(_) if fds[0].any() == Some(false) => {
                return match fds[1].any() {
                    Some(false) => Ok(None),
                    // Messages from before the nursery's end were still to be read.
                    _ => Err(self.broken()),
                };
            }
            Ok(_) => {}
            Err(e) => {
                return Err(Error::Io {
                    action: "wait for the nursery",
                    source: e.into(),
                });
            }
        }
        let mut report = Report::new_zeroed();
        match receive_message(self.socket.as_raw_fd(), &mut report, MsgFlags::empty()) {
            Ok(true) => Ok(Some(report)),
            Ok(false) => Err(self.broken()),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Err(self.broken()),
            Err(source) => Err(Error::Io {
                action: "hear from the nursery",
                source,
            }),
        }
    }

    fn broken(&self) -> Error {
        let pid = self.nursery.as_ref().map_or(0, Child::id);
        Error::Nursery(format!("process {pid} ended unasked"))
    }
}

impl crate::engine::Session for Session {
    fn start(&mut self, order: &GuestOrder) -> Result<(), Error> {
        let wire = WireOrder {
            seq: self.next,
            id: order.id.0,
            memory_limit: order.memory_limit.map_or(0, |limit| limit.0),
            process_name: order.identity.name.as_str().into(),
            identity: (self.identity_bytes)(&order.identity),
        };
        send_message(self.socket.as_raw_fd(), &wire).map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.broken(),
            _ => Error::Io {
                action: "order a guest from the nursery",
                source,
            },
        })?;
        self.next += 1;
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Option<Outcome>, Error> {
        Ok(self.receive(timeout, None)?.map(outcome))
    }

    fn abort(&mut self) {
        if let Some(nursery) = &mut self.nursery {
            let _ = nursery.kill();
            let _ = nursery.wait();
        }
    }
}

/// What a report says became of an order.
fn outcome(report: Report) -> Outcome {
    let result = match report.kind {
        REPORT_RESTORED => Ok(RestoredProcess {
            pid: report.pid,
            nonce: report.nonce,
            counter: report.counter,
        }),
        _ => Err(String::from(&report.text)),
    };
    Outcome {
        order: report.seq,
        result,
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(mut nursery) = self.nursery.take() else {
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
