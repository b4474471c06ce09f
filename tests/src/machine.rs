//! Fake FreeBSD machine, made of stand-ins of its commands: brood's work with processes, files and
//! terminals is real, bhyve and its guest are not.

use std::{
    env,
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use brood_core::{
    checkpoint::{
        AgentProtocol, BhyveGuest, BundlePath, Checkpoint, Readiness, manifest::Manifest, unnoted,
        unwatched,
    },
    engine::{
        Error,
        bhyve::{
            Bhyve, Host,
            config::{BhyveConfig, Variables},
        },
    },
    state::State,
};
use brood_standin::{Release, World};

use crate::{Running, brood, standin, until};

/// A machine in a folder.
#[derive(Clone, Debug)]
pub struct Machine {
    world: World,
    dir: PathBuf,
    /// All that runs on it ends with this.
    _owner: Arc<File>,
}

/// What the machine's guests are made of. The agent is at the first serial port.
const CONFIG: &str = "\
cpus=1
memory.size=4M
pci.0.0.0.device=hostbridge
pci.0.2.0.device=virtio-blk
pci.0.2.0.ro=true
pci.0.3.0.device=virtio-net
pci.0.3.0.backend=tap0
pci.0.3.0.bridge=bridge0
pci.0.4.0.device=virtio-rnd
pci.0.31.0.device=lpc
lpc.com1.path=/dev/nmdm0A
";

impl Machine {
    /// A machine in a new folder below `dir`, with a bridge, and room for many guests.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        let dir = dir.join("machine");
        fs::create_dir(&dir).expect("a new folder");
        let world = World::create(&dir.join("world"), &standin()).expect("a world");
        let owner = Arc::new(world.own().expect("a new world"));
        let machine = Self {
            world,
            dir,
            _owner: owner,
        };
        for file in ["rom", "disk"] {
            fs::write(machine.dir.join(file), [0; 4096]).expect("a file");
        }
        let racct = machine.world.set_tunable("kern.racct.enable", 1);
        racct.expect("a machine that can limit processes");
        machine.run("ifconfig", &["bridge0", "create"]);
        machine.run("ifconfig", &["tap0", "create"]);
        machine
    }

    /// Configuration of its guests, as a person would have written it.
    #[must_use]
    pub fn config(&self) -> String {
        let path = |file: &str| self.dir.join(file).display().to_string();
        format!(
            "{CONFIG}pci.0.2.0.path={}\nlpc.bootrom={}\n",
            path("disk"),
            path("rom")
        )
    }

    /// The same, for a guest that writes to this disk.
    #[must_use]
    pub fn config_with_disk(&self, path: &str) -> String {
        let ours = format!("pci.0.2.0.path={}", self.dir.join("disk").display());
        let theirs = format!("pci.0.2.0.path={path}");
        self.config()
            .replace("pci.0.2.0.ro=true\n", "")
            .replace(&ours, &theirs)
    }

    /// Gives it a pool `tank`, and in it a volume `tank/base` with a snapshot `tank/base@clean`, by
    /// its own stand-in of `zfs`.
    ///
    /// # Panics
    /// When the machine cannot be changed.
    pub fn add_volume(&self) {
        self.world.add_pool("tank").expect("a pool");
        self.run("zfs", &["create", "-V", "1M", "tank/base"]);
        self.run("zfs", &["snapshot", "tank/base@clean"]);
    }

    /// From now on `zfs` is the real one.
    ///
    /// # Panics
    /// When the machine cannot be changed.
    pub fn use_real_zfs(&self) {
        fs::remove_file(self.world.bin().join("zfs")).expect("its stand-in");
    }

    /// What a checkpoint says of such a guest.
    #[must_use]
    pub fn guest(&self) -> BhyveGuest {
        Self::guest_of(&self.config())
    }

    /// What a checkpoint says of a guest with this configuration.
    ///
    /// # Panics
    /// When it is no guest's.
    #[must_use]
    pub fn guest_of(config: &str) -> BhyveGuest {
        let variables: Variables = config.parse().expect("a configuration");
        BhyveConfig::try_from(variables.clone()).expect("a guest's configuration");
        BhyveGuest {
            config: variables.0,
            agent: Some(1),
            agent_protocol: AgentProtocol::Lines,
            readiness: Readiness::Agent,
        }
    }

    /// Environment in which commands, and brood, find the machine.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_str().expect("plain letters").to_owned();
        let path = env::var("PATH").unwrap_or_default();
        vec![
            (
                "PATH".to_owned(),
                format!("{}:{path}", text(&self.world.bin())),
            ),
            (brood_standin::ROOT.to_owned(), text(self.world.root())),
            ("BROOD_BHYVE_ROOT".to_owned(), text(self.world.root())),
            ("BROOD_ENGINE".to_owned(), "bhyve".to_owned()),
        ]
    }

    /// The engine of the machine, with more in its environment.
    #[must_use]
    pub fn engine(&self, more: &[(&str, &str)]) -> Bhyve {
        Bhyve::on(self.host(more)).with_binary(brood())
    }

    /// The machine as the engine sees it, with more in its environment.
    #[must_use]
    pub fn host(&self, more: &[(&str, &str)]) -> Host {
        let more = more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let environment = self.environment().into_iter().chain(more).collect();
        Host::at(self.world.root(), environment)
    }

    /// Boots it with a number that cannot be set while it runs.
    ///
    /// # Panics
    /// When the machine cannot be changed.
    pub fn boot_with(&self, name: &str, value: u64) {
        self.world.set_tunable(name, value).expect("a machine");
    }

    /// Boots it with this FreeBSD.
    ///
    /// # Panics
    /// When the machine cannot be changed.
    pub fn boot_release(&self, release: Release) {
        self.world.set_release(release).expect("a machine");
    }

    /// Takes from it what does not outlive a boot: virtual machines, taps but the first, sockets.
    /// Its processes must have ended.
    ///
    /// # Panics
    /// When the machine cannot be changed.
    pub fn reboot(&self) {
        let files = |folder: &str| {
            let entries = fs::read_dir(self.world.path(folder)).expect("a folder of the machine");
            entries.map(|entry| entry.expect("an entry").path())
        };
        for vm in files("dev/vmm") {
            let name = vm.file_name().unwrap_or_default().to_string_lossy();
            self.run("bhyvectl", &["--destroy", &format!("--vm={name}")]);
        }
        let taps = self.run("ifconfig", &["-g", "tap"]);
        for tap in taps.lines().filter(|tap| *tap != "tap0") {
            self.run("ifconfig", &[tap, "destroy"]);
        }
        for socket in files("var/run/bhyve") {
            fs::remove_file(socket).expect("a socket");
        }
    }

    /// Makes its bhyve a stock one: it has checkpoints, and no patch that maps them.
    ///
    /// # Panics
    /// When the machine cannot be changed.
    pub fn use_stock_bhyve(&self) {
        let bhyve = self.world.bin().join("bhyve");
        let text = format!(
            "#!/bin/bash\nexport {}=1\nexec -a bhyve '{}' \"$@\"\n",
            brood_standin::STOCK,
            standin().display()
        );
        fs::remove_file(&bhyve).expect("a link");
        fs::write(&bhyve, text).expect("a file");
        fs::set_permissions(&bhyve, fs::Permissions::from_mode(0o755)).expect("a program");
    }

    /// Unmounts by force what a checkpoint lies on.
    ///
    /// # Panics
    /// When the machine cannot be changed.
    pub fn unmount_by_force(&self, checkpoint: &BundlePath) {
        let file = checkpoint.ckp();
        self.world.unmount_by_force(&file).expect("a machine");
    }

    /// The modules that can be loaded.
    ///
    /// # Panics
    /// When the machine cannot be changed.
    pub fn install(&self, modules: &[&str]) {
        self.world.set_loadable(modules).expect("a machine");
    }

    /// Takes a module out of its kernel.
    ///
    /// # Panics
    /// When the machine cannot be changed.
    pub fn unload(&self, module: &str) {
        let left: Vec<&str> = ["kernel", "vmm", "nmdm"]
            .into_iter()
            .filter(|name| *name != module)
            .collect();
        self.world.set_loaded(&left).expect("a machine");
    }

    /// Commands of the machine, other than bhyve, that run.
    #[must_use]
    pub fn held_up(&self) -> Vec<i32> {
        let bin = self.world.bin();
        self.own(|command| {
            let name = command.split(|b| *b == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name);
            ["bhyvectl", "ifconfig", "sysctl", "kldstat", "rctl", "zfs"]
                .iter()
                .any(|other| name == *other || bin.join(other).to_str() == Some(&name))
        })
    }

    /// Runs a command of the machine, which must succeed; returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.world.command(program).args(arguments).output();
        let output = output.expect("a command of the machine");
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {output:?}"
        );
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a guest from its boot, and suspends it to the files `raw`, `raw.kern` and `raw.meta`.
    ///
    /// # Panics
    /// When that fails.
    pub fn suspend_to(&self, raw: &Path) {
        self.suspend_with(&self.config(), raw);
    }

    fn suspend_with(&self, config: &str, raw: &Path) {
        let text = config;
        let config = self.dir.join("conf");
        fs::write(&config, text).expect("a file");
        let mut bhyve: Command = self.world.command("bhyve");
        bhyve
            .arg("-k")
            .arg(&config)
            .args(["-H", "-A", "-P", "first"]);
        let mut running = Running::start(bhyve);
        let socket = self.world.path("var/run/bhyve/first");
        let raw = raw.to_str().expect("plain letters");
        until("bhyve to listen", || {
            let mut suspend = self.world.command("bhyvectl");
            suspend.args([&format!("--suspend={raw}"), "--vm=first"]);
            let output = suspend.output().expect("a command of the machine");
            output.status.success().then_some(())
        });
        until("bhyve to end", || running.ended().then_some(()));
        fs::remove_file(&socket).expect("bhyve leaves it");
        self.run("bhyvectl", &["--destroy", "--vm=first"]);
    }

    /// Makes a checkpoint of a guest of the machine.
    ///
    /// # Panics
    /// When that fails.
    pub fn checkpoint(&self, path: &BundlePath) -> Manifest {
        self.checkpoint_of(&self.config(), path)
    }

    /// Makes a checkpoint of a guest with this configuration.
    ///
    /// # Panics
    /// When that fails.
    pub fn checkpoint_of(&self, config: &str, path: &BundlePath) -> Manifest {
        self.checkpoint_as(config, path, Self::guest_of(config))
    }

    /// Makes a checkpoint of a guest with this configuration, and says this of it.
    ///
    /// # Panics
    /// When that fails.
    pub fn checkpoint_as(&self, config: &str, path: &BundlePath, guest: BhyveGuest) -> Manifest {
        let raw = path.dir().join(format!("{}.first", path.name()));
        self.suspend_with(config, &raw);
        self.import(&raw, path, guest).expect("a checkpoint")
    }

    /// Imports what bhyve wrote, as `brood checkpoint import` does: the state folder beside the
    /// machine trusts it.
    ///
    /// # Errors
    /// When it is refused.
    ///
    /// # Panics
    /// When the state folder cannot be written.
    pub fn import(
        &self,
        raw: &Path,
        path: &BundlePath,
        guest: BhyveGuest,
    ) -> Result<Manifest, Error> {
        let sealed = self
            .engine(&[])
            .import(raw, path, guest, &mut unnoted, &unwatched)?;
        let opened = Checkpoint::open(path).expect("it was sealed just now");
        let state = State::open(&self.dir.with_file_name("state")).expect("a state folder");
        state.trust(&opened).expect("it can be written");
        Ok(sealed)
    }

    /// What guests have on the machine: virtual machines, taps but the first, sockets, null
    /// modems, members of the bridge, limits, and bhyve processes. Empty when nothing was left.
    ///
    /// # Panics
    /// When the machine cannot be looked at.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for folder in ["dev/vmm", "var/run/bhyve"] {
            let entries = fs::read_dir(self.world.path(folder)).expect("a folder of the machine");
            left.extend(entries.map(|entry| {
                let name = entry.expect("an entry").file_name();
                format!("{folder}/{}", name.to_string_lossy())
            }));
        }
        let taps = self.run("ifconfig", &["-g", "tap"]);
        left.extend(taps.lines().filter(|tap| *tap != "tap0").map(str::to_owned));
        left.extend(
            self.run("ifconfig", &["bridge0"])
                .lines()
                .filter(|line| line.trim().starts_with("member:"))
                .map(str::to_owned),
        );
        left.extend(self.limits());
        left.extend(self.processes().iter().map(|pid| format!("process {pid}")));
        left
    }

    /// The rules of rctl(8) on its processes, if it has any.
    ///
    /// # Panics
    /// When the machine cannot be looked at.
    #[must_use]
    pub fn limits(&self) -> Vec<String> {
        if self.run("sysctl", &["-n", "kern.racct.enable"]).trim() == "0" {
            return Vec::new();
        }
        let rules = self.run("rctl", &[]);
        rules.lines().map(str::to_owned).collect()
    }

    /// Processes that run as this machine's bhyve.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        // The second is its title, once it runs (setproctitle(3)).
        self.own(|command| command.starts_with(b"bhyve\0") || command.starts_with(b"bhyve: "))
    }

    /// Processes of this machine with such a command line.
    fn own(&self, is_one: impl Fn(&[u8]) -> bool) -> Vec<i32> {
        let mark = format!("{}={}", brood_standin::ROOT, self.world.root().display());
        let all = fs::read_dir("/proc").expect("/proc is there");
        let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| {
            let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let environment = file("environ");
            let named = environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == mark.as_bytes());
            named && is_one(&file("cmdline"))
        })
        .collect()
    }

    /// Points at which its commands can be made to fail, by the step that they are part of.
    #[must_use]
    pub fn points(&self) -> Vec<String> {
        let mut command = self.world.command("standin");
        let output = command.arg("points").stdin(Stdio::null()).output();
        let output = output.expect("the stand-in runs");
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines()
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect()
    }

    /// The folder that stands for the machine.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.world.root()
    }
}
