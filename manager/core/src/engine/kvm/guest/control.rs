//! Client of a guest's control socket: asks, suspends and interrupts the guest's process from
//! outside.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Seek},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{OFlag, open},
    poll::{PollFd, PollFlags, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, kill},
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
            UnixAddr, connect, getsockopt, recvmsg, sendmsg, setsockopt, socket, sockopt,
        },
        stat::Mode,
        time::{TimeVal, TimeValLike},
    },
    unistd::Pid,
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::engine::kvm::{
    exit_record,
    wire::{
        AnswerBytes, CALL_ASK, CALL_COMMIT, CALL_HAND_OUT, CALL_SNAPSHOT, CALL_SUSPEND,
        CALL_SUSPEND_DELTA, Call, REPLY_BUSY, REPLY_DEAD, REPLY_DONE, REPLY_NO_ROOM, Reply,
        RequestBytes, receive_message, send_message,
    },
};
use crate::{
    checkpoint::{PageList, Progress, Watch},
    engine::{Error, Limit, Process, process::wait_for_end},
    guest_id::GuestId,
    units::Bytes,
};

/// Most bytes of state that a guest may send.
const STATE_MAX: u64 = 4 << 20;
/// Most bytes of a list of its pages: all of 64 GiB, listed one by one.
const LIST_MAX: u64 = 256 << 20;

/// How long the end of a guest is waited for that has said that it dies. Its nursery may be slow to
/// record why.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Interval at which a wait for a guest's memory, or for its answer, checks whether it was
/// cancelled, in milliseconds.
const WATCH_MS: u8 = 50;

/// A conversation with one guest's process.
#[derive(Debug)]
pub(crate) struct Conversation<'a> {
    socket: OwnedFd,
    limit: Limit<'a>,
}

impl<'a> Conversation<'a> {
    /// Connects to the guest's control socket in `run_dir`.
    pub(crate) fn open(run_dir: &Path, id: &GuestId, limit: Limit<'a>) -> Result<Self, Error> {
        // A socket's path may have 107 bytes, a state folder's path more: go by descriptor.
        let folder = open(run_dir, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(
            |e| match e {
                nix::Error::ENOENT => Error::Gone,
                e => talk(e),
            },
        )?;
        let path = format!(
            "/proc/self/fd/{}/{}",
            folder.as_raw_fd(),
            exit_record::socket_name(id)
        );
        let address = UnixAddr::new(path.as_str()).map_err(talk)?;
        let socket = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(talk)?;
        // What waits for longer looks in between whether it is still wanted.
        let at_once = limit.timeout.min(Duration::from_millis(WATCH_MS.into()));
        let at_once = TimeVal::milliseconds(i64::try_from(at_once.as_millis()).unwrap_or(0).max(1));
        setsockopt(&socket, sockopt::ReceiveTimeout, &at_once).map_err(talk)?;
        setsockopt(&socket, sockopt::SendTimeout, &at_once).map_err(talk)?;
        let conversation = Self { socket, limit };
        conversation.patiently(|| {
            connect(conversation.socket.as_raw_fd(), &address).map_err(io::Error::from)
        })?;
        Ok(conversation)
    }

    /// Repeats an attempt that timed out, until the time is up or the caller cancels.
    fn patiently<T>(&self, mut attempt: impl FnMut() -> io::Result<T>) -> Result<T, Error> {
        let begin = Instant::now();
        loop {
            match attempt() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map_err(failed),
            }
            if self.limit.is_cancelled() {
                return Err(Error::Interrupted);
            }
            if begin.elapsed() >= self.limit.timeout {
                return Err(Error::Timeout(self.limit.timeout));
            }
        }
    }

    /// The guest's process id, as the kernel knows it.
    pub(crate) fn pid(&self) -> io::Result<i32> {
        Ok(getsockopt(&self.socket, sockopt::PeerCredentials)?.pid())
    }

    /// The process at the other end; `None` when it has ended meanwhile.
    pub(crate) fn process(&self) -> Result<Option<Process>, Error> {
        let look = |source| Error::Io {
            action: "look at the guest's process",
            source,
        };
        match self.pid().map_err(look)? {
            // unix(7): so says the kernel of a process that this namespace does not have.
            0 => Err(look(io::Error::other("it is in another PID namespace"))),
            pid => Process::with_pid(pid).map_err(look),
        }
    }

    /// Puts a request to the guest and returns its answer.
    pub(crate) fn ask(&self, request: &RequestBytes) -> Result<AnswerBytes, Error> {
        self.send(&Call {
            kind: CALL_ASK,
            request: *request,
        })?;
        Ok(self.reply()?.answer)
    }

    /// Has the guest write its memory to `memory`; returns the state of its vCPU. The guest then
    /// waits for [`Self::commit`]; hanging up lets it go on. One that was stopped runs on, as far as
    /// it takes.
    pub(crate) fn suspend(&self, memory: &File, watch: Watch<'_>) -> Result<Vec<u8>, Error> {
        self.suspend_to(CALL_SUSPEND, memory, None, watch)
    }

    /// The same, of a guest that stays: it stops when this conversation is over.
    pub(crate) fn snapshot(&self, memory: &File, watch: Watch<'_>) -> Result<Vec<u8>, Error> {
        self.suspend_to(CALL_SNAPSHOT, memory, None, watch)
    }

    /// Has the guest write the pages that its checkpoint does not have to `memory`; returns the
    /// state of its vCPU and the list of the pages. Otherwise as [`Self::suspend`].
    pub(crate) fn suspend_delta(
        &self,
        memory: &File,
        watch: Watch<'_>,
    ) -> Result<(Vec<u8>, PageList), Error> {
        let pages = memory_file()?;
        let state = self.suspend_to(CALL_SUSPEND_DELTA, memory, Some(&pages), watch)?;
        let list = String::from_utf8(content(pages, LIST_MAX)?);
        let list = list.map_err(|_| {
            Error::Refused("the guest sent a list of pages that is no text".to_owned())
        })?;
        let list = list
            .parse()
            .map_err(|e| Error::Refused(format!("the guest sent a list of pages that {e}")))?;
        Ok((state, list))
    }

    fn suspend_to(
        &self,
        kind: u64,
        memory: &File,
        pages: Option<&File>,
        watch: Watch<'_>,
    ) -> Result<Vec<u8>, Error> {
        let call = Call {
            kind,
            ..Call::new_zeroed()
        };
        let pid = self.pid().map_err(talk)?;
        // It tells the guest which pages are its own. A guest's process cannot open it.
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(failed)?;
        let state = memory_file()?;
        let mut sent = vec![pagemap.as_fd(), memory.as_fd(), state.as_fd()];
        sent.extend(pages.map(File::as_fd));
        send_with_files(self.socket.as_raw_fd(), &call, &sent).map_err(talk)?;
        // A guest in the middle of a request does not look at its socket until its vCPU is stopped;
        // a paused guest, not until it goes on. In this order the vCPU of such a one does not run.
        for signal in [Signal::SIGUSR1, Signal::SIGCONT] {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        self.wait(memory, watch)?;
        self.reply()?;
        content(state, STATE_MAX)
    }

    /// Waits until the guest has written its memory, or `watch` ends it: then the guest finds out
    /// that this conversation is over, and goes on.
    fn wait(&self, memory: &File, watch: Watch<'_>) -> Result<(), Error> {
        let begin = Instant::now();
        let total = Bytes(memory.metadata().map_err(talk)?.len());
        let done = Bytes(0);
        loop {
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, WATCH_MS) {
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(talk(e)),
            }
            if watch(Progress { done, total }).is_break() {
                return Err(Error::Interrupted);
            }
            if begin.elapsed() >= self.limit.timeout {
                return Err(Error::Timeout(self.limit.timeout));
            }
        }
    }

    /// Hands the guest's process descriptors for what the call says.
    pub(crate) fn hand(&self, call: &Call, files: &[BorrowedFd<'_>]) -> Result<(), Error> {
        send_with_files(self.socket.as_raw_fd(), call, files).map_err(failed)?;
        self.reply().map(drop)
    }

    /// Has the guest's process let go of its nursery and its manager.
    pub(crate) fn hand_out(&self) -> Result<(), Error> {
        self.send(&Call {
            kind: CALL_HAND_OUT,
            ..Call::new_zeroed()
        })?;
        self.reply().map(drop)
    }

    /// Ends a suspended guest: its bundle is sealed.
    pub(crate) fn commit(&self) -> Result<(), Error> {
        self.send(&Call {
            kind: CALL_COMMIT,
            ..Call::new_zeroed()
        })?;
        self.reply().map(|_| ())
    }

    fn send(&self, call: &Call) -> Result<(), Error> {
        self.patiently(|| send_message(self.socket.as_raw_fd(), call))
    }

    fn reply(&self) -> Result<Reply, Error> {
        let mut reply = Reply::new_zeroed();
        let socket = self.socket.as_raw_fd();
        if !self.patiently(|| receive_message(socket, &mut reply, MsgFlags::empty()))? {
            return Err(Error::Gone);
        }
        match reply.kind {
            REPLY_DONE => Ok(reply),
            REPLY_BUSY => Err(Error::Busy),
            REPLY_DEAD => {
                self.await_end();
                Err(Error::Died((&reply.text).into()))
            }
            REPLY_NO_ROOM => Err(Error::Io {
                action: "write the guest's memory",
                source: io::ErrorKind::StorageFull.into(),
            }),
            _ => Err(Error::Refused((&reply.text).into())),
        }
    }
}

impl Conversation<'_> {
    /// Waits a while for the end of a guest that has said that it dies: whoever is told of it sees
    /// it dead in a list, too.
    fn await_end(&self) {
        let process = self.pid().and_then(Process::with_pid);
        if let Ok(Some(process)) = process
            && let Ok(Some(handle)) = process.open()
        {
            let _ = wait_for_end(&handle, END_PATIENCE);
        }
    }
}

/// A file in memory for what a guest's process writes.
fn memory_file() -> Result<File, Error> {
    let file = memfd_create(c"brood-guest", MFdFlags::MFD_CLOEXEC);
    file.map(File::from).map_err(talk)
}

/// All that was written there, if it is not more than a guest may send.
fn content(mut file: File, most: u64) -> Result<Vec<u8>, Error> {
    file.rewind().map_err(talk)?;
    let mut bytes = Vec::new();
    let length = file.take(most + 1).read_to_end(&mut bytes);
    if length.map_err(talk)? as u64 > most {
        return Err(Error::Refused(format!(
            "the guest sent more than {most} bytes beside its memory"
        )));
    }
    Ok(bytes)
}

/// Whether a process has the guest's control socket: its guest lives, since no other has the id in its
/// name. This disturbs no guest that sleeps, as a connection would.
pub(crate) fn is_open(run_dir: &Path, id: &GuestId) -> io::Result<bool> {
    let folder = match open(run_dir, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(nix::Error::ENOENT) => return Ok(false),
        folder => folder?,
    };
    let path = format!(
        "/proc/self/fd/{}/{}",
        folder.as_raw_fd(),
        exit_record::socket_name(id)
    );
    // Of another type than the guest's.
    let datagrams = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    match connect(datagrams.as_raw_fd(), &UnixAddr::new(path.as_str())?) {
        Ok(()) | Err(nix::Error::EPROTOTYPE) => Ok(true),
        Err(nix::Error::ECONNREFUSED | nix::Error::ENOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The conversation itself failed.
fn talk(source: impl Into<io::Error>) -> Error {
    Error::Io {
        action: "talk to the guest",
        source: source.into(),
    }
}

fn failed(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::NotFound => Error::Gone,
        _ => talk(error),
    }
}

/// Sends a message with descriptors.
fn send_with_files<T: IntoBytes + Immutable>(
    socket: RawFd,
    message: &T,
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let data = [IoSlice::new(message.as_bytes())];
    sendmsg::<()>(socket, &data, &control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives a whole message and the descriptors that came with it, four at most.
pub(crate) fn receive_with_files<T: FromBytes + IntoBytes>(
    socket: RawFd,
    message: &mut T,
) -> io::Result<Vec<File>> {
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut data = [IoSliceMut::new(message.as_mut_bytes())];
    let received = loop {
        // A guest is kicked by a signal when it is to be suspended, and that may come at any time
        // after the call: an interruption ends no conversation.
        match recvmsg::<()>(
            socket,
            &mut data,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(nix::Error::EINTR) => {}
            received => break received?,
        }
    };
    let length = received.bytes;
    let mut files = Vec::new();
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just made this descriptor for this process alone.
                files.push(unsafe { File::from_raw_fd(fd) });
            }
        }
    }
    if length == size_of::<T>() {
        Ok(files)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}
