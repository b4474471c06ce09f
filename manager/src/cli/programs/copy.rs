//! `brood cp`: copies files and folders into a guest and out of it.
//!
//! What is to be copied is listed first, then each file is transferred. A file gets its name when it
//! is whole and its digest is right: in the guest the agent sees to that, here it is written beside
//! its place. What a guest lists is not trusted: a name is one component of a path, and nothing is
//! written through a symbolic link.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

use brood_core::{
    agent::{
        Agent, AgentError,
        protocol::{Ended, Exec, FailureKind, FileKind, Metadata, OsBytes, ReadFile, WriteFile},
    },
    checkpoint::Progress,
    guest_id::random,
    units::Bytes,
};
use clap::Args;
use serde_json::json;

use super::{place::Place, session::GuestSession};
use crate::{
    cli::{
        bar::Bar,
        output::{cancellation, count, json, line, note},
    },
    config::Config,
    failure::{Failure, INTERRUPTED},
};

/// Most that is copied at once, so that no guest can list without end.
const ITEMS_MAX: usize = 1 << 20;
/// Deepest folder.
const DEPTH_MAX: usize = 100;
/// Mode bits that are kept.
const MODE: u32 = 0o7777;

/// Copies files and folders into a guest or out of it, with their modes
///
/// A file has its name only when all of it is there. SRC is copied into DST when that is a folder.
/// Symbolic links are copied as links; devices, pipes and sockets are passed over.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood cp site.tar web-1:/srv/
  brood cp web-1:/var/log ./logs
  brood cp ./src web-1:/root/src")]
pub(in crate::cli) struct Copy {
    /// What to copy: a path, or GUEST:PATH
    #[arg(value_name = "SRC")]
    from: Place,
    /// Where to: a path, or GUEST:PATH
    #[arg(value_name = "DST")]
    to: Place,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Copy {
    pub(in crate::cli) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let copied = match (&self.from, &self.to) {
            (Place::Here(from), Place::In { guest, path }) => {
                let session = GuestSession::begin(config, guest)?;
                into_guest(&session, from, path, self.json)?
            }
            (Place::In { guest, path }, Place::Here(to)) => {
                let session = GuestSession::begin(config, guest)?;
                out_of_guest(&session, path, to, self.json)?
            }
            _ => {
                let why = "one of SRC and DST is in a guest (GUEST:PATH), the other on this host";
                return Err(Failure {
                    code: 2,
                    ..Failure::new(&why, None)
                });
            }
        };
        if self.json {
            json(&json!({
                "files": copied.files, "bytes": copied.bytes, "passed_over": copied.passed_over,
            }));
        } else {
            line(format_args!(
                "{} copied, {}",
                count(copied.files, "file"),
                Bytes(copied.bytes)
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What was copied.
#[derive(Debug, Default)]
pub(super) struct Copied {
    files: usize,
    bytes: u64,
    /// What is no file, folder or link.
    passed_over: Vec<String>,
}

/// Something to copy, below what was named.
struct Item {
    /// Empty for what was named itself.
    below: PathBuf,
    metadata: Metadata,
}

/// What to copy, and how far that is.
struct Copying<'a> {
    items: Vec<Item>,
    bar: Bar,
    done: u64,
    total: u64,
    copied: Copied,
    session: &'a GuestSession<'a>,
}

impl<'a> Copying<'a> {
    fn new(session: &'a GuestSession<'a>, items: Vec<Item>, quiet: bool) -> Self {
        let sizes = items
            .iter()
            .filter(|item| item.metadata.kind == FileKind::File);
        let total = sizes.fold(0_u64, |sum, item| sum.saturating_add(item.metadata.size));
        Self {
            bar: Bar::bytes("copying", quiet).until(&cancellation()),
            items,
            done: 0,
            total,
            copied: Copied::default(),
            session,
        }
    }

    /// Copies each item.
    fn each(
        mut self,
        act: impl Fn(&mut Moved<'_>, &Item) -> Result<(), Failure>,
    ) -> Result<Copied, Failure> {
        for item in std::mem::take(&mut self.items) {
            let kind = item.metadata.kind;
            if kind == FileKind::Other {
                let what = item.below.display().to_string();
                note(format_args!(
                    "warning: {what} is no file, folder or link, and is passed over"
                ));
                self.copied.passed_over.push(what);
                continue;
            }
            let mut moved = Moved {
                bar: &self.bar,
                done: self.done,
                total: self.total,
                interrupted: false,
            };
            let result = act(&mut moved, &item);
            if moved.interrupted {
                let why = "interrupted: what was copied until then stands, each file whole";
                return Err(Failure {
                    code: INTERRUPTED,
                    ..Failure::new(&why, None)
                });
            }
            result?;
            if kind == FileKind::File {
                self.copied.files += 1;
                self.copied.bytes += moved.done - self.done;
            }
            self.done = moved.done;
        }
        Ok(self.copied)
    }

    fn agent(&self) -> &'a Agent {
        &self.session.agent
    }
}

/// Bytes that were moved, for the progress.
struct Moved<'a> {
    bar: &'a Bar,
    done: u64,
    total: u64,
    interrupted: bool,
}

impl Moved<'_> {
    fn add(&mut self, bytes: usize) -> io::Result<()> {
        self.done += u64::try_from(bytes).unwrap_or(0);
        let progress = Progress {
            done: Bytes(self.done),
            total: Bytes(self.total.max(self.done)),
        };
        if self.bar.advance(progress).is_break() {
            self.interrupted = true;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

/// Counts what goes through.
struct Counted<'a, 'b, T>(T, &'a mut Moved<'b>);

impl<T: Read> Read for Counted<'_, '_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.0.read(buffer)?;
        self.1.add(length)?;
        Ok(length)
    }
}

impl<T: Write> Write for Counted<'_, '_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.0.write(bytes)?;
        self.1.add(length)?;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn here(action: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        &format!("cannot {action} {}: {error}", path.display()),
        None,
    )
}

fn refused(what: impl std::fmt::Display) -> Failure {
    Failure::new(&what, None)
}

// Into a guest.

/// Copies a file or folder of this host into a guest.
pub(super) fn into_guest(
    session: &GuestSession<'_>,
    from: &Path,
    to: &Path,
    quiet: bool,
) -> Result<Copied, Failure> {
    let items = list_here(from)?;
    let agent = &session.agent;
    let named = |e: AgentError| session.failure(&e);
    let is_folder = match agent.stat(OsBytes::from(to), true) {
        Ok(there) => there.kind == FileKind::Directory,
        Err(e) if e.failure() == Some(FailureKind::NotFound) => ends_with_slash(to),
        Err(e) => return Err(named(e)),
    };
    let to = match is_folder {
        true => to.join(name_of(from)?),
        false => to.to_owned(),
    };
    let copying = Copying::new(session, items, quiet);
    let agent = copying.agent();
    copying.each(|moved, item| {
        let (source, target) = (join(from, &item.below), join(&to, &item.below));
        let mode = item.metadata.mode & MODE;
        match item.metadata.kind {
            FileKind::Directory => {
                let made = agent.make_dir(OsBytes::from(&*target), mode, true);
                made.map_err(named)
            }
            FileKind::Link => {
                let leads = item.metadata.target.clone().unwrap_or_else(|| "".into());
                link_in_guest(agent, leads, &target).map_err(named)
            }
            FileKind::File | FileKind::Other => {
                let file = File::open(&source).map_err(|e| here("read", &source, &e))?;
                let write = WriteFile {
                    path: OsBytes::from(&*target),
                    mode,
                    user: None,
                    parents: true,
                    sync: false,
                    digest: true,
                };
                let sent = agent.write_file(write, &mut Counted(file, moved));
                sent.map(drop).map_err(|e| match e {
                    AgentError::Local { source: e, .. } => here("read", &source, &e),
                    e => named(e),
                })
            }
        }
    })
}

/// Makes a symbolic link in the guest, in place of one that is there.
fn link_in_guest(agent: &Agent, leads: OsBytes, path: &Path) -> Result<(), AgentError> {
    let exec = Exec {
        argv: vec!["ln".into(), "-sfn".into(), "--".into(), leads, path.into()],
        ..Exec::default()
    };
    let ran = agent.run(exec, 4096)?;
    match ran.ended {
        Ended::Code(0) => Ok(()),
        ended => Err(AgentError::Local {
            what: "make a symbolic link in the guest",
            source: io::Error::other(format!(
                "ln: {ended:?}: {}",
                String::from_utf8_lossy(&ran.error).trim()
            )),
        }),
    }
}

/// What is at a path of this host, folders before what is in them. A link that is named itself is
/// followed, those below are not.
fn list_here(path: &Path) -> Result<Vec<Item>, Failure> {
    let facts = fs::metadata(path).map_err(|e| here("read", path, &e))?;
    let mut items = vec![item_here(PathBuf::new(), path, &facts)?];
    let mut next = 0;
    while let Some(item) = items.get(next) {
        next += 1;
        if item.metadata.kind != FileKind::Directory {
            continue;
        }
        let below = item.below.clone();
        check_size(&below, items.len())?;
        let folder = join(path, &below);
        let unreadable = |e: io::Error| here("read", &folder, &e);
        for entry in fs::read_dir(&folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let facts = entry.metadata().map_err(unreadable)?;
            let below = below.join(entry.file_name());
            items.push(item_here(below, &entry.path(), &facts)?);
        }
    }
    Ok(items)
}

fn item_here(below: PathBuf, path: &Path, facts: &fs::Metadata) -> Result<Item, Failure> {
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
    let metadata = Metadata {
        kind,
        size: facts.len(),
        mode: facts.permissions().mode() & MODE,
        uid: 0,
        gid: 0,
        modified_ns: 0,
        target,
    };
    Ok(Item { below, metadata })
}

// Out of a guest.

/// Copies a file or folder of a guest to this host.
fn out_of_guest(
    session: &GuestSession<'_>,
    from: &Path,
    to: &Path,
    quiet: bool,
) -> Result<Copied, Failure> {
    let items = list_there(session, from)?;
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

/// What is at a path of a guest, folders before what is in them.
fn list_there(session: &GuestSession<'_>, path: &Path) -> Result<Vec<Item>, Failure> {
    let named = |e: AgentError| session.failure(&e);
    let top = session
        .agent
        .stat(OsBytes::from(path), true)
        .map_err(named)?;
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
        let below = item.below.clone();
        check_size(&below, items.len())?;
        let folder = join(path, &below);
        let entries = session.agent.list(OsBytes::from(&*folder), ITEMS_MAX);
        for entry in entries.map_err(named)? {
            let name = entry.name.as_bytes();
            let plain = !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/');
            if !plain || name.contains(&0) {
                let what = String::from_utf8_lossy(name).into_owned();
                return Err(refused(format!(
                    "the guest lists a file of the name {what:?}, which no file can have"
                )));
            }
            items.push(Item {
                below: below.join(entry.name.as_os_str()),
                metadata: entry.metadata,
            });
        }
    }
    Ok(items)
}

// Paths.

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

/// A path below another, which is the other itself when it is empty.
fn join(path: &Path, below: &Path) -> PathBuf {
    match below.as_os_str().is_empty() {
        true => path.to_owned(),
        false => path.join(below),
    }
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

/// The last component of a path.
fn name_of(path: &Path) -> Result<OsString, Failure> {
    if let Some(name) = path.file_name() {
        return Ok(name.to_owned());
    }
    // `.` and `..` are folders of this host that have a name elsewhere.
    let whole = path.canonicalize().ok();
    let name = whole.as_deref().and_then(Path::file_name);
    let nameless = || refused(format!("{} has no name; name DST in full", path.display()));
    name.map(OsStr::to_owned).ok_or_else(nameless)
}
