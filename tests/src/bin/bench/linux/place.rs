//! Place of the Linux measurement: a state folder of its own, with an image and a checkpoint of a
//! guest that has nothing to do.

use std::path::{Path, PathBuf};

use brood_core::agent::Agent;
use brood_tests::image_builder;
use serde::Deserialize;
use tempfile::TempDir;

use super::ANSWER;
use crate::{brood::Brood, error::Error, workplace::Workplace};

/// Memory of a guest, in MiB.
pub(super) const MEMORY_MIB: u32 = 128;

/// The folder and what works in it. Its guests go with it.
pub(super) struct Place {
    /// brood on QEMU.
    pub(super) brood: Brood,
    folder: TempDir,
}

#[derive(Deserialize)]
struct Listed {
    pid: Option<u32>,
}

#[derive(Deserialize)]
struct Shown {
    id: String,
}

impl Place {
    /// Builds the image and boots it, which takes a while.
    pub(super) fn make(workplace: &Workplace) -> Result<Self, Error> {
        let builder = image_builder();
        let (agent, packages) = builder.ok_or_else(|| {
            Error::Guest("a Linux guest needs tools/agent and Debian's packages".to_owned())
        })?;
        let folder = tempfile::Builder::new()
            .prefix("brood-bench.")
            .tempdir_in(&workplace.floor.dir)
            .map_err(Error::io("make a folder"))?;
        let checkpoints = folder.path().join("checkpoints");
        std::fs::create_dir(&checkpoints).map_err(Error::io("make a folder"))?;
        let brood = Brood {
            binary: workplace.brood.binary.clone(),
            state: folder.path().join("state"),
            checkpoint: checkpoints.join("linux"),
            engine: Some("qemu"),
            interrupt: workplace.brood.interrupt.clone(),
        };
        let place = Self { brood, folder };
        eprintln!("linux: builds an image and boots it");
        let mut words = vec!["image".into(), "build".into(), "--minimal".into()];
        words.extend(["linux".into(), "--agent".into(), text(agent)]);
        for package in packages {
            words.extend(["--deb".into(), text(package)]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let _ = place.brood.run(&words)?;
        let memory = format!("{MEMORY_MIB}M");
        let checkpoint = text(&place.brood.checkpoint);
        let make = [
            "checkpoint",
            "make",
            "linux",
            &checkpoint,
            "--memory",
            &memory,
        ];
        let _ = place.brood.run(&make)?;
        Ok(place)
    }

    /// A file of the checkpoint.
    pub(super) fn file(&self, suffix: &str) -> PathBuf {
        format!("{}.{suffix}", self.brood.checkpoint.display()).into()
    }

    /// A folder for the script.
    pub(super) fn folder(&self) -> PathBuf {
        self.folder.path().join("script")
    }

    /// Processes of brood's guests.
    pub(super) fn pids(&self) -> Result<Vec<u32>, Error> {
        let listed: Vec<Listed> = self.brood.ask(self.brood.command(&["list"]))?;
        Ok(listed.iter().filter_map(|guest| guest.pid).collect())
    }

    /// A session with the agent of one of brood's guests.
    pub(super) fn agent(&self, guest: &str) -> Result<Agent, Error> {
        let shown: Shown = self.brood.ask(self.brood.command(&["show", guest]))?;
        let socket = format!("run/{}.qemu/agent", shown.id);
        let agent = Agent::connect(&self.brood.state.join(socket), ANSWER);
        agent.map_err(|e| Error::Guest(e.to_string()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.brood.uninterrupted().destroy_all() {
            eprintln!("bench: {error}");
        }
    }
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}
