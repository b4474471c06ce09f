//! `brood checkpoint ...`

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Failure,
    output::{advance, bytes_bar, engine, json, line, state, table},
};
use crate::{
    checkpoint::{self, BundlePath, Checkpoint, State as BundleState, manifest::Manifest},
    engine::Engine,
    guests::{GuestState, Guests},
    units::Bytes,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a checkpoint by booting the demo guest and suspending it
    Demo(Demo),
    /// Show what is in a checkpoint
    Inspect(Inspect),
    /// Read a checkpoint whole and compare it with its digests
    Verify(Verify),
    /// List the checkpoints in a folder
    List(List),
    /// Remove a checkpoint that no guest uses
    Remove(Remove),
}

impl Command {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Demo(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::List(command) => command.run(),
            Self::Remove(command) => command.run(),
        }
    }
}

/// Example: brood checkpoint demo /var/tmp/ckp/demo --memory 256M
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Where to put it: DIR/NAME (the files are DIR/NAME.ckp, .ckp.kern, .ckp.meta, .ckp.brood)
    checkpoint: BundlePath,
    /// Guest memory, 4M to 3G
    #[arg(long, default_value = "256M", value_name = "SIZE")]
    memory: Bytes,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Demo {
    fn run(self) -> Result<ExitCode, Failure> {
        let bar = bytes_bar(self.json);
        bar.set_message("sealing");
        let manifest =
            engine()?.make_demo_checkpoint(&self.checkpoint, self.memory, &|p| advance(&bar, p))?;
        bar.finish_and_clear();
        if self.json {
            json(&described(&self.checkpoint, &manifest));
        } else {
            line(format_args!(
                "{}: {} of memory, booted, answering, sealed (sha256 {})",
                self.checkpoint,
                manifest.memory.size,
                &manifest.files.ckp.sha256[..16]
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// DIR/NAME of the checkpoint
    checkpoint: BundlePath,
    /// Print the manifest as JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    fn run(self) -> Result<ExitCode, Failure> {
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        let m = checkpoint.manifest();
        if self.json {
            json(&described(&self.checkpoint, m));
            return Ok(ExitCode::SUCCESS);
        }
        let devices: Vec<_> = m
            .devices
            .iter()
            .map(|d| format!("{} ({})", d.name, d.model))
            .collect();
        let pages: u64 = m.working_set.iter().map(|r| r.count).sum();
        for (key, value) in [
            ("checkpoint", self.checkpoint.to_string()),
            ("guest", m.guest.clone()),
            ("made", m.created_at.clone()),
            ("by", m.engine_version.clone()),
            ("memory", m.memory.size.to_string()),
            ("vCPUs", m.vcpus.to_string()),
            ("devices", devices.join(", ")),
            ("working set", format!("{pages} pages")),
            (
                ".ckp",
                format!("{}  sha256 {}", m.files.ckp.size, m.files.ckp.sha256),
            ),
            (
                ".ckp.kern",
                format!("{}  sha256 {}", m.files.kern.size, m.files.kern.sha256),
            ),
            (
                ".ckp.meta",
                format!("{}  sha256 {}", m.files.meta.size, m.files.meta.sha256),
            ),
        ] {
            line(format_args!("{key:<12} {value}"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn described(path: &BundlePath, manifest: &Manifest) -> serde_json::Value {
    let mut value = json!(manifest);
    value["checkpoint"] = path.to_string().into();
    value["memory_mib"] = manifest.memory.size.as_mib().into();
    value
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// DIR/NAME of the checkpoint
    checkpoint: BundlePath,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    fn run(self) -> Result<ExitCode, Failure> {
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        let bar = bytes_bar(self.json);
        bar.set_message("verifying");
        checkpoint.verify_memory(&|p| advance(&bar, p))?;
        bar.finish_and_clear();
        let sha256 = &checkpoint.manifest().files.ckp.sha256;
        if self.json {
            json(
                &json!({ "checkpoint": self.checkpoint.to_string(), "whole": true, "sha256": sha256 }),
            );
        } else {
            line(format_args!(
                "{} is whole: sha256 {sha256}",
                self.checkpoint
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// The folder
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

impl List {
    fn run(self) -> Result<ExitCode, Failure> {
        let bundles = checkpoint::list(&self.dir)?;
        let seen = bundles.iter().map(|b| {
            let (state, error) = match &b.state {
                BundleState::Whole(_) => ("whole", None),
                BundleState::Broken(e) => ("broken", Some(e.to_string())),
                BundleState::Incomplete => (
                    "incomplete",
                    Some("no manifest: not sealed yet, or never will be".to_owned()),
                ),
            };
            (b, state, error)
        });
        if self.json {
            let values: Vec<_> = seen
                .map(|(b, state, error)| {
                    let mut value =
                        json!({ "name": b.path.name(), "state": state, "size": b.size });
                    if let BundleState::Whole(m) = &b.state {
                        value["memory"] = m.memory.size.0.into();
                        value["engine"] = json!(m.engine);
                        value["created_at"] = m.created_at.as_str().into();
                        value["sha256"] = m.files.ckp.sha256.as_str().into();
                    }
                    if let Some(error) = error {
                        value["error"] = error.into();
                    }
                    value
                })
                .collect();
            json(&values);
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<_> = seen
            .map(|(b, state, error)| {
                let (memory, made) = match &b.state {
                    BundleState::Whole(m) => (m.memory.size.to_string(), m.created_at.clone()),
                    _ => (String::new(), error.unwrap_or_default()),
                };
                vec![b.path.name().to_owned(), state.to_owned(), memory, made]
            })
            .collect();
        if rows.is_empty() {
            line(format_args!("no checkpoints in {}", self.dir.display()));
        } else {
            table(&["NAME", "STATE", "MEMORY", "MADE"], &rows);
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// DIR/NAME of the checkpoint
    checkpoint: BundlePath,
}

impl Remove {
    fn run(self) -> Result<ExitCode, Failure> {
        let path = self
            .checkpoint
            .absolute()
            .unwrap_or_else(|_| self.checkpoint.clone())
            .to_string();
        let (mut state, engine) = (state()?, engine()?);
        let users: Vec<String> = Guests {
            state: &mut state,
            engine: &engine,
        }
        .list()?
        .into_iter()
        .filter(|g| g.row.checkpoint == path && g.state != GuestState::Dead)
        .map(|g| g.row.name)
        .collect();
        let freed = checkpoint::remove(&self.checkpoint, &users)?;
        line(format_args!("removed {}: {freed} freed", self.checkpoint));
        Ok(ExitCode::SUCCESS)
    }
}
