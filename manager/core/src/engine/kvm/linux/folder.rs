//! Folder of a Linux guest in the run folder, `ID.linux`: what processes of this host know of it
//! beside its control socket.
//!
//! ```text
//! console      what the guest said on its serial console; locked by whoever types there
//! channel      locked by whoever is connected to the agent
//! broker       socket of the broker of that channel, when there is one
//! disk         where the disk is that it has to itself
//! tap          the network device that it has to itself
//! ready        its process, written when the guest is safe to hand out
//! suspended    the bundle that it became
//! ```

use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::DirBuilderExt,
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::network::HostEnd;
use crate::{
    agent::{Access, Agent, AgentPort, Channel},
    engine::{
        ConsoleLine, Error, Limit, Process, ProcessState, Tap, agent_ask, agent_session,
        kvm::{
            guest::control::{Conversation, is_open},
            wire::{CALL_AGENT, CALL_BEGIN, CALL_CONSOLE, Call},
        },
    },
    escaped,
    guest_id::GuestId,
    owner_only,
};

const SUFFIX: &str = ".linux";
/// What the guest said on its serial console.
const CONSOLE: &str = "console";
const READY: &str = "ready";
const SUSPENDED: &str = "suspended";
const DISK: &str = "disk";
const TAP: &str = "tap";
/// How long a guest's process may take to answer on its control socket.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(2);
/// When a call is made again that the process has not seen.
const CALL_AGAIN: Duration = Duration::from_millis(2);

/// A guest's folder.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    run_dir: PathBuf,
    id: GuestId,
    path: PathBuf,
}

/// The id of the guest whose folder has this name.
pub(super) fn id_in(name: &str) -> Option<GuestId> {
    name.strip_suffix(SUFFIX)?.parse().ok()
}

impl Folder {
    /// The folder of a guest, whether it is there or not.
    pub(super) fn of(run_dir: &Path, id: &GuestId) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            id: *id,
            path: run_dir.join(format!("{id}{SUFFIX}")),
        }
    }

    /// Whether it is there.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder.
    pub(super) fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(&self.path)
    }

    /// Removes it with all that is in it.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// The file with what the guest's console said.
    pub(super) fn console(&self) -> PathBuf {
        self.path.join(CONSOLE)
    }

    /// The last line that the guest said on its console.
    pub(super) fn last_line(&self) -> Option<String> {
        let text = self.content(CONSOLE).ok().flatten()?;
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
        Some(escaped::line(last).chars().take(300).collect())
    }

    /// Writes a file, whole or not at all.
    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let new = self.path.join(format!("{name}.new"));
        fs::write(&new, content)?;
        fs::rename(new, self.path.join(name))
    }

    /// A file's content; none only when there is no such file.
    fn content(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path.join(name)) {
            Ok(content) => Ok(Some(content)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Notes that the guest may be handed out.
    pub(super) fn set_ready(&self, process: Process) -> io::Result<()> {
        self.write(READY, &serde_json::to_vec(&process)?)
    }

    /// The process of a guest that was handed out and may live.
    pub(super) fn living(&self) -> io::Result<Option<Process>> {
        let Some(ready) = self.content(READY)? else {
            return Ok(None);
        };
        // A loss of power may have left the file without its content: its guest ended by that.
        let Ok(process) = serde_json::from_slice::<Process>(&ready) else {
            return Ok(None);
        };
        Ok((process.state()? != ProcessState::Gone).then_some(process))
    }

    /// The same, where another process may have that number and that start: both are counted from
    /// the boot, and the folder may be of an earlier one.
    pub(super) fn found(&self) -> io::Result<Option<Process>> {
        match self.living()? {
            Some(process) => Ok(is_open(&self.run_dir, &self.id)?.then_some(process)),
            None => Ok(None),
        }
    }

    /// Notes the bundle that the guest became.
    pub(super) fn set_suspended(&self, bundle: &str) {
        // Without the folder there is nobody left who asks.
        let _ = self.write(SUSPENDED, bundle.as_bytes());
    }

    /// The bundle that the guest became.
    pub(super) fn suspended(&self) -> Option<String> {
        let bundle = self.content(SUSPENDED).ok().flatten()?;
        Some(escaped::line(&String::from_utf8_lossy(&bundle)).into_owned())
    }

    /// A conversation with the guest's process.
    pub(super) fn conversation(&self) -> Result<Conversation<'static>, Error> {
        Conversation::open(&self.run_dir, &self.id, Limit::of(CALL_LIMIT))
    }

    /// Makes a call. Where the whole host stands still for some seconds, as an overloaded virtual
    /// machine does, the guest's process gives a client up that has connected and not yet said
    /// anything. It has not seen the call then, so this makes it again.
    fn call<'a>(
        &self,
        limit: Limit<'a>,
        call: impl Fn(&Conversation<'a>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let begin = Instant::now();
        loop {
            let timeout = limit.timeout.saturating_sub(begin.elapsed());
            let left = Limit { timeout, ..limit };
            let conversation = Conversation::open(&self.run_dir, &self.id, left)?;
            let lives = || {
                let process = conversation.process().ok().flatten();
                process.is_some_and(|process| process.may_live())
            };
            match call(&conversation) {
                Err(Error::Gone) if !timeout.is_zero() && lives() => thread::sleep(CALL_AGAIN),
                result => return result,
            }
        }
    }

    /// Has the guest's process let go of its nursery and its manager.
    pub(super) fn hand_out(&self, limit: Limit<'_>) -> Result<(), Error> {
        self.call(limit, Conversation::hand_out)
    }

    /// Notes the disk that the guest has to itself.
    pub(super) fn set_disk(&self, path: &Path) -> io::Result<()> {
        self.write(DISK, path.as_os_str().as_bytes())
    }

    /// Where the disk is that the guest has to itself, if it has one.
    pub(super) fn disk(&self) -> io::Result<Option<PathBuf>> {
        Ok(self
            .content(DISK)?
            .map(|path| OsString::from_vec(path).into()))
    }

    /// Notes the network device that the guest has to itself.
    pub(super) fn set_tap(&self, tap: &Tap) -> io::Result<()> {
        self.write(TAP, &serde_json::to_vec(tap)?)
    }

    /// The network device that the guest has to itself, if it has one.
    pub(super) fn tap(&self) -> io::Result<Option<Tap>> {
        let content = self.content(TAP)?;
        let tap = content.map(|content| serde_json::from_slice(&content));
        Ok(tap.transpose()?)
    }

    /// Has the guest run, with this disk, and with its card, of this address, connected to this
    /// network. Its process writes its console's output to a new file.
    pub(super) fn begin(
        &self,
        disk: Option<&File>,
        network: Option<&HostEnd>,
        mac: [u8; 6],
        limit: Limit<'_>,
    ) -> Result<(), Error> {
        let mut options = owner_only::options();
        let file = options.read(true).write(true).create_new(true);
        let file = file.open(self.console()).map_err(|source| Error::Io {
            action: "create the console's file",
            source,
        })?;
        let mut files = vec![file.as_fd()];
        files.extend(disk.map(File::as_fd));
        files.extend(network.map(HostEnd::as_fd));
        let call = Call {
            kind: CALL_BEGIN,
            request: network.map_or([0; _], |network| network.request(mac)),
        };
        self.call(limit, |conversation| conversation.hand(&call, &files))
    }

    /// Connects to the guest's console; none when another has it.
    pub(super) fn open_console(&self) -> Result<Option<ConsoleLine>, Error> {
        let failed = |source| Error::Io {
            action: "connect to the guest's console",
            source,
        };
        let lock = File::open(self.console()).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        let stream = self.hand_stream(CALL_CONSOLE)?;
        Ok(Some(ConsoleLine { stream, lock }))
    }

    /// Hands one end of a stream to the guest's process; returns the other one.
    fn hand_stream(&self, call: u64) -> Result<UnixStream, Error> {
        let (ours, theirs) = UnixStream::pair().map_err(|source| Error::Io {
            action: "make a socket pair",
            source,
        })?;
        let call = Call {
            kind: call,
            request: [0; _],
        };
        self.call(Limit::of(CALL_LIMIT), |conversation| {
            conversation.hand(&call, &[theirs.as_fd()])
        })?;
        Ok(ours)
    }

    /// Opens the channel to the agent.
    fn channel(&self) -> io::Result<OwnedFd> {
        match self.hand_stream(CALL_AGENT) {
            Ok(stream) => Ok(stream.into()),
            // Its process has not noticed yet that the one before has hung up.
            Err(Error::Busy) => Err(io::ErrorKind::ResourceBusy.into()),
            Err(Error::Gone) => Err(io::ErrorKind::NotFound.into()),
            Err(Error::Timeout(_)) => Err(io::ErrorKind::TimedOut.into()),
            Err(e) => Err(io::Error::other(e.to_string())),
        }
    }

    /// Begins a session with the guest's agent, for a few requests; or beside others, for as long as
    /// anybody likes, by a broker that runs `program`.
    pub(super) fn agent(
        &self,
        access: Access,
        program: &Path,
        limit: Limit<'_>,
    ) -> Result<Agent, agent_ask::Error> {
        self.agent_while(access, program, limit, &|| Ok(()))
    }

    /// The same for whoever has just restored the guest, as long as `wanted` does not say otherwise.
    pub(super) fn own_agent(
        &self,
        limit: Limit<'_>,
        wanted: &dyn Fn() -> Result<(), Error>,
    ) -> Result<Agent, agent_ask::Error> {
        self.agent_while(Access::Alone, Path::new(""), limit, wanted)
    }

    fn agent_while(
        &self,
        access: Access,
        program: &Path,
        limit: Limit<'_>,
        wanted: &dyn Fn() -> Result<(), Error>,
    ) -> Result<Agent, agent_ask::Error> {
        let port = AgentPort {
            folder: &self.path,
            program,
            guest: &[],
            open: &|| self.channel(),
            channel: &|fd| Channel::of(fd).map(Channel::lossless),
        };
        agent_session::begin(&port, access, limit, wanted, &|e| never_comes(e))
    }
}

/// Whether an agent's channel that cannot be opened never will be.
fn never_comes(error: io::Error) -> Result<(), agent_ask::Error> {
    match error.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::TimedOut => Ok(()),
        io::ErrorKind::NotFound => Err(agent_ask::Error::Lost(Error::Gone)),
        _ => Err(agent_ask::Error::Other(Error::Io {
            action: "connect to the guest's agent",
            source: error,
        })),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, FromRawFd};

    use nix::{
        sys::socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept, bind, listen, socket,
        },
        unistd::close,
    };

    use super::*;
    use crate::engine::kvm::{
        exit_record,
        guest::control::receive_with_files,
        wire::{REPLY_DONE, Reply, send_message},
    };

    /// The control socket of a guest whose process is this one.
    fn control(run_dir: &Path, id: &GuestId) -> OwnedFd {
        let control = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        );
        let control = control.unwrap();
        let address = UnixAddr::new(&run_dir.join(exit_record::socket_name(id))).unwrap();
        bind(control.as_raw_fd(), &address).unwrap();
        listen(&control, Backlog::new(16).unwrap()).unwrap();
        control
    }

    /// Serves one client, after so long.
    fn serve(control: &OwnedFd, after: Duration) {
        let client = accept(control.as_raw_fd()).unwrap();
        // SAFETY: the descriptor is new and nobody else's.
        let client = unsafe { OwnedFd::from_raw_fd(client) };
        let mut call = Call {
            kind: 0,
            request: [0; _],
        };
        receive_with_files(client.as_raw_fd(), &mut call).unwrap();
        thread::sleep(after);
        send_message(client.as_raw_fd(), &Reply::new(REPLY_DONE, "")).unwrap();
    }

    #[test]
    fn a_call_that_was_not_seen_is_made_again_as_long_as_the_guest_lives() {
        let dir = tempfile::tempdir().unwrap();
        let id = GuestId([7; 8]);
        let folder = Folder::of(dir.path(), &id);
        folder.create().unwrap();
        let socket = control(dir.path(), &id);
        let guest = thread::spawn(move || {
            // Two clients are given up.
            for _ in 0..2 {
                close(accept(socket.as_raw_fd()).unwrap()).unwrap();
            }
            serve(&socket, Duration::ZERO);
        });
        let limit = Limit::of(Duration::from_secs(60));
        folder.hand_out(limit).unwrap();
        guest.join().unwrap();
        // Its socket is closed now.
        let refused = folder.hand_out(limit);
        assert!(matches!(refused, Err(Error::Gone)), "{refused:?}");
    }

    /// A folder of before a reboot names a process by what another can have now.
    #[test]
    fn a_guest_is_found_by_its_socket_too() {
        let dir = tempfile::tempdir().unwrap();
        let id = GuestId([7; 8]);
        let folder = Folder::of(dir.path(), &id);
        folder.create().unwrap();
        let this = Process::with_pid(std::process::id().cast_signed()).unwrap();
        folder.set_ready(this.unwrap()).unwrap();
        assert_eq!(folder.found().unwrap(), None);
        let socket = control(dir.path(), &id);
        assert_eq!(folder.found().unwrap(), this);
        // The file stays, as after a reboot.
        drop(socket);
        assert_eq!(folder.living().unwrap(), this);
        assert_eq!(folder.found().unwrap(), None);
        super::super::engine::remove(dir.path(), &id).unwrap();
        assert!(!folder.exists());
    }

    /// Whoever restores a guest has longer patience than whoever asks one.
    #[test]
    fn a_guest_that_begins_late_has_begun() {
        let dir = tempfile::tempdir().unwrap();
        let id = GuestId([7; 8]);
        let folder = Folder::of(dir.path(), &id);
        folder.create().unwrap();
        let socket = control(dir.path(), &id);
        let guest = thread::spawn(move || serve(&socket, CALL_LIMIT + Duration::from_millis(500)));
        let limit = Limit::of(Duration::from_secs(60));
        folder.begin(None, None, [0; 6], limit).unwrap();
        guest.join().unwrap();
    }
}
