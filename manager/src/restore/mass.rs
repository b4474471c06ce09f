//! Mass restore: many guests from one checkpoint, a few at a time.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    Slot,
    admission::{self, Demand, Verdict, admit},
    disks,
    standing::Standing,
};
use crate::{
    checkpoint::{self, Checkpoint, FileStamp, Progress},
    disk::{self, Choice, Provider},
    engine::{self, Engine, GuestId, Identity, Order, Process, Restored, Session},
    guests::{self, GuestState, Guests},
    host::facts::HostFacts,
    state::{
        self, GuestRow, Membership, NewGuest, RowState, SessionLock, State, new_name, new_names,
    },
    units::Bytes,
};

/// How often the process that guests are forked from is replaced when it was killed.
const NURSERIES: u32 = 5;
/// A restore of which nothing is heard for so long has failed.
const STALL: Duration = Duration::from_secs(60);
/// How often a waiting restore looks whether it was cancelled.
const GLANCE: Duration = Duration::from_millis(100);
/// Guests recorded in one transaction.
const BATCH: usize = 128;
/// A memory file changed more recently than this is digested again next time: a later change
/// within the same tick of the file's clock would not show.
const FRESH: i128 = 2_000_000_000;

/// How guests are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// `PREFIX-1`, `PREFIX-2`, ...: the lowest that are free.
    Numbered(String),
    /// This very name, for a single guest.
    Only(String),
}

/// What to restore.
#[derive(Clone, Debug)]
pub struct Request {
    /// How many guests.
    pub guests: usize,
    /// How many at once, at most.
    pub concurrency: usize,
    /// How they are named.
    pub names: Names,
    /// Private memory that the operator allows each guest to come to hold.
    pub allowance: Bytes,
    /// Kernel and process memory of one guest.
    pub overhead: Bytes,
    /// Go ahead when what is allowed does not fit in memory.
    pub overcommit: bool,
    /// Guests that are idle for so long give their virtual machine back until they are asked.
    pub park_after: Option<Duration>,
    /// The pool that the guests belong to, if they do.
    pub membership: Option<Membership>,
    /// The disk that each guest gets a clone of.
    pub disk: Choice,
}

/// What happens on the way.
#[derive(Debug)]
pub enum Event<'a> {
    /// The checkpoint's memory is being checked.
    Verifying(Progress),
    /// Admitted; memory is overcommitted when there is a risk to tell.
    Admitted {
        /// What the restore was held against.
        verdict: &'a Verdict,
    },
    /// A guest has answered.
    Restored(&'a RestoredGuest),
    /// A guest was not restored.
    Failed(&'a Failure),
    /// The nursery was killed; a new one goes on.
    NurseryReplaced,
}

/// A guest that was restored and has answered.
#[derive(Clone, Debug, PartialEq)]
pub struct RestoredGuest {
    /// Name.
    pub name: String,
    /// Id.
    pub id: GuestId,
    /// Process.
    pub process: Process,
    /// From the order to the guest's own answer.
    pub latency: Duration,
    /// Nonce from its memory.
    pub nonce: u64,
    /// Requests answered since it was booted.
    pub counter: u64,
}

/// A guest that was not restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The name it would have had.
    pub name: String,
    /// Why.
    pub error: String,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// Guests asked for.
    pub asked: usize,
    /// Guests that answered, in the order in which they did.
    pub guests: Vec<RestoredGuest>,
    /// Guests that failed.
    pub failures: Vec<Failure>,
    /// Guests that were not begun because the restore was cancelled.
    pub not_begun: usize,
    /// From the admission to the last answer.
    pub wall: Duration,
}

/// Why nothing was restored at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not fit.
    #[error(transparent)]
    Admission(#[from] admission::Error),
    /// The checkpoint is not what it should be.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The engine cannot begin.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The disk.
    #[error("cannot restore {checkpoint}: {source}")]
    Disk {
        /// The bundle.
        checkpoint: String,
        /// What is wrong with its disk.
        source: disk::Error,
    },
    /// The record.
    #[error(transparent)]
    State(#[from] state::Error),
    /// Guests.
    #[error(transparent)]
    Guests(#[from] guests::Error),
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            // Its message says what to change.
            Self::Admission(admission::Error::DoesNotFit { limit, .. }) => {
                limit.overcommittable.then(|| {
                    "--overcommit goes ahead: it is memory that guests may never use".to_owned()
                })
            }
            Self::Checkpoint(e) => e.hint(),
            Self::Engine(e) => e.hint(),
            Self::Disk { source, .. } => source.hint(),
            Self::State(e) => e.hint(),
            Self::Guests(e) => e.hint(),
        }
    }
}

/// Makes sure that the memory file of `checkpoint`, and those of its parents when it is a delta,
/// are what was sealed. A file whose digest was
/// computed before, and that was not changed since, is not read again.
///
/// # Errors
/// When it is not, or cannot be read.
pub fn verify(
    state: &State,
    checkpoint: &Checkpoint,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(), Error> {
    for layer in checkpoint.layers() {
        let stamp = layer.stamp();
        let sealed = &layer.manifest().files.ckp.sha256;
        if state.verified_digest(&stamp)?.as_ref() == Some(sealed) {
            continue;
        }
        layer.verify_layer(progress)?;
        if !is_fresh(&stamp) {
            state.note_verified(&stamp, sealed)?;
        }
    }
    Ok(())
}

pub(super) fn is_fresh(stamp: &FileStamp) -> bool {
    Timestamp::now().as_nanosecond() - stamp.ctime_ns.max(stamp.mtime_ns) < FRESH
}

/// Restores guests. Those that fail do not hold up the others; setting `cancelled` stops new ones
/// from being begun, and waits for those under way.
///
/// # Errors
/// When nothing could be restored at all; then nothing is left behind.
pub fn restore(
    state: &mut State,
    engine: &dyn Engine,
    facts: &HostFacts,
    checkpoint: &Checkpoint,
    request: &Request,
    cancelled: &AtomicBool,
    observe: &mut dyn FnMut(&Event<'_>),
) -> Result<Report, Error> {
    let slot = &mut Slot::default();
    restore_by(
        slot, state, engine, facts, checkpoint, request, cancelled, observe,
    )
}

/// The same, by the session that stands in `slot` if it fits, which is kept there for the next one.
///
/// # Errors
/// As [`restore`].
#[expect(
    clippy::too_many_arguments,
    reason = "what a restore needs, and the session that it can have"
)]
pub fn restore_by(
    slot: &mut Slot,
    state: &mut State,
    engine: &dyn Engine,
    facts: &HostFacts,
    checkpoint: &Checkpoint,
    request: &Request,
    cancelled: &AtomicBool,
    observe: &mut dyn FnMut(&Event<'_>),
) -> Result<Report, Error> {
    let begin = Instant::now();
    let stood = slot.take(checkpoint, request.park_after);
    let (lock, mut stood) = match stood {
        Some(Standing {
            lock,
            session,
            next,
            ..
        }) => (lock, Some((session, next))),
        None => (state.begin_session()?, None),
    };
    let disk = disks::open(state, checkpoint, &request.disk, &lock);
    let reserved = disk.and_then(|disk| {
        // What was opened is what is recorded.
        let source = disk.as_ref().map(|disk| disk.source.clone());
        let request = Request {
            disk: source.map_or(Choice::None, Choice::Source),
            ..request.clone()
        };
        let orders = reserve(state, engine, facts, checkpoint, &request, &lock, observe)?;
        Ok((orders, disk))
    });
    let (orders, disk) = match (reserved, stood) {
        (Ok(reserved), kept) => {
            stood = kept;
            reserved
        }
        (Err(e), Some((session, next))) => {
            slot.put(Standing {
                session,
                next,
                lock,
                stamps: checkpoint.stamps(),
                park_after: request.park_after,
            });
            return Err(e);
        }
        (Err(e), None) => return Err(e),
    };
    let mut nurseries = 0;
    let begun = match stood {
        Some(stood) => Ok(stood),
        None => begin_session(
            engine,
            checkpoint,
            &state.run_dir(),
            lock.file(),
            request.park_after,
            &mut nurseries,
        )
        .map(|session| (session, 0)),
    };
    let (session, next) = match begun {
        Ok(begun) => begun,
        Err(e) => {
            let ids: Vec<_> = orders.iter().map(|order| order.id).collect();
            state.remove_guests(&ids)?;
            return Err(e.into());
        }
    };
    let mut run = Run {
        state,
        engine,
        checkpoint,
        lock,
        park_after: request.park_after,
        disk: disk.map(|disk| disk.provider),
        session,
        nurseries,
        queue: orders.into(),
        given_out: HashMap::new(),
        next,
        unrecorded: Vec::new(),
        report: Report {
            asked: request.guests,
            guests: Vec::new(),
            failures: Vec::new(),
            not_begun: 0,
            wall: Duration::ZERO,
        },
    };
    let result = run.all(request.concurrency.max(1), cancelled, observe);
    run.finish(begin, result, slot)
}

/// Begins a session of the engine. A nursery that was killed before it was ready is replaced, as
/// one that is killed later; `nurseries` counts them.
fn begin_session(
    engine: &dyn Engine,
    checkpoint: &Checkpoint,
    run_dir: &Path,
    lock: &File,
    park_after: Option<Duration>,
    nurseries: &mut u32,
) -> Result<Box<dyn Session>, engine::Error> {
    loop {
        *nurseries += 1;
        match engine.session(checkpoint, run_dir, lock, park_after) {
            Err(engine::Error::Nursery(_)) if *nurseries < NURSERIES => {}
            result => return result,
        }
    }
}

/// Admits the request and records its guests.
///
/// To look at every guest that lives takes time for each. So first they are all taken to live and
/// to have used nothing of what they were promised; only if there is no room then, or if the guests
/// of a restore that was cut off are still recorded, they are looked at.
fn reserve(
    state: &mut State,
    engine: &dyn Engine,
    facts: &HostFacts,
    checkpoint: &Checkpoint,
    request: &Request,
    lock: &SessionLock,
    observe: &mut dyn FnMut(&Event<'_>),
) -> Result<Vec<Order>, Error> {
    // Their names are free again when they are found not to be there.
    if state
        .guests()?
        .iter()
        .any(|row| row.state == RowState::Restoring)
    {
        Guests { state, engine }.list()?;
    }
    let mut reserve = |state: &mut State, known: Known<'_>| {
        reserve_if(state, known, facts, checkpoint, request, lock, observe)
    };
    match reserve(state, Known::Nothing) {
        Err(Error::Admission(_)) => {
            let live = Guests { state, engine }.list()?;
            let run_dir = state.run_dir();
            let used = live
                .iter()
                .filter_map(|guest| {
                    let (id, process) = (guest.row.id, guest.process()?);
                    Some((id, engine.usage(&run_dir, &id, process).ok()?.private))
                })
                .collect();
            let dead: Vec<GuestId> = live
                .iter()
                .filter(|g| g.state == GuestState::Dead)
                .map(|g| g.row.id)
                .collect();
            reserve(
                state,
                Known::Now {
                    used: &used,
                    dead: &dead,
                },
            )
        }
        reserved => reserved,
    }
}

/// What is known of the guests that are recorded.
#[derive(Clone, Copy)]
enum Known<'a> {
    /// What is recorded.
    Nothing,
    /// What was just seen.
    Now {
        /// Private memory of those that live.
        used: &'a HashMap<GuestId, Bytes>,
        /// Those that are recorded and live no more.
        dead: &'a [GuestId],
    },
}

impl Known<'_> {
    /// Private memory of a guest that lives; `None` when it is not there yet.
    fn used(&self, row: &GuestRow) -> Option<Bytes> {
        match self {
            Self::Nothing => (row.state == RowState::Running).then_some(Bytes(0)),
            Self::Now { used, .. } => used.get(&row.id).copied(),
        }
    }

    fn is_dead(&self, row: &GuestRow) -> bool {
        matches!(self, Self::Now { dead, .. } if dead.contains(&row.id))
    }
}

/// Admits the request and records its guests, as one step: two restores at once cannot both be
/// given the same memory.
fn reserve_if(
    state: &mut State,
    known: Known<'_>,
    facts: &HostFacts,
    checkpoint: &Checkpoint,
    request: &Request,
    lock: &SessionLock,
    observe: &mut dyn FnMut(&Event<'_>),
) -> Result<Vec<Order>, Error> {
    let bundle = checkpoint.path().absolute()?.to_string();
    let manifest = checkpoint.manifest();
    let sha256 = manifest.memory_sha256();
    let created_at = Timestamp::now().to_string();
    let disk = match &request.disk {
        Choice::Source(source) => Some(source.to_string()),
        Choice::Sealed | Choice::None => None,
    };
    state.reserve(|rows, add| {
        let mut demand = Demand {
            guests: request.guests as u64,
            overhead: request.overhead,
            allowance: request.allowance,
            memory_size: manifest.memory.size,
            outstanding: Bytes(0),
            outstanding_pids: 0,
        };
        for row in rows.iter().filter(|row| !known.is_dead(row)) {
            let used = known.used(row);
            promised(&mut demand, row, used, facts.pids_per_guest());
        }
        let verdict = admit(facts, &demand);
        let looked = matches!(known, Known::Now { .. });
        verdict.check(request.overcommit && looked)?;
        observe(&Event::Admitted { verdict: &verdict });

        let names = match &request.names {
            Names::Numbered(prefix) => new_names(rows, prefix, request.guests)?,
            Names::Only(name) => vec![new_name(rows, name)?],
        };
        let mut orders = Vec::with_capacity(names.len());
        for name in names {
            let randomness = |source| engine::Error::Io {
                action: "make an identity",
                source,
            };
            let order = Order {
                id: GuestId::random().map_err(randomness)?,
                identity: Identity::fresh(&name).map_err(randomness)?,
            };
            add(&NewGuest {
                order: &order,
                checkpoint: &bundle,
                sha256: &sha256,
                memory: manifest.memory.size,
                allowance: request.allowance,
                session: lock.name(),
                created_at: &created_at,
                membership: request.membership.as_ref(),
                disk: disk.as_deref(),
            })?;
            orders.push(order);
        }
        Ok(orders)
    })
}

/// Adds what an earlier guest was promised and has not used yet.
fn promised(demand: &mut Demand, row: &GuestRow, used: Option<Bytes>, pids_per_guest: u64) {
    let allowance = row.allowance.min(row.memory);
    let outstanding = match (row.state, used) {
        (RowState::Dead, _) => Bytes(0),
        (_, Some(used)) => allowance.saturating_sub(used),
        (_, None) => {
            demand.outstanding_pids += pids_per_guest;
            allowance + demand.overhead
        }
    };
    demand.outstanding = demand.outstanding + outstanding;
}

/// A restore under way.
struct Run<'a> {
    state: &'a mut State,
    engine: &'a dyn Engine,
    checkpoint: &'a Checkpoint,
    lock: SessionLock,
    park_after: Option<Duration>,
    disk: Option<Box<dyn Provider>>,
    session: Box<dyn Session>,
    nurseries: u32,
    queue: VecDeque<Order>,
    /// Orders without an outcome, by their place in the session.
    given_out: HashMap<u64, (Order, Instant)>,
    next: u64,
    unrecorded: Vec<(GuestId, Process)>,
    report: Report,
}

impl Run<'_> {
    fn all(
        &mut self,
        concurrency: usize,
        cancelled: &AtomicBool,
        observe: &mut dyn FnMut(&Event<'_>),
    ) -> Result<(), Error> {
        let mut heard = Instant::now();
        loop {
            self.give_out(concurrency, cancelled, observe)?;
            if self.given_out.is_empty() {
                return Ok(());
            }
            match self.session.wait(GLANCE) {
                Ok(Some(outcome)) => {
                    heard = Instant::now();
                    // What is not waited for is a guest that was restored and has ended since.
                    if let Some((order, begin)) = self.given_out.remove(&outcome.order) {
                        // The next guest is under way while this one is written down.
                        self.give_out(concurrency, cancelled, observe)?;
                        self.settle(order, heard - begin, outcome.result, observe)?;
                    }
                }
                Ok(None) if heard.elapsed() > STALL => {
                    self.session.abort();
                    self.fail_given_out("it did not answer in time", observe);
                    self.replace_nursery(observe)?;
                    heard = Instant::now();
                }
                Ok(None) => {}
                Err(_) => self.replace_nursery(observe)?,
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
            let Some(order) = self.queue.pop_front() else {
                break;
            };
            let now = Instant::now();
            // The guest's disk is there before the guest is.
            let made = self.disk.as_ref().map(|disk| disk.clone_for(&order.id));
            if let Some(Err(e)) = made {
                self.fail(order.id, order.identity.name, e.to_string(), observe);
                continue;
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

    fn settle(
        &mut self,
        order: Order,
        latency: Duration,
        result: Result<Restored, String>,
        observe: &mut dyn FnMut(&Event<'_>),
    ) -> Result<(), Error> {
        let name = order.identity.name;
        let found = result.and_then(|restored| match Process::with_pid(restored.pid) {
            Some(process) => Ok((restored, process)),
            None => Err("it answered and was gone at once".to_owned()),
        });
        match found {
            Ok((Restored { nonce, counter, .. }, process)) => {
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
                if self.unrecorded.len() >= BATCH {
                    self.record()?;
                }
            }
            Err(error) => self.fail(order.id, name, error, observe),
        }
        Ok(())
    }

    fn fail(
        &mut self,
        id: GuestId,
        name: String,
        error: String,
        observe: &mut dyn FnMut(&Event<'_>),
    ) {
        let failure = Failure { name, error };
        observe(&Event::Failed(&failure));
        let _ = self.engine.forget(&self.state.run_dir(), &id);
        // One whose disk is left stays recorded: the next command that looks tries again.
        if self.release(&id).is_ok() {
            let _ = self.state.remove_guests(&[id]);
        }
        self.report.failures.push(failure);
    }

    fn release(&self, id: &GuestId) -> Result<(), disk::Error> {
        self.disk.as_ref().map_or(Ok(()), |disk| disk.release(id))
    }

    fn fail_given_out(&mut self, why: &str, observe: &mut dyn FnMut(&Event<'_>)) {
        for (_, (order, _)) in std::mem::take(&mut self.given_out) {
            self.fail(order.id, order.identity.name, why.to_owned(), observe);
        }
    }

    fn record(&mut self) -> Result<(), Error> {
        self.state
            .record_running(&std::mem::take(&mut self.unrecorded))?;
        Ok(())
    }

    /// The nursery is gone, and with it every guest that had not answered. Their orders are given
    /// to a new one, unless nurseries keep dying.
    fn replace_nursery(&mut self, observe: &mut dyn FnMut(&Event<'_>)) -> Result<(), Error> {
        // Answers that came before the end are still to be had.
        while let Ok(Some(outcome)) = self.session.wait(Duration::ZERO) {
            if let Some((order, begin)) = self.given_out.remove(&outcome.order) {
                self.settle(order, begin.elapsed(), outcome.result, observe)?;
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
            // A control socket that the dead guest had made would be in the new one's way, and
            // what it had written on its disk.
            self.engine.forget(&run_dir, &order.id)?;
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
        self.next = 0;
        observe(&Event::NurseryReplaced);
        Ok(())
    }

    fn finish(
        mut self,
        begin: Instant,
        result: Result<(), Error>,
        slot: &mut Slot,
    ) -> Result<Report, Error> {
        self.record()?;
        // What was not begun was never there.
        let rest = self.queue.iter().map(|order| order.id);
        let rest: Vec<_> = rest
            .chain(self.given_out.values().map(|(order, _)| order.id))
            .collect();
        let released = |id: &&GuestId| self.release(id).is_ok();
        let gone: Vec<_> = rest.iter().filter(released).copied().collect();
        self.state.remove_guests(&gone)?;
        self.report.not_begun = rest.len();
        self.report.wall = begin.elapsed();
        if result.is_ok() && self.report.failures.is_empty() && self.given_out.is_empty() {
            slot.put(Standing {
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
