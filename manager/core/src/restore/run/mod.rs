//! Run of a mass restore: gives out orders a few at a time, records their outcomes, and replaces a
//! fork server (nursery) that was killed.

mod failures;

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{
    disks::DiskSources,
    error::Error,
    report::{RestoreFailure, RestoreReport, RestoreStep, RestoredGuest},
    session_cache::{Slot, WarmSession},
    spec::RestoreSpec,
};
use crate::{
    checkpoint::{Checkpoint, until},
    disk,
    engine::{
        self, Engine, GuestOrder, GuestRef, Process, RestoredProcess, Session,
        restore_lock::RestoreLock,
    },
    faults::{self, Point},
    guest_id::GuestId,
    percentiles::Percentiles,
    state::{self, AnsweredGuest, State},
};

/// How often the process that guests are forked from is replaced when it was killed.
const NURSERIES: u32 = 5;
/// How long nurseries are replaced that were not ready.
const NURSERY_PATIENCE: Duration = Duration::from_secs(20);
/// How often a restore looks whether it was cancelled, and whose time is up.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long guests that are under way may still take when their restore was cancelled.
const CANCEL_PATIENCE: Duration = Duration::from_secs(3);
/// Guests recorded in one transaction.
const BATCH: usize = 128;

/// What a run works with when its guests are admitted and recorded.
pub(super) struct RunParts<'a> {
    pub(super) engine: &'a dyn Engine,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) spec: &'a RestoreSpec,
    /// How many guests are restored at once.
    pub(super) concurrency: usize,
    pub(super) slot: Option<Slot<'a>>,
    pub(super) cancelled: &'a AtomicBool,
    pub(super) disk: Option<DiskSources>,
    pub(super) lock: RestoreLock,
    /// When the restore began.
    pub(super) begin: Instant,
}

impl RunParts<'_> {
    /// Begins a session of the engine. Replaces a nursery that was killed before it was ready, as
    /// one that is killed later; `nurseries` counts them.
    fn begin_session(
        &self,
        run_dir: &Path,
        nurseries: &mut u32,
    ) -> Result<Box<dyn Session>, engine::Error> {
        let (begin, terms) = (Instant::now(), self.spec.terms());
        loop {
            *nurseries += 1;
            faults::at(Point::RestoreSession).map_err(|source| engine::Error::Io {
                action: "begin",
                source,
            })?;
            let lock = self.lock.file();
            match self.engine.session(self.checkpoint, run_dir, lock, &terms) {
                Err(engine::Error::Nursery(_))
                    if *nurseries < NURSERIES && begin.elapsed() < NURSERY_PATIENCE => {}
                result => return result,
            }
        }
    }

    /// Time that guests in flight still have when the restore was cancelled. A guest for a claimer
    /// who has gone is of no use, and gets none.
    fn grace(&self) -> Duration {
        let claim = self
            .spec
            .membership
            .as_ref()
            .and_then(|of| of.claim.as_ref());
        claim.map_or(CANCEL_PATIENCE, |_| Duration::ZERO)
    }
}

/// Restores the guests that were ordered. A guest that fails, or does not answer in time, does not
/// hold up the others.
pub(super) fn run(
    state: &mut State,
    parts: RunParts<'_>,
    orders: Vec<GuestOrder>,
    warm: Option<WarmSession>,
    observe: &mut dyn FnMut(&RestoreStep<'_>),
) -> Result<RestoreReport, Error> {
    let mut nurseries = 0;
    let warm = match warm {
        Some(warm) => warm,
        None => match parts.begin_session(&state.run_dir(), &mut nurseries) {
            Ok(session) => WarmSession {
                session,
                next: 0,
                stamps: parts.checkpoint.stamps(),
                terms: parts.spec.terms(),
            },
            Err(e) => {
                let ids: Vec<_> = orders.iter().map(|order| order.id).collect();
                state.remove_guests(&ids)?;
                return Err(e.into());
            }
        },
    };
    let report = RestoreReport {
        checkpoint: parts.spec.checkpoint.clone(),
        asked: parts.spec.guests as usize,
        paused: parts.spec.paused,
        ..RestoreReport::default()
    };
    let mut run = Run {
        state,
        warm,
        nurseries,
        queue: orders.into(),
        given_out: HashMap::new(),
        heard: parts.begin,
        furthest: 0,
        broken: false,
        unrecorded: Vec::new(),
        record_error: None,
        report,
        parts,
    };
    let result = run.all(observe);
    run.finish(result)
}

/// A restore in flight.
struct Run<'a> {
    state: &'a mut State,
    parts: RunParts<'a>,
    warm: WarmSession,
    nurseries: u32,
    queue: VecDeque<GuestOrder>,
    /// Orders without an outcome, by their place in the session.
    given_out: HashMap<u64, (GuestOrder, Instant)>,
    /// When the last outcome came.
    heard: Instant,
    /// Orders before this place are no longer queued: a later one has its outcome already.
    furthest: u64,
    /// Whether the session was ended before its time.
    broken: bool,
    unrecorded: Vec<AnsweredGuest>,
    /// Why the guests that answered could not be recorded as running. The next command that can
    /// write finds and records them.
    record_error: Option<state::Error>,
    report: RestoreReport,
}

impl Run<'_> {
    fn all(&mut self, observe: &mut dyn FnMut(&RestoreStep<'_>)) -> Result<(), Error> {
        let (mut looked, mut cancelled_at) = (Instant::now(), None);
        self.heard = looked;
        loop {
            self.give_out(observe)?;
            if self.given_out.is_empty() {
                return Ok(());
            }
            match self.warm.session.wait(POLL_INTERVAL) {
                Ok(Some(outcome)) => {
                    self.heard = Instant::now();
                    // An outcome without an order is that of a guest that was restored and has
                    // ended since.
                    if let Some((order, begin)) = self.given_out.remove(&outcome.order) {
                        self.furthest = self.furthest.max(outcome.order);
                        // The next guest is under way while this one is written down.
                        self.give_out(observe)?;
                        self.take_outcome(order, self.heard - begin, outcome.result, observe);
                    }
                }
                Ok(None) => {}
                Err(_) => self.replace_nursery(observe)?,
            }
            if looked.elapsed() >= POLL_INTERVAL {
                looked = Instant::now();
                if self.parts.cancelled.load(Ordering::Relaxed) {
                    cancelled_at.get_or_insert(looked);
                }
                if cancelled_at.is_some_and(|at: Instant| at.elapsed() > self.parts.grace()) {
                    self.call_off(observe);
                } else {
                    self.end_silent(observe)?;
                }
            }
        }
    }

    fn give_out(&mut self, observe: &mut dyn FnMut(&RestoreStep<'_>)) -> Result<(), Error> {
        while self.given_out.len() < self.parts.concurrency
            && !self.parts.cancelled.load(Ordering::Relaxed)
        {
            let Some(mut order) = self.queue.pop_front() else {
                break;
            };
            let now = Instant::now();
            // The guest's disk is there before the guest is.
            let disk = self
                .parts
                .disk
                .as_ref()
                .map(|disk| disk.clone_for(&order.id, &until(self.parts.cancelled)));
            match disk.transpose() {
                Ok(disk) => order.disk = disk.flatten(),
                // As if it had not been begun.
                Err(e) if e.is_interrupted() => {
                    self.queue.push_front(order);
                    break;
                }
                Err(e) => {
                    self.fail(order.id, order.identity.name, e.to_string(), observe);
                    continue;
                }
            }
            let started = faults::at(Point::RestoreOrder)
                .map_err(|source| engine::Error::Io {
                    action: "order a guest",
                    source,
                })
                .and_then(|()| self.warm.session.start(&order));
            self.given_out.insert(self.warm.next, (order, now));
            self.warm.next += 1;
            if started.is_err() {
                self.replace_nursery(observe)?;
            }
        }
        Ok(())
    }

    fn take_outcome(
        &mut self,
        order: GuestOrder,
        latency: Duration,
        result: Result<RestoredProcess, String>,
        observe: &mut dyn FnMut(&RestoreStep<'_>),
    ) {
        let name = order.identity.name;
        let look = |pid| faults::at(Point::RestoreOutcome).and_then(|()| Process::with_pid(pid));
        let found = result.and_then(|restored| match look(restored.pid) {
            Ok(Some(process)) => Ok((restored, process)),
            Ok(None) => Err("it answered and was gone at once".to_owned()),
            Err(e) => Err(format!(
                "it answered, and its process cannot be looked at: {e}"
            )),
        });
        match found {
            Ok((restored, process)) => {
                let RestoredProcess { nonce, counter, .. } = restored;
                let guest = RestoredGuest {
                    name,
                    id: order.id,
                    pid: process.pid,
                    restore_ms: latency.as_secs_f64() * 1e3,
                    nonce,
                    counter,
                };
                observe(&RestoreStep::Restored(&guest));
                self.unrecorded.push((guest.id, process, restored.landlock));
                self.report.guests.push(guest);
                if self.unrecorded.len().is_multiple_of(BATCH) {
                    self.record();
                }
            }
            Err(error) => self.fail(order.id, name, error, observe),
        }
    }

    fn release(&self, id: &GuestId) -> Result<(), disk::Error> {
        let disk = self.parts.disk.as_ref();
        disk.map_or(Ok(()), |disk| disk.provider.release(id))
    }

    /// Records the guests that have answered. They run even if this fails: their records say
    /// "restoring", and the next command that looks after this restore's lock is gone finds them.
    fn record(&mut self) {
        match self.state.record_running(&self.unrecorded) {
            Ok(()) => {
                self.unrecorded.clear();
                self.record_error = None;
            }
            Err(error) => self.record_error = Some(error),
        }
    }

    /// Records what is left to record, and leaves the session for the next restore if it is good.
    fn finish(mut self, result: Result<(), Error>) -> Result<RestoreReport, Error> {
        self.record();
        if result.is_err() {
            // A process that still restores may have a disk open, and is in no list of guests.
            self.warm.session.abort();
        }
        // What was not begun was never there.
        let rest = self.queue.iter().map(|order| order.id);
        let rest: Vec<_> = rest
            .chain(self.given_out.values().map(|(order, _)| order.id))
            .collect();
        // One of which something is left keeps its record, so that the next look removes it.
        let run_dir = self.state.run_dir();
        let forgotten = |id: &GuestId| {
            let begun =
                result.is_err() && self.given_out.values().any(|(order, _)| order.id == *id);
            !begun
                || self
                    .parts
                    .engine
                    .forget(GuestRef::new(&run_dir, id))
                    .is_ok()
        };
        let released = |id: &&GuestId| forgotten(id) && self.release(id).is_ok();
        let gone: Vec<_> = rest.iter().filter(released).copied().collect();
        match self.state.remove_guests(&gone) {
            Err(error) if self.report.guests.is_empty() => return Err(error.into()),
            // The next look finds that recorded guests which never came do not exist.
            Err(error) => drop(self.record_error.get_or_insert(error)),
            Ok(()) => {}
        }
        let wall = self.parts.begin.elapsed();
        // A session that stays keeps its lock, and guests that are not recorded would seem to be on
        // their way as long as it does.
        let is_recorded = self.record_error.is_none();
        let is_good = self.report.failures.is_empty() && !self.broken && is_recorded;
        if let Some(slot) = self.parts.slot
            && result.is_ok()
            && is_good
            && self.given_out.is_empty()
        {
            slot.put(self.parts.lock, self.warm);
        }
        let mut report = self.report;
        match result {
            Err(e) if report.guests.is_empty() => return Err(e),
            Err(e) => report.failures.push(RestoreFailure {
                name: "the rest".to_owned(),
                error: e.to_string(),
            }),
            Ok(()) => {}
        }
        if let Some(error) = self.record_error {
            tracing::warn!(%error, "guests run, but could not be recorded as running");
            report.undone.push(format!(
                "the guests run and are not recorded: {error}; the next `brood list` that can write \
                 records them"
            ));
        }
        let latencies: Vec<f64> = report.guests.iter().map(|g| g.restore_ms).collect();
        report.restore_ms = Percentiles::of(&latencies);
        report.restored = report.guests.len();
        report.failed = report.failures.len();
        report.not_begun = rest.len();
        report.interrupted = report.not_begun > 0 && self.parts.cancelled.load(Ordering::Relaxed);
        report.wall_s = wall.as_secs_f64();
        Ok(report)
    }
}
