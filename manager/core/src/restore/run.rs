//! Run of a mass restore: gives out orders a few at a time, records their outcomes, and replaces a
//! fork server (nursery) that was killed.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    Slot,
    disks::DiskSources,
    mass::{Error, Event, Failure, Report, RestoredGuest},
};
use crate::{
    checkpoint::Checkpoint,
    disk,
    engine::{
        self, Engine, Order, Process, RestoredProcess, Session, process, restore_lock::RestoreLock,
    },
    guest_id::GuestId,
    guests,
    state::State,
};
use crate::{engine::GuestRef, restore::session_cache::IdleSession};

/// How often the process that guests are forked from is replaced when it was killed.
const NURSERIES: u32 = 5;
/// How long nurseries are replaced that were not ready.
const NURSERY_PATIENCE: Duration = Duration::from_secs(20);
/// How often a restore looks whether it was cancelled, and whose time is up.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long guests that are under way may still take when their restore was cancelled.
pub(super) const CANCEL_PATIENCE: Duration = Duration::from_secs(3);
/// How long a killed process may take to go.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Guests recorded in one transaction.
const BATCH: usize = 128;

/// Begins a session of the engine. Replaces a nursery that was killed before it was ready, as one
/// that is killed later; `nurseries` counts them.
pub(super) fn begin_session(
    engine: &dyn Engine,
    checkpoint: &Checkpoint,
    run_dir: &Path,
    lock: &File,
    park_after: Option<Duration>,
    nurseries: &mut u32,
) -> Result<Box<dyn Session>, engine::Error> {
    let begin = Instant::now();
    loop {
        *nurseries += 1;
        match engine.session(checkpoint, run_dir, lock, park_after) {
            Err(engine::Error::Nursery(_))
                if *nurseries < NURSERIES && begin.elapsed() < NURSERY_PATIENCE => {}
            result => return result,
        }
    }
}

/// What became of a guest that was to be ended.
enum End {
    /// Its process is gone.
    Ended,
    /// It has come to nothing that it could be found by.
    NotFound,
    /// Its process does not go, or cannot be looked at: why.
    Stays(String),
}

/// A restore under way.
pub(super) struct Run<'a> {
    pub(super) state: &'a mut State,
    pub(super) engine: &'a dyn Engine,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) lock: RestoreLock,
    pub(super) park_after: Option<Duration>,
    pub(super) timeout: Duration,
    /// How long guests that are under way may still take when the restore was cancelled.
    pub(super) grace: Duration,
    pub(super) disk: Option<DiskSources>,
    pub(super) session: Box<dyn Session>,
    pub(super) nurseries: u32,
    pub(super) queue: VecDeque<Order>,
    /// Orders without an outcome, by their place in the session.
    pub(super) given_out: HashMap<u64, (Order, Instant)>,
    pub(super) next: u64,
    /// When the last outcome came.
    pub(super) heard: Instant,
    /// Orders before this place are no longer queued: a later one has its outcome already.
    pub(super) furthest: u64,
    /// Whether the session was ended before its time.
    pub(super) broken: bool,
    pub(super) unrecorded: Vec<(GuestId, Process)>,
    pub(super) report: Report,
}

impl Run<'_> {
    pub(super) fn all(
        &mut self,
        concurrency: usize,
        cancelled: &AtomicBool,
        observe: &mut dyn FnMut(&Event<'_>),
    ) -> Result<(), Error> {
        let (mut looked, mut cancelled_at) = (Instant::now(), None);
        self.heard = looked;
        loop {
            self.give_out(concurrency, cancelled, observe)?;
            if self.given_out.is_empty() {
                return Ok(());
            }
            match self.session.wait(POLL_INTERVAL) {
                Ok(Some(outcome)) => {
                    self.heard = Instant::now();
                    // An outcome without an order is that of a guest that was restored and has
                    // ended since.
                    if let Some((order, begin)) = self.given_out.remove(&outcome.order) {
                        self.furthest = self.furthest.max(outcome.order);
                        // The next guest is under way while this one is written down.
                        self.give_out(concurrency, cancelled, observe)?;
                        self.take_outcome(order, self.heard - begin, outcome.result, observe);
                    }
                }
                Ok(None) => {}
                Err(_) => self.replace_nursery(observe)?,
            }
            if looked.elapsed() >= POLL_INTERVAL {
                looked = Instant::now();
                if cancelled.load(Ordering::Relaxed) {
                    cancelled_at.get_or_insert(looked);
                }
                if cancelled_at.is_some_and(|at: Instant| at.elapsed() > self.grace) {
                    self.call_off(observe);
                } else {
                    self.end_silent(observe)?;
                }
            }
        }
    }

    /// Ends guests whose time is up. An order's time counts from when it was given out; an order
    /// that may still be queued behind others has time as long as outcomes keep coming.
    fn end_silent(&mut self, observe: &mut dyn FnMut(&Event<'_>)) -> Result<(), Error> {
        let nobody_is_heard = self.heard.elapsed() > self.timeout;
        let late = |(place, (_, begin)): &(&u64, &(Order, Instant))| {
            begin.elapsed() > self.timeout && (nobody_is_heard || **place < self.furthest)
        };
        let silent: Vec<u64> = self
            .given_out
            .iter()
            .filter(late)
            .map(|(n, _)| *n)
            .collect();
        let mut lost = false;
        for place in silent {
            let Some((order, _)) = self.given_out.remove(&place) else {
                continue;
            };
            let why = format!("it did not answer within {} s", self.timeout.as_secs_f64());
            match self.end(&order.id) {
                End::Stays(also) => {
                    let error = format!("{why}, and {also}");
                    self.tell_failure(order.identity.name, error, observe);
                }
                end => {
                    // The process with this order cannot be told from those with other orders.
                    lost |= matches!(end, End::NotFound);
                    if lost {
                        self.session.abort();
                    }
                    self.fail(order.id, order.identity.name, why, observe);
                }
            }
        }
        if lost {
            self.replace_nursery(observe)?;
            self.heard = Instant::now();
        }
        Ok(())
    }

    /// Ends all that are still under way, as if they had not been begun.
    fn call_off(&mut self, observe: &mut dyn FnMut(&Event<'_>)) {
        // Answers that came before the end are still to be had.
        while let Ok(Some(outcome)) = self.session.wait(Duration::ZERO) {
            if let Some((order, begin)) = self.given_out.remove(&outcome.order) {
                self.take_outcome(order, begin.elapsed(), outcome.result, observe);
            }
        }
        self.session.abort();
        self.broken = true;
        for (_, (order, _)) in std::mem::take(&mut self.given_out) {
            match self.end(&order.id) {
                End::Stays(error) => {
                    self.tell_failure(order.identity.name, error, observe);
                }
                End::Ended | End::NotFound => {
                    match self
                        .engine
                        .forget(GuestRef::new(&self.state.run_dir(), &order.id))
                    {
                        Ok(()) => self.queue.push_front(order),
                        // It keeps its record, so that the next look removes what is left.
                        Err(e) => self.tell_failure(order.identity.name, e.to_string(), observe),
                    }
                }
            }
        }
    }

    fn give_out(
        &mut self,
        concurrency: usize,
        cancelled: &AtomicBool,
        observe: &mut dyn FnMut(&Event<'_>),
    ) -> Result<(), Error> {
        while self.given_out.len() < concurrency && !cancelled.load(Ordering::Relaxed) {
            let Some(mut order) = self.queue.pop_front() else {
                break;
            };
            let now = Instant::now();
            // The guest's disk is there before the guest is.
            match self.make_disk(&order.id) {
                Ok(disk) => order.disk = disk,
                Err(e) => {
                    self.fail(order.id, order.identity.name, e.to_string(), observe);
                    continue;
                }
            }
            let started = self.session.start(&order);
            self.given_out.insert(self.next, (order, now));
            self.next += 1;
            if started.is_err() {
                self.replace_nursery(observe)?;
            }
        }
        Ok(())
    }

    fn take_outcome(
        &mut self,
        order: Order,
        latency: Duration,
        result: Result<RestoredProcess, String>,
        observe: &mut dyn FnMut(&Event<'_>),
    ) {
        let name = order.identity.name;
        let found = result.and_then(|restored| match Process::with_pid(restored.pid) {
            Ok(Some(process)) => Ok((restored, process)),
            Ok(None) => Err("it answered and was gone at once".to_owned()),
            Err(e) => Err(format!(
                "it answered, and its process cannot be looked at: {e}"
            )),
        });
        match found {
            Ok((RestoredProcess { nonce, counter, .. }, process)) => {
                let guest = RestoredGuest {
                    name,
                    id: order.id,
                    process,
                    latency,
                    nonce,
                    counter,
                };
                observe(&Event::Restored(&guest));
                self.unrecorded.push((guest.id, guest.process));
                self.report.guests.push(guest);
                if self.unrecorded.len().is_multiple_of(BATCH) {
                    self.record();
                }
            }
            Err(error) => self.fail(order.id, name, error, observe),
        }
    }

    fn fail(
        &mut self,
        id: GuestId,
        name: String,
        error: String,
        observe: &mut dyn FnMut(&Event<'_>),
    ) {
        self.tell_failure(name, error, observe);
        let run_dir = self.state.run_dir();
        // A guest that cannot be looked at may live: it keeps its record, and so does a guest whose
        // disk is left. The next command that looks tries again.
        let known = self.engine.find(GuestRef::new(&run_dir, &id)).is_ok();
        if known
            && self.engine.forget(GuestRef::new(&run_dir, &id)).is_ok()
            && self.release(&id).is_ok()
        {
            let _ = self.state.remove_guests(&[id]);
        }
    }

    fn tell_failure(&mut self, name: String, error: String, observe: &mut dyn FnMut(&Event<'_>)) {
        let failure = Failure { name, error };
        observe(&Event::Failed(&failure));
        self.report.failures.push(failure);
    }

    /// Makes a guest's disk; returns where it is, if the guest is to read it.
    fn make_disk(&self, id: &GuestId) -> Result<Option<PathBuf>, disk::Error> {
        let Some(disk) = &self.disk else {
            return Ok(None);
        };
        disk.provider.clone_for(id)?;
        if !disk.read {
            return Ok(None);
        }
        match disk.provider.location(id)? {
            Some(location) => Ok(Some(location)),
            None => Err(disk::Error::Missing {
                disk: format!("made of {}", disk.source),
            }),
        }
    }

    fn release(&self, id: &GuestId) -> Result<(), disk::Error> {
        let disk = self.disk.as_ref();
        disk.map_or(Ok(()), |disk| disk.provider.release(id))
    }

    fn fail_given_out(&mut self, why: &str, observe: &mut dyn FnMut(&Event<'_>)) {
        for (_, (order, _)) in std::mem::take(&mut self.given_out) {
            self.end(&order.id);
            self.fail(order.id, order.identity.name, why.to_owned(), observe);
        }
    }

    /// Ends a guest that has not answered.
    fn end(&self, id: &GuestId) -> End {
        let guest = match self.engine.find(GuestRef::new(&self.state.run_dir(), id)) {
            Ok(Some(guest)) => guest,
            Ok(None) => return End::NotFound,
            Err(e) => return End::Stays(e.to_string()),
        };
        match guest.open() {
            Ok(None) => End::Ended,
            Ok(Some(handle)) => {
                let _ = process::send(&handle, Signal::SIGKILL);
                match process::wait_for_end(&handle, KILL_PATIENCE) {
                    Ok(true) => End::Ended,
                    // It is listed: its control socket is found.
                    _ => End::Stays(format!("its process {} does not end", guest.pid)),
                }
            }
            Err(e) => End::Stays(format!("its process {} cannot be ended: {e}", guest.pid)),
        }
    }

    /// Records the guests that have answered. They run even if this fails: their records say
    /// "restoring", and the next command that looks after this restore's lock is gone finds them.
    fn record(&mut self) {
        match self.state.record_running(&self.unrecorded) {
            Ok(()) => {
                self.unrecorded.clear();
                self.report.unrecorded = None;
            }
            Err(error) => self.report.unrecorded = Some(error),
        }
    }

    /// The nursery is gone, and with it every guest that had not answered. Their orders are given
    /// to a new one, unless nurseries keep dying.
    fn replace_nursery(&mut self, observe: &mut dyn FnMut(&Event<'_>)) -> Result<(), Error> {
        // Answers that came before the end are still to be had.
        while let Ok(Some(outcome)) = self.session.wait(Duration::ZERO) {
            if let Some((order, begin)) = self.given_out.remove(&outcome.order) {
                self.take_outcome(order, begin.elapsed(), outcome.result, observe);
            }
        }
        self.session.abort();
        if self.nurseries >= NURSERIES {
            self.fail_given_out("the nursery was killed again and again", observe);
            while let Some(order) = self.queue.pop_front() {
                self.fail(
                    order.id,
                    order.identity.name,
                    "the nursery was killed again and again".to_owned(),
                    observe,
                );
            }
            return Ok(());
        }
        let run_dir = self.state.run_dir();
        let mut again: Vec<_> = std::mem::take(&mut self.given_out).into_iter().collect();
        again.sort_by_key(|(seq, _)| std::cmp::Reverse(*seq));
        for (_, (order, _)) in again {
            self.end(&order.id);
            // The dead guest's control socket, and its writes on its disk, would be in the new
            // guest's way.
            self.engine.forget(GuestRef::new(&run_dir, &order.id))?;
            self.release(&order.id).map_err(guests::Error::from)?;
            self.queue.push_front(order);
        }
        self.session = begin_session(
            self.engine,
            self.checkpoint,
            &run_dir,
            self.lock.file(),
            self.park_after,
            &mut self.nurseries,
        )?;
        (self.next, self.furthest) = (0, 0);
        observe(&Event::NurseryReplaced);
        Ok(())
    }

    pub(super) fn finish(
        mut self,
        begin: Instant,
        result: Result<(), Error>,
        slot: Option<Slot<'_>>,
    ) -> Result<Report, Error> {
        self.record();
        if result.is_err() {
            // A process that still restores may have a disk open, and is in no list of guests.
            self.session.abort();
        }
        // What was not begun was never there.
        let rest = self.queue.iter().map(|order| order.id);
        let rest: Vec<_> = rest
            .chain(self.given_out.values().map(|(order, _)| order.id))
            .collect();
        // One of which something is left keeps its record, so that the next look removes it.
        let forgotten = |id: &GuestId| {
            let begun =
                result.is_err() && self.given_out.values().any(|(order, _)| order.id == *id);
            !begun
                || self
                    .engine
                    .forget(GuestRef::new(&self.state.run_dir(), id))
                    .is_ok()
        };
        let released = |id: &&GuestId| forgotten(id) && self.release(id).is_ok();
        let gone: Vec<_> = rest.iter().filter(released).copied().collect();
        match self.state.remove_guests(&gone) {
            Err(error) if self.report.guests.is_empty() => return Err(error.into()),
            // The next look finds that recorded guests which never came do not exist.
            Err(error) => drop(self.report.unrecorded.get_or_insert(error)),
            Ok(()) => {}
        }
        self.report.not_begun = rest.len();
        self.report.wall = begin.elapsed();
        // A session that stays keeps its lock, and guests that are not recorded would seem to be on
        // their way as long as it does.
        let is_recorded = self.report.unrecorded.is_none();
        if let Some(error) = &self.report.unrecorded {
            tracing::warn!(%error, "guests run, but could not be recorded as running");
        }
        let is_good = self.report.failures.is_empty() && !self.broken && is_recorded;
        if let Some(slot) = slot
            && result.is_ok()
            && is_good
            && self.given_out.is_empty()
        {
            slot.put(IdleSession {
                session: self.session,
                next: self.next,
                lock: self.lock,
                stamps: self.checkpoint.stamps(),
                park_after: self.park_after,
            });
        }
        match result {
            Err(e) if self.report.guests.is_empty() => Err(e),
            Err(e) => {
                let error = e.to_string();
                self.report.failures.push(Failure {
                    name: "the rest".to_owned(),
                    error,
                });
                Ok(self.report)
            }
            Ok(()) => Ok(self.report),
        }
    }
}
