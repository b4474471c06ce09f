//! Control group limits that bind this process: memory and pids, versions 1 and 2.
//!
//! A limit of any ancestor binds too, so the walk goes from the process's own group up to the root
//! of the mount and keeps the tightest. The rules are from cgroups(7) and the kernel's
//! `admin-guide/cgroup-v1` and `cgroup-v2.rst`.

use std::path::{Component, Path, PathBuf};

use serde::Serialize;

#[cfg(target_os = "linux")]
use super::proc;
use super::proc::{Mount, ProcRoot};

/// Version 1 writes "no limit" as the largest page-aligned signed number; anything near is none.
const UNLIMITED: u64 = 1 << 62;

/// A limit of a control group, and how much of it is used. Units are those of the file: bytes
/// for memory, tasks for pids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupLimit {
    /// The file that holds the limit, as seen on the host.
    pub file: PathBuf,
    /// The limit.
    pub limit: u64,
    /// Present use, without page cache that the kernel would give back at once.
    pub used: u64,
}

impl GroupLimit {
    /// The rest.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// The tightest limits over this process's control group and all its ancestors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Groups {
    /// Memory, in bytes.
    pub memory: Option<GroupLimit>,
    /// Tasks.
    pub pids: Option<GroupLimit>,
}

/// A folder of one hierarchy to start from, and the mount point to stop at.
struct Walk {
    start: PathBuf,
    stop: PathBuf,
    version: u8,
}

impl Groups {
    /// Reads the limits. A host without control groups has none.
    pub(crate) fn read(root: &ProcRoot, mounts: &[Mount]) -> Self {
        let own = root.optional("/proc/self/cgroup").unwrap_or_default();
        let tightest = |controller, find: fn(&ProcRoot, &Walk, &Path) -> Vec<GroupLimit>| {
            walks(&own, mounts, controller)
                .iter()
                .flat_map(|walk| ancestors(walk).flat_map(|folder| find(root, walk, folder)))
                .min_by_key(GroupLimit::room)
        };
        Self {
            memory: tightest("memory", memory),
            pids: tightest("pids", pids),
        }
    }
}

/// This process's group of a hierarchy that may account memory.
#[cfg(target_os = "linux")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryGroup {
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// The mount point of its hierarchy.
    pub(crate) mount: PathBuf,
    /// Version of control groups, 1 or 2.
    pub(crate) version: u8,
}

#[cfg(target_os = "linux")]
impl MemoryGroup {
    /// All such groups of this process.
    ///
    /// # Errors
    /// When this process may not read its own mounts.
    pub(crate) fn own(root: &ProcRoot) -> Result<Vec<Self>, proc::Error> {
        let mounts = proc::mounts(&root.text("/proc/self/mountinfo")?);
        let own = root.text("/proc/self/cgroup")?;
        let walks = walks(&own, &mounts, "memory").into_iter();
        Ok(walks
            .map(|walk| Self {
                folder: walk.start,
                mount: walk.stop,
                version: walk.version,
            })
            .collect())
    }
}

/// Kills for want of memory, as `memory.events` (version 2) or `memory.oom_control` (version 1)
/// counts them, or /proc/vmstat for the host.
#[cfg(target_os = "linux")]
pub(crate) fn oom_kills(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Where to look for a controller: its own version 1 mount, and the version 2 mount.
fn walks(own: &str, mounts: &[Mount], controller: &str) -> Vec<Walk> {
    own.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (id, names, group) = (parts.next()?, parts.next()?, parts.next()?);
            let has = |list: &str| list.split(',').any(|name| name == controller);
            let unified = id == "0" && names.is_empty();
            let mount = mounts.iter().rfind(|mount| match mount.kind.as_str() {
                "cgroup2" => unified,
                "cgroup" => has(names) && has(&mount.super_options),
                _ => false,
            })?;
            Some(Walk {
                start: below(mount, Path::new(group)),
                stop: mount.point.clone(),
                version: if unified { 2 } else { 1 },
            })
        })
        .collect()
}

/// The folder of `group` under its mount. A container may see only a part of the hierarchy: then
/// the mount's root is a prefix of the group, or the group is above it and the mount stands in.
fn below(mount: &Mount, group: &Path) -> PathBuf {
    let outside = group.components().any(|part| part == Component::ParentDir);
    match group.strip_prefix(&mount.root) {
        Ok(rest) if !outside => mount.point.join(rest),
        _ => mount.point.clone(),
    }
}

fn ancestors(walk: &Walk) -> impl Iterator<Item = &Path> {
    walk.start
        .ancestors()
        .take_while(|folder| folder.starts_with(&walk.stop))
}

fn pids(root: &ProcRoot, _: &Walk, folder: &Path) -> Vec<GroupLimit> {
    let used = number(root, &folder.join("pids.current"));
    limits(root, folder, &["pids.max"], used)
}

fn memory(root: &ProcRoot, walk: &Walk, folder: &Path) -> Vec<GroupLimit> {
    // Above memory.high guests are throttled until they seem hung, so it binds like memory.max.
    let (files, usage, cache): (&[&str], _, _) = match walk.version {
        2 => (
            &["memory.max", "memory.high"],
            "memory.current",
            "inactive_file",
        ),
        _ => (
            &["memory.limit_in_bytes"],
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    };
    // Page cache counts against the group, but the inactive part is dropped before anything fails.
    let reclaimable = root
        .optional(folder.join("memory.stat"))
        .and_then(|stat| {
            let value = stat
                .lines()
                .find_map(|line| line.strip_prefix(cache)?.strip_prefix(' '))?;
            value.trim().parse::<u64>().ok()
        })
        .unwrap_or(0);
    let used = number(root, &folder.join(usage)).map(|used| used.saturating_sub(reclaimable));
    limits(root, folder, files, used)
}

fn limits(root: &ProcRoot, folder: &Path, files: &[&str], used: Option<u64>) -> Vec<GroupLimit> {
    files
        .iter()
        .filter_map(|file| {
            let file = folder.join(file);
            let limit = number(root, &file).filter(|limit| *limit < UNLIMITED)?;
            Some(GroupLimit {
                file,
                limit,
                used: used.unwrap_or(0),
            })
        })
        .collect()
}

/// A number in a file; `max` and a missing file are none.
fn number(root: &ProcRoot, path: &Path) -> Option<u64> {
    root.optional(path)?.parse().ok()
}
