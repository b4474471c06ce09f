//! What guests cost at one moment: by state, by checkpoint, and of the host's memory. Metrics,
//! counters in the event stream and the page all show the same sample; it is taken when somebody
//! wants one, at most once a second.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use utoipa::ToSchema;

use super::{
    problem::Problem,
    workers::{Workers, blocking, guests},
};
use crate::{guests::GuestState, host::facts::HostFacts, pool::Pool, units::Bytes};

/// How long a sample is as good as a new one.
const FRESH: Duration = Duration::from_secs(1);

/// What guests cost at one moment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Sample {
    /// When it was taken, RFC 3339.
    pub(crate) at: String,
    /// Guests by state: restoring, running, paused, dead.
    pub(crate) guests: BTreeMap<String, u64>,
    /// By checkpoint, those that guests live of.
    pub(crate) checkpoints: Vec<CheckpointSample>,
    /// The pools.
    pub(crate) pools: Vec<Pool>,
    /// Memory and tasks of the host.
    pub(crate) host: HostSample,
}

/// What the living guests of one checkpoint cost together, in bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct CheckpointSample {
    /// The bundle, `DIR/NAME`.
    pub(crate) checkpoint: String,
    /// Guests of it that live.
    pub(crate) guests: u64,
    /// What they would take if nothing were shared.
    pub(crate) memory_bytes: u64,
    /// Guest memory that each has to itself.
    pub(crate) private_bytes: u64,
    /// Guest memory that they have touched and share, counted once for each.
    pub(crate) shared_bytes: u64,
    /// Memory of their processes that is not guest memory.
    pub(crate) process_bytes: u64,
    /// Their page tables.
    pub(crate) page_table_bytes: u64,
}

/// The host.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct HostSample {
    /// `MemTotal`.
    pub(crate) memory_total_bytes: u64,
    /// `MemAvailable`.
    pub(crate) memory_available_bytes: u64,
    /// Tasks of the whole host.
    pub(crate) tasks: u64,
    /// `kernel.pid_max`.
    pub(crate) pid_max: u64,
}

/// The newest sample.
#[derive(Debug, Default)]
pub(super) struct Sampler(Mutex<Option<(Instant, Arc<Sample>)>>);

impl Sampler {
    /// A sample that is at most a second old.
    pub(super) async fn sample(&self, workers: &Arc<Workers>) -> Result<Arc<Sample>, Problem> {
        let mut newest = self.0.lock().await;
        if let Some((at, sample)) = &*newest
            && at.elapsed() < FRESH
        {
            return Ok(Arc::clone(sample));
        }
        let workers = Arc::clone(workers);
        let sample = Arc::new(blocking(move || take(&workers)).await?);
        *newest = Some((Instant::now(), Arc::clone(&sample)));
        Ok(sample)
    }
}

fn take(workers: &Workers) -> Result<Sample, Problem> {
    let facts = workers.facts(None)?;
    let pools = workers.pools(|pools| pools.list())?;
    workers.call(|state, engine| {
        let mut guests = guests(state, engine);
        let all = guests.list()?;
        let mut states = BTreeMap::from(
            [
                GuestState::Restoring,
                GuestState::Running,
                GuestState::Paused,
                GuestState::Dead,
            ]
            .map(|state| (state.name().to_owned(), 0)),
        );
        let mut checkpoints = BTreeMap::<&str, CheckpointSample>::new();
        for guest in &all {
            *states.entry(guest.state.name().to_owned()).or_default() += 1;
            // One that ended since it was listed costs nothing any more.
            if let Ok(usage) = guests.usage(guest) {
                let sum = checkpoints.entry(&guest.row.checkpoint).or_default();
                sum.guests += 1;
                add(&mut sum.memory_bytes, guest.row.memory);
                add(&mut sum.private_bytes, usage.private);
                add(&mut sum.shared_bytes, usage.shared);
                add(&mut sum.process_bytes, usage.process);
                add(&mut sum.page_table_bytes, usage.page_tables);
            }
        }
        Ok(Sample {
            at: Timestamp::now().to_string(),
            guests: states,
            checkpoints: named(checkpoints),
            pools,
            host: host(&facts),
        })
    })
}

fn add(sum: &mut u64, amount: Bytes) {
    *sum = sum.saturating_add(amount.0);
}

fn named(checkpoints: BTreeMap<&str, CheckpointSample>) -> Vec<CheckpointSample> {
    checkpoints
        .into_iter()
        .map(|(checkpoint, sample)| CheckpointSample {
            checkpoint: checkpoint.to_owned(),
            ..sample
        })
        .collect()
}

fn host(facts: &HostFacts) -> HostSample {
    let (tasks, pid_max) = facts.tasks();
    HostSample {
        memory_total_bytes: facts.memory.total.0,
        memory_available_bytes: facts.memory.available.0,
        tasks,
        pid_max,
    }
}
