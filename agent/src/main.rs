//! The agent of brood in a guest: answers the host on one byte stream.
//!
//! A thread reads the stream and begins requests, a thread writes, and each request that may wait
//! has a worker of its own while it runs: an agent without work is a few threads that sleep.
//! `docs/agent.md` describes what is said.

mod call;
mod failure;
mod files;
mod options;
mod outbox;
mod port;
mod process;
mod serve;
mod sessions;
mod steps;
mod system;
mod wake;
mod workers;

use std::{process::ExitCode, sync::Arc};

use options::{Command, Options};

/// Has glibc's allocator keep one arena for all threads (mallopt(3)): each would be pages of its own
/// in every clone.
fn share_arena() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt(3) takes numbers only, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

fn main() -> ExitCode {
    share_arena();
    match Options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Serve(target)) => {
            let sessions = Arc::new(sessions::Sessions::new(system::random()));
            serve::serve(&target, &sessions)
        }
        Ok(Command::Print(text)) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}; see brood-agent --help");
            ExitCode::from(2)
        }
    }
}
