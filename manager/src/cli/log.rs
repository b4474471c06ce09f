//! Log of the daemon: lines on standard error, written by a thread of its own.
//!
//! A slow or dead reader of the log must neither hold up the daemon nor end it. A line that nobody
//! reads in time, or that cannot be written (the disk is full, the reader has ended), is lost and
//! counted; the next line that can be written comes after one that says how many were lost.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::config::{LogFormat, LogLevel};
use brood_core::escaped;

/// Lines that wait to be written.
const LINES: usize = 4096;
/// How long the last lines may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
const FLUSH_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Messages to the writing thread.
#[derive(Debug)]
enum Order {
    Line(Vec<u8>),
    /// Tell when all lines before this are written.
    Flush(Sender<()>),
}

/// The end of the log that lines go into.
#[derive(Clone, Debug)]
struct Lines {
    orders: SyncSender<Order>,
    lost: Arc<AtomicU64>,
    escape: Escape,
}

/// Escapes the characters of a line that a terminal would act on.
type Escape = fn(&str) -> Cow<'_, str>;

impl Lines {
    /// Starts the thread that writes them to `to`.
    fn written_to(to: impl Write + Send + 'static, format: LogFormat, colored: bool) -> Self {
        let escape: Escape = match format {
            LogFormat::Json => escaped::json,
            // Escape characters are the colours': those of fields are written out before.
            LogFormat::Text if colored => escaped::colored_line,
            LogFormat::Text => escaped::line,
        };
        let (orders, taken) = sync_channel(LINES);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        let writing = move || write_all(&taken, to, &counted, format);
        // Without a thread every line is lost, which is no reason to end.
        let _ = thread::Builder::new().name("log".into()).spawn(writing);
        Self {
            orders,
            lost,
            escape,
        }
    }

    /// Waits until all lines are written, but not for long.
    fn flush(&self) {
        let begin = Instant::now();
        let (done, is_done) = channel();
        let mut order = Order::Flush(done);
        while let Err(TrySendError::Full(unsent)) = self.orders.try_send(order) {
            if begin.elapsed() > FLUSH_TIMEOUT {
                return;
            }
            order = unsent;
            thread::sleep(FLUSH_POLL_INTERVAL);
        }
        let _ = is_done.recv_timeout(FLUSH_TIMEOUT);
    }
}

fn write_all(orders: &Receiver<Order>, mut to: impl Write, lost: &AtomicU64, format: LogFormat) {
    for order in orders {
        match order {
            Order::Line(line) => {
                let before = lost.swap(0, Ordering::Relaxed);
                let notice = if before == 0 {
                    String::new()
                } else {
                    notice(before, format)
                };
                if to.write_all(notice.as_bytes()).is_err() {
                    lost.fetch_add(before + 1, Ordering::Relaxed);
                } else if to.write_all(&line).is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
            Order::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

fn notice(lost: u64, format: LogFormat) -> String {
    let message = format!("{lost} lines of this log could not be written");
    match format {
        LogFormat::Text => format!("WARN {message}\n"),
        LogFormat::Json => format!("{{\"level\":\"WARN\",\"message\":\"{message}\"}}\n"),
    }
}

impl Write for Lines {
    /// Takes a line. Names of folders and guests' words in it end no line and turn no terminal.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut escaped = (self.escape)(text).into_owned();
        escaped.push('\n');
        if self.orders.try_send(Order::Line(escaped.into())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Changes how much is in the log.
pub(super) type SetLevel = Arc<dyn Fn(LogLevel) + Send + Sync>;

/// The log. All queued lines are written when this is dropped.
pub(super) struct Log {
    lines: Lines,
    set_level: SetLevel,
}

impl Log {
    /// What changes its level.
    pub(super) fn level(&self) -> SetLevel {
        Arc::clone(&self.set_level)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines.flush();
    }
}

/// Starts the log. `RUST_LOG` overrides the configured level, and stays.
pub(super) fn start(format: LogFormat, level: LogLevel) -> Log {
    let name = |level| match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let exact = EnvFilter::try_from_default_env().ok();
    let fixed = exact.is_some();
    let filter = exact.unwrap_or_else(|| EnvFilter::new(name(level)));
    let colored =
        format == LogFormat::Text && io::stderr().is_terminal() && super::output::may_color();
    let lines = Lines::written_to(io::stderr(), format, colored);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines.clone())
        .with_target(false)
        // It would tell of a standard error that cannot be written to by a panic.
        .log_internal_errors(false);
    let changed = move |level| (!fixed).then(|| EnvFilter::new(name(level)));
    // It fails only when the log is gone, and then there is no place to report it.
    let set_level: SetLevel = match format {
        LogFormat::Text => {
            let log = log.with_ansi(colored).with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Arc::new(move |level| {
                if let Some(filter) = changed(level) {
                    let _ = handle.reload(filter);
                }
            })
        }
        LogFormat::Json => {
            let log = log
                .json()
                .flatten_event(true)
                .with_span_list(false)
                .with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Arc::new(move |level| {
                if let Some(filter) = changed(level) {
                    let _ = handle.reload(filter);
                }
            })
        }
    };
    Log { lines, set_level }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc::sync_channel};

    use super::*;

    /// A standard error that fails at first, and whose reader is slow.
    struct Stream {
        failures: u32,
        go: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stream {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.go.recv();
            if self.failures > 0 {
                self.failures -= 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_line_has_what_a_terminal_acts_on_but_its_colours() {
        for (format, colored) in [
            (LogFormat::Text, false),
            (LogFormat::Text, true),
            (LogFormat::Json, false),
        ] {
            let (going, go) = sync_channel(0);
            drop(going);
            let written = Arc::new(Mutex::new(Vec::new()));
            let stream = Stream {
                failures: 0,
                go,
                written: Arc::clone(&written),
            };
            let mut lines = Lines::written_to(stream, format, colored);
            let event: &[u8] = match format {
                LogFormat::Text => "\u{1b}[32mINFO\u{1b}[0m /a\nWARN\u{9b}31m\u{202e}\n".as_bytes(),
                LogFormat::Json => "{\"folder\":\"/a\\n\u{9b}31m\u{202e}\"}\n".as_bytes(),
            };
            lines.write_all(event).unwrap();
            lines.flush();
            let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
            let line = text.strip_suffix('\n').unwrap();
            let acts = |c: char| escaped::is_unprintable(c) && !(colored && c == '\u{1b}');
            assert!(!line.contains(acts), "{line:?}");
            if format == LogFormat::Json {
                let event: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(event["folder"], "/a\n\u{9b}31m\u{202e}");
            }
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_hold_nobody_up() {
        let (going, go) = sync_channel(0);
        let written = Arc::new(Mutex::new(Vec::new()));
        let stream = Stream {
            failures: 2,
            go,
            written: Arc::clone(&written),
        };
        let mut lines = Lines::written_to(stream, LogFormat::Json, false);
        // Without a reader, lines beyond the queue are lost at once.
        for line in 0..LINES + 10 {
            // In one piece, as the log is written: writeln! would make two of it.
            lines.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        drop(going);
        lines.flush();
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let told: u64 = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter_map(|line| {
                let message = line["message"].as_str()?;
                message.split(' ').next()?.parse::<u64>().ok()
            })
            .sum();
        let whole = text.lines().filter(|line| !line.starts_with('{')).count();
        assert_eq!(told + whole as u64, LINES as u64 + 10, "{told} lost");
        assert!(told >= 2);
    }
}
