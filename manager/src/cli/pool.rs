//! `brood pool`: pools of guests that wait to be claimed.

use std::{process::ExitCode, sync::atomic::Ordering, time::Duration};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Failure,
    failure::{INTERRUPTED, SOME},
    guests::seconds,
    output::{advance, bytes_bar, cancellation, engine, guests_bar, json, line, state, table},
    restore::concurrency,
};
use crate::{
    checkpoint::BundlePath,
    config::Config,
    pool::{self, Claimed, NewPool, Pool, Pools, Wanted},
    restore::{Slots, job::cores, mass::Event},
    state::{EntryState, PoolChange},
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
fn with_pools<T>(
    config: &Config,
    run: impl FnOnce(&mut Pools<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let (mut state, engine) = (state(config)?, engine(config)?);
    let dir = state.dir().to_owned();
    run(&mut Pools {
        state: &mut state,
        engine: &*engine,
        facts: &|folder| engine.host().facts(dir.clone(), Some(folder.to_owned())),
        standing: &mut Slots::default(),
    })
}

/// Makes a pool and fills it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool create web /var/tmp/ckp/demo --hot 50
  brood pool create web /var/tmp/ckp/demo --hot 50 --max 200 --lease 600 --private-limit 64M")]
pub(super) struct Create {
    /// Its name; its guests are NAME-1, NAME-2, ...
    name: String,
    /// DIR/NAME of the checkpoint that its guests are restored from
    checkpoint: BundlePath,
    /// How many guests wait to be claimed
    #[arg(long, value_name = "N")]
    hot: u32,
    /// How many guests it may have, claimed ones too [default: as many as the host takes]
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// How long a claim lasts when it is not renewed, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = pool::LEASE.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    lease: u64,
    /// Worst case to allow for: private memory that each guest may come to hold [default: as
    /// configured for restores, 1M]
    #[arg(long, value_name = "SIZE")]
    private_limit: Option<Bytes>,
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
            checkpoint: self.checkpoint,
            hot: self.hot.into(),
            most: self.max.map(Into::into),
            lease: Duration::from_secs(self.lease),
            allowance: self
                .private_limit
                .unwrap_or(config.restore.private_limit.value),
        };
        with_pools(config, |pools| {
            let bar = bytes_bar(self.json);
            bar.set_message("verifying");
            let pool = pools.create(&new, &|p| advance(&bar, p))?;
            bar.finish_and_clear();
            if self.empty {
                return Ok(print_pool(&pool, self.json));
            }
            fill(config, pools, &self.name, None, self.json)
        })
    }
}

/// Changes what a pool should be, and brings it there
#[derive(Debug, Args)]
#[command(after_help = "Example: brood pool set web --hot 100")]
pub(super) struct Set {
    /// The pool
    pool: String,
    /// How many guests wait to be claimed
    #[arg(long, value_name = "N")]
    hot: Option<u32>,
    /// How many guests it may have, claimed ones too
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// How long a claim lasts when it is not renewed, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    lease: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Set {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let change = PoolChange {
            hot: self.hot.map(Into::into),
            most: self.max.map(Into::into),
            lease_s: self.lease.map(Into::into),
        };
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
                    Err(failure) => failure.print(false),
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
    let bar = bytes_bar(quiet);
    bar.set_message("verifying");
    pools.apply(wanted, &|p| advance(&bar, p))?;
    bar.finish_and_clear();
    fill(config, pools, &wanted.name, None, quiet)
}

/// Lists pools
#[derive(Debug, Args)]
pub(super) struct List {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

impl List {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let pools = with_pools(config, |pools| Ok(pools.list()?))?;
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
    let Pool { row, entries } = pool;
    vec![
        row.name.clone(),
        format!("{}/{}", entries.hot, row.hot),
        entries.claimed.to_string(),
        entries.cold.to_string(),
        entries.filling.to_string(),
        entries.releasing.to_string(),
        row.most.map_or_else(|| "-".to_owned(), |n| n.to_string()),
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
pub(super) struct Show {
    /// The pool
    pool: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        with_pools(config, |pools| {
            let pool = pools.show(&self.pool)?;
            let entries = pools.state.entries(&self.pool)?;
            let left = |lease: Option<Duration>| lease.map(|l| l.as_secs());
            if self.json {
                let mut value = serde_json::to_value(&pool).expect("plain data");
                let of = |state| entries.iter().filter(move |e| e.state == state);
                value["claims"] = of(EntryState::Claimed)
                    .map(|e| json!({ "guest": e.name, "lease_left_s": left(e.lease) }))
                    .collect();
                value["hot_guests"] = of(EntryState::Hot).map(|e| e.name.clone()).collect();
                json(&value);
                return Ok(ExitCode::SUCCESS);
            }
            print_pool(&pool, false);
            let rows: Vec<_> = entries
                .iter()
                .map(|e| {
                    let lease = left(e.lease).map_or_else(String::new, |s| format!("{s} s left"));
                    vec![e.name.clone(), e.state.name().to_owned(), lease]
                })
                .collect();
            if !rows.is_empty() {
                line("");
                table(&["GUEST", "STATE", "LEASE"], &rows);
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// Puts a pool in order and restores what it lacks.
///
/// Whatever was cut off before is brought to its end: guests of an earlier fill are kept, those
/// that were released, that died or whose lease is over are destroyed. Entries can be claimed while
/// others are still being restored.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool fill web
  brood pool fill --all     at the start of the host")]
pub(super) struct Fill {
    /// The pool
    #[arg(required_unless_present = "all")]
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
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        with_pools(config, |pools| {
            let names = match self.pool {
                Some(name) => vec![name],
                None => pools.list()?.into_iter().map(|p| p.row.name).collect(),
            };
            let mut worst = ExitCode::SUCCESS;
            for name in &names {
                let code = fill(config, pools, name, self.concurrency, self.json)?;
                if code != ExitCode::SUCCESS {
                    worst = code;
                }
            }
            Ok(worst)
        })
    }
}

fn fill(
    config: &Config,
    pools: &mut Pools<'_>,
    name: &str,
    at_once: Option<u32>,
    quiet: bool,
) -> Result<ExitCode, Failure> {
    let cancelled = cancellation();
    let pool = pools.show(name)?;
    let missing = pool.row.hot.saturating_sub(pool.entries.hot);
    let bar = guests_bar(missing, quiet);
    bar.set_message("restoring");
    let at_once = match concurrency(config, at_once) {
        Some(k) => k as usize,
        None => std::thread::available_parallelism().map_or(1, |n| cores(n.get() as u64)),
    };
    let result = pools.fill(name, at_once, &cancelled, &mut |event| match event {
        Event::Restored(_) => bar.inc(1),
        Event::Failed(failure) => {
            bar.suspend(|| eprintln!("{}: {}", failure.name, failure.error));
        }
        Event::NurseryReplaced => {
            bar.suspend(|| eprintln!("the nursery was killed; a new one goes on"));
        }
        Event::Verifying(_) | Event::Admitted { .. } => {}
    });
    bar.finish_and_clear();
    let (settled, filled) = result?;
    let pool = pools.show(name)?;
    if quiet {
        let mut value = serde_json::to_value(&pool).expect("plain data");
        value["settled"] = serde_json::to_value(settled).expect("plain data");
        value["restored"] = filled.restored.into();
        value["missing"] = filled.missing.into();
        value["no_room"] = filled.no_room.clone().into();
        value["wall_s"] = filled.wall.as_secs_f64().into();
        value["errors"] = filled
            .failures
            .iter()
            .map(|f| json!({ "name": f.name, "error": f.error }))
            .collect();
        json(&value);
    } else {
        line(format_args!(
            "{name}: {} of {} guests are hot; {} restored in {:.2} s",
            pool.entries.hot,
            pool.row.hot,
            filled.restored,
            filled.wall.as_secs_f64()
        ));
        let put_in_order = [
            (settled.saved, "saved from a fill that was cut off"),
            (
                settled.destroyed,
                "released, expired or dead ones destroyed",
            ),
            (settled.evicted, "evicted: more than there should be"),
        ];
        for (count, what) in put_in_order.iter().filter(|(n, _)| *n > 0) {
            line(format_args!("{count} {what}"));
        }
        if let Some(why) = &filled.no_room {
            line(format_args!("{} are missing: {why}", filled.missing));
        }
    }
    Ok(if cancelled.load(Ordering::Relaxed) {
        ExitCode::from(INTERRUPTED)
    } else if filled.missing == 0 {
        ExitCode::SUCCESS
    } else if pool.entries.hot > 0 {
        ExitCode::from(SOME)
    } else {
        ExitCode::FAILURE
    })
}

/// Takes a guest: the oldest hot one, or one that is restored now. It has answered when this
/// returns.
///
/// The claim ends when it is released, when its lease is over and was not renewed, or with its
/// guest. Exits with 4 when there is no room for one more guest.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool claim web
  brood pool claim web --lease 3600 --wait 10 --json")]
pub(super) struct Claim {
    /// The pool
    pool: String,
    /// How long the claim lasts when it is not renewed, in seconds [default: the pool's]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    lease: Option<u32>,
    /// How long to wait for room when there is none, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u32,
    /// How long the guest may take to answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    timeout: f64,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Claim {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let wanted = Wanted {
            lease: self.lease.map(|s| Duration::from_secs(s.into())),
            timeout: Duration::from_secs_f64(self.timeout),
            wait: Duration::from_secs(self.wait.into()),
        };
        let claimed = with_pools(config, |pools| Ok(pools.claim(&self.pool, &wanted)?))?;
        print_claim(&claimed, self.json);
        Ok(ExitCode::SUCCESS)
    }
}

fn print_claim(claimed: &Claimed, as_json: bool) {
    let ms = claimed.latency.as_secs_f64() * 1e3;
    if as_json {
        json(&json!({
            "guest": claimed.guest, "id": claimed.id.to_string(), "pid": claimed.process.pid,
            "token": claimed.token, "lease_s": claimed.lease.as_secs(), "tier": claimed.tier,
            "claim_ms": ms,
        }));
        return;
    }
    line(format_args!(
        "{} is yours for {} s ({}; it answered after {ms:.2} ms)",
        claimed.guest,
        claimed.lease.as_secs(),
        claimed.tier.name()
    ));
    line(format_args!("token: {}", claimed.token));
    line(format_args!(
        "next: brood ask {} ping, brood pool release {}",
        claimed.guest, claimed.token
    ));
}

/// Lets a claim last so long from now
#[derive(Debug, Args)]
pub(super) struct Renew {
    /// What `brood pool claim` printed
    token: String,
    /// How long, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    lease: u32,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Renew {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let lasts = Duration::from_secs(self.lease.into());
        with_pools(config, |pools| Ok(pools.renew(&self.token, lasts)?))?;
        if self.json {
            json(&json!({ "lease_s": self.lease }));
        } else {
            line(format_args!("it is yours for {} s from now", self.lease));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Lets a claim rest: only the pages that its guest has to itself are written to disk, and the guest
/// ends. The claim lasts until it is released, through a reboot too
#[derive(Debug, Args)]
pub(super) struct Suspend {
    /// What `brood pool claim` printed
    token: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Suspend {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let bar = bytes_bar(self.json);
        bar.set_message("sealing");
        let manifest = with_pools(config, |pools| {
            Ok(pools.suspend(&self.token, &|p| advance(&bar, p))?)
        })?;
        bar.finish_and_clear();
        let written = manifest.files.ckp.size;
        if self.json {
            json(&json!({ "guest": manifest.guest, "written_bytes": written.0 }));
        } else {
            line(format_args!(
                "{} rests: {written} of memory written; next: brood pool resume {}",
                manifest.guest, self.token
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Restores the guest of a claim that rests; it has answered when this returns
#[derive(Debug, Args)]
pub(super) struct Resume {
    /// What `brood pool claim` printed
    token: String,
    /// How long the claim lasts when it is not renewed, in seconds [default: the pool's]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    lease: Option<u32>,
    /// How long the guest may take to answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    timeout: f64,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Resume {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let lease = self.lease.map(|s| Duration::from_secs(s.into()));
        let timeout = Duration::from_secs_f64(self.timeout);
        let claimed = with_pools(config, |pools| {
            Ok(pools.resume(&self.token, lease, timeout)?)
        })?;
        print_claim(&claimed, self.json);
        Ok(ExitCode::SUCCESS)
    }
}

/// Gives guests back; they are gone when this returns
#[derive(Debug, Args)]
pub(super) struct Release {
    /// What `brood pool claim` printed
    #[arg(required = true)]
    token: Vec<String>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Release {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let mut failures = Vec::new();
        with_pools(config, |pools| {
            for token in &self.token {
                if let Err(e) = pools.release(token) {
                    failures.push(Failure::from(e));
                }
            }
            Ok(())
        })?;
        let released = self.token.len() - failures.len();
        if self.json {
            let errors: Vec<_> = failures.iter().map(ToString::to_string).collect();
            json(&json!({ "released": released, "errors": errors }));
        } else {
            line(format_args!("{released} released"));
        }
        for failure in &failures {
            failure.print(false);
        }
        Ok(match (released, failures.len()) {
            (_, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::FAILURE,
            _ => ExitCode::from(SOME),
        })
    }
}

/// Drops hot entries. They hold nothing that the checkpoint does not
#[derive(Debug, Args)]
#[command(after_help = "\
The next `brood pool fill` restores as many again: `brood pool set --hot` lowers the number for good.

Example: brood pool evict web --entries 10")]
pub(super) struct Evict {
    /// The pool
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
        let evicted = with_pools(config, |pools| {
            Ok(pools.evict(&self.pool, self.entries.into())?)
        })?;
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
pub(super) struct Remove {
    /// The pool
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
        with_pools(config, |pools| Ok(pools.remove(&self.pool, self.force)?))?;
        if self.json {
            json(&json!({ "removed": self.pool }));
        } else {
            line(format_args!("{} is removed", self.pool));
        }
        Ok(ExitCode::SUCCESS)
    }
}
