//! Line of a network card: where its frames go, and where those for it come from. It leads nowhere
//! until it is connected.

mod arp;
mod stream;
mod translation;
mod tun;

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};

pub use self::{
    translation::{GUEST, HOST, HOST_SEEN},
    tun::Tun,
};
use crate::{bus::Bus, virtio::net::Wire};

/// What a line is connected to.
#[derive(Debug)]
pub enum Connection {
    /// passt, or whatever else speaks as it does.
    Stream(UnixStream),
    /// A TUN device of the host.
    Tun(Tun),
}

/// What goes out: shared with the card, whose frames come from the threads of the processors.
#[derive(Debug)]
enum Output {
    Stream(stream::Output),
    Tun(Arc<Tun>),
}

/// What comes in.
#[derive(Debug)]
enum Input {
    Stream(stream::Input),
    Tun(Arc<Tun>),
}

/// A line.
#[derive(Debug, Default)]
pub struct Line {
    output: Arc<Mutex<Option<Output>>>,
    input: Option<Input>,
}

/// The card's end of a line.
struct CardEnd(Arc<Mutex<Option<Output>>>);

fn lock(output: &Mutex<Option<Output>>) -> MutexGuard<'_, Option<Output>> {
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wire for CardEnd {
    fn send(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        match lock(&self.0).as_mut()? {
            Output::Stream(stream) => {
                stream.send(frame);
                None
            }
            Output::Tun(tun) => tun.send(frame),
        }
    }
}

impl Line {
    /// The end that the card has.
    #[must_use]
    pub fn card_end(&self) -> Box<dyn Wire> {
        Box::new(CardEnd(Arc::clone(&self.output)))
    }

    /// Connects the line.
    pub fn connect(&mut self, connection: Connection) {
        let (output, input) = match connection {
            Connection::Stream(stream) => {
                let (output, input) = stream::open(stream);
                (Output::Stream(output), Input::Stream(input))
            }
            Connection::Tun(tun) => {
                let tun = Arc::new(tun);
                (Output::Tun(Arc::clone(&tun)), Input::Tun(tun))
            }
        };
        *lock(&self.output) = Some(output);
        self.input = Some(input);
    }

    /// What to wait for; none when it leads nowhere.
    pub fn poll_fd(&self, bus: &Bus) -> Option<PollFd<'_>> {
        let fd = match self.input.as_ref()? {
            Input::Stream(stream) => stream.as_fd(),
            Input::Tun(tun) => tun.as_fd(),
        };
        let has_room = bus.net().is_some_and(|mut net| net.device().has_room());
        let output = lock(&self.output);
        let waits = matches!(&*output, Some(Output::Stream(stream)) if stream.waits());
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, has_room);
        events.set(PollFlags::POLLOUT, waits);
        Some(PollFd::new(fd, events))
    }

    /// Carries what there is, both ways. `seen` is what the wait has seen. The line leads nowhere any
    /// more when the other end is closed, or sends what is no frame.
    pub fn carry(&mut self, bus: &Bus, seen: PollFlags) {
        if let Some(Output::Stream(stream)) = &mut *lock(&self.output) {
            let _ = stream.flush();
        }
        let goes_on = if seen.contains(PollFlags::POLLIN) {
            self.read(bus).is_ok()
        } else {
            !seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)
        };
        if !goes_on {
            self.input = None;
            *lock(&self.output) = None;
        }
    }

    fn read(&mut self, bus: &Bus) -> io::Result<()> {
        let (Some(input), Some(mut net)) = (&mut self.input, bus.net()) else {
            return Ok(());
        };
        let device = net.device();
        match input {
            Input::Stream(stream) => stream.read(|frame| device.receive(frame))?,
            Input::Tun(tun) => {
                while device.has_room() && tun.read(|frame| device.receive(frame))?.is_continue() {}
            }
        }
        net.serve();
        Ok(())
    }
}

/// Carries frames both ways until the other end is closed, or it is told to end. `wake` is what the
/// card calls when there is room again, and whoever tells it to end.
///
/// # Errors
/// When nothing can be waited for.
pub fn carry(bus: &Bus, mut line: Line, wake: &EventFd, end: &AtomicBool) -> io::Result<()> {
    while !end.load(Ordering::Acquire) {
        let Some(fd) = line.poll_fd(bus) else {
            return Ok(());
        };
        let mut fds = [fd, PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let [seen, woken] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if !woken.is_empty() {
            let _ = wake.read();
        }
        line.carry(bus, seen);
    }
    Ok(())
}
