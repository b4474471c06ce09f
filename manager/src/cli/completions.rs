//! `brood completions`

use std::process::ExitCode;

use clap::{Args, Command, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, Failure, output::line};

/// Prints a script that lets a shell complete the words of this command
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
        let mut script = Vec::new();
        generate(self.shell, &mut visible(), "brood", &mut script);
        line(String::from_utf8_lossy(&script).trim_end());
        Ok(ExitCode::SUCCESS)
    }
}

/// The command line without what is hidden, which scripts would offer all the same.
fn visible() -> Command {
    let whole = Cli::command();
    let commands = whole.get_subcommands().filter(|sub| !sub.is_hide_set());
    Command::new("brood")
        .version(env!("CARGO_PKG_VERSION"))
        .args(whole.get_arguments())
        .subcommands(commands)
}
