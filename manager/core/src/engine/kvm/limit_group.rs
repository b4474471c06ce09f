//! Limit group: a guest's own control group, by which the kernel enforces the guest's private limit.
//!
//! The guest's process makes the group and enters it before the guest's first instruction, because
//! memory that a process had before stays charged to the group where it was. `ID.group` in the run
//! folder is a symbolic link to the group. It is made first and removed last, so that a kill leaves
//! no group that nobody finds.
//!
//! The group lies below the manager's own one; in version 2 beside it, since there a group with
//! processes has no groups with limits below. A manager in the root of version 2's groups (a host
//! without systemd) makes a group `brood` there for them: that root's folder can be written only
//! with a capability, which a guest's process does not have.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::unistd::{AccessFlags, access};

use crate::{
    engine::Error,
    guest_id::GuestId,
    host::{
        cgroup::{MemoryGroup, oom_kills},
        proc::ProcRoot,
    },
    units::Bytes,
};

/// How often, and how long apart, the removal of a group is tried. The kernel may count a process
/// to its group for a moment after its end.
const REMOVALS: u32 = 50;
const REMOVAL_INTERVAL: Duration = Duration::from_millis(2);

/// The group that guests' groups are made in.
#[derive(Debug)]
pub(crate) struct ParentGroup {
    dir: PathBuf,
    version: u8,
    /// Whether it is one of brood's own, in the root of all groups.
    is_own: bool,
}

/// Name of that group.
const OWN: &str = "brood";

impl ParentGroup {
    /// Finds it, and has the kernel account memory for the groups below it.
    ///
    /// # Errors
    /// When this process has no control group for memory that it may make others in.
    pub(crate) fn prepare(root: &ProcRoot) -> Result<Self, Error> {
        let parent = Self::find(root)?;
        let refused = |why: io::Error| {
            let dir = parent.dir.display();
            Error::LimitNotEnforceable(format!("no control group can be made in {dir}: {why}"))
        };
        if parent.is_own {
            match fs::create_dir(&parent.dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(refused(e)),
                _ => {}
            }
            let above = parent.dir.parent().unwrap_or(&parent.dir);
            account_below(above).map_err(refused)?;
        }
        access(&parent.dir, AccessFlags::W_OK).map_err(|e| refused(e.into()))?;
        if parent.version == 2 {
            account_below(&parent.dir).map_err(refused)?;
        }
        Ok(parent)
    }

    fn find(root: &ProcRoot) -> Result<Self, Error> {
        let groups = MemoryGroup::own(root).unwrap_or_default();
        let found = groups.into_iter().find_map(|group| match group.version {
            2 => {
                let is_own = group.folder == group.mount;
                let above = match is_own {
                    true => group.folder,
                    false => group.folder.parent()?.to_owned(),
                };
                let above = root.path(above);
                let controllers = fs::read_to_string(above.join("cgroup.controllers")).ok()?;
                let has_memory = controllers.split_whitespace().any(|name| name == "memory");
                let dir = if is_own { above.join(OWN) } else { above };
                has_memory.then_some(Self {
                    dir,
                    version: 2,
                    is_own,
                })
            }
            version => {
                let dir = root.path(group.folder);
                let is_there = dir.join("memory.limit_in_bytes").exists();
                is_there.then_some(Self {
                    dir,
                    version,
                    is_own: false,
                })
            }
        });
        found.ok_or_else(|| {
            Error::LimitNotEnforceable("this process has no control group for memory".to_owned())
        })
    }

    fn of(&self, id: &GuestId) -> PathBuf {
        self.dir.join(group_name(id))
    }
}

/// Has the kernel account memory for the groups below one.
fn account_below(group: &Path) -> io::Result<()> {
    let control = group.join("cgroup.subtree_control");
    let on = fs::read_to_string(&control)?;
    if on.split_whitespace().any(|name| name == "memory") {
        return Ok(());
    }
    fs::write(&control, "+memory")
        .map_err(|e| io::Error::new(e.kind(), format!("cannot write {}: {e}", control.display())))
}

/// Where the control groups are mounted that guests' groups could lie in.
pub(super) fn mounts() -> Vec<PathBuf> {
    let groups = MemoryGroup::own(&ProcRoot::default()).unwrap_or_default();
    groups.into_iter().map(|group| group.mount).collect()
}

fn group_name(id: &GuestId) -> String {
    format!("brood-{id}")
}

fn link_name(id: &GuestId) -> String {
    format!("{id}.group")
}

/// Makes the group of a guest and moves this process into it. The current folder is the run folder.
#[inline(never)]
pub(crate) fn enter(id: &GuestId, limit: Bytes) -> Result<(), String> {
    let parent = ParentGroup::find(&ProcRoot::default()).map_err(|e| e.to_string())?;
    let group = parent.of(id);
    let failed = |what: &str, e: io::Error| format!("cannot {what} {}: {e}", group.display());
    symlink(&group, link_name(id)).map_err(|e| failed("note the control group", e))?;
    fs::create_dir(&group).map_err(|e| failed("make the control group", e))?;
    limit_memory(&group, parent.version, limit).map_err(|e| failed("limit memory of", e))?;
    fs::write(group.join("cgroup.procs"), "0").map_err(|e| failed("enter the control group", e))
}

/// Sets the limit of a group. Its memory is not swapped out instead, where the kernel counts that.
fn limit_memory(group: &Path, version: u8, limit: Bytes) -> io::Result<()> {
    let write = |file: &str, value: u64| fs::write(group.join(file), value.to_string());
    let (memory, swap) = match version {
        2 => (("memory.max", limit.0), ("memory.swap.max", 0)),
        // Of memory and swap together.
        _ => (
            ("memory.limit_in_bytes", limit.0),
            ("memory.memsw.limit_in_bytes", limit.0),
        ),
    };
    write(memory.0, memory.1)?;
    if group.join(swap.0).exists() {
        write(swap.0, swap.1)?;
    }
    Ok(())
}

/// The group that a guest in `run_dir` was given, if it was.
fn group_of(run_dir: &Path, id: &GuestId) -> io::Result<Option<PathBuf>> {
    match fs::read_link(run_dir.join(link_name(id))) {
        // A guest's process can write in the run folder: only a group of this name is one.
        Ok(group)
            if group
                .file_name()
                .is_some_and(|name| *name == *group_name(id)) =>
        {
            Ok(Some(group))
        }
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The limit that a guest reached, when the kernel killed its process for that.
pub(crate) fn exceeded(run_dir: &Path, id: &GuestId) -> Option<Bytes> {
    let group = group_of(run_dir, id).ok()??;
    let read = |file: &str| fs::read_to_string(group.join(file)).ok();
    let events = read("memory.events").or_else(|| read("memory.oom_control"))?;
    let limit = read("memory.max").or_else(|| read("memory.limit_in_bytes"))?;
    (oom_kills(&events)? > 0).then_some(Bytes(limit.trim().parse().ok()?))
}

/// The guest in whose group a process is, by the text of its /proc/PID/cgroup.
pub(crate) fn guest_of(groups: &str) -> Option<GuestId> {
    let mut names = groups.lines().filter_map(|line| line.rsplit('/').next());
    names.find_map(|name| name.strip_prefix("brood-")?.parse().ok())
}

/// Removes the group of a guest whose run folder is gone, if it lies where this process would make
/// it.
pub(crate) fn remove_stray(id: &GuestId) -> io::Result<()> {
    match ParentGroup::find(&ProcRoot::default()) {
        Ok(parent) => remove_dir(&parent.of(id)),
        Err(_) => Ok(()),
    }
}

fn remove_dir(group: &Path) -> io::Result<()> {
    for _ in 1..REMOVALS {
        match fs::remove_dir(group) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => thread::sleep(REMOVAL_INTERVAL),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => return removed,
        }
    }
    fs::remove_dir(group)
}

/// Removes a guest's group. Its process has ended.
pub(crate) fn remove(run_dir: &Path, id: &GuestId) -> io::Result<()> {
    let Some(group) = group_of(run_dir, id)? else {
        return Ok(());
    };
    remove_dir(&group)?;
    match fs::remove_file(run_dir.join(link_name(id))) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manager in the root of all groups, whose folder only a capability may write.
    #[test]
    fn in_the_root_of_all_groups_brood_makes_one_of_its_own() {
        let host = tempfile::tempdir().unwrap();
        let mount = host.path().join("sys/fs/cgroup");
        fs::create_dir_all(&mount).unwrap();
        fs::create_dir_all(host.path().join("proc/self")).unwrap();
        let file = |path: &str, text: &str| fs::write(host.path().join(path), text).unwrap();
        file("proc/self/cgroup", "0::/\n");
        file(
            "proc/self/mountinfo",
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
        );
        file("sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
        file("sys/fs/cgroup/cgroup.subtree_control", "\n");
        // The kernel makes this file with the group.
        fs::create_dir(mount.join(OWN)).unwrap();
        file("sys/fs/cgroup/brood/cgroup.subtree_control", "\n");
        let parent = ParentGroup::prepare(&ProcRoot::at(host.path())).unwrap();
        assert_eq!(parent.dir, mount.join("brood"));
        for above in ["", "brood/"] {
            let control = mount.join(format!("{above}cgroup.subtree_control"));
            assert_eq!(fs::read_to_string(control).unwrap(), "+memory");
        }
        let id = GuestId([1; 8]);
        assert_eq!(parent.of(&id), mount.join("brood").join(group_name(&id)));
    }

    /// A host with version 2 control groups, whose manager is in `/brood.service/daemon`.
    fn unified(controllers: &str, subtree: &str) -> (tempfile::TempDir, ProcRoot) {
        let host = tempfile::tempdir().unwrap();
        let service = host.path().join("sys/fs/cgroup/brood.service");
        fs::create_dir_all(service.join("daemon")).unwrap();
        fs::create_dir_all(host.path().join("proc/self")).unwrap();
        let file = |path: &str, text: &str| fs::write(host.path().join(path), text).unwrap();
        file("proc/self/cgroup", "0::/brood.service/daemon\n");
        file(
            "proc/self/mountinfo",
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        let service = "sys/fs/cgroup/brood.service";
        file(&format!("{service}/cgroup.controllers"), controllers);
        file(&format!("{service}/cgroup.subtree_control"), subtree);
        let root = ProcRoot::at(host.path());
        (host, root)
    }

    #[test]
    fn version_2_groups_lie_beside_the_managers_own() {
        let (host, root) = unified("cpu memory pids\n", "pids\n");
        let parent = ParentGroup::prepare(&root).unwrap();
        let service = host.path().join("sys/fs/cgroup/brood.service");
        assert_eq!((parent.dir.as_path(), parent.version), (&*service, 2));
        let control = fs::read_to_string(service.join("cgroup.subtree_control")).unwrap();
        assert_eq!(control, "+memory");

        let (host, root) = unified("memory\n", "memory pids\n");
        ParentGroup::prepare(&root).unwrap();
        let control = host
            .path()
            .join("sys/fs/cgroup/brood.service/cgroup.subtree_control");
        assert_eq!(fs::read_to_string(control).unwrap(), "memory pids\n");
    }

    #[test]
    fn a_host_without_the_controller_is_refused() {
        let (_host, root) = unified("cpu pids\n", "\n");
        let refused = ParentGroup::prepare(&root).unwrap_err();
        assert!(
            matches!(refused, Error::LimitNotEnforceable(_)),
            "{refused}"
        );
        assert!(refused.hint().unwrap().contains("--enforce-private-limit"));
        let bare = tempfile::tempdir().unwrap();
        assert!(ParentGroup::prepare(&ProcRoot::at(bare.path())).is_err());
    }

    #[test]
    fn the_kernels_kill_is_told_and_only_the_guests_own_group_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (id, other) = (GuestId([1; 8]), GuestId([2; 8]));
        let group = dir.path().join(group_name(&id));
        fs::create_dir(&group).unwrap();
        symlink(&group, dir.path().join(link_name(&id))).unwrap();
        fs::write(group.join("memory.events"), "oom 1\noom_kill 0\n").unwrap();
        fs::write(group.join("memory.max"), "4194304\n").unwrap();
        assert_eq!(exceeded(dir.path(), &id), None);
        fs::write(group.join("memory.events"), "oom 1\noom_kill 1\n").unwrap();
        assert_eq!(exceeded(dir.path(), &id), Some(Bytes::mib(4)));

        // A link to the group of another guest is not followed.
        symlink(&group, dir.path().join(link_name(&other))).unwrap();
        assert_eq!(exceeded(dir.path(), &other), None);
        for file in ["memory.events", "memory.max"] {
            fs::remove_file(group.join(file)).unwrap();
        }
        remove(dir.path(), &other).unwrap();
        assert!(group.exists());
        remove(dir.path(), &id).unwrap();
        assert!(!group.exists() && !dir.path().join(link_name(&id)).exists());
        remove(dir.path(), &id).unwrap();
    }
}
