//! Journal of the database: SQLite's write-ahead log, synced to the disk once for many changes.
//!
//! SQLite itself syncs under its lock (`synchronous=FULL`), for one change after the other. Here
//! the threads of a process make their changes one after the other and then wait together: one
//! thread has the system write out what all of them have changed until then.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::changes::Changes;
use crate::faults::{self, Point};

/// A database's journal, open.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    changes: Arc<Changes>,
}

/// By device and inode of the journal.
static OPEN: Mutex<BTreeMap<(u64, u64), Weak<Changes>>> = Mutex::new(BTreeMap::new());

impl Journal {
    /// The journal of this database, which a connection has open.
    pub(super) fn of(database: &Path) -> io::Result<Self> {
        let file = File::open(Self::path(database))?;
        let metadata = file.metadata()?;
        let mut open = lock(&OPEN);
        open.retain(|_, changes| changes.strong_count() > 0);
        let known = open.entry((metadata.dev(), metadata.ino())).or_default();
        let changes = known.upgrade().unwrap_or_default();
        *known = Arc::downgrade(&changes);
        Ok(Self { file, changes })
    }

    /// Whether this process has any database open.
    pub(super) fn is_any_open() -> bool {
        lock(&OPEN)
            .values()
            .any(|changes| changes.strong_count() > 0)
    }

    /// Where the journal of a database is.
    pub(super) fn path(database: &Path) -> PathBuf {
        Self::beside(database, "-wal")
    }

    /// The file beside a database whose name ends so.
    pub(super) fn beside(database: &Path, end: &str) -> PathBuf {
        let mut path = database.as_os_str().to_owned();
        path.push(end);
        path.into()
    }

    /// Makes a change when it is this thread's turn. When this returns, it is on the disk.
    /// `change` says whether it changed anything.
    pub(super) fn keep<T, E>(
        &self,
        change: impl FnOnce() -> Result<(T, bool), E>,
        failed: impl FnOnce(io::Error) -> E,
    ) -> Result<T, E> {
        self.changes.keep(change, || {
            let synced = faults::at(Point::RecordSync).and_then(|()| self.file.sync_data());
            synced.map_err(failed)
        })
    }
}

/// A panic leaves a valid value: nothing here is changed halfway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_threads_change_at_once_is_all_kept_and_what_failed_is_not_counted() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("database");
        std::fs::write(Journal::path(&database), "").unwrap();
        let change = |of: u64| {
            let journal = Journal::of(&database).unwrap();
            for n in 0..50 {
                let made = journal.keep(|| Ok((n, n % 2 == 0)), |e| e);
                assert_eq!(made.unwrap(), n);
                let failed = journal.keep(|| Err::<((), _), _>(io::ErrorKind::Other), |e| e.kind());
                assert_eq!(failed, Err(io::ErrorKind::Other), "{of}");
            }
        };
        let one = Journal::of(&database).unwrap();
        thread::scope(|scope| (0..8).for_each(|of| drop(scope.spawn(move || change(of)))));
        assert_eq!(one.changes.counts(), (8 * 25, 8 * 25));
    }
}
