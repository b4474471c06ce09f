//! Strays: guests without a record, because their state folder or their record was lost. brood
//! finds them by their processes, or by what is left on the host once those have ended.

use std::{collections::HashSet, path::Path, time::Duration};

use nix::sys::signal::Signal;

use super::{Error, Guests};
use crate::{
    engine::{self, Engine, GuestRef, NEVER, Process, Stray, process},
    state::{RowState, State},
};

/// How long a killed process may take to go.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Guests of a state folder that have no record in it; the folder need not exist. A guest that
/// still answers is recorded again, and is no stray.
///
/// # Errors
/// When there is a record that cannot be read, or processes cannot be looked at.
pub fn strays(dir: &Path, engine: &dyn Engine) -> Result<Vec<Stray>, Error> {
    let (mut known, mut coming, mut ids) = (HashSet::new(), HashSet::new(), HashSet::new());
    let has_record = dir.join(crate::state::DATABASE).exists();
    if has_record {
        let mut state = State::open_to_look(dir)?;
        let mut guests = Guests {
            state: &mut state,
            engine,
            cancelled: &NEVER,
        };
        for guest in guests.list()? {
            known.extend(guest.row.process);
            // A recorded guest, dead or not, can be removed by its name.
            ids.insert(guest.row.id);
            if guest.row.state == RowState::Restoring {
                coming.insert(short(&guest.row.name).to_owned());
            }
        }
    }
    let run_dir = dir.join("run");
    let mut found = engine.strays(&run_dir)?;
    // Only now: a process that was seen and whose template's lock is free is no template's.
    let templates = engine.sweep_templates(&run_dir)?;
    found.retain(|stray| !stray.id.is_some_and(|id| templates.contains(&id)));
    found.retain(|stray| {
        let is_known = match &stray.id {
            Some(id) => ids.contains(id),
            None => coming.contains(&stray.name),
        };
        !stray
            .process
            .is_some_and(|process| known.contains(&process))
            && !is_known
    });
    if found.is_empty() || !has_record {
        return Ok(found);
    }
    // A guest may have come between the two looks: then it is recorded now.
    let rows = State::open_to_look(dir)?.guests()?;
    let recorded: HashSet<Process> = rows.iter().filter_map(|row| row.process).collect();
    found.retain(|stray| {
        let by_process = stray
            .process
            .is_some_and(|process| recorded.contains(&process));
        let by_id = rows.iter().any(|row| Some(row.id) == stray.id);
        !by_process && !by_id
    });
    Ok(found)
}

/// What became of strays that were to be ended.
#[derive(Debug, Default)]
pub struct EndedStrays {
    /// Names of the guests that are gone.
    pub names: Vec<String>,
    /// Guests that are left, and why.
    pub left: Vec<(String, Error)>,
}

/// Ends strays. A stray that cannot be ended does not hold up the others.
///
/// # Errors
/// When none could be ended.
pub fn destroy_strays(
    dir: &Path,
    engine: &dyn Engine,
    strays: &[Stray],
) -> Result<EndedStrays, Error> {
    let mut ended = EndedStrays::default();
    for stray in strays {
        let gone = end(stray).and_then(|()| match &stray.id {
            Some(id) => engine
                .forget_stray(GuestRef::new(&dir.join("run"), id))
                .map_err(|e| Error::engine("remove what is left of", &stray.name, e)),
            None => Ok(()),
        });
        match gone {
            Ok(()) => ended.names.push(stray.name.clone()),
            Err(error) => ended.left.push((stray.name.clone(), error)),
        }
    }
    if ended.names.is_empty() && !ended.left.is_empty() {
        return Err(ended.left.swap_remove(0).1);
    }
    Ok(ended)
}

fn end(stray: &Stray) -> Result<(), Error> {
    let failed = |source| {
        let source = engine::Error::Io {
            action: "kill its process",
            source,
        };
        Error::engine("destroy", &stray.name, source)
    };
    let Some(process) = stray.process else {
        return Ok(());
    };
    let Some(handle) = process.open().map_err(failed)? else {
        return Ok(());
    };
    process::send(&handle, Signal::SIGKILL).map_err(failed)?;
    if process::wait_for_end(&handle, EXIT_TIMEOUT).map_err(failed)? {
        return Ok(());
    }
    let source = engine::Error::Timeout(EXIT_TIMEOUT);
    Err(Error::engine("see the end of", &stray.name, source))
}

/// A name as a process has it.
fn short(name: &str) -> &str {
    // Names are ASCII.
    name.get(..15).unwrap_or(name)
}
