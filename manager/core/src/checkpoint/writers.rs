//! Writers of a sealed file: processes that have it open, or mapped, for writing.
//!
//! A file's stamp does not show what such a process stores through an older mapping until the
//! kernel writes it back, on tmpfs never. But the kernel knows these processes: it grants a lease
//! (`lease.rs`) only on a file that nobody has open for writing. brood asks for such a lease and
//! gives it back at once; a nursery keeps one.

use std::{fs::File, path::Path};

use super::error::Error;

/// Refuses a file that a process may write to. A lease is for a file's owner and for root, and not
/// every file system has them: where there is none to be had, stamps must do.
#[cfg(target_os = "linux")]
pub(super) fn refuse(path: &Path, file: &File) -> Result<(), Error> {
    use std::{thread, time::Duration};

    /// The process that seals a bundle holds the file for a moment more.
    const TRIES: usize = 50;
    const POLL_INTERVAL: Duration = Duration::from_millis(10);

    for _ in 0..TRIES {
        if !is_open_for_writing(file) {
            return Ok(());
        }
        thread::sleep(POLL_INTERVAL);
    }
    Err(Error::OpenForWriting {
        file: path.to_owned(),
        by: find(file),
    })
}

/// Elsewhere there are no leases.
#[cfg(not(target_os = "linux"))]
pub(super) fn refuse(_: &Path, _: &File) -> Result<(), Error> {
    Ok(())
}

#[cfg(target_os = "linux")]
fn is_open_for_writing(file: &File) -> bool {
    use nix::sys::signal::Signal;

    use super::lease::{self, Grant};

    // A process that opens the file for writing just now waits until the lease is given back. The
    // signal is one that is ignored by default.
    let grant = lease::take(file, Signal::SIGURG);
    if grant == Grant::Granted {
        lease::give_back(file);
    }
    grant == Grant::Written
}

/// Processes that have the file open for writing, or mapped so, as far as this one may look.
#[cfg(target_os = "linux")]
fn find(file: &File) -> Vec<String> {
    use std::{fs, os::unix::fs::MetadataExt};

    let Ok(wanted) = file.metadata() else {
        return Vec::new();
    };
    let same = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|facts| (facts.dev(), facts.ino()) == (wanted.dev(), wanted.ino()))
    };
    let opened = |process: &Path| {
        let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten();
        descriptors.flatten().any(|descriptor| {
            let info = process.join("fdinfo").join(descriptor.file_name());
            let info = fs::read_to_string(info).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
            flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
                && same(&descriptor.path())
        })
    };
    let mapped = |process: &Path| {
        let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
        maps.lines().any(|line| {
            // START-END PERMISSIONS OFFSET DEVICE INODE PATH
            let mut words = line.split_whitespace();
            let shared = words.nth(1).is_some_and(|may| may.ends_with('s'));
            let inode = words.nth(2).and_then(|inode| inode.parse().ok());
            shared && inode == Some(wanted.ino())
        })
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((number, entry.path()))
    });
    numbers
        .filter(|(_, process)| opened(process) || mapped(process))
        .map(|(number, process)| {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            format!("{number} ({})", name.trim().escape_default())
        })
        .collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_refused_as_long_as_somebody_may_write_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "sealed").unwrap();
        let file = File::open(&path).unwrap();
        refuse(&path, &file).unwrap();
        let writer = File::options().append(true).open(&path).unwrap();
        let Err(Error::OpenForWriting { by, .. }) = refuse(&path, &file) else {
            panic!("not refused");
        };
        let own = std::process::id().to_string();
        assert!(by.iter().any(|process| process.starts_with(&own)), "{by:?}");
        drop(writer);
        refuse(&path, &file).unwrap();
        // The lease is not kept, so no writer has to wait.
        let begin = std::time::Instant::now();
        drop(File::options().append(true).open(&path).unwrap());
        assert!(begin.elapsed() < std::time::Duration::from_secs(5));
    }
}
