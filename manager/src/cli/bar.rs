//! Progress bars on standard error. A bar appears on a terminal once its length is known, and
//! leaves nothing behind when it is dropped.

use std::{
    fmt::{self, Write},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::output::note;
use brood_core::checkpoint::Progress;

/// A progress bar.
pub(super) struct Bar {
    bar: ProgressBar,
    quiet: bool,
    cancelled: Option<Arc<AtomicBool>>,
}

impl Bar {
    /// A bar that counts guests. `quiet` keeps it from being drawn at all.
    pub(super) fn guests(message: &'static str, guests: u64, quiet: bool) -> Self {
        let bar = Self::new(
            message,
            quiet,
            "{msg} {wide_bar:.cyan/dim} {pos}/{len} guests  {rate}  ETA {eta}",
        );
        bar.set_length(guests);
        bar
    }

    /// A bar that counts bytes.
    pub(super) fn bytes(message: &'static str, quiet: bool) -> Self {
        Self::new(
            message,
            quiet,
            "{msg} {wide_bar:.cyan/dim} {binary_bytes}/{binary_total_bytes}  ETA {eta}",
        )
    }

    fn new(message: &'static str, quiet: bool, template: &str) -> Self {
        let rate = |state: &ProgressState, out: &mut dyn Write| {
            let _: fmt::Result = write!(out, "{:.0}/s", state.per_sec());
        };
        let style = ProgressStyle::with_template(template)
            .expect("the template is a constant")
            .with_key("rate", rate);
        // Drawn without a length it would be a full bar of 0/0.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self {
            bar: bar.with_style(style).with_message(message),
            quiet,
            cancelled: None,
        }
    }

    /// Ends the work when this flag is set: see [`Self::advance`].
    pub(super) fn until(self, cancelled: &Arc<AtomicBool>) -> Self {
        Self {
            cancelled: Some(Arc::clone(cancelled)),
            bar: self.bar.clone(),
            quiet: self.quiet,
        }
    }

    /// Gives it a length, and with it a place on the terminal.
    pub(super) fn set_length(&self, length: u64) {
        if length == 0 || self.bar.length() == Some(length) {
            return;
        }
        self.bar.set_length(length);
        if !self.quiet {
            self.bar
                .set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        }
    }

    /// Shows the progress in bytes, and returns whether to go on.
    pub(super) fn advance(&self, progress: Progress) -> ControlFlow<()> {
        self.set_length(progress.total.0);
        self.bar.set_position(progress.done.0);
        match &self.cancelled {
            Some(cancelled) if cancelled.load(Ordering::Relaxed) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    /// Shows how many are done.
    pub(super) fn set_position(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// One more is done.
    pub(super) fn inc(&self) {
        self.bar.inc(1);
    }

    /// Says what is being done.
    pub(super) fn set_message(&self, message: &'static str) {
        self.bar.set_message(message);
    }

    /// Prints a line to standard error, above the bar.
    pub(super) fn note(&self, text: impl fmt::Display) {
        self.bar.suspend(|| note(text));
    }

    /// Takes it off the terminal.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Bar {
    /// Errors are printed on a line of their own.
    fn drop(&mut self) {
        self.clear();
    }
}
