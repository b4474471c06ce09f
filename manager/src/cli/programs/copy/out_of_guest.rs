//! Copies from a guest to this host. A file is written beside its place, and nothing is written
//! through a symbolic link.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use brood_core::{
    agent::{
        AgentError,
        protocol::{FileKind, OsBytes, ReadFile},
    },
    guest_id::random,
};

use super::{Copied, Copying, Counted, MODE, ends_with_slash, here, join, listing, name_of};
use crate::{cli::programs::session::GuestSession, failure::Failure};

/// Copies a file or folder of a guest to this host.
pub(super) fn out_of_guest(
    session: &GuestSession<'_>,
    from: &Path,
    to: &Path,
    quiet: bool,
) -> Result<Copied, Failure> {
    let items = listing::of_guest(session, from)?;
    let to = match to.is_dir() || ends_with_slash(to) {
        true => to.join(name_of(from)?),
        false => to.to_owned(),
    };
    let copying = Copying::new(session, items, quiet);
    let agent = copying.agent();
    copying.each(|moved, item| {
        let (source, target) = (join(from, &item.below), join(&to, &item.below));
        let failed = |e: io::Error| here("write", &target, &e);
        // Its owner may always do with it as they like: what is in a folder is still to come.
        let mode = item.metadata.mode & MODE & 0o777;
        match item.metadata.kind {
            FileKind::Directory => {
                let mode = fs::Permissions::from_mode(mode | 0o700);
                match fs::DirBuilder::new().mode(0o700).create(&target) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => real_folder(&target),
                    made => made.and_then(|()| fs::set_permissions(&target, mode)),
                }
                .map_err(failed)
            }
            FileKind::Link => {
                let leads = item.metadata.target.as_ref();
                let leads = leads.map_or(Path::new(""), OsBytes::as_path);
                let beside = beside(&target).map_err(failed)?;
                let made = symlink(leads, &beside).and_then(|()| fs::rename(&beside, &target));
                made.inspect_err(|_| drop(fs::remove_file(&beside)))
                    .map_err(failed)
            }
            FileKind::File | FileKind::Other => {
                let read = ReadFile {
                    path: OsBytes::from(&*source),
                    offset: 0,
                    length: None,
                    digest: true,
                };
                receive(&target, mode, |file| {
                    let came = agent.read_file(read, &mut Counted(file, moved));
                    came.map(drop).map_err(|e| match e {
                        AgentError::Local { source: e, .. } => failed(e),
                        e => session.failure(&e),
                    })
                })
            }
        }
    })
}

/// Writes a file beside its place, and gives it its name when it is whole.
fn receive(
    target: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |e: io::Error| here("write", target, &e);
    let beside = beside(target).map_err(failed)?;
    let mut options = File::options();
    let created = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside);
    let mut file = created.map_err(failed)?;
    let done = write(&mut file).and_then(|()| {
        let kept = file.set_permissions(fs::Permissions::from_mode(mode));
        kept.and_then(|()| fs::rename(&beside, target))
            .map_err(failed)
    });
    if done.is_err() {
        let _ = fs::remove_file(&beside);
    }
    done
}

/// A name beside a file's place.
fn beside(target: &Path) -> io::Result<PathBuf> {
    let digits: [u8; 6] = random()?;
    let digits: String = digits.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut name = OsString::from(format!(".brood-{digits}."));
    name.push(target.file_name().unwrap_or_default());
    // A name may have 255 bytes.
    let mut name = name.into_vec();
    name.truncate(255);
    Ok(target.with_file_name(OsStr::from_bytes(&name)))
}

/// A folder that is there already, and no link to another.
fn real_folder(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    }
}
