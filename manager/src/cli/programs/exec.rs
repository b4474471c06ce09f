//! `brood exec`: runs a program in a guest.

use std::{ffi::OsString, process::ExitCode, time::Duration};

use brood_core::agent::{
    ProgramChoice,
    protocol::{self, OsBytes},
};
use clap::Args;

use super::{
    CODES, ours,
    session::GuestSession,
    streams::{self, End},
    terminal,
};
use crate::{
    api::programs::{ExecAnswer, code_of},
    cli::{complete, output::json, values::timeout},
    config::Config,
    failure::{Failure, INTERRUPTED},
};

/// Runs a program in a guest: its output, error output and exit code are those of the command
///
/// The program gets no input unless -i is given. Ctrl-C and other signals to end go to the program;
/// the third one kills it. When the command is killed, or nobody reads its output any more, the
/// program is killed with its process group. It needs a guest with brood-agent: one of a checkpoint
/// that `brood checkpoint make` made.
#[derive(Debug, Args)]
#[command(after_help = after_exec())]
pub(in crate::cli) struct Exec {
    /// Name or id
    #[arg(add = complete::with(complete::guests))]
    guest: String,
    #[command(flatten)]
    program: Program,
    /// The program and its arguments, behind --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How a program is run.
#[derive(Debug, Args)]
pub(super) struct Program {
    /// Give it this command's standard input
    #[arg(long, short)]
    interactive: bool,
    /// Give it a terminal, of the size of this one
    #[arg(long, short)]
    tty: bool,
    /// Set a variable of its environment; repeat the option for more
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Folder that it starts in [default: the image's, or its user's home]
    #[arg(long, short = 'w', value_name = "DIR")]
    cwd: Option<OsString>,
    /// Run it as this user of the guest, by name or number [default: the image's, or root]
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Kill it, with its process group, after this time [default: never]
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    timeout: Option<Duration>,
    /// Print a JSON object when it has ended: code, output, error, of 1 MiB each at most
    #[arg(long, conflicts_with_all = ["tty", "interactive"])]
    json: bool,
}

fn after_exec() -> String {
    format!(
        "{CODES}\n\nExamples:\n  brood exec web-1 -- uname -a\n  brood exec web-1 -it -- sh\n  \
         brood exec web-1 -i -- tar -x -C /srv < files.tar\n  \
         brood exec web-1 --env LANG=C --cwd /srv --timeout 30s -- make test\n  \
         brood exec web-1 --json -- df -h"
    )
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it is not KEY=VALUE".to_owned()),
    }
}

impl Program {
    /// Runs it, with the streams of this process; the exit code.
    pub(super) fn run(
        &self,
        session: &GuestSession<'_>,
        choice: ProgramChoice,
        words: &[OsString],
    ) -> Result<u8, Failure> {
        let request = self.request(words);
        let limit = request.limit_ms.map(|ms| Duration::from_millis(ms.into()));
        if self.json {
            let process = session.agent.start(choice, request);
            let answer = process.and_then(|process| ExecAnswer::of(&process, limit));
            let answer = answer.map_err(|e| session.program_failure(&e))?;
            json(&answer);
            return Ok(answer.code);
        }
        let end = streams::run(&session.agent, choice, request);
        Ok(code(&end.map_err(|e| session.program_failure(&e))?))
    }

    fn request(&self, words: &[OsString]) -> protocol::Exec {
        let mut env: Vec<(OsBytes, OsBytes)> = Vec::new();
        let known = self.env.iter().any(|(key, _)| key == "TERM");
        if self.tty
            && !known
            && let Some(term) = std::env::var_os("TERM")
        {
            env.push(("TERM".into(), term.into()));
        }
        let given = self.env.iter();
        env.extend(given.map(|(key, value)| (OsBytes::from(&**key), OsBytes::from(&**value))));
        protocol::Exec {
            argv: words.iter().cloned().map(OsBytes::from).collect(),
            env,
            cwd: self.cwd.clone().map(OsBytes::from),
            user: self.user.clone(),
            input: self.interactive,
            terminal: self.tty.then(terminal::size),
            limit_ms: self
                .timeout
                .map(|limit| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX)),
            keep: false,
        }
    }
}

impl Exec {
    pub(in crate::cli) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let session = GuestSession::begin(config, &self.guest).map_err(ours)?;
        let code = self
            .program
            .run(&session, ProgramChoice::Given, &self.command)?;
        Ok(ExitCode::from(code))
    }
}

/// The exit code of a command whose program came to this end.
fn code(end: &End) -> u8 {
    match end {
        End::Ended(ended) => code_of(*ended),
        // As a program that SIGPIPE ends.
        End::NoReader => 128 + 13,
        End::Insisted => INTERRUPTED,
    }
}
