//! Overlays in the format qcow2: files that hold what was written to a disk, and refer to another
//! file for the rest (docs/interop/qcow2.txt of QEMU).
//!
//! brood makes an overlay and reads it again when its guest is suspended. In between QEMU writes it.
//! An overlay that says otherwise than brood made it is refused: what it calls its base is never
//! followed.

use std::{
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::Path,
};

use super::reflink::blocks;
use crate::checkpoint::Watch;

const MAGIC: u32 = 0x5146_49fb;
const VERSION: u32 = 3;
const HEADER: usize = 104;
/// Where the base's name is, and how long QEMU lets it be.
const NAME: u64 = HEADER as u64 + 24;
const NAME_MAX: u32 = 1023;
/// Says in which format the base is: a guest could write to a raw disk what looks like another one.
const BASE_FORMAT: u32 = 0xe279_2aca;
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of 8 bytes in a cluster.
const ENTRIES: u64 = CLUSTER / 8;
/// Bytes of the disk that one table of the second level describes.
const TABLE: u64 = ENTRIES * CLUSTER;
/// Where the first level's table is: behind the header and two clusters that count references.
const FIRST_LEVEL: u64 = 3 * CLUSTER;
/// Largest disk: of the first level's table in one cluster.
const SIZE_MAX: u64 = ENTRIES * TABLE;
/// Of an entry: where in the overlay a cluster or table is.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Of an entry of the second level: compressed, which brood's overlays never are; all zeros.
const COMPRESSED: u64 = 1 << 62;
const ZEROS: u64 = 1;

fn refuse<T>(reason: impl Into<String>) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidData, reason.into()))
}

/// Writes an overlay in which nothing was written yet, over a disk of this size.
pub(super) fn write_overlay(to: &File, size: u64, base: &Path) -> io::Result<()> {
    if size == 0 || !size.is_multiple_of(512) || size > SIZE_MAX {
        return refuse(format!("a disk of {size} bytes cannot have an overlay"));
    }
    let base = base.as_os_str().as_bytes();
    let mut header = Vec::new();
    let mut put = |bytes: &[u8]| header.extend_from_slice(bytes);
    put(&MAGIC.to_be_bytes());
    put(&VERSION.to_be_bytes());
    // Behind the header: what the base's format is, the end of such notes, then the base's name.
    put(&NAME.to_be_bytes());
    put(&u32::try_from(base.len()).unwrap_or(u32::MAX).to_be_bytes());
    put(&CLUSTER_BITS.to_be_bytes());
    put(&size.to_be_bytes());
    put(&0_u32.to_be_bytes());
    put(&u32::try_from(size.div_ceil(TABLE))
        .unwrap_or(0)
        .to_be_bytes());
    put(&FIRST_LEVEL.to_be_bytes());
    put(&CLUSTER.to_be_bytes());
    put(&1_u32.to_be_bytes());
    // No snapshots, no features.
    put(&[0; 36]);
    // References are counted in 16 bits.
    put(&4_u32.to_be_bytes());
    put(&104_u32.to_be_bytes());
    put(&BASE_FORMAT.to_be_bytes());
    put(&3_u32.to_be_bytes());
    put(b"raw\0\0\0\0\0");
    put(&[0; 8]);
    put(base);
    if base.len() > NAME_MAX as usize {
        return refuse("the path of its base is too long");
    }
    to.write_all_at(&header, 0)?;
    to.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    to.write_all_at(&[0, 1, 0, 1, 0, 1, 0, 1], 2 * CLUSTER)?;
    to.set_len(FIRST_LEVEL + CLUSTER)
}

/// What a guest's disk is an overlay of; none when it is a disk by itself, as its name says. It is
/// for a disk that was just made: a guest's QEMU may write anything to it later.
#[cfg(target_os = "linux")]
pub(crate) fn overlay_base(disk: &Path) -> io::Result<Option<std::path::PathBuf>> {
    let name = disk.to_string_lossy();
    if !name.ends_with(super::reflink::OVERLAY) {
        return Ok(None);
    }
    let file = File::open(disk)?;
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let length = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
    if header[..4] != MAGIC.to_be_bytes() || length > NAME_MAX {
        return refuse("it is no overlay");
    }
    let mut base = vec![0; length as usize];
    file.read_exact_at(&mut base, NAME)?;
    Ok(Some(std::ffi::OsStr::from_bytes(&base).into()))
}

/// Writes a disk as its guest sees it into an empty file: its base, and over that what the overlay
/// holds.
pub(super) fn flatten(overlay: &File, base: &File, to: &File, watch: Watch<'_>) -> io::Result<()> {
    let size = base.metadata()?.len();
    let tables = check(overlay, size)?;
    blocks::copy(base, to, watch)?;
    let mut cluster = vec![0; CLUSTER as usize];
    let mut table = vec![0; CLUSTER as usize];
    let mut first_level = vec![0; (tables * 8) as usize];
    overlay.read_exact_at(&mut first_level, FIRST_LEVEL)?;
    for (n, entry) in (0..).zip(entries(&first_level)) {
        let at = entry & OFFSET;
        if at == 0 {
            continue;
        }
        overlay.read_exact_at(&mut table, at)?;
        for (m, entry) in (0..).zip(entries(&table)) {
            let place = n * TABLE + m * CLUSTER;
            let at = entry & OFFSET;
            if place >= size || (at == 0 && entry & ZEROS == 0) {
                continue;
            }
            let length = (size - place).min(CLUSTER);
            let part = &mut cluster[..length as usize];
            if entry & COMPRESSED != 0 {
                return refuse("it has a compressed cluster");
            } else if entry & ZEROS != 0 {
                part.fill(0);
            } else {
                overlay.read_exact_at(part, at)?;
            }
            to.write_all_at(part, place)?;
        }
    }
    Ok(())
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    let words = table.chunks_exact(8);
    words.map(|word| word.try_into().map_or(0, u64::from_be_bytes))
}

/// Compares an overlay's header with what brood wrote; returns how many tables the second level may
/// have.
fn check(overlay: &File, size: u64) -> io::Result<u64> {
    let mut header = [0; HEADER];
    overlay.read_exact_at(&mut header, 0)?;
    let tables = size.div_ceil(TABLE);
    let mut half = header.chunks_exact(4).map(|four| {
        let four = four.try_into().unwrap_or_default();
        u64::from(u32::from_be_bytes(four))
    });
    let mut next = || half.next().unwrap_or_default();
    let found = [next(), next()];
    // Where its base is, which does not matter here.
    let _ = [next(), next(), next()];
    let bits = next();
    let its_size = (next() << 32) | next();
    let encryption = next();
    let its_tables = next();
    let first_level = (next() << 32) | next();
    // How references are counted, and snapshots.
    let _ = [next(), next(), next(), next(), next(), next()];
    let features = (next() << 32) | next();
    let expected = [u64::from(MAGIC), u64::from(VERSION)];
    if found != expected || bits != u64::from(CLUSTER_BITS) || encryption != 0 || features != 0 {
        return refuse("it is no overlay of brood's, or QEMU found it damaged");
    }
    if its_size != size || its_tables != tables || first_level != FIRST_LEVEL {
        return refuse(format!(
            "it is an overlay of {its_size} bytes, over a disk of {size}"
        ));
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::unwatched;

    fn files(size: u64) -> (File, File, File) {
        let base = tempfile::tempfile().unwrap();
        base.set_len(size).unwrap();
        base.write_all_at(b"base", 70_000).unwrap();
        let overlay = tempfile::tempfile().unwrap();
        write_overlay(&overlay, size, Path::new("/base.img")).unwrap();
        (base, overlay, tempfile::tempfile().unwrap())
    }

    /// As QEMU writes a cluster: the table of the second level, and the cluster behind it.
    fn put(overlay: &File, place: u64, content: &[u8]) {
        let table = 4 * CLUSTER;
        let at = 5 * CLUSTER;
        let first = FIRST_LEVEL + place / TABLE * 8;
        let copied = 1_u64 << 63;
        overlay
            .write_all_at(&(table | copied).to_be_bytes(), first)
            .unwrap();
        overlay.set_len(6 * CLUSTER).unwrap();
        let second = table + place % TABLE / CLUSTER * 8;
        let entry = if content.is_empty() {
            ZEROS
        } else {
            at | copied
        };
        overlay.write_all_at(&entry.to_be_bytes(), second).unwrap();
        overlay.write_all_at(content, at).unwrap();
    }

    fn read(file: &File, at: u64) -> [u8; 4] {
        let mut bytes = [9; 4];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    #[test]
    fn a_disk_is_its_base_and_what_was_written_over_it() {
        let size = TABLE + 3 * CLUSTER + 512;
        let (base, overlay, to) = files(size);
        flatten(&overlay, &base, &to, &unwatched).unwrap();
        assert_eq!(to.metadata().unwrap().len(), size);
        assert_eq!(&read(&to, 70_000), b"base");
        // In the last cluster, which is not whole, of the second table.
        put(&overlay, TABLE + 3 * CLUSTER, b"mine");
        let to = tempfile::tempfile().unwrap();
        flatten(&overlay, &base, &to, &unwatched).unwrap();
        assert_eq!(&read(&to, TABLE + 3 * CLUSTER), b"mine");
        assert_eq!(to.metadata().unwrap().len(), size);
        // Zeros hide what the base has.
        put(&overlay, CLUSTER, &[]);
        let to = tempfile::tempfile().unwrap();
        flatten(&overlay, &base, &to, &unwatched).unwrap();
        assert_eq!(read(&to, 70_000), [0; 4]);
    }

    #[test]
    fn an_overlay_that_is_not_broods_is_refused() {
        let (base, overlay, to) = files(1 << 20);
        for (at, byte) in [
            (0, 0),
            (7, 2),
            (23, 12),
            (31, 1),
            (35, 1),
            (39, 9),
            (47, 1),
            (79, 2),
        ] {
            let was = read(&overlay, at);
            overlay.write_all_at(&[byte], at).unwrap();
            let refused = flatten(&overlay, &base, &to, &unwatched).unwrap_err();
            assert_eq!(
                refused.kind(),
                io::ErrorKind::InvalidData,
                "{at}: {refused}"
            );
            overlay.write_all_at(&was, at).unwrap();
        }
        flatten(&overlay, &base, &to, &unwatched).unwrap();
        // What it refers to is not there.
        put(&overlay, 0, b"mine");
        overlay.set_len(4 * CLUSTER + 100).unwrap();
        assert!(flatten(&overlay, &base, &to, &unwatched).is_err());
        assert!(write_overlay(&overlay, 513, Path::new("/base.img")).is_err());
    }
}
