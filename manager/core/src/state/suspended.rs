//! Records of suspended claims. The guest's state lies in a bundle, and only this record says whose
//! it is; so, unlike other records of guests, it must survive a reboot of the host.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{
    ClaimFile, Error, State, TokenDigest,
    pools::{bad, guest_id},
};
use crate::guest_id::GuestId;

/// How far a claim's guest is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SuspendedClaimState {
    /// Its bundle is being written; until that is sealed the guest is what counts.
    Suspending,
    /// Its bundle is what counts.
    Suspended,
    /// It is being restored; until it has answered the bundle is what counts.
    Resuming,
}

impl SuspendedClaimState {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Resuming => "resuming",
        }
    }
}

/// A claim whose guest is suspended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuspendedClaimRow {
    /// Digest of the claim's token.
    pub token: TokenDigest,
    /// The pool.
    pub pool: String,
    /// The guest that was suspended.
    pub guest: GuestId,
    /// The bundle, `DIR/NAME`.
    pub bundle: String,
    /// How far it is.
    pub state: SuspendedClaimState,
    /// When it was suspended, RFC 3339.
    pub created_at: String,
}

const COLUMNS: &str = "token, pool, guest, bundle, state, created_at";

impl State {
    /// Records that the guest of a claim is about to be suspended into a bundle. Its lease does not
    /// end any more. `false` when there is no such claim.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn begin_suspended_claim(
        &mut self,
        token: &TokenDigest,
        bundle: &str,
    ) -> Result<bool, Error> {
        let begun = self.changed(
            "INSERT OR REPLACE INTO suspended_claim
             SELECT token, pool, guest, ?2, 'suspending', ?3 FROM entry
             WHERE token = ?1 AND state = 'claimed'",
            params![token, bundle, Timestamp::now().to_string()],
        )?;
        if begun && let Some(suspended) = self.suspended_claim(token)? {
            self.write_claim_file(&suspended).inspect_err(|_| {
                // Otherwise the next reconciliation finds that it was not suspended. Its recovery
                // file may exist already.
                let _ = self.remove_claim_file(&suspended.guest);
                let _ = self.changed("DELETE FROM suspended_claim WHERE token = ?1", [token]);
            })?;
        }
        Ok(begun)
    }

    /// Claimed → cold again, with the bundle that the claim's guest was restored from, which is
    /// named after the guest that was suspended into it. `false` when there is no such claim.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn suspend_again(
        &mut self,
        token: &TokenDigest,
        suspended: &GuestId,
        bundle: &str,
    ) -> Result<bool, Error> {
        let rests = self.changed(
            "INSERT OR REPLACE INTO suspended_claim
             SELECT token, pool, ?2, ?3, 'suspended', ?4 FROM entry
             WHERE token = ?1 AND state = 'claimed'",
            params![
                token,
                suspended.to_string(),
                bundle,
                Timestamp::now().to_string()
            ],
        )?;
        if rests && let Some(suspended) = self.suspended_claim(token)? {
            self.write_claim_file(&suspended)?;
        }
        Ok(rests)
    }

    /// Records a claim that is kept beside its bundle, and was lost from the record. `false` when
    /// it is recorded.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn recall_suspended_claim(&mut self, kept: &ClaimFile) -> Result<bool, Error> {
        self.changed(
            "INSERT OR IGNORE INTO suspended_claim VALUES (?1, ?2, ?3, ?4, 'suspended', ?5)",
            params![
                kept.token,
                kept.pool,
                kept.guest,
                kept.bundle,
                kept.created_at
            ],
        )
    }

    /// Suspending → cold, or resuming → cold.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn mark_suspended(&mut self, token: &TokenDigest) -> Result<bool, Error> {
        if let Some(suspended) = self.suspended_claim(token)?
            && !self.has_claim_file(&suspended.guest)
        {
            self.write_claim_file(&suspended)?;
        }
        self.changed(
            "UPDATE suspended_claim SET state = 'suspended' WHERE token = ?1",
            [token],
        )
    }

    /// Cold → resuming, by one of any number who want it; `None` when it is not cold.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn begin_resume(
        &mut self,
        token: &TokenDigest,
    ) -> Result<Option<SuspendedClaimRow>, Error> {
        let taken = self.changed(
            "UPDATE suspended_claim SET state = 'resuming' WHERE token = ?1 AND state = 'suspended'",
            [token],
        )?;
        if taken {
            self.suspended_claim(token)
        } else {
            Ok(None)
        }
    }

    /// Removes the record of a suspended claim; `false` when there is none, or when `only_cold` is
    /// set and the claim is just being suspended or resumed.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn forget_suspended_claim(
        &mut self,
        token: &TokenDigest,
        only_cold: bool,
    ) -> Result<bool, Error> {
        if let Some(suspended) = self.suspended_claim(token)?
            && (suspended.state == SuspendedClaimState::Suspended || !only_cold)
        {
            self.remove_claim_file(&suspended.guest)?;
        }
        self.changed(
            "DELETE FROM suspended_claim WHERE token = ?1 AND (state = 'suspended' OR NOT ?2)",
            params![token, only_cold],
        )
    }

    /// The suspended claim with this token.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn suspended_claim(&self, token: &TokenDigest) -> Result<Option<SuspendedClaimRow>, Error> {
        self.database
            .query_row(
                &format!("SELECT {COLUMNS} FROM suspended_claim WHERE token = ?1"),
                [token],
                from_row,
            )
            .optional()
            .map_err(|e| self.database_error(e))
    }

    /// All suspended claims, the oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn suspended_claims(&self) -> Result<Vec<SuspendedClaimRow>, Error> {
        let read = || {
            let mut statement = self.database.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM suspended_claim ORDER BY rowid"
            ))?;
            let rows = statement.query_map([], from_row)?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.database_error(e))
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<SuspendedClaimRow> {
    Ok(SuspendedClaimRow {
        token: row.get(0)?,
        pool: row.get(1)?,
        guest: guest_id(row, 2)?,
        bundle: row.get(3)?,
        state: match row.get_ref(4)?.as_str()? {
            "suspending" => SuspendedClaimState::Suspending,
            "suspended" => SuspendedClaimState::Suspended,
            "resuming" => SuspendedClaimState::Resuming,
            _ => return Err(bad(4, "not a suspended claim's state")),
        },
        created_at: row.get(5)?,
    })
}
