//! What commands print with: JSON, tables, progress bars; and what they are run with.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

use super::Failure;
use crate::{
    checkpoint::Progress,
    config::Config,
    engine::{self, Engine, bhyve::Rctl},
    host::facts::HostFacts,
    restore::ParkAfter,
    state::State,
};

/// Prints a line to standard output. A reader that has gone away is no error: the command's work
/// is done all the same.
pub(crate) fn line(text: impl std::fmt::Display) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// Prints a value as JSON: one line, so that a stream of them can be read line by line.
pub(crate) fn json(value: &impl Serialize) {
    line(serde_json::to_string(value).expect("what commands print is plain data"));
}

/// Whether to colour standard output.
pub(crate) fn color() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Prints rows under a header, each column as wide as it must be.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(header[column].len())
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        line(padded.join("  ").trim_end());
    };
    print(&mut header.iter().copied());
    for row in rows {
        print(&mut row.iter().map(String::as_str));
    }
}

/// A bar on standard error that counts `what`; hidden where there is no terminal, or when asked.
pub(crate) fn guests_bar(guests: u64, quiet: bool) -> ProgressBar {
    bar(
        guests,
        quiet,
        "{msg} {wide_bar:.cyan/dim} {pos}/{len} guests  {per_sec}  ETA {eta}",
    )
}

/// A bar that counts bytes.
pub(crate) fn bytes_bar(quiet: bool) -> ProgressBar {
    bar(
        0,
        quiet,
        "{msg} {wide_bar:.cyan/dim} {binary_bytes}/{binary_total_bytes}  ETA {eta}",
    )
}

fn bar(length: u64, quiet: bool, template: &str) -> ProgressBar {
    let target = if quiet {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr_with_hz(10)
    };
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    ProgressBar::with_draw_target(Some(length), target).with_style(style)
}

/// Moves a bytes bar.
pub(crate) fn advance(bar: &ProgressBar, progress: Progress) {
    bar.set_length(progress.total.0);
    bar.set_position(progress.done.0);
}

/// The state folder, opened.
pub(crate) fn state(config: &Config) -> Result<State, Failure> {
    Ok(State::open(config.state_dir()?)?)
}

/// The engine of this host, as it is configured.
pub(crate) fn engine(config: &Config) -> Result<Box<dyn Engine>, Failure> {
    engine_with(&config.bhyve.rctl.value)
}

/// The engine of this host, with these limits for its guests.
pub(crate) fn engine_with(rctl: &Rctl) -> Result<Box<dyn Engine>, Failure> {
    let program = std::env::current_exe().map_err(|source| engine::Error::Io {
        action: "find the brood binary",
        source,
    })?;
    Ok(engine::choose(&program, rctl)?)
}

/// Facts of the host that an engine's guests run on.
pub(crate) fn facts(
    config: &Config,
    engine: &dyn Engine,
    checkpoint: Option<PathBuf>,
) -> Result<HostFacts, Failure> {
    let state = config.state_dir()?.to_owned();
    Ok(engine.host().facts(state, checkpoint)?)
}

/// When idle guests give their virtual machine back.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Park {
    /// Let guests that are idle for so long give their virtual machine back to the host, until
    /// they are asked again (seconds, or "never"). A parked guest costs the host a fifth of the
    /// memory, and its next answer takes about as long as a restore [default: never]
    #[arg(long = "park-after", value_name = "SECONDS")]
    pub(crate) after: Option<ParkAfter>,
}

/// A flag that Ctrl-C and SIGTERM set. A second one ends the command at once.
pub(crate) fn cancellation() -> Arc<AtomicBool> {
    let cancelled = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // Registered first, so that it sees the flag as it was before this signal.
        let _ = flag::register_conditional_shutdown(
            signal,
            super::failure::INTERRUPTED.into(),
            Arc::clone(&cancelled),
        );
        let _ = flag::register(signal, Arc::clone(&cancelled));
    }
    cancelled
}
