//! Writer of a root file system: a tree as squashfs, which guests only read.
//!
//! Names are sorted and dates are the tree's, so the same tree gives the same bytes. Extended
//! attributes, and with them capabilities of files, are left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::File,
    io::{BufWriter, Cursor, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use backhand::{
    BackhandError, DEFAULT_BLOCK_SIZE, FilesystemCompressor, FilesystemWriter, NodeHeader,
    compression::{CompressionOptions, Compressor, Zstd},
    kind::{Kind, LE_V4_0},
};

use super::tree::{Content, Facts, Node, Tree};

/// Name of this file system.
pub(super) const NAME: &str = "squashfs";
/// How hard zstd tries.
const LEVEL: u32 = 6;
/// Most owners of files. The table of owners has 65,536, and is searched from its beginning.
const OWNERS_MAX: usize = 4096;

/// Why a tree cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("its files have more than {OWNERS_MAX} owners")]
    Owners,
    #[error("{0}")]
    Write(#[from] BackhandError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Writes a tree into an empty file.
pub(super) fn write(tree: &Tree, file: &File) -> Result<(), Error> {
    let mut owners = BTreeSet::new();
    count_owners(&tree.names, &mut owners);
    if owners.len() > OWNERS_MAX {
        return Err(Error::Owners);
    }
    let mut writer = FilesystemWriter::default();
    writer.set_kind(Kind::from_const(LE_V4_0).map_err(std::io::Error::other)?);
    writer.set_block_size(DEFAULT_BLOCK_SIZE);
    writer.set_time(0);
    let level = CompressionOptions::Zstd(Zstd {
        compression_level: LEVEL,
    });
    writer.set_compressor(FilesystemCompressor::new(Compressor::Zstd, Some(level))?);
    writer.set_root_mode(tree.facts.mode);
    writer.set_root_uid(tree.facts.uid);
    writer.set_root_gid(tree.facts.gid);
    add(&mut writer, Path::new("/"), &tree.names)?;
    let mut buffered = BufWriter::with_capacity(1 << 20, file);
    writer.write(&mut buffered)?;
    buffered.flush()?;
    Ok(())
}

fn count_owners(names: &BTreeMap<Vec<u8>, Node>, owners: &mut BTreeSet<u32>) {
    for node in names.values() {
        owners.extend([node.facts.uid, node.facts.gid]);
        if let Content::Folder(names) = &node.content {
            count_owners(names, owners);
        }
    }
}

fn add<'a>(
    writer: &mut FilesystemWriter<'a, 'a, 'a>,
    folder: &Path,
    names: &'a BTreeMap<Vec<u8>, Node>,
) -> Result<(), BackhandError> {
    for (name, node) in names {
        let path = folder.join(OsStr::from_bytes(name));
        let header = header(node.facts);
        match &node.content {
            Content::Folder(names) => {
                writer.push_dir(&path, header)?;
                add(writer, &path, names)?;
            }
            Content::Stored(stored) => writer.push_file(stored.clone(), &path, header)?,
            Content::Bytes(bytes) => writer.push_file(Cursor::new(bytes), &path, header)?,
            Content::Link(to) => {
                writer.push_symlink(PathBuf::from(OsStr::from_bytes(to)), &path, header)?;
            }
        }
    }
    Ok(())
}

fn header(facts: Facts) -> NodeHeader {
    NodeHeader {
        permissions: facts.mode,
        uid: facts.uid,
        gid: facts.gid,
        mtime: facts.mtime,
    }
}
