//! `brood restore`

use std::{process::ExitCode, sync::atomic::Ordering};

use clap::Args;
use serde_json::json;

use super::{
    Failure,
    failure::{INTERRUPTED, SOME},
    output::{
        Park, advance, bytes_bar, cancellation, engine, facts, guests_bar, json, line, state,
    },
};
use crate::{
    checkpoint::{BundlePath, Checkpoint},
    config::Config,
    density::percentiles::Percentiles,
    guests::{Guest, Guests},
    restore::{
        cost,
        mass::{self, Event, Report, Request},
    },
    state::State,
    units::Bytes,
};

/// Restores guests from one checkpoint. Each is a clone with its own identity and entropy; all
/// share every page that they do not write. They outlive this command.
///
/// Before anything is started, the restore is held against this host's limits: pids, open files,
/// and memory for the worst case that --private-limit allows. The defaults of --concurrency,
/// --private-limit and --park-after can be set in the configuration (`brood config example`).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood restore /var/tmp/ckp/demo --guests 1000
  brood restore /var/tmp/ckp/demo --guests 50 --prefix web --paused --json")]
pub(super) struct Restore {
    /// DIR/NAME of the checkpoint
    checkpoint: BundlePath,
    /// How many guests
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    guests: u32,
    /// How many at once [default: one for each core]
    #[arg(long, short = 'c', value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Names of the guests are PREFIX-1, PREFIX-2, ... [default: the checkpoint's name]
    #[arg(long, value_name = "P")]
    prefix: Option<String>,
    /// Pause each guest as soon as it has answered
    #[arg(long)]
    paused: bool,
    /// Worst case to allow for: private memory that each guest may come to hold [default: 1M]
    #[arg(long, value_name = "SIZE")]
    private_limit: Option<Bytes>,
    /// Go ahead when that worst case does not fit in memory, and say what it risks
    #[arg(long)]
    overcommit: bool,
    #[command(flatten)]
    park: Park,
    /// If any guest fails, destroy those that this command restored
    #[arg(long)]
    all_or_nothing: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Restore {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let cancelled = cancellation();
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        let (mut state, engine) = (state(config)?, engine()?);
        let facts = facts(config, Some(self.checkpoint.dir().to_owned()))?;
        verify(&state, &checkpoint, self.json)?;

        let defaults = &config.restore;
        let prefix = self
            .prefix
            .clone()
            .unwrap_or_else(|| self.checkpoint.name().to_owned());
        let request = Request {
            guests: self.guests as usize,
            concurrency: concurrency(config, self.concurrency)
                .unwrap_or_else(|| cores(facts.cpu.cores)),
            prefix,
            allowance: self.private_limit.unwrap_or(defaults.private_limit.value),
            overhead: cost::measured(&state, &checkpoint)?.overhead,
            overcommit: self.overcommit,
            park_after: self.park.after.unwrap_or(defaults.park_after.value).0,
            membership: None,
        };
        let bar = guests_bar(self.guests.into(), self.json);
        bar.set_message("restoring");
        let report = mass::restore(
            &mut state,
            &engine,
            &facts,
            &checkpoint,
            &request,
            &cancelled,
            &mut |event| match event {
                Event::Admitted { verdict } => {
                    if let Some(risk) = verdict.memory_risk() {
                        bar.suspend(|| eprintln!("warning: overcommitted: {risk}"));
                    }
                }
                Event::Restored(_) => bar.inc(1),
                Event::Failed(failure) => {
                    bar.suspend(|| eprintln!("{}: {}", failure.name, failure.error));
                }
                Event::NurseryReplaced => {
                    bar.suspend(|| eprintln!("the nursery was killed; a new one goes on"));
                }
                Event::Verifying(_) => {}
            },
        )?;
        bar.finish_and_clear();

        let mut guests = Guests {
            state: &mut state,
            engine: &engine,
        };
        let mine = |guests: &mut Guests<'_>| -> Result<Vec<Guest>, Failure> {
            let ids: std::collections::HashSet<_> = report.guests.iter().map(|g| g.id).collect();
            Ok(guests
                .list()?
                .into_iter()
                .filter(|g| ids.contains(&g.row.id))
                .collect())
        };
        let interrupted = report.not_begun > 0 && cancelled.load(Ordering::Relaxed);
        let rolled_back = self.all_or_nothing && (interrupted || !report.failures.is_empty());
        if rolled_back {
            let mine = mine(&mut guests)?;
            guests.destroy(&mine)?;
        } else if self.paused {
            for guest in mine(&mut guests)? {
                guests.pause(&guest)?;
            }
        }
        self.print(&report, interrupted, rolled_back);
        Ok(exit_code(&report, interrupted, rolled_back))
    }

    fn print(&self, report: &Report, interrupted: bool, rolled_back: bool) {
        let latencies = latencies_ms(report);
        let percentiles = Percentiles::of(&latencies);
        let restored = if rolled_back { 0 } else { report.guests.len() };
        if self.json {
            let guests: Vec<_> = report
                .guests
                .iter()
                .take(restored)
                .map(|g| {
                    json!({
                        "name": g.name, "id": g.id.to_string(), "pid": g.process.pid,
                        "restore_ms": g.latency.as_secs_f64() * 1e3,
                        "nonce": format!("{:016x}", g.nonce), "counter": g.counter,
                    })
                })
                .collect();
            let errors: Vec<_> = report
                .failures
                .iter()
                .map(|f| json!({ "name": f.name, "error": f.error }))
                .collect();
            json(&json!({
                "checkpoint": self.checkpoint.to_string(),
                "asked": report.asked, "restored": restored, "failed": report.failures.len(),
                "not_begun": report.not_begun, "interrupted": interrupted, "rolled_back": rolled_back,
                "paused": self.paused, "wall_s": report.wall.as_secs_f64(), "restore_ms": percentiles,
                "guests": guests, "errors": errors,
            }));
            return;
        }
        let wall = report.wall.as_secs_f64();
        line(format_args!(
            "{restored} of {} guests restored{} in {wall:.2} s ({:.0} a second); each has answered",
            report.asked,
            if self.paused { " and paused" } else { "" },
            report.guests.len() as f64 / wall.max(1e-9),
        ));
        if !latencies.is_empty() {
            let Percentiles { p50, p90, p99, max } = percentiles;
            line(format_args!(
                "latency to the guest's answer: p50 {p50:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms, max {max:.2} ms"
            ));
        }
        if rolled_back {
            line("some failed, and --all-or-nothing was asked for: the others were destroyed");
        }
        if interrupted {
            line(format_args!(
                "interrupted: {} guests were not begun; those restored stand",
                report.not_begun
            ));
        } else if restored > 0 {
            let first = report
                .guests
                .iter()
                .map(|g| &g.name)
                .min()
                .expect("some were restored");
            line(format_args!(
                "next: brood list, brood ask {first} ping, brood destroy --all"
            ));
        }
    }
}

fn exit_code(report: &Report, interrupted: bool, rolled_back: bool) -> ExitCode {
    if interrupted {
        ExitCode::from(INTERRUPTED)
    } else if report.failures.is_empty() && report.not_begun == 0 {
        ExitCode::SUCCESS
    } else if report.guests.is_empty() || rolled_back {
        ExitCode::FAILURE
    } else {
        ExitCode::from(SOME)
    }
}

fn latencies_ms(report: &Report) -> Vec<f64> {
    report
        .guests
        .iter()
        .map(|g| g.latency.as_secs_f64() * 1e3)
        .collect()
}

/// How many restores at once: as the flag says, else as is configured.
pub(super) fn concurrency(config: &Config, flag: Option<u32>) -> Option<usize> {
    let configured = config.restore.concurrency.as_ref();
    flag.or(configured.map(|k| k.value.get()))
        .map(|k| k as usize)
}

/// As many restores at once as there are cores.
pub(super) fn cores(cores: u64) -> usize {
    usize::try_from(cores).unwrap_or(1).max(1)
}

/// Checks the checkpoint's memory, with a progress bar, unless that was done before.
pub(super) fn verify(state: &State, checkpoint: &Checkpoint, quiet: bool) -> Result<(), Failure> {
    let bar = bytes_bar(quiet);
    bar.set_message("verifying");
    mass::verify(state, checkpoint, &|p| advance(&bar, p))?;
    bar.finish_and_clear();
    Ok(())
}
