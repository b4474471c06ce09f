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
    config::Config,
    engine::Engine,
    guests::Guests,
    units::Bytes,
};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  brood checkpoint demo /var/tmp/ckp/demo --memory 256M
  brood checkpoint list /var/tmp/ckp
  brood checkpoint verify /var/tmp/ckp/demo")]
pub(super) enum Command {
    /// Make a checkpoint by booting the demo guest and suspending it
    Demo(Demo),
    /// Show what is in a checkpoint
    Inspect(Inspect),
    /// Read a checkpoint whole and compare it with its digests
    Verify(Verify),
    /// List the checkpoints in a folder
    List(List),
    /// Join a delta and its parents to one full checkpoint
    Flatten(Flatten),
    /// Remove a checkpoint that no guest uses
    Remove(Remove),
}

impl Command {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        match self {
            Self::Demo(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::List(command) => command.run(),
            Self::Flatten(command) => command.run(),
            Self::Remove(command) => command.run(config),
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
            let mut value = described(&self.checkpoint, m);
            value["parents"] = std::iter::successors(checkpoint.parent(), |parent| parent.parent())
                .map(|parent| parent.path().to_string())
                .collect();
            json(&value);
            return Ok(ExitCode::SUCCESS);
        }
        let devices: Vec<_> = m
            .devices
            .iter()
            .map(|d| format!("{} ({})", d.name, d.model))
            .collect();
        let pages: u64 = m.working_set.iter().map(|r| r.count).sum();
        let mut lines = vec![
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
        ];
        if let Some(delta) = &m.parent {
            let text = format!("{} pages of its own", delta.pages.count());
            lines.push(("delta", text));
        }
        let parents = std::iter::successors(checkpoint.parent(), |parent| parent.parent());
        for parent in parents {
            let size = parent.manifest().files.ckp.size;
            lines.push(("parent", format!("{} ({size})", parent.path())));
        }
        for (key, value) in lines {
            line(format_args!("{key:<12} {value}"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn described(path: &BundlePath, manifest: &Manifest) -> serde_json::Value {
    let mut value = json!(manifest);
    value["checkpoint"] = path.to_string().into();
    value["memory_mib"] = manifest.memory.size.as_mib().into();
    value["memory_sha256"] = manifest.memory_sha256().into();
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
        let sha256 = &checkpoint.manifest().memory_sha256();
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
                        value["sha256"] = m.memory_sha256().into();
                        value["parent"] = json!(m.parent.as_ref().map(|parent| &parent.path));
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
                let name = b.path.name().to_owned();
                let mut row = vec![name, state.to_owned(), b.size.to_string()];
                match &b.state {
                    BundleState::Whole(m) => {
                        let parent = m.parent.as_ref().map(|parent| parent.path.clone());
                        row.push(m.memory.size.to_string());
                        row.push(parent.unwrap_or_else(|| "-".to_owned()));
                        row.push(m.created_at.clone());
                    }
                    _ => row.extend([String::new(), String::new(), error.unwrap_or_default()]),
                }
                row
            })
            .collect();
        if rows.is_empty() {
            line(format_args!("no checkpoints in {}", self.dir.display()));
        } else {
            table(
                &["NAME", "STATE", "SIZE", "MEMORY", "PARENT", "MADE"],
                &rows,
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: brood checkpoint flatten /var/tmp/ckp/warm /var/tmp/ckp/full")]
pub(super) struct Flatten {
    /// DIR/NAME of the delta
    checkpoint: BundlePath,
    /// DIR/NAME of the new checkpoint
    new: BundlePath,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Flatten {
    fn run(self) -> Result<ExitCode, Failure> {
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        let bar = bytes_bar(self.json);
        bar.set_message("flattening");
        let manifest = checkpoint::flatten(&checkpoint, &self.new, &|p| advance(&bar, p))?;
        bar.finish_and_clear();
        if self.json {
            json(&described(&self.new, &manifest));
        } else {
            line(format_args!(
                "{}: {} of memory, joined from {} checkpoints (sha256 {})",
                self.new,
                manifest.memory.size,
                checkpoint.layers().len(),
                &manifest.files.ckp.sha256[..16]
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// DIR/NAME of the checkpoint
    checkpoint: BundlePath,
    /// Remove it even when deltas in its folder need it: they are lost
    #[arg(long)]
    force: bool,
}

impl Remove {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let path = self
            .checkpoint
            .absolute()
            .unwrap_or_else(|_| self.checkpoint.clone());
        let (mut state, engine) = (state(config)?, engine()?);
        let users = Guests {
            state: &mut state,
            engine: &engine,
        }
        .users_of(&path)?;
        if !self.force {
            checkpoint::spare_parent(&path)?;
        }
        let freed = checkpoint::remove(&self.checkpoint, &users)?;
        line(format_args!("removed {}: {freed} freed", self.checkpoint));
        Ok(ExitCode::SUCCESS)
    }
}
