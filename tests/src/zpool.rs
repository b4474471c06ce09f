//! Real ZFS pool for one test, on a file: with the kernel's ZFS where it exists, else with
//! zfs-fuse, a ZFS of pool version 23 in a process of its own.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};
use tempfile::TempDir;

use crate::{
    filesystem::{mount_folder, run, unmount_strays},
    signal, skip, until,
};

/// What the names of the tests' pools begin with.
const PREFIX: &str = "broodtest";

/// A pool of its own for the running test. There is one at a time on a machine.
#[derive(Debug)]
pub struct ZfsPool {
    name: String,
    dir: TempDir,
    /// The zfs-fuse that this test started.
    daemon: Option<i32>,
    _turn: Flock<File>,
}

impl ZfsPool {
    /// Makes one; `None` where the test must be skipped, which it says.
    ///
    /// # Panics
    /// When a folder or the lock cannot be made.
    #[must_use]
    pub fn new() -> Option<Self> {
        match Self::make() {
            Ok(pool) => Some(pool),
            Err(why) => {
                skip(&format!("no ZFS: {why}"));
                None
            }
        }
    }

    fn make() -> Result<Self, String> {
        let lock = env::temp_dir().join("brood-tests-zfs.lock");
        let lock = File::options()
            .create(true)
            .append(true)
            .open(lock)
            .expect("the temporary folder can be written");
        let turn = Flock::lock(lock, FlockArg::LockExclusive).expect("a lock can be waited for");
        unmount_strays();
        let mut pool = Self {
            name: format!("{PREFIX}{}", process::id()),
            dir: mount_folder(),
            daemon: None,
            _turn: turn,
        };
        if pools().is_err() {
            pool.daemon = Some(start_daemon(&pool.dir.path().join("pid"))?);
        }
        // Whose turn it is not has no pool: these are of tests that were killed.
        for stray in pools()?.iter().filter(|name| name.starts_with(PREFIX)) {
            let _ = run(Command::new("zpool").args(["destroy", "-f", stray]));
        }
        let image = pool.dir.path().join("image");
        let file = File::create(&image).expect("a file");
        file.set_len(256 << 20).expect("a sparse file");
        run(Command::new("zpool")
            .arg("create")
            .arg("-m")
            .arg(pool.path())
            .arg(&pool.name)
            .arg(image))?;
        Ok(pool)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    /// Runs `zfs` with these arguments, without a look at what brood does with it.
    ///
    /// # Errors
    /// What it said when it failed.
    pub fn zfs(&self, arguments: &[&str]) -> Result<String, String> {
        text(Command::new("zfs").args(arguments))
    }

    /// Names of everything in it, snapshots too, without the pool's own.
    ///
    /// # Panics
    /// When it cannot be listed.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let types = "filesystem,volume,snapshot";
        let listed = self.zfs(&["list", "-H", "-r", "-t", types, "-o", "name", &self.name]);
        let own = format!("{}/", self.name);
        let names = listed.expect("a list");
        names
            .lines()
            .filter_map(|name| Some(name.strip_prefix(&own)?.to_owned()))
            .collect()
    }

    /// Bytes that all of it takes.
    ///
    /// # Panics
    /// When it cannot be asked.
    #[must_use]
    pub fn used(&self) -> u64 {
        // What was written is counted when it is on the disk, some seconds later: a snapshot is
        // taken of what is there now, so it waits for it.
        let probe = format!("{}@probe", self.name);
        self.zfs(&["snapshot", &probe]).expect("a snapshot");
        self.zfs(&["destroy", &probe]).expect("it goes again");
        let used = self.zfs(&["get", "-H", "-p", "-o", "value", "used", &self.name]);
        used.expect("a number").trim().parse().expect("a number")
    }
}

impl Drop for ZfsPool {
    fn drop(&mut self) {
        let destroyed = run(Command::new("zpool").args(["destroy", "-f", &self.name]));
        if let Some(pid) = self.daemon {
            signal(pid, Signal::SIGTERM);
            // A process that has ended has no command line, even before it was waited for.
            let command = Path::new("/proc").join(pid.to_string()).join("cmdline");
            let gone = || {
                fs::read(&command)
                    .map_or(true, |c| c.is_empty())
                    .then_some(())
            };
            if std::thread::panicking() || destroyed.is_err() {
                signal(pid, Signal::SIGKILL);
            } else {
                until("the end of zfs-fuse", gone);
            }
        }
    }
}

fn pools() -> Result<Vec<String>, String> {
    let listed = text(Command::new("zpool").args(["list", "-H", "-o", "name"]))?;
    // zfs-fuse's own commands say so in words when they find no daemon.
    let names = listed.lines().filter(|line| !line.contains(' '));
    Ok(names.map(str::to_owned).collect())
}

/// Starts zfs-fuse; returns its process id.
fn start_daemon(pid_file: &Path) -> Result<i32, String> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|e| format!("no ZFS in the kernel, and /dev/fuse: {e}"))?;
    let started = Command::new("zfs-fuse")
        .arg("--no-kstat-mount")
        .arg("-p")
        .arg(pid_file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|e| format!("zfs-fuse: {e}"))?;
    if !started.success() {
        return Err("zfs-fuse does not start".to_owned());
    }
    let pid = until("zfs-fuse to tell its process id", || {
        fs::read_to_string(pid_file).ok()?.trim().parse().ok()
    });
    until("zfs-fuse to answer", || pools().ok());
    Ok(pid)
}

fn text(command: &mut Command) -> Result<String, String> {
    let output = command
        .env("LC_ALL", "C")
        .output()
        .map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}
