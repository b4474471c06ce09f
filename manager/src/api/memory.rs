//! Memory maps over the API: where guests' memory is private and where it is shared, for drawing.

use axum::{Json as Answer, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    extract::Query,
    problem::Problem,
    types::{MemoryMap, words},
};
use brood_core::{
    guests::{self, Guest, Guests},
    units::Bytes,
};

/// Most guests that can be asked about at once.
const GUESTS_MAX: usize = 100;
/// Most cells.
const CELLS_MAX: u32 = 1024;
/// Default number of cells.
const CELLS: u32 = 64;

/// Of which guests, and how finely.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct MemoryQuery {
    /// Their names or ids, at most 100, separated by commas. Guests that do not exist, or have no
    /// process, are left out.
    #[param(example = "demo-1,demo-2")]
    guests: String,
    /// How many cells.
    #[param(default = 64, minimum = 1, maximum = 1024)]
    cells: Option<u32>,
}

/// A guest's memory.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GuestMemory {
    /// Name of the guest.
    name: String,
    /// Its id.
    id: String,
    /// All of its memory.
    #[schema(value_type = words::Bytes)]
    memory_bytes: Bytes,
    /// Its private memory.
    #[schema(value_type = words::Bytes)]
    private_bytes: Bytes,
    /// Memory that it has touched and shares.
    #[schema(value_type = words::Bytes)]
    shared_bytes: Bytes,
    /// Map of its memory; null where its engine has none.
    map: Option<MemoryMap>,
}

/// Maps the private and shared pages of guests' memory
#[utoipa::path(
    get, path = "/memory", tag = "guests", operation_id = "memoryOfGuests",
    params(MemoryQuery),
    responses((status = 200, body = [GuestMemory]))
)]
pub(super) async fn memory(
    State(app): State<App>,
    Query(looking): Query<MemoryQuery>,
) -> Result<Answer<Vec<GuestMemory>>, Problem> {
    let cells = looking.cells.unwrap_or(CELLS);
    if !(1..=CELLS_MAX).contains(&cells) {
        let detail = format!("cells must be 1 to {CELLS_MAX}");
        return Err(Problem::bad_request(detail));
    }
    if looking.guests.split(',').count() > GUESTS_MAX {
        let problem = Problem::bad_request(format!("more than {GUESTS_MAX} guests are named"));
        return Err(problem.with_hint("ask about some of them at a time"));
    }
    app.look_at_guests(move |guests| {
        let mut found = Vec::new();
        for name in looking.guests.split(',').filter(|name| !name.is_empty()) {
            match guests.find(name) {
                Ok(guest) => found.extend(of(guests, &guest, cells)),
                Err(guests::Error::NoSuchGuest(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Answer(found))
    })
    .await
}

/// None when it has ended, or is only about to be there.
fn of(guests: &Guests<'_>, guest: &Guest, cells: u32) -> Option<GuestMemory> {
    let map = guests.memory_map(guest, cells).ok()?;
    let (private_bytes, shared_bytes) = match &map {
        Some(map) => (map.private_bytes(), map.shared_bytes()),
        None => {
            let usage = guests.usage(guest).ok()?;
            (usage.private, usage.shared)
        }
    };
    Some(GuestMemory {
        name: guest.row.name.clone(),
        id: guest.row.id.to_string(),
        memory_bytes: guest.row.memory,
        private_bytes,
        shared_bytes,
        map: map.map(Into::into),
    })
}
