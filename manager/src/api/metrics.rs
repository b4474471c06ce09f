//! Metrics of the daemon: counters from its start on. [`gauges`] has the values that are read at
//! each request, [`text`] the text format.

mod doors;
mod gauges;
mod process;
pub(super) mod text;

use std::time::Duration;

pub(super) use doors::DoorMetrics;
use doors::Doors;
use jiff::Timestamp;
use prometheus_client::{
    encoding::{
        EncodeLabelSet, EncodeLabelValue,
        text::{encode_eof, encode_registry},
    },
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use super::sample::Sample;
use brood_core::{pool::Tier, state::PoolRow, units::Bytes};

/// Counters from the daemon's start on.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    restores: Family<Restores, Counter>,
    restore_seconds: Family<Origin, Histogram>,
    resume_seconds: Histogram,
    ended: Counter,
    claim_seconds: Family<Claims, Histogram>,
    claims_failed: Family<FailedClaims, Counter>,
    evictions: Family<Evictions, Counter>,
    claim_suspend_seconds: Family<OfPool, Histogram>,
    claim_suspend_bytes: Family<OfPool, Counter>,
    claim_resume_seconds: Family<OfPool, Histogram>,
    claim_suspends_failed: Counter,
    claim_resumes_failed: Counter,
    requests: Family<Requests, Counter>,
    request_seconds: Histogram,
    in_flight: Gauge,
    doors: Doors,
    /// When the daemon began.
    started: Timestamp,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Restores {
    checkpoint: String,
    pool: String,
    outcome: Outcome,
}

/// Origin of a guest: its checkpoint, and its pool if it has one.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Origin {
    /// The bundle, `DIR/NAME`.
    pub(super) checkpoint: String,
    /// The pool.
    pub(super) pool: String,
}

impl Origin {
    fn with(&self, outcome: Outcome) -> Restores {
        Restores {
            checkpoint: self.checkpoint.clone(),
            pool: self.pool.clone(),
            outcome,
        }
    }
}

impl From<&PoolRow> for Origin {
    fn from(row: &PoolRow) -> Self {
        Self {
            checkpoint: row.checkpoint.clone(),
            pool: row.name.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "these are values of the label")]
enum Outcome {
    restored,
    failed,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Claims {
    pool: String,
    tier: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfPool {
    pool: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FailedClaims {
    pool: String,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Evictions {
    pool: String,
    reason: EvictReason,
}

/// Why a hot entry was dropped.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "these are values of the label")]
pub(super) enum EvictReason {
    /// Somebody asked for it.
    asked,
    /// The pool's policy had it: there were too many, or it was too old.
    policy,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Requests {
    method: String,
    route: String,
    status: u16,
}

/// From a quarter of a millisecond to 8 seconds.
fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("brood"),
            restores: Family::default(),
            restore_seconds: Family::new_with_constructor(latencies),
            resume_seconds: latencies(),
            ended: Counter::default(),
            claim_seconds: Family::new_with_constructor(latencies),
            claims_failed: Family::default(),
            evictions: Family::default(),
            claim_suspend_seconds: Family::new_with_constructor(latencies),
            claim_suspend_bytes: Family::default(),
            claim_resume_seconds: Family::new_with_constructor(latencies),
            claim_suspends_failed: Counter::default(),
            claim_resumes_failed: Counter::default(),
            requests: Family::default(),
            request_seconds: latencies(),
            in_flight: Gauge::default(),
            doors: Doors::default(),
            started: Timestamp::now(),
        };
        let registry = &mut metrics.registry;
        registry.register(
            "build",
            "The brood that runs",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register(
            "restores",
            "Guests that the daemon restored, or failed to, but for single claims",
            metrics.restores.clone(),
        );
        registry.register_with_unit(
            "restore_latency",
            "From the order to the guest's own answer",
            Unit::Seconds,
            metrics.restore_seconds.clone(),
        );
        registry.register_with_unit(
            "resume_latency",
            "From SIGCONT to the guest's own answer",
            Unit::Seconds,
            metrics.resume_seconds.clone(),
        );
        registry.register(
            "guests_ended",
            "Guests that ended by themselves, as far as the daemon saw it",
            metrics.ended.clone(),
        );
        registry.register_with_unit(
            "claim_latency",
            "From a claim to the guest's own answer, time that it waited for room included",
            Unit::Seconds,
            metrics.claim_seconds.clone(),
        );
        registry.register(
            "claims_failed",
            "Claims that got no guest: for want of room, or else",
            metrics.claims_failed.clone(),
        );
        registry.register(
            "pool_evictions",
            "Hot entries that were evicted, on request or by the pool's policy",
            metrics.evictions.clone(),
        );
        registry.register_with_unit(
            "claim_suspend_duration",
            "Time from the request to suspend a claim until it is on the disk",
            Unit::Seconds,
            metrics.claim_suspend_seconds.clone(),
        );
        registry.register_with_unit(
            "claim_suspend_written",
            "Guest memory that was written for suspended claims",
            Unit::Bytes,
            metrics.claim_suspend_bytes.clone(),
        );
        registry.register_with_unit(
            "claim_resume_latency",
            "Time from the request to resume a claim until its guest's own answer",
            Unit::Seconds,
            metrics.claim_resume_seconds.clone(),
        );
        registry.register(
            "claim_suspends_failed",
            "Failed suspends of claims, whose guests went on",
            metrics.claim_suspends_failed.clone(),
        );
        registry.register(
            "claim_resumes_failed",
            "Failed resumes of claims, which stay suspended",
            metrics.claim_resumes_failed.clone(),
        );
        registry.register(
            "http_requests",
            "Requests answered",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "http_request_duration",
            "From a request to the head of its answer",
            Unit::Seconds,
            metrics.request_seconds.clone(),
        );
        registry.register(
            "http_requests_in_flight",
            "Requests being answered",
            metrics.in_flight.clone(),
        );
        metrics.doors.register(registry);
        metrics
    }

    /// Metrics of the connections over this listener.
    pub(super) fn of_door(&self, by: &'static str, connections_max: usize) -> DoorMetrics {
        self.doors.of(by, connections_max)
    }

    /// A guest was restored, and answered after `latency`.
    pub(super) fn restored(&self, origin: &Origin, latency_s: f64) {
        let seconds = self.restore_seconds.get_or_create(origin);
        seconds.observe(latency_s);
        drop(seconds);
        self.count_restore(origin, Outcome::restored);
    }

    /// A guest was not restored.
    pub(super) fn failed(&self, origin: &Origin) {
        self.count_restore(origin, Outcome::failed);
    }

    fn count_restore(&self, origin: &Origin, outcome: Outcome) {
        for known in [Outcome::restored, Outcome::failed] {
            // A count that nothing was added to yet is 0, not unknown.
            let count = self.restores.get_or_create(&origin.with(known));
            count.inc_by(u64::from(known == outcome));
        }
    }

    /// Hot entries were dropped.
    pub(super) fn evicted(&self, pool: &str, reason: EvictReason, entries: u64) {
        if entries > 0 {
            let pool = pool.to_owned();
            let labels = Evictions { pool, reason };
            self.evictions.get_or_create(&labels).inc_by(entries);
        }
    }

    /// A guest was resumed, and answered after `latency`.
    pub(super) fn resumed(&self, latency: Duration) {
        self.resume_seconds.observe(latency.as_secs_f64());
    }

    /// A guest ended unasked.
    pub(super) fn ended(&self) {
        self.ended.inc();
    }

    /// A guest of a pool was claimed.
    pub(super) fn claimed(&self, pool: &str, tier: Tier, took: Duration) {
        let labels = Claims {
            pool: pool.to_owned(),
            tier: tier.name(),
        };
        let seconds = self.claim_seconds.get_or_create(&labels);
        seconds.observe(took.as_secs_f64());
    }

    /// A claim got no guest.
    pub(super) fn claim_failed(&self, pool: &str, no_room: bool) {
        let labels = FailedClaims {
            pool: pool.to_owned(),
            reason: if no_room { "no_room" } else { "other" },
        };
        self.claims_failed.get_or_create(&labels).inc();
    }

    /// The guest of a claim was suspended.
    pub(super) fn claim_suspended(&self, pool: &str, took: Duration, written: Bytes) {
        let pool = pool.to_owned();
        let labels = OfPool { pool };
        let seconds = self.claim_suspend_seconds.get_or_create(&labels);
        seconds.observe(took.as_secs_f64());
        let bytes = self.claim_suspend_bytes.get_or_create(&labels);
        bytes.inc_by(written.0);
    }

    /// The guest of a claim was not suspended.
    pub(super) fn claim_not_suspended(&self) {
        self.claim_suspends_failed.inc();
    }

    /// The guest of a suspended claim answers again.
    pub(super) fn claim_resumed(&self, pool: &str, took: Duration) {
        let pool = pool.to_owned();
        let seconds = self.claim_resume_seconds.get_or_create(&OfPool { pool });
        seconds.observe(took.as_secs_f64());
    }

    /// A suspended claim was not resumed.
    pub(super) fn claim_not_resumed(&self) {
        self.claim_resumes_failed.inc();
    }

    /// Counts a request as in flight until the result is dropped.
    pub(super) fn begin_request(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// A request was answered.
    pub(super) fn answered(&self, method: &str, route: &str, status: u16, took: Duration) {
        let labels = Requests {
            method: method.to_owned(),
            route: route.to_owned(),
            status,
        };
        self.requests.get_or_create(&labels).inc();
        self.request_seconds.observe(took.as_secs_f64());
    }

    fn render(&self, sample: &Sample) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &gauges::of(sample))?;
        encode_registry(&mut text, &process::metrics(self.started))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// A request that is being answered.
pub(super) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
