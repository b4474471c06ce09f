//! `brood pool claim`, and the commands on a claim: renew, suspend, resume, release.

use std::{
    process::ExitCode,
    sync::LazyLock,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;

use super::{
    bar::Bar,
    complete,
    output::{cancellation, ending, json, line, operations, written},
    values::{timeout, wait, whole_seconds},
};
use crate::{
    config::Config,
    failure::Failure,
    types::{Claim as Claimed, ResumeClaimRequest},
};
use brood_core::pool::ClaimSpec;

/// Claims a guest: the oldest hot one, or a newly restored one. It has answered when the command
/// ends.
///
/// The claim ends when it is released, when its lease ends without being renewed, or with its
/// guest. Exits with 4 when the pool or the host has no room for one more guest.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool claim web
  brood pool claim web --lease 1h --wait 10s --json")]
pub(super) struct Claim {
    /// The pool
    #[arg(add = complete::with(complete::pools))]
    pool: String,
    /// Lease of the claim, until it is renewed: seconds, or 5m, 1h [default: the pool's lease]
    #[arg(long, value_name = "TIME", value_parser = whole_seconds)]
    lease: Option<u32>,
    /// How long to wait when the pool or the host has no room
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = wait)]
    wait: Duration,
    /// Time that the guest has to answer [default: 10s for a hot guest, 60s for a restored one]
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    timeout: Option<Duration>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Claim {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let begin = Instant::now();
        let claim = operations(config).run(|ops| {
            let wanted = ClaimSpec {
                lease: self.lease.map(|s| Duration::from_secs(s.into())),
                timeout: self.timeout,
                wait: self.wait.saturating_sub(begin.elapsed()),
                place: None,
            };
            ops.claim(&self.pool, &wanted)
        })?;
        self.hand_over(config, &claim)
    }

    /// Prints the claim. If that fails, as on a full disk, nobody has its token, so the claim is
    /// released.
    fn hand_over(&self, config: &Config, claim: &Claimed) -> Result<ExitCode, Failure> {
        print_claim(claim, self.json);
        let Err(lost) = written() else {
            return Ok(ExitCode::SUCCESS);
        };
        let (message, hint) = match release(config, &claim.token) {
            Ok(()) => ("the claim was given back", None),
            Err(_) => (
                "the claim could not be given back, and ends with its lease",
                Some(format!("to end it now: brood pool release {}", claim.token)),
            ),
        };
        let message = format!("{}; {message}", lost.message);
        Err(Failure::new(&message, hint))
    }
}

/// Releases one claim.
fn release(config: &Config, token: &str) -> Result<(), Failure> {
    operations(config).run(|ops| ops.release(token))
}

fn print_claim(claim: &Claimed, as_json: bool) {
    if as_json {
        json(claim);
        return;
    }
    line(format_args!(
        "{} is yours for {} s ({}; it answered after {:.2} ms)",
        claim.guest,
        claim.lease_s,
        claim.tier.name(),
        claim.claim_ms
    ));
    for published in &claim.published {
        line(format_args!("{published}"));
    }
    line(format_args!("token: {}", claim.token));
    line(format_args!(
        "next: brood ask {} ping, brood pool release {}",
        claim.guest, claim.token
    ));
}

/// Renews a claim: its lease ends the given time from now
#[derive(Debug, Args)]
#[command(after_help = "Example: brood pool renew TOKEN --lease 1h")]
pub(super) struct Renew {
    /// What `brood pool claim` printed
    token: String,
    /// New lease, counted from now: seconds, or 5m, 1h
    #[arg(long, value_name = "TIME", value_parser = whole_seconds)]
    lease: u32,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Renew {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        operations(config).run(|ops| ops.renew(&self.token, self.lease))?;
        if self.json {
            json(&json!({ "lease_s": self.lease }));
        } else {
            line(format_args!("it is yours for {} s from now", self.lease));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Suspends a claim: writes its guest's private pages to disk and ends the guest. A suspended claim
/// lasts until it is released, even through a reboot
#[derive(Debug, Args)]
#[command(after_help = "Example: brood pool suspend TOKEN")]
pub(super) struct Suspend {
    /// What `brood pool claim` printed
    token: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Suspend {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let bar = LazyLock::new(|| Bar::bytes("sealing", self.json).until(&cancellation()));
        let suspended = operations(config)
            .run(|ops| ops.suspend_claim(&self.token, &|progress| bar.advance(progress)))?;
        drop(bar);
        let (guest, written) = (suspended.guest, suspended.written_bytes);
        if self.json {
            json(&json!({ "guest": guest, "written_bytes": written.0 }));
        } else {
            line(format_args!(
                "{guest} is suspended: {written} of memory written; next: brood pool resume {}",
                self.token
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Resumes a suspended claim: restores its guest. It has answered when the command ends
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool resume TOKEN
  brood pool resume TOKEN --lease 1h --json")]
pub(super) struct Resume {
    /// What `brood pool claim` printed
    token: String,
    /// Lease of the claim, until it is renewed: seconds, or 5m, 1h [default: the pool's lease]
    #[arg(long, value_name = "TIME", value_parser = whole_seconds)]
    lease: Option<u32>,
    /// Time that the guest has to answer [default: 10s if it still runs, 60s if it is restored]
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    timeout: Option<Duration>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Resume {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let resuming = ResumeClaimRequest {
            lease_s: self.lease,
            wait_s: 0.0,
            timeout_s: self.timeout.map(|timeout| timeout.as_secs_f64()),
        };
        let claim = operations(config).run(|ops| ops.resume_claim(&self.token, &resuming))?;
        print_claim(&claim, self.json);
        Ok(ExitCode::SUCCESS)
    }
}

/// Releases claims: destroys their guests. They are gone when the command ends
#[derive(Debug, Args)]
#[command(after_help = "Example: brood pool release TOKEN")]
pub(super) struct Release {
    /// What `brood pool claim` printed
    #[arg(required = true)]
    token: Vec<String>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Release {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let failures = operations(config).each(&self.token, |ops, token| ops.release(token))?;
        let released = self.token.len() - failures.len();
        if self.json {
            let errors: Vec<_> = failures.iter().map(ToString::to_string).collect();
            json(&json!({ "released": released, "errors": errors }));
        } else {
            line(format_args!("{released} released"));
        }
        for failure in &failures {
            super::output::failure(failure);
        }
        Ok(ending(released, failures.len()))
    }
}
