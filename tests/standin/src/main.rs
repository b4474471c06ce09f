//! One binary for all commands: it acts as the command whose name it is called by.

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    brood_standin::run(&env::args().collect::<Vec<_>>())
}
