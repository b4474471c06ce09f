//! Files in the guest.

mod transfer;
#[cfg(target_os = "linux")]
mod watch;

use std::{
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, FileTypeExt, MetadataExt},
    },
    path::PathBuf,
};

use brood_agent_protocol::{Entry, Failure, FileKind, Metadata, OsBytes, Reply};

pub(crate) use transfer::{read, write};
#[cfg(target_os = "linux")]
pub(crate) use watch::watch;

use crate::{
    failure::{Context, invalid},
    serve::Answer,
};

/// How long the names of one part of a list are together at most, with what is known of each.
const PART: usize = 96 * 1024;
/// How many entries a part has at most.
const PART_ENTRIES: usize = 1024;
/// About what an entry takes beside its name and its target.
const ENTRY: usize = 48;

#[cfg(not(target_os = "linux"))]
pub(crate) fn watch(_: &crate::call::Call, _: &OsBytes, _: bool) -> Answer {
    Err(crate::failure::unsupported("watch files"))
}

/// The path that a request means: from the root.
fn absolute(path: &OsBytes) -> Result<PathBuf, Failure> {
    if path.as_bytes().is_empty() || path.as_bytes().contains(&0) {
        return Err(invalid(format!("{path:?} is no path")));
    }
    Ok(PathBuf::from("/").join(path.as_path()))
}

fn metadata(path: &std::path::Path, follow: bool) -> io::Result<Metadata> {
    let found = if follow {
        fs::metadata(path)?
    } else {
        fs::symlink_metadata(path)?
    };
    let kind = found.file_type();
    let kind = if kind.is_file() {
        FileKind::File
    } else if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_symlink() {
        FileKind::Link
    } else {
        debug_assert!(
            kind.is_block_device() || kind.is_char_device() || kind.is_fifo() || kind.is_socket()
        );
        FileKind::Other
    };
    let target = (kind == FileKind::Link).then(|| fs::read_link(path).ok());
    Ok(Metadata {
        kind,
        size: found.size(),
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        modified_ns: found
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(found.mtime_nsec()),
        target: target.flatten().map(|path| path.as_path().into()),
    })
}

pub(crate) fn stat(path: &OsBytes, follow: bool) -> Answer {
    let path = absolute(path)?;
    let found = metadata(&path, follow).context(format!("cannot look at {}", path.display()))?;
    Ok(Reply::Metadata(found))
}

pub(crate) fn list(path: &OsBytes, after: Option<&OsBytes>) -> Answer {
    let path = absolute(path)?;
    let tried = format!("cannot list {}", path.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&path).context(&tried)? {
        let name = entry.context(&tried)?.file_name();
        if after.is_none_or(|after| name.as_bytes() > after.as_bytes()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    let (mut entries, mut length, mut more) = (Vec::new(), 0, false);
    for name in names {
        // What was removed meanwhile is not there.
        let Ok(metadata) = metadata(&path.join(&name), false) else {
            continue;
        };
        let target = metadata.target.as_ref();
        length += name.len() + ENTRY + target.map_or(0, |target| target.as_bytes().len());
        if length > PART || entries.len() == PART_ENTRIES {
            more = true;
            break;
        }
        let name = name.into();
        entries.push(Entry { name, metadata });
    }
    Ok(Reply::Entries { entries, more })
}

pub(crate) fn make_dir(path: &OsBytes, mode: u32, parents: bool) -> Answer {
    let path = absolute(path)?;
    let mut builder = fs::DirBuilder::new();
    builder.mode(mode & 0o7777).recursive(parents);
    let tried = format!("cannot make the folder {}", path.display());
    builder.create(&path).context(tried)?;
    Ok(Reply::Nothing)
}

pub(crate) fn rename(from: &OsBytes, to: &OsBytes) -> Answer {
    let (from, to) = (absolute(from)?, absolute(to)?);
    let tried = format!("cannot move {} to {}", from.display(), to.display());
    fs::rename(&from, &to).context(tried)?;
    Ok(Reply::Nothing)
}

pub(crate) fn remove(path: &OsBytes, recursive: bool) -> Answer {
    let path = absolute(path)?;
    let tried = format!("cannot remove {}", path.display());
    let directory = fs::symlink_metadata(&path).context(&tried)?.is_dir();
    let removed = match (directory, recursive) {
        (false, _) => fs::remove_file(&path),
        (true, false) => fs::remove_dir(&path),
        (true, true) => fs::remove_dir_all(&path),
    };
    removed.context(tried)?;
    Ok(Reply::Nothing)
}
