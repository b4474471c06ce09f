//! Path of the `brood` binary under test.

use std::{env, path::PathBuf};

/// The binary under test: `BROOD_BINARY`, else the one in the folder that this test was built into
/// (for the test `target/PROFILE/deps/TEST` that is `target/PROFILE/brood`).
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn brood() -> PathBuf {
    if let Some(path) = env::var_os("BROOD_BINARY") {
        return path.into();
    }
    nearby("brood", "brood")
}

/// The stand-in of FreeBSD's commands, from the folder that this test was built into.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn standin() -> PathBuf {
    nearby("standin", "brood-standin")
}

/// The guest's agent, from the folder that this test was built into.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn brood_agent() -> PathBuf {
    nearby("brood-agent", "brood-agent")
}

fn nearby(name: &str, package: &str) -> PathBuf {
    let test = env::current_exe().expect("a test knows where it is");
    let found = test
        .ancestors()
        .skip(1)
        .take(3)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "there is no {name} near {}: build it first with `cargo build -p {package}`, for the \
             same profile and target folder",
            test.display()
        )
    })
}
