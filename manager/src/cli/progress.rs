//! How a restore by the daemon comes along, shown as a restore by the command itself is.

use std::collections::HashSet;

use indicatif::ProgressBar;

use super::output::{advance, bytes_bar, guests_bar};
use crate::{
    api::events::RestoreEvent, checkpoint::Progress, restore::job::FailureView, units::Bytes,
};

/// What is shown of a restore under way.
pub(super) struct Shown {
    guests: ProgressBar,
    bytes: ProgressBar,
    /// Guests whose failure was told.
    failures: HashSet<String>,
    warnings: Vec<String>,
}

impl Shown {
    pub(super) fn new(quiet: bool) -> Self {
        let (guests, bytes) = (guests_bar(0, quiet), bytes_bar(quiet));
        guests.set_message("restoring");
        bytes.set_message("verifying");
        Self {
            guests,
            bytes,
            failures: HashSet::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn note(&mut self, event: &RestoreEvent) {
        if let (Some(done), Some(total)) = (event.verified_bytes, event.verify_bytes) {
            let (done, total) = (Bytes(done), Bytes(total));
            advance(&self.bytes, Progress { done, total });
            return;
        }
        self.bytes.finish_and_clear();
        self.guests.set_length(event.asked.into());
        self.guests.set_position(event.restored.into());
        if let Some(failure) = &event.failure {
            self.failed(failure);
        }
        if let Some(warning) = &event.warning {
            self.warn(warning);
        }
    }

    fn failed(&mut self, failure: &FailureView) {
        if self.failures.insert(failure.name.clone()) {
            self.guests
                .suspend(|| eprintln!("{}: {}", failure.name, failure.error));
        }
    }

    fn warn(&mut self, warning: &str) {
        self.guests.suspend(|| eprintln!("warning: {warning}"));
        self.warnings.push(warning.to_owned());
    }

    /// Ends it. What was not told on the way is told now: events can be missed, a report cannot.
    pub(super) fn finish(mut self, failures: &[FailureView], warnings: &[String]) {
        self.clear();
        for warning in warnings {
            if let Some(told) = self.warnings.iter().position(|told| told == warning) {
                self.warnings.remove(told);
            } else {
                eprintln!("warning: {warning}");
            }
        }
        for failure in failures {
            self.failed(failure);
        }
    }
}

impl Shown {
    fn clear(&self) {
        self.bytes.finish_and_clear();
        self.guests.finish_and_clear();
    }
}

impl Drop for Shown {
    /// Errors are printed on a line of their own.
    fn drop(&mut self) {
        self.clear();
    }
}
