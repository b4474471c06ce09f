//! Life of a guest's process, of whatever kind its guest is: its order, its control socket, and
//! where it is written when it is suspended.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::FileExt,
    },
    process::exit,
    thread,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, raise},
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen,
            setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
    unistd::{Pid, write},
};
use zerocopy::{FromZeros, IntoBytes};

use crate::engine::kvm::{
    exit_reason::ExitReason,
    exit_record::{self, EXIT_CHECKPOINT_CUT, EXIT_DIED, EXIT_SUSPENDED},
    fork_server::{
        descriptors::SOCKET,
        inheritance::Spare,
        messages::{self, Message},
    },
    guest::control::receive_with_files,
    signals::STOP,
    vm::{dump, layers::Layers, ram::Ram},
    wire::{
        CALL_COMMIT, CALL_SNAPSHOT, CALL_SUSPEND, CALL_SUSPEND_DELTA, Call, Order, OrderReceipt,
        REPLY_DONE, REPLY_FAILED, REPLY_NO_ROOM, Reply, Report, send_message,
    },
};
use crate::{full_disk, guest_id::GuestId};

/// Time that a client has to send its call, in milliseconds.
const CLIENT_PATIENCE_MS: i64 = 2000;
/// Time that the nursery has to record how a guest ended.
const RECORD_PATIENCE: Duration = Duration::from_secs(2);

/// Tells the manager that its order failed, and ends this process.
#[inline(never)]
pub(crate) fn fail(seq: u64, text: &str) -> ! {
    let _ = send_message(SOCKET, &Report::failed(seq, text));
    exit(1)
}

/// Waits for an order and tells the nursery. The process ends when there is none to come.
#[inline(never)]
pub(crate) fn take_order(spare: &Spare<'_>) -> Order {
    // SAFETY: the place is this process's alone. The nursery looks at it when it has read the
    // receipt below, or when this process has ended.
    let Some(order) = (unsafe { spare.desk.receive(spare.place, SOCKET) }) else {
        exit(0)
    };
    let pid = Pid::this().as_raw();
    let taken = OrderReceipt {
        seq: order.seq,
        id: order.id,
        pid,
        padding: [0; 4],
    };
    // Shorter than the pipe's unit of writing, so never torn; the nursery reads on and on.
    let _ = write(spare.receipts, taken.as_bytes());
    order
}

/// Where a guest is to be written.
pub(crate) struct Destination {
    /// Says which pages are the guest's own.
    pagemap: File,
    memory: File,
    /// For the state of what is no memory.
    state: File,
    /// Of a delta: a list of the pages that its checkpoint does not have. They alone are written.
    pages: Option<File>,
}

impl Destination {
    /// The destination in a call to suspend; `None` for other calls.
    pub(crate) fn of(call: &Call, files: Vec<File>) -> Option<Self> {
        let mut files = files.into_iter();
        let to = Self {
            pagemap: files.next()?,
            memory: files.next()?,
            state: files.next()?,
            pages: files.next(),
        };
        match (call.kind, to.pages.is_some()) {
            (CALL_SUSPEND | CALL_SNAPSHOT, false) | (CALL_SUSPEND_DELTA, true) => Some(to),
            _ => None,
        }
    }

    /// Writes a guest, as long as `go_on` says so; else the reply that says why that failed.
    ///
    /// Guests may be restored from these files before this one is heard of again, so they are
    /// closed.
    pub(crate) fn write(
        self,
        state: &[u8],
        layers: &Layers,
        ram: &Ram,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(), Reply> {
        let written = match &self.pages {
            None => dump::write_memory(layers, ram, &self.pagemap, &self.memory, go_on),
            Some(pages) => dump::write_delta(layers, ram, &self.pagemap, &self.memory, go_on)
                .and_then(|list| pages.write_all_at(list.to_string().as_bytes(), 0)),
        };
        let written = written.and_then(|()| self.state.write_all_at(state, 0));
        written.map_err(|e| {
            let kind = if full_disk::is_full(&e) {
                REPLY_NO_ROOM
            } else {
                REPLY_FAILED
            };
            let limit = match e.kind() {
                io::ErrorKind::FileTooLarge => {
                    " (it was restored under a limit on the size of files: ulimit -f)"
                }
                _ => "",
            };
            Reply::new(
                kind,
                &format!("cannot write the guest's memory: {e}{limit}"),
            )
        })
    }
}

/// Tells a client that the guest is written, and waits until its bundle is sealed: then this process
/// ends. Returns the reply when it was given up.
pub(crate) fn await_commit(client: &OwnedFd) -> Reply {
    if let Err(e) = send_message(client.as_raw_fd(), &Reply::new(REPLY_DONE, "")) {
        return Reply::new(REPLY_FAILED, &format!("cannot say that it is written: {e}"));
    }
    // The client seals the bundle now, which takes as long as the disk takes.
    let _ = setsockopt(client, sockopt::ReceiveTimeout, &TimeVal::zero());
    match receive_call(client.as_raw_fd()) {
        Some((call, _)) if call.kind == CALL_COMMIT => {
            let _ = send_message(client.as_raw_fd(), &Reply::new(REPLY_DONE, ""));
            exit(EXIT_SUSPENDED)
        }
        _ => Reply::new(REPLY_FAILED, "the suspend was given up; the guest goes on"),
    }
}

/// The next client of a control socket; none when there is none, or it has gone again.
pub(crate) fn accept(control: &OwnedFd) -> Option<OwnedFd> {
    let fd = accept4(control.as_raw_fd(), SockFlag::SOCK_CLOEXEC).ok()?;
    // SAFETY: the descriptor is new and nobody else's.
    let client = unsafe { OwnedFd::from_raw_fd(fd) };
    let patience = TimeVal::milliseconds(CLIENT_PATIENCE_MS);
    let _ = setsockopt(&client, sockopt::ReceiveTimeout, &patience);
    let _ = setsockopt(&client, sockopt::SendTimeout, &patience);
    Some(client)
}

/// Ends the process of a guest that cannot go on. The nursery does, when it has recorded why.
pub(crate) fn end(nursery: &OwnedFd, reason: Option<&ExitReason>) -> ! {
    let said = |reason: &ExitReason| messages::send(nursery, &Message::Ends(reason.clone()));
    if reason.is_some_and(said) {
        thread::sleep(RECORD_PATIENCE);
    }
    exit(EXIT_DIED)
}

/// Stops a guest that was to stay stopped, before its vCPU runs again. It does so itself: whoever
/// took the snapshot may have been killed.
pub(crate) fn stop_after(call: &Call) {
    if call.kind == CALL_SNAPSHOT {
        let _ = raise(STOP);
    }
}

/// Receives a call and the descriptors that came along.
pub(crate) fn receive_call(client: RawFd) -> Option<(Call, Vec<File>)> {
    let mut call = Call::new_zeroed();
    let files = receive_with_files(client, &mut call).ok()?;
    Some((call, files))
}

/// Whether a client is gone.
pub(crate) fn hung_up(client: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(client.as_fd(), PollFlags::empty())];
    // POLLHUP comes unasked.
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
}

pub(crate) fn control_socket() -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )
}

pub(crate) fn listen_as(control: &OwnedFd, id: &GuestId) -> nix::Result<()> {
    let address = UnixAddr::new(&exit_record::socket_address(id)[..])?;
    bind(control.as_raw_fd(), &address)?;
    listen(control, Backlog::new(16)?)
}

pub(crate) fn die_with_parent(yes: bool) {
    let signal = yes.then_some(Signal::SIGKILL);
    let _ = nix::sys::prctl::set_pdeathsig(signal);
}

/// Memory that the checkpoint file no longer has was touched.
pub(crate) extern "C" fn checkpoint_cut(_: libc::c_int) {
    // SAFETY: _exit is async-signal-safe.
    unsafe { libc::_exit(EXIT_CHECKPOINT_CUT) }
}
