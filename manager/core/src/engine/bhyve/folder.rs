//! Folder of a guest in the run folder, `ID.bhyve`: all that brood knows of a guest outside its
//! process. By it any later process finds the guest, asks it, and removes what is left of it.
//!
//! ```text
//! guest.json   what the guest has on this host; written before anything of it is made
//! conf         its configuration, for bhyve -k
//! pid          id of its process, written by that process before it becomes bhyve
//! log          bhyve's output
//! ready        its process, written when it has answered and is connected
//! suspending   the files that it is being suspended to
//! remover      the process that removes it
//! channel      locked by whoever is connected to brood-agent's line
//! broker       socket of the broker of that line, when there is one
//! ```
//!
//! A process that makes or removes what the guest has on this host locks the folder itself
//! (flock(2)).

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    checkpoint::BhyveGuest,
    engine::{Process, ProcessState},
    guest_id::GuestId,
    units::Bytes,
};

const SUFFIX: &str = ".bhyve";
/// Most bytes of a log that are read at once: a guest may have bhyve log without end.
pub(super) const LOG_MAX: u64 = 64 << 10;

/// What a guest has on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its name.
    pub(super) name: String,
    /// Its virtual machine's name.
    pub(super) vm: String,
    /// The bundle that it was restored from, `DIR/NAME`.
    pub(super) checkpoint: String,
    /// Its memory.
    pub(super) memory: Bytes,
    /// What the checkpoint says of it.
    pub(super) guest: BhyveGuest,
    /// Numbers of its taps, in the order of its network cards.
    pub(super) taps: Vec<u16>,
    /// Host's end of the null modem to its agent.
    pub(super) agent: Option<String>,
    /// The disk that it has to itself.
    #[serde(default)]
    pub(super) disk: Option<OwnDisk>,
}

/// A disk that a guest has to itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OwnDisk {
    /// The device that it is the back end of, as configurations name it.
    pub(super) device: String,
    /// The back end.
    pub(super) path: String,
}

/// A suspend that was begun and is not sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SuspendNote {
    /// The file that its memory is written to.
    pub(super) memory: PathBuf,
    /// How long bhyve's log was before.
    pub(super) log: u64,
}

/// The id of the guest whose folder has this name.
pub(super) fn id_in(name: &str) -> Option<GuestId> {
    name.strip_suffix(SUFFIX)?.parse().ok()
}

/// A guest's folder.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder of a guest, whether it is there or not.
    pub(super) fn of(run_dir: &Path, id: &GuestId) -> Self {
        Self {
            path: run_dir.join(format!("{id}{SUFFIX}")),
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

    /// A file in it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the folder.
    pub(super) fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(&self.path)
    }

    /// Whether it is there.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with all that is in it.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
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
            Err(e) => Err(named(&self.file(name), &e)),
        }
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let text = self.text(name)?;
        let parsed = text.map(|text| serde_json::from_slice(&text)).transpose();
        let damaged = |e| io::Error::new(io::ErrorKind::InvalidData, e);
        parsed.map_err(|e| named(&self.file(name), &damaged(e)))
    }

    /// Writes what the guest has.
    pub(super) fn set_record(&self, record: &Record) -> io::Result<()> {
        self.write("guest.json", &serde_json::to_vec(record)?)
    }

    /// What the guest has; `None` when it has nothing yet.
    ///
    /// # Errors
    /// When it cannot be read, or is no record.
    pub(super) fn record(&self) -> io::Result<Option<Record>> {
        self.json("guest.json")
    }

    /// Notes that the guest has answered and is connected.
    pub(super) fn set_ready(&self, process: Process) -> io::Result<()> {
        self.write("ready", &serde_json::to_vec(&process)?)
    }

    /// The process of a guest that has answered.
    pub(super) fn ready(&self) -> io::Result<Option<Process>> {
        self.json("ready")
    }

    /// The process of a guest that has answered and may live; `None` when it is gone or has not
    /// answered.
    pub(super) fn living(&self) -> io::Result<Option<Process>> {
        let Some(process) = self.ready()? else {
            return Ok(None);
        };
        Ok((process.state()? != ProcessState::Gone).then_some(process))
    }

    /// The same, where another process may have that number and that start: both are counted from
    /// the boot, and the folder may be of an earlier one.
    ///
    /// # Errors
    /// When that cannot be told.
    pub(super) fn found(&self) -> io::Result<Option<Process>> {
        match self.living()? {
            Some(process) => self.own(process),
            None => Ok(None),
        }
    }

    /// This process, if it is there and the guest's own: its command line names the guest's virtual
    /// machine or folder, which both have the id in them.
    fn own(&self, process: Process) -> io::Result<Option<Process>> {
        let id = self.path.file_stem().unwrap_or_default().to_string_lossy();
        let command = process.command_line()?;
        let is_its_own = command.is_some_and(|command| command.contains(&*id));
        Ok((is_its_own && process.state()? != ProcessState::Gone).then_some(process))
    }

    /// The process that was started for the guest, if it still is there.
    ///
    /// # Errors
    /// When that cannot be told.
    pub(super) fn started(&self) -> io::Result<Option<Process>> {
        if self.ready()?.is_some() {
            return self.found();
        }
        let text = self.text("pid")?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // An empty file: its writer was killed before it wrote.
        if text.trim().is_empty() {
            return Ok(None);
        }
        let number = |e| io::Error::new(io::ErrorKind::InvalidData, e);
        let pid = text
            .trim()
            .parse()
            .map_err(|e| named(&self.file("pid"), &number(e)))?;
        match Process::with_pid(pid)? {
            Some(process) => self.own(process),
            None => Ok(None),
        }
    }

    /// The reason that bhyve gave last.
    pub(super) fn last_words(&self) -> Option<String> {
        let mut log = File::open(self.file("log")).ok()?;
        let length = log.metadata().ok()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(LOG_MAX)))
            .ok()?;
        let mut end = Vec::new();
        log.take(LOG_MAX).read_to_end(&mut end).ok()?;
        reason(&String::from_utf8_lossy(&end))
    }

    /// Forgets where the guest was being suspended to: nothing of that is left to do.
    pub(super) fn suspended(&self) {
        // If it stays, it names files that are gone.
        let _ = fs::remove_file(self.file("suspending"));
    }

    /// Notes where the guest is about to be suspended to.
    pub(super) fn set_suspending(&self, to: &SuspendNote) -> io::Result<()> {
        self.write("suspending", &serde_json::to_vec(to)?)
    }

    /// Where the guest is being suspended to.
    pub(super) fn suspending(&self) -> io::Result<Option<SuspendNote>> {
        self.json("suspending")
    }

    /// The lock of the serial line of an agent that speaks in lines; `None` while another has it.
    pub(super) fn lock(&self) -> io::Result<Option<Flock<File>>> {
        let file = File::open(self.file("guest.json"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(e.into()),
        }
    }
}

/// How far bhyve's restore has come, on its standard output. That is a file, so the lines come when
/// bhyve exits, after the reason, or never if a signal ends it (seen with bhyve 14.2).
const PROGRESS: [&str; 5] = [
    "Pausing pci devs...",
    "Restoring vm mem...",
    "Restoring pci devs...",
    "Restoring kernel structs...",
    "Resuming pci devs...",
];

/// Beginnings of lines that say which step failed. Why it did is in the line before.
const STEPS: [&str; 8] = [
    "Device emulation initialization error",
    "Failed to restore PCI device state",
    "Failed to restore VM memory",
    "Failed to snapshot device state",
    "Failed to load guest",
    "Failed to read checkpoint info",
    "Could not write guest memory to file",
    "bhyve: Failed to start checkpoint thread",
];

/// The last reason in what bhyve said: its last line that is no progress, with those before it as
/// long as it only names a step.
fn reason(log: &str) -> Option<String> {
    let mut lines = log.lines().map(str::trim).rev();
    let mut said = lines
        .by_ref()
        .filter(|line| !line.is_empty() && !PROGRESS.contains(line));
    let mut reason = said.next()?.to_owned();
    let mut first = reason.clone();
    while STEPS.iter().any(|step| first.starts_with(step)) {
        let Some(before) = said.next() else { break };
        reason = format!("{before}; {reason}");
        before.clone_into(&mut first);
    }
    Some(reason.chars().take(300).collect())
}

/// The same error, with the file that it is of.
fn named(file: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::{fs, io};

    use super::{Folder, reason};
    use crate::guest_id::GuestId;

    /// A file that cannot be read is not absent.
    #[test]
    fn an_unreadable_file_is_an_error_and_a_missing_one_is_none() {
        let run = tempfile::tempdir().unwrap();
        let folder = Folder::of(run.path(), &GuestId([7; 8]));
        folder.create().unwrap();
        assert_eq!(folder.record().unwrap(), None);
        assert_eq!(folder.ready().unwrap(), None);
        assert_eq!(folder.living().unwrap(), None);
        assert_eq!(folder.started().unwrap(), None);
        assert_eq!(folder.suspending().unwrap(), None);
        // A folder cannot be read as a file, whoever tries.
        for name in ["guest.json", "ready", "pid", "suspending"] {
            fs::create_dir(folder.file(name)).unwrap();
        }
        let errors = [
            folder.record().map(drop).unwrap_err(),
            folder.ready().map(drop).unwrap_err(),
            folder.living().map(drop).unwrap_err(),
            folder.started().map(drop).unwrap_err(),
            folder.suspending().map(drop).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), io::ErrorKind::IsADirectory, "{error}");
        }
        fs::remove_dir(folder.file("ready")).unwrap();
        assert!(folder.started().is_err(), "its pid cannot be read");
        fs::remove_dir(folder.file("pid")).unwrap();
        fs::write(folder.file("pid"), "").unwrap();
        assert_eq!(folder.started().unwrap(), None);
        fs::write(folder.file("ready"), "{").unwrap();
        assert!(folder.living().is_err(), "it is no process");
    }

    /// Logs of bhyve 14.2, word for word.
    #[test]
    fn the_reason_is_no_progress_and_no_mere_step() {
        let progress = "Pausing pci devs...\r\nRestoring vm mem...\r\nRestoring pci devs...\r\n";
        let lookup = "Failed to lookup dev: virtio-rnd@pci.0.3.0\r\n\
                      Failed to restore PCI device state.\r\n";
        assert_eq!(
            reason(&format!("{lookup}{progress}")).unwrap(),
            "Failed to lookup dev: virtio-rnd@pci.0.3.0; Failed to restore PCI device state."
        );
        let rom = "Error opening bootrom \"/vm/guest.rom\": No such file or directory\n\
                   Device emulation initialization error: No such file or directory\n";
        assert_eq!(
            reason(rom).unwrap(),
            "Error opening bootrom \"/vm/guest.rom\": No such file or directory; \
             Device emulation initialization error: No such file or directory"
        );
        assert_eq!(
            reason("Failed to snapshot nvme@pci.0.4.0; ret=45\nFailed to snapshot device state.\n")
                .unwrap(),
            "Failed to snapshot nvme@pci.0.4.0; ret=45; Failed to snapshot device state."
        );
        assert_eq!(reason(progress), None);
        assert_eq!(reason(&format!("\r\n{progress}\r\n")), None);
        assert_eq!(
            reason("Failed to restore VM memory.").unwrap(),
            "Failed to restore VM memory."
        );
    }
}
