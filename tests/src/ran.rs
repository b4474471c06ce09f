//! Run of the binary, in progress or done.

use std::{
    fs::File,
    io::{Read, Seek},
    os::unix::{
        fs::FileExt,
        process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{PATIENCE, signal, until_within};

/// A command that was started and may still run. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    line: String,
    stdout: File,
    stderr: File,
    begin: Instant,
}

impl Running {
    /// Starts `command` in a process group of its own, with its output kept in files: what it
    /// leaves running may hold on to them, and nobody waits for that.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(mut command: Command) -> Self {
        let stdout = tempfile::tempfile().expect("a temporary file");
        let stderr = tempfile::tempfile().expect("a temporary file");
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone().expect("a descriptor"))
            .stderr(stderr.try_clone().expect("a descriptor"))
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Self {
            child,
            line: words.join(" "),
            stdout,
            stderr,
            begin: Instant::now(),
        }
    }

    /// Its process id, which is also its process group's.
    ///
    /// # Panics
    /// Never: process ids are small.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids are small")
    }

    /// Sends it a signal.
    pub fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    /// The most memory that it has had until now, in bytes, and its threads now; zeroes when it has
    /// ended (proc_pid_status(5)).
    #[must_use]
    pub fn memory_and_threads(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.unwrap_or_default();
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.unwrap_or(0_u64)
        };
        (value("VmHWM:") << 10, value("Threads:"))
    }

    /// What it has said on standard error so far.
    ///
    /// # Panics
    /// When that cannot be read.
    #[must_use]
    pub fn said(&self) -> String {
        text_so_far(&self.stderr)
    }

    /// What it has written to standard output so far.
    ///
    /// # Panics
    /// When that cannot be read.
    #[must_use]
    pub fn printed(&self) -> String {
        text_so_far(&self.stdout)
    }

    /// Whether it has ended.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it takes longer than twice [`PATIENCE`]; three times as long, when it measures.
    #[must_use]
    pub fn wait(self) -> Ran {
        // A measurement waits for the host to be quiet, and is made again when it was not.
        let measures = self.line.starts_with("density ");
        self.wait_within(if measures { 6 } else { 2 } * PATIENCE)
    }

    /// Waits for the end of what may take this long: a whole host that is emulated, say.
    ///
    /// # Panics
    /// When it takes longer.
    #[must_use]
    pub fn wait_within(mut self, limit: Duration) -> Ran {
        let line = self.line.clone();
        let status = until_within(limit, &format!("the end of brood {line}"), || {
            self.child.try_wait().expect("a child")
        });
        Ran {
            line,
            status,
            stdout: contents(&mut self.stdout),
            stderr: contents(&mut self.stderr),
            took: self.begin.elapsed(),
        }
    }
}

fn text_so_far(file: &File) -> String {
    let length = file.metadata().expect("a file").len();
    let mut bytes = vec![0; usize::try_from(length).expect("a short file")];
    // At a place, for its own place is where the child goes on.
    file.read_exact_at(&mut bytes, 0).expect("what was written");
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn contents(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .expect("a temporary file can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    /// Its arguments.
    pub line: String,
    status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it said on standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    /// Its exit code; `None` when a signal killed it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that killed it.
    #[must_use]
    pub fn killed_by(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Makes sure of its exit code.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert!(
            self.code() == Some(code) && !self.stderr.contains("panicked"),
            "brood {} should exit with {code}: {:?}\n{}{}",
            self.line,
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Makes sure that it succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Makes sure that its error holds all these words.
    ///
    /// # Panics
    /// When one is missing.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.stderr.contains(word),
                "brood {} should say {word:?}:\n{}",
                self.line,
                self.stderr
            );
        }
        self
    }

    /// What it printed, as one JSON value.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| {
            panic!(
                "brood {} printed no JSON ({e}):\n{}{}",
                self.line, self.stdout, self.stderr
            )
        })
    }
}
