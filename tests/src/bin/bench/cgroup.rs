//! Control group for brood and all guests of a large run, with limits of its own: a mistake costs
//! that run and not the host.
//!
//! The benchmark makes it below its own group, if the host allows that; see cgroups(7). It reports
//! each limit that it cannot set.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

/// Moves itself into the groups, `$1` in number, and becomes the command after them.
const ENTER: &str = r#"
left=$1; shift
while [ "$left" -gt 0 ]; do
    echo $$ > "$1/cgroup.procs" || exit 1
    shift; left=$((left - 1))
done
exec "$@""#;

/// The folders of the group: one, or one for each controller in version 1.
#[derive(Debug)]
pub(crate) struct Group {
    folders: Vec<PathBuf>,
    /// What is limited, for people.
    pub(crate) limits: Vec<String>,
}

impl Group {
    /// Makes one with at most so many pids and bytes of memory, as far as it can be made.
    pub(crate) fn make(pids: u64, memory_bytes: u64) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut group = Self {
            folders: Vec::new(),
            limits: Vec::new(),
        };
        group.limit(parent(&own, &mounts, "pids"), "pids.max", pids);
        // Version 1 has another name for the same limit. A memory group that this process was put
        // into has its owner's limit, and stays the owner's.
        let memory = parent(&own, &mounts, "memory").filter(|parent| parent.is_root);
        let file = if memory.as_ref().is_some_and(|parent| parent.version == 1) {
            "memory.limit_in_bytes"
        } else {
            "memory.max"
        };
        group.limit(memory, file, memory_bytes);
        group
    }

    fn limit(&mut self, parent: Option<Parent>, file: &str, value: u64) {
        let Some(parent) = parent else { return };
        let folder = parent
            .folder
            .join(format!("brood-bench-{}", std::process::id()));
        let made = fs::create_dir(&folder).is_ok();
        if fs::write(folder.join(file), value.to_string()).is_ok() {
            self.limits.push(format!("{file} {value}"));
        } else if made {
            let _ = fs::remove_dir(&folder);
            return;
        }
        if made {
            self.folders.push(folder);
        }
    }

    /// The same command, run inside.
    pub(crate) fn around(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside
            .args(["-c", ENTER, "sh"])
            .arg(self.folders.len().to_string())
            .args(&self.folders);
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                inside.env(name, value);
            }
        }
        inside
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in &self.folders {
            // The last of the dead may still be leaving.
            for _ in 0..100 {
                if fs::remove_dir(folder).is_ok() || !folder.exists() {
                    break;
                }
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// A group that a new one can be made in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parent {
    folder: PathBuf,
    version: u8,
    /// Whether it is the root of its hierarchy, as far as this process sees.
    is_root: bool,
}

/// The group of this process that has `controller`, from the text of `/proc/self/cgroup` and of
/// `/proc/self/mountinfo`.
fn parent(own: &str, mounts: &str, controller: &str) -> Option<Parent> {
    own.lines().find_map(|line| {
        let (id, rest) = line.split_once(':')?;
        let (controllers, group) = rest.split_once(':')?;
        let version = if id == "0" && controllers.is_empty() {
            2
        } else {
            1
        };
        if version == 1 && !controllers.split(',').any(|name| name == controller) {
            return None;
        }
        let mount = mounts
            .lines()
            .find_map(|mount| mount_point(mount, version, controller))?;
        let folder = mount.join(group.trim_start_matches('/'));
        // Version 2 lists what may be limited below a group.
        let listed = |folder: &Path| {
            fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default()
        };
        if version == 2
            && !listed(&folder)
                .split_whitespace()
                .any(|name| name == controller)
        {
            return None;
        }
        Some(Parent {
            folder,
            version,
            is_root: group == "/",
        })
    })
}

/// The mount point in a line of mountinfo, if it is the hierarchy that is looked for.
fn mount_point(line: &str, version: u8, controller: &str) -> Option<PathBuf> {
    let (before, after) = line.split_once(" - ")?;
    let point = before.split(' ').nth(4)?;
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    let fits = match version {
        2 => kind == "cgroup2",
        _ => kind == "cgroup" && options.split(',').any(|name| name == controller),
    };
    fits.then(|| point.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 24 0:26 / /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids
31 24 0:27 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
";

    #[test]
    fn version_1_has_a_hierarchy_for_each_controller() {
        let own = "8:pids:/\n4:cpu,memory:/some/group\n0::/\n";
        let expected = |folder: &str, is_root| {
            Some(Parent {
                folder: folder.into(),
                version: 1,
                is_root,
            })
        };
        assert_eq!(
            parent(own, MOUNTS, "pids"),
            expected("/sys/fs/cgroup/pids/", true)
        );
        assert_eq!(
            parent(own, MOUNTS, "memory"),
            expected("/sys/fs/cgroup/memory/some/group", false)
        );
        assert_eq!(parent(own, MOUNTS, "io"), None);
        assert_eq!(parent("", "", "pids"), None);
    }

    #[test]
    fn version_2_says_what_may_be_limited() {
        let root = tempfile::tempdir().unwrap();
        let mounts = format!(
            "30 24 0:26 / {} rw - cgroup2 cgroup2 rw\n",
            root.path().display()
        );
        fs::create_dir(root.path().join("own")).unwrap();
        fs::write(root.path().join("own/cgroup.subtree_control"), "pids\n").unwrap();
        let found = parent("0::/own\n", &mounts, "pids").unwrap();
        assert_eq!(
            found,
            Parent {
                folder: root.path().join("own"),
                version: 2,
                is_root: false
            }
        );
        assert_eq!(parent("0::/own\n", &mounts, "memory"), None);
    }

    #[test]
    fn a_command_runs_inside_with_its_environment() {
        let folder = tempfile::tempdir().unwrap();
        let group = Group {
            folders: vec![folder.path().to_owned()],
            limits: vec![],
        };
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ $WORD"]).env("WORD", "said");
        let output = group.around(&command).output().unwrap().stdout;
        let pid = fs::read_to_string(folder.path().join("cgroup.procs")).unwrap();
        assert_eq!(
            String::from_utf8(output).unwrap(),
            format!("{} said\n", pid.trim())
        );
        std::mem::forget(group);
    }
}
