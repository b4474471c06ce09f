//! Answer about a host: what it can do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::report;
use brood_core::host::{
    doctor::{Check, can_mass_restore, doctor},
    facts::HostFacts,
};

/// What this host can do.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Host {
    /// Whether mass restore can work here.
    pub(crate) ok: bool,
    /// For how many guests it was checked.
    pub(crate) guests: u64,
    /// Each fact, its required value, and how to reach it.
    #[schema(value_type = Vec<report::Check>)]
    pub(crate) checks: Vec<Check>,
    /// The facts behind the checks.
    #[schema(value_type = Object)]
    pub(crate) facts: serde_json::Value,
}

impl Host {
    /// The view of a host with these facts.
    pub(crate) fn new(facts: &HostFacts, guests: u64) -> Self {
        let checks = doctor(facts, guests);
        Self {
            ok: can_mass_restore(&checks),
            guests,
            checks,
            facts: serde_json::to_value(facts).expect("facts are plain data"),
        }
    }
}
