//! Damage checks of the database for what SQLite does not see: a journal that was taken away, and a
//! file that is empty but must not be. SQLite itself reports damage in what it reads.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use nix::fcntl::{FcntlArg, fcntl};
use rusqlite::Connection;

use super::{DATABASE, Error, journal::Journal, recovery_files};

/// Name of the file that a rebuild is still filling.
pub(super) const UNFINISHED: &str = "brood.sqlite.new";

/// Refuses files that SQLite would take without a word.
pub(super) fn check_files(dir: &Path) -> Result<(), Error> {
    let path = dir.join(DATABASE);
    let damaged = |reason: &str| {
        Err(Error::Damaged {
            path: path.clone(),
            reason: reason.to_owned(),
        })
    };
    if dir.join(UNFINISHED).exists() {
        return damaged("it is being rebuilt, or a rebuild was interrupted");
    }
    if journal_was_taken(dir) {
        return damaged("its journal brood.sqlite-wal is missing: what was recorded last is lost");
    }
    Ok(())
}

/// Whether somebody took the journal away. SQLite creates the journal before its index (`-shm`) and
/// removes it after the index, so an index alone shows that the journal was taken. An index alone
/// also stays when SQLite could not remove it, or a power cut undid the removal; then the database
/// holds all that the journal held, and the index says so.
fn journal_was_taken(dir: &Path) -> bool {
    let index = dir.join(format!("{DATABASE}-shm"));
    let ino = |path: &Path| fs::symlink_metadata(path).ok().map(|file| file.ino());
    let journal = dir.join(format!("{DATABASE}-wal"));
    let look = || ino(&index).filter(|_| ino(&journal).is_none());
    // Another command may be between the two just now.
    let first = look();
    first.is_some() && look() == first && look() == first && !all_is_in_the_database(&index)
}

/// Whether an index says that the database holds all of its journal (SQLite's file format, "The
/// WAL-Index File Format"), and no process uses it.
fn all_is_in_the_database(index: &Path) -> bool {
    // SQLite's locks of a process go when it closes any descriptor of the file: where this process
    // has the database open, nothing is looked at.
    if Journal::is_any_open() {
        return false;
    }
    let Ok(file) = File::options().read(true).write(true).open(index) else {
        return false;
    };
    let mut head = [0; 100];
    if file.read_exact_at(&mut head, 0).is_err() || is_locked(&file) {
        return false;
    }
    let word = |at: usize| {
        head[at..]
            .first_chunk()
            .map(|word| u32::from_ne_bytes(*word))
    };
    let (is_made, frames, brought) = (head[12] == 1, word(16), word(96));
    is_made && frames == brought
}

/// Whether another process has the index open: each holds a lock on this byte.
fn is_locked(file: &File) -> bool {
    const DEAD_MAN_SWITCH: libc::off_t = 128;
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: DEAD_MAN_SWITCH,
        l_len: 1,
        // SAFETY: plain numbers, which may all be 0.
        ..unsafe { std::mem::zeroed() }
    };
    let asked = fcntl(file, FcntlArg::F_GETLK(&mut lock));
    asked.is_err() || lock.l_type != libc::F_UNLCK as libc::c_short
}

/// Refuses a database that is new where there was one.
pub(super) fn check_new(dir: &Path) -> Result<(), Error> {
    if !recovery_files::are_in(dir)? {
        return Ok(());
    }
    Err(Error::Damaged {
        path: dir.join(DATABASE),
        reason: "it is missing or empty, and there are pools or claims that it should tell of"
            .to_owned(),
    })
}

/// Looks at all pages of a database: a damaged one may lie where a command does not read. Returns
/// what is wrong.
pub(super) fn check_pages(database: &Connection) -> rusqlite::Result<Option<String>> {
    check(database, "PRAGMA quick_check(1)")
}

/// The same, and whether indexes have what their tables have.
pub(super) fn check_all(database: &Connection) -> rusqlite::Result<Option<String>> {
    check(database, "PRAGMA integrity_check(1)")
}

fn check(database: &Connection, how: &str) -> rusqlite::Result<Option<String>> {
    let found: String = database.query_row(how, [], |row| row.get(0))?;
    Ok((found != "ok").then(|| found.trim().replace('\n', "; ")))
}
