//! Broker's process: one thread that waits for the channel and for all clients.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::ExitCode,
    time::{Duration, Instant},
};

use brood_agent_protocol::SessionId;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::routes::{ClientId, Routes};
use crate::agent::{
    Loss,
    link::{HELLO_INTERVAL, LONGEST_HELLO_INTERVAL},
};

/// The command line's word for it, which people have no use for.
pub const BROKER_COMMAND: &str = "agent-broker";

/// How many words of its command line come before those about the guest.
pub(crate) const WORDS_BEFORE_GUEST: usize = 3;

/// How long a broker stays that nobody uses.
const LINGER: Duration = Duration::from_secs(3);
/// How often a guest is looked at whose channel does not end with it.
const LOOK: Duration = Duration::from_millis(500);
/// Most clients at once; the next waits to be accepted.
const CLIENTS_MAX: usize = 256;
/// What waits for the guest when no more is taken from clients.
const TO_GUEST_MAX: usize = 256 * 1024;

/// The broker's program. It was given the guest's channel as its standard input, the socket that it
/// listens on as its standard output, and the lock of the channel as its standard error. `lives` says
/// whether the guest may live, where the channel does not end with it.
pub(crate) fn broker(lives: Option<&dyn Fn() -> bool>) -> ExitCode {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let given = (
        stdin.as_fd().try_clone_to_owned(),
        stdout.as_fd().try_clone_to_owned(),
    );
    let (Ok(channel), Ok(listener)) = given else {
        return ExitCode::FAILURE;
    };
    match Broker::new(channel, listener.into()) {
        Ok(mut broker) => {
            let _why = broker.run(lives);
            broker.part();
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// A channel, with those who use it.
struct Broker {
    channel: OwnedFd,
    listener: UnixListener,
    routes: Routes,
    clients: BTreeMap<ClientId, UnixStream>,
    buffer: Vec<u8>,
}

impl Broker {
    fn new(channel: OwnedFd, listener: UnixListener) -> io::Result<Broker> {
        let flags = OFlag::from_bits_retain(fcntl(&channel, FcntlArg::F_GETFL)?);
        fcntl(&channel, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        listener.set_nonblocking(true)?;
        let mut number = [0; 8];
        getrandom::fill(&mut number).map_err(io::Error::other)?;
        Ok(Broker {
            channel,
            listener,
            // 0 is no session.
            routes: Routes::new(SessionId(u64::from_le_bytes(number) | 1)),
            clients: BTreeMap::new(),
            buffer: vec![0; 64 * 1024],
        })
    }

    /// Serves until the channel ends, or nobody has used it for a while; why the channel ended.
    fn run(&mut self, lives: Option<&dyn Fn() -> bool>) -> Option<Loss> {
        let mut unused = Some(Instant::now());
        let mut look = lives.map(|lives| (lives, Instant::now()));
        let mut interval = HELLO_INTERVAL;
        let mut hello = Instant::now();
        loop {
            let now = Instant::now();
            if let Some((lives, at)) = &mut look
                && now >= *at
            {
                if !lives() {
                    return Some(Loss::Closed);
                }
                *at = now + LOOK;
            }
            if !self.routes.is_greeted() && now >= hello {
                // One that still waits to be written is as good as two.
                if self.routes.guest_outbox().waiting().is_empty() {
                    self.routes.greet();
                }
                hello = now + interval;
                interval = (interval * 2).min(LONGEST_HELLO_INTERVAL);
            }
            unused = match self.clients.is_empty() {
                true => unused.or(Some(now)),
                false => None,
            };
            let end = unused.map(|since| since + LINGER);
            if end.is_some_and(|end| now >= end) {
                return None;
            }
            let greet = (!self.routes.is_greeted()).then_some(hello);
            let look = look.map(|(_, at)| at);
            if let Err(loss) = self.turn([end, greet, look].into_iter().flatten().min()) {
                return Some(loss);
            }
        }
    }

    /// Waits for something to do, until then at the latest, and does it.
    fn turn(&mut self, until: Option<Instant>) -> Result<(), Loss> {
        let writes = |waiting: bool| match waiting {
            true => PollFlags::POLLOUT,
            false => PollFlags::empty(),
        };
        let waiting = self.routes.guest_outbox().waiting().len();
        let takes = match waiting < TO_GUEST_MAX {
            true => PollFlags::POLLIN,
            false => PollFlags::empty(),
        };
        let accepts = match self.clients.len() < CLIENTS_MAX {
            true => PollFlags::POLLIN,
            false => PollFlags::empty(),
        };
        let mut fds = vec![
            PollFd::new(
                self.channel.as_fd(),
                PollFlags::POLLIN | writes(waiting > 0),
            ),
            PollFd::new(self.listener.as_fd(), accepts),
        ];
        let ids: Vec<ClientId> = self.clients.keys().copied().collect();
        for (id, client) in &self.clients {
            let out = self.routes.client_outbox(*id);
            let waiting = out.is_some_and(|out| !out.waiting().is_empty());
            fds.push(PollFd::new(client.as_fd(), takes | writes(waiting)));
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up, so that it does not come back a moment too early and ask again.
        let left = left.map(|left| left + Duration::from_millis(1));
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(()),
            Ok(_) => {}
            Err(e) => return Err(Loss::Io(e.to_string())),
        }
        let seen: Vec<PollFlags> = fds
            .iter()
            .map(|fd| fd.revents().unwrap_or(PollFlags::empty()))
            .collect();
        let (channel, listener, clients) = (seen[0], seen[1], &seen[2..]);
        if channel.intersects(PollFlags::POLLOUT) {
            self.write_channel()?;
        }
        if channel.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            self.read_channel()?;
        }
        if listener.intersects(PollFlags::POLLIN) {
            self.accept();
        }
        for (id, seen) in ids.into_iter().zip(clients) {
            let mut there = true;
            if seen.intersects(PollFlags::POLLOUT) {
                there = self.write_client(id);
            }
            // A hang-up comes whether or not it was waited for.
            if there && seen.intersects(!PollFlags::POLLOUT) {
                there = self.read_client(id);
            }
            if !there {
                self.drop_client(id);
            }
        }
        Ok(())
    }

    fn drop_client(&mut self, id: ClientId) {
        self.clients.remove(&id);
        self.routes.leave(id);
    }

    fn accept(&mut self) {
        // One that went away meanwhile is no error of ours.
        let Ok((client, _)) = self.listener.accept() else {
            return;
        };
        if client.set_nonblocking(true).is_ok() {
            self.clients.insert(self.routes.join(), client);
        }
    }

    fn read_channel(&mut self) -> Result<(), Loss> {
        let read = nix::unistd::read(&self.channel, &mut self.buffer);
        let length = match read {
            Ok(0) | Err(Errno::ECONNRESET | Errno::EIO) => return Err(Loss::Closed),
            Ok(length) => length,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(e) => return Err(Loss::Io(e.to_string())),
        };
        for slow in self.routes.take_from_guest(&self.buffer[..length])? {
            self.drop_client(slow);
        }
        Ok(())
    }

    fn write_channel(&mut self) -> Result<(), Loss> {
        let out = self.routes.guest_outbox();
        match nix::unistd::write(&self.channel, out.waiting()) {
            Ok(length) => out.advance(length),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(Loss::Closed),
            Err(e) => return Err(Loss::Io(e.to_string())),
        }
        Ok(())
    }

    /// Whether the client is still there.
    fn read_client(&mut self, id: ClientId) -> bool {
        let Some(client) = self.clients.get_mut(&id) else {
            return true;
        };
        match client.read(&mut self.buffer) {
            Ok(0) => false,
            Ok(length) => self
                .routes
                .take_from_client(id, &self.buffer[..length])
                .is_ok(),
            Err(e) => is_momentary(&e),
        }
    }

    /// Whether the client is still there.
    fn write_client(&mut self, id: ClientId) -> bool {
        let (Some(client), Some(out)) = (self.clients.get_mut(&id), self.routes.client_outbox(id))
        else {
            return true;
        };
        match client.write(out.waiting()) {
            Ok(length) => {
                out.advance(length);
                true
            }
            Err(e) => is_momentary(&e),
        }
    }

    /// Gives clients what still waits for them, as far as they take it at once.
    fn part(&mut self) {
        let ids: Vec<ClientId> = self.clients.keys().copied().collect();
        for id in ids {
            self.write_client(id);
        }
    }
}

fn is_momentary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
