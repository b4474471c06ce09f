//! Bounded log: a file that its writer can append so many bytes to, and no more.
//!
//! The kernel's limit for a process's files (RLIMIT_FSIZE of setrlimit(2)) is one for all of them.
//! A guest with a disk of its own needs a high one, and could fill its log up to there. So the text
//! of a log begins that much below the limit: what is before it was never written, and takes no
//! space.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};

/// Longest text of a log.
pub const LOG_MAX: u64 = 8 << 20;

/// A log begins at a multiple of this, which is one of each file system's block size.
#[cfg(target_os = "linux")]
const ALIGNMENT: u64 = 64 << 10;

/// Where logs begin for a process that may write other files up to this length. Its limit is
/// [`LOG_MAX`] more.
#[cfg(target_os = "linux")]
pub(super) fn beginning(longest_other: u64) -> u64 {
    longest_other.next_multiple_of(ALIGNMENT)
}

/// Opens a log at the beginning of its text.
///
/// # Errors
/// When there is no such file, or it cannot be read.
pub fn open(path: &Path) -> io::Result<File> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let least = length.saturating_sub(LOG_MAX);
    let data = match lseek(&file, offset(least)?, Whence::SeekData) {
        Ok(data) => u64::try_from(data).map_err(io::Error::other)?,
        // There is none.
        Err(Errno::ENXIO) => length,
        // The file system does not know.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => least,
        Err(e) => return Err(e.into()),
    };
    // It may say so too early.
    let mut at = data;
    let mut piece = vec![0; 64 << 10];
    file.seek(SeekFrom::Start(at))?;
    if least == 0 && data == 0 && length <= LOG_MAX {
        return Ok(file);
    }
    loop {
        let read = file.read(&mut piece)?;
        let first = piece[..read].iter().position(|byte| *byte != 0);
        at += first.unwrap_or(read) as u64;
        if first.is_some() || read == 0 {
            file.seek(SeekFrom::Start(at))?;
            return Ok(file);
        }
    }
}

fn offset(at: u64) -> io::Result<i64> {
    i64::try_from(at).map_err(io::Error::other)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{io::Write, os::unix::fs::MetadataExt, process::Command};

    use super::*;

    /// A process that says more than it may, into a log that begins at `at`.
    fn said(at: u64) -> (tempfile::NamedTempFile, String) {
        let log = tempfile::NamedTempFile::new().unwrap();
        log.as_file().set_len(at).unwrap();
        let limit = (at + LOG_MAX) / 512;
        let say = format!(
            "ulimit -f {limit} && {{ echo first; yes; }} >>{}",
            log.path().display()
        );
        let ended = Command::new("sh").args(["-c", &say]).output().unwrap();
        assert!(!ended.status.success(), "{ended:?}");
        let mut text = String::new();
        open(log.path()).unwrap().read_to_string(&mut text).unwrap();
        (log, text)
    }

    #[test]
    fn a_log_takes_so_much_and_no_more_wherever_it_begins() {
        for other in [0, 1, 1 << 20, 20 << 30] {
            let (log, text) = said(beginning(other));
            assert_eq!(text.len() as u64, LOG_MAX, "{other}");
            assert!(text.starts_with("first\ny\n"), "{other}");
            let taken = log.as_file().metadata().unwrap().blocks() * 512;
            assert!(taken <= LOG_MAX + (1 << 20), "{other}: {taken}");
        }
    }

    #[test]
    fn a_log_without_text_reads_as_empty() {
        for at in [0, beginning(1 << 20), beginning(1 << 30)] {
            let mut log = tempfile::NamedTempFile::new().unwrap();
            log.as_file().set_len(at).unwrap();
            let read = || {
                let mut text = String::new();
                open(log.path()).unwrap().read_to_string(&mut text).unwrap();
                text
            };
            assert_eq!(read(), "");
            log.seek(SeekFrom::End(0)).unwrap();
            log.write_all(b"word\n").unwrap();
            let mut text = String::new();
            open(log.path()).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "word\n", "{at}");
        }
    }
}
