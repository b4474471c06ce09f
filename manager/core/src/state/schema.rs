//! Schema of the database: its tables, and the migrations from each version to the next.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, TransactionBehavior, functions::FunctionFlags};

use super::{
    Error, TokenDigest, damage,
    holder::{self, LOCK_TIMEOUT},
};

/// Statements that lead from each version to the next.
const MIGRATIONS: [&str; 17] = [
    "
    CREATE TABLE guest (
        id          TEXT PRIMARY KEY,            -- 16 hexadecimal digits
        name        TEXT NOT NULL UNIQUE,
        checkpoint  TEXT NOT NULL,               -- absolute DIR/NAME of the bundle
        sha256      TEXT NOT NULL,               -- of its memory file
        memory      INTEGER NOT NULL,            -- bytes
        allowance   INTEGER NOT NULL,            -- bytes of private memory promised
        generation  TEXT NOT NULL,
        mac         TEXT NOT NULL,
        session     TEXT NOT NULL,               -- name of the restore's lock
        boot        TEXT NOT NULL,               -- the host's boot that it runs in
        created_at  TEXT NOT NULL,
        state       TEXT NOT NULL,               -- restoring, running, dead
        pid         INTEGER,
        start_time  INTEGER,
        reason      TEXT                         -- how it ended
    ) STRICT;
    CREATE INDEX guest_of_sha256 ON guest (sha256);
    CREATE TABLE verified (                      -- memory files whose digest was computed
        device INTEGER, inode INTEGER, size INTEGER, mtime_ns TEXT, ctime_ns TEXT,
        sha256 TEXT NOT NULL,
        PRIMARY KEY (device, inode, size, mtime_ns, ctime_ns)
    ) STRICT;
    CREATE TABLE measured (                      -- what guests cost, by checkpoint
        sha256           TEXT PRIMARY KEY,
        guests           INTEGER NOT NULL,
        overhead         INTEGER NOT NULL,       -- bytes a guest
        pristine_private INTEGER NOT NULL,
        expected_private INTEGER NOT NULL,
        at               TEXT NOT NULL
    ) STRICT;
",
    "
    CREATE TABLE pool (
        name        TEXT PRIMARY KEY,
        checkpoint  TEXT NOT NULL,               -- absolute DIR/NAME of the bundle
        sha256      TEXT NOT NULL,               -- of its memory file
        hot         INTEGER NOT NULL,            -- how many hot entries it should have
        most        INTEGER,                     -- entries of any kind; NULL: no limit
        lease_s     INTEGER NOT NULL,            -- how long a claim lasts
        allowance   INTEGER NOT NULL,            -- bytes of private memory for each guest
        created_at  TEXT NOT NULL
    ) STRICT;
    CREATE TABLE entry (                         -- guests that belong to a pool
        guest       TEXT PRIMARY KEY,
        pool        TEXT NOT NULL,
        state       TEXT NOT NULL,               -- filling, hot, claimed, releasing
        token       TEXT UNIQUE,                 -- the claimer's
        expires     INTEGER                      -- of the claim, milliseconds since boot
    ) STRICT;
    CREATE INDEX entry_of_pool ON entry (pool, state);
    CREATE TABLE cold (                          -- claims whose guest is suspended
        token       TEXT PRIMARY KEY,
        pool        TEXT NOT NULL,
        guest       TEXT NOT NULL,               -- the guest that was suspended
        bundle      TEXT NOT NULL,               -- absolute DIR/NAME of its delta
        state       TEXT NOT NULL,               -- suspending, cold, resuming
        created_at  TEXT NOT NULL
    ) STRICT;
    CREATE TRIGGER entry_goes_with_its_guest AFTER DELETE ON guest
    BEGIN
        DELETE FROM entry WHERE guest = OLD.id;
    END;
",
    "
    ALTER TABLE guest ADD COLUMN disk TEXT;      -- what its disk is a clone of
    CREATE TABLE disk_place (                    -- where guests' disks and their snapshots may lie
        place       TEXT PRIMARY KEY
    ) STRICT;
",
    "
    ALTER TABLE pool ADD COLUMN hot_min INTEGER;      -- filled when fewer are hot; NULL: hot
    ALTER TABLE pool ADD COLUMN max_memory INTEGER;   -- bytes; NULL: no limit, as in all of these
    ALTER TABLE pool ADD COLUMN max_age_s INTEGER;    -- of hot entries
    ALTER TABLE pool ADD COLUMN refill_per_s INTEGER; -- guests that the daemon restores a second
    ALTER TABLE entry ADD COLUMN since INTEGER;       -- when it came, milliseconds since boot
    CREATE TABLE waiting (                            -- those who wait for an entry, first come first
        ticket      INTEGER PRIMARY KEY AUTOINCREMENT,
        pool        TEXT NOT NULL,
        pid         INTEGER NOT NULL,                 -- the process that waits
        start_time  INTEGER NOT NULL,
        until       INTEGER NOT NULL                  -- milliseconds since boot
    ) STRICT;
    CREATE INDEX waiting_for_pool ON waiting (pool, ticket);
",
    // Tokens were there as they are shown; from here on their digests are.
    "
    UPDATE entry SET token = token_digest(token) WHERE token IS NOT NULL;
    UPDATE cold SET token = token_digest(token);
",
    "
    CREATE TABLE failing (                            -- pools that could not be filled
        pool        TEXT PRIMARY KEY,
        error       TEXT NOT NULL,                    -- what went wrong the last time
        since       TEXT NOT NULL,
        tries       INTEGER NOT NULL,                 -- failures in a row
        retry_at    INTEGER NOT NULL                  -- milliseconds since boot
    ) STRICT;
",
    "
    CREATE TABLE bundle_folder (                 -- where deltas were written or used
        folder      TEXT PRIMARY KEY             -- absolute
    ) STRICT;
",
    "
    CREATE TABLE ending (                             -- guests that somebody is ending
        guest       TEXT PRIMARY KEY
    ) STRICT;
    CREATE TRIGGER ending_goes_with_its_guest AFTER DELETE ON guest
    BEGIN
        DELETE FROM ending WHERE guest = OLD.id;
    END;
",
    "
    CREATE TABLE numbered (                      -- names PREFIX-N that were given to guests
        prefix      TEXT PRIMARY KEY,
        last        INTEGER NOT NULL,            -- the last N
        of_pool     INTEGER NOT NULL             -- whether numbers go on for ever
    ) STRICT;
",
    // "cold" also says how an entry of a pool came to be.
    "
    ALTER TABLE cold RENAME TO suspended_claim;
    UPDATE suspended_claim SET state = 'suspended' WHERE state = 'cold';
",
    "
    ALTER TABLE guest RENAME COLUMN allowance TO private_limit;
    ALTER TABLE pool RENAME COLUMN allowance TO private_limit;
",
    "
    ALTER TABLE guest ADD COLUMN enforce_private_limit INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE pool ADD COLUMN enforce_private_limit INTEGER NOT NULL DEFAULT 0;
",
    "
    ALTER TABLE guest ADD COLUMN engine TEXT;         -- NULL: its files in the run folder tell
    ALTER TABLE guest ADD COLUMN accelerator TEXT;    -- of QEMU's guests
",
    "
    ALTER TABLE guest ADD COLUMN forwards TEXT;       -- JSON; NULL: no port leads into it
    ALTER TABLE pool ADD COLUMN network TEXT;         -- NULL: as the checkpoint's
    ALTER TABLE pool ADD COLUMN publish TEXT NOT NULL DEFAULT '[]';
",
    // Counts the changes of a pool's network; an entry has the number of its network.
    "
    ALTER TABLE pool ADD COLUMN network_version INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE entry ADD COLUMN network_version INTEGER NOT NULL DEFAULT 0;
",
    // Admission reads these few rows, not a row for each guest.
    "
    CREATE TABLE promise (                       -- guests that were promised the same memory
        state         TEXT NOT NULL,
        private_limit INTEGER NOT NULL,
        memory        INTEGER NOT NULL,
        guests        INTEGER NOT NULL,
        PRIMARY KEY (state, private_limit, memory)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO promise SELECT state, private_limit, memory, count(*) FROM guest GROUP BY 1, 2, 3;
    CREATE TRIGGER promise_to_new_guest AFTER INSERT ON guest
    BEGIN
        INSERT INTO promise VALUES (NEW.state, NEW.private_limit, NEW.memory, 1)
        ON CONFLICT DO UPDATE SET guests = guests + 1;
    END;
    CREATE TRIGGER promise_to_guest_that_went AFTER DELETE ON guest
    BEGIN
        UPDATE promise SET guests = guests - 1
        WHERE state = OLD.state AND private_limit = OLD.private_limit AND memory = OLD.memory;
    END;
    CREATE TRIGGER promise_to_changed_guest
    AFTER UPDATE OF state, private_limit, memory ON guest
    WHEN OLD.state != NEW.state OR OLD.private_limit != NEW.private_limit
        OR OLD.memory != NEW.memory
    BEGIN
        UPDATE promise SET guests = guests - 1
        WHERE state = OLD.state AND private_limit = OLD.private_limit AND memory = OLD.memory;
        INSERT INTO promise VALUES (NEW.state, NEW.private_limit, NEW.memory, 1)
        ON CONFLICT DO UPDATE SET guests = guests + 1;
    END;
    CREATE INDEX guest_with_forwards ON guest (state) WHERE forwards IS NOT NULL;
",
    "
    ALTER TABLE guest ADD COLUMN landlock INTEGER;    -- its process's version; NULL: not known
",
];

/// First version whose tokens are digests.
pub(super) const TOKEN_DIGESTS: i64 = 5;

/// A database of the newest version.
pub(super) struct OpenDatabase {
    pub(super) database: Connection,
    /// The version that it had before; 0 when it is new.
    pub(super) version: i64,
}

/// Opens the database and migrates it to the newest version. Calls back for a new one.
pub(super) fn open(
    path: &Path,
    may_be_new: impl FnOnce() -> Result<(), Error>,
) -> Result<OpenDatabase, Error> {
    let failed = |source| Error::database(path, source);
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let mut database = Connection::open(path).map_err(failed)?;
    holder::note(path);
    database.busy_handler(Some(holder::wait)).map_err(failed)?;
    let version =
        |c: &Connection| c.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
    let found = version(&database).map_err(failed)?;
    if found > known {
        return Err(Error::TooNew {
            path: path.to_owned(),
            found,
            known,
        });
    }
    if found == 0 {
        may_be_new()?;
    } else if let Some(reason) = damage::check_pages(&database).map_err(failed)? {
        return Err(Error::Damaged {
            path: path.to_owned(),
            reason,
        });
    }
    if found < known {
        to_write_ahead_log(&database).map_err(failed)?;
        add_token_digest(&database).map_err(failed)?;
        // Replaced tokens must not stay in the file's free pages.
        database
            .pragma_update(None, "secure_delete", "ON")
            .map_err(failed)?;
        let transaction = database
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        // Another command may have been first.
        let found = usize::try_from(version(&transaction).map_err(failed)?).unwrap_or(0);
        for migration in MIGRATIONS.iter().skip(found) {
            transaction.execute_batch(migration).map_err(failed)?;
        }
        transaction
            .pragma_update(None, "user_version", known)
            .map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    // `Journal` syncs what a commit leaves unsynced.
    database
        .pragma_update(None, "synchronous", "NORMAL")
        .map_err(failed)?;
    Ok(OpenDatabase {
        database,
        version: found,
    })
}

/// The function `token_digest` for migrations.
fn add_token_digest(database: &Connection) -> rusqlite::Result<()> {
    database.create_scalar_function(
        "token_digest",
        1,
        FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC,
        |call| call.get::<TokenDigest>(0),
    )
}

/// Switches the journal. SQLite does not wait for others who do the same at the same moment, as
/// the first two commands on a new folder may.
fn to_write_ahead_log(database: &Connection) -> rusqlite::Result<()> {
    let begin = Instant::now();
    loop {
        match database.pragma_update(None, "journal_mode", "WAL") {
            Err(e)
                if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && begin.elapsed() < LOCK_TIMEOUT =>
            {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use rusqlite::params;

    use super::*;
    use crate::{
        state::{DATABASE, Promise, RowState, State, TokenDigest},
        units::Bytes,
    };

    #[test]
    fn a_record_without_numbers_gets_them() {
        let dir = tempfile::tempdir().unwrap();
        let old = Connection::open(dir.path().join(DATABASE)).unwrap();
        to_write_ahead_log(&old).unwrap();
        add_token_digest(&old).unwrap();
        for migration in &MIGRATIONS[..8] {
            old.execute_batch(migration).unwrap();
        }
        old.execute(
            "INSERT INTO guest VALUES ('00000000000000aa', 'old', '/ckp/demo', '0', 3, 2, '', '', '',
             'boot', 'then', 'running', 1, 1, NULL, NULL)",
            [],
        )
        .unwrap();
        old.pragma_update(None, "user_version", 8).unwrap();
        drop(old);
        let mut state = State::open(dir.path()).unwrap();
        let promises: Result<_, Error> = state.reserve(|reservation| {
            assert_eq!(reservation.rows()?.len(), 1);
            reservation.promises()
        });
        let promised = Promise {
            state: RowState::Running,
            private_limit: Bytes(2),
            memory: Bytes(3),
            guests: 1,
        };
        assert_eq!(promises.unwrap(), [promised]);
        let mut names = |prefix: &str, count, of_pool| {
            state
                .reserve(|reservation| reservation.names(prefix, count, of_pool))
                .unwrap()
        };
        assert_eq!(names("p", 2, true), ["p-1", "p-2"]);
        assert_eq!(names("p", 1, true), ["p-3"]);
        assert_eq!(names("p", 1, false), ["p-4"], "a pool's prefix stays one");
        assert_eq!(names("g", 2, false), ["g-1", "g-2"]);
        assert_eq!(names("g", 1, false), ["g-1"], "no guest has such a name");
    }

    #[test]
    fn an_earlier_record_keeps_its_claims_and_loses_their_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let token = "0123456789abcdef0123456789abcdef";
        let guest = "00000000000000aa";
        let path = dir.path().join(DATABASE);
        let old = Connection::open(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        to_write_ahead_log(&old).unwrap();
        for migration in &MIGRATIONS[..4] {
            old.execute_batch(migration).unwrap();
        }
        old.pragma_update(None, "user_version", 4).unwrap();
        old.execute(
            "INSERT INTO cold VALUES (?1, 'p', ?2, '/cold/b', 'cold', 'then')",
            params![token, guest],
        )
        .unwrap();
        fs::create_dir(dir.path().join("cold")).unwrap();
        let kept = dir.path().join("cold").join(format!("{guest}.claim"));
        let claim = format!(
            r#"{{"token":"{token}","pool":"p","guest":"{guest}","bundle":"/cold/b","created_at":"then"}}"#
        );
        fs::write(&kept, claim).unwrap();
        drop(old);

        let state = State::open(dir.path()).unwrap();
        let cold = state
            .suspended_claim(&TokenDigest::of(token))
            .unwrap()
            .unwrap();
        assert_eq!(cold.bundle, "/cold/b");
        for file in [path, dir.path().join("brood.sqlite-wal"), kept] {
            let content = fs::read(&file).unwrap();
            let found = content
                .windows(token.len())
                .any(|at| at == token.as_bytes());
            assert!(!found, "{}", file.display());
        }
        drop(state);
        let again = State::open(dir.path()).unwrap();
        assert!(
            again
                .suspended_claim(&TokenDigest::of(token))
                .unwrap()
                .is_some()
        );
    }
}
