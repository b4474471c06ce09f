//! Turns for tests that restore hundreds of guests: one at a time, whichever runner starts them.

use std::{env, fs::File};

use nix::fcntl::{Flock, FlockArg};

/// Held by the one test that may restore a crowd now.
#[derive(Debug)]
pub struct Crowd(#[expect(dead_code, reason = "held")] Flock<File>);

/// Waits for this test's turn to restore a crowd of guests: about 200 or more.
///
/// # Panics
/// When the lock cannot be made.
#[must_use]
pub fn crowd() -> Crowd {
    // One for the machine: several runs of the tests must not crowd it together either.
    let path = env::temp_dir().join("brood-tests-crowd.lock");
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .expect("the temporary folder can be written");
    Crowd(Flock::lock(file, FlockArg::LockExclusive).expect("a lock can be waited for"))
}
