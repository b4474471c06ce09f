//! The `brood` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The nursery is this program too. It must stay as small as it can, so nothing else is done
    // before it begins.
    #[cfg(target_os = "linux")]
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == brood_core::engine::kvm::NURSERY_COMMAND)
    {
        brood_core::engine::kvm::nursery()
    }
    // And so is the broker of a guest's channel.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == brood_core::agent::BROKER_COMMAND)
    {
        return brood_core::engine::broker();
    }
    brood::cli::main()
}
