//! Copy from file to file, inside the file system where it can do that.

use std::{fs::File, io, os::unix::fs::FileExt};

use nix::fcntl::copy_file_range;

use super::hash::interrupted;
use crate::faults::{self, Point};

/// Copied at a time: some ten milliseconds, unless the disk is slow.
const PIECE: usize = 16 << 20;

/// Copies `size` bytes from one file's offset to another's. On file systems that share extents
/// this costs nothing. `go_on` is asked every few MiB; when it says no, the copy ends as
/// interrupted.
///
/// # Errors
/// What reading or writing answers; an unexpected end when `from` ends before.
pub(crate) fn copy_range(
    from: &File,
    from_start: u64,
    to: &File,
    to_start: u64,
    size: u64,
    go_on: &dyn Fn() -> bool,
) -> io::Result<()> {
    let offset = |start: u64| i64::try_from(start).map_err(io::Error::other);
    let (mut from_offset, mut to_offset) = (offset(from_start)?, offset(to_start)?);
    loop {
        let done = u64::try_from(from_offset).map_or(size, |now| now - from_start);
        let left = size.saturating_sub(done);
        if left == 0 {
            return Ok(());
        }
        if !go_on() {
            return Err(interrupted());
        }
        faults::at(Point::FlattenCopy)?;
        let length = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        match copy_file_range(
            from,
            Some(&mut from_offset),
            to,
            Some(&mut to_offset),
            length,
        ) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Ok(_) | Err(nix::Error::EINTR) => {}
            // Not on this filesystem, or not across the two: through memory then.
            Err(
                nix::Error::EXDEV
                | nix::Error::EINVAL
                | nix::Error::ENOSYS
                | nix::Error::EOPNOTSUPP,
            ) => {
                let from = (from, from_start + done);
                return through_memory(from, (to, to_start + done), left, go_on);
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn through_memory(
    (from, from_start): (&File, u64),
    (to, to_start): (&File, u64),
    size: u64,
    go_on: &dyn Fn() -> bool,
) -> io::Result<()> {
    let mut chunk = vec![0_u8; 1 << 20];
    let mut done = 0;
    while done < size {
        if !go_on() {
            return Err(interrupted());
        }
        let length = usize::try_from(size - done).map_or(chunk.len(), |left| left.min(chunk.len()));
        from.read_exact_at(&mut chunk[..length], from_start + done)?;
        to.write_all_at(&chunk[..length], to_start + done)?;
        done += length as u64;
    }
    Ok(())
}
