//! Changes of the record: each one is on the disk before its caller learns that it was made.

use std::time::Duration;

use rusqlite::{Params, Transaction, TransactionBehavior};

use super::{Error, State, holder, journal::Journal, pools::guest_id, stops::Change};
use crate::{
    faults::{self, Point},
    guest_id::GuestId,
};

/// How long a change that can be made later waits for another process's.
const SOON: Duration = Duration::from_secs(2);

impl State {
    /// Makes a change that can be made later as well: it does not wait long for another process's.
    pub(crate) fn soon<T>(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        holder::within(SOON, || change(self))
    }

    /// Makes a change when it is this thread's turn. When this returns, it is on the disk; within
    /// a transaction, when that is.
    fn keep<T, E: From<Error>>(&self, change: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        if !self.database.is_autocommit() {
            return change();
        }
        let count = || self.database.total_changes();
        let change = || {
            let _under_way = Change::begin();
            faults::at(Point::RecordChange).map_err(|source| Error::Io {
                action: "write",
                path: self.path(),
                source,
            })?;
            let before = count();
            let value = change()?;
            Ok((value, count() != before))
        };
        self.journal.keep(change, |source| {
            E::from(Error::Io {
                action: "bring to the disk",
                path: Journal::path(&self.path()),
                source,
            })
        })
    }

    /// Makes several changes as one.
    pub(super) fn at_once<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let failed = |e| E::from(self.database_error(e));
        self.keep(|| {
            let immediate = TransactionBehavior::Immediate;
            let transaction =
                Transaction::new_unchecked(&self.database, immediate).map_err(failed)?;
            let value = change(self)?;
            transaction.commit().map_err(failed)?;
            Ok(value)
        })
    }

    /// Makes a change; says whether there was anything to change.
    pub(super) fn changed(&self, statement: &str, with: impl Params) -> Result<bool, Error> {
        self.keep(|| {
            self.database
                .prepare_cached(statement)
                .and_then(|mut prepared| prepared.execute(with))
                .map(|rows| rows > 0)
                .map_err(|e| self.database_error(e))
        })
    }

    /// Adds a row; returns its number.
    pub(super) fn added(&self, statement: &str, with: impl Params) -> Result<i64, Error> {
        self.keep(|| {
            self.database
                .prepare_cached(statement)
                .and_then(|mut prepared| prepared.insert(with))
                .map_err(|e| self.database_error(e))
        })
    }

    /// Makes the same change for each of many.
    pub(super) fn change_each<P: Params>(
        &self,
        statement: &str,
        each: impl ExactSizeIterator<Item = P>,
    ) -> Result<(), Error> {
        if each.len() == 0 {
            return Ok(());
        }
        self.at_once(|state| {
            for one in each {
                state.changed(statement, one)?;
            }
            Ok(())
        })
    }

    /// Makes a change that returns a guest's id, if there was one to change.
    pub(super) fn changed_guest(
        &self,
        statement: &str,
        with: impl Params,
    ) -> Result<Option<GuestId>, Error> {
        self.keep(|| {
            self.database
                .prepare_cached(statement)
                .and_then(|mut prepared| {
                    let mut rows = prepared.query(with)?;
                    let found = rows.next()?.map(|row| guest_id(row, 0)).transpose()?;
                    // Run to its end: only then the change is committed.
                    while rows.next()?.is_some() {}
                    Ok(found)
                })
                .map_err(|e| self.database_error(e))
        })
    }
}
