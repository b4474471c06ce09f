//! Reservation: admits a restore and records its guests in one transaction, so that two restores
//! cannot both get the same memory.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::{
    error::Error,
    report::RestoreStep,
    spec::{PRIVATE_LIMIT, RestoreSpec},
};
use crate::{
    checkpoint::Checkpoint,
    engine::{self, Engine, GuestNetwork, GuestOrder, Identity, NEVER, restore_lock::RestoreLock},
    guest_id::GuestId,
    guests::{GuestState, Guests},
    host::{
        admission::{self, Demand, admit},
        facts::HostFacts,
    },
    state::{self, NewGuest, Promise, Reservation, RowState, State},
    units::Bytes,
};

/// Guests to reserve.
pub(super) struct GuestBatch<'a> {
    pub(super) facts: &'a HostFacts,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) spec: &'a RestoreSpec,
    /// Kernel and process memory of one guest.
    pub(super) overhead: Bytes,
    /// Source of their disks.
    pub(super) disk: Option<String>,
    pub(super) lock: &'a RestoreLock,
}

/// Admits guests and records them.
///
/// Looking at live guests takes time for each. So the first try assumes that all recorded guests
/// live and have used nothing of their promised memory. Only if there is no room under this
/// assumption, or guests of an interrupted restore are still recorded, are the guests looked at.
pub(super) fn reserve(
    state: &mut State,
    engine: &dyn Engine,
    batch: &GuestBatch<'_>,
    observe: &mut dyn FnMut(&RestoreStep<'_>),
) -> Result<Vec<GuestOrder>, Error> {
    // Their names are free again when they are found not to be there.
    if state.has_restoring()? {
        Guests {
            state,
            engine,
            cancelled: &NEVER,
        }
        .list()?;
    }
    match reserve_if(state, RecordedGuests::Nothing, batch, observe) {
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
                    let process = guest.process()?;
                    let usage = engine.usage(guest.row.in_folder(&run_dir), process);
                    Some((guest.row.id, usage.ok()?.private))
                })
                .collect();
            let dead: HashSet<GuestId> = live
                .iter()
                .filter(|g| g.state == GuestState::Dead)
                .map(|g| g.row.id)
                .collect();
            let known = RecordedGuests::Now {
                used: &used,
                dead: &dead,
            };
            reserve_if(state, known, batch, observe)
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
        dead: &'a HashSet<GuestId>,
    },
}

impl RecordedGuests<'_> {
    fn is_dead(&self, id: &GuestId) -> bool {
        matches!(self, Self::Now { dead, .. } if dead.contains(id))
    }

    /// Adds the memory that earlier guests were promised and have not used yet.
    fn add_promised(
        &self,
        reservation: &Reservation<'_>,
        demand: &mut Demand,
        facts: &HostFacts,
    ) -> Result<(), state::Error> {
        match self {
            Self::Nothing => {
                for promise in reservation.promises()? {
                    let is_there = promise.state == RowState::Running;
                    add_promise(demand, &promise, is_there.then_some(Bytes(0)), facts);
                }
            }
            Self::Now { used, .. } => {
                for row in reservation.rows()? {
                    if !self.is_dead(&row.id) {
                        let promise = Promise {
                            state: row.state,
                            private_limit: row.private_limit,
                            memory: row.memory,
                            guests: 1,
                        };
                        add_promise(demand, &promise, used.get(&row.id).copied(), facts);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Admits the guests and records them in one transaction.
fn reserve_if(
    state: &mut State,
    known: RecordedGuests<'_>,
    batch: &GuestBatch<'_>,
    observe: &mut dyn FnMut(&RestoreStep<'_>),
) -> Result<Vec<GuestOrder>, Error> {
    let GuestBatch {
        facts,
        checkpoint,
        spec,
        ..
    } = batch;
    let private_limit = spec.private_limit.unwrap_or(PRIVATE_LIMIT);
    let bundle = checkpoint.path().absolute()?.to_string();
    let manifest = checkpoint.manifest();
    let sha256 = manifest.memory_sha256();
    let created_at = Timestamp::now().to_string();
    state.reserve(|reservation| {
        let mut demand = Demand {
            guests: spec.guests.into(),
            overhead: batch.overhead,
            private_limit,
            memory_size: manifest.memory.size,
            outstanding: Bytes(0),
            outstanding_pids: 0,
        };
        known.add_promised(reservation, &mut demand, facts)?;
        let verdict = admit(facts, &demand);
        let looked = matches!(known, RecordedGuests::Now { .. });
        verdict.check(spec.overcommit && looked)?;
        observe(&RestoreStep::Admitted { verdict: &verdict });

        let names = names(batch, reservation)?;
        if let Some(membership) = &spec.membership {
            reservation.check_room(membership, names.len() as u64)?;
        }
        let mut orders = Vec::with_capacity(names.len());
        for name in names {
            let randomness = |source| engine::Error::Io {
                action: "make an identity",
                source,
            };
            let network = match spec.membership {
                Some(_) if !spec.publish.is_empty() => {
                    let mut taken = reservation.forwards()?;
                    taken.retain(|(guest, _)| !known.is_dead(guest));
                    let taken = taken.iter().map(|(_, forward)| forward);
                    GuestNetwork::of_pool(spec.network, &spec.publish, taken)
                }
                _ => GuestNetwork::of(spec.network, &spec.publish, &name),
            };
            let order = GuestOrder {
                network: network.map_err(engine::Error::Refused)?,
                disk: None,
                id: GuestId::random().map_err(randomness)?,
                identity: Identity::fresh(&name).map_err(randomness)?,
                memory_limit: spec
                    .enforce_private_limit
                    .then(|| private_limit + batch.overhead),
            };
            reservation.add(&NewGuest {
                order: &order,
                checkpoint: &bundle,
                sha256: &sha256,
                memory: manifest.memory.size,
                private_limit,
                session: batch.lock.name(),
                created_at: &created_at,
                membership: spec.membership.as_ref(),
                disk: batch.disk.as_deref(),
                engine: manifest.engine,
                accelerator: manifest.qemu.as_ref().map(|qemu| qemu.accelerator),
            })?;
            orders.push(order);
        }
        Ok(orders)
    })
}

/// Names of the guests: the one that was asked for, if it is free, or the next ones of a prefix.
fn names(batch: &GuestBatch<'_>, reservation: &Reservation<'_>) -> Result<Vec<String>, Error> {
    let spec = batch.spec;
    let own_name = spec.name.as_deref();
    if let Some(name) = own_name.and_then(|name| reservation.name(name).ok()) {
        return Ok(vec![name]);
    }
    let prefix = spec.prefix.as_deref();
    let prefix = prefix.unwrap_or(batch.checkpoint.path().name());
    let of_pool = spec.membership.is_some();
    Ok(reservation.names(prefix, spec.guests as usize, of_pool)?)
}

/// Adds the memory that guests were promised and have not used yet; `used` is what each of them has
/// used, or `None` when it is not there yet.
fn add_promise(demand: &mut Demand, promise: &Promise, used: Option<Bytes>, facts: &HostFacts) {
    let private_limit = admission::private(facts, promise.private_limit, promise.memory);
    let each = match (promise.state, used) {
        (RowState::Dead, _) => return,
        (_, Some(used)) => private_limit.saturating_sub(used),
        (_, None) => {
            demand.outstanding_pids += facts.pids_per_guest() * promise.guests;
            private_limit + demand.overhead
        }
    };
    demand.outstanding = demand.outstanding + Bytes(each.0.saturating_mul(promise.guests));
}
