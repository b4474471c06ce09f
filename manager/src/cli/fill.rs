//! `brood pool fill`, and the filling of pools that were made or changed.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use clap::Args;

use super::{
    complete,
    failure::{INTERRUPTED, SOME},
    output::{cancellation, json, line, operations},
    pool::print_pool,
    progress::RestoreProgress,
    restore::concurrency,
};
use crate::{
    client::Auto,
    config::Config,
    failure::Failure,
    ops::{PoolStep, PutPool, Watch},
    types::{FillRequest, FilledPool, Pool, PoolAnswer, RestoreEvent},
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
        let mut ops = operations(config);
        let names = match &self.pool {
            Some(name) => vec![name.clone()],
            None => {
                let pools = ops.run(|ops| ops.pools())?;
                pools.into_iter().map(|pool| pool.settings.name).collect()
            }
        };
        let fill = Some(filling(config, self.concurrency));
        let mut worst = ExitCode::SUCCESS;
        for name in &names {
            let first = PoolStep::Fill(name.clone());
            let code = put_pool(&mut ops, &PutPool { first, fill }, self.json)?;
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

/// How a pool is to be filled.
pub(super) fn filling(config: &Config, at_once: Option<u32>) -> FillRequest {
    FillRequest {
        concurrency: concurrency(config, at_once),
    }
}

/// Puts a pool in order, with the progress displayed, and prints the pool.
pub(super) fn put_pool(ops: &mut Auto, put: &PutPool, as_json: bool) -> Result<ExitCode, Failure> {
    let cancelled = &cancellation();
    let mut shown = RestoreProgress::new(as_json);
    let answer = ops.run(|ops| {
        let observe = &mut |event: &RestoreEvent| shown.note(event);
        ops.put_pool(put, &Watch::new(cancelled, 0, observe))
    })?;
    Ok(match answer.pool {
        PoolAnswer::Filled(filled) => {
            shown.finish(&filled.errors, &[]);
            print_filled(&filled, cancelled, as_json)
        }
        PoolAnswer::Pool(pool) => {
            shown.finish(&[], &[]);
            print_pool(&pool, as_json)
        }
    })
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
        let reconciled = &filled.reconciled;
        let put_in_order = [
            (reconciled.saved, "saved from an interrupted fill"),
            (
                reconciled.destroyed,
                "released, expired or dead ones destroyed",
            ),
            (reconciled.evicted, "evicted: more than there should be"),
        ];
        for (count, what) in put_in_order.iter().filter(|(n, _)| *n > 0) {
            line(format_args!("{count} {what}"));
        }
        for left in &reconciled.left {
            line(format_args!("left: {left}"));
        }
        if let Some(why) = &filled.no_room {
            line(format_args!("{} are missing: {why}", filled.missing));
        }
    }
    if cancelled.load(Ordering::Relaxed) {
        ExitCode::from(INTERRUPTED)
    } else if filled.missing == 0 && !filled.reconciled.left.is_empty() {
        ExitCode::from(SOME)
    } else if filled.missing == 0 {
        ExitCode::SUCCESS
    } else if entries.hot > 0 {
        ExitCode::from(SOME)
    } else {
        ExitCode::FAILURE
    }
}
