//! The byte stream to the host: a virtio-serial port, a serial line or a unix socket.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixStream},
    },
    path::PathBuf,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::termios::{ControlFlags, SetArg, cfmakeraw, tcgetattr, tcsetattr},
    unistd::{read, write},
};

/// How long an answer waits for a host that the kernel does not know yet.
const COMING: Duration = Duration::from_millis(200);

/// Where the host is.
#[derive(Debug)]
pub(crate) enum Target {
    Port(PathBuf),
    Serial(PathBuf),
    Socket(PathBuf),
}

#[derive(Debug)]
pub(crate) struct Port {
    fd: OwnedFd,
    /// A virtio-serial port: it stays open when the host goes, and reads as at its end until the
    /// host is there again.
    stays: bool,
}

impl Port {
    pub(crate) fn open(target: &Target) -> io::Result<Port> {
        let device = |path: &PathBuf| {
            let mut options = File::options();
            options.read(true).write(true);
            options.custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK);
            options.open(path).map(OwnedFd::from)
        };
        let (fd, stays) = match target {
            Target::Port(path) => (device(path)?, cfg!(target_os = "linux")),
            Target::Serial(path) => {
                let fd = device(path)?;
                make_raw(fd.as_fd())?;
                (fd, false)
            }
            Target::Socket(path) => (UnixStream::connect(path)?.into(), false),
        };
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Port { fd, stays })
    }

    pub(crate) fn stays(&self) -> bool {
        self.stays
    }

    /// Waits for bytes. 0 when the host is not there.
    pub(crate) fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match read(&self.fd, bytes) {
                Err(Errno::EAGAIN) => {}
                Err(Errno::EINTR) => continue,
                result => return Ok(result?),
            }
            self.poll(PollFlags::POLLIN)?;
        }
    }

    /// Writes what the port takes at once; how many bytes.
    pub(crate) fn write_now(&self, bytes: &[u8]) -> usize {
        write(&self.fd, bytes).unwrap_or(0)
    }

    /// Waits until all is written. Fails when the host is not there.
    pub(crate) fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut patience = self.stays;
        while !bytes.is_empty() {
            match write(&self.fd, bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => bytes = &bytes[length..],
                Err(Errno::EAGAIN) => {
                    let ready = self.poll(PollFlags::POLLOUT)?;
                    if ready.contains(PollFlags::POLLOUT) {
                        continue;
                    }
                    // A host that has just come may be heard before the kernel knows that it is
                    // there: its words and its coming are two queues of the device.
                    if !std::mem::take(&mut patience) {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                    self.wait_for_host(COMING)?;
                }
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn poll(&self, wanted: PollFlags) -> io::Result<PollFlags> {
        let mut fds = [PollFd::new(self.fd.as_fd(), wanted)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(fds[0].revents().unwrap_or(wanted)),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits until the host may be there again, `limit` at most.
    ///
    /// A virtio-serial port without a host counts as hung up, and `poll(2)` returns at once for that.
    /// An edge-triggered `epoll(7)` reports each change once.
    #[cfg(target_os = "linux")]
    pub(crate) fn wait_for_host(&self, limit: Duration) -> io::Result<()> {
        use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&self.fd, EpollEvent::new(flags, 0))?;
        let limit = EpollTimeout::try_from(limit).unwrap_or(EpollTimeout::MAX);
        let mut events = [EpollEvent::empty()];
        // The first event is the state as it is: that the host is not there, or that it just came.
        epoll.wait(&mut events, EpollTimeout::ZERO)?;
        if events[0].events().contains(EpollFlags::EPOLLHUP) {
            match epoll.wait(&mut events, limit) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn wait_for_host(&self, limit: Duration) -> io::Result<()> {
        std::thread::sleep(limit.min(Duration::from_millis(100)));
        Ok(())
    }
}

/// Sets a terminal to raw bytes, without echo, whatever the state of its modem lines. Its speed stays:
/// a virtual machine's has none.
fn make_raw(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut settings = tcgetattr(fd)?;
    cfmakeraw(&mut settings);
    settings.control_flags |= ControlFlags::CLOCAL | ControlFlags::CREAD;
    tcsetattr(fd, SetArg::TCSANOW, &settings)?;
    Ok(())
}
