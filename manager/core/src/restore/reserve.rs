//! Reservation: admits a restore and records its guests in one transaction, so that two restores
//! cannot both get the same memory.

use std::collections::HashMap;

use jiff::Timestamp;

use super::mass::{Error, Event, Names, Request};
use crate::{
    checkpoint::Checkpoint,
    disk::Choice,
    engine::{self, Engine, GuestRef, Identity, NEVER, Order},
    guest_id::GuestId,
    guests::{GuestState, Guests},
    host::facts::HostFacts,
    state::{GuestRow, NewGuest, RowState, State, new_name},
    units::Bytes,
};
use crate::{
    engine::restore_lock::RestoreLock,
    host::admission::{self, Demand, admit},
};

/// Admits the request and records its guests.
///
/// Looking at live guests takes time for each. So the first try assumes that all recorded guests
/// live and have used nothing of their promised memory. Only if there is no room under this
/// assumption, or guests of an interrupted restore are still recorded, are the guests looked at.
pub(super) fn reserve(
    state: &mut State,
    engine: &dyn Engine,
    facts: &HostFacts,
    checkpoint: &Checkpoint,
    request: &Request,
    lock: &RestoreLock,
    observe: &mut dyn FnMut(&Event<'_>),
) -> Result<Vec<Order>, Error> {
    // Their names are free again when they are found not to be there.
    if state.has_restoring()? {
        Guests {
            state,
            engine,
            cancelled: &NEVER,
        }
        .list()?;
    }
    let mut reserve = |state: &mut State, known: RecordedGuests<'_>| {
        reserve_if(state, known, facts, checkpoint, request, lock, observe)
    };
    match reserve(state, RecordedGuests::Nothing) {
        Err(Error::Admission(_)) => {
            let live = Guests {
                state,
                engine,
                cancelled: &NEVER,
            }
            .list()?;
            let run_dir = state.run_dir();
            let used = live
                .iter()
                .filter_map(|guest| {
                    let (id, process) = (guest.row.id, guest.process()?);
                    Some((
                        id,
                        engine
                            .usage(GuestRef::new(&run_dir, &id), process)
                            .ok()?
                            .private,
                    ))
                })
                .collect();
            let dead: Vec<GuestId> = live
                .iter()
                .filter(|g| g.state == GuestState::Dead)
                .map(|g| g.row.id)
                .collect();
            reserve(
                state,
                RecordedGuests::Now {
                    used: &used,
                    dead: &dead,
                },
            )
        }
        reserved => reserved,
    }
}

/// What is known about the recorded guests.
#[derive(Clone, Copy)]
enum RecordedGuests<'a> {
    /// What is recorded.
    Nothing,
    /// The processes, looked at just now.
    Now {
        /// Private memory of those that live.
        used: &'a HashMap<GuestId, Bytes>,
        /// Recorded guests that have died.
        dead: &'a [GuestId],
    },
}

impl RecordedGuests<'_> {
    /// Private memory of a guest that lives; `None` when it is not there yet.
    fn used(&self, row: &GuestRow) -> Option<Bytes> {
        match self {
            Self::Nothing => (row.state == RowState::Running).then_some(Bytes(0)),
            Self::Now { used, .. } => used.get(&row.id).copied(),
        }
    }

    fn is_dead(&self, row: &GuestRow) -> bool {
        matches!(self, Self::Now { dead, .. } if dead.contains(&row.id))
    }
}

/// Admits the request and records its guests in one transaction.
fn reserve_if(
    state: &mut State,
    known: RecordedGuests<'_>,
    facts: &HostFacts,
    checkpoint: &Checkpoint,
    request: &Request,
    lock: &RestoreLock,
    observe: &mut dyn FnMut(&Event<'_>),
) -> Result<Vec<Order>, Error> {
    let bundle = checkpoint.path().absolute()?.to_string();
    let manifest = checkpoint.manifest();
    let sha256 = manifest.memory_sha256();
    let created_at = Timestamp::now().to_string();
    let disk = match &request.disk {
        Choice::Source(source) => Some(source.to_string()),
        Choice::Sealed | Choice::None => None,
    };
    state.reserve(|rows, reservation| {
        let mut demand = Demand {
            guests: request.guests as u64,
            overhead: request.overhead,
            private_limit: request.private_limit,
            memory_size: manifest.memory.size,
            outstanding: Bytes(0),
            outstanding_pids: 0,
        };
        for row in rows.iter().filter(|row| !known.is_dead(row)) {
            let used = known.used(row);
            promised(&mut demand, row, used, facts);
        }
        let verdict = admit(facts, &demand);
        let looked = matches!(known, RecordedGuests::Now { .. });
        verdict.check(request.overcommit && looked)?;
        observe(&Event::Admitted { verdict: &verdict });

        let of_pool = request.membership.is_some();
        let numbered = |prefix: &str| reservation.names(rows, prefix, request.guests, of_pool);
        let names = match &request.names {
            Names::Numbered(prefix) => numbered(prefix)?,
            Names::Again { name, prefix } => match new_name(rows, name) {
                Ok(name) => vec![name],
                Err(_) => numbered(prefix)?,
            },
            Names::Only(name) => vec![new_name(rows, name)?],
        };
        let mut orders = Vec::with_capacity(names.len());
        for name in names {
            let randomness = |source| engine::Error::Io {
                action: "make an identity",
                source,
            };
            let order = Order {
                disk: None,
                id: GuestId::random().map_err(randomness)?,
                identity: Identity::fresh(&name).map_err(randomness)?,
            };
            reservation.add(&NewGuest {
                order: &order,
                checkpoint: &bundle,
                sha256: &sha256,
                memory: manifest.memory.size,
                private_limit: request.private_limit,
                session: lock.name(),
                created_at: &created_at,
                membership: request.membership.as_ref(),
                disk: disk.as_deref(),
            })?;
            orders.push(order);
        }
        Ok(orders)
    })
}

/// Adds the memory that an earlier guest was promised and has not used yet.
fn promised(demand: &mut Demand, row: &GuestRow, used: Option<Bytes>, facts: &HostFacts) {
    let private_limit = admission::private(facts, row.private_limit, row.memory);
    let outstanding = match (row.state, used) {
        (RowState::Dead, _) => Bytes(0),
        (_, Some(used)) => private_limit.saturating_sub(used),
        (_, None) => {
            demand.outstanding_pids += facts.pids_per_guest();
            private_limit + demand.overhead
        }
    };
    demand.outstanding = demand.outstanding + outstanding;
}
