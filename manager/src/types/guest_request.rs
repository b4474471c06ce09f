//! Requests about guests that are there, and their answers.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::report;
use brood_core::{
    guests::{self, DestroyReport, EndedStrays, Guest, Guests, Left},
    restore::RestoreFailure,
};

/// Default time to wait for an answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// A request to a guest.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AskRequest {
    /// The request, word by word.
    #[schema(example = json!(["ping", "hello"]), min_items = 1)]
    pub(crate) request: Vec<String>,
    /// How long to wait for the answer, in seconds.
    #[schema(default = 10.0, exclusive_minimum = 0.0, maximum = 3600.0)]
    pub(crate) timeout_s: Option<f64>,
    /// Answer with a text for people, as `brood ask` prints it, instead of an object.
    #[serde(default)]
    pub(crate) text: bool,
}

/// A guest's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum GuestAnswer {
    /// For people.
    Text(String),
    /// For programs.
    Object(serde_json::Value),
}

impl AskRequest {
    /// Puts the request to a guest.
    pub(crate) fn put(
        &self,
        guests: &mut Guests<'_>,
        name: &str,
    ) -> Result<GuestAnswer, guests::Error> {
        let timeout = self.timeout_s.map_or(TIMEOUT, Duration::from_secs_f64);
        let answer = guests.ask(name, &self.request, timeout)?;
        Ok(if self.text {
            GuestAnswer::Text(answer.to_string())
        } else {
            GuestAnswer::Object(answer.to_json())
        })
    }
}

/// A guest was resumed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ResumeReport {
    /// Its name.
    pub(crate) name: String,
    /// From SIGCONT to its answer, in milliseconds.
    pub(crate) resume_ms: f64,
}

/// Guests were destroyed.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct DestroyAnswer {
    /// How many.
    pub(crate) destroyed: usize,
    /// Their names.
    pub(crate) guests: Vec<String>,
    /// Guests that could not be destroyed, and stay recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<report::RestoreFailure>)]
    pub(crate) left: Vec<RestoreFailure>,
    /// Names of guests that were left alone because they are claimed.
    #[serde(default)]
    pub(crate) spared: Vec<String>,
}

/// Guests to destroy.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DestroyTargets<'a> {
    /// All; claimed ones only when `force` is set.
    All { force: bool },
    /// These: names or ids.
    Named {
        guests: &'a [String],
        ignore_missing: bool,
    },
}

/// Guests of these names or ids, each once.
pub(crate) fn named(
    guests: &mut Guests<'_>,
    names: &[String],
    ignore_missing: bool,
) -> Result<Vec<Guest>, guests::Error> {
    let mut found: Vec<Guest> = Vec::new();
    for name in names {
        let guest = match guests.find(name) {
            Err(guests::Error::NoSuchGuest(_)) if ignore_missing => continue,
            found => found?,
        };
        if !found.iter().any(|other| other.row.id == guest.row.id) {
            found.push(guest);
        }
    }
    Ok(found)
}

impl DestroyAnswer {
    /// Destroys guests.
    pub(crate) fn of(
        guests: &mut Guests<'_>,
        targets: DestroyTargets<'_>,
    ) -> Result<Self, guests::Error> {
        let (doomed, claimed) = match targets {
            DestroyTargets::All { force } => guests
                .list()?
                .into_iter()
                .partition(|guest| force || !guest.is_claimed()),
            DestroyTargets::Named {
                guests: names,
                ignore_missing,
            } => (named(guests, names, ignore_missing)?, Vec::new()),
        };
        Ok(Self {
            spared: claimed.into_iter().map(|guest| guest.row.name).collect(),
            ..guests.destroy(&doomed)?.try_into()?
        })
    }

    /// Adds another result.
    pub(crate) fn add(&mut self, more: Self) {
        self.destroyed += more.destroyed;
        self.guests.extend(more.guests);
        self.left.extend(more.left);
        self.spared.extend(more.spared);
    }
}

impl TryFrom<DestroyReport> for DestroyAnswer {
    type Error = guests::Error;

    /// The view of the result; an error when none of the guests was destroyed.
    fn try_from(ended: DestroyReport) -> Result<Self, Self::Error> {
        if ended.names.is_empty() {
            ended.whole().map(|guests| Self {
                destroyed: 0,
                guests,
                left: Vec::new(),
                spared: Vec::new(),
            })
        } else {
            Ok(Self {
                destroyed: ended.names.len(),
                guests: ended.names,
                left: ended.left.iter().map(failure_view).collect(),
                spared: Vec::new(),
            })
        }
    }
}

impl From<EndedStrays> for DestroyAnswer {
    fn from(ended: EndedStrays) -> Self {
        let left = ended.left.into_iter().map(|(name, error)| RestoreFailure {
            name,
            error: error.to_string(),
        });
        Self {
            destroyed: ended.names.len(),
            guests: ended.names,
            left: left.collect(),
            spared: Vec::new(),
        }
    }
}

fn failure_view(left: &Left) -> RestoreFailure {
    RestoreFailure {
        name: left.name.clone(),
        error: left.error.to_string(),
    }
}
