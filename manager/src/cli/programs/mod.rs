//! Commands that run programs in guests, copy files, and show consoles: exec, run, cp, logs,
//! console.
//!
//! They talk to a guest's agent themselves and not by the daemon: the guest's folder is this user's,
//! and the broker of its channel lets any number of processes in, the daemon among them. Only what
//! restores, claims, releases or destroys guests goes by [`crate::ops`].

mod console;
mod copy;
mod exec;
mod logs;
mod place;
mod run;
mod session;
mod streams;
mod terminal;

use std::time::Duration;

pub(super) use console::Console;
pub(super) use copy::Copy;
pub(super) use exec::Exec;
pub(super) use logs::Logs;
pub(super) use run::{Guard, Run};

use crate::failure::Failure;

/// How long a guest's agent has to answer, also where many guests share few cores.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Exit codes of a program's command, beside the program's own.
const CODES: &str = "\
Exit codes:
  the program's own; 128 and the number of the signal that ended it
  124  its time was over, and it was killed
  125  brood failed, not the program: standard error says why
  126  the program may not be run      127  there is no such program
  2    the command line is invalid";

/// brood failed, not the program that was to be run.
const OURS: u8 = 125;
/// It may not be run.
const NOT_RUN: u8 = 126;
/// There is none.
const NO_PROGRAM: u8 = 127;

/// The same failure as one of brood's, not the program's.
fn ours(failure: impl Into<Failure>) -> Failure {
    let failure = failure.into();
    let code = match failure.code {
        crate::failure::INTERRUPTED => failure.code,
        _ => OURS,
    };
    Failure { code, ..failure }
}
