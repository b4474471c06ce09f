//! World that the stand-ins share: a folder that stands for a FreeBSD machine's `/dev`,
//! `/var/run/bhyve` and the state of its kernel, and a lock on it.
//!
//! | in the folder | what it is |
//! |---|---|
//! | `bin/` | the commands, links to one binary |
//! | `usr/sbin/iasl`, `tmp/` | the compiler that bhyve runs by its whole path, and where it works |
//! | `dev/vmmctl`, `dev/vmm/NAME` | vmm(4); the VM as the kernel knows it, see `vm.rs` |
//! | `dev/tapN` | a tap; open while a lock is held on it |
//! | `dev/nmdmNA`, `dev/nmdmNB` | a null-modem pair; B is a link to a pseudo-terminal |
//! | `var/run/bhyve/NAME` | a checkpoint socket |
//! | `net/NAME` | a network interface |
//! | `pool/`, `dev/zvol/`, `zfs` | contents and names of datasets, see `zfs/` |
//! | `sysctl`, `modules` | values that were set, modules that are loaded |
//! | `release` | which FreeBSD it is; 15.0 when it is not there |
//! | `boot/modules/NAME.ko` | a module that is installed |
//! | `rctl` | rules, each with the process that it is for |
//! | `commands` | a line for each command that was started |
//! | `faults/` | how often each fault point was passed |
//! | `wake/NAME` | a pipe to the process that runs a VM |
//! | `owner` | a pipe that the world's owner has open; see [`World::own`] |

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    fcntl::{Flock, FlockArg, OFlag},
    sys::stat::Mode,
    unistd::mkfifo,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    exit::{EX_SOFTWARE, Exit},
    sysctl, vm, zfs,
};

/// Names under which the binary acts.
pub const COMMANDS: [&str; 7] = [
    "bhyve", "bhyvectl", "zfs", "ifconfig", "sysctl", "kldstat", "rctl",
];

/// The compiler of ACPI tables, below the world's folder: bhyve runs it by its whole path.
pub const IASL: &str = "usr/sbin/iasl";

/// Names the folder in the environment of every command.
pub const ROOT: &str = "BROOD_STANDIN_ROOT";

/// In the environment of a bhyve that is a stock one: it passes `snapshot.vnode_restore` over, as
/// it does any variable that it does not know (seen with bhyve 14.2).
pub const STOCK: &str = "BROOD_STANDIN_STOCK";

/// The FreeBSD that a world stands for. Rules of the later one say so where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Release {
    /// 15.0: nothing limits how many VMs there are.
    #[default]
    Fifteen,
    /// 15.1: `hw.vmm.maxvmms` and `RLIMIT_VMM` limit them for each user (FreeBSD's commit
    /// 1092ec8b3375, "kern: Introduce RLIMIT_VMM"), and `/dev/vmmctl` is the group `vmm`'s too.
    FifteenOne,
}

/// A folder that stands for a machine.
#[derive(Clone, Debug)]
pub struct World {
    root: PathBuf,
}

impl World {
    /// Makes a world in a folder, of FreeBSD 15.0: `vmm` and `nmdm` are loaded, `vmm_vnode` can be,
    /// `hw.ncpu` is 2.
    /// The commands in [`Self::bin`] are links to `binary`.
    ///
    /// # Errors
    /// When the folder cannot be written, or is a world already.
    pub fn create(root: &Path, binary: &Path) -> io::Result<Self> {
        for folder in [
            "bin",
            "dev/vmm",
            "var/run/bhyve",
            "net",
            "pool",
            "faults",
            "wake",
            "tmp",
            "usr/sbin",
        ] {
            fs::create_dir_all(root.join(folder))?;
        }
        let world = Self {
            root: root.canonicalize()?,
        };
        File::create_new(world.path("lock"))?;
        let binary = binary.canonicalize()?;
        for name in COMMANDS {
            symlink(&binary, world.bin().join(name))?;
        }
        symlink(&binary, world.bin().join("standin"))?;
        symlink(&binary, world.path(IASL))?;
        world.set_loaded(&["kernel", "vmm", "nmdm"])?;
        world.set_loadable(&["vmm_vnode"])?;
        Ok(world)
    }

    /// Adds a pool of datasets, which is a file system.
    ///
    /// # Errors
    /// When the world cannot be written.
    pub fn add_pool(&self, name: &str) -> io::Result<()> {
        zfs::add_pool(self, name)
    }

    /// Gives the world an owner: every process that waits in it ends when the file is closed, even
    /// if the owner is killed.
    ///
    /// # Errors
    /// When it has an owner already, or the pipe cannot be made.
    pub fn own(&self) -> io::Result<File> {
        mkfifo(&self.path("owner"), Mode::S_IRUSR | Mode::S_IWUSR)?;
        self.open_owner(true)
    }

    fn open_owner(&self, write: bool) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(self.path("owner"))
    }

    /// What to wait on for the owner's end; `None` when the world has no owner.
    ///
    /// # Errors
    /// When the owner has ended.
    pub(crate) fn owner(&self) -> io::Result<Option<File>> {
        let mut pipe = match self.open_owner(false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            pipe => pipe?,
        };
        match pipe.read(&mut [0]) {
            // No process has it open for writing.
            Ok(0) => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Ok(Some(pipe)),
        }
    }

    /// The world that the environment names.
    ///
    /// # Errors
    /// Ends the command when there is none.
    pub(crate) fn of_environment() -> Result<Self, Exit> {
        let missing = |text: String| Exit::saying(EX_SOFTWARE, text);
        let root = env::var_os(ROOT)
            .map(PathBuf::from)
            .ok_or_else(|| missing(format!("standin: {ROOT} is not set; name a world\n")))?;
        if !root.join("lock").is_file() {
            let text = format!(
                "standin: {ROOT}={} is not a world; make one with `standin init DIR`\n",
                root.display()
            );
            return Err(missing(text));
        }
        Ok(Self { root })
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the commands are.
    #[must_use]
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// A path below the folder, given without a leading slash.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// One of the commands, with the environment that it needs.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin().join(name));
        command.env(ROOT, &self.root);
        command
    }

    /// Names of the modules that are loaded from now on. `/dev/vmmctl` is there while vmm is.
    ///
    /// # Errors
    /// When the world cannot be written.
    pub fn set_loaded(&self, modules: &[&str]) -> io::Result<()> {
        let _guard = self.lock()?;
        let control = self.path("dev/vmmctl");
        if modules.contains(&"vmm") {
            fs::write(control, "")?;
        } else if control.exists() {
            fs::remove_file(control)?;
        }
        self.store("modules", &modules)
    }

    /// Makes it a machine of this release.
    ///
    /// # Errors
    /// When the world cannot be written.
    pub fn set_release(&self, release: Release) -> io::Result<()> {
        let _guard = self.lock()?;
        self.store("release", &release)
    }

    /// Which FreeBSD it is.
    pub(crate) fn release(&self) -> io::Result<Release> {
        self.load("release").map(Option::unwrap_or_default)
    }

    /// Names of the modules that are installed, so that they can be loaded.
    ///
    /// # Errors
    /// When the world cannot be written.
    pub fn set_loadable(&self, modules: &[&str]) -> io::Result<()> {
        let _guard = self.lock()?;
        let folder = self.path("boot/modules");
        match fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => fs::create_dir_all(&folder)?,
        }
        for module in modules {
            fs::write(folder.join(format!("{module}.ko")), "")?;
        }
        self.store("installed", &modules)
    }

    /// Unmounts by force the file system that a checkpoint's memory file lies on. The file is only
    /// said to be gone.
    ///
    /// # Errors
    /// When the world cannot be written.
    pub fn unmount_by_force(&self, file: &Path) -> io::Result<()> {
        vm::lose(self, file)
    }

    /// Boots the machine with a number that cannot be set while it runs, as from loader.conf(5).
    ///
    /// # Errors
    /// When the world cannot be written.
    pub fn set_tunable(&self, name: &str, value: u64) -> io::Result<()> {
        let _guard = self.lock()?;
        sysctl::set_number(self, name, value)
    }

    /// Modules that are loaded, in order.
    pub(crate) fn loaded(&self) -> io::Result<Vec<String>> {
        self.load("modules").map(Option::unwrap_or_default)
    }

    /// kldload(2): false when there is no such module.
    pub(crate) fn load_module(&self, name: &str) -> io::Result<bool> {
        let _guard = self.lock()?;
        let mut loaded = self.loaded()?;
        if loaded.iter().any(|module| module == name) {
            return Ok(true);
        }
        let installed: Vec<String> = self.load("installed")?.unwrap_or_default();
        if !installed.iter().any(|module| module == name) {
            return Ok(false);
        }
        loaded.push(name.to_owned());
        self.store("modules", &loaded)?;
        Ok(true)
    }

    /// Where a path of the real machine lies here: `/dev` and `/var/run/bhyve` are the world's, all
    /// others are this machine's own.
    pub(crate) fn host(&self, path: &str) -> PathBuf {
        if path.starts_with("/dev/") || path.starts_with("/var/run/bhyve/") {
            self.root.join(&path[1..])
        } else {
            path.into()
        }
    }

    /// Locks the state of the world until the guard is dropped. Short: nothing waits inside.
    pub(crate) fn lock(&self) -> io::Result<Flock<File>> {
        let file = File::open(self.path("lock"))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
    }

    /// Reads a piece of state; `None` when it was never written.
    pub(crate) fn load<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.path(name)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes a piece of state, whole or not at all. The world is locked.
    pub(crate) fn store<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> io::Result<()> {
        let new = self.path("new");
        fs::write(&new, serde_json::to_vec(value)?)?;
        fs::rename(new, self.path(name))
    }

    /// Notes that a command was started.
    pub(crate) fn note(&self, arguments: &[String]) {
        let line = format!("{} {}\n", std::process::id(), arguments.join(" "));
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("commands"));
        // One write of one line: lines of several processes do not mix.
        let _ = log.and_then(|mut log| log.write_all(line.as_bytes()));
    }
}
