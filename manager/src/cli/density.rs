//! `brood density`: measures what guests cost, and writes the report.

use std::{process::ExitCode, sync::atomic::Ordering};

use clap::Args;

use super::{
    bar::Bar,
    complete,
    failure::{INTERRUPTED, SOME},
    output::{Park, cancellation, json, line, local, note},
};
#[cfg(feature = "plots")]
use crate::density::report::write_report;
use crate::failure::Failure;
use crate::{
    config::Config,
    density::{
        run::{self, Event, Run},
        step::Step,
    },
    ops::{OpenFolder, StateFolder},
};
use brood_core::{
    checkpoint::{BundlePath, Checkpoint},
    engine::bhyve::Rctl,
    restore::{PRIVATE_LIMIT, cores, cost, verify},
    units::Bytes,
};

/// Restores growing numbers of guests and measures what they cost the host.
///
/// Each step waits until the host's memory has settled, restores guests, has each write
/// --dirty-pages pages, waits again, measures memory, asks all guests once more, and destroys them.
/// If other activity on the host disturbs a step, it is measured up to three times; if the noise
/// remains, the report says so and plans do not use the step.
///
/// Only this command's options apply: the restore settings of the configuration do not.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  brood density /var/tmp/ckp/demo --guests 8,50,200,1000 --report /var/tmp/density")]
pub(super) struct Density {
    /// DIR/NAME of the checkpoint
    #[arg(add = complete::with(complete::checkpoints))]
    checkpoint: BundlePath,
    /// Numbers of guests, one step each
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', required = true, value_parser = clap::value_parser!(u32).range(1..))]
    guests: Vec<u32>,
    /// How many restores at once [default: one for each core]
    #[arg(long, short = 'c', value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Pages that each guest writes
    #[arg(long, value_name = "D", default_value_t = 0)]
    dirty_pages: u64,
    /// Restore even if the worst case does not fit in memory
    #[arg(long)]
    overcommit: bool,
    #[command(flatten)]
    park: Park,
    #[cfg(feature = "plots")]
    /// Write a report to this folder: index.html, density.json, density.svg
    #[arg(long, value_name = "DIR")]
    report: Option<std::path::PathBuf>,
    /// Print one JSON object per step
    #[arg(long)]
    json: bool,
}

impl Density {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let cancelled = cancellation();
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        let mut config = config.clone();
        config.bhyve.rctl.value = Rctl::default();
        let mut local = local(&config);
        let opened = local.open()?;
        let verifying = Bar::bytes("verifying", self.json).until(&cancelled);
        // Until it is dropped, nobody can remove the checkpoint.
        let _use = verify(opened.state, opened.engine, &checkpoint, &|p| {
            verifying.advance(p)
        })?;
        verifying.clear();
        let facts = opened.facts(Some(self.checkpoint.dir().to_owned()))?;
        let OpenFolder { state, engine, .. } = opened;
        self.warn_without_agent(&checkpoint);
        let written = Bytes(
            self.dirty_pages
                .saturating_mul(brood_core::units::PAGE_SIZE),
        );
        let has_disk = run::has_disk(&checkpoint);
        let mut steps: Vec<Step> = Vec::new();
        if !self.json {
            line(header(has_disk));
        }
        let mut again = TRIES;
        let mut wanted = self.guests.iter().peekable();
        while let Some(&&guests) = wanted.peek() {
            let bar = Bar::guests("settling", guests.into(), self.json);
            let run = Run {
                guests,
                concurrency: self.concurrency.unwrap_or_else(|| cores(facts.cpu.cores)),
                dirty_pages: self.dirty_pages,
                private_limit: PRIVATE_LIMIT.max(written + Bytes::mib(1)),
                overhead: cost::measured(state, &checkpoint)?.overhead,
                overcommit: self.overcommit,
                park_after: self.park.after.unwrap_or_default().0,
            };
            let observe = &mut |event: Event<'_>| match event {
                Event::Phase(phase) => bar.set_message(phase),
                Event::Restored => bar.inc(),
                Event::Failed(failure) => {
                    bar.note(format_args!("{}: {}", failure.name, failure.error));
                }
            };
            let step = run::step(state, engine, &checkpoint, &run, &cancelled, observe)?;
            bar.clear();
            let interrupted = cancelled.load(Ordering::Relaxed);
            again -= 1;
            if is_repeated(&step, guests, again > 0 && !interrupted) {
                continue;
            }
            again = TRIES;
            let _ = wanted.next();
            if self.json {
                json(&step);
            } else {
                line(row(&step, has_disk));
            }
            steps.push(step);
            if interrupted {
                break;
            }
        }
        #[cfg(feature = "plots")]
        if let Some(dir) = &self.report {
            let page = write_report(dir, &steps)?;
            if !self.json {
                line(format_args!("report: {}", page.display()));
            }
        }
        Ok(exit_code(&steps, cancelled.load(Ordering::Relaxed)))
    }
}

impl Density {
    fn warn_without_agent(&self, checkpoint: &Checkpoint) {
        if self.dirty_pages > 0 && !run::can_be_asked(checkpoint) {
            note(
                "warning: its guests have no agent: they write what they write by themselves, and \
                 count as answering when they are ready and live",
            );
        }
    }
}

/// Whether a step is measured again because of noise, if it may be; tells of the noise.
fn is_repeated(step: &Step, guests: u32, may: bool) -> bool {
    let Some(noise) = &step.noise else {
        return false;
    };
    note(match may {
        true => format!("{guests} guests are measured again: {noise}"),
        false => format!(
            "warning: the host is too noisy to tell what {guests} guests cost: {noise}; hint: stop \
             what else runs, or measure more guests"
        ),
    });
    may
}

/// How often a step is measured while the host is noisy.
const TRIES: u32 = 3;

/// Heads of the columns. Guests without a disk have no column of disks.
fn header(has_disk: bool) -> String {
    let disk = if has_disk { "disk MiB/guest  " } else { "" };
    format!(
        "guests  answered   wall s   p50 ms   p99 ms   host MiB  MiB/guest  {disk}checkpoint unchanged"
    )
}

fn row(step: &Step, has_disk: bool) -> String {
    let disk = match (has_disk, step.disk_per_guest_mib) {
        (true, Some(mib)) => format!("{mib:>14.3}  "),
        (true, None) => format!("{:>14}  ", "-"),
        (false, _) => String::new(),
    };
    let same = step.checkpoint_sha256_before == step.checkpoint_sha256_after;
    format!(
        "{:>6}  {:>8}  {:>7.2}  {:>7.2}  {:>7.2}  {:>9.1}  {:>9.3}  {disk}{}",
        step.guests,
        step.answered,
        step.wall_s,
        step.restore_ms.p50,
        step.restore_ms.p99,
        step.host_delta_mib,
        step.per_guest_mib,
        match (same, &step.noise) {
            (true, None) => "yes",
            (true, Some(_)) => "yes, and host noise",
            (false, _) => "NO",
        },
    )
}

fn exit_code(steps: &[Step], interrupted: bool) -> ExitCode {
    let good = |s: &Step| {
        s.answered == s.guests && s.checkpoint_sha256_before == s.checkpoint_sha256_after
    };
    if interrupted {
        ExitCode::from(INTERRUPTED)
    } else if steps.iter().all(good) {
        ExitCode::SUCCESS
    } else if steps.iter().all(|s| s.answered == 0) {
        ExitCode::FAILURE
    } else {
        ExitCode::from(SOME)
    }
}
