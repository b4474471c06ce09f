//! `brood console`: a guest's serial console, to type on.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use clap::Args;

use super::{session::with_guests, terminal::RawMode};
use crate::{
    cli::{complete, output::note},
    config::Config,
    failure::Failure,
};

/// Ctrl-], as of telnet(1).
const DETACH: u8 = 0x1d;
/// How long what a guest says is still shown after the end of what is typed, where that is no
/// terminal.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Connects this terminal to a guest's serial console; Ctrl-] ends that, and the guest runs on
///
/// All keys go to the guest, Ctrl-C too. One command at a time may have a guest's console; what it
/// says is in `brood logs`, too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood console web-1
  echo reboot | brood console web-1")]
pub(in crate::cli) struct Console {
    /// Name or id
    #[arg(add = complete::with(complete::guests))]
    guest: String,
}

impl Console {
    pub(in crate::cli) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let guest = &self.guest;
        let line = with_guests(config, |guests| guests.console(guest))?;
        let failed =
            |e: io::Error| Failure::new(&format!("the console of guest {guest} failed: {e}"), None);
        let clone = || line.stream.try_clone().map_err(failed);
        note(format_args!(
            "connected to the console of {guest}; Ctrl-] ends that"
        ));
        let raw = RawMode::set().map_err(failed)?;
        let detached = Arc::new(AtomicBool::new(false));
        type_keys(clone()?, raw.is_some(), Arc::clone(&detached));
        let shown = show(clone()?);
        drop(raw);
        shown.map_err(failed)?;
        if detached.load(Ordering::Relaxed) {
            note(format_args!(
                "\nthe console of {guest} is let go; the guest runs on"
            ));
            return Ok(ExitCode::SUCCESS);
        }
        // The guest's end was closed.
        with_guests(config, |guests| guests.outlives_its_channel(guest))?;
        Err(Failure::new(
            &format!("the console of guest {guest} was closed"),
            None,
        ))
    }
}

/// Shows what the guest says, until the connection is closed.
fn show(mut stream: UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(e) => return Err(e),
        };
        let mut out = io::stdout().lock();
        out.write_all(&buffer[..length])?;
        out.flush()?;
    }
}

/// Hands what is typed on to the guest, on a thread of its own, until the key to detach.
fn type_keys(mut stream: UnixStream, terminal: bool, detached: Arc<AtomicBool>) {
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        let mut buffer = [0; 1024];
        loop {
            let length = match input.read(&mut buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                read => read.unwrap_or(0),
            };
            let typed = &buffer[..length];
            let detach = typed.iter().position(|key| *key == DETACH && terminal);
            let written = stream.write_all(&typed[..detach.unwrap_or(length)]);
            if length == 0 || detach.is_some() || written.is_err() {
                if length == 0 {
                    thread::sleep(LAST_WORDS);
                }
                detached.store(written.is_ok(), Ordering::Relaxed);
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
    });
}
