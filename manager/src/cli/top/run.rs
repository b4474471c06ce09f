//! Terminal of `brood top`: draws, reads keys, and restores the terminal however the program ends.

use std::{
    io,
    mem::ManuallyDrop,
    os::fd::AsFd,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError, TryRecvError},
    },
    thread,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

use super::{
    draw::draw,
    source::Source,
    view::{Display, KeyOutcome},
};
use crate::failure::{Failure, INTERRUPTED};

/// How long a key is waited for before anything else is looked at.
const KEY_TIMEOUT: Duration = Duration::from_millis(100);

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TopEnd {
    /// A key was pressed that ends it.
    Quit,
    /// A signal came.
    Signal,
}

/// The screen. Leaves the terminal as it was found when this is dropped. A panic does so too, before
/// it says anything: [`ratatui::try_init`] sees to that.
struct Screen(ManuallyDrop<DefaultTerminal>);

impl Drop for Screen {
    fn drop(&mut self) {
        // Where standard error is the terminal that fails, `ratatui::restore` and the end of a
        // `DefaultTerminal` would panic, which aborts the program: its panic hook does so, too.
        let _ = self.0.show_cursor();
        let _ = ratatui::try_restore();
    }
}

/// Ends the process when the terminal is gone. There is nothing to give back then, and what reads
/// keys does not return: it takes the end of its input, and the error of a terminal that hung up,
/// for "no key yet", and asks again at once, for ever.
fn end_with_the_terminal() {
    thread::spawn(|| {
        while !is_gone(PollTimeout::NONE) {
            thread::sleep(KEY_TIMEOUT);
        }
        leave();
    });
}

/// Whether the terminal hangs up within `limit`. Only that is waited for, no key.
fn is_gone(limit: PollTimeout) -> bool {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::empty())];
    let seen = poll(&mut fds, limit).is_ok_and(|ready| ready > 0);
    seen && fds[0].any().unwrap_or(true)
}

fn leave() -> ! {
    process::exit(INTERRUPTED.into())
}

/// Why the terminal cannot be used; ends the process when that is because it is gone.
fn failed(error: &io::Error) -> Failure {
    if is_gone(PollTimeout::ZERO) {
        leave();
    }
    terminal(error)
}

/// Shows what `source` sees until a key or a signal ends it.
///
/// # Errors
/// When the terminal cannot be used, or there is nothing to see any more.
pub(crate) fn run(
    source: Source,
    mut display: Display,
    interval: Duration,
) -> Result<TopEnd, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, Arc::clone(&stop)).map_err(|e| terminal(&e))?;
    }
    end_with_the_terminal();
    let (pictures, again) = look(source, interval);
    let screen = ratatui::try_init().map_err(|e| failed(&e))?;
    let mut screen = Screen(ManuallyDrop::new(screen));
    loop {
        match pictures.try_recv() {
            Ok(Ok(picture)) => display.update(picture),
            Ok(Err(failure)) => display.trouble = Some(failure.message),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                let message = "what looks at the guests has ended";
                return Err(Failure::new(&message, None));
            }
        }
        screen
            .0
            .draw(|frame| draw(frame, &display))
            .map_err(|e| failed(&e))?;
        if stop.load(Ordering::Relaxed) {
            return Ok(TopEnd::Signal);
        }
        // A signal cuts the waiting short.
        let come = match event::poll(KEY_TIMEOUT) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => false,
            come => come.map_err(|e| failed(&e))?,
        };
        if come && let Event::Key(key) = event::read().map_err(|e| failed(&e))? {
            let was_paused = display.paused;
            if display.key(key) == KeyOutcome::Quit {
                return Ok(TopEnd::Quit);
            }
            if was_paused && !display.paused {
                // After a stop, the display must be drawn again.
                let _ = again.send(());
            }
        }
    }
}

/// Looks again and again, in a thread: it may take longer than a key may wait.
fn look(
    mut source: Source,
    interval: Duration,
) -> (
    mpsc::Receiver<Result<super::picture::Picture, Failure>>,
    mpsc::Sender<()>,
) {
    let (sender, pictures) = mpsc::channel();
    let (again, wanted) = mpsc::channel();
    thread::spawn(move || {
        loop {
            if sender.send(source.look()).is_err() {
                return;
            }
            if let Err(RecvTimeoutError::Disconnected) = wanted.recv_timeout(interval) {
                return;
            }
        }
    });
    (pictures, again)
}

fn terminal(error: &io::Error) -> Failure {
    let message = format!("cannot use the terminal: {error}");
    Failure::new(&message, Some("brood top --once needs none".to_owned()))
}
