//! Blocks of one file for another: shared where the file system can do that, else copied.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};
#[cfg(target_os = "linux")]
use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt};

#[cfg(target_os = "linux")]
use nix::fcntl::OFlag;
use nix::{
    errno::Errno,
    fcntl::copy_file_range,
    unistd::{Whence, lseek},
};

#[cfg(target_os = "linux")]
use crate::shared_blocks::share_blocks;
use crate::{
    checkpoint::{Watch, hash},
    units::Bytes,
};

/// Copied at a time where the kernel does not copy by itself.
const CHUNK: usize = 1 << 20;
/// Copied by one call of the kernel's; between two of them it is asked whether to go on.
const MOST: i64 = 32 << 20;

/// Checks whether a file in a folder can share the blocks of another, by an unnamed file.
#[cfg(target_os = "linux")]
pub(super) fn can_share(from: &File, dir: &Path) -> io::Result<()> {
    let nameless = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_TMPFILE.bits())
        .open(dir);
    match nameless {
        Ok(to) => share_blocks(from, &to),
        // It has no such files, and will tell with the first clone.
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(e) => Err(e),
    }
}

/// Elsewhere nothing promises to share.
#[cfg(not(target_os = "linux"))]
pub(super) fn can_share(_from: &File, _dir: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Copies a file, its holes left out, into an empty one.
///
/// # Errors
/// What the files answer, and [`checkpoint::is_interrupted`](crate::checkpoint::is_interrupted) when
/// `watch` ends it.
pub(in crate::disk) fn copy(from: &File, to: &File, watch: Watch<'_>) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let length = i64::try_from(length).map_err(io::Error::other)?;
    let mut at = 0;
    while at < length {
        // The next run of data, lseek(2).
        at = match lseek(from, at, Whence::SeekData) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::ENXIO) => break,
            // A file system that does not know its holes.
            Err(Errno::EINVAL) => at,
            Err(e) => return Err(e.into()),
        };
        let end = lseek(from, at, Whence::SeekHole).unwrap_or(length);
        let end = end.min(at.saturating_add(MOST));
        copy_run(from, to, at, end)?;
        hash::go_on(watch, Bytes(bytes(end)?), Bytes(bytes(length)?))?;
        at = end;
    }
    Ok(())
}

/// Copies `[at, end)`, inside the kernel where it can (copy_file_range(2)).
fn copy_run(from: &File, to: &File, at: i64, end: i64) -> io::Result<()> {
    let (mut read, mut written) = (at, at);
    while read < end {
        let length = usize::try_from(end - read).map_err(io::Error::other)?;
        match copy_file_range(from, Some(&mut read), to, Some(&mut written), length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EINVAL) => {
                return copy_by_hand(from, to, read, end);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn bytes(offset: i64) -> io::Result<u64> {
    u64::try_from(offset).map_err(io::Error::other)
}

fn copy_by_hand(from: &File, to: &File, at: i64, end: i64) -> io::Result<()> {
    let (mut at, end) = (bytes(at)?, bytes(end)?);
    let mut buffer = vec![0; CHUNK];
    while at < end {
        let most = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
        let read = match from.read_at(&mut buffer[..most], at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        to.write_all_at(&buffer[..read], at)?;
        at += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        ops::ControlFlow,
        os::unix::fs::MetadataExt,
        sync::atomic::{AtomicU64, Ordering},
    };

    use super::*;
    use crate::checkpoint::{Progress, is_interrupted, unwatched};

    #[test]
    fn a_copy_can_be_called_off() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(&vec![7; 70 << 20], 0).unwrap();
        let told = AtomicU64::new(0);
        let watch = |progress: Progress| {
            told.store(progress.done.0, Ordering::Relaxed);
            ControlFlow::Break(())
        };
        let ended = copy(&from, &to, &watch).unwrap_err();
        assert!(is_interrupted(&ended), "{ended}");
        assert_eq!(told.into_inner(), 32 << 20);
        assert!(to.metadata().unwrap().blocks() < 80 << 11, "less than all");
    }

    #[test]
    fn a_copy_has_the_same_bytes_and_holes() {
        let (from, by_kernel) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(b"begin", 3).unwrap();
        from.write_all_at(&[7; 100_000], 8 << 20).unwrap();
        from.set_len(20 << 20).unwrap();
        copy(&from, &by_kernel, &unwatched).unwrap();
        let by_hand = tempfile::tempfile().unwrap();
        by_hand.set_len(20 << 20).unwrap();
        copy_by_hand(&from, &by_hand, 0, 20 << 20).unwrap();
        let content = |file: &File| {
            let mut content = vec![0; 20 << 20];
            file.read_exact_at(&mut content, 0).unwrap();
            content
        };
        assert!(content(&from) == content(&by_kernel));
        assert!(content(&from) == content(&by_hand));
        let blocks = |file: &File| file.metadata().unwrap().blocks();
        assert!(
            blocks(&by_kernel) <= blocks(&from) + 16,
            "{} blocks",
            blocks(&by_kernel)
        );
        assert_eq!(by_kernel.metadata().unwrap().len(), 20 << 20);
    }
}
