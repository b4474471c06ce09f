//! Command line: the commands with their options, and the exit codes.

mod bar;
mod checkpoint;
mod claims;
mod complete;
mod completions;
mod config;
mod density;
mod disk;
mod fill;
mod filter;
mod guests;
mod host;
mod image;
mod log;
#[cfg(target_os = "linux")]
mod make;
mod manual;
pub(crate) mod output;
mod policy;
mod pool;
mod programs;
mod progress;
mod restore;
mod serve;
mod state;
mod strays;
mod targets;
#[cfg(feature = "top")]
mod top;
mod values;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{
    Arg, ArgAction, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::{
    config::{Config, Sources},
    failure::{self, Failure},
};

/// Below the list of commands: what no other help repeats.
const GLOBAL_OPTIONS: &str = "\
Options of all commands:
      --config <FILE>    Configuration file [default: BROOD_CONFIG, else the system's]
      --state-dir <DIR>  State folder [default: BROOD_STATE_DIR, else as configured]
      --engine <ENGINE>  Restore checkpoints of this engine only: kvm, qemu or bhyve [default: auto,
                         the engine that made the checkpoint]
      --no-daemon        Do the work in this process, even when a daemon answers [default: as
                         BROOD_DAEMON or the configuration says]
  -v, --verbose          Log to standard error what brood does, and whether the daemon did it";

const EXIT_CODES: &str = "\
Errors go to standard error as text, even with --json.

Exit codes:
  0    all done
  1    nothing was done, or the result is unknown; the error says which
  2    the command line is invalid
  3    partly done: some guests failed, the others are good
  4    refused before anything was started, because it does not fit on this host
  130  interrupted with Ctrl-C; what was done until then stands, and is listed
`brood exec` and `brood run` end with the program's code; with 125 when brood failed itself.

Environment:
  BROOD_CONFIG     configuration file (default: /etc/brood/brood.toml if it exists;
                   on FreeBSD /usr/local/etc/brood.toml)
  BROOD_DAEMON     off: never use the daemon (default: auto, use it when one answers)
  BROOD_ENGINE     as --engine
  BROOD_QEMU_ACCEL kvm, tcg or auto: what executes new QEMU guests (default: auto)
  BROOD_STATE_DIR  state folder (default: /var/db/brood for root, else the XDG state folder)
  BROOD_...        every other setting of the configuration: see `brood config example`";

/// Restores hundreds to thousands of microVMs from one memory checkpoint, sharing every page that
/// no guest has written.
#[derive(Debug, Parser)]
#[command(name = "brood", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    /// Configuration file [default: BROOD_CONFIG, else the system's]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State folder [default: BROOD_STATE_DIR, else as configured]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Restore checkpoints of this engine only: kvm, qemu or bhyve [default: auto, the engine that
    /// made the checkpoint]
    #[arg(long, global = true, value_name = "ENGINE")]
    engine: Option<OsString>,
    /// Do the work in this process, even when a daemon answers [default: as BROOD_DAEMON or the
    /// configuration says]
    #[arg(long, global = true)]
    no_daemon: bool,
    /// Log to standard error what brood does, and whether the daemon did it
    #[arg(long, short, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check whether this host can restore guests, and say what to change
    Doctor(host::Doctor),
    /// Compute how many guests of a checkpoint fit on a host
    Plan(host::Plan),
    /// Make, inspect, verify, list and remove checkpoints
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    /// Build, list, inspect and remove images that checkpoints are booted from
    #[command(subcommand)]
    Image(image::Command),
    #[command(about = "Restore guests from a checkpoint")]
    Restore(restore::Restore),
    #[command(about = "List guests", visible_alias = "ls", alias = "ps")]
    List(guests::List),
    #[command(about = "Show one guest", visible_alias = "inspect")]
    Show(guests::Show),
    /// Send a request to a guest and print its answer
    Ask(guests::Ask),
    #[command(about = "Run a program in a guest")]
    Exec(programs::Exec),
    #[command(about = "Run a program in a guest of its own, which ends with it")]
    Run(programs::Run),
    #[command(
        about = "Copy files and folders into a guest or out of it",
        name = "cp",
        alias = "copy"
    )]
    Copy(programs::Copy),
    #[command(about = "Print what a guest's console said")]
    Logs(programs::Logs),
    #[command(about = "Type on a guest's serial console", alias = "attach")]
    Console(programs::Console),
    /// Ends what a run that was killed has left
    #[command(hide = true)]
    RunGuard(programs::Guard),
    /// Stop guests (SIGSTOP); they keep their memory
    Pause(guests::Pause),
    /// Continue stopped guests (SIGCONT), and wait for their answers
    Resume(guests::Resume),
    #[command(about = "Destroy guests", visible_alias = "rm")]
    Destroy(guests::Destroy),
    /// Suspend a guest into a new checkpoint, and end it
    Suspend(guests::Suspend),
    #[command(subcommand, about = "Manage pools: guests that wait to be claimed")]
    Pool(pool::Command),
    #[command(
        subcommand,
        about = "Find and remove disks that belong to no guest and no checkpoint"
    )]
    Disk(disk::Command),
    #[command(
        subcommand,
        about = "Check the record of guests and pools, and rebuild it when it is damaged"
    )]
    State(state::Command),
    #[command(about = "Measure host memory and latency for growing numbers of guests")]
    Density(density::Density),
    #[command(about = "Show the host, pools and guests, live")]
    #[cfg(feature = "top")]
    Top(top::Top),
    #[command(about = "Serve the API over HTTP")]
    Serve(serve::Serve),
    /// Show and check the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Print a shell's completion script
    Completions(completions::Completions),
    /// Write the manual pages
    #[command(name = "man", hide = true)]
    Manual(manual::Manual),
}

impl Cli {
    fn run(self) -> Result<ExitCode, Failure> {
        let mut sources = Sources::of_process();
        sources.file = self.config;
        if let Some(dir) = self.state_dir {
            sources.flags.insert("state.dir", dir.into_os_string());
        }
        if let Some(engine) = self.engine {
            sources.flags.insert("engine", engine);
        }
        if self.no_daemon {
            sources.flags.insert("daemon", "off".into());
        }
        if !matches!(self.command, Command::Serve(_)) {
            output::start_log(self.verbose);
        }
        let config = || Config::load(&sources);
        match self.command {
            Command::Doctor(command) => command.run(&config()?),
            Command::Plan(command) => command.run(&config()?),
            Command::Checkpoint(command) => command.run(&config()?),
            Command::Image(command) => command.run(&config()?),
            Command::Restore(command) => command.run(&config()?),
            Command::List(command) => command.run(&config()?),
            Command::Show(command) => command.run(&config()?),
            Command::Ask(command) => command.run(&config()?),
            Command::Exec(command) => command.run(&config()?),
            Command::Run(command) => command.run(&config()?),
            Command::Copy(command) => command.run(&config()?),
            Command::Logs(command) => command.run(&config()?),
            Command::Console(command) => command.run(&config()?),
            Command::RunGuard(command) => command.run(&config()?),
            Command::Pause(command) => command.run(&config()?),
            Command::Resume(command) => command.run(&config()?),
            Command::Destroy(command) => command.run(&config()?),
            Command::Suspend(command) => command.run(&config()?),
            Command::Pool(command) => command.run(&config()?),
            Command::Disk(command) => command.run(&config()?),
            Command::State(command) => command.run(&config()?),
            Command::Density(command) => command.run(&config()?),
            #[cfg(feature = "top")]
            Command::Top(command) => command.run(&config()?),
            Command::Serve(command) => command.run(sources),
            Command::Config(command) => command.run(&sources),
            Command::Completions(command) => command.run(),
            Command::Manual(command) => command.run(),
        }
    }
}

/// The command line's grammar, for tests that check command lines without running them.
#[must_use]
pub fn grammar() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Reads the command line of this process. Help hides the options of all commands, which it tells
/// in one place; completions and manual pages have them.
fn parse() -> Result<Cli, clap::Error> {
    let help = Arg::new("help")
        .long("help")
        .short('h')
        .action(ArgAction::Help)
        .help("Print help (`brood --help` lists the options of all commands)")
        .display_order(999);
    let mut command = grammar()
        .mut_args(|arg| arg.hide(true))
        .disable_help_flag(true)
        .arg(help.global(true))
        .override_usage("brood [OPTIONS] <COMMAND>")
        .after_help(format!("{GLOBAL_OPTIONS}\n\n{EXIT_CODES}"));
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // A limit on the size of files (RLIMIT_FSIZE) is an error like a full disk, not the end: what
    // was begun is removed.
    // SAFETY: a signal that is ignored runs no handler.
    let _ = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
    complete::answer();
    let cli = match parse() {
        Ok(cli) => cli,
        // Also help and version, which are asked for and so are output like any other.
        Err(e) => {
            let written = output::print_usage(&e);
            if let Some(tip) = wanted(&e) {
                output::note(format_args!("  hint: {tip}"));
            }
            return told(e.exit_code(), written);
        }
    };
    let code = cli.run().unwrap_or_else(|failure| {
        output::failure(&failure);
        ExitCode::from(failure.code)
    });
    match output::written() {
        Err(lost) if code == ExitCode::SUCCESS => {
            output::failure(&lost);
            ExitCode::from(lost.code)
        }
        _ => code,
    }
}

/// The command that a user means by another tool's word.
fn wanted(usage: &clap::Error) -> Option<&'static str> {
    let Some(ContextValue::String(word)) = usage.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    Some(match &word[..] {
        "stop" => "`brood pause` stops guests, `brood destroy` ends them",
        "kill" | "delete" | "remove" => "`brood destroy` ends guests",
        "start" | "create" => {
            "`brood restore` starts guests, `brood resume` continues stopped ones"
        }
        "status" | "stats" => "`brood list` shows guests, `brood top` what they cost, live",
        "version" => "use `brood --version`",
        "snapshot" | "commit" | "save" => "`brood suspend` makes a checkpoint of a guest",
        "ssh" | "shell" => "`brood exec GUEST -it -- sh` runs a shell in a guest",
        _ => return None,
    })
}

/// The exit code of a command line that ran nothing.
fn told(code: i32, written: Result<(), Failure>) -> ExitCode {
    match written {
        Ok(()) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(lost) => {
            output::failure(&lost);
            ExitCode::from(lost.code)
        }
    }
}
