//! Claims for `brood top`: the daemon's counters, and its events as they come.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::picture::Claims;
use crate::{
    api::claims::ClaimEvent,
    client::{ServerEvent, daemon},
    config::Config,
};
use brood_core::percentiles::Percentiles;

/// How long claims are remembered, for latencies.
const MINUTE: Duration = Duration::from_secs(60);
/// Over how long their rate is taken.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// How often a daemon is looked for.
const DAEMON_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Claims of the last minute.
#[derive(Debug, Default)]
pub(crate) struct ClaimNews {
    /// Since when the event stream is unbroken.
    since: Option<Instant>,
    claims: VecDeque<(Instant, ClaimEvent)>,
}

impl ClaimNews {
    /// A claim event came.
    pub(crate) fn hear(&mut self, claim: ClaimEvent, now: Instant) {
        self.claims.push_back((now, claim));
        while let Some((at, _)) = self.claims.front()
            && now.duration_since(*at) > MINUTE
        {
            self.claims.pop_front();
        }
    }

    /// Joins the daemon's counters and events of a pool's claims.
    pub(crate) fn of_pool(&self, pool: &str, counted: ClaimCounts, now: Instant) -> Claims {
        let mine = self
            .claims
            .iter()
            .filter(|(at, claim)| claim.pool == pool && now.duration_since(*at) <= MINUTE);
        let lately = mine
            .clone()
            .filter(|(at, _)| now.duration_since(*at) <= RATE_WINDOW)
            .count();
        let latencies: Vec<f64> = mine.map(|(_, claim)| claim.claim_ms).collect();
        let percentiles = (!latencies.is_empty()).then(|| Percentiles::of(&latencies));
        let listened = self.since.map(|since| now.duration_since(since));
        Claims {
            total: counted.total,
            mean_ms: (counted.total > 0).then(|| counted.seconds * 1e3 / counted.total as f64),
            // There is no rate yet just after the start.
            per_second: listened
                .filter(|listened| *listened >= DAEMON_POLL_INTERVAL)
                .map(|listened| lately as f64 / listened.min(RATE_WINDOW).as_secs_f64()),
            p50_ms: percentiles.map(|p| p.p50),
            p99_ms: percentiles.map(|p| p.p99),
        }
    }
}

/// Listens in a thread, to whichever daemon there is.
pub(crate) fn listen(config: &Config) -> Arc<Mutex<ClaimNews>> {
    let heard = Arc::new(Mutex::new(ClaimNews::default()));
    let (to, config) = (Arc::clone(&heard), config.clone());
    thread::spawn(move || {
        loop {
            if let Some(client) = daemon(&config) {
                lock(&to).since = Some(Instant::now());
                let _ = client.listen(&mut |told| {
                    if let Some(ServerEvent { kind, data }) = told
                        && kind == "claim"
                        && let Ok(claim) = serde_json::from_str(&data)
                    {
                        lock(&to).hear(claim, Instant::now());
                    }
                    ControlFlow::Continue(())
                });
                lock(&to).since = None;
            }
            thread::sleep(DAEMON_POLL_INTERVAL);
        }
    });
    heard
}

pub(crate) fn lock(heard: &Mutex<ClaimNews>) -> std::sync::MutexGuard<'_, ClaimNews> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A daemon's counters of one pool's claims.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ClaimCounts {
    total: u64,
    seconds: f64,
}

/// Reads that from the daemon's metrics, by pool; hot and cold claims together.
pub(crate) fn counted(metrics: &str) -> BTreeMap<String, ClaimCounts> {
    let mut pools = BTreeMap::<String, ClaimCounts>::new();
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix("brood_claim_latency_seconds_") else {
            continue;
        };
        let Some((kind, rest)) = rest.split_once('{') else {
            continue;
        };
        let Some((labels, value)) = rest.split_once("} ") else {
            continue;
        };
        let pool = labels
            .split(',')
            .find_map(|label| label.strip_prefix("pool=\"")?.strip_suffix('"'));
        let Some(pool) = pool else { continue };
        let counted = pools.entry(pool.to_owned()).or_default();
        match kind {
            "count" => counted.total += value.parse::<u64>().unwrap_or(0),
            "sum" => counted.seconds += value.parse::<f64>().unwrap_or(0.0),
            _ => {}
        }
    }
    pools
}

#[cfg(test)]
mod tests {
    use super::*;
    use brood_core::pool::Tier;

    #[test]
    fn what_was_counted_and_what_was_heard_go_together() {
        let metrics = "\
# TYPE brood_claim_latency_seconds histogram
brood_claim_latency_seconds_sum{pool=\"web\",tier=\"hot\"} 0.006
brood_claim_latency_seconds_count{pool=\"web\",tier=\"hot\"} 3
brood_claim_latency_seconds_bucket{le=\"0.001\",pool=\"web\",tier=\"hot\"} 2
brood_claim_latency_seconds_sum{pool=\"web\",tier=\"cold\"} 0.006
brood_claim_latency_seconds_count{pool=\"web\",tier=\"cold\"} 1
";
        let counted = counted(metrics);
        assert_eq!(counted.len(), 1);
        let begin = Instant::now();
        let at = |s| begin + Duration::from_secs(s);
        let mut heard = ClaimNews {
            since: Some(begin),
            ..ClaimNews::default()
        };
        for (second, pool, claim_ms) in [
            (1, "web", 9.0),
            (70, "web", 1.0),
            (75, "web", 3.0),
            (76, "api", 50.0),
        ] {
            let claim = ClaimEvent {
                pool: pool.into(),
                guest: "g".into(),
                tier: Tier::Hot,
                claim_ms,
            };
            heard.hear(claim, at(second));
        }
        let claims = heard.of_pool("web", counted["web"], at(77));
        assert_eq!(claims.total, 4);
        assert!((claims.mean_ms.unwrap() - 3.0).abs() < 1e-9);
        // Of the last ten seconds, and of the last minute: the first is forgotten.
        assert_eq!(claims.per_second, Some(0.2));
        assert_eq!((claims.p50_ms, claims.p99_ms), (Some(1.0), Some(3.0)));
        let nobody = ClaimNews::default().of_pool("web", ClaimCounts::default(), begin);
        assert_eq!(nobody, Claims::default());
    }
}
