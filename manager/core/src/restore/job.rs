//! Restore job: one restore from admission to its end, with the pause or rollback that the request
//! asks for. The command line and the API share it.

use std::{collections::HashSet, sync::atomic::Ordering, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    cost,
    mass::{self, Error, Event, Failure, Names, Report, Request, RestoredGuest},
};
use crate::{
    checkpoint::{BundlePath, Checkpoint},
    disk::Choice,
    engine::NEVER,
    guests::{Guest, Guests},
    percentiles::Percentiles,
    units::Bytes,
};

/// Default private limit of each guest.
pub const PRIVATE_LIMIT: Bytes = Bytes::mib(1);

/// What to restore, and what then.
#[derive(Clone, Debug)]
pub struct Job {
    /// From where.
    pub checkpoint: BundlePath,
    /// How many guests.
    pub guests: u32,
    /// How many restores run at once; by default one for each core.
    pub concurrency: Option<u32>,
    /// How long each may take from its order to its answer; [`mass::TIMEOUT`] when it is not said.
    pub timeout: Option<Duration>,
    /// How they are named.
    pub names: Names,
    /// Pause each guest when all have answered.
    pub paused: bool,
    /// Private memory that each guest may come to hold.
    pub private_limit: Bytes,
    /// Go ahead when that does not fit in memory.
    pub overcommit: bool,
    /// Guests that are idle for so long give their virtual machine back until they are asked.
    pub park_after: Option<Duration>,
    /// Destroy those that were restored if any fails or is not begun.
    pub all_or_nothing: bool,
    /// The disk that each guest gets a clone of.
    pub disk: Choice,
    /// Trust the checkpoint from now on.
    pub trust: bool,
}

impl Job {
    /// Names from `prefix`, or from the checkpoint's name when there is none.
    #[must_use]
    pub fn numbered(prefix: Option<String>, checkpoint: &BundlePath) -> Names {
        Names::Numbered(prefix.unwrap_or_else(|| checkpoint.name().to_owned()))
    }

    /// Restores the guests. The checkpoint must have been checked before ([`mass::verify`]).
    ///
    /// # Errors
    /// When nothing could be restored at all.
    pub fn run(
        &self,
        context: mass::Context<'_>,
        checkpoint: &Checkpoint,
        observe: &mut dyn FnMut(&Event<'_>),
    ) -> Result<Done, Error> {
        let mass::Context {
            state,
            engine,
            facts,
            slot,
            cancelled,
        } = context;
        let request = Request {
            guests: self.guests as usize,
            concurrency: self
                .concurrency
                .map_or(cores(facts.cpu.cores), |k| k as usize),
            timeout: self.timeout.unwrap_or(mass::TIMEOUT),
            names: self.names.clone(),
            private_limit: self.private_limit,
            overhead: cost::measured(state, checkpoint)?.overhead,
            overcommit: self.overcommit,
            park_after: self.park_after,
            membership: None,
            disk: self.disk.clone(),
        };
        let mut warnings = Vec::new();
        for exposure in checkpoint.exposures() {
            let event = Event::Exposed(exposure);
            warnings.extend(warning(&event));
            observe(&event);
        }
        let context = mass::Context {
            state: &mut *state,
            engine,
            facts,
            slot,
            cancelled,
        };
        let report = mass::restore(context, checkpoint, &request, &mut |event| {
            warnings.extend(warning(event));
            observe(event);
        })?;
        let mut undone = Vec::new();
        if let Some(error) = &report.unrecorded {
            undone.push(format!(
                "the guests run and are not recorded: {error}; the next `brood list` that can write \
                 records them"
            ));
        }
        let mut guests = Guests {
            state,
            engine,
            cancelled: &NEVER,
        };
        let interrupted = report.not_begun > 0 && cancelled.load(Ordering::Relaxed);
        let rolled_back = self.all_or_nothing && (interrupted || !report.failures.is_empty());
        if rolled_back {
            let destroyed = restored(&mut guests, &report).and_then(|g| Ok(guests.destroy(&g)?));
            let left = destroyed.map(|destroyed| destroyed.left);
            undone.extend(match left {
                Ok(left) => left.first().map(|first| {
                    format!(
                        "{} guests could not be destroyed: {}",
                        left.len(),
                        first.error
                    )
                }),
                Err(error) => Some(format!("the guests that answered run on: {error}")),
            });
        } else if self.paused {
            match restored(&mut guests, &report) {
                Ok(mine) => {
                    for guest in mine {
                        if let Err(error) = guests.pause(&guest) {
                            undone.push(format!("{} is not paused: {error}", guest.row.name));
                        }
                    }
                }
                Err(error) => undone.push(format!("the guests are not paused: {error}")),
            }
        }
        Ok(Done {
            report,
            paused: self.paused,
            interrupted,
            rolled_back,
            undone,
            warnings,
        })
    }
}

fn restored(guests: &mut Guests<'_>, report: &Report) -> Result<Vec<Guest>, Error> {
    let ids: HashSet<_> = report.guests.iter().map(|g| g.id).collect();
    let mut all = guests.list()?;
    all.retain(|guest| ids.contains(&guest.row.id));
    Ok(all)
}

/// What became of a job.
#[derive(Debug)]
pub struct Done {
    /// Of the restore.
    pub report: Report,
    /// Whether guests were paused.
    pub paused: bool,
    /// Whether the restore was cancelled before all guests were begun.
    pub interrupted: bool,
    /// Whether the guests that were restored were destroyed again.
    pub rolled_back: bool,
    /// What could not be done when the guests had answered.
    pub undone: Vec<String>,
    /// Warnings; see [`warning`].
    pub warnings: Vec<String>,
}

/// The warning in an event of a restore, if it has one.
#[must_use]
pub fn warning(event: &Event<'_>) -> Option<String> {
    match event {
        Event::Admitted { verdict } => verdict
            .memory_risk()
            .map(|risk| format!("overcommitted: {risk}")),
        Event::Exposed(exposure) => Some(exposure.to_string()),
        Event::NurseryReplaced => Some("the nursery was killed; a new one goes on".to_owned()),
        Event::Restored(_) | Event::Failed(_) | Event::Verifying(_) => None,
    }
}

/// How a job ended, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreEnd {
    /// All guests were restored.
    Whole,
    /// Some were, some failed.
    Some,
    /// None is left.
    Nothing,
    /// It was cancelled before all were begun.
    Interrupted,
}

impl Done {
    /// Guests that are left.
    #[must_use]
    pub fn guests(&self) -> &[RestoredGuest] {
        if self.rolled_back {
            &[]
        } else {
            &self.report.guests
        }
    }

    /// Latencies of all guests that were restored, also if they were destroyed again.
    #[must_use]
    pub fn latency(&self) -> Percentiles {
        let latencies: Vec<f64> = self
            .report
            .guests
            .iter()
            .map(|g| g.latency.as_secs_f64() * 1e3)
            .collect();
        Percentiles::of(&latencies)
    }
}

/// What became of a restore.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Bundle, as it was named.
    pub checkpoint: String,
    /// Guests asked for.
    pub asked: usize,
    /// Guests that are left.
    pub restored: usize,
    /// Guests that failed.
    pub failed: usize,
    /// Guests that brood did not begin because the restore was cancelled.
    pub not_begun: usize,
    /// Whether the restore was cancelled before all guests were begun.
    pub interrupted: bool,
    /// Whether the guests that were restored were destroyed again.
    pub rolled_back: bool,
    /// Whether guests were paused.
    pub paused: bool,
    /// From the admission to the last answer, in seconds.
    pub wall_s: f64,
    /// Time of the check of the checkpoint's memory before that, in seconds; 0 when it was checked
    /// before.
    pub verify_s: f64,
    /// From the order to the guest's own answer, in milliseconds.
    pub restore_ms: Percentiles,
    /// The guests, in the order in which they answered.
    pub guests: Vec<GuestView>,
    /// Those that failed.
    pub errors: Vec<FailureView>,
    /// Steps that failed after the guests had answered: the guests run, but are not recorded,
    /// paused or destroyed as requested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undone: Vec<String>,
    /// Warnings of the restore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A guest that was restored and has answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestView {
    /// Name.
    pub name: String,
    /// Id.
    pub id: String,
    /// Id of its process.
    pub pid: i32,
    /// From the order to its own answer, in milliseconds.
    pub restore_ms: f64,
    /// Nonce from its memory, 16 hexadecimal digits.
    pub nonce: String,
    /// Requests answered since it was booted.
    pub counter: u64,
}

/// A guest that was not restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureView {
    /// The name it would have had.
    pub name: String,
    /// Why.
    pub error: String,
}

impl View {
    /// The view of a finished job, with the time of the check before it.
    #[must_use]
    pub fn new(job: &Job, done: &Done, verify: Duration) -> Self {
        let report = &done.report;
        Self {
            checkpoint: job.checkpoint.to_string(),
            asked: report.asked,
            restored: done.guests().len(),
            failed: report.failures.len(),
            not_begun: report.not_begun,
            interrupted: done.interrupted,
            rolled_back: done.rolled_back,
            paused: done.paused,
            wall_s: report.wall.as_secs_f64(),
            verify_s: verify.as_secs_f64(),
            restore_ms: done.latency(),
            guests: done.guests().iter().map(GuestView::from).collect(),
            errors: report.failures.iter().map(Into::into).collect(),
            undone: done.undone.clone(),
            warnings: done.warnings.clone(),
        }
    }

    /// How it ended.
    #[must_use]
    pub fn ending(&self) -> RestoreEnd {
        if self.interrupted {
            RestoreEnd::Interrupted
        } else if self.failed == 0 && self.not_begun == 0 && self.undone.is_empty() {
            RestoreEnd::Whole
        } else if self.restored == 0 && self.undone.is_empty() {
            RestoreEnd::Nothing
        } else {
            RestoreEnd::Some
        }
    }

    /// Guests that answered, those too that were destroyed again.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.asked
            .saturating_sub(self.failed)
            .saturating_sub(self.not_begun)
    }
}

impl From<&RestoredGuest> for GuestView {
    fn from(guest: &RestoredGuest) -> Self {
        Self {
            name: guest.name.clone(),
            id: guest.id.to_string(),
            pid: guest.process.pid,
            restore_ms: guest.latency.as_secs_f64() * 1e3,
            nonce: format!("{:016x}", guest.nonce),
            counter: guest.counter,
        }
    }
}

impl From<&Failure> for FailureView {
    fn from(failure: &Failure) -> Self {
        Self {
            name: failure.name.clone(),
            error: failure.error.clone(),
        }
    }
}

/// As many restores at once as there are cores.
#[must_use]
pub fn cores(cores: u64) -> usize {
    usize::try_from(cores).unwrap_or(1).max(1)
}
