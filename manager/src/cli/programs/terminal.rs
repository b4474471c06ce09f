//! This process's terminal, in raw mode: each key goes to the guest.

use std::{
    io,
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use brood_core::agent::protocol::TerminalSize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// The modes that the terminal had, while it is raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode, until this is dropped.
pub(super) struct RawMode(());

impl RawMode {
    /// Sets the terminal of standard input to raw mode; nothing where it is none.
    pub(super) fn set() -> io::Result<Option<RawMode>> {
        let input = io::stdin();
        let Ok(before) = tcgetattr(input.as_fd()) else {
            return Ok(None);
        };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        tcsetattr(input.as_fd(), SetArg::TCSANOW, &raw)?;
        Ok(Some(RawMode(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Sets the terminal back to what it was, before this process ends in any way.
pub(super) fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &before);
    }
}

/// The size of the terminal; what is usual where there is none.
pub(super) fn size() -> TerminalSize {
    let sizes = [
        terminal_size::terminal_size_of(io::stdout()),
        terminal_size::terminal_size_of(io::stdin()),
    ];
    match sizes.into_iter().flatten().next() {
        Some((terminal_size::Width(columns), terminal_size::Height(rows)))
            if rows > 0 && columns > 0 =>
        {
            TerminalSize { rows, columns }
        }
        _ => TerminalSize {
            rows: 24,
            columns: 80,
        },
    }
}
