//! Overhead of the daemon's API over a call of the library: hot claims of one pool, in turns by the
//! library and over HTTP on the daemon's socket.

use std::{
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use brood_core::{percentiles::Percentiles, pool::Tier, state::Policy};
use reqwest::blocking::Client;
use serde::Deserialize;
use serde_json::json;

use super::{
    Measurement,
    error::Error,
    goal::{Goal, Row},
    pool::{Manager, POOL},
    steady_state::settle,
    workplace::Workplace,
};

/// Claims each way that a percentile is taken of.
const SAMPLES: usize = 200;
/// Hot entries, of which each way gets half until the pool is filled again.
const HOT: u64 = 50;
/// How long a daemon may take to answer first.
const PATIENCE: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(5);

/// A daemon, and a client of it. It is ended when this is dropped.
pub(super) struct Daemon {
    pub(super) process: Child,
    pub(super) socket: PathBuf,
    client: Client,
}

#[derive(Deserialize)]
struct Claim {
    token: String,
    tier: String,
    claim_ms: f64,
}

impl Daemon {
    pub(super) fn start(workplace: &Workplace) -> Result<Self, Error> {
        let socket: PathBuf = workplace.brood.state.join("api.sock");
        let mut command = workplace.brood.command(&["serve"]);
        let process = command
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::io("run brood serve"))?;
        let client = Client::builder().unix_socket(socket.as_path()).build()?;
        let daemon = Self {
            process,
            socket,
            client,
        };
        let begin = Instant::now();
        while let Err(error) = daemon.client.get("http://brood/health").send() {
            workplace.brood.interrupt.check()?;
            if begin.elapsed() > PATIENCE {
                return Err(error.into());
            }
            thread::sleep(GLANCE);
        }
        Ok(daemon)
    }

    /// Claims a hot entry; returns its token, and milliseconds as its client and as the daemon
    /// counts them.
    fn claim(&self) -> Result<(String, f64, f64), Error> {
        let begin = Instant::now();
        let answer = self
            .client
            .post(format!("http://brood/api/v1/pools/{POOL}/claims"))
            .json(&json!({}))
            .send()?
            .error_for_status()?;
        let claim: Claim = answer.json()?;
        let took = begin.elapsed();
        if claim.tier != Tier::Hot.name() {
            return Err(Error::Short {
                command: "claiming a hot entry over HTTP",
                done: 0,
                asked: 1,
            });
        }
        Ok((claim.token, took.as_secs_f64() * 1e3, claim.claim_ms))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Guests are not its children; the clean-up of the workplace ends them.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Measures both ways, in turns.
pub(crate) fn api(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    let (mut added, mut added_late, mut inside) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..workplace.rounds {
        settle(&workplace.brood.interrupt)?;
        let mut manager = Manager::open(workplace)?;
        // The daemon leaves the pool alone while it is measured.
        let policy = Policy {
            hot_min: Some(1),
            ..Policy::hot(HOT, 3600)
        };
        manager.create(workplace, policy)?;
        manager.fill(workplace)?;
        let daemon = Daemon::start(workplace)?;
        let (mut library, mut http, mut within) = (Vec::new(), Vec::new(), Vec::new());
        while http.len() < SAMPLES {
            workplace.brood.interrupt.check()?;
            let mut tokens = Vec::new();
            for _ in 0..HOT / 2 {
                let (token, ms) = manager.claim(Tier::Hot)?;
                tokens.push(token);
                library.push(ms);
                let (token, ms, counted) = daemon.claim()?;
                tokens.push(token);
                http.push(ms);
                within.push(counted);
            }
            manager.release(&tokens)?;
            manager.fill(workplace)?;
        }
        drop(daemon);
        manager.remove()?;
        let [library, http, within] = [library, http, within].map(|ms| Percentiles::of(&ms));
        eprintln!(
            "api: round {} of {}: p50 {:.3} ms by the library, {:.3} ms over HTTP",
            n + 1,
            workplace.rounds,
            library.p50,
            http.p50
        );
        added.push(http.p50 - library.p50);
        added_late.push(http.p99 - library.p99);
        inside.push(within.p50);
    }
    let row = |figure: &str, values: &[f64], goal| {
        Row::alone(Measurement::Api, figure, "ms", values, goal)
    };
    Ok(vec![
        row(
            "hot claim over HTTP, above the library's: p50",
            &added,
            Some(Goal::AtMost(1.0)),
        ),
        row("the same: p99", &added_late, None),
        row("hot claim inside the daemon: p50", &inside, None),
    ])
}
