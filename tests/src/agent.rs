//! The guest's agent as a process of this machine, behind a unix socket.

use std::{
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command},
};

use brood_core::agent::{Agent, Captured, Channel, protocol::Exec};
use tempfile::TempDir;

use crate::{PATIENCE, binary};

/// An agent, and the socket that it connects to as often as that is closed. It may do as this
/// process may: tests ask it for nothing that would change the machine.
#[derive(Debug)]
pub struct GuestAgent {
    folder: TempDir,
    listener: UnixListener,
    process: Child,
}

impl GuestAgent {
    /// Starts an agent.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start() -> GuestAgent {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("port")).unwrap();
        let process = spawn(&folder);
        GuestAgent {
            folder,
            listener,
            process,
        }
    }

    /// The next connection of the agent.
    ///
    /// # Panics
    /// When the socket fails.
    #[must_use]
    pub fn stream(&self) -> UnixStream {
        self.listener.accept().unwrap().0
    }

    /// A session over the next connection.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn session(&self) -> Agent {
        over(&self.stream())
    }

    /// Kills the agent.
    ///
    /// # Panics
    /// When it is dead already.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again after it was killed.
    pub fn restart(&mut self) {
        self.process = spawn(&self.folder);
    }

    /// A folder for the test's files.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The agent's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for GuestAgent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(folder: &TempDir) -> Child {
    agent_at("--socket", &folder.path().join("port"))
}

/// Starts an agent at a stream of this kind.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn agent_at(option: &str, path: &Path) -> Child {
    let mut command = Command::new(binary::brood_agent());
    command.arg(option).arg(path).spawn().unwrap()
}

/// A session over a connection. Closing that cuts the channel without a word.
///
/// # Panics
/// When no agent answers.
#[must_use]
pub fn over(stream: &UnixStream) -> Agent {
    let channel = Channel::over(stream.try_clone().unwrap()).unwrap();
    Agent::over(channel, PATIENCE).unwrap().with_limit(PATIENCE)
}

/// A program by its words.
#[must_use]
pub fn program(words: &[&str]) -> Exec {
    Exec {
        argv: words.iter().map(|word| (*word).into()).collect(),
        ..Exec::default()
    }
}

/// A line of the shell.
#[must_use]
pub fn shell(line: &str) -> Exec {
    program(&["sh", "-c", line])
}

/// What a line of the shell does, whose output is short.
///
/// # Panics
/// When it cannot be run.
#[must_use]
pub fn run(agent: &Agent, line: &str) -> Captured {
    agent.run(shell(line), 1 << 20).unwrap()
}
