//! Digest of a claim's token: the record holds its SHA-256 only, so that nobody who reads the
//! record, or a copy of it, can use the claim.

use std::fmt;

use rusqlite::{
    ToSql,
    types::{FromSql, FromSqlResult, ToSqlOutput, ValueRef},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// SHA-256 of a claim's token, in hexadecimal. A token has 128 random bits, so it cannot be found
/// from its digest.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String")]
pub struct TokenDigest(String);

impl TokenDigest {
    /// The digest of a token.
    #[must_use]
    pub fn of(token: &str) -> Self {
        let digest = Sha256::digest(token.as_bytes());
        Self(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// 64 hexadecimal digits.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// From the record or a recovery file. Earlier versions wrote the token itself, which is half as
/// long.
impl From<String> for TokenDigest {
    fn from(recorded: String) -> Self {
        if recorded.len() == 64 {
            Self(recorded)
        } else {
            Self::of(&recorded)
        }
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

impl ToSql for TokenDigest {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl FromSql for TokenDigest {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        String::column_result(value).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_an_earlier_record_is_the_digest_of_itself() {
        let token = "0123456789abcdef0123456789abcdef";
        let digest = TokenDigest::of(token);
        assert_eq!(TokenDigest::from(token.to_owned()), digest);
        assert_eq!(TokenDigest::from(digest.0.clone()), digest);
        // What is recorded is no token.
        assert_ne!(TokenDigest::of(&digest.0), digest);
        assert!(!format!("{digest:?}").contains(&digest.0));
    }
}
