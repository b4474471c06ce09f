//! Listings of what is to be copied: one walk over a tree, of this host or of a guest.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use brood_core::agent::{
    AgentError,
    protocol::{FileKind, Metadata, OsBytes},
};

use super::{MODE, here, join, refused};
use crate::{cli::programs::session::GuestSession, failure::Failure};

/// Most that is copied at once, so that no guest can list without end.
const ITEMS_MAX: usize = 1 << 20;
/// Deepest folder.
const DEPTH_MAX: usize = 100;

/// Something to copy, below what was named.
pub(super) struct Item {
    /// Empty for what was named itself.
    pub(super) below: PathBuf,
    pub(super) metadata: Metadata,
}

/// What a folder has in it: names, and what bears them.
type Entries = Vec<(OsString, Metadata)>;

/// What is at a path of this host. A link that is named itself is followed, those below are not.
pub(super) fn of_host(path: &Path) -> Result<Vec<Item>, Failure> {
    let facts = fs::metadata(path).map_err(|e| here("read", path, &e))?;
    walk(path, metadata(path, &facts)?, |folder| {
        let unreadable = |e: io::Error| here("read", folder, &e);
        let mut entries = Entries::new();
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let facts = entry.metadata().map_err(unreadable)?;
            entries.push((entry.file_name(), metadata(&entry.path(), &facts)?));
        }
        Ok(entries)
    })
}

/// What is at a path of a guest. It is not trusted: a name is one component of a path.
pub(super) fn of_guest(session: &GuestSession<'_>, path: &Path) -> Result<Vec<Item>, Failure> {
    let (agent, named) = (&session.agent, |e: AgentError| session.failure(&e));
    let top = agent.stat(OsBytes::from(path), true).map_err(named)?;
    walk(path, top, |folder| {
        let mut entries = Entries::new();
        for entry in agent
            .list(OsBytes::from(folder), ITEMS_MAX)
            .map_err(named)?
        {
            let name = entry.name.as_bytes();
            let plain = !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/');
            if !plain || name.contains(&0) {
                let what = String::from_utf8_lossy(name).into_owned();
                return Err(refused(format!(
                    "the guest lists a file of the name {what:?}, which no file can have"
                )));
            }
            entries.push((entry.name.as_os_str().to_owned(), entry.metadata));
        }
        Ok(entries)
    })
}

/// What is at `path`, folders before what is in them.
fn walk(
    path: &Path,
    top: Metadata,
    list: impl Fn(&Path) -> Result<Entries, Failure>,
) -> Result<Vec<Item>, Failure> {
    let mut items = vec![Item {
        below: PathBuf::new(),
        metadata: top,
    }];
    let mut next = 0;
    while let Some(item) = items.get(next) {
        next += 1;
        if item.metadata.kind != FileKind::Directory {
            continue;
        }
        let folder = item.below.clone();
        check_size(&folder, items.len())?;
        let entries = list(&join(path, &folder))?.into_iter();
        items.extend(entries.map(|(name, metadata)| Item {
            below: folder.join(name),
            metadata,
        }));
    }
    Ok(items)
}

/// What stands at a path of this host, as an agent says it of its guest.
fn metadata(path: &Path, facts: &fs::Metadata) -> Result<Metadata, Failure> {
    let kind = facts.file_type();
    let mut target = None;
    let kind = if kind.is_file() {
        FileKind::File
    } else if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_symlink() {
        let leads = fs::read_link(path).map_err(|e| here("read", path, &e))?;
        target = Some(OsBytes::from(&*leads));
        FileKind::Link
    } else {
        FileKind::Other
    };
    Ok(Metadata {
        kind,
        size: facts.len(),
        mode: facts.permissions().mode() & MODE,
        uid: 0,
        gid: 0,
        modified_ns: 0,
        target,
    })
}

fn check_size(below: &Path, items: usize) -> Result<(), Failure> {
    if below.components().count() > DEPTH_MAX {
        let below = below.display();
        return Err(refused(format!(
            "{below} is more than {DEPTH_MAX} folders deep"
        )));
    }
    if items > ITEMS_MAX {
        return Err(refused(format!("these are more than {ITEMS_MAX} files")));
    }
    Ok(())
}
