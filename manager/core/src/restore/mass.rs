//! Mass restore: many guests from one checkpoint, a few at a time.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    Slot, disks,
    reserve::reserve,
    run::{CANCEL_PATIENCE, Run, begin_session},
};
use crate::{
    checkpoint::{self, Checkpoint, FileStamp, Progress, Watch},
    disk::{self, Choice},
    engine::{self, Engine, Process, restore_lock::RestoreLock},
    guest_id::GuestId,
    guests,
    host::facts::HostFacts,
    state::{self, BundleAction, BundleUse, Membership, State},
    units::Bytes,
};
use crate::{
    host::admission::{self, Verdict},
    restore::session_cache::IdleSession,
};

/// Default time that a guest has from its order to its answer.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A memory file changed more recently than this is digested again next time: a later change
/// within the same tick of the file's clock would not show.
const FRESH: i128 = 2_000_000_000;

/// How guests are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// `PREFIX-1`, `PREFIX-2`, ..., continuing after the last number given.
    Numbered(String),
    /// The name that a guest had before; if that is taken, a number.
    Again {
        /// The name.
        name: String,
        /// What else it is made of.
        prefix: String,
    },
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
    /// Time that each guest has from its order to its answer. A guest that takes longer is ended.
    pub timeout: Duration,
    /// How they are named.
    pub names: Names,
    /// Private limit of each guest.
    pub private_limit: Bytes,
    /// Kernel and process memory of one guest.
    pub overhead: Bytes,
    /// Restore even if the private limits do not fit in memory.
    pub overcommit: bool,
    /// Guests that are idle for so long give their virtual machine back until they are asked.
    pub park_after: Option<Duration>,
    /// The pool that the guests belong to, if they do.
    pub membership: Option<Membership>,
    /// The disk that each guest gets a clone of.
    pub disk: Choice,
}

impl Request {
    /// Time that guests still have after the restore was cancelled. A guest for a claimer who has
    /// gone is of no use, and gets none.
    fn grace(&self) -> Duration {
        let claim = self.membership.as_ref().and_then(|of| of.claim.as_ref());
        claim.map_or(CANCEL_PATIENCE, |_| Duration::ZERO)
    }
}

/// Event of a restore.
#[derive(Debug)]
pub enum Event<'a> {
    /// The checkpoint's memory is being checked.
    Verifying(Progress),
    /// Admitted; memory is overcommitted when there is a risk to tell.
    Admitted {
        /// The verdict of admission.
        verdict: &'a Verdict,
    },
    /// A guest has answered.
    Restored(&'a RestoredGuest),
    /// A guest was not restored.
    Failed(&'a Failure),
    /// The nursery was killed; a new one goes on.
    NurseryReplaced,
    /// Others may change the checkpoint.
    Exposed(&'a checkpoint::Exposure),
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

/// Result of a restore.
#[derive(Debug)]
pub struct Report {
    /// Guests asked for.
    pub asked: usize,
    /// Guests that answered, in the order in which they did.
    pub guests: Vec<RestoredGuest>,
    /// Guests that failed.
    pub failures: Vec<Failure>,
    /// Guests that brood did not begin because the restore was cancelled.
    pub not_begun: usize,
    /// From the admission to the last answer.
    pub wall: Duration,
    /// Why the guests that answered could not be recorded as running. The next command that can
    /// write finds and records them.
    pub unrecorded: Option<state::Error>,
}

/// Why nothing was restored at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not fit.
    #[error(transparent)]
    Admission(#[from] admission::Error),
    /// The checkpoint cannot be used.
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
    /// Whether the restore ended because its requester cancelled it.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        match self {
            Self::Checkpoint(e) => e.is_interrupted(),
            Self::Engine(e) => e.is_interrupted(),
            Self::State(e) => e.is_interrupted(),
            Self::Guests(e) => e.is_interrupted(),
            _ => false,
        }
    }

    /// A hint what to do next.
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

/// Verifies the memory file of `checkpoint`, and those of its parents when it is a delta, by their
/// digests. Does not read a file again whose digest is recorded and that has not changed since.
/// Refuses before reading: a checkpoint that the engine cannot restore from, one that wants more of
/// this host than its own files and is not trusted ([`State::trust`]), and one that everybody may
/// change. Nobody can remove the checkpoint until the result is dropped; keep it until the guests
/// are recorded.
///
/// # Errors
/// When the content differs, or cannot be read.
pub fn verify(
    state: &State,
    engine: &dyn Engine,
    checkpoint: &Checkpoint,
    progress: Watch<'_>,
) -> Result<Option<BundleUse>, Error> {
    let wants = checkpoint.manifest().wants();
    if !wants.is_empty() && !state.is_trusted(checkpoint)? {
        let bundle = checkpoint.path().clone();
        return Err(checkpoint::Error::NotTrusted { bundle, wants }.into());
    }
    checkpoint.refuse_exposed()?;
    let mut in_use = None;
    checkpoint.refuse_writers()?;
    if checkpoint.parent().is_some() {
        // Protects its parents from removal, however it came here.
        state.note_bundle_folder(checkpoint.path().dir())?;
    }
    for layer in checkpoint.layers() {
        let stamp = layer.stamp();
        let sealed = &layer.manifest().files.ckp.sha256;
        if state.verified_digest(&stamp)?.as_ref() == Some(sealed) {
            continue;
        }
        if in_use.is_none() {
            // The session checks this too; but reading the file first could take terabytes of
            // reads.
            engine.suits(checkpoint)?;
            in_use = Some(read_bundle(state, checkpoint)?);
        }
        layer.verify_layer(progress)?;
        if !is_fresh(&stamp) {
            state.note_verified(&stamp, sealed)?;
            engine.note_whole(&state.run_dir(), &stamp, sealed);
        }
    }
    Ok(in_use)
}

/// Notes that this process reads a checkpoint with its parents, until the result is dropped, so
/// that nobody removes them meanwhile.
///
/// # Errors
/// When one of them is being removed, or the note cannot be written.
pub fn read_bundle(state: &State, checkpoint: &Checkpoint) -> Result<BundleUse, Error> {
    let in_use = state.use_bundle(checkpoint.path(), BundleAction::Read)?;
    refuse_removal(state, checkpoint)?;
    Ok(in_use)
}

/// Checks that no process removes the checkpoint or a parent of it, and that the open memory files
/// still have their names.
fn refuse_removal(state: &State, checkpoint: &Checkpoint) -> Result<(), Error> {
    let users = state.bundle_users()?;
    let removers = users.iter().filter(|u| u.action == BundleAction::Remove);
    for layer in checkpoint.layers() {
        let bundle = layer.path().absolute()?;
        let named = bundle.to_string();
        if let Some(remover) = removers.clone().find(|user| user.bundle == named) {
            let by = remover.to_string();
            return Err(checkpoint::Error::BeingRemoved { bundle, by }.into());
        }
        let then = layer.stamp();
        let there = match fs::metadata(bundle.ckp()) {
            Ok(now) => (now.dev(), now.ino()) == (then.device, then.inode),
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        };
        if !there {
            let file = bundle.ckp();
            return Err(checkpoint::Error::NotFound { bundle, file }.into());
        }
    }
    Ok(())
}

pub(super) fn is_fresh(stamp: &FileStamp) -> bool {
    Timestamp::now().as_nanosecond() - stamp.ctime_ns.max(stamp.mtime_ns) < FRESH
}

/// What a restore works with, besides what is wanted of it.
#[derive(Debug)]
pub struct Context<'a> {
    /// The record.
    pub state: &'a mut State,
    /// The engine that restores.
    pub engine: &'a dyn Engine,
    /// Facts of the host, for admission.
    pub facts: &'a HostFacts,
    /// The slot of a session that can be used, and is left there for the next restore; without one
    /// the session ends with the restore.
    pub slot: Option<Slot<'a>>,
    /// When it is set, no new guest is begun, and those that do not answer soon are ended.
    pub cancelled: &'a AtomicBool,
}

/// Restores guests. Guests that fail, or do not answer in time, do not hold up the others.
///
/// # Errors
/// When nothing could be restored at all; then nothing is left behind.
pub fn restore(
    context: Context<'_>,
    checkpoint: &Checkpoint,
    request: &Request,
    observe: &mut dyn FnMut(&Event<'_>),
) -> Result<Report, Error> {
    let Context {
        state,
        engine,
        facts,
        slot,
        cancelled,
    } = context;
    let begin = Instant::now();
    let stood = slot.and_then(|slot| slot.take(checkpoint, request.park_after));
    let (lock, stood) = match stood {
        Some(IdleSession {
            lock,
            session,
            next,
            ..
        }) => (lock, Some((session, next))),
        None => (
            RestoreLock::take(&state.run_dir()).map_err(state::Error::from)?,
            None,
        ),
    };
    let disk = disks::open(state, engine, checkpoint, &request.disk, &lock);
    let reserved = disk.and_then(|disk| {
        // Records the disk that was opened.
        let source = disk.as_ref().map(|disk| disk.source.clone());
        let request = Request {
            disk: source.map_or(Choice::None, Choice::Source),
            ..request.clone()
        };
        let orders = reserve(state, engine, facts, checkpoint, &request, &lock, observe)?;
        // From here on the guests are recorded users of the checkpoint; a removal that began before
        // shows now.
        if let Err(refused) = refuse_removal(state, checkpoint) {
            let ids: Vec<_> = orders.iter().map(|order| order.id).collect();
            state.remove_guests(&ids)?;
            return Err(refused);
        }
        Ok((orders, disk))
    });
    let (orders, disk) = match reserved {
        Ok(reserved) => reserved,
        Err(e) => {
            if let (Some((session, next)), Some(slot)) = (stood, slot) {
                slot.put(IdleSession {
                    session,
                    next,
                    lock,
                    stamps: checkpoint.stamps(),
                    park_after: request.park_after,
                });
            }
            return Err(e);
        }
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
        timeout: request.timeout,
        grace: request.grace(),
        disk,
        session,
        nurseries,
        queue: orders.into(),
        given_out: HashMap::new(),
        next,
        heard: begin,
        furthest: 0,
        broken: false,
        unrecorded: Vec::new(),
        report: Report {
            asked: request.guests,
            guests: Vec::new(),
            failures: Vec::new(),
            not_begun: 0,
            wall: Duration::ZERO,
            unrecorded: None,
        },
    };
    let result = run.all(request.concurrency.max(1), cancelled, observe);
    run.finish(begin, result, slot)
}
