//! `brood restore`: restores guests from a checkpoint.

use std::{process::ExitCode, time::Duration};

use clap::Args;

use super::{
    complete,
    failure::{INTERRUPTED, SOME},
    output::{Park, cancellation, json, line, local, note, operations_here, operations_to_restore},
    progress::RestoreProgress,
    values::timeout,
};
use crate::{
    api::events::RestoreEvent,
    config::Config,
    failure::Failure,
    ops::{StateFolder, Watch},
};
use brood_core::{
    checkpoint::{BundlePath, Network, manifest::EngineKind},
    disk::Choice,
    engine::{self, Publish, bhyve::Rctl},
    percentiles::Percentiles,
    restore::{RestoreEnd, RestoreReport, RestoreSpec},
    units::Bytes,
};

/// Restores guests from one checkpoint. Each is a clone with its own identity and entropy; all
/// share every page that they do not write. They outlive this command.
///
/// brood first checks the restore against this host's limits: pids, open files, and memory for the
/// worst case that --private-limit allows. The configuration can set the defaults of --concurrency,
/// --private-limit and --park-after (`brood config example`).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood restore /var/tmp/ckp/demo --guests 1000
  brood restore /var/tmp/ckp/demo --guests 50 --prefix web --paused --json
  brood restore /ckp/web --guests 50 --rctl pcpu:deny=100 --rctl writebps:throttle=10M")]
pub(super) struct Restore {
    /// DIR/NAME of the checkpoint
    #[arg(add = complete::with(complete::checkpoints))]
    checkpoint: BundlePath,
    /// How many guests
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    guests: u32,
    /// How many restores run at once [default: one for each core]
    #[arg(long, short = 'c', value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Time that each guest has to answer. brood ends one that takes longer, and goes on with the
    /// others
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = timeout)]
    timeout: Duration,
    /// Guests are named PREFIX-1, PREFIX-2, ..., at most 32 bytes each [default: the checkpoint's
    /// name]
    #[arg(long, value_name = "P")]
    prefix: Option<String>,
    /// Disk that each guest gets a clone of: zfs:POOL/DATASET@SNAPSHOT, reflink:FILE,
    /// reflink-or-copy:FILE (a copy where blocks cannot be shared), qcow2:FILE (an overlay; QEMU) or
    /// none [default: the disk sealed with the checkpoint]
    #[arg(long, value_name = "DISK")]
    disk: Option<Choice>,
    /// What the guests reach: none; user: what you reach, each guest from behind an address of its
    /// own; or tap: this host, by a network device for each guest (KVM; needs root) [default: what the
    /// checkpoint was made with]
    #[arg(long, value_name = "NET")]
    net: Option<Network>,
    /// Have a port of this host lead to a port of the guest (--net user). The letter n in braces, in PORT,
    /// stands for the guest's number. The address is 127.0.0.1 unless another is given; repeat the
    /// option for more
    #[arg(long, value_name = "[ADDRESS:]PORT:GUEST_PORT")]
    publish: Vec<Publish>,
    /// Pause each guest as soon as it has answered
    #[arg(long)]
    paused: bool,
    /// Private limit: private memory that each guest may come to hold. Admission counts with it for
    /// the worst case; a guest can write more, unless --enforce-private-limit is given [default: 1M]
    #[arg(long, value_name = "SIZE")]
    private_limit: Option<Bytes>,
    /// Have the kernel end a guest that comes to hold more than its private limit and what a guest
    /// costs besides (KVM engine: a control group for each guest) [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    enforce_private_limit: Option<bool>,
    /// Restore even if that worst case does not fit in memory, and print the risk
    #[arg(long)]
    overcommit: bool,
    /// Limit each guest by a rule of rctl(8), such as pcpu:deny=100; repeat the option for more
    /// rules. Needs bhyve and kern.racct.enable=1 [default: the configuration's rules]
    #[arg(long, value_name = "RESOURCE:ACTION=AMOUNT")]
    rctl: Vec<Rctl>,
    /// Trust the checkpoint from now on: allow the commands, files and addresses that `brood
    /// checkpoint inspect` lists
    #[arg(long)]
    trust: bool,
    #[command(flatten)]
    park: Park,
    /// If any guest fails, destroy all guests that this command restored
    #[arg(long)]
    all_or_nothing: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Restore {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        // Limits of guests that the daemon restores are its own.
        let mut ops = if self.disk.is_some() || !self.rctl.is_empty() {
            operations_here(&self.limited(config)?)
        } else {
            operations_to_restore(config, &self.checkpoint)?
        };
        let spec = self.spec(config);
        let cancelled = &cancellation();
        let mut shown = RestoreProgress::new(self.json);
        let report = ops.run(|ops| {
            let observe = &mut |event: &RestoreEvent| shown.note(event);
            let watch = Watch::new(cancelled, self.guests, observe);
            ops.restore(&self.checkpoint, &spec, &watch)
        })?;
        shown.finish(&report.failures, &report.warnings);
        for undone in &report.undone {
            note(format_args!("error: {undone}"));
        }
        if self.json {
            json(&report);
        } else {
            print(&report);
        }
        Ok(exit_code(report.ending()))
    }

    /// The configuration, with the limits that the command line names.
    fn limited(&self, config: &Config) -> Result<Config, Failure> {
        let mut config = config.clone();
        if !self.rctl.is_empty() {
            if !local(&config)
                .engine()?
                .0
                .kinds()
                .contains(&EngineKind::Bhyve)
            {
                let why = "--rctl is FreeBSD's; on Linux control groups limit guests".to_owned();
                return Err(engine::Error::Refused(why).into());
            }
            config.bhyve.rctl.value = self.rctl.iter().cloned().collect();
        }
        Ok(config)
    }

    fn spec(&self, config: &Config) -> RestoreSpec {
        let defaults = &config.restore;
        RestoreSpec {
            checkpoint: self.checkpoint.to_string(),
            guests: self.guests,
            concurrency: concurrency(config, self.concurrency),
            timeout: Some(self.timeout),
            prefix: self.prefix.clone(),
            paused: self.paused,
            private_limit: Some(self.private_limit.unwrap_or(defaults.private_limit.value)),
            enforce_private_limit: self
                .enforce_private_limit
                .unwrap_or(defaults.enforce_private_limit.value),
            overcommit: self.overcommit,
            park_after: self.park.after.unwrap_or(defaults.park_after.value).0,
            all_or_nothing: self.all_or_nothing,
            disk: self.disk.clone().unwrap_or_default(),
            trust: self.trust,
            network: self.net,
            publish: self.publish.clone(),
            ..RestoreSpec::default()
        }
    }
}

fn print(report: &RestoreReport) {
    let (wall, answered) = (report.wall_s, report.answered());
    line(format_args!(
        "{} of {} guests restored{} in {wall:.2} s ({:.0} a second); each has answered",
        report.restored,
        report.asked,
        if report.paused { " and paused" } else { "" },
        answered as f64 / wall.max(1e-9),
    ));
    if report.verify_s > 0.0 {
        line(format_args!(
            "{:.2} s in all, {:.2} s of that to check the checkpoint's memory, as is done once",
            wall + report.verify_s,
            report.verify_s
        ));
    }
    if answered > 0 {
        let Percentiles { p50, p90, p99, max } = report.restore_ms;
        line(format_args!(
            "latency to the guest's answer: p50 {p50:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms, max {max:.2} ms"
        ));
    }
    if report.rolled_back {
        let why = if report.interrupted {
            "interrupted"
        } else {
            "some failed"
        };
        line(format_args!(
            "{why}, and --all-or-nothing was asked for: the others were destroyed"
        ));
    } else if report.interrupted {
        line(format_args!(
            "interrupted: {} guests were not begun; those restored stand",
            report.not_begun
        ));
    } else if let Some(first) = report.guests.iter().map(|g| &g.name).min() {
        let prefix = first
            .rsplit_once('-')
            .map_or(&first[..], |(prefix, _)| prefix);
        line(format_args!(
            "next: brood list, brood ask {first} ping, brood destroy --prefix {prefix}-"
        ));
    }
}

fn exit_code(ending: RestoreEnd) -> ExitCode {
    match ending {
        RestoreEnd::Whole => ExitCode::SUCCESS,
        RestoreEnd::Some => ExitCode::from(SOME),
        RestoreEnd::Nothing => ExitCode::FAILURE,
        RestoreEnd::Interrupted => ExitCode::from(INTERRUPTED),
    }
}

/// How many restores at once: as the flag says, else as is configured.
pub(super) fn concurrency(config: &Config, flag: Option<u32>) -> Option<u32> {
    let configured = config.restore.concurrency.as_ref();
    flag.or(configured.map(|k| k.value.get()))
}
