//! `brood completions`: prints the completion script of a shell.

use std::process::ExitCode;

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::{Cli, complete, output::line};
use crate::failure::Failure;

/// Prints a script that lets a shell complete the words of this command
///
/// Also the names of guests, pools and checkpoints: the shell asks `brood` for them when Tab is
/// pressed. Claims have none: their tokens are recorded nowhere.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood completions bash > /usr/share/bash-completion/completions/brood
  brood completions zsh > /usr/share/zsh/vendor-completions/_brood
  brood completions fish > /usr/share/fish/vendor_completions.d/brood.fish")]
pub(super) struct Completions {
    /// The shell: bash, zsh, fish, elvish or powershell
    #[arg(hide_possible_values = true)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let shell = self.shell.to_string();
        let script = complete::script(&shell).ok_or_else(|| {
            Failure::new(&format!("there is no completion script for {shell}"), None)
        })?;
        line(script);
        Ok(ExitCode::SUCCESS)
    }
}

/// The command line without hidden commands, which the scripts would offer otherwise.
pub(super) fn visible() -> Command {
    let whole = Cli::command();
    let commands = whole.get_subcommands().filter(|sub| !sub.is_hide_set());
    Command::new("brood")
        .version(env!("CARGO_PKG_VERSION"))
        .args(whole.get_arguments())
        .subcommands(commands)
}
