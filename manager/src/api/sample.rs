//! Sample: what guests cost at one moment, by state, by checkpoint, and of the host's memory.
//! Metrics, events and the page show the same sample. It is taken on demand, at most once a second.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use utoipa::ToSchema;

use super::{
    problem::Problem,
    types::{Pool, Usage},
    workers::{Workers, blocking},
};
use brood_core::{guests::GuestState, host::facts::HostFacts, units::Bytes};

/// How long a sample is as good as a new one.
const FRESH: Duration = Duration::from_secs(1);

/// What guests cost at one moment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Sample {
    /// When it was taken, RFC 3339.
    pub(crate) at: String,
    /// Guests by state: restoring, running, paused, dead.
    pub(crate) guests: BTreeMap<String, u64>,
    /// By checkpoint, for checkpoints with living guests.
    pub(crate) checkpoints: Vec<CheckpointSample>,
    /// The pools.
    pub(crate) pools: Vec<PoolSample>,
    /// Memory and tasks of the host.
    pub(crate) host: HostSample,
}

/// A pool, and what its living guests cost together.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct PoolSample {
    /// The pool.
    #[serde(flatten)]
    pub(crate) pool: Pool,
    /// What its guests cost.
    pub(crate) cost: Cost,
}

/// Cost of the living guests of one checkpoint together. A pool's guests count for the pool's
/// checkpoint, even if they were resumed from a suspended claim.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct CheckpointSample {
    /// The bundle, `DIR/NAME`.
    pub(crate) checkpoint: String,
    /// What they cost.
    #[serde(flatten)]
    pub(crate) cost: Cost,
}

/// What guests cost together, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct Cost {
    /// How many they are.
    pub(crate) guests: u64,
    /// Memory that they would take without sharing.
    pub(crate) memory_bytes: u64,
    /// Private guest memory.
    pub(crate) private_bytes: u64,
    /// Guest memory that they have touched and share, counted once for each guest.
    pub(crate) shared_bytes: u64,
    /// Memory of their processes that is not guest memory.
    pub(crate) process_bytes: u64,
    /// Their page tables.
    pub(crate) page_table_bytes: u64,
    /// Other memory of the kernel that they take, which no process shows: what a density run of the
    /// checkpoint found for each guest, else what guests cost in general.
    pub(crate) kernel_bytes: u64,
    /// Whether that was measured by a density run, for all of them.
    pub(crate) kernel_measured: bool,
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
    workers.call(|opened| {
        let facts = opened.facts(None)?;
        let pools = opened.pools(|pools| pools.list())?;
        let mut guests = opened.guests();
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
        let mut pool_of = HashMap::new();
        for (index, pool) in pools.iter().enumerate() {
            let entries = guests.state.entries(&pool.row.name)?;
            pool_of.extend(entries.into_iter().map(|entry| (entry.guest, index)));
        }
        let overheads = guests.overheads()?;
        let mut checkpoints = BTreeMap::<&str, Cost>::new();
        let mut of_pools = vec![Cost::default(); pools.len()];
        for guest in &all {
            *states.entry(guest.state.name().to_owned()).or_default() += 1;
            // A guest that ended since it was listed costs nothing any more.
            let Ok(usage) = guests.usage(guest) else {
                continue;
            };
            let usage = Usage::new(usage, overheads.of(&guest.row));
            let checkpoint = match pool_of.get(&guest.row.id) {
                Some(&index) => {
                    of_pools[index].add(guest.row.memory, usage);
                    &pools[index].row.checkpoint
                }
                None => &guest.row.checkpoint,
            };
            let cost = checkpoints.entry(checkpoint).or_default();
            cost.add(guest.row.memory, usage);
        }
        let checkpoints = checkpoints.into_iter().map(|(checkpoint, cost)| {
            let checkpoint = checkpoint.to_owned();
            CheckpointSample { checkpoint, cost }
        });
        let checkpoints = checkpoints.collect();
        let pools = pools.into_iter().zip(of_pools);
        Ok(Sample {
            at: Timestamp::now().to_string(),
            guests: states,
            checkpoints,
            pools: pools
                .map(|(pool, cost)| PoolSample {
                    pool: pool.into(),
                    cost,
                })
                .collect(),
            host: HostSample::of(&facts),
        })
    })
}

impl Cost {
    fn add(&mut self, memory: Bytes, usage: Usage) {
        self.kernel_measured = usage.kernel_measured && (self.guests == 0 || self.kernel_measured);
        self.guests += 1;
        for (sum, amount) in [
            (&mut self.memory_bytes, memory.0),
            (&mut self.private_bytes, usage.private_bytes),
            (&mut self.shared_bytes, usage.shared_bytes),
            (&mut self.process_bytes, usage.process_bytes),
            (&mut self.page_table_bytes, usage.page_table_bytes),
            (&mut self.kernel_bytes, usage.kernel_bytes),
        ] {
            *sum = sum.saturating_add(amount);
        }
    }
}

impl HostSample {
    /// Of a host with these facts.
    pub(crate) fn of(facts: &HostFacts) -> Self {
        let (tasks, pid_max) = facts.tasks();
        Self {
            memory_total_bytes: facts.memory.total.0,
            memory_available_bytes: facts.memory.available.0,
            tasks,
            pid_max,
        }
    }
}
