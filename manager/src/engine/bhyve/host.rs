//! The host: where its devices are, and its commands, each run to its end or for a limited time.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Names a folder that stands for the host's root, for its devices and sockets. For tests.
pub(super) const ROOT_VARIABLE: &str = "BROOD_BHYVE_ROOT";
/// How long a command may take. All of them ask the kernel for one thing.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a command is looked at while it runs.
const GLANCE: Duration = Duration::from_millis(1);

/// A command of the host that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// It could not be run.
    #[error("cannot run {command}: {source}")]
    Run {
        /// Program and arguments.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// It said no.
    #[error("{command}: {}", if .said.is_empty() { .status.clone() } else { .said.clone() })]
    Failed {
        /// Program and arguments.
        command: String,
        /// How it ended.
        status: String,
        /// What it said on standard error, in one line.
        said: String,
    },
    /// It did not end in time, and was killed.
    #[error("{command}: it did not end within {} s", PATIENCE.as_secs())]
    Slow {
        /// Program and arguments.
        command: String,
    },
}

/// The host.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
    /// More environment for its commands.
    environment: Vec<(String, String)>,
}

impl Host {
    /// This host, or the folder that [`ROOT_VARIABLE`] names.
    #[must_use]
    pub fn new() -> Self {
        let root = env::var_os(ROOT_VARIABLE).map_or_else(|| PathBuf::from("/"), PathBuf::from);
        Self {
            root,
            environment: Vec::new(),
        }
    }

    /// A host whose devices and sockets are in a folder, and whose commands are found, and run, in
    /// this environment.
    #[must_use]
    pub fn at(root: &Path, environment: Vec<(String, String)>) -> Self {
        Self {
            root: root.to_owned(),
            environment,
        }
    }

    /// A command of the host.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Where a device or socket of the host is.
    pub(super) fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// Where a file is that a person or another command has named: devices are the host's.
    pub(super) fn file(&self, path: &Path) -> PathBuf {
        match path.strip_prefix("/dev") {
            Ok(device) => self.root.join("dev").join(device),
            Err(_) => path.to_owned(),
        }
    }

    /// Whether there is a command of this name.
    pub(super) fn has(&self, program: &str) -> bool {
        let own = self.environment.iter().find(|(name, _)| name == "PATH");
        let path = match own {
            Some((_, path)) => path.into(),
            None => env::var_os("PATH").unwrap_or_default(),
        };
        env::split_paths(&path).any(|dir| dir.join(program).is_file())
    }

    /// Runs a command of the base system, as PATH has it; returns what it printed.
    ///
    /// # Errors
    /// When it cannot be run, fails, or does not end.
    pub(super) fn run(&self, program: &str, arguments: &[&str]) -> Result<String, Error> {
        let command = [&[program], arguments].concat().join(" ");
        let failed = |source| Error::Run {
            command: command.clone(),
            source,
        };
        let mut child = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let begin = Instant::now();
        // What these commands print fits in a pipe: they end without anybody reading.
        while child.try_wait().map_err(failed)?.is_none() {
            if begin.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::Slow { command });
            }
            thread::sleep(GLANCE);
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said.lines().map(str::trim).collect();
        Err(Error::Failed {
            status: output.status.to_string(),
            said: said.join(" "),
            command,
        })
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}
