//! Names of guests: which are allowed, which come next, and in which order they are listed.

use std::collections::HashSet;

use rusqlite::{OptionalExtension, params};

use super::{Error, GuestRow, Reservation, guests::signed};

impl Reservation<'_> {
    /// Names of new guests, `PREFIX-N`. Numbers go on from the last one that was given, so that an
    /// old name never leads to another guest. They begin again when no guest of the prefix is left,
    /// except in a pool (`of_pool`), because claimers hold the names of its guests.
    ///
    /// # Errors
    /// [`Error::Name`] when the prefix makes names that a guest cannot have, or when the database
    /// cannot be written.
    pub fn names(
        &self,
        existing: &[GuestRow],
        prefix: &str,
        count: usize,
        of_pool: bool,
    ) -> Result<Vec<String>, Error> {
        let state = self.0;
        if !of_pool {
            // '.' comes after '-'.
            state.changed(
                "DELETE FROM numbered WHERE NOT of_pool AND NOT EXISTS
                 (SELECT 1 FROM guest WHERE name >= prefix || '-' AND name < prefix || '.')",
                [],
            )?;
        }
        let last: Option<i64> = state
            .database
            .prepare_cached("SELECT last FROM numbered WHERE prefix = ?1")
            .and_then(|mut statement| statement.query_row([prefix], |row| row.get(0)))
            .optional()
            .map_err(|e| state.database_error(e))?;
        let last = u64::try_from(last.unwrap_or(0)).unwrap_or(0);
        let names = new_names(existing, prefix, last, count)?;
        let last = names
            .last()
            .and_then(|name| name.rsplit_once('-')?.1.parse().ok())
            .unwrap_or(last);
        state.changed(
            "INSERT INTO numbered (prefix, last, of_pool) VALUES (?1, ?2, ?3)
             ON CONFLICT (prefix) DO UPDATE SET last = ?2, of_pool = of_pool OR ?3",
            params![prefix, signed(last), of_pool],
        )?;
        Ok(names)
    }
}

/// Names of new guests: `PREFIX-N`, with the lowest numbers after `last` that are free.
///
/// # Errors
/// [`Error::Name`] when the prefix makes names that a guest cannot have.
pub fn new_names(
    existing: &[GuestRow],
    prefix: &str,
    last: u64,
    count: usize,
) -> Result<Vec<String>, Error> {
    let taken: HashSet<&str> = existing.iter().map(|row| row.name.as_str()).collect();
    let names: Vec<String> = (last.saturating_add(1)..)
        .map(|n| format!("{prefix}-{n}"))
        .filter(|name| !taken.contains(name.as_str()))
        .take(count)
        .collect();
    check(prefix, names.last().map_or(prefix, String::as_str))?;
    Ok(names)
}

/// This very name for a new guest.
///
/// # Errors
/// [`Error::Name`] when a guest cannot have it, or another has it.
pub fn new_name(existing: &[GuestRow], name: &str) -> Result<String, Error> {
    check(name, name)?;
    if existing.iter().any(|row| row.name == name) {
        return Err(Error::Name {
            name: name.to_owned(),
            reason: "another guest has it",
        });
    }
    Ok(name.to_owned())
}

/// Whether a guest may be named `whole`, which is `stem`, with or without a number.
fn check(stem: &str, whole: &str) -> Result<(), Error> {
    let refuse = |reason| {
        Err(Error::Name {
            name: stem.to_owned(),
            reason,
        })
    };
    if !stem.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return refuse("it must begin with a letter or digit");
    }
    if !stem
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    {
        return refuse("it may have letters, digits, '-', '_' and '.' only");
    }
    if whole.len() > 32 {
        return refuse("it is longer than 32 bytes, its number counted");
    }
    Ok(())
}

/// Sorts `g-2` before `g-10`.
pub(super) fn natural(name: &str) -> (String, u64, String) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (
        stem.to_owned(),
        name[stem.len()..].parse().unwrap_or(u64::MAX),
        name.to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_lowest_free_ones() {
        assert_eq!(new_names(&[], "g", 0, 3).unwrap(), ["g-1", "g-2", "g-3"]);
        assert_eq!(new_names(&[], "g", 8, 2).unwrap(), ["g-9", "g-10"]);
        for bad in ["", "-x", "a b", "a/b", "ä", &"x".repeat(31)] {
            assert!(new_names(&[], bad, 0, 1).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_sort_by_their_numbers() {
        let mut names = ["g-10", "g-9", "a", "g-1"];
        names.sort_by_key(|n| natural(n));
        assert_eq!(names, ["a", "g-1", "g-9", "g-10"]);
    }
}
