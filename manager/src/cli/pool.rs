//! `brood pool`: pools of guests that wait to be claimed.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    bar::Bar,
    claims::{Claim, Release, Renew, Resume, Suspend},
    complete,
    daemon::{by_daemon, daemon, only_daemon},
    failure::{INTERRUPTED, SOME},
    fill::{Fill, fill, fill_by_daemon, filling},
    output::{cancellation, engine, json, line, note_with, state, table},
    policy::Limits,
    restore::absolute,
    values::whole_seconds,
};
use crate::failure::Failure;
use crate::{
    api::pools::{Changing, Making},
    config::Config,
};
use brood_core::{
    checkpoint::{BundlePath, Checkpoint},
    pool::{LOCK_LIMIT, NEVER, NewPool, Pool, Pools},
    restore::Slots,
    state::{EntryState, Failing},
    units::Bytes,
};

/// Keeps pools of guests that wait to be claimed.
///
/// A pool's hot entries are guests that were restored, have answered and were stopped: claiming one
/// takes about a millisecond. When none is hot, a claim restores one. Nobody gets a guest that
/// somebody else had: released guests are destroyed, and new ones restored from the checkpoint.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  brood pool create web /var/tmp/ckp/demo --hot 50
  brood pool claim web
  brood pool release TOKEN
  brood pool fill --all")]
pub(super) enum Command {
    /// Make a pool and fill it
    Create(Create),
    /// Change what a pool should be, and bring it there
    Set(Set),
    #[command(about = "Make and change pools as the configuration has them, and fill them")]
    Apply(Apply),
    /// List pools
    List(List),
    /// Show a pool and its entries
    Show(Show),
    #[command(about = "Put a pool in order and restore what it lacks: after a reboot, too")]
    Fill(Fill),
    #[command(about = "Take a guest: prints its name, and a token to release it with")]
    Claim(Claim),
    /// Let a claim last longer
    Renew(Renew),
    /// Let a claim rest: its guest is suspended to disk, and takes no memory
    Suspend(Suspend),
    /// Restore the guest of a claim that rests
    Resume(Resume),
    /// Give a guest back; it is destroyed
    Release(Release),
    /// Drop hot entries
    Evict(Evict),
    /// Remove a pool and its entries
    Remove(Remove),
}

impl Command {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        match self {
            Self::Create(command) => command.run(config),
            Self::Set(command) => command.run(config),
            Self::Apply(command) => command.run(config),
            Self::List(command) => command.run(config),
            Self::Show(command) => command.run(config),
            Self::Fill(command) => command.run(config),
            Self::Claim(command) => command.run(config),
            Self::Renew(command) => command.run(config),
            Self::Suspend(command) => command.run(config),
            Self::Resume(command) => command.run(config),
            Self::Release(command) => command.run(config),
            Self::Evict(command) => command.run(config),
            Self::Remove(command) => command.run(config),
        }
    }
}

/// Runs something on the pools of the state folder.
pub(super) fn with_pools<T>(
    config: &Config,
    run: impl FnOnce(&mut Pools<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let (mut state, engine) = (state(config)?, engine(config)?);
    let dir = state.dir().to_owned();
    run(&mut Pools {
        state: &mut state,
        engine: &*engine,
        facts: &|folder| engine.host().facts(dir.clone(), Some(folder.to_owned())),
        standing: &Slots::default(),
        cancelled: &NEVER,
        lock_limit: LOCK_LIMIT,
    })
}

/// Makes a pool and fills it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool create web /var/tmp/ckp/demo --hot 50
  brood pool create web /var/tmp/ckp/demo --hot 50 --max 200 --lease 10m --private-limit 64M")]
pub(super) struct Create {
    /// Its name; its guests are NAME-1, NAME-2, ...
    name: String,
    /// DIR/NAME of the checkpoint that its guests are restored from
    #[arg(add = complete::with(complete::checkpoints))]
    checkpoint: BundlePath,
    /// How many guests wait to be claimed
    #[arg(long, value_name = "N")]
    hot: u32,
    #[command(flatten)]
    limits: Limits,
    /// How long a claim lasts when it is not renewed: seconds, or 5m, 1h
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = whole_seconds)]
    lease: u32,
    /// Worst case to allow for: private memory that each guest may come to hold. Admission counts
    /// with it; nothing keeps a guest from writing more [default: as configured for restores, 1M]
    #[arg(long, value_name = "SIZE")]
    private_limit: Option<Bytes>,
    /// Have this host do what the checkpoint wants of it (`brood checkpoint inspect`), now and later
    #[arg(long)]
    trust: bool,
    /// Leave it empty: `brood pool fill` comes later
    #[arg(long)]
    empty: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Create {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let new = NewPool {
            name: self.name.clone(),
            checkpoint: self.checkpoint.clone(),
            policy: self.limits.policy(self.hot, self.lease.into()),
            allowance: self
                .private_limit
                .unwrap_or(config.restore.private_limit.value),
            trust: self.trust,
        };
        // The daemon may be able to open what this user cannot; then it alone knows.
        if let Ok(checkpoint) = Checkpoint::open(&self.checkpoint) {
            for exposure in checkpoint.exposures() {
                note_with("\x1b[33m", "warning", &exposure.to_string());
            }
        }
        if let Some(code) = self.by_daemon(config, &new)? {
            return Ok(code);
        }
        with_pools(config, |pools| {
            let bar = Bar::bytes("verifying", self.json).until(&cancellation());
            let pool = pools.create(&new, &|p| bar.advance(p))?;
            bar.clear();
            if self.empty {
                return Ok(print_pool(&pool, self.json));
            }
            fill(config, pools, &self.name, None, self.json)
        })
    }

    /// Has the daemon make it; none, when it has begun nothing.
    fn by_daemon(&self, config: &Config, new: &NewPool) -> Result<Option<ExitCode>, Failure> {
        let Some(checkpoint) = absolute(&new.checkpoint) else {
            return Ok(None);
        };
        let fill = (!self.empty).then(|| filling(config, None));
        let making = Making::of(new, checkpoint, fill);
        if self.empty {
            let pool = by_daemon(config, |daemon| daemon.create_pool(&making))?;
            return Ok(pool.map(|pool| print_pool(&pool, self.json)));
        }
        fill_by_daemon(config, self.json, |daemon, watch| {
            daemon.create_and_fill_pool(&making, watch)
        })
    }
}

/// Changes what a pool should be, and brings it there.
///
/// What no flag names stays as it is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool set web --hot 100
  brood pool set web --max-memory 8G --max none")]
pub(super) struct Set {
    /// The pool
    #[arg(add = complete::with(complete::pools))]
    pool: String,
    /// How many guests wait to be claimed
    #[arg(long, value_name = "N")]
    hot: Option<u32>,
    #[command(flatten)]
    limits: Limits,
    /// How long a claim lasts when it is not renewed: seconds, or 5m, 1h
    #[arg(long, value_name = "TIME", value_parser = whole_seconds)]
    lease: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Set {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let change = self.limits.change(self.hot, self.lease.map(Into::into));
        let changing = Changing::of(&change, Some(filling(config, None)));
        let filled = fill_by_daemon(config, self.json, |daemon, watch| {
            daemon.change_and_fill_pool(&self.pool, &changing, watch)
        })?;
        if let Some(code) = filled {
            return Ok(code);
        }
        with_pools(config, |pools| {
            pools.change(&self.pool, &change)?;
            fill(config, pools, &self.pool, None, self.json)
        })
    }
}

/// Makes and changes pools as the configuration has them, and fills them.
///
/// Pools that the configuration does not name stay as they are. A pool keeps its checkpoint and its
/// private limit: one that should have another is not touched, and told of. Exits with 3 when some
/// pools are as they should be, and others not.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool apply
  brood pool apply --config ./brood.toml --json")]
pub(super) struct Apply {
    /// Print one JSON object for each pool
    #[arg(long)]
    json: bool,
}

impl Apply {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        if config.pools.is_empty() && !self.json {
            line("no pools in the configuration");
        }
        let (mut good, mut interrupted) = (0, false);
        with_pools(config, |pools| {
            for wanted in &config.pools {
                match apply(config, pools, wanted, self.json) {
                    Ok(ExitCode::SUCCESS) => good += 1,
                    Ok(code) if code == ExitCode::from(INTERRUPTED) => {
                        interrupted = true;
                        break;
                    }
                    Ok(_) => {}
                    Err(failure) => super::output::failure(&failure),
                }
            }
            Ok(())
        })?;
        Ok(match good {
            _ if interrupted => ExitCode::from(INTERRUPTED),
            all if all == config.pools.len() => ExitCode::SUCCESS,
            0 => ExitCode::FAILURE,
            _ => ExitCode::from(SOME),
        })
    }
}

fn apply(
    config: &Config,
    pools: &mut Pools<'_>,
    wanted: &NewPool,
    quiet: bool,
) -> Result<ExitCode, Failure> {
    let bar = Bar::bytes("verifying", quiet).until(&cancellation());
    pools.apply(wanted, &|p| bar.advance(p))?;
    bar.clear();
    fill(config, pools, &wanted.name, None, quiet)
}

/// Lists pools
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool list
  brood pool list --json | jq .[].entries.hot")]
pub(super) struct List {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

impl List {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let pools = match only_daemon(config) {
            Some(daemon) => daemon.pools()?,
            None => with_pools(config, |pools| Ok(pools.list()?))?,
        };
        if self.json {
            json(&pools);
        } else if pools.is_empty() {
            line("no pools");
        } else {
            let rows: Vec<_> = pools.iter().map(row).collect();
            table(&HEADER, &rows);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Why a pool could not be filled, and when that is tried again.
fn failing_text(failing: &Failing) -> String {
    let Failing {
        error,
        since,
        tries,
        pause_s,
    } = failing;
    let tried = if *tries == 1 { "once" } else { "in a row" };
    let tried = if *tries == 1 {
        tried.to_owned()
    } else {
        format!("{tries} times {tried}")
    };
    format!(
        "failing since {since}, {tried}: {error}\nthe daemon tries again {pause_s} s after that; `brood pool fill` tries now"
    )
}

const HEADER: [&str; 8] = [
    "NAME",
    "HOT",
    "CLAIMED",
    "COLD",
    "FILLING",
    "RELEASING",
    "MAX",
    "CHECKPOINT",
];

fn row(pool: &Pool) -> Vec<String> {
    let Pool { row, entries, .. } = pool;
    vec![
        row.name.clone(),
        format!("{}/{}", entries.hot, row.policy.hot),
        entries.claimed.to_string(),
        entries.cold.to_string(),
        entries.filling.to_string(),
        entries.releasing.to_string(),
        row.policy
            .most
            .map_or_else(|| "-".to_owned(), |n| n.to_string()),
        row.checkpoint.clone(),
    ]
}

fn print_pool(pool: &Pool, as_json: bool) -> ExitCode {
    if as_json {
        json(pool);
    } else {
        table(&HEADER, &[row(pool)]);
    }
    ExitCode::SUCCESS
}

/// Shows a pool and its entries
#[derive(Debug, Args)]
#[command(after_help = "Example: brood pool show web")]
pub(super) struct Show {
    /// The pool
    #[arg(add = complete::with(complete::pools))]
    pool: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let details = match only_daemon(config) {
            Some(daemon) => daemon.pool(&self.pool)?,
            None => with_pools(config, |pools| Ok(pools.details(&self.pool)?))?,
        };
        if self.json {
            json(&details);
            return Ok(ExitCode::SUCCESS);
        }
        print_pool(&details.pool, false);
        if let Some(failing) = &details.pool.failing {
            line(format_args!("\n{}", failing_text(failing)));
        }
        let hot = details
            .hot_guests
            .into_iter()
            .map(|guest| vec![guest, EntryState::Hot.name().to_owned(), String::new()]);
        let claimed = details.claims.into_iter().map(|claim| {
            let left = claim.lease_left_s.map(|left| match left {
                0 => "over".to_owned(),
                left => format!("{left} s left"),
            });
            let state = EntryState::Claimed.name().to_owned();
            vec![claim.guest, state, left.unwrap_or_default()]
        });
        let resting = details.resting.into_iter().map(|resting| {
            let since = format!("since {}", resting.since);
            vec![resting.guest, resting.state.name().to_owned(), since]
        });
        let rows: Vec<_> = hot.chain(claimed).chain(resting).collect();
        if !rows.is_empty() {
            line("");
            table(&["GUEST", "STATE", "LEASE"], &rows);
        }
        if daemon(config).is_none() {
            line(format_args!(
                "no daemon keeps this pool: leases end, and it is filled again, at `brood pool fill {}` or while `brood serve` runs",
                self.pool
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Drops hot entries. They hold nothing that the checkpoint does not
#[derive(Debug, Args)]
#[command(after_help = "\
The next `brood pool fill` restores as many again: `brood pool set --hot` lowers the number for good.

Example: brood pool evict web --entries 10")]
pub(super) struct Evict {
    /// The pool
    #[arg(add = complete::with(complete::pools))]
    pool: String,
    /// How many, at most
    #[arg(long, value_name = "N")]
    entries: u32,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Evict {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let evicted = by_daemon(config, |daemon| daemon.evict(&self.pool, self.entries))?;
        let evicted = match evicted {
            Some(evicted) => evicted,
            None => with_pools(config, |pools| {
                Ok(pools.evict(&self.pool, self.entries.into())?)
            })?,
        };
        if self.json {
            json(&json!({ "evicted": evicted }));
        } else {
            line(format_args!("{evicted} evicted"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Removes a pool and its entries
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool remove web
  brood pool remove web --force     claimed guests end, too")]
pub(super) struct Remove {
    /// The pool
    #[arg(add = complete::with(complete::pools))]
    pool: String,
    /// End claimed guests too
    #[arg(long)]
    force: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Remove {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let removed = by_daemon(config, |daemon| daemon.remove_pool(&self.pool, self.force))?;
        if removed.is_none() {
            with_pools(config, |pools| Ok(pools.remove(&self.pool, self.force)?))?;
        }
        if self.json {
            json(&json!({ "removed": self.pool }));
        } else {
            line(format_args!("{} is removed", self.pool));
        }
        Ok(ExitCode::SUCCESS)
    }
}
