//! Changes of files, by `inotify(7)`.

use std::{
    collections::HashMap,
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use brood_agent_protocol::{Change, ChangeKind, Event, OsBytes, Reply};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};

use super::absolute;
use crate::{
    call::{Call, Interrupt},
    failure::Context,
    outbox::Sent,
    serve::Answer,
    wake::Waker,
};

/// How many folders are watched at most for one request.
const MAX_FOLDERS: usize = 8192;
/// How long the paths of one event are together at most.
const BATCH: usize = 32 * 1024;

struct Watch {
    inotify: Inotify,
    folders: HashMap<WatchDescriptor, PathBuf>,
    recursive: bool,
    changes: Vec<Change>,
    length: usize,
    lost: bool,
}

/// Reports changes until the host cancels it.
pub(crate) fn watch(call: &Call, path: &OsBytes, recursive: bool) -> Answer {
    let path = absolute(path)?;
    let tried = format!("cannot watch {}", path.display());
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).context(&tried)?;
    let waker = Arc::new(Waker::new().context(&tried)?);
    call.set_waker(Arc::clone(&waker));
    let mut watch = Watch {
        inotify,
        folders: HashMap::new(),
        recursive,
        changes: Vec::new(),
        length: 0,
        lost: false,
    };
    watch.add(&path).context(&tried)?;
    if recursive {
        watch.add_below(&path, false);
    }
    call.event(Event::Watching);
    loop {
        let mut fds = [
            PollFd::new(waker.fd(), PollFlags::POLLIN),
            PollFd::new(watch.inotify.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context(&tried),
        }
        waker.clear();
        match call.interrupted() {
            Some(Interrupt::Cancelled) => return Ok(Reply::Nothing),
            Some(interrupt) => return Err(interrupt.into()),
            None => {}
        }
        match watch.inotify.read_events() {
            Ok(events) => events.iter().for_each(|event| watch.take(event, call)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => return Err(e).context(&tried),
        }
        watch.flush(call);
    }
}

impl Watch {
    fn add(&mut self, path: &Path) -> nix::Result<()> {
        if self.folders.len() >= MAX_FOLDERS {
            return Err(Errno::ENOSPC);
        }
        let wanted = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE;
        let number = self.inotify.add_watch(path, wanted)?;
        self.folders.insert(number, path.to_path_buf());
        Ok(())
    }

    /// Watches the folders in this one. What was made in a new folder before that is reported here.
    fn add_below(&mut self, folder: &Path, report: bool) {
        let mut rest = vec![folder.to_path_buf()];
        while let Some(folder) = rest.pop() {
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            for entry in entries.flatten() {
                let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if report {
                    self.note(&entry.path(), ChangeKind::Created, directory);
                }
                if directory {
                    // Changes in a folder that cannot be watched are lost.
                    self.lost |= self.add(&entry.path()).is_err();
                    rest.push(entry.path());
                }
            }
        }
    }

    fn note(&mut self, path: &Path, kind: ChangeKind, directory: bool) {
        let path = OsBytes::from(path);
        let change = Change {
            path,
            kind,
            directory,
        };
        // A program that writes piece by piece is one change.
        if self.changes.last() != Some(&change) {
            self.length += change.path.as_bytes().len() + 8;
            self.changes.push(change);
        }
    }

    fn take(&mut self, event: &InotifyEvent, call: &Call) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.lost = true;
            return;
        }
        let Some(folder) = self.folders.get(&event.wd).cloned() else {
            return;
        };
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.folders.remove(&event.wd);
            return;
        }
        let directory = event.mask.contains(AddWatchFlags::IN_ISDIR);
        let path = match &event.name {
            Some(name) => folder.join(name),
            None => folder,
        };
        for (flags, kind) in [
            (AddWatchFlags::IN_CREATE, ChangeKind::Created),
            (
                AddWatchFlags::IN_CLOSE_WRITE.union(AddWatchFlags::IN_MODIFY),
                ChangeKind::Written,
            ),
            (AddWatchFlags::IN_ATTRIB, ChangeKind::Attributes),
            (
                AddWatchFlags::IN_DELETE.union(AddWatchFlags::IN_DELETE_SELF),
                ChangeKind::Removed,
            ),
            (AddWatchFlags::IN_MOVED_FROM, ChangeKind::MovedFrom),
            (AddWatchFlags::IN_MOVED_TO, ChangeKind::MovedTo),
        ] {
            if event.mask.intersects(flags) {
                self.note(&path, kind, directory);
                let new = matches!(kind, ChangeKind::Created | ChangeKind::MovedTo);
                if new && directory && self.recursive {
                    self.lost |= self.add(&path).is_err();
                    self.add_below(&path, kind == ChangeKind::Created);
                }
            }
        }
        if self.length >= BATCH {
            self.flush(call);
        }
    }

    /// Sends what is known, where there is room; else it is lost.
    fn flush(&mut self, call: &Call) {
        if self.changes.is_empty() {
            return;
        }
        // A message has a limit to its elements.
        for changes in self.changes.chunks(1024) {
            let event = Event::Changes {
                changes: changes.to_vec(),
                lost: self.lost,
            };
            self.lost = call.try_event(event) == Sent::NoRoom;
        }
        self.changes.clear();
        self.length = 0;
    }
}
