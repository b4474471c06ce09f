//! Command runner: runs a command to its end and takes its output.
//!
//! The output goes to files, not pipes: a guest that outlives the command and holds its standard
//! output would keep a pipe open for ever.

use std::{
    fs::File,
    io::{self, Read, Seek},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

use super::error::Error;

const POLL_EVERY: Duration = Duration::from_millis(5);

/// Whether the run was interrupted.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches SIGINT, SIGTERM and SIGHUP from here on.
    pub(crate) fn catch() -> Result<Self, Error> {
        let set = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register(signal, Arc::clone(&set)).map_err(Error::io("catch signals"))?;
        }
        Ok(Self(set))
    }

    /// One that never comes: for cleaning up.
    pub(crate) fn never() -> Self {
        Self(Arc::new(AtomicBool::new(false)))
    }

    /// An error if it was.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.0.load(Ordering::Relaxed) {
            Err(Error::Interrupted)
        } else {
            Ok(())
        }
    }
}

/// Runs `command` to its end and returns its standard output. On an interrupt, signals the command
/// to stop and waits for it, so that its result is known.
pub(crate) fn run(command: &mut Command, interrupt: &Interrupt) -> Result<String, Error> {
    interrupt.check()?;
    let shown = shown(command);
    let failed = || format!("run {shown}");
    let scratch = || tempfile::tempfile().map_err(Error::io(failed()));
    let (stdout, stderr) = (scratch()?, scratch()?);
    let mine = |file: &File| file.try_clone().map_err(Error::io(failed()));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(mine(&stdout)?)
        .stderr(mine(&stderr)?)
        // The terminal's Ctrl-C comes to us alone; we pass it on once.
        .process_group(0)
        .spawn()
        .map_err(Error::io(failed()))?;
    let status = wait(&mut child, interrupt).map_err(Error::io(failed()))?;
    interrupt.check()?;
    if !status.success() {
        let stderr = text(stderr).map_err(Error::io(failed()))?;
        return Err(Error::Failed {
            command: shown,
            status: status.to_string(),
            stderr,
        });
    }
    text(stdout).map_err(Error::io(failed()))
}

fn wait(child: &mut Child, interrupt: &Interrupt) -> io::Result<ExitStatus> {
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if !told && interrupt.check().is_err() {
            // It has not been waited for, so the pid is still its own.
            let pid = Pid::from_raw(child.id().cast_signed());
            let _ = kill(pid, Signal::SIGINT);
            told = true;
        }
        thread::sleep(POLL_EVERY);
    }
}

fn text(mut file: File) -> io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// The command line as a reader would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_comes_back_and_a_failure_says_what_was_said() {
        let never = Interrupt::never();
        let sh = |script: &str| run(Command::new("sh").args(["-c", script]), &never);
        assert_eq!(sh("echo yes; echo no >&2").unwrap(), "yes\n");
        let error = sh("echo why >&2; exit 3").unwrap_err().to_string();
        assert_eq!(error, "sh -c echo why >&2; exit 3: exit status: 3\nwhy\n");
    }

    #[test]
    fn a_child_that_stays_does_not_hold_up() {
        let never = Interrupt::never();
        let output = run(
            Command::new("sh").args(["-c", "sleep 2 & echo done"]),
            &never,
        );
        assert_eq!(output.unwrap(), "done\n");
    }

    #[test]
    fn an_interrupt_stops_the_command() {
        let now = Interrupt(Arc::new(AtomicBool::new(false)));
        let later = now.clone();
        let setter = thread::spawn(move || later.0.store(true, Ordering::Relaxed));
        let result = run(Command::new("sleep").arg("60"), &now);
        setter.join().unwrap();
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    }
}
