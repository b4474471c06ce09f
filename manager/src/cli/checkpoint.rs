//! `brood checkpoint`: makes, imports, lists, verifies and removes checkpoints.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use jiff::Timestamp;

#[cfg(target_os = "linux")]
use super::make::Make;
use super::{
    bar::Bar,
    complete,
    output::{age, cancellation, json, line, local, operations_near, table},
};
use crate::{
    config::Config,
    failure::Failure,
    ops::{ImportSource, Local, flatten},
    types,
};
use brood_core::{
    checkpoint::{AgentProtocol, BhyveGuest, BundlePath, Checkpoint, Readiness, sign},
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
    /// Make a checkpoint by booting an image on QEMU
    #[cfg(target_os = "linux")]
    Make(Make),
    /// Seal a checkpoint that `bhyvectl --suspend` wrote
    Import(Import),
    /// Show what is in a checkpoint
    Inspect(Inspect),
    /// Read all of a checkpoint and compare it with its digests
    Verify(Verify),
    /// Trust a checkpoint that was made elsewhere
    Trust(Trust),
    /// Sign a checkpoint
    Sign(Sign),
    /// List the checkpoints in a folder
    List(List),
    /// Join a delta and its parents into one full checkpoint
    Flatten(Flatten),
    /// Record the new place of a delta's parent that was moved
    Rebase(Rebase),
    /// Remove an unused checkpoint
    Remove(Remove),
}

impl Command {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        match self {
            Self::Demo(command) => command.run(config),
            #[cfg(target_os = "linux")]
            Self::Make(command) => command.run(config),
            Self::Import(command) => command.run(config),
            Self::Inspect(command) => command.run(config),
            Self::Trust(command) => command.run(config),
            Self::Sign(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::List(command) => command.run(config),
            Self::Flatten(command) => command.run(config),
            Self::Rebase(command) => command.run(config),
            Self::Remove(command) => command.run(config),
        }
    }
}

/// Prints a checkpoint that was made, and how.
pub(super) fn print_sealed(made: &types::Checkpoint, how: &str, as_json: bool) {
    if as_json {
        json(made);
        return;
    }
    let manifest = &made.manifest;
    line(format_args!(
        "{}: {} of memory, {how} (sha256 {})",
        made.checkpoint,
        manifest.memory.size,
        &manifest.files.ckp.sha256[..16]
    ));
}

/// Makes a checkpoint: boots the demo guest, sends it a request and suspends it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood checkpoint demo /var/tmp/ckp/demo
  brood checkpoint demo /var/tmp/ckp/demo --memory 1G")]
pub(super) struct Demo {
    /// DIR/NAME of the new checkpoint (files DIR/NAME.ckp, .ckp.kern, .ckp.meta, .ckp.brood)
    checkpoint: BundlePath,
    /// Guest memory, 4M to 3G
    #[arg(long, default_value = "256M", value_name = "SIZE")]
    memory: Bytes,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Demo {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let bar = Bar::bytes("sealing", self.json).until(&cancellation());
        let made = local(config).make_demo(&self.checkpoint, self.memory, &|p| bar.advance(p))?;
        bar.clear();
        print_sealed(&made, "booted, answering, sealed", self.json);
        Ok(ExitCode::SUCCESS)
    }
}

/// Seals the files that `bhyvectl --suspend` wrote as a checkpoint
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  bhyvectl --suspend=/ckp/web.raw --vm=web
  brood checkpoint import /ckp/web.raw /ckp/web --bhyve-config /vm/web.conf --agent 2
  brood checkpoint import /ckp/db.raw /ckp/db --bhyve-config /vm/db.conf --agent 2 \\
    --agent-protocol frames")]
pub(super) struct Import {
    /// File that bhyvectl wrote; RAW.kern and RAW.meta lie beside it
    raw: PathBuf,
    /// DIR/NAME of the new checkpoint, in the same file system
    checkpoint: BundlePath,
    /// The guest's configuration, as bhyve -k reads it
    #[arg(long, value_name = "FILE")]
    bhyve_config: PathBuf,
    /// Serial port (1 to 4) at which the guest's agent listens
    #[arg(long, value_name = "COM", value_parser = clap::value_parser!(u8).range(1..=4))]
    agent: Option<u8>,
    /// Protocol of that agent: lines (text, docs/bhyve.md) or frames (brood-agent)
    #[arg(long, value_name = "PROTOCOL", default_value = "lines", requires = "agent", value_parser = agent_protocol)]
    agent_protocol: AgentProtocol,
    /// Sign that a clone is ready: agent, console:COM:WORDS, tcp:HOST:PORT or command:WORDS
    #[arg(long, value_name = "WHAT", default_value = "agent", value_parser = readiness)]
    ready: Readiness,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn agent_protocol(text: &str) -> Result<AgentProtocol, String> {
    match text {
        "lines" => Ok(AgentProtocol::Lines),
        "frames" => Ok(AgentProtocol::Frames),
        _ => Err("write lines or frames".to_owned()),
    }
}

fn readiness(text: &str) -> Result<Readiness, String> {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    match (kind, rest) {
        ("agent", "") => Ok(Readiness::Agent),
        ("console", rest) => {
            let found = rest
                .split_once(':')
                .and_then(|(com, words)| Some((com.parse().ok()?, words)));
            let (com, words) = found.ok_or("write console:COM:WORDS")?;
            Ok(Readiness::Console {
                com,
                words: words.to_owned(),
            })
        }
        ("tcp", address) if address.contains(':') => Ok(Readiness::Tcp {
            address: address.to_owned(),
        }),
        ("command", words) if !words.trim().is_empty() => Ok(Readiness::Command {
            argv: words.split_whitespace().map(str::to_owned).collect(),
        }),
        _ => Err("write agent, console:COM:WORDS, tcp:HOST:PORT or command:WORDS".to_owned()),
    }
}

impl Import {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let source = ImportSource {
            raw: &self.raw,
            bhyve_config: &self.bhyve_config,
            guest: BhyveGuest {
                config: BTreeMap::new(),
                agent: self.agent,
                agent_protocol: self.agent_protocol,
                readiness: self.ready,
            },
        };
        let bar = Bar::bytes("sealing", self.json).until(&cancellation());
        let made = local(config).import(source, &self.checkpoint, &|p| bar.advance(p))?;
        bar.clear();
        print_sealed(&made, "sealed", self.json);
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood checkpoint inspect /var/tmp/ckp/demo
  brood checkpoint inspect /var/tmp/ckp/demo --json | jq .memory")]
pub(super) struct Inspect {
    /// DIR/NAME of the checkpoint
    #[arg(add = complete::with(complete::checkpoints))]
    checkpoint: BundlePath,
    /// Print the manifest as JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let (checkpoint, trusted) = local(config).inspect(&self.checkpoint)?;
        if self.json {
            json(&types::Checkpoint::of(&checkpoint, trusted));
            return Ok(ExitCode::SUCCESS);
        }
        let m = checkpoint.manifest();
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
        if let Some(trusted) = trusted {
            lines.push(("trusted", if trusted { "yes" } else { "no" }.to_owned()));
        }
        lines.extend(m.wants().into_iter().map(|want| ("wants to", want)));
        let exposures = checkpoint.exposures().into_iter();
        lines.extend(exposures.map(|exposure| ("exposed", exposure.to_string())));
        for (key, value) in lines {
            line(format_args!("{key:<12} {value}"));
        }
        for disk in &m.disks {
            line(format_args!(
                "{:<12} {}  {}",
                "disk", disk.snapshot, disk.identity
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: brood checkpoint verify /var/tmp/ckp/demo")]
pub(super) struct Verify {
    /// DIR/NAME of the checkpoint
    #[arg(add = complete::with(complete::checkpoints))]
    checkpoint: BundlePath,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    fn run(self) -> Result<ExitCode, Failure> {
        let bar = Bar::bytes("verifying", self.json).until(&cancellation());
        let verified = Local::verify(&self.checkpoint, &|p| bar.advance(p))?;
        bar.clear();
        if self.json {
            json(&verified);
        } else {
            line(format_args!(
                "{} is whole: sha256 {}",
                self.checkpoint, verified.sha256
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Trusts a checkpoint that was made elsewhere
///
/// A checkpoint can name commands to run, files to open and addresses to connect to. brood trusts
/// checkpoints that were imported, made of an image or suspended here, and refuses to restore all
/// others until this command trusts them. It records the digest of the manifest, so trust moves with the checkpoint.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood checkpoint inspect /srv/ckp/web
  brood checkpoint trust /srv/ckp/web")]
pub(super) struct Trust {
    /// DIR/NAME of the checkpoint
    checkpoint: BundlePath,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Trust {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let trusted = operations_near(config).run(|ops| ops.trust(&self.checkpoint))?;
        if self.json {
            json(&trusted);
            return Ok(ExitCode::SUCCESS);
        }
        let wants = trusted.wants;
        if wants.is_empty() {
            line(format_args!(
                "{} wants nothing of this host",
                self.checkpoint
            ));
        }
        for want in wants {
            line(format_args!(
                "{} may have this host {want}",
                self.checkpoint
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Signs a checkpoint: whoever has the public key can tell that you vouch for it
///
/// The signature is DIR/NAME.ckp.sig, and covers all files of the checkpoint. Where the setting
/// `restore.signers` names a folder of public keys, brood restores only checkpoints that are signed
/// with one of them. `checkpoint rebase` changes a checkpoint, which is then to be signed again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  openssl genpkey -algorithm ed25519 -out key.pem
  openssl pkey -in key.pem -pubout -out /etc/brood/signers/me.pem
  brood checkpoint sign /srv/ckp/web --key key.pem")]
pub(super) struct Sign {
    /// DIR/NAME of the checkpoint
    checkpoint: BundlePath,
    /// File of the secret key: ed25519, PKCS#8 in PEM, readable by its owner alone
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Sign {
    fn run(self) -> Result<ExitCode, Failure> {
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        let signature = sign(&checkpoint, &self.key)?;
        if self.json {
            json(&serde_json::json!({
                "checkpoint": self.checkpoint.to_string(),
                "signature": signature,
            }));
            return Ok(ExitCode::SUCCESS);
        }
        line(format_args!(
            "{} is signed: {}",
            self.checkpoint,
            signature.display()
        ));
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood checkpoint list /var/tmp/ckp
  brood checkpoint list /var/tmp/ckp --json | jq -r .[].name")]
pub(super) struct List {
    /// The folder; the setting serve.checkpoints names the daemon's
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

impl List {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let views = Local::checkpoints(&self.dir)?;
        if self.json {
            json(&views);
            return Ok(ExitCode::SUCCESS);
        }
        let now = Timestamp::now();
        let rows: Vec<_> = views
            .into_iter()
            .map(|view| {
                let parent = view
                    .parent
                    .map(|parent| parent.unwrap_or_else(|| "-".to_owned()));
                let made = view.created_at.map(|at| age(&at, now).unwrap_or(at));
                vec![
                    view.name,
                    view.state.name().to_owned(),
                    view.size.to_string(),
                    view.memory.map(|m| m.to_string()).unwrap_or_default(),
                    parent.unwrap_or_default(),
                    made.or(view.error).unwrap_or_default(),
                ]
            })
            .collect();
        if rows.is_empty() {
            line(format_args!("no checkpoints in {}", self.dir.display()));
            // The default folder may not be the intended one.
            if let Ok(daemons) = config.checkpoints()
                && daemons.is_dir()
            {
                let daemons = daemons.display();
                line(format_args!(
                    "the daemon's: brood checkpoint list {daemons}"
                ));
            }
        } else {
            table(&["NAME", "STATE", "SIZE", "MEMORY", "PARENT", "AGE"], &rows);
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: brood checkpoint flatten /var/tmp/ckp/warm /var/tmp/ckp/full")]
pub(super) struct Flatten {
    /// DIR/NAME of the delta
    #[arg(add = complete::with(complete::checkpoints))]
    checkpoint: BundlePath,
    /// DIR/NAME of the new checkpoint
    new: BundlePath,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Flatten {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let bar = Bar::bytes("flattening", self.json).until(&cancellation());
        let progress = |p| bar.advance(p);
        let (made, joined) = flatten(&mut local(config), &self.checkpoint, &self.new, &progress)?;
        bar.clear();
        print_sealed(
            &made,
            &format!("joined from {joined} checkpoints"),
            self.json,
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// A delta finds a parent by itself that was moved with it, or to a folder that brood has used.
/// This command changes only the delta's manifest, in one step.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood checkpoint rebase /srv/ckp/warm --parent /mnt/base/demo
  brood checkpoint rebase /srv/ckp/warm")]
pub(super) struct Rebase {
    /// DIR/NAME of the delta
    delta: BundlePath,
    /// DIR/NAME of the parent [default: brood searches the folders that it has used]
    #[arg(long, value_name = "DIR/NAME")]
    parent: Option<BundlePath>,
}

impl Rebase {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let parent = local(config).rebase(&self.delta, self.parent)?;
        line(format_args!("{} is a delta of {parent}", self.delta));
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: brood checkpoint remove /var/tmp/ckp/demo")]
pub(super) struct Remove {
    /// DIR/NAME of the checkpoint
    #[arg(add = complete::with(complete::checkpoints))]
    checkpoint: BundlePath,
    /// Remove it even if deltas, pools or suspended claims need it; these are lost
    #[arg(long)]
    force: bool,
}

impl Remove {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let mut ops = operations_near(config);
        let removed = ops.run(|ops| ops.remove_checkpoint(&self.checkpoint, self.force))?;
        let freed = removed.freed;
        line(format_args!("removed {}: {freed} freed", self.checkpoint));
        Ok(ExitCode::SUCCESS)
    }
}
