//! Memory usage of a KVM guest, read from its process in /proc.

use std::{fs, io, path::Path};

use crate::{
    engine::{Error, Process, ProcessDescription, Usage},
    units::Bytes,
};

/// Reads /proc/PID/smaps. Mappings of checkpoints are the guest's memory; all others are its
/// process's.
pub(in crate::engine) fn read(process: Process) -> io::Result<Usage> {
    let text = fs::read_to_string(format!("/proc/{}/smaps", process.pid))?;
    if text.is_empty() {
        // A process that has ended and was not waited for yet has no memory to tell of.
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid))?;
    let mut usage = sum(&text);
    usage.page_tables = status
        .lines()
        .find_map(|line| line.strip_prefix("VmPTE:"))
        .map_or(Bytes(0), kib);
    Ok(usage)
}

/// The error of a guest whose process could not be measured.
pub(in crate::engine) fn not_measured(source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::Gone,
        _ => Error::Io {
            action: "read the guest's memory usage",
            source,
        },
    }
}

/// Describes a guest by its process: its name, its memory, and its checkpoint.
///
/// All of its memory is mapped from memory files of checkpoints. It has them open in the order in
/// which they lie over each other: the last one is the checkpoint's own.
///
/// `None` when the process is gone, or has no memory file: then it is no guest.
///
/// # Errors
/// When it is there and cannot be looked at.
pub(super) fn describe(process: Process) -> io::Result<Option<ProcessDescription>> {
    describe_in(Path::new("/proc"), process.pid)
}

fn describe_in(proc: &Path, pid: i32) -> io::Result<Option<ProcessDescription>> {
    let of_process = proc.join(pid.to_string());
    let Some(maps) = there(fs::read_to_string(of_process.join("maps")))? else {
        return Ok(None);
    };
    let Some(name) = there(fs::read_to_string(of_process.join("comm")))? else {
        return Ok(None);
    };
    let Some(open) = there(fs::read_dir(of_process.join("fd")))? else {
        return Ok(None);
    };
    let mut last: Option<(u32, String)> = None;
    for file in open {
        // The process may end, or close a file, while it is looked at.
        let Some(file) = there(file)? else { break };
        let Some(link) = there(fs::read_link(file.path()))? else {
            continue;
        };
        let number = file.file_name().to_str().and_then(|name| name.parse().ok());
        let bundle = link.to_str().and_then(bundle);
        if let (Some(number), Some(bundle)) = (number, bundle)
            && last.as_ref().is_none_or(|(before, _)| *before < number)
        {
            last = Some((number, bundle.to_owned()));
        }
    }
    Ok(last.map(|(_, checkpoint)| ProcessDescription {
        name: name.trim_end().to_owned(),
        checkpoint,
        memory: maps.lines().filter_map(mapped).sum(),
    }))
}

/// The result of a read from a process; `None` only when the process, or the file that it had, is
/// gone.
pub(in crate::engine) fn there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(e) => match e.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Ok(None),
            _ => Err(e),
        },
    }
}

/// The bundle of a memory file, from its name in a link or a mapping of /proc.
fn bundle(path: &str) -> Option<&str> {
    path.trim_end_matches(" (deleted)").strip_suffix(".ckp")
}

/// The mapping's size, from a line of /proc/PID/maps that maps a memory file.
pub(in crate::engine) fn mapped(line: &str) -> Option<Bytes> {
    let (_, rest) = line.split_once(' ')?;
    bundle(&rest[rest.find('/')?..])?;
    let (start, end) = range(line)?;
    Some(Bytes(end - start))
}

/// First address of a mapping and the one after its last, from its line of /proc/PID/maps.
pub(in crate::engine) fn range(line: &str) -> Option<(u64, u64)> {
    let (range, _) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some((address(start)?, address(end)?))
}

fn sum(smaps: &str) -> Usage {
    let mut usage = Usage::default();
    let mut guest_memory = false;
    for line in smaps.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "Anonymous:" if guest_memory => usage.private = usage.private + kib(value),
            // Pages that are still shared with the nursery and its other children are not dirty
            // for this one alone.
            "Private_Dirty:" if !guest_memory => usage.process = usage.process + kib(value),
            "Rss:" if guest_memory => usage.shared = usage.shared + kib(value),
            key if key.ends_with(':') => {}
            // A mapping begins: "START-END PERMISSIONS OFFSET DEVICE INODE PATH".
            _ => {
                let path = value.splitn(5, ' ').nth(4).unwrap_or("").trim_start();
                guest_memory = path.trim_end_matches(" (deleted)").ends_with(".ckp");
            }
        }
    }
    usage.shared = usage.shared.saturating_sub(usage.private);
    usage
}

fn kib(text: &str) -> Bytes {
    let number = text.trim().trim_end_matches("kB").trim();
    Bytes::kib(number.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_memory_files_are_found() {
        let line =
            "7f0000000000-7f0010000000 rw-p 00000000 fe:00 99     /srv/a b/demo.ckp (deleted)";
        assert_eq!(mapped(line), Some(Bytes::mib(256)));
        assert_eq!(bundle("/srv/a b/demo.ckp (deleted)"), Some("/srv/a b/demo"));
        assert_eq!(mapped("7f00-7f01 r-xp 0 fe:00 9 /usr/bin/brood"), None);
    }

    #[test]
    fn what_cannot_be_read_is_not_absent() {
        let proc = tempfile::tempdir().unwrap();
        let describe = || describe_in(proc.path(), 4711);
        assert_eq!(describe().unwrap(), None, "there is no such process");
        let of_process = proc.path().join("4711");
        fs::create_dir_all(of_process.join("fd")).unwrap();
        let line = "7f0000000000-7f0000010000 rw-p 00000000 fe:00 99 /srv/warm.ckp\n";
        for name in ["maps", "comm"] {
            fs::create_dir(of_process.join(name)).unwrap();
            let _ = describe().unwrap_err();
            fs::remove_dir(of_process.join(name)).unwrap();
            fs::write(of_process.join(name), line).unwrap();
        }
        fs::write(of_process.join("comm"), "web-1\n").unwrap();
        assert_eq!(describe().unwrap(), None, "it has no memory file");
        // What is no link cannot be read as one.
        let file = of_process.join("fd/9");
        fs::write(&file, "").unwrap();
        let _ = describe().unwrap_err();
        fs::remove_file(&file).unwrap();
        for (number, to) in [
            ("4", "/srv/demo.ckp"),
            ("11", "/srv/warm.ckp"),
            ("12", "/x"),
        ] {
            std::os::unix::fs::symlink(to, of_process.join("fd").join(number)).unwrap();
        }
        let described = describe().unwrap().unwrap();
        assert_eq!(
            (&*described.name, &*described.checkpoint, described.memory),
            ("web-1", "/srv/warm", Bytes::kib(64))
        );
        fs::remove_dir_all(of_process.join("fd")).unwrap();
        fs::write(of_process.join("fd"), "").unwrap();
        let _ = describe().unwrap_err();
    }

    #[test]
    fn guest_memory_and_process_are_told_apart() {
        let smaps = "\
00400000-00600000 r-xp 00000000 fe:00 12 /usr/bin/brood
Rss:                 400 kB
Private_Dirty:         8 kB
Anonymous:            68 kB
7f0000000000-7f0010000000 rw-p 00000000 fe:00 99                         /srv/a b/demo.ckp (deleted)
Size:             262144 kB
Rss:                  96 kB
Private_Dirty:         8 kB
Anonymous:            12 kB
VmFlags: rd wr mr mw me nr sd
7ffc0000-7ffd0000 rw-p 00000000 00:00 0                          [stack]
Rss:                  20 kB
Private_Dirty:        20 kB
Anonymous:            20 kB
";
        let usage = sum(smaps);
        assert_eq!(usage.private, Bytes::kib(12));
        assert_eq!(usage.shared, Bytes::kib(84));
        assert_eq!(usage.process, Bytes::kib(28));
    }
}
