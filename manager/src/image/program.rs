//! Programs that a guest without libraries can run: the agent's and busybox.

use std::{
    env,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::Error;

/// The agent's program.
pub(super) const AGENT_PROGRAM: &str = "brood-agent";

/// The agent's program that was installed or built with this program.
pub(crate) fn agent_beside_program() -> Result<PathBuf, Error> {
    let program = env::current_exe().map_err(Error::io("find", Path::new("this program")))?;
    let folder = program.parent().unwrap_or(Path::new("/"));
    let target = folder.parent().unwrap_or(Path::new("/"));
    let places = [
        // As tools/agent builds it: where a plain build has left one too, that is not static.
        target
            .join("x86_64-unknown-linux-gnu/agent")
            .join(AGENT_PROGRAM),
        folder.join(AGENT_PROGRAM),
        // As packages install it.
        target.join("lib/brood").join(AGENT_PROGRAM),
    ];
    if let Some(found) = places.iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    let looked: Vec<_> = places
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    Err(Error::NoAgent(looked.join(", ")))
}

/// Reads a program, and refuses one that needs libraries: the guest has none.
pub(super) fn read_static(file: &Path) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    File::open(file)
        .and_then(|mut open| open.read_to_end(&mut content))
        .map_err(Error::io("read", file))?;
    let refuse = |reason| Error::Program {
        file: file.to_owned(),
        reason,
    };
    match needs_interpreter(&content) {
        Some(false) => Ok(content),
        Some(true) => Err(refuse("it is not static, and the guest has no libraries")),
        None => Err(refuse("it is no program for x86-64 Linux")),
    }
}

/// Whether an ELF program for x86-64 names an interpreter, the dynamic linker (elf(5)); none when it
/// is no such program.
fn needs_interpreter(elf: &[u8]) -> Option<bool> {
    const MACHINE: u16 = 62;
    const INTERPRETER: u32 = 3;
    let bytes = |at: usize, count: usize| elf.get(at..at.checked_add(count)?);
    let number = |at: usize, count: usize| -> Option<u64> {
        let bytes = bytes(at, count)?.iter().rev();
        Some(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    if bytes(0, 6)? != b"\x7fELF\x02\x01" || number(18, 2)? != u64::from(MACHINE) {
        return None;
    }
    let table = usize::try_from(number(32, 8)?).ok()?;
    let (size, count) = (number(54, 2)?, number(56, 2)?);
    for entry in 0..count {
        let at = table.checked_add(usize::try_from(entry * size).ok()?)?;
        if number(at, 4)? == u64::from(INTERPRETER) {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn static_programs_are_told_from_others() {
        // This very test has an interpreter.
        let this = fs::read(env::current_exe().unwrap()).unwrap();
        assert_eq!(needs_interpreter(&this), Some(true));
        assert_eq!(needs_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(needs_interpreter(&this[..20]), None);
        assert_eq!(needs_interpreter(b""), None);
        // A header that says where its table is, and there is none.
        assert_eq!(needs_interpreter(&this[..64]), None);
    }
}
