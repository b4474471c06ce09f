//! Faults by enumeration: each visit of each fault point of a command fails in each way that it can
//! (`brood_core::faults`), or the command is killed there. Afterwards nothing is lost, nothing is
//! there twice, nothing is left, and the next command works.
//!
//! The first and the last visit of each point are tried, and a full disk at each change of the
//! record; everything, with `BROOD_ALL_FAULTS=1`.

// Other builds have no points.
#![cfg(debug_assertions)]

mod claims;
mod guests;
mod records;
mod visits;

use brood_tests::{EngineKind, on_both_engines, without_kvm};

use visits::{Scene, each_fault, visits_of};

// What differs between engines. All else is the same code.
on_both_engines! {
    restores,
    suspends,
    destroys,
    resumed_claims,
}

fn restores(on: EngineKind) {
    // With disks, where disks are companions of the guests.
    each_fault(guests::Restore::new(on, on == EngineKind::Kvm));
}

fn suspends(on: EngineKind) {
    each_fault(guests::Suspend::new(on));
}

fn destroys(on: EngineKind) {
    each_fault(guests::Destroy::new(on));
}

#[test]
fn claims_of_hot_guests() {
    each_fault(claims::Claim::new(EngineKind::Kvm, 1));
}

#[test]
fn claims_that_restore() {
    each_fault(claims::Claim::new(EngineKind::Kvm, 0));
}

#[test]
fn releases() {
    each_fault(claims::Release::new(EngineKind::Kvm, false));
}

#[test]
fn releases_of_suspended_claims() {
    each_fault(claims::Release::new(EngineKind::Kvm, true));
}

#[test]
fn suspended_claims() {
    each_fault(claims::Turn::new(EngineKind::Kvm, claims::To::Suspend));
}

fn resumed_claims(on: EngineKind) {
    each_fault(claims::Turn::new(on, claims::To::Resume));
}

#[test]
fn reconciled_pools() {
    each_fault(claims::Reconcile::new(EngineKind::Kvm));
}

#[test]
fn rebuilt_records() {
    each_fault(records::Rebuild::new(EngineKind::Kvm));
}

// Only KVM writes deltas of a guest without an operating system.
#[test]
fn flattened_deltas() {
    each_fault(records::Flatten::new());
}

#[test]
fn made_demos() {
    each_fault(records::MakeDemo::new());
}

// Only bhyve writes checkpoints by itself.
#[test]
fn imported_checkpoints() {
    each_fault(records::Import::new());
}

/// A point that no scene visits would be tried by none.
#[test]
fn each_point_is_visited() {
    if without_kvm() {
        return;
    }
    let on = EngineKind::Kvm;
    let scenes: Vec<Option<Box<dyn Scene>>> = vec![
        boxed(guests::Restore::new(on, true)),
        boxed(guests::Suspend::new(on)),
        boxed(guests::Destroy::new(on)),
        boxed(claims::Claim::new(on, 1)),
        boxed(claims::Turn::new(on, claims::To::Suspend)),
        boxed(claims::Turn::new(on, claims::To::Resume)),
        boxed(claims::Reconcile::new(on)),
        boxed(records::Rebuild::new(on)),
        boxed(records::Flatten::new()),
    ];
    let mut visited = Vec::new();
    for mut scene in scenes.into_iter().flatten() {
        visited.extend(visits_of(&mut *scene).into_iter().map(|(point, _)| point));
    }
    let all = brood_core::faults::Point::ALL.iter().copied();
    let never: Vec<_> = all.filter(|point| !visited.contains(point)).collect();
    assert!(never.is_empty(), "no scene visits {never:?}");
}

fn boxed(scene: Option<impl Scene + 'static>) -> Option<Box<dyn Scene>> {
    Some(Box::new(scene?))
}
