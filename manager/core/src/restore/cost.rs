//! Cost of a guest on this host, as measured for its checkpoint: private memory and overhead; and the
//! plan that follows from it.

use crate::{
    checkpoint::Checkpoint,
    engine::{Engine, NEVER},
    guests::{self, Guest, Guests},
    host::{
        facts::HostFacts,
        plan::{self, CostModel, Plan},
    },
    state::{self, GuestMeasurement, State},
    units::Bytes,
};

/// The cost that the last density run of this checkpoint measured, or the general estimate when
/// there was no run.
///
/// # Errors
/// When the state cannot be read.
pub fn measured(state: &State, checkpoint: &Checkpoint) -> Result<CostModel, state::Error> {
    let measured = state.measured(&checkpoint.manifest().memory_sha256())?;
    Ok(measured.map_or_else(
        || CostModel::built_in(checkpoint.manifest().engine),
        |m: GuestMeasurement| CostModel {
            source: format!("density run of {} guests, {}", m.guests, m.at),
            overhead: m.overhead,
            pristine_private: m.pristine_private,
            expected_private: m.expected_private,
        },
    ))
}

/// How many guests of a checkpoint fit on a host: see [`plan::plan`].
///
/// # Errors
/// When the state cannot be read or written.
pub fn plan(
    state: &mut State,
    engine: &dyn Engine,
    facts: &HostFacts,
    checkpoint: &Checkpoint,
    host_memory: Option<Bytes>,
) -> Result<Plan, guests::Error> {
    let cost = live(state, engine, checkpoint)?;
    let size = checkpoint.manifest().memory.size;
    Ok(plan::plan(facts, host_memory, size, &cost))
}

/// As [`measured`], but taken from live guests of this checkpoint when there are any.
fn live(
    state: &mut State,
    engine: &dyn Engine,
    checkpoint: &Checkpoint,
) -> Result<CostModel, guests::Error> {
    let model = measured(state, checkpoint)?;
    let sha256 = checkpoint.manifest().memory_sha256();
    let mut guests = Guests {
        state,
        engine,
        cancelled: &NEVER,
    };
    let live: Vec<Guest> = guests
        .list()?
        .into_iter()
        .filter(|g| g.process().is_some() && g.row.sha256 == sha256)
        .collect();
    let private: Vec<Bytes> = live
        .iter()
        .filter_map(|g| Some(guests.usage(g).ok()?.private))
        .collect();
    if private.is_empty() {
        return Ok(model);
    }
    let count = private.len() as u64;
    let total: Bytes = private.into_iter().sum();
    Ok(CostModel {
        expected_private: Bytes(total.0 / count),
        source: format!(
            "private memory of {count} live guests; overhead: {}",
            model.source
        ),
        ..model
    })
}
