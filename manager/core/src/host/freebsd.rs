//! Facts of a FreeBSD host, from sysctl(3).
//!
//! All questions to the kernel go through [`Kernel`]. It is the real kernel on FreeBSD, a
//! stand-in's sysctl(8) on other systems, or a test's own values.

#[cfg(target_os = "freebsd")]
mod this_kernel;

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::resource::{RLIM_INFINITY, Resource, getrlimit},
    unistd::{AccessFlags, access, getuid},
};
use serde::Serialize;

#[cfg(target_os = "freebsd")]
pub(crate) use this_kernel::ThisKernel;

use super::{
    facts::{Cpu, HostFacts, HostMemory, OpenFiles, Paths, System},
    folder::{Folder, MountedOn},
    proc::{Error, ProcRoot},
};
use crate::units::Bytes;

/// The variable by which bhyve maps a checkpoint as guest memory. It is in the text of a bhyve with
/// the patch of `kernel-patches/`; any other passes the variable over.
const MAPS_CHECKPOINTS: &[u8] = b"snapshot.vnode_restore";

/// Where the kernel finds modules by their names (`kern.module_path`), for those not of the base.
const MODULES: [&str; 2] = ["/boot/modules", "/boot/kernel"];

/// What only FreeBSD hosts have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Freebsd {
    /// The hypervisor.
    pub vmm: Vmm,
    /// Whether the bhyve that is first on PATH can map a checkpoint as guest memory, by the patch
    /// of `kernel-patches/`; none where there is no bhyve to read.
    pub bhyve_maps_checkpoints: Option<bool>,
    /// Processes.
    pub processes: Processes,
    /// `kern.racct.enable`: whether rctl(8) can limit a guest; none if the kernel cannot.
    pub racct: Option<bool>,
    /// `security.jail.jailed`: whether this is a jail.
    pub jailed: bool,
    /// bhyve's commands and modules, if they were examined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<BhyveTools>,
}

/// The installed parts of bhyve: facts that only its commands can tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BhyveTools {
    /// The commands that restores run, each with whether it can be.
    pub commands: Vec<(String, bool)>,
    /// Whether `bhyve -r` is known: bhyve was built with `WITH_BHYVE_SNAPSHOT`.
    pub restores: bool,
    /// Whether `bhyvectl --suspend` is known: built with the same.
    pub suspends: bool,
    /// Modules that are wanted, each with whether it is in the kernel.
    pub modules: Vec<(String, bool)>,
    /// `primarycache` of the checkpoint's dataset, if it is on ZFS: the part of it that the ARC
    /// keeps.
    pub primarycache: Option<String>,
    /// Whether `/usr/sbin/iasl` is there, and `/tmp` can be written: a bhyve that builds ACPI
    /// tables needs both.
    pub builds_tables: bool,
    /// The memory file with the most of holes among those in the checkpoint's folder, when that is
    /// on tmpfs.
    pub holes: Option<Holes>,
}

/// A file that has not all its blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holes {
    /// The file.
    pub file: PathBuf,
    /// How much of it is a hole.
    pub size: Bytes,
}

impl Holes {
    /// Looks for the memory file in a folder that has most of them.
    pub(crate) fn in_folder(folder: &Path) -> Option<Self> {
        let entries = fs::read_dir(folder).ok()?.flatten();
        let files = entries.map(|entry| entry.path());
        files
            .filter(|file| file.extension().is_some_and(|extension| extension == "ckp"))
            .filter_map(Self::of)
            .max_by_key(|holes| holes.size)
    }

    /// Those of a file: what of its size no block of 512 bytes is there for.
    fn of(file: PathBuf) -> Option<Self> {
        let facts = fs::metadata(&file).ok()?;
        let there = Bytes(facts.blocks().saturating_mul(512));
        let size = Bytes(facts.size()).saturating_sub(there);
        (size > Bytes(0)).then_some(Self { file, size })
    }
}

/// vmm(4) and vmm_vnode(4), as this process sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vmm {
    /// Why `/dev/vmmctl` cannot be opened for reading and writing, as an errno; none if it can.
    pub control_errno: Option<i32>,
    /// Who may open it; none if it is not there.
    pub control: Option<DeviceOwner>,
    /// Whether vmm is in the kernel: `/dev/vmmctl` is there or, where a devfs(8) ruleset hides it,
    /// `hw.vmm.maxcpu` is.
    pub loaded: bool,
    /// `hw.vmm.maxvmms`: virtual machines that one user may have. None where the kernel has no such
    /// limit, as FreeBSD 15.0 has not.
    pub max_machines: Option<u64>,
    /// `RLIMIT_VMM`, soft: virtual machines that this user may have. None where the kernel has no
    /// such limit, as FreeBSD 15.0 has not, or it is unlimited.
    pub user_machines: Option<u64>,
    /// Virtual machines that exist: entries of `/dev/vmm`.
    pub machines: u64,
    /// `hw.vmm.vnode.abi`: what vmm_vnode speaks; none if it is not loaded.
    pub vnode_abi: Option<u64>,
    /// `hw.vmm.vnode.segments`: guests' memories that it backs now.
    pub vnode_segments: Option<u64>,
    /// Whether the module's file is there to be loaded.
    pub vnode_installed: bool,
}

/// Owner, group and permissions of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceOwner {
    /// Id of the user.
    pub uid: u32,
    /// Id of the group.
    pub gid: u32,
    /// Permissions.
    pub mode: u32,
}

impl fmt::Display for DeviceOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uid, gid, mode } = self;
        write!(f, "mode {mode:04o}, user {uid}, group {gid}")
    }
}

/// Processes: how many there are and may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Processes {
    /// `kern.maxproc`.
    pub max: u64,
    /// Processes of the whole host now.
    pub existing: u64,
    /// `RLIMIT_NPROC`, soft; none if unlimited. `kern.maxprocperuid` caps it when it is set.
    pub user_limit: Option<u64>,
    /// Whether `RLIMIT_NPROC` binds: not for root.
    pub user_limit_binds: bool,
    /// `kern.maxprocperuid`.
    pub max_per_user: u64,
    /// Processes of this user now, counted only where the limit binds.
    pub of_user: u64,
}

/// The value of a sysctl(3) variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// As the kernel has it in memory.
    Raw(Vec<u8>),
    /// As sysctl(8) prints it.
    Printed(String),
}

/// What a FreeBSD kernel tells.
pub trait Kernel {
    /// The value of a sysctl(3) variable.
    ///
    /// # Errors
    /// `NotFound` when there is no such variable.
    fn sysctl(&self, name: &str) -> io::Result<Value>;

    /// Number of processes: of all users, or of this real user.
    ///
    /// # Errors
    /// When the kernel does not say.
    fn processes(&self, user: Option<u32>) -> io::Result<u64>;

    /// The filesystem of a folder (statfs(2)).
    fn mounted(&self, folder: &Path) -> Option<MountedOn>;

    /// `RLIMIT_VMM`, soft; none where there is no such limit, or it is unlimited.
    fn machines_of_user(&self) -> Option<u64>;

    /// The bhyve that commands find.
    fn bhyve(&self) -> Option<PathBuf>;
}

/// Reads every fact.
///
/// # Errors
/// If a variable that every FreeBSD host has cannot be read.
pub fn read(paths: &Paths, kernel: &dyn Kernel) -> Result<HostFacts, Error> {
    let folder = |path: &Path| Folder::read(path, |real| kernel.mounted(real));
    Ok(HostFacts {
        kernel: text(kernel, "kern.osrelease")?,
        cpu: Cpu {
            model: text(kernel, "hw.model")?,
            vendor: text(kernel, "hw.cpu_vendor").unwrap_or_default(),
            cores: number(kernel, "hw.ncpu")?.max(1),
        },
        memory: memory(kernel)?,
        files: files(kernel)?,
        system: System::Freebsd(Freebsd {
            vmm: vmm(kernel, &paths.root),
            bhyve_maps_checkpoints: kernel.bhyve().and_then(|bhyve| maps_checkpoints(&bhyve)),
            processes: processes(kernel)?,
            racct: number(kernel, "kern.racct.enable").ok().map(|n| n != 0),
            jailed: number(kernel, "security.jail.jailed").is_ok_and(|n| n != 0),
            tools: None,
        }),
        state_folder: folder(&paths.state),
        checkpoint_folder: paths.checkpoint.as_deref().map(folder),
    })
}

/// Memory that can be taken without swapping: free pages, inactive ones, and those of the laundry.
///
/// # Errors
/// If one of the counts cannot be read.
pub fn available(kernel: &dyn Kernel) -> Result<Bytes, Error> {
    Ok(pages(kernel, "vm.stats.vm.v_free_count")?
        + pages(kernel, "vm.stats.vm.v_inactive_count")?
        + pages(kernel, "vm.stats.vm.v_laundry_count")?)
}

/// A variable that counts pages.
///
/// # Errors
/// If it, or the size of a page, cannot be read.
pub fn pages(kernel: &dyn Kernel, name: &'static str) -> Result<Bytes, Error> {
    let page = number(kernel, "vm.stats.vm.v_page_size")?;
    Ok(Bytes(page).saturating_mul(number(kernel, name)?))
}

fn memory(kernel: &dyn Kernel) -> Result<HostMemory, Error> {
    let available = available(kernel)?;
    let swap_total = Bytes(number(kernel, "vm.swap_total")?);
    Ok(HostMemory {
        total: Bytes(number(kernel, "hw.physmem")?),
        available,
        swap_total,
        swap_free: None,
        overcommit_mode: number(kernel, "vm.overcommit")?,
        commit_limit: swap_total,
        committed: Bytes(number(kernel, "vm.swap_reserved")?),
    })
}

fn files(kernel: &dyn Kernel) -> Result<OpenFiles, Error> {
    let (soft, hard) = rlimit(Resource::RLIMIT_NOFILE);
    Ok(OpenFiles {
        soft,
        hard,
        open: number(kernel, "kern.openfiles")?,
        max: number(kernel, "kern.maxfiles")?,
    })
}

fn processes(kernel: &dyn Kernel) -> Result<Processes, Error> {
    let count = |user| {
        let count = kernel.processes(user);
        count.map_err(|source| Error::Sysctl {
            name: "kern.proc",
            source,
        })
    };
    let user = getuid();
    let (user_limit, _) = rlimit(Resource::RLIMIT_NPROC);
    let user_limit_binds = !user.is_root();
    Ok(Processes {
        max: number(kernel, "kern.maxproc")?,
        existing: count(None)?,
        user_limit,
        user_limit_binds,
        max_per_user: number(kernel, "kern.maxprocperuid")?,
        of_user: if user_limit_binds {
            count(Some(user.as_raw()))?
        } else {
            0
        },
    })
}

fn vmm(kernel: &dyn Kernel, root: &ProcRoot) -> Vmm {
    let optional = |name| number(kernel, name).ok();
    let device = root.path(vmm_sys::VMM_CTL_PATH);
    let control = access(&device, AccessFlags::R_OK | AccessFlags::W_OK);
    let owner = fs::metadata(&device).map(|facts| DeviceOwner {
        uid: facts.uid(),
        gid: facts.gid(),
        mode: facts.mode() & 0o7777,
    });
    let machines = fs::read_dir(root.path(vmm_sys::VMM_DEVICE_DIR));
    Vmm {
        loaded: owner.is_ok() || optional("hw.vmm.maxcpu").is_some(),
        control_errno: control.err().map(|errno: Errno| errno as i32),
        control: owner.ok(),
        max_machines: optional("hw.vmm.maxvmms"),
        user_machines: kernel.machines_of_user(),
        machines: machines.map_or(0, |entries| entries.count() as u64),
        vnode_abi: optional("hw.vmm.vnode.abi"),
        vnode_segments: optional("hw.vmm.vnode.segments"),
        vnode_installed: MODULES.iter().any(|folder| {
            let file = Path::new(folder).join("vmm_vnode.ko");
            root.path(file).is_file()
        }),
    }
}

/// Whether this bhyve has the patch that maps checkpoints; none if it cannot be read.
fn maps_checkpoints(bhyve: &Path) -> Option<bool> {
    let program = fs::read(bhyve).ok()?;
    Some(memchr::memmem::find(&program, MAPS_CHECKPOINTS).is_some())
}

/// Soft and hard value of a resource limit; none is unlimited.
fn rlimit(resource: Resource) -> (Option<u64>, Option<u64>) {
    // Signed on FreeBSD, unsigned on Linux.
    let value = |limit| {
        let number = u64::try_from(i128::from(limit)).unwrap_or(0);
        (limit != RLIM_INFINITY).then_some(number)
    };
    getrlimit(resource).map_or((None, None), |(soft, hard)| (value(soft), value(hard)))
}

/// A variable that is a whole number: of 4 or 8 bytes, or printed.
pub fn number(kernel: &dyn Kernel, name: &'static str) -> Result<u64, Error> {
    let number = match value(kernel, name)? {
        Value::Raw(bytes) => match *bytes.as_slice() {
            [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d]).into()),
            ref other => other.try_into().ok().map(u64::from_ne_bytes),
        },
        Value::Printed(text) => text.trim().parse().ok(),
    };
    number.ok_or_else(|| odd(name, "no number of 4 or 8 bytes"))
}

/// A variable that is text.
fn text(kernel: &dyn Kernel, name: &'static str) -> Result<String, Error> {
    match value(kernel, name)? {
        Value::Raw(bytes) => {
            let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            match std::str::from_utf8(text) {
                Ok(text) => Ok(text.trim().to_owned()),
                Err(_) => Err(odd(name, "no text")),
            }
        }
        Value::Printed(text) => Ok(text.trim().to_owned()),
    }
}

fn value(kernel: &dyn Kernel, name: &'static str) -> Result<Value, Error> {
    kernel
        .sysctl(name)
        .map_err(|source| Error::Sysctl { name, source })
}

fn odd(name: &'static str, what: &'static str) -> Error {
    let source = io::Error::new(io::ErrorKind::InvalidData, what);
    Error::Sysctl { name, source }
}

#[cfg(test)]
mod tests;
