//! `brood pool fill`, and the filling of pools that were made or changed.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use clap::Args;

use super::{
    bar::Bar,
    complete,
    daemon::{daemon, done},
    failure::{INTERRUPTED, SOME},
    output::{cancellation, json, line},
    pool::with_pools,
    progress::RestoreProgress,
    restore::concurrency,
};
use crate::failure::Failure;
use crate::{
    api::{
        events::RestoreEvent,
        pools::{FillRequest, FilledPool},
        types::Pool,
    },
    client::{self, Client, Watch},
    config::Config,
};
use brood_core::{
    pool::{Pools, Refill},
    restore::{RestoreStep, cores},
};

/// Repairs a pool and restores its missing guests.
///
/// It also completes earlier, interrupted work: it keeps guests of an earlier fill, and destroys
/// guests that were released, that died or whose lease is over. Guests can be claimed while others
/// are still being restored.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool fill web
  brood pool fill --all     at the start of the host")]
pub(super) struct Fill {
    /// The pool
    #[arg(required_unless_present = "all", add = complete::with(complete::pools))]
    pool: Option<String>,
    /// All pools
    #[arg(long, conflicts_with = "pool")]
    all: bool,
    /// How many restores at once [default: one for each core]
    #[arg(long, short = 'c', value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Print one JSON object for each pool
    #[arg(long)]
    json: bool,
}

impl Fill {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let names = match &self.pool {
            Some(name) => vec![name.clone()],
            None => {
                let pools = with_pools(config, |pools| Ok(pools.list()?))?;
                pools.into_iter().map(|pool| pool.row.name).collect()
            }
        };
        let mut worst = ExitCode::SUCCESS;
        for name in &names {
            let filling = filling(config, self.concurrency);
            let filled = fill_by_daemon(config, self.json, |daemon, watch| {
                daemon.fill_pool(name, filling, watch)
            })?;
            let code = match filled {
                Some(code) => code,
                None => with_pools(config, |pools| {
                    fill(config, pools, name, self.concurrency, self.json)
                })?,
            };
            if code != ExitCode::SUCCESS {
                worst = code;
            }
            if code == ExitCode::from(INTERRUPTED) {
                break;
            }
        }
        Ok(worst)
    }
}

/// How the daemon is to fill a pool.
pub(super) fn filling(config: &Config, at_once: Option<u32>) -> FillRequest {
    FillRequest {
        concurrency: concurrency(config, at_once),
    }
}

/// Has the daemon fill a pool; none, when it has begun nothing.
pub(super) fn fill_by_daemon(
    config: &Config,
    quiet: bool,
    ask: impl FnOnce(&Client, Watch<'_>) -> Result<FilledPool, client::Error>,
) -> Result<Option<ExitCode>, Failure> {
    let Some(client) = daemon(config) else {
        return Ok(None);
    };
    let cancelled = &cancellation();
    let mut shown = RestoreProgress::new(quiet);
    let observe = &mut |event: &RestoreEvent| shown.note(event);
    let filled = done(ask(&client, Watch { cancelled, observe }))?;
    Ok(filled.map(|filled| {
        shown.finish(&filled.errors, &[]);
        print_filled(&filled, cancelled, quiet)
    }))
}

/// Fills a pool here.
pub(super) fn fill(
    config: &Config,
    pools: &mut Pools<'_>,
    name: &str,
    at_once: Option<u32>,
    quiet: bool,
) -> Result<ExitCode, Failure> {
    let cancelled = cancellation();
    let pool = pools.show(name)?;
    let missing = pool.row.policy.hot.saturating_sub(pool.entries.hot);
    let bar = Bar::guests("restoring", missing, quiet);
    let at_once = match concurrency(config, at_once) {
        Some(k) => k,
        None => std::thread::available_parallelism().map_or(1, |n| cores(n.get() as u64)),
    };
    let result = pools.fill(
        name,
        Refill::Whole,
        at_once,
        &cancelled,
        &mut |event| match event {
            RestoreStep::Restored(_) => bar.inc(),
            RestoreStep::Failed(failure) => {
                bar.note(format_args!("{}: {}", failure.name, failure.error));
            }
            RestoreStep::NurseryReplaced => {
                bar.note("the nursery was killed; a new one goes on");
            }
            RestoreStep::Admitted { .. } | RestoreStep::Exposed(_) => {}
        },
    );
    bar.clear();
    let (settled, filled) = result?;
    let filled = FilledPool::new(pools.show(name)?, settled, filled);
    Ok(print_filled(&filled, &cancelled, quiet))
}

fn print_filled(filled: &FilledPool, cancelled: &AtomicBool, as_json: bool) -> ExitCode {
    let Pool {
        settings, entries, ..
    } = &filled.pool;
    if as_json {
        json(filled);
    } else {
        line(format_args!(
            "{}: {} of {} guests are hot; {} restored in {:.2} s",
            settings.name, entries.hot, settings.policy.hot, filled.restored, filled.wall_s
        ));
        let settled = &filled.settled;
        let put_in_order = [
            (settled.saved, "saved from an interrupted fill"),
            (
                settled.destroyed,
                "released, expired or dead ones destroyed",
            ),
            (settled.evicted, "evicted: more than there should be"),
        ];
        for (count, what) in put_in_order.iter().filter(|(n, _)| *n > 0) {
            line(format_args!("{count} {what}"));
        }
        for left in &settled.left {
            line(format_args!("left: {left}"));
        }
        if let Some(why) = &filled.no_room {
            line(format_args!("{} are missing: {why}", filled.missing));
        }
    }
    if cancelled.load(Ordering::Relaxed) {
        ExitCode::from(INTERRUPTED)
    } else if filled.missing == 0 && !filled.settled.left.is_empty() {
        ExitCode::from(SOME)
    } else if filled.missing == 0 {
        ExitCode::SUCCESS
    } else if entries.hot > 0 {
        ExitCode::from(SOME)
    } else {
        ExitCode::FAILURE
    }
}
