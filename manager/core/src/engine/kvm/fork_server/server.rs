//! Nursery: a *fork server* (elsewhere called a zygote), the single-threaded process that guests
//! are forked from.
//!
//! Fork is the cheapest way to a new guest process: the nursery does once what is the same for all
//! clones (open `/dev/kvm` and the checkpoint, parse its state, make the restore plan), and each
//! guest inherits the result. A process with threads cannot be forked soundly, and the manager has
//! threads; so the nursery is a process of its own, of the same binary.
//!
//! It forks ahead: there are always a few *spares*, each with a virtual machine in the checkpoint's
//! state and no identity yet. A free spare reads the next order from the socket itself, tells the
//! nursery, which forks another spare, and becomes that guest.
//!
//! The nursery outlives the command that started it. It is the parent of its guests: it waits for
//! them, and records how each ended. If the nursery is killed, its guests live on, and only these
//! records are lost. When the manager has closed the connection, the nursery ends guests that do
//! not answer soon, because no process waits for them; when its last guest is gone, it ends too. So
//! does one that the manager gives no more orders.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, Read, Seek},
    os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
    path::Path,
    process::exit,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kvm_ioctls::Kvm;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        signal::{SigHandler, SigSet, Signal},
        socket::MsgFlags,
        time::TimeSpec,
    },
    unistd::{ForkResult, Pid, fork, setsid},
};
use zerocopy::FromZeros;

use crate::engine::kvm::{
    fork_server::{
        children::ChildTable,
        descriptors::{self, SOCKET},
        inheritance::{GuestKind, Inheritance, Spare, StartError},
        messages::Messages,
        oom::{OomKills, Scores},
        orphans::Orphans,
        program,
        shared_orders::Pipe,
        writers::{Writers, writer_waits},
    },
    jail::Jail,
    signals::{STOP, handle},
    vm::layers::{Layers, WRITER},
    wire::{Order, REPORT_READY, Report, Start, receive_message, send_message},
};
use crate::owner_only;

/// The process that guests are forked from.
struct Nursery<K: GuestKind> {
    inheritance: Inheritance<K::Plan>,
    /// Processes to hold ready for orders to come.
    spares: usize,
    messages: Messages,
    /// `None` where the score for the out-of-memory killer cannot be set.
    scores: Option<Scores>,
    /// Of the checkpoint's files.
    writers: Writers,
}

/// Runs a nursery on descriptor 3 until it has nothing left to do. Never returns.
pub(crate) fn main(begin: Begin) -> ! {
    // Whatever the command's caller had open (a pipe that it waits on, a lock) is not for guests,
    // which live on after the command.
    // SAFETY: nothing in this process has opened a descriptor above the socket yet.
    unsafe { libc::close_range(SOCKET.unsigned_abs() + 1, libc::c_uint::MAX, 0) };
    // Keys typed at the terminal of the restore must not kill a guest.
    let _ = setsid();
    // Sockets and records are their owner's alone.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(owner_only::OTHERS));
    // Nor of a limit on the size of files (RLIMIT_FSIZE): a suspend fails then.
    for signal in [
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGPIPE,
        Signal::SIGXFSZ,
    ] {
        handle(signal, SigHandler::SigIgn);
    }
    handle(STOP, SigHandler::Handler(stop_here));
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGCHLD);
    blocked.add(WRITER);
    let _ = blocked.thread_block();
    handle(Signal::SIGCHLD, SigHandler::Handler(child_ended));
    handle(WRITER, SigHandler::Handler(writer_waits));
    let Err(StartError { kind, reason }) = receive(begin);
    report(kind, &reason);
    exit(1)
}

/// Receives what guests are to be made of, and runs the nursery of such guests.
fn receive(begin: Begin) -> Result<Infallible, StartError> {
    let mut fds = descriptors::receive()
        .map_err(|e| format!("cannot receive its descriptors: {e}"))?
        .into_iter();
    let (Some(start), Some(kern), Some(run_dir), Some(restore_lock)) =
        (fds.next(), fds.next(), fds.next(), fds.next())
    else {
        return Err("it was sent too few descriptors".to_owned().into());
    };
    nix::unistd::fchdir(&run_dir).map_err(|e| format!("cannot enter the run folder: {e}"))?;
    // No guest is to have it.
    drop(run_dir);
    let start: Start = serde_json::from_slice(&contents(start).map_err(|e| e.to_string())?)
        .map_err(|e| format!("cannot read its orders: {e}"))?;
    let kern = contents(kern).map_err(|e| e.to_string())?;
    let files = fds.by_ref().take(start.guest.files()).map(File::from);
    let files = files.collect();
    let mut layers = Layers::new(
        fds.map(File::from).collect(),
        start.layers.clone(),
        Path::new("."),
    )?;
    layers.lease()?;
    let checkpoint = Opened {
        kern,
        files,
        layers: Arc::new(layers),
        restore_lock,
    };
    begin(&start, checkpoint)
}

/// Begins the nursery of the kind of guest that is wanted.
pub(crate) type Begin = fn(&Start, Opened) -> Result<Infallible, StartError>;

/// Runs a nursery of this kind of guest, if it can be one.
pub(crate) fn run<K: GuestKind>(
    start: &Start,
    checkpoint: Opened,
) -> Result<Infallible, StartError> {
    let (nursery, oom_kills) = Nursery::<K>::prepare(start, checkpoint)?;
    nursery.run(oom_kills)
}

/// A checkpoint, open.
pub(crate) struct Opened {
    kern: Vec<u8>,
    /// What all guests of this kind read.
    files: Vec<File>,
    layers: Arc<Layers>,
    restore_lock: OwnedFd,
}

impl<K: GuestKind> Nursery<K> {
    /// A nursery in its jail; and what counts kills for want of memory, which it has open.
    fn prepare(start: &Start, checkpoint: Opened) -> Result<(Self, OomKills), StartError> {
        let Opened {
            kern,
            files,
            layers,
            restore_lock,
        } = checkpoint;
        let kvm = Kvm::new().map_err(|e| format!("cannot open /dev/kvm: {e}"))?;
        let _ = program::forget();
        let plan = K::plan(&kvm, &layers, &kern, start, files)?;
        // Guests run this code next. Where that is refused, they only take longer.
        let _ = program::inherit();
        layers
            .check(&mut layers.stamps().into())
            .map_err(|e| format!("the checkpoint was changed since it was verified: {e}"))?;
        let (messages, say) =
            Messages::new().map_err(|e| format!("cannot make a socket pair: {e}"))?;
        let scores = Scores::new();
        let oom_kills = OomKills::watch();
        let restore_lock = restore_lock.into_raw_fd();
        let writers = Writers::new(&layers, restore_lock)?;
        // All that needs a privilege, or another file, is open.
        let jail = Jail::of_guests(start.enforces_limits, start.largest_file())?;
        let nursery = Self {
            inheritance: Inheritance {
                kvm,
                jail,
                enforces_limits: start.enforces_limits,
                messages: say,
                layers,
                park_after: start.park_after,
                plan,
                restore_lock,
                nursery: Pid::this(),
            },
            spares: start.spares,
            messages,
            scores,
            writers,
        };
        Ok((nursery, oom_kills))
    }

    fn run(mut self, oom_kills: OomKills) -> ! {
        report(REPORT_READY, "");
        let Ok(pipe) = Pipe::new() else { exit(1) };
        let Ok(mut children) = ChildTable::new(self.spares, oom_kills) else {
            exit(1)
        };
        let mut manager = Manager::Orders;
        while manager == Manager::Orders || !children.is_empty() {
            if manager == Manager::Orders {
                self.breed(&mut children, &pipe);
            }
            let limit = children.orphans.as_ref().and_then(Orphans::limit);
            let limit = [limit, self.writers.limit()].into_iter().flatten().min();
            // SIGCHLD comes in here and nowhere else, so none is missed.
            let heard = [&pipe.taken, self.messages.socket()];
            let seen = wait(manager, heard, limit);
            self.writers.look();
            children.note_taken(&pipe.taken);
            if seen.messages {
                self.messages.hear(|pid, reason| children.end(pid, reason));
                self.learn(&children);
            }
            // Looking for ended children costs time for each that lives: only when one has ended.
            if CHILD_ENDED.swap(false, Ordering::Relaxed) {
                let listens = manager != Manager::HungUp;
                children.reap(listens.then_some(SOCKET), &pipe.taken, &mut self.messages);
            }
            if children.are_stillborn() || self.are_over(&mut children) {
                exit(1);
            }
            if manager == Manager::Orders && seen.orders_ended {
                // By now every order has its result. The spares see it as well, and end.
                manager = Manager::Listens;
            }
            if manager != Manager::HungUp && seen.hung_up {
                // The manager has hung up, and so do the spares. Guests that are still being
                // restored hold the lock and the socket on.
                manager = Manager::HungUp;
                // SAFETY: the descriptor is this process's and nothing uses it from here on.
                let lock = unsafe { File::from_raw_fd(self.inheritance.restore_lock) };
                children.orphans = Orphans::new(lock);
                // SAFETY: as above.
                drop(unsafe { OwnedFd::from_raw_fd(SOCKET) });
            }
            if let Some(orphans) = &mut children.orphans {
                orphans.look(children.all.keys().copied());
            }
        }
        exit(0)
    }

    /// Whether there was a reason for which all children must end, and they have.
    #[inline(never)]
    fn are_over(&mut self, children: &mut ChildTable) -> bool {
        for (pid, end) in std::mem::take(&mut children.others) {
            if let Err(reason) = self.writers.hear(pid, &end) {
                children.end_all(reason);
            }
        }
        children.doom.is_some() && children.is_empty()
    }

    /// Learns from a guest that was handed out what later spares can have ready.
    #[inline(never)]
    fn learn(&mut self, children: &ChildTable) {
        if let Some((pid, memory)) = self.messages.handed_out()
            && children.is_guest(pid)
        {
            let Inheritance { plan, layers, .. } = &mut self.inheritance;
            K::learn(plan, layers, pid, memory);
        }
    }

    /// Forks until there are enough spares, outside the frame of the loop as well.
    #[inline(never)]
    fn breed(&mut self, children: &mut ChildTable, pipe: &Pipe) {
        if children.free.is_empty() || children.doom.is_some() {
            return;
        }
        self.scores.as_ref().inspect(|scores| scores.for_guests());
        self.fork_spares(children, pipe);
        self.scores.as_ref().inspect(|scores| scores.for_nursery());
    }

    fn fork_spares(&mut self, children: &mut ChildTable, pipe: &Pipe) {
        while let Some(place) = children.free.last().copied() {
            // SAFETY: this process has one thread, so the child finds no lock held and may do
            // anything.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => {
                    let spare = Spare {
                        desk: &children.desk,
                        place,
                        receipts: &pipe.take,
                    };
                    K::live(&self.inheritance, &spare)
                }
                Ok(ForkResult::Parent { child }) => children.add(child),
                // One spare will do. Without any, orders have to be refused here.
                Err(_) if children.free.len() < self.spares => return,
                Err(e) => {
                    let text = match e {
                        Errno::EAGAIN => {
                            "cannot fork: out of pids (kernel.pid_max, pids cgroup or RLIMIT_NPROC)"
                                .to_owned()
                        }
                        e => format!("cannot fork: {e}"),
                    };
                    if !refuse_order(&text) {
                        return;
                    }
                }
            }
        }
    }
}

/// Takes the next order and refuses it. `false` at the end of the conversation, which is for the
/// caller to see.
#[inline(never)]
fn refuse_order(text: &str) -> bool {
    let mut order = Order::new_zeroed();
    let taken = receive_message(SOCKET, &mut order, MsgFlags::empty());
    if !matches!(taken, Ok(true)) {
        return false;
    }
    let _ = send_message(SOCKET, &Report::failed(order.seq, text));
    true
}

/// Set by SIGCHLD. A signal handler can reach nothing but a static.
static CHILD_ENDED: AtomicBool = AtomicBool::new(false);

extern "C" fn child_ended(_: libc::c_int) {
    CHILD_ENDED.store(true, Ordering::Relaxed);
}

extern "C" fn stop_here(_: libc::c_int) {
    // SAFETY: raise is async-signal-safe. The signal is this thread's, so it stops here and now.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// What is to be expected of the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manager {
    /// Orders.
    Orders,
    /// It gives no more orders, and hears how guests end.
    Listens,
    /// It has closed the connection.
    HungUp,
}

/// The manager has said that it gives no more orders. nix has no name for it.
const ORDERS_ENDED: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);

/// What a wait saw, besides orders that were taken.
struct Seen {
    /// A guest's process has said something.
    messages: bool,
    /// The manager gives no more orders.
    orders_ended: bool,
    /// The manager has closed the connection.
    hung_up: bool,
}

/// Waits until one of `heard` (orders taken, messages) can be read, a child has ended, or the
/// manager has hung up, and no longer than `limit`.
fn wait(manager: Manager, heard: [&OwnedFd; 2], limit: Option<Duration>) -> Seen {
    let mut fds = heard
        .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN))
        .to_vec();
    if manager != Manager::HungUp {
        // SAFETY: the descriptor stays open while it is polled: nothing else closes it.
        let socket = unsafe { BorrowedFd::borrow_raw(SOCKET) };
        // Orders are the spares' to take; the end of the conversation shows unasked.
        let asked = match manager {
            Manager::Orders => ORDERS_ENDED,
            Manager::Listens | Manager::HungUp => PollFlags::empty(),
        };
        fds.push(PollFd::new(socket, asked));
    }
    let limit = limit.map(TimeSpec::from_duration);
    let _ = ppoll(&mut fds, limit, Some(SigSet::empty()));
    let shows = |n: usize, flags| {
        let seen = fds.get(n).and_then(PollFd::revents);
        seen.is_some_and(|seen| seen.intersects(flags))
    };
    Seen {
        messages: shows(1, PollFlags::POLLIN),
        // A flag without a name has nix leave out the others, too; they show at the next wait.
        orders_ended: fds.get(2).is_some_and(|fd| {
            fd.revents()
                .is_none_or(|seen| seen.intersects(ORDERS_ENDED))
        }),
        hung_up: shows(
            2,
            PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL,
        ),
    }
}

fn report(kind: u32, text: &str) {
    let report = Report {
        kind,
        ..Report::failed(0, text)
    };
    let _ = send_message(SOCKET, &report);
}

fn contents(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(file);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
