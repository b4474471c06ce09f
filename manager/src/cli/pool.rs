//! `brood pool`: pools of guests that wait to be claimed.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    claims::{Claim, Release, Renew, Resume, Suspend},
    complete,
    failure::{INTERRUPTED, SOME},
    fill::{Fill, filling, put_pool},
    output::{json, line, note_with, operations, operations_near, table},
    policy::{Limits, NetworkChange},
    values::whole_seconds,
};
use crate::failure::Failure;
use crate::{
    client::daemon,
    config::Config,
    ops::{PoolStep, PutPool},
    types::{Pool, PoolFailing},
};
use brood_core::{
    checkpoint::{BundlePath, Checkpoint, Network},
    engine::Publish,
    pool::NewPool,
    state::EntryState,
    units::Bytes,
};

/// Manages pools: guests that wait to be claimed.
///
/// A pool's hot guests were restored, have answered and were stopped: claiming one takes about a
/// millisecond. When no guest is hot, a claim restores one. No guest is handed out twice: brood
/// destroys released guests, and restores new ones from the checkpoint.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  brood pool create web /var/tmp/ckp/demo --hot 50
  brood pool claim web
  brood pool release TOKEN
  brood pool fill --all")]
pub(super) enum Command {
    /// Create a pool and fill it
    Create(Create),
    /// Change a pool's settings, and fill it accordingly
    Set(Set),
    #[command(about = "Create, change and fill pools until they match the configuration")]
    Apply(Apply),
    /// List pools
    List(List),
    /// Show a pool with its guests and suspended claims
    Show(Show),
    #[command(about = "Repair a pool and restore its missing guests, for example after a reboot")]
    Fill(Fill),
    #[command(about = "Claim a guest; print its name, and a token to release it with")]
    Claim(Claim),
    /// Renew the lease of a claim
    Renew(Renew),
    /// Suspend a claim: write its guest to disk, so that it takes no memory
    Suspend(Suspend),
    /// Resume a suspended claim: restore its guest
    Resume(Resume),
    /// Release a claim: destroy its guest
    Release(Release),
    /// Destroy hot guests of a pool
    Evict(Evict),
    /// Remove a pool and its guests
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

/// Creates a pool and fills it. It keeps its checkpoint and private limit for good
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool create web /var/tmp/ckp/demo --hot 50
  brood pool create web /var/tmp/ckp/demo --hot 50 --max 200 --lease 10m --private-limit 64M
  brood pool create app /var/tmp/ckp/app --hot 1 --max 1 --publish 8080:80")]
pub(super) struct Create {
    /// Name of the pool; its guests are NAME-1, NAME-2, ...
    name: String,
    /// DIR/NAME of the checkpoint that its guests are restored from
    #[arg(add = complete::with(complete::checkpoints))]
    checkpoint: BundlePath,
    /// How many guests wait to be claimed
    #[arg(long, value_name = "N")]
    hot: u32,
    #[command(flatten)]
    limits: Limits,
    /// Lease of a claim, until it is renewed: seconds, or 5m, 1h
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = whole_seconds)]
    lease: u32,
    /// Private limit: private memory that each guest may come to hold. Admission counts with it for
    /// the worst case; a guest can write more, unless --enforce-private-limit is given [default: as
    /// configured for restores, 1M]
    #[arg(long, value_name = "SIZE")]
    private_limit: Option<Bytes>,
    /// Have the kernel end a guest that comes to hold more than its private limit and what a guest
    /// costs besides (KVM engine: a control group for each guest) [default: as configured for
    /// restores, false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    enforce_private_limit: Option<bool>,
    /// What its guests reach: none; user: what you reach, each guest from behind an address of its
    /// own; or tap: this host, by a network device for each guest (KVM; needs root) [default: what the
    /// checkpoint was made with]
    #[arg(long, value_name = "NET")]
    net: Option<Network>,
    /// Have a port of this host lead to a port of each guest (--net user). The letter n in braces, in PORT,
    /// stands for the lowest number whose ports no other guest has. The address is 127.0.0.1 unless
    /// another is given; repeat the option for more
    #[arg(long, value_name = "[ADDRESS:]PORT:GUEST_PORT")]
    publish: Vec<Publish>,
    /// Trust the checkpoint from now on: allow the commands, files and addresses that `brood
    /// checkpoint inspect` lists
    #[arg(long)]
    trust: bool,
    /// Leave the pool empty until `brood pool fill` or a daemon fills it
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
            private_limit: self
                .private_limit
                .unwrap_or(config.restore.private_limit.value),
            enforce_private_limit: self
                .enforce_private_limit
                .unwrap_or(config.restore.enforce_private_limit.value),
            network: self.net,
            publish: self.publish,
            trust: self.trust,
        };
        // The daemon may be able to open a checkpoint that this user cannot; then it decides.
        if let Ok(checkpoint) = Checkpoint::open(&self.checkpoint) {
            for exposure in checkpoint.exposures() {
                note_with("\x1b[33m", "warning", &exposure.to_string());
            }
        }
        let fill = (!self.empty).then(|| filling(config, None));
        let first = PoolStep::Create(new);
        put_pool(&mut operations(config), &PutPool { first, fill }, self.json)
    }
}

/// Changes a pool's settings, and fills it accordingly.
///
/// Settings without an option stay as they are. When --net or --publish change something, guests that
/// wait are replaced; claimed ones stay as they are.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool set web --hot 100
  brood pool set web --max-memory 8G --max none
  brood pool set one --max 1 --publish 8080:80")]
pub(super) struct Set {
    /// The pool
    #[arg(add = complete::with(complete::pools))]
    pool: String,
    /// How many guests wait to be claimed
    #[arg(long, value_name = "N")]
    hot: Option<u32>,
    #[command(flatten)]
    limits: Limits,
    /// Lease of a claim, until it is renewed: seconds, or 5m, 1h
    #[arg(long, value_name = "TIME", value_parser = whole_seconds)]
    lease: Option<u32>,
    #[command(flatten)]
    network: NetworkChange,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Set {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let mut change = self.limits.change(self.hot, self.lease.map(Into::into));
        self.network.add_to(&mut change);
        let first = PoolStep::Change(self.pool, change);
        let fill = Some(filling(config, None));
        put_pool(&mut operations(config), &PutPool { first, fill }, self.json)
    }
}

/// Creates, changes and fills pools until they match the configuration.
///
/// Pools that the configuration does not name stay as they are. A pool keeps its checkpoint and its
/// private limit for good: if the configuration names others, brood reports that and leaves the pool
/// alone. Exits with 3 when some pools match the configuration and others do not.
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
        let mut ops = operations(config);
        let fill = Some(filling(config, None));
        for wanted in &config.pools {
            let first = PoolStep::Apply(wanted.clone());
            match put_pool(&mut ops, &PutPool { first, fill }, self.json) {
                Ok(ExitCode::SUCCESS) => good += 1,
                Ok(code) if code == ExitCode::from(INTERRUPTED) => {
                    interrupted = true;
                    break;
                }
                Ok(_) => {}
                Err(failure) => super::output::failure(&failure),
            }
        }
        Ok(match good {
            _ if interrupted => ExitCode::from(INTERRUPTED),
            all if all == config.pools.len() => ExitCode::SUCCESS,
            0 => ExitCode::FAILURE,
            _ => ExitCode::from(SOME),
        })
    }
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
        let pools = operations_near(config).run(|ops| ops.pools())?;
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

/// Why a pool could not be filled, and when the daemon tries again.
fn failing_text(failing: &PoolFailing) -> String {
    let PoolFailing {
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
    "SUSPENDED",
    "FILLING",
    "RELEASING",
    "MAX",
    "CHECKPOINT",
];

fn row(pool: &Pool) -> Vec<String> {
    let Pool {
        settings, entries, ..
    } = pool;
    vec![
        settings.name.clone(),
        format!("{}/{}", entries.hot, settings.policy.hot),
        entries.claimed.to_string(),
        entries.suspended.to_string(),
        entries.filling.to_string(),
        entries.releasing.to_string(),
        settings
            .policy
            .most
            .map_or_else(|| "-".to_owned(), |n| n.to_string()),
        settings.checkpoint.clone(),
    ]
}

pub(super) fn print_pool(pool: &Pool, as_json: bool) -> ExitCode {
    if as_json {
        json(pool);
    } else {
        table(&HEADER, &[row(pool)]);
    }
    ExitCode::SUCCESS
}

/// Shows a pool with its guests and suspended claims
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
        let details = operations_near(config).run(|ops| ops.pool(&self.pool))?;
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
        let resting = details.suspended.into_iter().map(|resting| {
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

/// Destroys hot guests of a pool. They hold nothing that the checkpoint does not
#[derive(Debug, Args)]
#[command(after_help = "\
The next `brood pool fill` restores as many again: `brood pool set --hot` lowers the number for good.

Example: brood pool evict web --entries 10")]
pub(super) struct Evict {
    /// The pool
    #[arg(add = complete::with(complete::pools))]
    pool: String,
    /// How many guests, at most
    #[arg(long, value_name = "N")]
    entries: u32,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Evict {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let evicted = operations(config).run(|ops| ops.evict(&self.pool, self.entries))?;
        if self.json {
            json(&json!({ "evicted": evicted }));
        } else {
            line(format_args!("{evicted} evicted"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Removes a pool and its guests
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pool remove web
  brood pool remove web --force     claimed guests end, too")]
pub(super) struct Remove {
    /// The pool
    #[arg(add = complete::with(complete::pools))]
    pool: String,
    /// Remove the pool even if guests are claimed, and destroy them
    #[arg(long)]
    force: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Remove {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        operations(config).run(|ops| ops.remove_pool(&self.pool, self.force))?;
        if self.json {
            json(&json!({ "removed": self.pool }));
        } else {
            line(format_args!("{} is removed", self.pool));
        }
        Ok(ExitCode::SUCCESS)
    }
}
