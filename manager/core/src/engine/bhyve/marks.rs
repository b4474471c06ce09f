//! Marks of bhyve guests' processes: the virtual machine's name in the command line (bhyve sets its
//! title to `bhyve: NAME (bhyve)`), and the run folder as the working folder.

use std::{
    io,
    path::Path,
    process::{Command, Output},
};

use super::restore::VM_PREFIX;
use crate::{
    engine::{Process, process},
    guest_id::GuestId,
};

/// A guest's process, found by its marks.
#[derive(Debug)]
pub(super) struct MarkedProcess {
    pub(super) id: GuestId,
    pub(super) process: Process,
    /// Its command line, which may be but a title.
    pub(super) command: String,
}

/// Guests' processes that work in a run folder, which may be gone itself.
///
/// # Errors
/// When processes cannot be looked at.
pub(super) fn find(run_dir: &Path) -> io::Result<Vec<MarkedProcess>> {
    let run_dir = process::absolute(run_dir)?;
    let mut all = of_all_folders()?;
    // A process whose folder may not be seen is another user's.
    all.retain(|marked| marked.process.works_in(&run_dir));
    Ok(all)
}

/// Guests' processes, whatever run folder they work in.
///
/// # Errors
/// When processes cannot be looked at.
pub(super) fn of_all_folders() -> io::Result<Vec<MarkedProcess>> {
    let output = ps(&["-ax", "-o", "pid=,args="])?;
    if !output.status.success() {
        return Err(failed(&output));
    }
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((pid, id, command)) = marked(line) else {
            continue;
        };
        let Some(process) = Process::with_pid(pid)? else {
            continue;
        };
        if process.may_live() {
            let command = command.to_owned();
            found.push(MarkedProcess {
                id,
                process,
                command,
            });
        }
    }
    Ok(found)
}

fn ps(arguments: &[&str]) -> io::Result<Output> {
    let output = Command::new("ps").arg("-ww").args(arguments).output();
    output.map_err(|e| io::Error::new(e.kind(), format!("ps: {e}")))
}

fn failed(output: &Output) -> io::Error {
    let said = String::from_utf8_lossy(&output.stderr);
    io::Error::other(format!("ps: {}: {}", output.status, said.trim()))
}

/// The process, guest and command line of a line of ps(1), when it is a guest's.
fn marked(line: &str) -> Option<(i32, GuestId, &str)> {
    let (pid, command) = line.trim().split_once(' ')?;
    let mut words = command.split_whitespace();
    let program = words.next()?.rsplit('/').next()?;
    // The shell that becomes bhyve has all of its words, and comes before it.
    if !["bhyve", "bhyve:", "sh"].contains(&program) {
        return None;
    }
    let id = words.find_map(|word| word.strip_prefix(VM_PREFIX)?.parse().ok())?;
    Some((pid.parse().ok()?, id, command.trim()))
}

/// The bundle that a guest was restored from, when its command line says so.
pub(super) fn checkpoint(command: &str) -> Option<String> {
    let (_, rest) = command.split_once(" -r ")?;
    let (file, _) = rest.split_once(" -o ")?;
    file.strip_suffix(".ckp").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_process_is_known_by_its_title_or_its_words() {
        let id = "16f31da1b4e7e9c0".parse::<GuestId>().unwrap();
        for line in [
            " 4711 bhyve: brood-16f31da1b4e7e9c0 (bhyve)",
            "4711 bhyve -k /s/run/x/conf -r /ckp/web.ckp -H -A -P brood-16f31da1b4e7e9c0",
            "4711 /bin/sh -c umask 077 sh /s/pid -- bhyve -k conf brood-16f31da1b4e7e9c0",
        ] {
            let (pid, found, _) = marked(line).unwrap();
            assert_eq!((pid, found), (4711, id), "{line}");
        }
        assert_eq!(
            checkpoint("bhyve -k /s/conf -r /my ckp/web.ckp -o a=b -P brood-1").as_deref(),
            Some("/my ckp/web")
        );
        assert_eq!(checkpoint("bhyve: brood-16f31da1b4e7e9c0 (bhyve)"), None);
        for other in [
            "4711 bhyve: mine (bhyve)",
            "4711 bhyve: brood-nonsense (bhyve)",
            "4711 vi brood-16f31da1b4e7e9c0",
            "4711 bhyvectl --destroy --vm=brood-16f31da1b4e7e9c0",
            "bhyve",
        ] {
            assert_eq!(marked(other), None, "{other}");
        }
    }
}
