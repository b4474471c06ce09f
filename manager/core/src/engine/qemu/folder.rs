//! Folder of a guest in the run folder, `ID.qemu`: all that brood knows of a guest outside its
//! process. By it any later process finds the guest, asks it, and removes what is left of it.
//!
//! ```text
//! guest.json   what the guest is; written before its process is made
//! pid          id of its process, written by that process before it becomes QEMU
//! log          what QEMU said
//! console      what the guest said on its serial console; locked by whoever types there
//! typed        socket of QEMU: what is typed on that console
//! agent, qmp   sockets of QEMU: the agent's port, and the monitor
//! channel      locked by whoever is connected to the agent's port
//! broker       socket of the broker of that port, when there is one
//! ready        its process, written when the guest is safe to hand out
//! suspending   locked while the guest is being written; left behind by a command that was killed
//! exit         how its process ended, where its manager saw that
//! ```

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::{fs::DirBuilderExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{END_PATIENCE, suspend::SUSPENDED};
use crate::{
    agent::{Access, Agent, AgentPort, Channel, Place},
    checkpoint::QemuGuest,
    engine::{
        ConsoleLine, Error, Limit, Process, ProcessState, agent_ask, agent_session, bounded_log,
        guest_disks::OwnDisk, process,
    },
    escaped,
    guest_id::GuestId,
    owner_only,
    units::Bytes,
};

const SUFFIX: &str = ".qemu";
/// What the guest said on its serial console.
pub(super) const CONSOLE: &str = "console";
/// Where one types on it.
pub(super) const CONSOLE_SOCKET: &str = "typed";
/// As much of the end of a log is read as can hold its last words.
const TAIL: u64 = 4096;
/// How often a process is looked at that has no command line.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// What a guest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its name.
    pub(super) name: String,
    /// The bundle that it was restored from, `DIR/NAME`.
    pub(super) checkpoint: String,
    /// Its memory.
    pub(super) memory: Bytes,
    /// The QEMU that it needs.
    pub(super) guest: QemuGuest,
    /// Name of the memory image in the run folder.
    pub(super) image: String,
    /// The disk that it has to itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) disk: Option<OwnDisk>,
}

/// A guest's folder.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    run_dir: PathBuf,
    name: String,
    path: PathBuf,
}

impl Folder {
    /// The folder of a guest, whether it is there or not.
    pub(super) fn of(run_dir: &Path, id: &GuestId) -> Self {
        let name = format!("{id}{SUFFIX}");
        Self {
            run_dir: run_dir.to_owned(),
            path: run_dir.join(&name),
            name,
        }
    }

    /// Guests that have a folder.
    pub(super) fn all(run_dir: &Path) -> io::Result<Vec<GuestId>> {
        let mut guests = Vec::new();
        for entry in fs::read_dir(run_dir)? {
            let name = entry?.file_name();
            guests.extend(name.to_str().and_then(id_in));
        }
        Ok(guests)
    }

    /// Whether it is there.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Its name in the run folder.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// A file in it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
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

    /// Creates a file in it.
    pub(super) fn create_file(&self, name: &str) -> io::Result<File> {
        let mut options = owner_only::options();
        options.append(true).create(true).open(self.file(name))
    }

    /// Writes a file, whole or not at all.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let new = self.file(&format!("{name}.new"));
        fs::write(&new, content)?;
        fs::rename(new, self.file(name))
    }

    /// A file's content; `None` only when there is no such file.
    fn text(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.file(name)) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.named(name, &e)),
        }
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let text = self.text(name)?;
        let parsed = text.map(|text| serde_json::from_slice(&text)).transpose();
        parsed.map_err(|e| self.named(name, &io::Error::new(io::ErrorKind::InvalidData, e)))
    }

    /// The same error, with the file that it is of.
    fn named(&self, name: &str, error: &io::Error) -> io::Error {
        let file = self.file(name);
        io::Error::new(error.kind(), format!("{}: {error}", file.display()))
    }

    /// Writes what the guest is.
    pub(super) fn set_record(&self, record: &Record) -> io::Result<()> {
        self.write("guest.json", &serde_json::to_vec(record)?)
    }

    /// What the guest is; `None` when nothing was made of it yet.
    pub(super) fn record(&self) -> io::Result<Option<Record>> {
        self.json("guest.json")
    }

    /// Notes that the guest may be handed out.
    pub(super) fn set_ready(&self, process: Process) -> io::Result<()> {
        self.write("ready", &serde_json::to_vec(&process)?)
    }

    /// The process of a guest that was handed out.
    pub(super) fn ready(&self) -> io::Result<Option<Process>> {
        match self.json("ready") {
            // A loss of power may have left the file without its content: its guest ended by that.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(None),
            ready => ready,
        }
    }

    /// The process of a guest that was handed out and may live.
    pub(super) fn living(&self) -> io::Result<Option<Process>> {
        let Some(process) = self.ready()? else {
            return Ok(None);
        };
        Ok((process.state()? != ProcessState::Gone).then_some(process))
    }

    /// The same, where another process may have that number and that start: both are counted from
    /// the boot, and the folder may be of an earlier one.
    pub(super) fn found(&self) -> io::Result<Option<Process>> {
        match self.living()? {
            Some(process) => self.own(process),
            None => Ok(None),
        }
    }

    /// This process, if it is there and the guest's own: its command line names the guest's folder.
    fn own(&self, process: Process) -> io::Result<Option<Process>> {
        let line = command_line(process, &self.run_dir)?;
        let is_its_own = line.is_some_and(|line| line.contains(&self.name));
        Ok((is_its_own && process.state()? != ProcessState::Gone).then_some(process))
    }

    /// The process that was started for the guest, if it still is there.
    pub(super) fn started(&self) -> io::Result<Option<Process>> {
        if self.ready()?.is_some() {
            return self.found();
        }
        let text = self.text("pid")?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // An empty file: its writer was killed before it wrote.
        let Some(pid) = text.lines().last() else {
            return Ok(None);
        };
        // As above.
        let Ok(pid) = pid.trim().parse() else {
            return Ok(None);
        };
        match Process::with_pid(pid)? {
            Some(process) => self.own(process),
            None => Ok(None),
        }
    }

    /// Notes how the guest's process ended.
    pub(super) fn set_exit(&self, how: &str) {
        // Without the folder there is nobody left who asks.
        let _ = self.write("exit", how.as_bytes());
    }

    /// How the guest ended, as far as can be told.
    pub(super) fn reason(&self) -> String {
        if let Some(bundle) = self.text(SUSPENDED).ok().flatten() {
            let bundle = String::from_utf8_lossy(&bundle).into_owned();
            return format!("it was suspended to {}", escaped::line(&bundle));
        }
        let exit = self.text("exit").ok().flatten();
        let how = exit.map_or_else(
            || "QEMU ended".to_owned(),
            |how| format!("QEMU ended ({})", String::from_utf8_lossy(&how)),
        );
        let panic = self.tail(CONSOLE).and_then(|text| {
            let line = text.lines().rfind(|line| line.contains("Kernel panic"))?;
            let from = line.find("Kernel panic").unwrap_or_default();
            Some(line[from..].trim().to_owned())
        });
        if let Some(panic) = panic {
            return format!("the guest's kernel died: {}", escaped::line(&panic));
        }
        match self.last_words() {
            Some(words) => format!("{how}; the last it said: {words}"),
            None => format!("{how} and said nothing"),
        }
    }

    /// What QEMU said last.
    pub(super) fn last_words(&self) -> Option<String> {
        let text = self.tail("log")?;
        let last = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
        let words = last.strip_prefix("qemu-system-x86_64: ").unwrap_or(last);
        Some(escaped::line(words).chars().take(300).collect())
    }

    /// What the guest said last on its console.
    pub(super) fn last_of_console(&self) -> Option<String> {
        let text = self.tail(CONSOLE)?;
        let last = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
        Some(escaped::line(last).chars().take(300).collect())
    }

    /// The end of a file.
    fn tail(&self, name: &str) -> Option<String> {
        let mut file = bounded_log::open(&self.file(name)).ok()?;
        let (begin, length) = (file.stream_position().ok()?, file.metadata().ok()?.len());
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL).max(begin)))
            .ok()?;
        let mut text = Vec::new();
        file.take(TAIL).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// Connects to one of QEMU's sockets.
    pub(super) fn connect(&self, socket: &str) -> io::Result<UnixStream> {
        UnixStream::connect(Place::of(&self.path)?.path(socket))
    }

    /// Connects to the guest's console; none when another has it. QEMU would let a second one wait
    /// without a word, so whoever has it holds a lock on its log.
    pub(super) fn open_console(&self) -> io::Result<Option<ConsoleLine>> {
        let lock = File::open(self.file(CONSOLE))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        let stream = self.connect(CONSOLE_SOCKET)?;
        Ok(Some(ConsoleLine { stream, lock }))
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

    /// The same for a few requests only.
    pub(super) fn short_agent(&self, limit: Limit<'_>) -> Result<Agent, agent_ask::Error> {
        // No broker is started for that.
        self.agent(Access::Short, Path::new(""), limit)
    }

    /// The same for the process that has just started the guest, as long as `wanted` does not say
    /// otherwise.
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
            open: &|| self.connect("agent").map(OwnedFd::from),
            channel: &Channel::of,
        };
        agent_session::begin(&port, access, limit, wanted, &|e| self.never_comes(e))
    }

    /// Whether an agent's channel that cannot be opened never will be.
    fn never_comes(&self, error: io::Error) -> Result<(), agent_ask::Error> {
        let refused = error.kind() == io::ErrorKind::ConnectionRefused;
        let may_come = refused || error.kind() == io::ErrorKind::NotFound;
        // One that was there and listens no more is gone, and so is its folder.
        let was_there = self.ready().is_ok_and(|ready| ready.is_some());
        if refused && was_there || may_come && !self.path.exists() {
            return Err(agent_ask::Error::Lost(Error::Gone));
        }
        if !may_come {
            return Err(agent_ask::Error::Other(Error::Io {
                action: "connect to the guest's agent",
                source: error,
            }));
        }
        Ok(())
    }
}

/// The id of the guest whose folder has this name.
pub(super) fn id_in(name: &str) -> Option<GuestId> {
    name.strip_suffix(SUFFIX)?.parse().ok()
}

/// The command line of a process, words parted by blanks; `None` when it is gone. A process that has
/// just become QEMU has none yet, and one that is ending has none any more. Both work in the run
/// folder, and are waited for: the one gets its command line, the other leaves that folder.
pub(super) fn command_line(process: Process, run_dir: &Path) -> io::Result<Option<String>> {
    let begin = Instant::now();
    loop {
        match process.command_line()? {
            Some(line) if line.is_empty() => {}
            line => return Ok(line),
        }
        // The kernel's own processes have none, and work elsewhere.
        if !process.may_live() || !process.works_in(&process::absolute(run_dir)?) {
            return Ok(None);
        }
        if begin.elapsed() > END_PATIENCE {
            let pid = process.pid;
            return Err(io::Error::other(format!(
                "process {pid} has no command line"
            )));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The id of the guest that a command line is of.
pub(super) fn id_in_command(line: &str) -> Option<GuestId> {
    let (before, _) = line.split_once(&format!("{SUFFIX}/qmp"))?;
    before.rsplit(['=', '/']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_file_is_an_error_and_a_missing_one_is_none() {
        let run = tempfile::tempdir().unwrap();
        let id = GuestId([7; 8]);
        let folder = Folder::of(run.path(), &id);
        folder.create().unwrap();
        assert_eq!(Folder::all(run.path()).unwrap(), [id]);
        assert_eq!(folder.record().unwrap(), None);
        assert_eq!(folder.living().unwrap(), None);
        assert_eq!(folder.started().unwrap(), None);
        for name in ["guest.json", "ready", "pid"] {
            fs::create_dir(folder.file(name)).unwrap();
        }
        assert!(folder.record().is_err() && folder.ready().is_err() && folder.started().is_err());
        fs::remove_dir(folder.file("ready")).unwrap();
        assert!(folder.started().is_err(), "its pid cannot be read");
        fs::remove_dir(folder.file("pid")).unwrap();
        fs::write(folder.file("pid"), "").unwrap();
        assert_eq!(folder.started().unwrap(), None);
        // As a loss of power leaves what was not yet on the disk.
        for lost in ["", "\0\0\0\0"] {
            fs::write(folder.file("ready"), lost).unwrap();
            fs::write(folder.file("pid"), lost).unwrap();
            assert_eq!(folder.living().unwrap(), None);
            assert_eq!(folder.started().unwrap(), None);
        }
        // Another process with that number is not the guest's.
        fs::write(folder.file("pid"), format!("{}\n", std::process::id())).unwrap();
        assert_eq!(folder.started().unwrap(), None);
    }

    /// The kernel gives a process its new memory some time before the command line in it.
    #[test]
    fn a_process_that_has_just_become_qemu_is_found() {
        use std::{
            os::{fd::AsRawFd, unix::process::CommandExt},
            process::{Command, Stdio},
        };

        let run = tempfile::tempdir().unwrap();
        let folder = Folder::of(run.path(), &GuestId([7; 8]));
        for round in 0..200 {
            folder.create().unwrap();
            let pid = folder.create_file("pid").unwrap();
            let mut command = Command::new("sh");
            command
                .args(["-c", "read word", &folder.name])
                .current_dir(run.path())
                .stdin(Stdio::piped());
            let pid_file = pid.as_raw_fd();
            // SAFETY: note_pid() calls functions that are async-signal-safe only.
            unsafe { command.pre_exec(move || super::super::command::note_pid(pid_file)) };
            let starting = std::thread::spawn(move || command.spawn());
            let this = std::env::current_exe().unwrap();
            let has_begun = || {
                let text = fs::read_to_string(folder.file("pid")).unwrap();
                let program = fs::read_link(format!("/proc/{}/exe", text.trim()));
                program.is_ok_and(|program| program != this)
            };
            while !has_begun() {
                assert!(!starting.is_finished() || has_begun(), "it did not begin");
            }
            let found = folder.started().unwrap();
            let mut child = starting.join().unwrap().unwrap();
            let pid = child.id().cast_signed();
            assert_eq!(found.map(|process| process.pid), Some(pid), "round {round}");
            drop(child.stdin.take());
            child.wait().unwrap();
            assert_eq!(folder.started().unwrap(), None);
            folder.remove().unwrap();
        }
    }

    #[test]
    fn the_reason_is_the_kernels_else_qemus() {
        let run = tempfile::tempdir().unwrap();
        let folder = Folder::of(run.path(), &GuestId([7; 8]));
        folder.create().unwrap();
        assert_eq!(folder.reason(), "QEMU ended and said nothing");
        fs::write(
            folder.file("log"),
            "qemu-system-x86_64: terminating on signal 15\n\n",
        )
        .unwrap();
        folder.set_exit("signal: 15");
        assert_eq!(
            folder.reason(),
            "QEMU ended (signal: 15); the last it said: terminating on signal 15"
        );
        let panic = "[   12.3] Kernel panic - not syncing: \u{1b}[2Jcrash\r\n[ 12.4] Rebooting\n";
        fs::write(folder.file("console"), panic).unwrap();
        let reason = folder.reason();
        assert!(reason.starts_with("the guest's kernel died: Kernel panic - not syncing"));
        assert!(!reason.contains('\u{1b}'));
    }

    #[test]
    fn guests_are_known_by_their_command_lines() {
        let id = GuestId([0xab; 8]);
        let line =
            format!("qemu-system-x86_64 -chardev socket,id=qmp,wait=off,path={id}.qemu/qmp -m 1");
        assert_eq!(id_in_command(&line), Some(id));
        assert_eq!(id_in_command("vi notes.qemu/qmp"), None);
    }
}
