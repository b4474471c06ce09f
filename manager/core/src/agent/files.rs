//! Files in the guest.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    time::Duration,
};

use brood_agent_protocol::{
    Change, Entry, Event, Metadata, OsBytes, ReadFile, Reply, Request, Stream, ToGuest, Transfer,
    WriteFile, limits::MAX_DATA,
};
use sha2::{Digest, Sha256};

use super::{Agent, AgentError, asked::Asked, request::Incoming};

/// Bytes and their digest, counted as they go past.
struct Count {
    bytes: u64,
    digest: Option<Sha256>,
}

impl Count {
    fn new(digest: bool) -> Count {
        let digest = digest.then(Sha256::new);
        Count { bytes: 0, digest }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += u64::try_from(bytes.len()).unwrap_or(0);
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
    }

    /// What was transferred, when both ends say the same.
    fn check(self, guest: &Transfer) -> Result<Transfer, AgentError> {
        let host = Transfer {
            bytes: self.bytes,
            sha256: self.digest.map(|digest| digest.finalize().into()),
        };
        if host == *guest {
            return Ok(host);
        }
        let text = |transfer: &Transfer| {
            let mut text = format!("{} bytes", transfer.bytes);
            if let Some(digest) = transfer.sha256 {
                text.push_str(" of digest ");
                for byte in digest {
                    let _ = write!(text, "{byte:02x}");
                }
            }
            text
        };
        Err(AgentError::Digest {
            guest: text(guest),
            host: text(&host),
        })
    }
}

impl Agent {
    /// Copies a file out of the guest. Each piece of it has to come within the session's time limit.
    ///
    /// # Errors
    /// As all calls; `to` fails; or what came is not what the guest read.
    pub fn read_file(&self, file: ReadFile, to: &mut dyn Write) -> Result<Transfer, AgentError> {
        let mut count = Count::new(file.digest);
        let asked = self
            .connection
            .ask("read a file", Request::ReadFile(file))?;
        loop {
            match asked.next(Some(self.limit))? {
                Incoming::Data(stream, bytes) => {
                    count.add(&bytes);
                    to.write_all(&bytes).map_err(|source| AgentError::Local {
                        what: "write a file",
                        source,
                    })?;
                    asked.consumed(stream, bytes.len())?;
                }
                Incoming::Done(Ok(Reply::Transferred(guest))) => return count.check(&guest),
                Incoming::Done(Err(failure)) => return Err(asked.refused(failure)),
                Incoming::Event(_) | Incoming::Done(Ok(_)) => return Err(asked.unexpected()),
            }
        }
    }

    /// Copies a file into the guest: it is there as a whole, or as it was before. Each piece of it
    /// has to be taken within the session's time limit.
    ///
    /// # Errors
    /// As all calls; `from` fails; or what the guest wrote is not what was sent.
    pub fn write_file(&self, file: WriteFile, from: &mut dyn Read) -> Result<Transfer, AgentError> {
        let mut count = Count::new(file.digest);
        let asked = self
            .connection
            .ask("write a file", Request::WriteFile(file))?;
        let mut buffer = vec![0; MAX_DATA];
        loop {
            let length = from.read(&mut buffer).map_err(|source| AgentError::Local {
                what: "read a file",
                source,
            })?;
            if length == 0 {
                asked.send(&ToGuest::Data(Vec::new()))?;
                break;
            }
            count.add(&buffer[..length]);
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                match asked.send_input(rest, Some(self.limit))? {
                    Some(sent) => rest = &rest[sent..],
                    // The guest could not write it: its answer says why.
                    None => return Err(self.early_end(asked)),
                }
            }
        }
        // It may have much to write back.
        match asked.next(Some(self.limit.saturating_mul(6)))? {
            Incoming::Done(Ok(Reply::Transferred(guest))) => count.check(&guest),
            Incoming::Done(Err(failure)) => Err(asked.refused(failure)),
            _ => Err(asked.unexpected()),
        }
    }

    fn early_end(&self, asked: Asked) -> AgentError {
        let unexpected = asked.unexpected();
        asked.answer(self.limit).err().unwrap_or(unexpected)
    }

    /// Describes what is at a path; a symbolic link itself, unless it is to be followed.
    ///
    /// # Errors
    /// As all calls.
    pub fn stat(&self, path: impl Into<OsBytes>, follow: bool) -> Result<Metadata, AgentError> {
        let path = path.into();
        let request = Request::Stat { path, follow };
        self.call_for("look at a file", request, |reply| match reply {
            Reply::Metadata(metadata) => Some(metadata),
            _ => None,
        })
    }

    /// Lists a folder, up to so many entries.
    ///
    /// # Errors
    /// As all calls.
    pub fn list(&self, path: impl Into<OsBytes>, most: usize) -> Result<Vec<Entry>, AgentError> {
        let path = path.into();
        let mut all: Vec<Entry> = Vec::new();
        loop {
            let request = Request::List {
                path: path.clone(),
                after: all.last().map(|entry| entry.name.clone()),
            };
            let part = self.call_for("list a folder", request, |reply| match reply {
                Reply::Entries { entries, more } => Some((entries, more)),
                _ => None,
            });
            let (entries, more) = part?;
            // A guest that says that there is more, and has none, would be asked for ever.
            let ends = !more || entries.is_empty();
            let room = most.saturating_sub(all.len());
            all.extend(entries.into_iter().take(room));
            if ends || all.len() >= most {
                return Ok(all);
            }
        }
    }

    /// Makes a folder; with `parents` also those above it, and it may be there already.
    ///
    /// # Errors
    /// As all calls.
    pub fn make_dir(
        &self,
        path: impl Into<OsBytes>,
        mode: u32,
        parents: bool,
    ) -> Result<(), AgentError> {
        let path = path.into();
        let request = Request::MakeDir {
            path,
            mode,
            parents,
        };
        self.call_for_nothing("make a folder", request)
    }

    /// Renames a file or a folder.
    ///
    /// # Errors
    /// As all calls.
    pub fn rename(
        &self,
        from: impl Into<OsBytes>,
        to: impl Into<OsBytes>,
    ) -> Result<(), AgentError> {
        let (from, to) = (from.into(), to.into());
        self.call_for_nothing("move a file", Request::Move { from, to })
    }

    /// Removes a file or a folder; with `recursive` also what is in it.
    ///
    /// # Errors
    /// As all calls.
    pub fn remove(&self, path: impl Into<OsBytes>, recursive: bool) -> Result<(), AgentError> {
        let path = path.into();
        self.call_for_nothing("remove a file", Request::Remove { path, recursive })
    }

    /// Watches a file or a folder; with `recursive` also the folders in it. Changes from now on are
    /// reported.
    ///
    /// # Errors
    /// As all calls.
    pub fn watch(
        &self,
        path: impl Into<OsBytes>,
        recursive: bool,
    ) -> Result<FileWatch, AgentError> {
        let path = path.into();
        let asked = self
            .connection
            .ask("watch files", Request::Watch { path, recursive })?;
        match asked.next(Some(self.limit))? {
            Incoming::Event(Event::Watching) => Ok(FileWatch(asked)),
            Incoming::Done(Err(failure)) => Err(asked.refused(failure)),
            _ => Err(asked.unexpected()),
        }
    }
}

/// Changes of files in the guest, as they happen. It ends when it is dropped.
#[derive(Debug)]
pub struct FileWatch(Asked);

impl FileWatch {
    /// Waits for the next changes. Whether others before them were lost, as there were too many.
    ///
    /// # Errors
    /// As all calls. After [`AgentError::NoAnswer`] it can be asked again.
    pub fn next(&self, limit: Option<Duration>) -> Result<(Vec<Change>, bool), AgentError> {
        loop {
            match self.0.next(limit)? {
                Incoming::Event(Event::Changes { changes, lost }) => return Ok((changes, lost)),
                Incoming::Event(_) => {}
                Incoming::Data(Stream::Input | Stream::Output | Stream::Error, _) => {}
                Incoming::Done(Err(failure)) => return Err(self.0.refused(failure)),
                Incoming::Done(Ok(_)) => return Err(self.0.unexpected()),
            }
        }
    }
}
