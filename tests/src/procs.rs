//! Processes of a state folder, found without brood's own help: nurseries and guests work in its
//! run folder.

use std::{fs, path::Path};

use nix::{sys::signal::Signal, unistd::Pid};

use crate::Home;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proc {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// Its session, which is the process id of the process that began it.
    pub session: i32,
    /// Processor time that it has used, in clock ticks.
    pub ticks: u64,
    /// State letter, as proc_pid_stat(5) has it.
    pub state: char,
    /// Its command line, words parted by blanks.
    pub command: String,
}

impl Proc {
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        // Fields 14 and 15, user and system time.
        let user: u64 = fields.nth(7)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(Self {
            pid,
            parent,
            session,
            ticks: user + system,
            state,
            command: String::from_utf8_lossy(&command)
                .replace('\0', " ")
                .trim()
                .to_owned(),
        })
    }

    /// Whether it is a nursery and not a guest: nurseries begin a session, and their guests stay in
    /// it. A bhyve and a QEMU begin one too, before they become what they are.
    #[must_use]
    pub fn is_nursery(&self) -> bool {
        let guests = ["bhyve ", "bhyve: ", "/bin/sh ", "qemu-system-x86_64 "];
        self.pid == self.session && !guests.iter().any(|name| self.command.starts_with(name))
    }

    /// Whether it is stopped.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.state == 'T'
    }
}

fn all() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .expect("/proc is there")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Processes that work in the run folder of `state`: its guests and nurseries. Zombies are none.
#[must_use]
pub fn processes_in(state: &Path) -> Vec<Proc> {
    let run = state.join("run");
    all()
        .filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == run))
        .filter_map(Proc::read)
        .filter(|proc| proc.state != 'Z')
        .collect()
}

/// Processes that work for a home, however they came to be: those with its state folder in their
/// environment, and those that work in its run folder. Zombies are none, and neither is this
/// process.
#[must_use]
pub fn processes_of(home: &Home) -> Vec<Proc> {
    let state = home.state();
    let mark = format!("BROOD_STATE_DIR={}", state.display());
    let named = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == mark.as_bytes())
    };
    let mut found = processes_in(&state);
    let known: Vec<i32> = found.iter().map(|process| process.pid).collect();
    let others = all().filter(|pid| !known.contains(pid)).filter(named);
    found.extend(others.filter_map(Proc::read));
    found.retain(|process| process.state != 'Z' && process.pid != std::process::id().cast_signed());
    found
}

/// Sends a signal; a process that is gone already is no error.
///
/// # Panics
/// When it may not be sent.
pub fn signal(pid: i32, signal: Signal) {
    match nix::sys::signal::kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(e) => panic!("cannot send {signal} to {pid}: {e}"),
    }
}
