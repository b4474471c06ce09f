//! Flow of a restore: the lock and the session, the disk, the admission and the guests' records;
//! then the run; then the pause or the rollback that the spec asks for.

use std::{sync::atomic::AtomicBool, time::Instant};

use super::{
    cost, disks,
    error::Error,
    report::{RestoreReport, RestoreStep},
    reserve::{GuestBatch, reserve},
    run::{RunParts, run},
    session_cache::{Slot, WarmSession},
    spec::{RestoreSpec, cores},
    verify::refuse_removal,
};
use crate::{
    checkpoint::{Checkpoint, until},
    engine::{
        self, Engine, GuestNetwork, GuestOrder, NEVER, check_network, restore_lock::RestoreLock,
    },
    faults::{self, Point},
    guests::{self, Guest, Guests},
    host::facts::HostFacts,
    state::{self, State},
};

/// What a restore works with, besides what is wanted of it.
#[derive(Debug)]
pub struct RestoreContext<'a> {
    /// The record.
    pub state: &'a mut State,
    /// The engine that restores.
    pub engine: &'a dyn Engine,
    /// Facts of the host, for admission.
    pub facts: &'a HostFacts,
    /// The slot of a session that can be used, and is left there for the next restore; without one
    /// the session ends with the restore.
    pub slot: Option<Slot<'a>>,
    /// When it is set, no new guest is begun, and those that do not answer soon are ended.
    pub cancelled: &'a AtomicBool,
}

/// Restores guests from a checkpoint that was checked before ([`super::verify`]). Guests that fail,
/// or do not answer in time, do not hold up the others.
///
/// # Errors
/// When nothing could be restored at all; then nothing is left behind.
pub fn restore(
    mut context: RestoreContext<'_>,
    checkpoint: &Checkpoint,
    spec: &RestoreSpec,
    observe: &mut dyn FnMut(&RestoreStep<'_>),
) -> Result<RestoreReport, Error> {
    let mut warnings = Vec::new();
    let observe = &mut |step: &RestoreStep<'_>| {
        warnings.extend(step.warning());
        observe(step);
    };
    // A pool tells of its own when it is made.
    if spec.membership.is_none() {
        for exposure in checkpoint.exposures() {
            observe(&RestoreStep::Exposed(exposure));
        }
    }
    let RunStart {
        orders,
        parts,
        warm,
    } = prepare(&mut context, checkpoint, spec, observe)?;
    let mut report = run(context.state, parts, orders, warm, observe)?;
    report.warnings = warnings;
    let mut guests = Guests {
        state: context.state,
        engine: context.engine,
        cancelled: &NEVER,
    };
    if spec.all_or_nothing && (report.interrupted || report.failed > 0) {
        roll_back(&mut guests, &mut report);
    } else if spec.paused {
        pause(&mut guests, &mut report);
    }
    Ok(report)
}

/// What a run begins with.
struct RunStart<'a> {
    orders: Vec<GuestOrder>,
    parts: RunParts<'a>,
    warm: Option<WarmSession>,
}

/// Takes the restore lock or a session that holds it, opens the disk, admits the guests and records
/// them.
fn prepare<'a, 'c: 'a>(
    context: &mut RestoreContext<'c>,
    checkpoint: &'a Checkpoint,
    spec: &'a RestoreSpec,
    observe: &mut dyn FnMut(&RestoreStep<'_>),
) -> Result<RunStart<'a>, Error> {
    let (state, engine, facts) = (&mut *context.state, context.engine, context.facts);
    if spec.enforce_private_limit {
        engine.can_enforce_limits(checkpoint)?;
    }
    let refused = |why| engine::Error::Refused(why);
    check_network(spec.network, &spec.publish, spec.guests).map_err(refused)?;
    if spec.network.is_some() || !spec.publish.is_empty() {
        let network = GuestNetwork::of(spec.network, &spec.publish, "1").map_err(refused)?;
        engine.can_network(checkpoint, &network)?;
    }
    let overhead = match spec.overhead {
        Some(overhead) => overhead,
        None => cost::measured(state, checkpoint)?.overhead,
    };
    let begin = Instant::now();
    let slot = context.slot;
    let cached = slot.and_then(|slot| slot.take(checkpoint, spec.terms()));
    let (lock, warm) = match cached {
        Some((lock, warm)) => (lock, Some(warm)),
        None => {
            faults::at(Point::RestoreLock).map_err(|source| engine::Error::Io {
                action: "take the restore lock",
                source,
            })?;
            let lock = RestoreLock::take(&state.run_dir()).map_err(state::Error::from)?;
            (lock, None)
        }
    };
    let disk = disks::open(
        state,
        engine,
        checkpoint,
        &spec.disk,
        &lock,
        &until(context.cancelled),
    );
    let reserved = disk.and_then(|disk| {
        let batch = GuestBatch {
            facts,
            checkpoint,
            spec,
            overhead,
            disk: disk.as_ref().map(|disk| disk.source.to_string()),
            lock: &lock,
        };
        let orders = reserve(state, engine, &batch, observe)?;
        // From here on the guests are recorded users of the checkpoint; a removal that began before
        // shows now.
        if let Err(refused) = refuse_removal(state, checkpoint) {
            let ids: Vec<_> = orders.iter().map(|order| order.id).collect();
            state.remove_guests(&ids)?;
            return Err(refused);
        }
        Ok((orders, disk))
    });
    let (orders, disk) = match reserved {
        Ok(reserved) => reserved,
        Err(e) => {
            if let (Some(warm), Some(slot)) = (warm, slot) {
                slot.put(lock, warm);
            }
            return Err(e);
        }
    };
    let concurrency = spec.concurrency.unwrap_or_else(|| cores(facts.cpu.cores));
    let parts = RunParts {
        engine,
        checkpoint,
        spec,
        concurrency: concurrency.max(1) as usize,
        slot,
        cancelled: context.cancelled,
        disk,
        lock,
        begin,
    };
    Ok(RunStart {
        orders,
        parts,
        warm,
    })
}

/// Destroys the guests that were restored.
fn roll_back(guests: &mut Guests<'_>, report: &mut RestoreReport) {
    let destroyed = restored(guests, report).and_then(|all| guests.destroy(&all));
    match destroyed.map(|destroyed| destroyed.left) {
        Ok(left) => report.undone.extend(left.first().map(|first| {
            let (count, error) = (left.len(), &first.error);
            format!("{count} guests could not be destroyed: {error}")
        })),
        Err(error) => {
            let undone = format!("the guests that answered run on: {error}");
            report.undone.push(undone);
        }
    }
    report.rolled_back = true;
    report.restored = 0;
    report.guests.clear();
}

/// Pauses the guests that were restored.
fn pause(guests: &mut Guests<'_>, report: &mut RestoreReport) {
    match restored(guests, report) {
        Ok(all) => {
            for guest in all {
                if let Err(error) = guests.pause(&guest) {
                    let undone = format!("{} is not paused: {error}", guest.row.name);
                    report.undone.push(undone);
                }
            }
        }
        Err(error) => report
            .undone
            .push(format!("the guests are not paused: {error}")),
    }
}

fn restored(guests: &mut Guests<'_>, report: &RestoreReport) -> Result<Vec<Guest>, guests::Error> {
    let ids: Vec<_> = report.guests.iter().map(|guest| guest.id).collect();
    guests.with_ids(&ids)
}
