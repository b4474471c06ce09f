//! Progress of a restore, by the daemon or by this process, on standard error.

use std::collections::HashSet;

use super::{bar::Bar, output::note};
use crate::api::events::RestoreEvent;
use brood_core::{checkpoint::Progress, restore::RestoreFailure, units::Bytes};

/// Display of a restore in flight.
pub(super) struct RestoreProgress {
    guests: Bar,
    bytes: Bar,
    /// Guests whose failure was printed.
    failures: HashSet<String>,
    warnings: Vec<String>,
}

impl RestoreProgress {
    pub(super) fn new(quiet: bool) -> Self {
        Self {
            guests: Bar::guests("restoring", 0, quiet),
            bytes: Bar::bytes("verifying", quiet),
            failures: HashSet::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn note(&mut self, event: &RestoreEvent) {
        if let (Some(done), Some(total)) = (event.verified_bytes, event.verify_bytes) {
            let (done, total) = (Bytes(done), Bytes(total));
            let _ = self.bytes.advance(Progress { done, total });
            return;
        }
        self.bytes.clear();
        self.guests.set_length(event.asked.into());
        self.guests.set_position(event.restored.into());
        if let Some(failure) = &event.failure {
            self.failed(failure);
        }
        if let Some(warning) = &event.warning {
            self.warn(warning);
        }
    }

    fn failed(&mut self, failure: &RestoreFailure) {
        if self.failures.insert(failure.name.clone()) {
            self.guests
                .note(format_args!("{}: {}", failure.name, failure.error));
        }
    }

    fn warn(&mut self, warning: &str) {
        self.guests.note(format_args!("warning: {warning}"));
        self.warnings.push(warning.to_owned());
    }

    /// Ends the display. Prints failures and warnings that were not printed yet: events can be
    /// missed, a report cannot.
    pub(super) fn finish(mut self, failures: &[RestoreFailure], warnings: &[String]) {
        self.clear();
        for warning in warnings {
            if let Some(told) = self.warnings.iter().position(|told| told == warning) {
                self.warnings.remove(told);
            } else {
                note(format_args!("warning: {warning}"));
            }
        }
        for failure in failures {
            self.failed(failure);
        }
    }

    fn clear(&self) {
        self.bytes.clear();
        self.guests.clear();
    }
}
