//! Whether the database can be relied on. SQLite says so of what it reads; this is about what it
//! does not see: a journal that was taken away, and a file that is empty where it must not be.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use rusqlite::Connection;

use super::{DATABASE, Error, keepsake};

/// What a file is called, in `dir`, that a rebuild is still filling.
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
        return damaged("it is being made anew, or that was cut off");
    }
    if journal_was_taken(dir) {
        return damaged("its journal brood.sqlite-wal is missing: what was recorded last is lost");
    }
    Ok(())
}

/// SQLite makes the journal before the index of it (`-shm`), and removes it after that: an index
/// alone is what is left when somebody took the journal.
fn journal_was_taken(dir: &Path) -> bool {
    let file = |end| fs::symlink_metadata(dir.join(format!("{DATABASE}-{end}"))).ok();
    let look = || match (file("shm"), file("wal")) {
        (Some(index), None) => Some(index.ino()),
        _ => None,
    };
    // Another command may be between the two just now.
    let first = look();
    first.is_some() && look() == first && look() == first
}

/// Refuses a database that is new where there was one.
pub(super) fn check_new(dir: &Path) -> Result<(), Error> {
    if !keepsake::are_in(dir)? {
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
