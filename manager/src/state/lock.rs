//! Locks on files of the state folder (flock(2)), held until what they return is dropped.

use std::{fs::File, path::Path};

use nix::fcntl::{Flock, FlockArg};

use super::Error;
use crate::owner_only;

/// Held while a pool is brought to what it should be.
pub(crate) const POOLS: &str = "pools.lock";
/// Held, shared, while a claim is suspended or resumed.
pub(crate) const COLD: &str = "cold.lock";

/// Takes the lock of this name in the state folder `dir`.
///
/// # Errors
/// When its file cannot be made, or when somebody else has it and `how` is not to wait.
pub(crate) fn take(dir: &Path, name: &str, how: FlockArg) -> Result<Flock<File>, Error> {
    let path = dir.join(name);
    let failed = |source| Error::Io {
        action: "take the lock",
        path: path.clone(),
        source,
    };
    let file = owner_only::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(failed)?;
    Flock::lock(file, how).map_err(|(_, e)| failed(e.into()))
}
