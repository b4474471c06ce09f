//! Dry run of a command line: whether the command would accept it, without doing anything. Checks
//! of documents use it.

use crate::{
    COMMANDS, World, bhyve, bhyvectl,
    exit::{EX_USAGE, Exit},
};

/// Whether `command` takes these arguments. `bhyve` and `bhyvectl` only read them, with the
/// configuration files that they name; the others are run in `world`, and change it.
///
/// # Errors
/// What the command says when it refuses.
pub fn accepts(world: &World, command: &str, arguments: &[String]) -> Result<(), String> {
    let refused = |exit: Exit| match exit.code {
        0 => Ok(()),
        code => Err(format!("exit code {code}: {}", exit.message.trim_end())),
    };
    match command {
        "bhyve" => bhyve::check(arguments).or_else(refused),
        "bhyvectl" => bhyvectl::check(arguments).or_else(refused),
        _ if COMMANDS.contains(&command) => {
            let output = world.command(command).args(arguments).output();
            let output = output.map_err(|e| format!("cannot run {command}: {e}"))?;
            if output.status.success() {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{}: {}", output.status, said.trim_end()))
        }
        _ => refused(Exit::saying(EX_USAGE, "there is no such stand-in")),
    }
}
