//! `brood restore`

use std::process::ExitCode;

use clap::Args;

use super::{
    Failure,
    failure::{INTERRUPTED, SOME},
    output::{
        Park, advance, bytes_bar, cancellation, engine, engine_with, facts, guests_bar, json, line,
        state,
    },
};
use crate::{
    checkpoint::{BundlePath, Checkpoint, manifest::EngineKind},
    config::Config,
    density::percentiles::Percentiles,
    disk::Choice,
    engine::{self, Engine, bhyve::Rctl},
    restore::{
        job::{Done, Ending, Job, View},
        mass::{self, Event},
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
  brood restore /var/tmp/ckp/demo --guests 50 --prefix web --paused --json
  brood restore /ckp/web --guests 50 --rctl pcpu:deny=100 --rctl writebps:throttle=10M")]
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
    /// Disk that each guest gets a clone of: zfs:POOL/DATASET@SNAPSHOT, reflink:FILE,
    /// reflink-or-copy:FILE (copied where blocks cannot be shared) or none [default: the one that
    /// was sealed with the checkpoint]
    #[arg(long, value_name = "DISK")]
    disk: Option<Choice>,
    /// Pause each guest as soon as it has answered
    #[arg(long)]
    paused: bool,
    /// Worst case to allow for: private memory that each guest may come to hold [default: 1M]
    #[arg(long, value_name = "SIZE")]
    private_limit: Option<Bytes>,
    /// Go ahead when that worst case does not fit in memory, and say what it risks
    #[arg(long)]
    overcommit: bool,
    /// Limit each guest by a rule of rctl(8), such as pcpu:deny=100, until it ends. May be given
    /// again. For bhyve, with kern.racct.enable=1 [default: those of the configuration]
    #[arg(long, value_name = "RESOURCE:ACTION=AMOUNT")]
    rctl: Vec<Rctl>,
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
        let rctl: Rctl = self.rctl.into_iter().collect();
        let (mut state, engine) = (state(config)?, limited(config, &rctl)?);
        let facts = facts(config, &*engine, Some(self.checkpoint.dir().to_owned()))?;
        verify(&state, &checkpoint, self.json)?;

        let defaults = &config.restore;
        let job = Job {
            names: Job::numbered(self.prefix, &self.checkpoint),
            checkpoint: self.checkpoint,
            guests: self.guests,
            concurrency: concurrency(config, self.concurrency),
            paused: self.paused,
            allowance: self.private_limit.unwrap_or(defaults.private_limit.value),
            overcommit: self.overcommit,
            park_after: self.park.after.unwrap_or(defaults.park_after.value).0,
            all_or_nothing: self.all_or_nothing,
            disk: self.disk.unwrap_or_default(),
        };
        let bar = guests_bar(self.guests.into(), self.json);
        bar.set_message("restoring");
        let done = job.run(
            &mut state,
            &*engine,
            &facts,
            &checkpoint,
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
        if self.json {
            json(&View::new(&job, &done));
        } else {
            print(&done);
        }
        Ok(exit_code(done.ending()))
    }
}

fn print(done: &Done) {
    let (report, restored) = (&done.report, done.guests().len());
    let wall = report.wall.as_secs_f64();
    line(format_args!(
        "{restored} of {} guests restored{} in {wall:.2} s ({:.0} a second); each has answered",
        report.asked,
        if done.paused { " and paused" } else { "" },
        report.guests.len() as f64 / wall.max(1e-9),
    ));
    if !report.guests.is_empty() {
        let Percentiles { p50, p90, p99, max } = done.latency();
        line(format_args!(
            "latency to the guest's answer: p50 {p50:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms, max {max:.2} ms"
        ));
    }
    if done.rolled_back {
        line("some failed, and --all-or-nothing was asked for: the others were destroyed");
    }
    if done.interrupted {
        line(format_args!(
            "interrupted: {} guests were not begun; those restored stand",
            report.not_begun
        ));
    } else if let Some(first) = done.guests().iter().map(|g| &g.name).min() {
        line(format_args!(
            "next: brood list, brood ask {first} ping, brood destroy --all"
        ));
    }
}

fn exit_code(ending: Ending) -> ExitCode {
    match ending {
        Ending::Whole => ExitCode::SUCCESS,
        Ending::Some => ExitCode::from(SOME),
        Ending::Nothing => ExitCode::FAILURE,
        Ending::Interrupted => ExitCode::from(INTERRUPTED),
    }
}

/// The engine, with the limits that the command line names, else with those that are configured.
fn limited(config: &Config, rctl: &Rctl) -> Result<Box<dyn Engine>, Failure> {
    if rctl.is_empty() {
        return engine(config);
    }
    let engine = engine_with(rctl)?;
    if engine.kind() != EngineKind::Bhyve {
        let why = "--rctl is FreeBSD's; on Linux control groups limit guests".to_owned();
        return Err(engine::Error::Refused(why).into());
    }
    Ok(engine)
}

/// How many restores at once: as the flag says, else as is configured.
pub(super) fn concurrency(config: &Config, flag: Option<u32>) -> Option<u32> {
    let configured = config.restore.concurrency.as_ref();
    flag.or(configured.map(|k| k.value.get()))
}

/// Checks the checkpoint's memory, with a progress bar, unless that was done before.
pub(super) fn verify(state: &State, checkpoint: &Checkpoint, quiet: bool) -> Result<(), Failure> {
    let bar = bytes_bar(quiet);
    bar.set_message("verifying");
    mass::verify(state, checkpoint, &|p| advance(&bar, p))?;
    bar.finish_and_clear();
    Ok(())
}
