//! The `zfs` command: runs it, and reads what its answers mean.

use std::{
    fmt,
    fs::File,
    io,
    process::{self, Stdio},
};

use crate::disk::Error;

/// What `zfs` answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandAnswer {
    /// Whether it exited with 0.
    pub ok: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// The messages of libzfs_dataset.c that brood tells apart. `zfs` exits with 1 for all of them, and
/// asking again would be a race.
impl CommandAnswer {
    /// There is no such dataset or snapshot.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        !self.ok && self.stderr.contains("does not exist")
    }

    /// Something has it open, mounted or held.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.ok && self.stderr.contains("dataset is busy")
    }

    /// `zfs hold` was done before.
    #[must_use]
    pub fn is_held_already(&self) -> bool {
        !self.ok && self.stderr.contains("tag already exists")
    }

    /// `zfs release` was done before.
    #[must_use]
    pub fn is_not_held(&self) -> bool {
        !self.ok && self.stderr.contains("no such tag")
    }

    /// The snapshot has clones.
    #[must_use]
    pub fn has_clones(&self) -> bool {
        !self.ok && self.stderr.contains("has dependent clones")
    }

    /// What it said, as one line.
    pub(super) fn said(&self) -> String {
        let lines: Vec<&str> = self.stderr.split_whitespace().collect();
        lines.join(" ")
    }
}

/// What runs `zfs`: the command itself, or a test that has it fail at a chosen call.
pub trait Runner: fmt::Debug + Send + Sync {
    /// Runs `zfs` with these arguments to its end.
    ///
    /// # Errors
    /// [`Error::NoZfs`] when it cannot be run at all.
    fn run(&self, arguments: &[&str]) -> Result<CommandAnswer, Error>;
}

/// The `zfs` command in `PATH`.
#[derive(Debug)]
pub struct Command {
    lock: Option<File>,
}

impl Command {
    /// The command. While it runs it holds on to `lock`, even past the end of this process: as its
    /// standard input, which it never reads.
    #[must_use]
    pub fn holding(lock: Option<&File>) -> Self {
        // Without a descriptor to spare, a command that outlives this process goes unseen until
        // disks without a guest are looked for; nothing else depends on it.
        Self {
            lock: lock.and_then(|lock| lock.try_clone().ok()),
        }
    }

    fn stdin(&self) -> io::Result<Stdio> {
        match &self.lock {
            Some(lock) => Ok(lock.try_clone()?.into()),
            None => Ok(Stdio::null()),
        }
    }
}

impl Runner for Command {
    fn run(&self, arguments: &[&str]) -> Result<CommandAnswer, Error> {
        let output = process::Command::new("zfs")
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(self.stdin().map_err(Error::NoZfs)?)
            .output()
            .map_err(Error::NoZfs)?;
        Ok(CommandAnswer {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
