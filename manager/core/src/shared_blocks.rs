//! Blocks that two files share until one of them is written to.

use std::{fs::File, io, os::unix::fs::MetadataExt};
#[cfg(target_os = "linux")]
use std::{
    fs::OpenOptions,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
};

#[cfg(target_os = "linux")]
use nix::{errno::Errno, fcntl::OFlag};

#[cfg(target_os = "linux")]
use crate::full_disk;

/// Makes one file hold the blocks of another (ioctl_ficlone(2)).
#[cfg(target_os = "linux")]
pub(crate) fn share_blocks(from: &File, to: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

/// Elsewhere nothing promises to share: copy_file_range(2) does where it can, and does not say so.
#[cfg(not(target_os = "linux"))]
pub(crate) fn share_blocks(_from: &File, _to: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether files in a folder can share blocks, by two files without names. No file can be made where
/// this process may not write.
#[cfg(target_os = "linux")]
pub(crate) fn files_share_blocks(dir: &Path) -> io::Result<bool> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_TMPFILE.bits());
    let (from, to) = (options.open(dir)?, options.open(dir)?);
    // Some file systems refuse only files that hold something.
    from.write_all_at(&[1; 4096], 0)?;
    match share_blocks(&from, &to) {
        Ok(()) => Ok(true),
        Err(e) if full_disk::is_full(&e) => Err(e),
        Err(_) => Ok(false),
    }
}

/// Bytes that a file takes on its file system and shares with no other file. Where the file system
/// does not say which it shares, all of them.
pub(crate) fn own_bytes(file: &File) -> io::Result<u64> {
    // stat(2) counts in units of 512 bytes, whatever the file system's blocks are.
    let all = || Ok(file.metadata()?.blocks() * 512);
    #[cfg(target_os = "linux")]
    match own_extents(file) {
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => all(),
        own => Ok(own?),
    }
    #[cfg(not(target_os = "linux"))]
    all()
}

/// `struct fiemap_extent` of linux/fiemap.h.
#[cfg(target_os = "linux")]
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

/// `struct fiemap` of linux/fiemap.h, with room for so many extents.
#[cfg(target_os = "linux")]
#[repr(C)]
struct ExtentMap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [Extent; EXTENTS as usize],
}

/// Extents that are asked for at once.
#[cfg(target_os = "linux")]
const EXTENTS: u32 = 128;
/// `FS_IOC_FIEMAP`: `_IOWR('f', 11, struct fiemap)`, whose extents are no part of its size.
#[cfg(target_os = "linux")]
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
/// `FIEMAP_FLAG_SYNC`: what is written has its place first.
#[cfg(target_os = "linux")]
const SYNC: u32 = 1;
/// `FIEMAP_EXTENT_LAST`.
#[cfg(target_os = "linux")]
const LAST: u32 = 1;
/// `FIEMAP_EXTENT_SHARED`.
#[cfg(target_os = "linux")]
const SHARED: u32 = 0x2000;

/// Length of a file's extents that it shares with no other file.
#[cfg(target_os = "linux")]
fn own_extents(file: &File) -> Result<u64, Errno> {
    let (mut own, mut start) = (0, 0);
    loop {
        let mut map = ExtentMap {
            start,
            length: u64::MAX - start,
            flags: SYNC,
            mapped: 0,
            room: EXTENTS,
            reserved: 0,
            extents: [Extent::default(); EXTENTS as usize],
        };
        // SAFETY: the request reads the head of `map`, and writes its head and at most `room`
        // extents, for which `map` has the room; any bytes are valid values of both. The descriptor
        // is open as long as `file` is borrowed, and nobody else has `map`.
        let asked = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) };
        Errno::result(asked)?;
        let found = &map.extents[..map.mapped.min(EXTENTS) as usize];
        let of_its_own = found.iter().filter(|extent| extent.flags & SHARED == 0);
        own += of_its_own.map(|extent| extent.length).sum::<u64>();
        match found.last() {
            Some(last) if last.flags & LAST == 0 => start = last.logical + last.length,
            _ => return Ok(own),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_shares_nothing_has_all_of_its_blocks_to_itself() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(own_bytes(&file).unwrap(), 0);
        // More extents than are asked for at once, each apart from the next.
        for n in 0..300 {
            file.write_all_at(&[7; 4096], n * 3 * 4096).unwrap();
        }
        file.set_len(1 << 30).unwrap();
        file.sync_all().unwrap();
        let own = own_bytes(&file).unwrap();
        // Blocks that hold the list of extents belong to the file, and to no extent.
        let all = file.metadata().unwrap().blocks() * 512;
        assert!((300 * 4096..=all).contains(&own), "{own} of {all}");
    }
}
