//! Program of the nursery in the page tables of its children.
//!
//! A fork copies page tables only for mappings that have pages of the process's own. The program's
//! code and constants have none, so each guest would find them again by some twenty page faults,
//! which took a tenth of a restore. One page of its own in each such mapping, with the file's
//! content, makes the fork copy what the nursery has in use.

use std::{
    fs::{self, File},
    io, iter,
    os::unix::fs::FileExt,
    ptr,
};

use crate::engine::kvm::usage::range;

/// A mapping of a program's file that is not written: code, or constants.
#[derive(Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    /// What of it is in the page tables, in KiB.
    present: u64,
    /// What of it is not the file's: relocated addresses.
    own: u64,
}

/// Takes the program out of this process's page tables, so that what is there later was used since.
///
/// # Errors
/// When the mappings cannot be read. Nothing has changed then.
pub(super) fn forget() -> io::Result<()> {
    for mapping in mappings()? {
        if mapping.own == 0 {
            let length = usize::try_from(mapping.end - mapping.start).expect("it is mapped");
            let start = ptr::with_exposed_provenance_mut(address(&mapping));
            // SAFETY: all of the mapping is as it is in the file and is only read, and so the file
            // gives the same bytes again.
            unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) };
        }
    }
    Ok(())
}

/// Has children that are forked from now on inherit what of the program is in the page tables.
///
/// # Errors
/// When the kernel lets this process not write to its own program. Children find it by page faults
/// then.
pub(super) fn inherit() -> io::Result<()> {
    let memory = File::options()
        .read(true)
        .write(true)
        .open("/proc/self/mem")?;
    let in_use = |mapping: &Mapping| mapping.own == 0 && mapping.present > 0;
    for mapping in mappings()?.into_iter().filter(in_use) {
        // A write through this file passes the mapping's protection, and makes a copy of the page:
        // the mapping is private.
        let mut byte = [0];
        memory.read_exact_at(&mut byte, mapping.start)?;
        memory.write_all_at(&byte, mapping.start)?;
    }
    Ok(())
}

fn address(mapping: &Mapping) -> usize {
    usize::try_from(mapping.start).expect("addresses have 64 bits")
}

/// This process's mappings of its program.
fn mappings() -> io::Result<Vec<Mapping>> {
    fs::read_to_string("/proc/self/smaps").map(|smaps| parse(&smaps))
}

fn parse(smaps: &str) -> Vec<Mapping> {
    let mut all = Vec::new();
    let mut lines = smaps.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((start, end)) = range(line) else {
            continue;
        };
        let mut mapping = Mapping {
            start,
            end,
            ..Mapping::default()
        };
        let attributes = iter::from_fn(|| lines.next_if(|line| range(line).is_none()));
        for attribute in attributes {
            let Some((name, value)) = attribute.split_once(':') else {
                continue;
            };
            let kib = || value.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            match name {
                "Rss" => mapping.present = kib(),
                "Anonymous" | "Swap" => mapping.own += kib(),
                _ => {}
            }
        }
        let of_file = line.contains(" r-xp ") || line.contains(" r--p ");
        if of_file && line.contains('/') {
            all.push(mapping);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use nix::{
        sys::{
            signal::{Signal, kill},
            wait::waitpid,
        },
        unistd::{ForkResult, fork, pause},
    };

    use super::*;

    /// Of how much of the program, in KiB, a child has page tables that is forked now and does
    /// nothing.
    fn inherited() -> u64 {
        // SAFETY: the child makes system calls only.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => loop {
                pause();
            },
            ForkResult::Parent { child } => {
                let smaps = fs::read_to_string(format!("/proc/{child}/smaps")).unwrap();
                kill(child, Signal::SIGKILL).unwrap();
                waitpid(child, None).unwrap();
                present(&parse(&smaps))
            }
        }
    }

    fn present(mappings: &[Mapping]) -> u64 {
        let clean = mappings.iter().filter(|mapping| mapping.own <= 4);
        clean.map(|mapping| mapping.present).sum()
    }

    #[test]
    fn children_inherit_what_is_in_use() {
        let all = present(&mappings().unwrap());
        forget().unwrap();
        let in_use = present(&mappings().unwrap());
        assert!(in_use < all, "{in_use} KiB of {all} KiB");
        let before = inherited();
        inherit().unwrap();
        let after = inherited();
        assert!(after >= in_use, "{after} KiB of {in_use} KiB");
        assert!(before < in_use, "{before} KiB of {in_use} KiB");
    }

    #[test]
    fn mappings_that_are_written_or_no_file_are_no_program() {
        let smaps = "\
55d0c0000000-55d0c0001000 r-xp 00001000 fe:00 12 /usr/bin/brood
Size:                  4 kB
Rss:                   4 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
55d0c0001000-55d0c0003000 r--p 00002000 fe:00 12 /usr/bin/brood
Rss:                   4 kB
Anonymous:             4 kB
Swap:                  4 kB
55d0c0003000-55d0c0004000 rw-p 00004000 fe:00 12 /usr/bin/brood
Rss:                   4 kB
7f0000000000-7f0000001000 r--p 00000000 00:00 0 
Rss:                   4 kB
7f0000002000-7f0000004000 r-xp 00000000 00:00 0 [vdso]
Rss:                   8 kB
";
        let found = parse(smaps);
        let found: Vec<_> = found.iter().map(|m| (m.start, m.present, m.own)).collect();
        assert_eq!(found, [(0x55d0_c000_0000, 4, 0), (0x55d0_c000_1000, 4, 8)]);
    }
}
