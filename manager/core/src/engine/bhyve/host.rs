//! Host of the bhyve engine: the paths of its devices, and its commands, each with a time limit.

use std::{
    env,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

/// Names a folder that stands for the host's root, for its devices and sockets. For tests.
pub(super) const ROOT_VARIABLE: &str = "BROOD_BHYVE_ROOT";
/// How long a command may take. All of them ask the kernel for one thing.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a command is looked at while it runs.
const COMMAND_POLL_INTERVAL: Duration = Duration::from_millis(1);

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
        /// Its words on standard error, in one line.
        said: String,
    },
    /// It did not end in time, and was killed.
    #[error("{command}: it did not end within {} s", COMMAND_TIMEOUT.as_secs())]
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
    /// This host, or the folder that `BROOD_BHYVE_ROOT` names.
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

    /// Whether it is the machine that this process runs on, and no fake one.
    pub(super) fn is_this_machine(&self) -> bool {
        self.root == Path::new("/")
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
        self.find(program).is_some()
    }

    /// The file that a command of this name is.
    pub(super) fn find(&self, program: &str) -> Option<PathBuf> {
        let own = self.environment.iter().find(|(name, _)| name == "PATH");
        let path = match own {
            Some((_, path)) => path.into(),
            None => env::var_os("PATH").unwrap_or_default(),
        };
        let mut found = env::split_paths(&path).map(|dir| dir.join(program));
        found.find(|file| file.is_file())
    }

    /// Runs a command of the base system, as PATH has it; returns what it printed.
    ///
    /// # Errors
    /// When it cannot be run, fails, or does not end.
    pub(super) fn run(&self, program: &str, arguments: &[&str]) -> Result<String, Error> {
        self.run_to_end(program, arguments, COMMAND_TIMEOUT, Stdio::null())
    }

    /// The same, with a file that the command has open until it ends, as its standard input.
    ///
    /// # Errors
    /// When it cannot be run, fails, or does not end.
    pub(super) fn run_holding(
        &self,
        file: &File,
        program: &str,
        arguments: &[&str],
    ) -> Result<String, Error> {
        let held = file.try_clone().map_err(|source| Error::Run {
            command: [&[program], arguments].concat().join(" "),
            source,
        })?;
        self.run_to_end(program, arguments, COMMAND_TIMEOUT, held.into())
    }

    /// As above, with a time limit.
    ///
    /// # Errors
    /// When it cannot be run, fails, or does not end in time.
    pub(super) fn run_within(
        &self,
        program: &str,
        arguments: &[&str],
        limit: Duration,
    ) -> Result<String, Error> {
        self.run_to_end(
            program,
            arguments,
            limit.min(COMMAND_TIMEOUT),
            Stdio::null(),
        )
    }

    fn run_to_end(
        &self,
        program: &str,
        arguments: &[&str],
        limit: Duration,
        input: Stdio,
    ) -> Result<String, Error> {
        let command = [&[program], arguments].concat().join(" ");
        let failed = |source| Error::Run {
            command: command.clone(),
            source,
        };
        let mut child = self
            .command(program)
            .args(arguments)
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        // A list of many guests is longer than a pipe holds, so it is read while the command runs.
        let told = reader(child.stdout.take());
        let complaints = reader(child.stderr.take());
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            if begin.elapsed() > limit {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::Slow { command });
            }
            thread::sleep(COMMAND_POLL_INTERVAL);
        };
        // A child of the command may hold the pipes for longer; do not wait for that.
        let patience = limit.saturating_sub(begin.elapsed());
        let text = |pipe: &Receiver<String>| pipe.recv_timeout(patience).unwrap_or_default();
        if status.success() {
            return Ok(text(&told));
        }
        let said = text(&complaints);
        let said: Vec<&str> = said.lines().map(str::trim).collect();
        Err(Error::Failed {
            status: status.to_string(),
            said: said.join(" "),
            command,
        })
    }
}

/// Reads a pipe to its end on a thread of its own.
fn reader(pipe: Option<impl io::Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // After an error, keep what was read before it.
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}
