//! brood as a command: the benchmark uses nothing but its command line, as a script would.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use brood_core::percentiles::Percentiles;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    cgroup::Group,
    command::{self, Interrupt},
    error::Error,
};

/// What `brood restore --json` prints, as far as it is used here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Restored {
    restored: u64,
    /// From the first request to the last answer, in seconds.
    pub(crate) wall_s: f64,
    /// From the request to the guest's own answer, in milliseconds.
    pub(crate) restore_ms: Percentiles,
    /// The guests.
    pub(crate) guests: Vec<Guest>,
}

/// A guest of [`Restored`].
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Guest {
    /// How commands name it.
    pub(crate) name: String,
}

/// What `brood density --json` prints, as far as it is used here.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Density {
    answered: u64,
    /// Host memory, in MiB.
    pub(crate) per_guest_mib: f64,
}

#[derive(Deserialize)]
struct Resumed {
    guests: Vec<ResumedGuest>,
}

#[derive(Clone, Copy, Deserialize)]
struct ResumedGuest {
    resume_ms: f64,
}

#[derive(Deserialize)]
struct Shown {
    private_bytes: u64,
}

/// Where brood is and what it works on.
#[derive(Clone, Debug)]
pub(crate) struct Brood {
    /// The binary.
    pub(crate) binary: PathBuf,
    /// Its state folder, ours alone.
    pub(crate) state: PathBuf,
    /// `DIR/NAME` of the checkpoint.
    pub(crate) checkpoint: PathBuf,
    /// The engine, where it is not the host's own.
    pub(crate) engine: Option<&'static str>,
    /// When to stop early.
    pub(crate) interrupt: Interrupt,
}

impl Brood {
    /// The same, not to be interrupted: for cleaning up.
    pub(crate) fn uninterrupted(&self) -> Self {
        Self {
            interrupt: Interrupt::never(),
            ..self.clone()
        }
    }

    /// A command of it, on its state folder.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .env("BROOD_STATE_DIR", &self.state)
            .env("BROOD_CONFIG", "/dev/null")
            .args(words);
        if let Some(engine) = self.engine {
            command.env("BROOD_ENGINE", engine);
        }
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String, Error> {
        command::run(&mut self.command(words), &self.interrupt)
    }

    /// Runs a command, and takes what it says.
    pub(crate) fn ask<T: DeserializeOwned>(&self, mut command: Command) -> Result<T, Error> {
        let output = command::run(command.arg("--json"), &self.interrupt)?;
        serde_json::from_str(&output).map_err(|source| Error::Answer {
            command: command::shown(&command),
            source,
        })
    }

    /// Makes the checkpoint with so much guest memory, such as `256M`.
    pub(crate) fn make_checkpoint(&self, memory: &str) -> Result<(), Error> {
        let name = path(&self.checkpoint);
        self.run(&["checkpoint", "demo", &name, "--memory", memory])
            .map(drop)
    }

    /// Restores guests, in a control group if one is given.
    pub(crate) fn restore(
        &self,
        guests: u32,
        concurrency: u32,
        group: Option<&Group>,
    ) -> Result<Restored, Error> {
        let (checkpoint, asked) = (path(&self.checkpoint), guests.to_string());
        let command = self.command(&[
            "restore",
            &checkpoint,
            "--guests",
            &asked,
            "--concurrency",
            &concurrency.to_string(),
        ]);
        let command = match group {
            Some(group) => group.around(&command),
            None => command,
        };
        let restored: Restored = self.ask(command)?;
        if restored.restored != u64::from(guests) {
            return Err(Error::Short {
                command: "brood restore",
                done: restored.restored,
                asked: guests.into(),
            });
        }
        Ok(restored)
    }

    /// Measures density; its guests are gone when this returns.
    pub(crate) fn density(&self, guests: u32, concurrency: u32) -> Result<Density, Error> {
        let (checkpoint, asked) = (path(&self.checkpoint), guests.to_string());
        let density: Density = self.ask(self.command(&[
            "density",
            &checkpoint,
            "--guests",
            &asked,
            "--concurrency",
            &concurrency.to_string(),
        ]))?;
        if density.answered != u64::from(guests) {
            return Err(Error::Short {
                command: "brood density",
                done: density.answered,
                asked: guests.into(),
            });
        }
        Ok(density)
    }

    /// Stops one guest.
    pub(crate) fn pause(&self, guest: &str) -> Result<(), Error> {
        self.run(&["pause", guest]).map(drop)
    }

    /// Lets one guest run on; returns milliseconds from the signal to its answer.
    pub(crate) fn resume(&self, guest: &str) -> Result<f64, Error> {
        let resumed: Resumed = self.ask(self.command(&["resume", guest]))?;
        let first = resumed.guests.first();
        first.map(|guest| guest.resume_ms).ok_or(Error::Short {
            command: "brood resume",
            done: 0,
            asked: 1,
        })
    }

    /// Has one guest write a word.
    pub(crate) fn poke(&self, guest: &str, address: u64) -> Result<(), Error> {
        let address = address.to_string();
        self.run(&["ask", guest, "poke", &address, "1"]).map(drop)
    }

    /// Bytes of memory that one guest has to itself.
    pub(crate) fn private(&self, guest: &str) -> Result<u64, Error> {
        let shown: Shown = self.ask(self.command(&["show", guest]))?;
        Ok(shown.private_bytes)
    }

    /// Suspends one guest to a delta of its checkpoint, `name` beside it; returns it to restore
    /// from.
    pub(crate) fn suspend_delta(&self, guest: &str, name: &str) -> Result<Self, Error> {
        let checkpoint = self.checkpoint.with_file_name(name);
        self.run(&["suspend", guest, &path(&checkpoint), "--delta"])?;
        Ok(Self {
            checkpoint,
            ..self.clone()
        })
    }

    /// Length of all files of the checkpoint.
    pub(crate) fn checkpoint_size(&self) -> Result<u64, Error> {
        let files = ["ckp", "ckp.kern", "ckp.meta", "ckp.brood"];
        let mut size = 0;
        for suffix in files {
            let file = format!("{}.{suffix}", path(&self.checkpoint));
            let facts = std::fs::metadata(&file).map_err(Error::io(format!("examine {file}")))?;
            size += facts.len();
        }
        Ok(size)
    }

    /// Removes the checkpoint.
    pub(crate) fn remove_checkpoint(&self) -> Result<(), Error> {
        self.run(&["checkpoint", "remove", &path(&self.checkpoint)])
            .map(drop)
    }

    /// Asks one guest whether it is there.
    pub(crate) fn ping(&self, guest: &str) -> Result<(), Error> {
        self.run(&["ask", guest, "ping"]).map(drop)
    }

    /// Ends all guests.
    pub(crate) fn destroy_all(&self) -> Result<(), Error> {
        self.run(&["destroy", "--all", "--force"]).map(drop)
    }

    /// How many guests there are.
    pub(crate) fn count(&self) -> Result<usize, Error> {
        let guests: Vec<Value> = self.ask(self.command(&["list"]))?;
        Ok(guests.len())
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
