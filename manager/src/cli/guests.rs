//! Commands on guests that exist: list, show, ask, pause, resume, destroy, suspend.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use serde_json::json;

use super::{
    Failure,
    actor::{Actor, Done, Which},
    bar::Bar,
    daemon::only_daemon,
    failure::SOME,
    output::{engine, json, line, state, table},
};
use crate::{
    checkpoint::BundlePath,
    config::Config,
    guests::{Guests, View},
    units::Bytes,
};

/// Lists all guests, those too that other commands restored or that died
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood list
  brood list --json | jq -r .[].name")]
pub(super) struct List {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let guests = match only_daemon(config) {
            Some(daemon) => daemon.guests(false)?,
            None => Self::look(config)?,
        };
        if self.json {
            json(&guests);
            return Ok(ExitCode::SUCCESS);
        }
        if guests.is_empty() {
            line("no guests");
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<_> = guests
            .iter()
            .map(|g| {
                vec![
                    g.name.clone(),
                    g.state.name().to_owned(),
                    g.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                    Bytes::from_mib(g.memory_mib).to_string(),
                    g.checkpoint.clone(),
                    g.reason.clone().unwrap_or_default(),
                ]
            })
            .collect();
        table(&["NAME", "STATE", "PID", "MEMORY", "CHECKPOINT", ""], &rows);
        Ok(ExitCode::SUCCESS)
    }

    fn look(config: &Config) -> Result<Vec<View>, Failure> {
        let (mut state, engine) = (state(config)?, engine(config)?);
        let mut guests = Guests {
            state: &mut state,
            engine: &*engine,
        };
        let all = guests.list()?;
        let views = all
            .iter()
            .map(|guest| View::new(guest, engine.kind(), None));
        Ok(views.collect())
    }
}

/// Shows one guest with the memory it has to itself and shares
#[derive(Debug, Args)]
#[command(after_help = "Example: brood show demo-1")]
pub(super) struct Show {
    /// Name or id
    guest: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let guest = match only_daemon(config) {
            Some(daemon) => daemon.guest(&self.guest)?,
            None => self.look(config)?,
        };
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
            ("generation", guest.generation),
            ("mac", guest.mac),
            ("restored", guest.created_at),
        ];
        if let Some(pid) = guest.pid {
            lines.push(("pid", pid.to_string()));
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

    fn look(&self, config: &Config) -> Result<View, Failure> {
        let (mut state, engine) = (state(config)?, engine(config)?);
        let mut guests = Guests {
            state: &mut state,
            engine: &*engine,
        };
        let guest = guests.find(&self.guest)?;
        let usage = guest.process().map(|_| guests.usage(&guest)).transpose()?;
        // What cannot be asked for must not keep the rest from being shown.
        let disk = guests.disk_location(&guest.row).ok().flatten();
        Ok(View {
            disk_path: disk.map(|path| path.display().to_string()),
            ..View::new(&guest, engine.kind(), usage)
        })
    }
}

/// Puts a request to a guest and prints its answer
#[derive(Debug, Args)]
#[command(after_help = after_ask())]
pub(super) struct Ask {
    /// Name or id
    guest: String,
    /// The request
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    request: Vec<String>,
    /// How long to wait for the answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    timeout: f64,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

fn after_ask() -> String {
    let demo = demo_requests();
    format!(
        "Options stand before the guest's name.\n\n{demo}Examples:\n  brood ask demo-1 ping hello\n  brood ask --json demo-1 random 8"
    )
}

#[cfg(target_os = "linux")]
fn demo_requests() -> String {
    let requests = crate::engine::kvm::demo::words::REQUESTS;
    format!("The demo guest knows:\n{requests}\n\n")
}

/// Only the KVM engine has a demo guest.
#[cfg(not(target_os = "linux"))]
fn demo_requests() -> String {
    String::new()
}

pub(super) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if s > 0.0 && s <= 1e6 => Ok(s),
        _ => Err("write a number of seconds above 0".to_owned()),
    }
}

impl Ask {
    pub(super) fn run(mut self, config: &Config) -> Result<ExitCode, Failure> {
        // Options are also understood after the request, as people write them.
        if self.request.last().is_some_and(|word| word == "--json") {
            self.request.pop();
            self.json = true;
        }
        if let Some(daemon) = only_daemon(config) {
            json(&daemon.ask(&self.guest, &self.request, self.timeout)?);
            return Ok(ExitCode::SUCCESS);
        }
        let (mut state, engine) = (state(config)?, engine(config)?);
        let timeout = Duration::from_secs_f64(self.timeout);
        let answer = Guests {
            state: &mut state,
            engine: &*engine,
        }
        .ask(&self.guest, &self.request, timeout)?;
        if self.json {
            json(&answer.to_json());
        } else {
            line(answer);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Stops guests (SIGSTOP). They keep their memory and use no processor time
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood pause demo-1 demo-2
  brood pause --all")]
pub(super) struct Pause {
    #[command(flatten)]
    which: Which,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Pause {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let done = Done::on(
            config,
            &self.which,
            self.json,
            "pausing",
            |daemon, guest| daemon.pause(guest).map(|_| json!({})),
            |guests, guest| guests.pause(guest).map(|()| json!({})),
        )?;
        Ok(done.finish(self.json, "paused"))
    }
}

/// Lets stopped guests run on (SIGCONT), and waits until each has answered
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood resume demo-1 demo-2
  brood resume --all --timeout 30")]
pub(super) struct Resume {
    #[command(flatten)]
    which: Which,
    /// How long each may take to answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    timeout: f64,
    /// Print a JSON object, with the time from the signal to the answer
    #[arg(long)]
    json: bool,
}

impl Resume {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let timeout = Duration::from_secs_f64(self.timeout);
        let done = Done::on(
            config,
            &self.which,
            self.json,
            "resuming",
            |daemon, guest| {
                let resumed = daemon.resume(guest, self.timeout)?;
                Ok(json!({ "resume_ms": resumed.resume_ms }))
            },
            |guests, guest| {
                let took = guests.resume(guest, timeout)?;
                Ok(json!({ "resume_ms": took.as_secs_f64() * 1e3 }))
            },
        )?;
        Ok(done.finish(self.json, "resumed"))
    }
}

/// Ends guests for good: their processes are gone when this returns
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood destroy demo-1 demo-2
  brood destroy --all")]
pub(super) struct Destroy {
    #[command(flatten)]
    which: Which,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Destroy {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let named = (!self.which.all).then_some(&self.which.guests[..]);
        let mut actor = Actor::new(config);
        let destroyed = match actor.ask(|daemon| daemon.destroy(named))? {
            Some(destroyed) => destroyed,
            None => actor.here(|guests| {
                let found = self.which.find(guests)?;
                Ok(guests.destroy(&found)?.into_view()?)
            })?,
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
            }));
        } else {
            let count = destroyed.destroyed;
            line(format_args!(
                "{count} {} destroyed",
                if count == 1 { "guest" } else { "guests" }
            ));
        }
        for left in &destroyed.left {
            Failure::new(&left.error, None).print();
        }
        Ok(if destroyed.left.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(SOME)
        })
    }
}

/// Suspends a guest into a new checkpoint and ends it; when anything fails, the guest goes on
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  brood suspend demo-1 /var/tmp/ckp/warm\n  brood suspend demo-1 /var/tmp/ckp/warm --delta"
)]
pub(super) struct Suspend {
    /// Name or id
    guest: String,
    /// DIR/NAME of the new checkpoint
    checkpoint: BundlePath,
    /// Write only the pages that the guest has to itself. The new checkpoint is worth nothing
    /// without the one that the guest was restored from
    #[arg(long)]
    delta: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Suspend {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let (mut state, engine) = (state(config)?, engine(config)?);
        let mut guests = Guests {
            state: &mut state,
            engine: &*engine,
        };
        let guest = guests.find(&self.guest)?;
        let bar = Bar::bytes("sealing", self.json);
        let progress = |p| bar.advance(p);
        let manifest = guests.suspend(&guest, &self.checkpoint, self.delta, &progress)?;
        bar.clear();
        let (guest, sha256) = (&guest.row.name, manifest.memory_sha256());
        let size = manifest.files.ckp.size;
        let parent = manifest.parent.as_ref();
        if self.json {
            json(&json!({
                "guest": guest, "checkpoint": self.checkpoint.to_string(), "sha256": sha256,
                "size": size, "parent": parent.map(|parent| &parent.path),
                "pages": parent.map(|parent| parent.pages.count()),
            }));
        } else {
            let what = parent.map_or(String::new(), |parent| {
                format!("{} pages over {}; ", parent.pages.count(), parent.path)
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
