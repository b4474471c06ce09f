//! Home of a test: its state folder and checkpoints, and nothing left of them at the end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use brood_core::checkpoint::manifest::EngineKind;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Machine, PATIENCE, Proc, Ran, Running, Words, brood, linux_guest,
    linux_guest::linux_with_disks, processes_in, signal, text, until, watcher::Watcher, whole,
    without_kvm,
};

/// How long processes of destroyed guests and their nursery may take to be gone.
const GONE: Duration = PATIENCE;

/// A state folder and a folder of checkpoints for one test. When it is dropped all guests are
/// destroyed, and nothing may be left: no process, no file in the run folder. After a panic it
/// only cleans up.
#[derive(Debug)]
pub struct Home {
    dir: TempDir,
    /// Whether its guests run on QEMU.
    qemu: bool,
    /// What its guests run on, when that is not this machine.
    machine: Option<Machine>,
    /// Where that machine is, when it is not in the home.
    machine_dir: Option<TempDir>,
    _watcher: Watcher,
}

impl Home {
    /// A home for the running test; `None` where it must be skipped for want of KVM.
    ///
    /// # Panics
    /// When no temporary folder can be made.
    #[must_use]
    pub fn with_kvm() -> Option<Self> {
        (!without_kvm()).then(Self::bare)
    }

    /// A home whose guests are real Linux guests on QEMU, and a checkpoint of one; `None` where it
    /// must be skipped for want of QEMU.
    ///
    /// # Panics
    /// When no temporary folder can be made, or the image cannot be booted.
    #[must_use]
    pub fn with_qemu() -> Option<(Self, Demo)> {
        let path = linux_guest()?;
        let mut home = Self::bare();
        home.qemu = true;
        Some((home, Demo { path }))
    }

    /// The same with a checkpoint of a Linux with disks, in a folder of the home, or of another file
    /// system.
    ///
    /// # Panics
    /// When no temporary folder can be made, or the image cannot be booted.
    #[must_use]
    pub fn with_qemu_disks(folder: Option<&Path>) -> Option<(Self, Demo)> {
        let made = linux_with_disks()?;
        let mut home = Self::bare();
        home.qemu = true;
        let own = home.checkpoints();
        let folder = folder.unwrap_or(&own);
        let made = Path::new(&made);
        let name = made.file_name()?.to_str()?;
        for entry in fs::read_dir(made.parent()?).expect("a folder").flatten() {
            let file = entry.file_name();
            if file.to_string_lossy().starts_with(&format!("{name}.")) {
                let mut copy = Command::new("cp");
                copy.args(["-p", "--sparse=always"]).arg(entry.path());
                crate::filesystem::run(copy.arg(folder)).expect("there is room");
            }
        }
        let path = folder.join(name).to_str()?.to_owned();
        Some((home, Demo { path }))
    }

    /// A home whose guests run on this engine: KVM of this machine, or bhyve of a fake one;
    /// `None` where it must be skipped for want of KVM.
    ///
    /// # Panics
    /// When no temporary folder can be made.
    #[must_use]
    pub fn on(engine: EngineKind) -> Option<Self> {
        match engine {
            EngineKind::Kvm => Self::with_kvm(),
            EngineKind::Qemu => Self::with_qemu().map(|(home, _)| home),
            EngineKind::Bhyve => {
                let mut home = Self::bare();
                home.machine = Some(Machine::new(home.path()));
                Some(home)
            }
        }
    }

    /// A home in this folder, which may be another file system, whose guests run on this engine;
    /// `None` where it must be skipped for want of KVM. A fake machine is elsewhere: it is a
    /// kernel, which no full disk hurts.
    ///
    /// # Panics
    /// When no folder can be made in it.
    #[must_use]
    pub fn on_inside(engine: EngineKind, folder: &Path) -> Option<Self> {
        if engine == EngineKind::Kvm {
            return (!without_kvm()).then(|| Self::inside(folder));
        }
        let mut home = Self::inside(folder);
        let machine_dir = tempfile::Builder::new().prefix("brood-").tempdir();
        let machine_dir = machine_dir.expect("a temporary folder");
        home.machine = Some(Machine::new(machine_dir.path()));
        home.machine_dir = Some(machine_dir);
        Some(home)
    }

    /// Folders of it that are not in [`Self::path`].
    #[must_use]
    pub fn other_folders(&self) -> Vec<PathBuf> {
        let folder = self.machine_dir.as_ref().map(TempDir::path);
        folder.map(Path::to_owned).into_iter().collect()
    }

    /// What its guests run on.
    #[must_use]
    pub fn engine(&self) -> EngineKind {
        match self.machine {
            None if self.qemu => EngineKind::Qemu,
            None => EngineKind::Kvm,
            Some(_) => EngineKind::Bhyve,
        }
    }

    /// The fake machine that its guests run on.
    #[must_use]
    pub fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    /// A home for a test that runs no guest.
    ///
    /// # Panics
    /// When no temporary folder can be made.
    #[must_use]
    pub fn bare() -> Self {
        Self::inside(&std::env::temp_dir())
    }

    /// The same in this folder, which may be another file system.
    ///
    /// # Panics
    /// When no folder can be made in it.
    #[must_use]
    pub fn inside(folder: &Path) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("brood-")
            .tempdir_in(folder)
            .expect("a folder in it");
        fs::create_dir(dir.path().join("ckp")).expect("a folder in it");
        Self {
            _watcher: Watcher::of(dir.path()),
            dir,
            qemu: false,
            machine: None,
            machine_dir: None,
        }
    }

    /// The state folder.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The folder of suspended claims' bundles.
    #[must_use]
    pub fn suspended(&self) -> PathBuf {
        self.state().join("suspended")
    }

    /// The run folder.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.state().join("run")
    }

    /// The folder of checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.dir.path().join("ckp")
    }

    /// The folder that holds all of it.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A `brood` command that works in this home.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(brood());
        command
            .args(args)
            .env("BROOD_STATE_DIR", self.state())
            .env("BROOD_CONFIG", "/dev/null")
            .env_remove("NO_COLOR")
            .current_dir(self.dir.path());
        if let Some(machine) = &self.machine {
            command.envs(machine.environment());
        }
        command
    }

    /// Starts `brood` with these arguments.
    #[must_use]
    pub fn start(&self, args: &[&str]) -> Running {
        Running::start(self.command(args))
    }

    /// Runs `brood` with these arguments to its end.
    #[must_use]
    pub fn brood(&self, args: &[&str]) -> Ran {
        self.start(args).wait()
    }

    /// Runs `brood` with these arguments and `--json`, which must succeed; returns what it printed.
    #[track_caller]
    #[must_use]
    pub fn json(&self, args: &[&str]) -> Value {
        let with_json: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        self.brood(&with_json).ok().json()
    }

    /// Makes a checkpoint of the demo guest, or of the fake machine's.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    #[must_use]
    pub fn demo(&self, name: &str, memory: &str) -> Demo {
        let demo = self.named(name);
        if let Some(machine) = &self.machine {
            let config = machine
                .config()
                .replace("memory.size=4M", &format!("memory.size={memory}"));
            machine.checkpoint_of(&config, &demo.path.parse().expect("a bundle's path"));
            if self.machine_dir.is_some() {
                // Only the state folder beside a machine trusts what was made there.
                let _ = self.brood(&["checkpoint", "trust", &demo.path]).ok();
            }
            return demo;
        }
        let _ = self
            .brood(&["checkpoint", "demo", &demo.path, "--memory", memory])
            .ok();
        demo
    }

    /// The checkpoint of this name, whether it is there or not.
    #[must_use]
    pub fn named(&self, name: &str) -> Demo {
        let dir = self.checkpoints();
        let path = dir.join(name).to_str().expect("plain letters").to_owned();
        Demo { path }
    }

    /// Restores guests, which must all succeed; returns the report.
    #[track_caller]
    pub fn restore(&self, from: &Demo, guests: usize, prefix: &str) -> Value {
        let count = guests.to_string();
        let report = self.json(&[
            "restore", &from.path, "--guests", &count, "--prefix", prefix,
        ]);
        assert_eq!(report["restored"], guests, "{report}");
        report
    }

    /// Asks a guest, which must answer.
    #[track_caller]
    #[must_use]
    pub fn ask(&self, guest: &str, request: &str) -> Value {
        self.brood(&["ask", "--json", guest, request]).ok().json()
    }

    /// All guests that `brood list` shows.
    #[track_caller]
    #[must_use]
    pub fn list(&self) -> Vec<Value> {
        match self.json(&["list"]) {
            Value::Array(guests) => guests,
            other => panic!("not a list: {other}"),
        }
    }

    /// Puts a long request to a guest; returns when it is in the middle of it, with the command
    /// that waits for the answer.
    ///
    /// # Panics
    /// When the guest does not begin.
    #[track_caller]
    #[must_use]
    pub fn busy(&self, guest: &str, iterations: u64) -> Running {
        let pid = self.pid(guest);
        let ticks = || {
            let mut guests = self.guests().into_iter();
            guests.find(|guest| guest.pid == pid).map_or(0, |g| g.ticks)
        };
        let before = ticks();
        let request = format!("spin {iterations}");
        let asking = self.start(&["ask", "--timeout", "100", guest, &request]);
        until("the guest to be busy", || {
            (ticks() >= before + 3).then_some(())
        });
        asking
    }

    /// Names of the guests that are listed in this state.
    #[track_caller]
    #[must_use]
    pub fn names(&self, state: &str) -> Vec<String> {
        let guests = self.list();
        let of_state = guests.iter().filter(|guest| guest["state"] == state);
        of_state
            .map(|guest| text(&guest["name"]).to_owned())
            .collect()
    }

    /// Process id of a guest that lives.
    #[track_caller]
    #[must_use]
    pub fn pid(&self, guest: &str) -> i32 {
        let shown = self.json(&["show", guest]);
        let pid = shown["pid"].as_i64().expect("it has a process");
        pid.try_into().expect("process ids are small")
    }

    /// Bytes of guest memory that a guest has to itself, and bytes that it shares.
    #[track_caller]
    #[must_use]
    pub fn private_and_shared(&self, guest: &str) -> (u64, u64) {
        let shown = self.json(&["show", guest]);
        (
            whole(&shown["private_bytes"]),
            whole(&shown["shared_bytes"]),
        )
    }

    /// The word at an address of a guest's memory.
    #[track_caller]
    #[must_use]
    pub fn peek(&self, guest: &str, address: u64) -> u64 {
        whole(&self.ask(guest, &format!("peek {address}"))["value"])
    }

    /// Processes of this home's guests, those too that are being restored or are there to become
    /// one.
    #[must_use]
    pub fn guests(&self) -> Vec<Proc> {
        let mut guests = processes_in(&self.state());
        guests.retain(|process| !process.is_nursery());
        guests
    }

    /// Makes sure that no guest's process is left, soon: those that were held ready end by
    /// themselves, a moment after what they were for.
    ///
    /// # Panics
    /// When one stays.
    #[track_caller]
    pub fn nobody_is_left(&self) {
        until("no guest's process to be left", || {
            self.guests().is_empty().then_some(())
        });
    }

    /// This home's nurseries.
    #[must_use]
    pub fn nurseries(&self) -> Vec<Proc> {
        let mut nurseries = processes_in(&self.state());
        nurseries.retain(Proc::is_nursery);
        nurseries
    }

    /// Makes sure that what is listed and what runs become the same, soon, and that every guest
    /// that is listed as running answers. Returns the names of those.
    ///
    /// # Panics
    /// When they do not.
    #[track_caller]
    pub fn converges(&self) -> Vec<String> {
        let begin = Instant::now();
        let running = loop {
            let listed = self.list();
            let strays = self.strays(&listed);
            if strays.is_empty() && listed.iter().all(|guest| guest["state"] != "restoring") {
                break listed;
            }
            assert!(
                begin.elapsed() < GONE,
                "does not converge: listed {listed:?}; not listed, but running: {strays:?}"
            );
            thread::sleep(Duration::from_millis(5));
        };
        let running: Vec<String> = running
            .iter()
            .filter(|guest| guest["state"] == "running")
            .map(|guest| text(&guest["name"]).to_owned())
            .collect();
        let mut there = Vec::new();
        for name in running {
            // One that was killed just now may be listed until it is quite dead.
            let answers = until(
                &format!("{name} to answer or not to be listed"),
                || match self.brood(&["ask", &name, "ping"]).code() {
                    Some(0) => Some(true),
                    _ => (!self.names("running").contains(&name)).then_some(false),
                },
            );
            if answers {
                there.push(name);
            }
        }
        there
    }

    /// Guests that run and are not among those listed.
    fn strays(&self, listed: &[Value]) -> Vec<Proc> {
        let known: Vec<i64> = listed.iter().filter_map(|g| g["pid"].as_i64()).collect();
        let mut strays = self.guests();
        strays.retain(|process| !known.contains(&i64::from(process.pid)));
        strays
    }

    /// Destroys all guests and makes sure that nothing is left of them.
    ///
    /// # Panics
    /// When something is.
    #[track_caller]
    pub fn destroy_all(&self) {
        let _ = self.brood(&["destroy", "--all", "--force"]).ok();
        let begin = Instant::now();
        loop {
            let processes = processes_in(&self.state());
            let files = files_in(&self.run_dir());
            if processes.is_empty() && files.is_empty() {
                break;
            }
            assert!(
                begin.elapsed() < GONE,
                "left after destroy --all: {processes:?} {files:?}"
            );
            // What a daemon leaves that is killed (its nursery's lock) goes with the next command.
            if processes.is_empty() {
                let _ = self.list();
            }
            thread::sleep(Duration::from_millis(5));
        }
        assert!(
            self.list().is_empty(),
            "guests are listed after destroy --all"
        );
        if let Some(machine) = &self.machine {
            assert_eq!(machine.leftovers(), Vec::<String>::new());
        }
    }

    /// Ends the host and starts it again: its processes are gone, and so is what only a kernel
    /// keeps. The run folder goes where the host may have it in memory; that of FreeBSD is on a
    /// disk.
    ///
    /// # Panics
    /// When it cannot be done.
    pub fn reboot(&self) {
        for process in processes_in(&self.state()) {
            signal(process.pid, Signal::SIGKILL);
        }
        until("all processes to be gone", || {
            processes_in(&self.state()).is_empty().then_some(())
        });
        match &self.machine {
            None => fs::remove_dir_all(self.run_dir()).expect("a run folder"),
            Some(machine) => machine.reboot(),
        }
        let database = rusqlite::Connection::open(self.state().join("brood.sqlite"));
        let guests = "UPDATE guest SET boot = 'an earlier one'";
        let changed = database.and_then(|database| database.execute(guests, []));
        let _ = changed.expect("brood's database");
    }

    fn clean_up(&self) {
        let _ = self.command(&["destroy", "--all", "--force"]).output();
        let begin = Instant::now();
        loop {
            let left = processes_in(&self.state());
            if left.is_empty() || begin.elapsed() > GONE {
                break;
            }
            for process in left {
                signal(process.pid, Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if thread::panicking() {
            self.clean_up();
        } else if self.state().exists() {
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.destroy_all();
            }));
            if let Err(panic) = checked {
                self.clean_up();
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// Names of the files in a folder; none when it is missing.
fn files_in(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// A checkpoint in a test's home.
#[derive(Clone, Debug)]
pub struct Demo {
    /// DIR/NAME.
    pub path: String,
}

impl Demo {
    /// Its memory file.
    #[must_use]
    pub fn ckp(&self) -> PathBuf {
        self.file("ckp")
    }

    /// One of its files: `ckp`, `ckp.kern`, `ckp.meta` or `ckp.brood`.
    #[must_use]
    pub fn file(&self, suffix: &str) -> PathBuf {
        format!("{}.{suffix}", self.path).into()
    }

    /// The content of its memory file.
    #[must_use]
    pub fn words(&self) -> Words {
        Words::open(&self.ckp())
    }
}
