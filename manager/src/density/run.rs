//! Measurement of one step of a density run: restores guests, lets the host settle, and reads what
//! they cost.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    noise::{moved, noise},
    snapshot::MemorySnapshot,
    steady_state::{Sample, settled},
    step::{Breakdown, Machine, Step},
};

use brood_core::{
    checkpoint::{self, Checkpoint, manifest::EngineKind, sha256_file},
    engine::{Engine, Limit, NEVER, Usage},
    guests::{self, Guest, Guests},
    host::proc,
    restore::{
        self, RestoreContext, RestoreFailure, RestoreReport, RestoreSpec, RestoreStep, restore,
    },
    state::{GuestMeasurement, State},
    units::{Bytes, PAGE_SIZE},
};

/// How long a host that does not settle is waited for.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);
/// What is said meanwhile.
const SETTLING: &str = "waiting for the host's memory to settle";
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// How long a guest may take to write its pages, or to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);
/// Fewer guests than this cost too little to be told from the host's noise.
const ENOUGH_TO_MEASURE: usize = 50;

/// Credible range of a guest's kernel and process memory: a measurement outside shows that other
/// memory of the host moved meanwhile. A bhyve has a frame buffer of 32 MiB at most, and a boot ROM
/// of 16.
fn credible_overhead(engine: EngineKind) -> (Bytes, Bytes) {
    match engine {
        EngineKind::Kvm => (Bytes::kib(256), Bytes::mib(4)),
        EngineKind::Bhyve => (Bytes::kib(256), Bytes::mib(64)),
        EngineKind::Qemu => (Bytes::mib(4), Bytes::mib(128)),
    }
}

/// What restores guests, and stays while they are there, costs less than this.
const NURSERY_MOST: Bytes = Bytes::mib(16);

/// One step to measure.
#[derive(Clone, Debug)]
pub struct Run {
    /// Guests.
    pub guests: u32,
    /// Restores at once.
    pub concurrency: u32,
    /// Pages that each guest is made to write.
    pub dirty_pages: u64,
    /// Private memory that each guest is allowed.
    pub private_limit: Bytes,
    /// Kernel and process memory to expect of one guest.
    pub overhead: Bytes,
    /// Go ahead when that does not fit.
    pub overcommit: bool,
    /// When idle guests give their virtual machine back.
    pub park_after: Option<Duration>,
}

/// What happens on the way.
#[derive(Debug)]
pub enum Event<'a> {
    /// What is being done now.
    Phase(&'static str),
    /// A guest has answered.
    Restored,
    /// A guest was not restored.
    Failed(&'a RestoreFailure),
}

/// Why a step has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was restored.
    #[error(transparent)]
    Restore(#[from] restore::Error),
    /// Guests could not be handled.
    #[error(transparent)]
    Guests(#[from] guests::Error),
    /// The host could not be read.
    #[error(transparent)]
    Host(#[from] proc::Error),
    /// The bundle.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The checkpoint's memory could not be digested.
    #[error("cannot read the memory file of {checkpoint}: {source}")]
    Read {
        /// The bundle.
        checkpoint: String,
        /// Why not.
        source: io::Error,
    },
}

/// Whether guests of a checkpoint can be asked to write, and to answer. Those of bhyve need an
/// agent.
#[must_use]
pub fn can_be_asked(checkpoint: &Checkpoint) -> bool {
    let guest = checkpoint.manifest().bhyve.as_ref();
    guest.is_none_or(|guest| guest.agent.is_some())
}

/// Whether each guest of a checkpoint has a disk of its own.
#[must_use]
pub fn has_disk(checkpoint: &Checkpoint) -> bool {
    let mut disks = checkpoint.manifest().disks.iter();
    disks.any(|disk| !disk.is_shared())
}

/// Measures one step. Its guests are destroyed at its end, whatever happens.
///
/// # Errors
/// When nothing could be restored, or the host not be read.
pub fn step(
    state: &mut State,
    engine: &dyn Engine,
    checkpoint: &Checkpoint,
    run: &Run,
    cancelled: &AtomicBool,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<Step, Error> {
    let started_at = Timestamp::now();
    let host = engine.host();
    let folder = checkpoint.path().dir().to_owned();
    let facts = host.facts(state.run_dir(), Some(folder))?;
    let asks = can_be_asked(checkpoint);
    observe(Event::Phase("digesting"));
    let sha256_before = digest(checkpoint)?;
    observe(Event::Phase(SETTLING));
    let (before, moved_before) = settle(engine, cancelled)?;
    observe(Event::Phase("restoring"));
    let context = RestoreContext {
        state: &mut *state,
        engine,
        facts: &facts,
        slot: None,
        cancelled,
    };
    let report = restore_run(context, checkpoint, run, observe)?;
    let ids: std::collections::HashSet<_> = report.guests.iter().map(|g| g.id).collect();
    let mut guests = Guests {
        state,
        engine,
        cancelled: &NEVER,
    };
    let own: Vec<Guest> = guests
        .list()?
        .into_iter()
        .filter(|g| ids.contains(&g.row.id))
        .collect();
    let measured = measure(&mut guests, &own, asks, run, cancelled, observe);
    observe(Event::Phase("destroying"));
    guests.destroy(&own)?.whole()?;
    let measured = measured?;
    observe(Event::Phase("digesting"));
    let sha256_after = digest(checkpoint)?;

    let delta = before.delta(&measured.after);
    let latencies_ms: Vec<f64> = report.guests.iter().map(|g| g.restore_ms).collect();
    let count = own.len() as u64;
    let per_guest_mib = each(delta.available, count);
    let manifest = checkpoint.manifest();
    let Usage {
        private, process, ..
    } = measured.usage;
    let breakdown = Breakdown::of(&delta, count, private, process);
    let noise = measured.noise(manifest.engine, count, delta.available, moved_before);
    if own.len() >= ENOUGH_TO_MEASURE && run.park_after.is_none() && noise.is_none() {
        note(guests.state, checkpoint, run, count, per_guest_mib, private)?;
    }
    Ok(Step {
        guests: run.guests.into(),
        answered: measured.answered,
        memory_mib: manifest.memory.size.as_mib(),
        dirty_pages: run.dirty_pages,
        wall_s: report.wall_s,
        restore_ms: report.restore_ms,
        host_delta_mib: delta.available,
        per_guest_mib,
        noise,
        disk_per_guest_mib: measured.disks.map(|disks| each(disks.as_mib(), count)),
        breakdown,
        checkpoint_sha256_before: sha256_before,
        checkpoint_sha256_after: sha256_after,
        checkpoint: checkpoint.path().to_string(),
        concurrency: run.concurrency.into(),
        started_at,
        machine: Machine::of(&facts),
        engine: manifest.engine,
        latencies_ms,
    })
}

/// Restores the guests of a step.
fn restore_run(
    context: RestoreContext<'_>,
    checkpoint: &Checkpoint,
    run: &Run,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<RestoreReport, restore::Error> {
    let spec = RestoreSpec {
        checkpoint: checkpoint.path().to_string(),
        guests: run.guests,
        concurrency: Some(run.concurrency),
        prefix: Some(format!("density{}", std::process::id())),
        private_limit: Some(run.private_limit),
        overhead: Some(run.overhead),
        overcommit: run.overcommit,
        park_after: run.park_after,
        ..RestoreSpec::default()
    };
    restore(context, checkpoint, &spec, &mut |step| match step {
        RestoreStep::Restored(_) => observe(Event::Restored),
        RestoreStep::Failed(failure) => observe(Event::Failed(failure)),
        _ => {}
    })
}

/// The part of each of these guests.
#[expect(clippy::cast_precision_loss, reason = "guests are far fewer than 2^52")]
fn each(all: f64, guests: u64) -> f64 {
    if guests == 0 {
        0.0
    } else {
        all / guests as f64
    }
}

struct Measurement {
    after: MemorySnapshot,
    /// By how much the host's memory moved then, when nothing was done.
    moved: Bytes,
    usage: Usage,
    /// What the guests' disks take; `None` when they have none.
    disks: Option<Bytes>,
    answered: u64,
}

impl Measurement {
    /// Why the memory that guests have taken, in MiB, cannot be told from what else moved.
    fn noise(&self, engine: EngineKind, guests: u64, taken: f64, before: Bytes) -> Option<String> {
        let (_, overhead) = credible_overhead(engine);
        let most = self.usage.private + Bytes(overhead.0 * guests) + NURSERY_MOST;
        noise(guests, taken, before.max(self.moved), most)
    }
}

fn measure(
    guests: &mut Guests<'_>,
    own: &[Guest],
    asks: bool,
    run: &Run,
    cancelled: &AtomicBool,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<Measurement, Error> {
    let run_dir = guests.state.run_dir();
    let ask = |guest: &Guest, words: &[String]| {
        guests.engine.ask(
            guest.row.in_folder(&run_dir),
            words,
            Limit::of(ANSWER_PATIENCE),
        )
    };
    if run.dirty_pages > 0 && asks {
        observe(Event::Phase("writing"));
        let words = ["dirty".to_owned(), run.dirty_pages.to_string()];
        for guest in own {
            // A guest that fails here will not count as answering either.
            let _ = ask(guest, &words);
        }
    }
    observe(Event::Phase(SETTLING));
    // Guests that are to be parked are not at rest before.
    thread::sleep(run.park_after.unwrap_or_default());
    let (after, moved) = settle(guests.engine, cancelled)?;
    observe(Event::Phase("measuring"));
    let usage = own
        .iter()
        .filter_map(|guest| guests.usage(guest).ok())
        .fold(Usage::default(), |sum, one| Usage {
            private: sum.private + one.private,
            shared: sum.shared + one.shared,
            process: sum.process + one.process,
            page_tables: sum.page_tables + one.page_tables,
        });
    let disks = own
        .iter()
        .map(|guest| guests.disk_own_bytes(&guest.row))
        .try_fold(None, |sum: Option<Bytes>, disk| {
            Ok::<_, Error>(disk?.map_or(sum, |own| Some(sum.unwrap_or_default() + own)))
        })?;
    observe(Event::Phase("asking"));
    // A guest that runs already only shows that it does.
    let answers = |guest: &&Guest| {
        let engine = guests.engine;
        let resume = |process| {
            engine.resume(
                guest.row.in_folder(&run_dir),
                process,
                Limit::of(ANSWER_PATIENCE),
            )
        };
        guest
            .process()
            .is_some_and(|process| resume(process).is_ok())
    };
    let answered = own.iter().filter(answers).count() as u64;
    Ok(Measurement {
        after,
        moved,
        usage,
        disks,
        answered,
    })
}

/// Records the cost of these guests, for later plans and admissions.
fn note(
    state: &State,
    checkpoint: &Checkpoint,
    run: &Run,
    guests: u64,
    per_guest_mib: f64,
    private: Bytes,
) -> Result<(), Error> {
    let sha256 = &checkpoint.manifest().memory_sha256();
    let private = Bytes(private.0 / guests);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a measurement, not negative"
    )]
    let all = Bytes((per_guest_mib.max(0.0) * f64::from(1 << 20)) as u64);
    // Pages that the run itself had written say nothing about pristine guests.
    let written = if can_be_asked(checkpoint) {
        run.dirty_pages
    } else {
        0
    };
    let pristine = private.saturating_sub(Bytes(written * PAGE_SIZE));
    let (least, most) = credible_overhead(checkpoint.manifest().engine);
    let measured = GuestMeasurement {
        guests,
        overhead: all.saturating_sub(private).clamp(least, most),
        pristine_private: pristine,
        expected_private: private,
        at: Timestamp::now().to_string(),
    };
    state
        .note_measured(sha256, &measured)
        .map_err(restore::Error::from)?;
    Ok(())
}

fn digest(checkpoint: &Checkpoint) -> Result<String, Error> {
    // By name, not by the descriptor that guests have mapped: the file at this name is the one to
    // check.
    let read = |source| Error::Read {
        checkpoint: checkpoint.path().to_string(),
        source,
    };
    let file = std::fs::File::open(checkpoint.path().ckp()).map_err(read)?;
    sha256_file(&file, &brood_core::checkpoint::unwatched).map_err(read)
}

/// Waits until the host's memory is stable, will not become so, or `cancelled` is set. Also returns
/// by how much it moved at the end.
fn settle(engine: &dyn Engine, cancelled: &AtomicBool) -> Result<(MemorySnapshot, Bytes), Error> {
    let begin = Instant::now();
    let mut samples: Vec<Sample> = Vec::new();
    loop {
        let snapshot = MemorySnapshot::of(&engine.host())?;
        samples.push(Sample {
            at: begin.elapsed(),
            available: snapshot.available,
        });
        let late = begin.elapsed() > SETTLE_PATIENCE;
        if settled(&samples) || late || cancelled.load(Ordering::Relaxed) {
            return Ok((snapshot, moved(&samples)));
        }
        thread::sleep(SAMPLE_INTERVAL);
    }
}
