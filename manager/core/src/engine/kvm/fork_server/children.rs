//! Children of a nursery: its spares and its guests, and how each ended.

use std::{
    collections::HashMap,
    io,
    os::fd::{OwnedFd, RawFd},
    path::Path,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{MsgFlags, send},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, read},
};
use zerocopy::{FromZeros, IntoBytes};

use super::{messages::Messages, oom::OomKills, orphans::Orphans, shared_orders::Desk};
use crate::{
    engine::kvm::{
        exit_reason::ExitReason,
        exit_record::{self, EXIT_CHECKPOINT_CUT, EXIT_SUSPENDED},
        limit_group,
        wire::{Order, OrderReceipt, Report},
    },
    guest_id::GuestId,
};

/// Spares that may die one after the other, without ever having taken an order, before the nursery
/// gives up.
const MOST_STILLBORN: u32 = 16;

/// The processes that this nursery is the parent of.
pub(super) struct ChildTable {
    /// Found by their ids, so that the end of one takes no longer beside thousands of others.
    pub(super) all: HashMap<Pid, ChildState>,
    /// Where spares receive their orders.
    pub(super) desk: Desk,
    /// Its places that no spare has.
    pub(super) free: Vec<usize>,
    /// How many spares in a row have died as such.
    stillborn: u32,
    oom_kills: OomKills,
    /// Guests that were being restored when the manager closed the connection; `None` before.
    pub(super) orphans: Option<Orphans>,
    /// Children that have ended and were no guests.
    pub(super) others: Vec<(Pid, ExitReason)>,
    /// Why all of them must end.
    pub(super) doom: Option<ExitReason>,
}

#[derive(Clone, Copy)]
pub(super) enum ChildState {
    /// It has this place at the desk, and no order that is known of.
    Spare(usize),
    /// The guest that it has become, and the order by which it did.
    Guest(GuestId, u64),
}

impl ChildTable {
    pub(super) fn new(spares: usize, oom_kills: OomKills) -> io::Result<Self> {
        Ok(Self {
            all: HashMap::new(),
            desk: Desk::new(spares)?,
            free: (0..spares).collect(),
            stillborn: 0,
            oom_kills,
            orphans: None,
            others: Vec::new(),
            doom: None,
        })
    }

    /// Ends all children for this reason.
    pub(super) fn end_all(&mut self, reason: ExitReason) {
        for (pid, child) in &self.all {
            if let ChildState::Guest(id, _) = child {
                exit_record::ended(id, &reason);
            }
            // As in `end`.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        self.doom = Some(reason);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether so many spares died one after the other that the next one would.
    pub(super) fn are_stillborn(&self) -> bool {
        self.stillborn > MOST_STILLBORN
    }

    /// Whether this process is a guest's.
    pub(super) fn is_guest(&self, pid: Pid) -> bool {
        matches!(self.all.get(&pid), Some(ChildState::Guest(..)))
    }

    /// Records why a guest cannot go on, and ends its process, which waits for that. `false` when
    /// there is no such guest.
    pub(super) fn end(&self, pid: Pid, reason: &ExitReason) -> bool {
        let Some(ChildState::Guest(id, _)) = self.all.get(&pid) else {
            return false;
        };
        exit_record::ended(id, reason);
        // No wait(2) has collected it, so the process with this id is it.
        let _ = kill(pid, Signal::SIGKILL);
        true
    }

    pub(super) fn add(&mut self, pid: Pid) {
        if let Some(place) = self.free.pop() {
            self.all.insert(pid, ChildState::Spare(place));
        }
    }

    /// What lay at a place whose spare has ended or has told of its order; the next spare has it.
    fn clear(&mut self, place: usize) -> Option<Order> {
        self.free.push(place);
        // SAFETY: the spare that had it has ended, or has told that it took its order.
        unsafe { self.desk.take(place) }
    }

    /// Reads which spares have taken orders.
    pub(super) fn note_taken(&mut self, taken: &OwnedFd) {
        let mut message = OrderReceipt::new_zeroed();
        while read(taken, message.as_mut_bytes()) == Ok(size_of::<OrderReceipt>()) {
            let pid = Pid::from_raw(message.pid);
            if let Some(child) = self.all.get_mut(&pid)
                && let ChildState::Spare(place) = *child
            {
                *child = ChildState::Guest(GuestId(message.id), message.seq);
                self.clear(place);
                self.stillborn = 0;
            }
        }
    }

    /// Waits for children that have ended, records how, and tells the manager, if it still listens:
    /// a guest that never answered fails its order.
    ///
    /// Outside the frame of the loop (`inline(never)`), which each guest's process stands on.
    #[inline(never)]
    pub(super) fn reap(&mut self, socket: Option<RawFd>, taken: &OwnedFd, messages: &mut Messages) {
        loop {
            let (pid, reason) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, EXIT_CHECKPOINT_CUT)) => {
                    let detail = "its file was cut short".to_owned();
                    (pid, ExitReason::CheckpointChanged { detail })
                }
                Ok(WaitStatus::Exited(pid, code)) => (pid, ExitReason::Exited { code }),
                Ok(WaitStatus::Signaled(pid, Signal::SIGKILL, _))
                    if self.orphans.as_ref().is_some_and(|all| all.ended(pid)) =>
                {
                    (pid, ExitReason::NotAnswered)
                }
                Ok(WaitStatus::Signaled(pid, Signal::SIGKILL, _)) => {
                    let signal = Signal::SIGKILL as i32;
                    let for_memory = self.oom_kills.reason();
                    (pid, for_memory.unwrap_or(ExitReason::Killed { signal }))
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) => (
                    pid,
                    ExitReason::Killed {
                        signal: signal as i32,
                    },
                ),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            // Now that it has ended, whatever it has taken can be read, and what it has said.
            self.note_taken(taken);
            messages.hear(|pid, reason| self.end(pid, reason));
            let said = messages.reason_of(pid);
            let Some(child) = self.all.remove(&pid) else {
                self.others.push((pid, reason));
                continue;
            };
            let (id, seq) = match child {
                ChildState::Guest(id, seq) => (id, seq),
                // It may have ended with an order that it could not tell of any more.
                ChildState::Spare(place) => match self.clear(place) {
                    Some(order) => (GuestId(order.id), order.seq),
                    None => {
                        self.stillborn += 1;
                        continue;
                    }
                },
            };
            let reason = match reason {
                // Who ends by itself knows better why.
                _ if said.is_some() => said.unwrap_or(reason),
                ExitReason::Killed { .. } if self.doom.is_some() => {
                    self.doom.clone().unwrap_or(reason)
                }
                // The host counts kills of all groups: the guest's own knows whether it was for its limit.
                ExitReason::Killed { .. } | ExitReason::OutOfMemory { .. } => {
                    limit_group::exceeded(Path::new(""), &id)
                        .map_or(reason, |limit| ExitReason::MemoryLimit { limit })
                }
                reason => reason,
            };
            match reason {
                ExitReason::Exited {
                    code: EXIT_SUSPENDED,
                } => exit_record::suspended(&id),
                _ => exit_record::ended(&id, &reason),
            }
            if let Some(socket) = socket {
                let report = Report::failed(seq, &reason.to_string());
                // A manager that waits for nothing does not read: never wait for it.
                let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
                let _ = send(socket, report.as_bytes(), flags);
            }
        }
    }
}
