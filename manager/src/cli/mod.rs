//! The command line: what can be asked for, and how it ends.

mod checkpoint;
mod density;
mod disk;
mod failure;
mod guests;
mod host;
mod output;
mod pool;
mod restore;
mod serve;

use std::{io::IsTerminal, process::ExitCode};

use clap::{Parser, Subcommand};

pub(crate) use failure::Failure;

const EXIT_CODES: &str = "\
Exit codes:
  0    everything was done
  1    nothing was done; the error says why
  2    the command line makes no sense
  3    some was done: some guests failed, the others are good
  4    refused before anything was started: it does not fit on this host
  130  interrupted with Ctrl-C; what was done until then stands, and is listed

Environment:
  BROOD_ENGINE     kvm or bhyve (default: kvm on Linux, else bhyve); one for each state folder
  BROOD_STATE_DIR  folder of the state (default: /var/db/brood for root, else the XDG state folder)";

/// Restores hundreds to thousands of microVMs from one memory checkpoint, sharing every page that
/// no guest has written.
#[derive(Debug, Parser)]
#[command(name = "brood", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether this host can do mass restore, and what to change
    Doctor(host::Doctor),
    /// Say how many guests of a checkpoint fit on a host
    Plan(host::Plan),
    /// Make, look at, check, list and remove checkpoints
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    /// Restore guests from a checkpoint
    Restore(restore::Restore),
    /// List all guests
    List(guests::List),
    /// Show one guest
    Show(guests::Show),
    /// Put a request to a guest and print its answer
    Ask(guests::Ask),
    /// Stop guests (SIGSTOP); they keep their memory
    Pause(guests::Pause),
    /// Let stopped guests run on (SIGCONT), until they answer
    Resume(guests::Resume),
    /// End guests for good
    Destroy(guests::Destroy),
    /// Suspend a guest into a new checkpoint, and end it
    Suspend(guests::Suspend),
    /// Keep pools of guests that wait to be claimed
    #[command(subcommand)]
    Pool(pool::Command),
    /// Find and remove disks that belong to no guest and no checkpoint
    #[command(subcommand)]
    Disk(disk::Command),
    /// Measure host memory and latency for growing numbers of guests
    Density(density::Density),
    /// Serve the API over HTTP
    Serve(serve::Serve),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // A reader that went away (`brood list | head`) ends the output, not with a panic.
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Doctor(command) => command.run(),
        Command::Plan(command) => command.run(),
        Command::Checkpoint(command) => command.run(),
        Command::Restore(command) => command.run(),
        Command::List(command) => command.run(),
        Command::Show(command) => command.run(),
        Command::Ask(command) => command.run(),
        Command::Pause(command) => command.run(),
        Command::Resume(command) => command.run(),
        Command::Destroy(command) => command.run(),
        Command::Suspend(command) => command.run(),
        Command::Pool(command) => command.run(),
        Command::Disk(command) => command.run(),
        Command::Density(command) => command.run(),
        Command::Serve(command) => command.run(),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            failure.print(std::io::stderr().is_terminal());
            ExitCode::from(failure.code)
        }
    }
}
