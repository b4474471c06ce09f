//! Guests that a command is to act on, one after the other, and what became of each.

use std::{process::ExitCode, sync::atomic::Ordering};

use clap::Args;
use serde_json::{Value, json};

use super::{
    bar::Bar,
    failure::INTERRUPTED,
    filter::Filter,
    output::{cancellation, count, ending, json, line, operations},
};
use crate::{
    client::Auto,
    config::Config,
    failure::Failure,
    ops::{self, NAMES, Operations},
    types::{DestroyAnswer, DestroyTargets, Guest},
};
use brood_core::{guests::GuestState, state::EntryState};

/// Guests named on the command line, all, or those that a filter lets through.
#[derive(Debug, Args)]
pub(super) struct GuestArgs {
    /// Names or ids of guests
    #[arg(
        value_name = "GUEST",
        required_unless_present_any = ["all", "prefix", "state", "pool"],
        conflicts_with_all = ["all", "prefix", "state", "pool"],
        add = super::complete::with(super::complete::guests),
    )]
    pub(super) guests: Vec<String>,
    /// All guests
    #[arg(long, conflicts_with_all = ["prefix", "state", "pool"])]
    pub(super) all: bool,
    #[command(flatten)]
    filter: Filter,
}

impl GuestArgs {
    /// Whether guests are meant without being named.
    pub(super) fn is_sweeping(&self) -> bool {
        self.guests.is_empty()
    }

    /// The guests that are meant. One that does not exist is an error, before anything is done,
    /// unless it is to be passed over.
    fn find(&self, ops: &mut Auto, ignore_missing: bool) -> Result<Vec<Guest>, Failure> {
        if !self.is_sweeping() {
            return ops.run(|ops| ops.named_guests(&self.guests, ignore_missing));
        }
        let mut all = ops.run(|ops| ops.guests(self.filter.prefix(), false))?;
        all.retain(|guest| self.filter.takes(guest));
        Ok(all)
    }

    /// Destroys the guests that are meant; those that somebody has claimed and that are not named
    /// only when `force` is set.
    pub(super) fn destroy(
        &self,
        config: &Config,
        force: bool,
        ignore_missing: bool,
    ) -> Result<DestroyAnswer, Failure> {
        let mut ops = operations(config);
        if self.all {
            return ops.run(|ops| ops.destroy(DestroyTargets::All { force }));
        }
        let found = self.find(&mut ops, ignore_missing)?;
        let is_spared = |guest: &Guest| {
            self.is_sweeping() && !force && guest.entry == Some(EntryState::Claimed)
        };
        let (spared, doomed): (Vec<_>, Vec<_>) = found.into_iter().partition(is_spared);
        let mut destroyed = DestroyAnswer {
            spared: spared.into_iter().map(|guest| guest.name).collect(),
            ..DestroyAnswer::default()
        };
        let doomed: Vec<String> = doomed.into_iter().map(|guest| guest.id).collect();
        for guests in doomed.chunks(NAMES) {
            let targets = DestroyTargets::Named {
                guests,
                // One that a filter found may be gone by now.
                ignore_missing: ignore_missing || self.is_sweeping(),
            };
            destroyed.add(ops.run(|ops| ops.destroy(targets))?);
        }
        Ok(destroyed)
    }
}

/// What a command does to each of many guests.
pub(super) struct GuestAction<'a> {
    /// While it does: `pausing`.
    pub(super) verb: &'static str,
    /// When it has: `paused`.
    pub(super) past: &'static str,
    /// Does it to the guest of this id; returns what JSON says besides its name.
    pub(super) act: &'a dyn Fn(&mut dyn Operations, &str) -> Result<Value, ops::Error>,
}

impl GuestAction<'_> {
    /// Acts on every guest that is meant, and prints what came of it. One that fails does not hold
    /// up the others.
    pub(super) fn run(
        &self,
        config: &Config,
        which: &GuestArgs,
        as_json: bool,
    ) -> Result<ExitCode, Failure> {
        let cancelled = cancellation();
        let mut ops = operations(config);
        let found = which.find(&mut ops, false)?;
        let bar = Bar::guests(self.verb, found.len() as u64, as_json || found.len() < 50);
        let (mut guests, mut errors, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        for guest in found {
            if cancelled.load(Ordering::Relaxed) {
                break;
            }
            // A dead guest can be neither paused nor resumed: named, that is an error; meant by
            // `--all` or a filter, it is not.
            if which.is_sweeping() && guest.state == GuestState::Dead {
                continue;
            }
            match ops.run(|ops| (self.act)(ops, &guest.id)) {
                Ok(mut value) => {
                    value["name"] = guest.name.into();
                    guests.push(value);
                }
                Err(failure) => {
                    errors.push(json!({ "name": guest.name, "error": failure.to_string() }));
                    failures.push(failure);
                }
            }
            bar.inc();
        }
        bar.clear();
        let done = guests.len();
        if as_json {
            json(&json!({ self.past: done, "guests": guests, "errors": errors }));
        } else {
            line(format_args!("{} {}", count(done, "guest"), self.past));
        }
        for failure in &failures {
            super::output::failure(failure);
        }
        Ok(match cancelled.load(Ordering::Relaxed) {
            true => ExitCode::from(INTERRUPTED),
            false => ending(done, failures.len()),
        })
    }
}
