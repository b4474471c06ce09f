//! `brood cp`: copies files and folders into a guest and out of it.
//!
//! What is to be copied is listed first, then each file is transferred. A file gets its name when it
//! is whole and its digest is right: in the guest the agent sees to that, here it is written beside
//! its place. What a guest lists is not trusted: a name is one component of a path, and nothing is
//! written through a symbolic link.

mod into_guest;
mod listing;
mod out_of_guest;

use std::{
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use brood_core::{
    agent::{Agent, protocol::FileKind},
    checkpoint::Progress,
    units::Bytes,
};
use clap::Args;
use serde_json::json;

pub(super) use into_guest::into_guest;

use super::{place::Place, session::GuestSession};
use crate::{
    cli::{
        bar::Bar,
        complete,
        output::{cancellation, count, json, line, note},
    },
    config::Config,
    failure::{Failure, INTERRUPTED},
};
use listing::Item;
use out_of_guest::out_of_guest;

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
    #[arg(value_name = "SRC", add = complete::with(complete::places))]
    from: Place,
    /// Where to: a path, or GUEST:PATH
    #[arg(value_name = "DST", add = complete::with(complete::places))]
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
