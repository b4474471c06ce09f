//! Output of commands: JSON, tables and notes on standard output and standard error; and
//! the operations of commands.
//!
//! Nothing else in the program prints: the compiler refuses `println!` and `eprintln!`, which panic
//! when the disk is full or the reader has gone.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    low_level,
};
use tracing_subscriber::EnvFilter;

use crate::{
    client::Auto,
    config::Config,
    failure::{Failure, SOME},
    ops::Local,
};
use brood_core::{checkpoint::BundlePath, engine::ParkAfter, escaped};

/// Why standard output lost something, when it did.
static WRITE_ERROR: OnceLock<io::Error> = OnceLock::new();

/// Prints a line to standard output, with characters escaped that a terminal would act on. A
/// failure is kept for [`written`]. A reader that has gone away (`brood list | head`) is no
/// failure: the command's work is done all the same.
pub(crate) fn line(text: impl std::fmt::Display) {
    styled(escaped::lines(&text.to_string()));
}

/// The same with colours, of text that has nothing else that a terminal acts on.
pub(crate) fn styled(text: impl std::fmt::Display) {
    keep_error(writeln!(io::stdout().lock(), "{text}"));
}

fn keep_error(result: io::Result<()>) {
    if let Err(e) = result
        && e.kind() != io::ErrorKind::BrokenPipe
    {
        // The first one tells what happened; later ones follow from it.
        let _ = WRITE_ERROR.set(e);
    }
}

/// Prints to standard error how a command failed, and what to do next.
pub(crate) fn failure(failure: &Failure) {
    note_with("\x1b[1;31m", "error", &failure.message);
    if let Some(hint) = &failure.hint {
        note_with("\x1b[36m", "  hint", hint);
    }
}

/// Whether all that was printed has reached standard output.
///
/// # Errors
/// When it has not, as on a full disk.
pub(crate) fn written() -> Result<(), Failure> {
    keep_error(io::stdout().lock().flush());
    match WRITE_ERROR.get() {
        None => Ok(()),
        Some(e) => {
            let message = format!("cannot write to standard output: {e}");
            let hint = "what the command did stands, see `brood list` and `brood pool show`; make room, or print elsewhere";
            Err(Failure::new(&message, Some(hint.to_owned())))
        }
    }
}

/// Prints what clap has to say: help and version to standard output, mistakes to standard error.
pub(crate) fn print_usage(usage: &clap::Error) -> Result<(), Failure> {
    if usage.use_stderr() {
        // It repeats what it was given, which a shell may have taken from names of files.
        let plain = usage.render().to_string();
        match escaped::lines(&plain) {
            Cow::Borrowed(_) => drop(usage.print()),
            Cow::Owned(escaped) => note(escaped.trim_end()),
        }
        return Ok(());
    }
    let printed = usage.print();
    keep_error(printed);
    written()
}

/// Prints a line to standard error. Whether anybody can read it never changes what a command does.
pub(crate) fn note(text: impl std::fmt::Display) {
    let text = text.to_string();
    let _ = writeln!(io::stderr().lock(), "{}", escaped::lines(&text));
}

/// The same behind a word in a colour, such as `\x1b[36m`, where standard error is coloured.
pub(crate) fn note_with(color: &str, word: &str, text: &str) {
    let (color, reset) = if color_errors() {
        (color, "\x1b[0m")
    } else {
        ("", "")
    };
    let text = escaped::lines(text);
    let indent = &word[..word.len() - word.trim_start().len()];
    let word = word.trim_start();
    let _ = writeln!(io::stderr().lock(), "{indent}{color}{word}{reset}: {text}");
}

/// Prints a value as JSON: one line, so that a stream of them can be read line by line.
pub(crate) fn json(value: &impl Serialize) {
    let text = serde_json::to_string(value).expect("what commands print is plain data");
    line(escaped::json(&text));
}

/// How long ago a moment was, in its largest unit; none, when it is no moment or has not come.
pub(crate) fn age(moment: &str, now: Timestamp) -> Option<String> {
    let moment: Timestamp = moment.parse().ok()?;
    let seconds = u64::try_from(now.duration_since(moment).as_secs()).ok()?;
    let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(length, _)| seconds >= 2 * length);
    Some(match unit {
        Some((length, unit)) => format!("{}{unit}", seconds / length),
        None => format!("{seconds}s"),
    })
}

/// The exit code of a command that has done some of its work and failed at some.
pub(super) fn ending(done: usize, failed: usize) -> ExitCode {
    match (done, failed) {
        (_, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::FAILURE,
        _ => ExitCode::from(SOME),
    }
}

/// A number of things in words: `1 guest`, `2 guests`.
pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Whether to colour standard output.
pub(crate) fn color() -> bool {
    io::stdout().is_terminal() && may_color()
}

/// Whether to colour standard error.
pub(crate) fn color_errors() -> bool {
    io::stderr().is_terminal() && may_color()
}

/// As <https://no-color.org> has it: set, and not empty.
pub(super) fn may_color() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Columns of the terminal that standard output is; none where it is no terminal.
pub(crate) fn width() -> Option<usize> {
    let (terminal_size::Width(columns), _) = terminal_size::terminal_size_of(io::stdout())?;
    // One that does not say how wide it is says 0.
    (columns > 0).then_some(columns.into())
}

/// Prints rows under a header, each column as wide as it must be.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) {
    let rows: Vec<Vec<_>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| escaped::line(cell)).collect())
        .collect();
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
    for row in &rows {
        print(&mut row.iter().map(AsRef::as_ref));
    }
}

/// Operations by the daemon, or by this process.
pub(crate) fn operations(config: &Config) -> Auto {
    Auto::new(config, warn)
}

/// Operations by this process, if its user may enter the state folder.
pub(crate) fn operations_near(config: &Config) -> Auto {
    Auto::near(config, warn)
}

/// Operations that restore guests of a checkpoint.
pub(crate) fn operations_to_restore(
    config: &Config,
    checkpoint: &BundlePath,
) -> Result<Auto, Failure> {
    Auto::to_restore(config, warn, checkpoint)
}

/// Operations by this process alone.
pub(crate) fn operations_here(config: &Config) -> Auto {
    Auto::here(config, warn)
}

/// What only this process does.
pub(crate) fn local(config: &Config) -> Local {
    Local::new(config, warn)
}

/// Prints a warning to standard error.
pub(crate) fn warn(why: &str) {
    note(format_args!("warning: {why}"));
}

/// When idle guests give their virtual machine back.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Park {
    /// Park guests that were idle for this time: they give their virtual machine back to the host
    /// until the next request. A parked guest takes about a quarter of the memory, and its next
    /// answer takes about a millisecond longer [default: never]
    #[arg(long = "park-after", value_name = "TIME|never")]
    pub(crate) after: Option<ParkAfter>,
}

/// Signals that come so soon after the first belong to the same interrupt: timeout(1) signals its
/// command, and then the group that the command is in.
const SAME_INTERRUPT: Duration = Duration::from_millis(500);

/// A flag that Ctrl-C and SIGTERM set. A later one ends the command at once.
pub(crate) fn cancellation() -> Arc<AtomicBool> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let (begin, first) = (Instant::now(), Arc::new(AtomicU64::new(u64::MAX)));
    for signal in [SIGINT, SIGTERM] {
        let (cancelled, first) = (Arc::clone(&cancelled), Arc::clone(&first));
        let act = move || {
            let now = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
            let earliest = first.fetch_min(now, Ordering::Relaxed).min(now);
            if Duration::from_millis(now - earliest) > SAME_INTERRUPT {
                low_level::exit(crate::failure::INTERRUPTED.into());
            }
            cancelled.store(true, Ordering::Relaxed);
        };
        // SAFETY: the handler reads a clock (clock_gettime(2)), changes atomic numbers and may end
        // the process (_exit(2)), all of which signal-safety(7) allows.
        let _ = unsafe { low_level::register(signal, act) };
    }
    cancelled
}

/// Starts the log of a command on standard error, if `--verbose` is given or `RUST_LOG` is set.
pub(crate) fn start_log(verbose: bool) {
    let filter = match EnvFilter::try_from_default_env() {
        Ok(filter) => filter,
        Err(_) if verbose => EnvFilter::new("brood=info"),
        Err(_) => return,
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .with_ansi(false)
        // It would panic when standard error cannot be written to.
        .log_internal_errors(false)
        .init();
}
