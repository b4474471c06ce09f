//! `brood logs`: what a guest's console said.

use std::{
    io::{self, ErrorKind, IsTerminal, Read, Write},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use brood_core::{engine::bounded_log, escaped};
use clap::Args;
use serde_json::json;

use super::session::with_guests;
use crate::{
    cli::{complete, output::json},
    config::Config,
    failure::Failure,
};

/// How often a log that is followed is looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// How often its guest is.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Prints what a guest's console said: its first 8 MiB, also of a guest that has died
///
/// On a terminal, characters that would act on it are escaped.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood logs web-1
  brood logs web-1 --follow
  brood logs web-1 --json
  brood logs web-1 | grep -i panic")]
pub(in crate::cli) struct Logs {
    /// Name or id
    #[arg(add = complete::with(complete::guests))]
    guest: String,
    /// Go on with what it says from now on, until it ends
    #[arg(long, short)]
    follow: bool,
    /// Print a JSON object with all of it, what is no UTF-8 replaced
    #[arg(long, conflicts_with = "follow")]
    json: bool,
}

impl Logs {
    pub(in crate::cli) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let path = with_guests(config, |guests| guests.console_log(&self.guest))?;
        let failed = |e: io::Error| {
            let message = format!("cannot read {}: {e}", path.display());
            Failure::new(&message, None)
        };
        let mut file = bounded_log::open(&path).map_err(failed)?;
        if self.json {
            let mut said = Vec::new();
            file.read_to_end(&mut said).map_err(failed)?;
            json(&json!({ "guest": self.guest, "log": String::from_utf8_lossy(&said) }));
            return Ok(ExitCode::SUCCESS);
        }
        let mut shown = Shown::new();
        let mut buffer = vec![0; 64 * 1024];
        let mut looked = Instant::now();
        // Read once more after its end was seen.
        let mut ended = !self.follow;
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 if ended => break,
                0 => {
                    thread::sleep(INTERVAL);
                    if looked.elapsed() > LOOK_INTERVAL {
                        looked = Instant::now();
                        ended =
                            with_guests(config, |guests| guests.still_runs(&self.guest)).is_err();
                    }
                }
                length => match shown.show(&buffer[..length]) {
                    Err(e) if e.kind() == ErrorKind::BrokenPipe => break,
                    written => written.map_err(|e| {
                        Failure::new(&format!("cannot write to standard output: {e}"), None)
                    })?,
                },
            }
        }
        let _ = shown.finish();
        Ok(ExitCode::SUCCESS)
    }
}

/// Standard output, where a terminal gets escaped text and all else gets bytes.
struct Shown {
    terminal: bool,
    /// What may be the beginning of a character.
    rest: Vec<u8>,
}

impl Shown {
    fn new() -> Self {
        Self {
            terminal: io::stdout().is_terminal(),
            rest: Vec::new(),
        }
    }

    fn show(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.terminal {
            self.rest.extend_from_slice(bytes);
            out.write_all(printable(&mut self.rest).as_bytes())?;
        } else {
            out.write_all(bytes)?;
        }
        out.flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        let text = String::from_utf8_lossy(&self.rest).into_owned();
        io::stdout().write_all(escaped::lines(&text).as_bytes())
    }
}

/// As much of these bytes as is whole characters, escaped; the rest stays.
fn printable(bytes: &mut Vec<u8>) -> String {
    let whole = match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        // The last character is not all there yet.
        Err(e) if e.error_len().is_none() => e.valid_up_to(),
        Err(_) => bytes.len(),
    };
    // A carriage return before a line feed is how consoles end lines.
    let keep = usize::from(whole == bytes.len() && bytes.ends_with(b"\r"));
    let rest = bytes.split_off(whole - keep);
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
    *bytes = rest;
    escaped::lines(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_escaped_however_it_is_cut() {
        let said = "ok\r\nä\u{1b}[2J\r\nend\r\n".as_bytes();
        for cut in 0..said.len() {
            let (first, second) = said.split_at(cut);
            let mut rest = first.to_vec();
            let mut shown = printable(&mut rest);
            rest.extend_from_slice(second);
            shown += &printable(&mut rest);
            assert_eq!(shown, "ok\nä\\u{1b}[2J\nend\n", "{cut}");
            assert!(rest.is_empty());
        }
    }
}
