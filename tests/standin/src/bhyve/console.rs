//! Back ends of a serial port: standard input and output, a null-modem device, a TCP port
//! (usr.sbin/bhyve/uart_backend.c).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::symlink,
    },
    path::PathBuf,
    process,
    sync::{Mutex, PoisonError},
};

use nix::{
    fcntl::{FcntlArg, Flock, OFlag, fcntl},
    pty::openpty,
    sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
    unistd,
};

use super::devices::exclusive;
use crate::{
    errno::{EADDRINUSE, EBUSY, EINVAL, ENOENT, ENOTTY, Errno},
    world::World,
};

/// How bhyve writes lines: with a carriage return once a port is a terminal (`raw_stdio`, debug.h).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Output {
    pub(crate) raw: bool,
}

impl Output {
    /// A line with its end.
    pub(crate) fn line(self, text: &str) -> String {
        format!("{text}{}", if self.raw { "\r\n" } else { "\n" })
    }

    /// EPRINTLN().
    pub(crate) fn eprint(self, text: &str) {
        let _ = io::stderr().write_all(self.line(text).as_bytes());
    }

    /// FPRINTLN(stdout, ...).
    pub(crate) fn print(self, text: &str) {
        print(&self.line(text));
    }
}

/// What was printed and not written yet.
static PRINTED: Mutex<String> = Mutex::new(String::new());

/// printf(3). To a file or pipe standard output is block-buffered: what is printed comes out when
/// the process exits, after all that it said on standard error, and never when a signal ends it
/// (seen with bhyve 14.2).
pub(crate) fn print(text: &str) {
    PRINTED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push_str(text);
    if io::stdout().is_terminal() {
        flush();
    }
}

/// What exit(3) does with it.
pub(crate) fn flush() {
    let mut printed = PRINTED.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = io::stdout().write_all(printed.as_bytes());
    let _ = io::stdout().flush();
    printed.clear();
}

/// An open back end.
#[derive(Debug)]
pub(crate) enum Console {
    Stdio,
    Nmdm(Nmdm),
    Tcp {
        listener: TcpListener,
        peer: Option<TcpStream>,
    },
}

/// One side of a null-modem pair, nmdm(4). The other side is a link to a pseudo-terminal, which is
/// there as long as this side is open.
#[derive(Debug)]
pub(crate) struct Nmdm {
    master: File,
    // Keeps the line up while the other side is closed.
    _slave: OwnedFd,
    _lock: Flock<File>,
    link: PathBuf,
}

impl Drop for Nmdm {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.link);
    }
}

fn nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

impl Console {
    /// uart_tty_open().
    ///
    /// # Errors
    /// What it says, with its newline, and the error; words are for TCP only.
    pub(crate) fn open(world: &World, path: &str) -> Result<Self, (String, Errno)> {
        if path == "stdio" {
            nonblocking(io::stdin()).map_err(|e| (String::new(), Errno::from(&e)))?;
            return Ok(Self::Stdio);
        }
        if path.starts_with("tcp") {
            return Self::tcp(path);
        }
        Self::tty(world, path).map_err(|errno| (String::new(), errno))
    }

    fn tcp(path: &str) -> Result<Self, (String, Errno)> {
        let address = path
            .strip_prefix("tcp=")
            .filter(|address| address.contains(':'));
        let Some(address) = address else {
            return Err(("bhyve: Invalid number of parameter\n".to_owned(), EINVAL));
        };
        let listener = TcpListener::bind(address).map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => {
                let text = format!("bhyve: bind({address}): {}\n", EADDRINUSE.text);
                (text, EADDRINUSE)
            }
            _ => (format!("bhyve: Invalid address {address}\n"), EINVAL),
        })?;
        let quiet = |e: io::Error| (String::new(), Errno::from(&e));
        listener.set_nonblocking(true).map_err(quiet)?;
        Ok(Self::Tcp {
            listener,
            peer: None,
        })
    }

    fn tty(world: &World, path: &str) -> Result<Self, Errno> {
        let unit = path.strip_prefix("/dev/nmdm").ok_or(ENOENT)?;
        let side = unit.chars().next_back().ok_or(ENOENT)?;
        let other = match side {
            'A' => 'B',
            'B' => 'A',
            _ => return Err(ENOENT),
        };
        let number = &unit[..unit.len() - 1];
        if number.is_empty() || number.contains('/') {
            return Err(ENOENT);
        }
        if !world.loaded()?.iter().any(|module| module == "nmdm") {
            return Err(ENOENT);
        }
        let host = world.host(path);
        if fs::symlink_metadata(&host).is_ok_and(|meta| meta.is_symlink()) {
            // Another VM is on this cable, as its other side.
            return Err(EBUSY);
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&host);
        let lock = exclusive(file?)?;
        let pair = openpty(None, None).map_err(|_| ENOTTY)?;
        let mut modes = tcgetattr(&pair.slave).map_err(|_| ENOTTY)?;
        cfmakeraw(&mut modes);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &modes).map_err(|_| ENOTTY)?;
        nonblocking(&pair.master)?;
        let link = world.host(&format!("/dev/nmdm{number}{other}"));
        match fs::remove_file(&link) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        // By way of this process: the link leads nowhere once it has ended. The terminal's own name
        // would be another one's before long.
        let slave = pair.slave.as_raw_fd();
        symlink(format!("/proc/{}/fd/{slave}", process::id()), &link)?;
        Ok(Self::Nmdm(Nmdm {
            master: pair.master.into(),
            _slave: pair.slave,
            _lock: lock,
            link,
        }))
    }

    /// Whether lines end with a carriage return from now on (ttyopen()).
    pub(crate) fn is_tty(&self) -> bool {
        !matches!(self, Self::Tcp { .. })
    }

    /// What to wait on for input.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Stdio => vec![STDIN.as_fd()],
            Self::Nmdm(nmdm) => vec![nmdm.master.as_fd()],
            Self::Tcp { listener, peer } => {
                let peer = peer.as_ref().map(AsFd::as_fd);
                [Some(listener.as_fd()), peer]
                    .into_iter()
                    .flatten()
                    .collect()
            }
        }
    }

    /// Bytes that came in; none when there are none now. `None` when there will be no more.
    pub(crate) fn read(&mut self) -> Option<Vec<u8>> {
        let mut bytes = [0; 512];
        let count = match self {
            Self::Stdio => unistd::read(STDIN.as_fd(), &mut bytes).map_err(io::Error::from),
            Self::Nmdm(nmdm) => nmdm.master.read(&mut bytes),
            Self::Tcp { listener, peer } => {
                accept(listener, peer);
                let Some(stream) = peer else {
                    return Some(Vec::new());
                };
                match stream.read(&mut bytes) {
                    Ok(0) => {
                        *peer = None;
                        return Some(Vec::new());
                    }
                    other => other,
                }
            }
        };
        match count {
            Ok(0) => None,
            Ok(count) => Some(bytes[..count].to_vec()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Some(Vec::new()),
            Err(_) if matches!(self, Self::Stdio) => None,
            Err(_) => Some(Vec::new()),
        }
    }

    /// Writes; bytes without a reader are lost, as on a serial line.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let _ = match self {
            Self::Stdio => io::stdout().write_all(bytes),
            Self::Nmdm(nmdm) => nmdm.master.write_all(bytes),
            Self::Tcp { listener, peer } => {
                accept(listener, peer);
                match peer {
                    Some(peer) => peer.write_all(bytes),
                    None => Ok(()),
                }
            }
        };
    }
}

static STDIN: std::sync::LazyLock<io::Stdin> = std::sync::LazyLock::new(io::stdin);

/// uart_tcp_listener(): one peer at a time, others are told so and turned away.
fn accept(listener: &TcpListener, peer: &mut Option<TcpStream>) {
    while let Ok((mut stream, _)) = listener.accept() {
        if peer.is_some() {
            let _ = stream.write_all(b"Socket already connected\n\0");
        } else if stream.set_nonblocking(true).is_ok() {
            *peer = Some(stream);
        }
    }
}
