//! Facts of a Linux host, from `/proc` and `/sys`.

use std::{fs, path::Path};

use serde::Serialize;

use super::{
    cgroup::Groups,
    facts::{Cpu, HostFacts, HostMemory, OpenFiles, Paths, System},
    folder::Folder,
    jail::JailFacts,
    kvm::KvmFacts,
    proc::{self, Error, Mount, ProcRoot},
};
use crate::checkpoint::manifest::EngineKind;

/// What only Linux hosts have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Linux {
    /// The engine's device.
    pub kvm: KvmFacts,
    /// What confines guests' processes.
    pub jail: JailFacts,
    /// Tasks.
    pub pids: Pids,
    /// `vm.max_map_count`: mappings per process.
    pub max_map_count: u64,
    /// Where guests' sockets lie, where that was asked for.
    pub run: Option<RunFolder>,
    /// Limits of this process's control group and its ancestors.
    pub groups: Groups,
    /// QEMU, where it may run guests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qemu: Option<QemuFacts>,
    /// Engines that are examined; none when that was not asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<EngineKind>,
}

/// QEMU as it is installed on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QemuFacts {
    /// The program.
    pub program: String,
    /// Its version; none when it cannot be run.
    pub version: Option<String>,
    /// What executes the instructions of new guests: `kvm` or `tcg`.
    pub accelerator: String,
    /// Why that is not KVM, if it is not.
    pub why: Option<String>,
}

/// The folder of guests' sockets, `STATE/run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunFolder {
    /// The folder.
    pub folder: Folder,
    /// Whether it is on an ext4 without a journal.
    pub without_journal: bool,
}

/// Tasks: how many there are and may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pids {
    /// `kernel.pid_max`.
    pub pid_max: u64,
    /// `kernel.threads-max`.
    pub threads_max: u64,
    /// Tasks of the whole host now.
    pub tasks: u64,
    /// `RLIMIT_NPROC`, soft; none if unlimited.
    pub nproc_limit: Option<u64>,
    /// Whether `RLIMIT_NPROC` binds: not for root, `CAP_SYS_RESOURCE` or `CAP_SYS_ADMIN`.
    pub nproc_binds: bool,
    /// Tasks of this user now, counted only where the limit binds.
    pub user_tasks: u64,
}

/// Reads every fact.
///
/// # Errors
/// If a file of `/proc` that every Linux host has cannot be read or understood.
pub fn read(paths: &Paths) -> Result<HostFacts, Error> {
    let root = &paths.root;
    let mounts = proc::mounts(&root.text("/proc/self/mountinfo")?);
    Ok(HostFacts {
        kernel: root.text("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        cpu: cpu(root)?,
        memory: memory(root)?,
        files: files(root)?,
        system: System::Linux(Linux {
            kvm: KvmFacts::read(root),
            jail: JailFacts::read(root)?,
            pids: pids(root)?,
            max_map_count: root.number("/proc/sys/vm/max_map_count")?,
            groups: Groups::read(root, &mounts),
            qemu: None,
            engines: Vec::new(),
            run: None,
        }),
        state_folder: Folder::read(&paths.state, |real| Folder::mounted(real, &mounts)),
        checkpoint_folder: paths
            .checkpoint
            .as_deref()
            .map(|path| Folder::read(path, |real| Folder::mounted(real, &mounts))),
    })
}

impl RunFolder {
    /// Looks at that of the state folder `state`.
    ///
    /// # Errors
    /// If the mounts cannot be read.
    pub fn read(root: &ProcRoot, state: &Path) -> Result<Self, Error> {
        let mounts = proc::mounts(&root.text("/proc/self/mountinfo")?);
        let run = state.join("run");
        Ok(Self {
            without_journal: without_journal(root, &run, &mounts),
            folder: Folder::read(&run, |real| Folder::mounted(real, &mounts)),
        })
    }
}

/// Whether a folder is on an ext4 that has no journal: jbd2 knows nothing of its device.
fn without_journal(root: &ProcRoot, folder: &Path, mounts: &[Mount]) -> bool {
    let there = folder
        .ancestors()
        .find_map(|there| there.canonicalize().ok());
    let mount = there.and_then(|real| Folder::mount(&real, mounts));
    let Some(mount) = mount.filter(|mount| mount.kind == "ext4") else {
        return false;
    };
    let device = fs::read_link(root.path("/sys/dev/block").join(&mount.device));
    let Some(name) = device.ok().and_then(|to| Some(to.file_name()?.to_owned())) else {
        return false;
    };
    let prefix = format!("{}-", name.to_string_lossy());
    let journals = fs::read_dir(root.path("/proc/fs/jbd2"));
    let mut names = journals
        .into_iter()
        .flatten()
        .flatten()
        .map(|journal| journal.file_name());
    !names.any(|journal| journal.to_string_lossy().starts_with(&prefix))
}

fn cpu(root: &ProcRoot) -> Result<Cpu, Error> {
    let text = root.text("/proc/cpuinfo")?;
    let named = |key| proc::field(&text, key).unwrap_or_default().to_owned();
    let cores = text
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count() as u64;
    Ok(Cpu {
        model: named("model name"),
        vendor: named("vendor_id"),
        cores: cores.max(1),
    })
}

fn memory(root: &ProcRoot) -> Result<HostMemory, Error> {
    const FILE: &str = "/proc/meminfo";
    let text = root.text(FILE)?;
    let amount = |key| proc::kib_field(&text, key).ok_or_else(|| root.missing(FILE, key));
    Ok(HostMemory {
        total: amount("MemTotal")?,
        available: amount("MemAvailable")?,
        swap_total: amount("SwapTotal")?,
        swap_free: Some(amount("SwapFree")?),
        overcommit_mode: root.number("/proc/sys/vm/overcommit_memory")?,
        commit_limit: amount("CommitLimit")?,
        committed: amount("Committed_AS")?,
    })
}

fn pids(root: &ProcRoot) -> Result<Pids, Error> {
    const LOAD: &str = "/proc/loadavg";
    const STATUS: &str = "/proc/self/status";
    // The fourth field is "runnable/existing".
    let load = root.text(LOAD)?;
    let tasks = load
        .split_ascii_whitespace()
        .nth(3)
        .and_then(|field| field.split_once('/')?.1.parse().ok())
        .ok_or_else(|| root.missing(LOAD, "how many tasks exist"))?;
    let status = root.text(STATUS)?;
    let user = real_user(&status).ok_or_else(|| root.missing(STATUS, "the user (Uid)"))?;
    let (limit, _) = rlimit(root, "Max processes")?;
    let nproc_binds = limit.is_some() && user != 0 && !privileged(&status);
    Ok(Pids {
        pid_max: root.number("/proc/sys/kernel/pid_max")?,
        threads_max: root.number("/proc/sys/kernel/threads-max")?,
        tasks,
        nproc_limit: limit,
        nproc_binds,
        user_tasks: if nproc_binds {
            user_tasks(root, user)
        } else {
            0
        },
    })
}

fn files(root: &ProcRoot) -> Result<OpenFiles, Error> {
    const FILE: &str = "/proc/sys/fs/file-nr";
    let (soft, hard) = rlimit(root, "Max open files")?;
    let text = root.text(FILE)?;
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    // Allocated, unused (always 0), most.
    match (numbers.next(), numbers.nth(1)) {
        (Some(Ok(open)), Some(Ok(max))) => Ok(OpenFiles {
            soft,
            hard,
            open,
            max,
        }),
        _ => Err(root.missing(FILE, "open files and their limit")),
    }
}

/// Soft and hard value of a line of `/proc/self/limits`; none is unlimited.
fn rlimit(root: &ProcRoot, name: &'static str) -> Result<(Option<u64>, Option<u64>), Error> {
    const FILE: &str = "/proc/self/limits";
    let text = root.text(FILE)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let mut values = line.unwrap_or_default().split_ascii_whitespace();
    let mut value = || match values.next()? {
        "unlimited" => Some(None),
        number => number.parse().ok().map(Some),
    };
    match (value(), value()) {
        (Some(soft), Some(hard)) => Ok((soft, hard)),
        _ => Err(root.missing(FILE, name)),
    }
}

fn real_user(status: &str) -> Option<u64> {
    proc::field(status, "Uid")?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Whether fork(2) skips RLIMIT_NPROC: see setrlimit(2).
fn privileged(status: &str) -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    const SYS_RESOURCE: u64 = 1 << 24;
    let set = proc::field(status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    set.is_some_and(|set| set & (SYS_ADMIN | SYS_RESOURCE) != 0)
}

/// Threads of all processes whose real user is `user`; processes that end meanwhile are skipped.
fn user_tasks(root: &ProcRoot, user: u64) -> u64 {
    let Ok(entries) = fs::read_dir(root.path("/proc")) else {
        return 0;
    };
    entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .iter()
                .all(u8::is_ascii_digit)
        })
        .filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok())
        .filter(|status| real_user(status) == Some(user))
        .filter_map(|status| proc::field(&status, "Threads")?.parse::<u64>().ok())
        .sum()
}
