//! Commands on guests that exist: list, show, ask, pause, resume, destroy, suspend.

use std::{cmp::Reverse, process::ExitCode, sync::LazyLock, time::Duration};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde_json::json;

use super::{
    bar::Bar,
    complete,
    failure::SOME,
    filter::Filter,
    output::{age, cancellation, count, json, line, local, operations_near, table},
    strays,
    targets::{GuestAction, GuestArgs},
    values::timeout,
};
use crate::config::Config;
use crate::failure::Failure;
use crate::types::{AskRequest, Guest, GuestAnswer, SuspendTarget};
use brood_core::{checkpoint::BundlePath, state::EntryState, units::Bytes};

/// Lists all guests, including those that died
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood list
  brood list --pool web --state paused
  brood list --long --sort private
  brood pause $(brood list -q --prefix demo-)
  brood list --json | jq -r .[].name
  brood list --strays")]
pub(super) struct List {
    #[command(flatten)]
    filter: Filter,
    /// Show the private memory of each guest too, which takes longer
    #[arg(long, short)]
    long: bool,
    /// Column to sort by: name, state, age (oldest first), or private (most first; with --long)
    #[arg(
        long,
        value_name = "COLUMN",
        default_value = "name",
        hide_possible_values = true
    )]
    sort: Sort,
    /// Print names only
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// List strays only: processes of guests whose record or state folder was lost
    #[arg(long, conflicts_with_all = ["prefix", "state", "pool", "long", "sort", "quiet"])]
    strays: bool,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// What guests are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    Name,
    State,
    Age,
    Private,
}

impl List {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        if self.strays {
            return strays::list(config, self.json);
        }
        let long = self.long || self.sort == Sort::Private;
        let mut guests =
            operations_near(config).run(|ops| ops.guests(self.filter.prefix(), long))?;
        guests.retain(|guest| self.filter.takes(guest));
        // They come by name.
        match self.sort {
            Sort::Name => {}
            Sort::State => guests.sort_by_key(|guest| guest.state),
            Sort::Age => guests.sort_by_key(|guest| guest.created_at.parse::<Timestamp>().ok()),
            Sort::Private => guests.sort_by_key(|guest| Reverse(private(guest))),
        }
        if self.json {
            json(&guests);
        } else if self.quiet {
            for guest in &guests {
                line(&guest.name);
            }
        } else if guests.is_empty() {
            line("no guests");
        } else {
            print_table(&guests, long);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn private(guest: &Guest) -> Option<u64> {
    guest.usage.map(|usage| usage.private_bytes)
}

/// Prints guests, with no column that would be empty.
fn print_table(guests: &[Guest], long: bool) {
    let pools = guests.iter().any(|guest| guest.pool.is_some());
    let reasons = guests.iter().any(|guest| guest.reason.is_some());
    let now = Timestamp::now();
    let dash = || "-".to_owned();
    let mut header = vec!["NAME", "STATE", "AGE", "PID", "MEMORY"];
    header.extend(long.then_some("PRIVATE"));
    header.extend(pools.then_some("POOL"));
    header.push("CHECKPOINT");
    header.extend(reasons.then_some("REASON"));
    let rows: Vec<_> = guests
        .iter()
        .map(|guest| {
            let mut row = vec![
                guest.name.clone(),
                guest.state.name().to_owned(),
                age(&guest.created_at, now).unwrap_or_else(dash),
                guest.pid.map_or_else(dash, |pid| pid.to_string()),
                Bytes::from_mib(guest.memory_mib).to_string(),
            ];
            if long {
                row.push(private(guest).map_or_else(dash, |private| Bytes(private).to_string()));
            }
            if pools {
                let entry = guest.entry.map_or("", EntryState::name);
                let pool = guest.pool.as_ref();
                row.push(pool.map_or_else(dash, |pool| format!("{pool} ({entry})")));
            }
            row.push(guest.checkpoint.clone());
            if reasons {
                row.push(guest.reason.clone().unwrap_or_default());
            }
            row
        })
        .collect();
    table(&header, &rows);
}

/// Shows one guest, with its private and its shared memory
#[derive(Debug, Args)]
#[command(after_help = "Example: brood show demo-1")]
pub(super) struct Show {
    /// Name or id
    #[arg(add = complete::with(complete::guests))]
    guest: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let guest = operations_near(config).run(|ops| ops.guest(&self.guest))?;
        if self.json {
            json(&guest);
            return Ok(ExitCode::SUCCESS);
        }
        let mut lines = vec![
            ("name", guest.name),
            ("id", guest.id),
            ("state", guest.state.name().to_owned()),
            ("checkpoint", guest.checkpoint),
            ("memory", Bytes::from_mib(guest.memory_mib).to_string()),
            (
                "limit",
                format!(
                    "{} of private memory, {}",
                    Bytes(guest.private_limit),
                    if guest.private_limit_enforced {
                        "enforced by the kernel"
                    } else {
                        "counted by admission and not enforced"
                    }
                ),
            ),
            (
                "engine",
                match guest.accelerator {
                    Some(accelerator) => format!("{} ({accelerator})", guest.engine.name()),
                    None => guest.engine.name().to_owned(),
                },
            ),
            ("generation", guest.generation),
            ("mac", guest.mac),
            ("restored", guest.created_at),
        ];
        let published = guest.published.iter();
        lines.extend(published.map(|published| ("published", published.to_string())));
        if let Some(tap) = guest.tap {
            lines.push(("tap", format!("{}, {}", tap.name, tap.address)));
        }
        if let Some(pid) = guest.pid {
            lines.push(("pid", pid.to_string()));
        }
        if let Some(jail) = guest.jail {
            lines.push(("jail", jail.words(guest.engine).to_string()));
        }
        if let Some(disk) = guest.disk_path {
            lines.push(("disk", disk));
        }
        if let Some(u) = guest.usage {
            let (private, shared) = (Bytes(u.private_bytes), Bytes(u.shared_bytes));
            let (process, tables) = (Bytes(u.process_bytes), Bytes(u.page_table_bytes));
            let all = shared == Bytes(0) && private == Bytes::from_mib(guest.memory_mib);
            let whose = if all {
                "all of its memory; it shares nothing with the checkpoint"
            } else {
                "of guest memory written by this guest"
            };
            lines.extend([
                ("private", format!("{private} {whose}")),
                (
                    "shared",
                    format!("{shared} touched and shared with the checkpoint"),
                ),
                ("process", format!("{process} and {tables} of page tables")),
            ]);
        }
        if let Some(reason) = guest.reason {
            lines.push(("ended", reason));
        }
        for (key, value) in lines {
            line(format_args!("{key:<11} {value}"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Sends a request to a guest and prints its answer
#[derive(Debug, Args)]
#[command(after_help = after_ask())]
pub(super) struct Ask {
    /// Name or id
    #[arg(add = complete::with(complete::guests))]
    guest: String,
    /// The request. Write -- before words that begin with a hyphen
    #[arg(required = true)]
    request: Vec<String>,
    /// How long to wait for the answer
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = timeout)]
    timeout: Duration,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

fn after_ask() -> String {
    let demo = demo_requests();
    format!(
        "{demo}Examples:\n  brood ask demo-1 ping hello\n  brood ask demo-1 random 8 --json --timeout 500ms"
    )
}

#[cfg(target_os = "linux")]
fn demo_requests() -> String {
    let requests = brood_core::engine::kvm::demo::words::REQUESTS;
    format!("The demo guest knows:\n{requests}\n\n")
}

/// Only the KVM engine has a demo guest.
#[cfg(not(target_os = "linux"))]
fn demo_requests() -> String {
    String::new()
}

impl Ask {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let asked = AskRequest {
            request: self.request,
            timeout_s: Some(self.timeout.as_secs_f64()),
            text: !self.json,
        };
        match operations_near(config).run(|ops| ops.ask(&self.guest, &asked))? {
            GuestAnswer::Text(text) => line(text),
            GuestAnswer::Object(object) => json(&object),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Stops guests (SIGSTOP). They keep their memory and use no processor time
#[derive(Debug, Args)]
#[command()]
#[command(after_help = "\
Examples:
  brood pause demo-1 demo-2
  brood pause --prefix demo-
  brood pause --all")]
pub(super) struct Pause {
    #[command(flatten)]
    which: GuestArgs,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Pause {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let pause = GuestAction {
            verb: "pausing",
            past: "paused",
            act: &|ops, guest| ops.pause(guest).map(|_| json!({})),
        };
        pause.run(config, &self.which, self.json)
    }
}

/// Continues stopped guests (SIGCONT), and waits until each has answered
#[derive(Debug, Args)]
#[command()]
#[command(after_help = "\
Examples:
  brood resume demo-1 demo-2
  brood resume --all --timeout 30s")]
pub(super) struct Resume {
    #[command(flatten)]
    which: GuestArgs,
    /// Time that each guest has to answer
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = timeout)]
    timeout: Duration,
    /// Print a JSON object, with the time from the signal to the answer
    #[arg(long)]
    json: bool,
}

impl Resume {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let resume = GuestAction {
            verb: "resuming",
            past: "resumed",
            act: &|ops, guest| {
                let resumed = ops.resume(guest, self.timeout)?;
                Ok(json!({ "resume_ms": resumed.resume_ms }))
            },
        };
        resume.run(config, &self.which, self.json)
    }
}

/// Destroys guests: their processes are gone when the command ends
#[derive(Debug, Args)]
#[command()]
#[command(after_help = "\
Examples:
  brood destroy demo-1 demo-2
  brood destroy --prefix demo-
  brood destroy --state dead
  brood destroy --all             all but those that somebody has claimed from a pool
  brood destroy --all --force     those, too
  brood destroy --strays")]
#[command(mut_arg("guests", |guests| guests.required_unless_present("strays")))]
pub(super) struct Destroy {
    #[command(flatten)]
    which: GuestArgs,
    /// With --all or a filter: destroy claimed guests too
    #[arg(long, conflicts_with = "guests")]
    force: bool,
    /// Ignore names that no guest has
    #[arg(long)]
    ignore_missing: bool,
    /// Destroy all strays, the processes that `brood list --strays` shows
    #[arg(
        long,
        conflicts_with_all = ["guests", "all", "prefix", "state", "pool", "force", "ignore_missing"],
    )]
    strays: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Destroy {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let destroyed = if self.strays {
            local(config).destroy_strays()?
        } else {
            self.which
                .destroy(config, self.force, self.ignore_missing)?
        };
        if self.json {
            let names: Vec<_> = destroyed
                .guests
                .iter()
                .map(|name| json!({ "name": name }))
                .collect();
            json(&json!({
                "destroyed": destroyed.destroyed,
                "guests": names,
                "errors": destroyed.left,
                "spared": destroyed.spared,
            }));
        } else {
            line(format_args!(
                "{} destroyed",
                count(destroyed.destroyed, "guest")
            ));
        }
        if !self.json && !destroyed.spared.is_empty() {
            line(format_args!(
                "{} not destroyed, because claimed: --force destroys claimed guests, too",
                count(destroyed.spared.len(), "guest")
            ));
        }
        for left in &destroyed.left {
            super::output::failure(&Failure::new(&left.error, None));
        }
        Ok(if destroyed.left.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(SOME)
        })
    }
}

/// Suspends a guest into a new checkpoint and ends it; if anything fails, the guest goes on
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  brood suspend demo-1 /var/tmp/ckp/warm\n  brood suspend demo-1 /var/tmp/ckp/warm --delta"
)]
pub(super) struct Suspend {
    /// Name or id
    #[arg(add = complete::with(complete::guests))]
    guest: String,
    /// DIR/NAME of the new checkpoint
    checkpoint: BundlePath,
    /// Write a delta: only the guest's private pages. The new checkpoint is useless without the one
    /// that the guest was restored from
    #[arg(long)]
    delta: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Suspend {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let bar = LazyLock::new(|| Bar::bytes("sealing", self.json).until(&cancellation()));
        let target = SuspendTarget {
            checkpoint: &self.checkpoint,
            delta: self.delta,
        };
        let made = operations_near(config)
            .run(|ops| ops.suspend(&self.guest, &target, &|progress| bar.advance(progress)))?;
        drop(bar);
        let (guest, sha256) = (&made.manifest.guest, &made.memory_sha256);
        let parent = made.manifest.parent.as_ref();
        if self.json {
            json(&json!({
                "guest": guest, "checkpoint": self.checkpoint.to_string(), "sha256": sha256,
                "size": made.manifest.files.ckp.size,
                "parent": parent.map(|parent| &parent.path),
                "pages": parent.map(|parent| parent.pages.count()),
            }));
        } else {
            let what = parent.map_or(String::new(), |parent| {
                let pages = usize::try_from(parent.pages.count()).unwrap_or(usize::MAX);
                format!("{} over {}; ", count(pages, "page"), parent.path)
            });
            line(format_args!(
                "{guest} is suspended in {} ({what}sha256 {})",
                self.checkpoint,
                &sha256[..16]
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}
