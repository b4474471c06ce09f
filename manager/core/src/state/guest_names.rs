//! Names of guests: which are allowed, which come next, and in which order they are listed.

use rusqlite::{OptionalExtension, params};

use super::{Error, Reservation, guests::signed};

impl Reservation<'_> {
    /// Names of new guests, `PREFIX-N`. Numbers go on from the last one that was given, so that an
    /// old name never leads to another guest. They begin again when no guest of the prefix is left,
    /// except in a pool (`of_pool`), because claimers hold the names of its guests.
    ///
    /// # Errors
    /// [`Error::Name`] when the prefix makes names that a guest cannot have, or when the database
    /// cannot be written.
    pub fn names(&self, prefix: &str, count: usize, of_pool: bool) -> Result<Vec<String>, Error> {
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
        let mut names = Vec::with_capacity(count);
        let mut number = last;
        while names.len() < count {
            number = number.saturating_add(1);
            let name = format!("{prefix}-{number}");
            check(prefix, &name)?;
            if !self.is_taken(&name)? {
                names.push(name);
            }
        }
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

    /// This very name for a new guest.
    ///
    /// # Errors
    /// [`Error::Name`] when a guest cannot have it, or another has it.
    pub fn name(&self, name: &str) -> Result<String, Error> {
        check(name, name)?;
        if self.is_taken(name)? {
            return Err(Error::Name {
                name: name.to_owned(),
                reason: "another guest has it",
            });
        }
        Ok(name.to_owned())
    }

    fn is_taken(&self, name: &str) -> Result<bool, Error> {
        let state = self.0;
        state
            .database
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM guest WHERE name = ?1)")
            .and_then(|mut statement| statement.query_row([name], |row| row.get(0)))
            .map_err(|e| state.database_error(e))
    }
}

/// Whether guests may be named `PREFIX-N`.
///
/// # Errors
/// [`Error::Name`] when a guest cannot have such a name.
pub fn check_prefix(prefix: &str) -> Result<(), Error> {
    check(prefix, &format!("{prefix}-1"))
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
    fn a_prefix_makes_names_that_guests_can_have() {
        for good in ["g", "web-2", "a.b_c", &"x".repeat(30)] {
            check_prefix(good).unwrap();
        }
        for bad in ["", "-x", "a b", "a/b", "ä", &"x".repeat(31)] {
            assert!(check_prefix(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_sort_by_their_numbers() {
        let mut names = ["g-10", "g-9", "a", "g-1"];
        names.sort_by_key(|n| natural(n));
        assert_eq!(names, ["a", "g-1", "g-9", "g-10"]);
    }
}
