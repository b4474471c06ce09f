//! Writers of a checkpoint's memory files, as a nursery sees them.
//!
//! The nursery has a lease of each file. When a process opens one for writing, the kernel has it wait,
//! and signals the nursery, which gives its leases back at once. From the moment that the writer
//! waits no guest answers, for it sees that the lease is not held ([`Layers::check`]). When the
//! writer has closed the file and unmapped it, a child of the nursery reads all files. If they are
//! as they were sealed, the nursery takes its leases again, and guests go on; else it ends them.
//!
//! While the child reads, leases of other openings keep new writers out, or show that one came: guests
//! must see leases only of what was read.

use std::{
    os::fd::{OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::{ForkResult, Pid, fork},
};

use crate::{
    checkpoint::lease::{self, Grant},
    engine::kvm::{
        exit_reason::ExitReason,
        fork_server::descriptors::{SOCKET, close_own, own},
        vm::layers::{Layers, WRITER},
    },
};

/// How soon, and how often at most, it is looked whether the writers have gone.
const SOON: Duration = Duration::from_millis(2);
const LATER: Duration = Duration::from_millis(200);

/// Set by the signal. A signal handler can reach nothing but a static.
static WANTED: AtomicBool = AtomicBool::new(false);

pub(super) extern "C" fn writer_waits(_: libc::c_int) {
    WANTED.store(true, Ordering::Relaxed);
}

/// What is known of writers.
#[derive(Debug)]
pub(super) struct Writers {
    layers: Arc<Layers>,
    /// The leased files, in openings that no guest has.
    own: Vec<OwnedFd>,
    state: State,
    /// A descriptor that the child which reads must not hold.
    restore_lock: RawFd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There are none.
    Kept,
    /// There may be some: it is tried again then, after that wait.
    There { again: Instant, wait: Duration },
    /// They have gone, and this process reads what they left.
    Read { by: Pid },
}

impl Writers {
    pub(super) fn new(layers: &Arc<Layers>, restore_lock: RawFd) -> Result<Self, String> {
        let failed = |e: &dyn std::fmt::Display| format!("cannot open a memory file again: {e}");
        let files = layers.reopen_leased().map_err(|e| failed(&e))?;
        let files = files.into_iter().map(own).collect::<Result<_, _>>();
        Ok(Self {
            layers: Arc::clone(layers),
            own: files.map_err(|e| failed(&e))?,
            state: State::Kept,
            restore_lock,
        })
    }

    /// How long the nursery may wait before the next look.
    pub(super) fn limit(&self) -> Option<Duration> {
        match self.state {
            State::There { again, .. } => Some(again.saturating_duration_since(Instant::now())),
            State::Kept | State::Read { .. } => None,
        }
    }

    /// Lets writers in that wait, and looks whether those who came before have gone.
    pub(super) fn look(&mut self) {
        if WANTED.swap(false, Ordering::Relaxed) {
            self.let_in(SOON);
        }
        if let State::There { again, wait } = self.state
            && again <= Instant::now()
        {
            if self
                .own
                .iter()
                .all(|file| lease::take(file, WRITER) == Grant::Granted)
            {
                self.read();
            } else {
                self.let_in((wait * 2).min(LATER));
            }
        }
    }

    /// Gives all leases back.
    fn let_in(&mut self, wait: Duration) {
        self.layers.leased().for_each(lease::give_back);
        self.own.iter().for_each(lease::give_back);
        if let State::Read { by } = self.state {
            let _ = kill(by, Signal::SIGKILL);
        }
        let again = Instant::now() + wait;
        self.state = State::There { again, wait };
    }

    /// Has a child read the files: it takes long, and guests are forked meanwhile.
    fn read(&mut self) {
        // SAFETY: this process has one thread, so the child finds no lock held and may do anything.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                let _ = prctl::set_pdeathsig(Signal::SIGKILL);
                // A restore is over when nobody holds these.
                for descriptor in [SOCKET, self.restore_lock] {
                    // SAFETY: this process uses neither, and ends below.
                    unsafe { libc::close(descriptor) };
                }
                close_own();
                let code = i32::from(!self.layers.are_whole());
                // SAFETY: ends the process without running what its parent has to run at exit.
                unsafe { libc::_exit(code) }
            }
            Ok(ForkResult::Parent { child }) => self.state = State::Read { by: child },
            Err(_) => self.let_in(LATER),
        }
    }

    /// Hears how a child ended that is no guest. The error says why guests cannot go on.
    pub(super) fn hear(&mut self, pid: Pid, end: &ExitReason) -> Result<(), ExitReason> {
        if self.state != (State::Read { by: pid }) {
            return Ok(());
        }
        match end {
            ExitReason::Exited { code: 0 } => {
                let held = || self.own.iter().all(lease::is_held);
                let take = |file| lease::take(file, WRITER) == Grant::Granted;
                if held() && self.layers.leased().all(take) && held() {
                    self.state = State::Kept;
                    self.own.iter().for_each(lease::give_back);
                } else {
                    self.let_in(SOON);
                }
                Ok(())
            }
            ExitReason::Exited { .. } => Err(ExitReason::CheckpointChanged {
                detail: "its content is not what was sealed".to_owned(),
            }),
            // It was killed, and said nothing.
            _ => {
                self.let_in(LATER);
                Ok(())
            }
        }
    }
}
