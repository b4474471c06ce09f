//! Tests of Linux's facts, on fake `/proc` and `/sys` trees and on this host.

use std::{fs, path::PathBuf};

use super::{
    HostSource,
    cgroup::GroupLimit,
    facts::{HostFacts, Paths, System},
    linux,
    proc::ProcRoot,
};
use crate::units::Bytes;

/// A tree below a temporary folder, with an ordinary host's files to start from.
struct Tree(tempfile::TempDir);

impl Tree {
    fn ordinary() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (path, text) in [
            ("proc/sys/kernel/osrelease", "6.12.9\n"),
            (
                "proc/cpuinfo",
                "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: Made up\n\nprocessor\t: 1\n",
            ),
            (
                "proc/meminfo",
                "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\nCommitLimit: 4194304 kB\nCommitted_AS: 1024 kB\n",
            ),
            ("proc/sys/vm/overcommit_memory", "0\n"),
            ("proc/sys/vm/max_map_count", "65530\n"),
            ("proc/sys/kernel/pid_max", "32768\n"),
            ("proc/sys/kernel/threads-max", "60000\n"),
            ("proc/loadavg", "0.11 0.05 0.01 1/123 4567\n"),
            ("proc/sys/fs/file-nr", "414\t0\t2466165\n"),
            (
                "proc/self/limits",
                "Limit   Soft Limit   Hard Limit   Units\nMax processes   500   unlimited   processes\nMax open files   1024   524288   files\n",
            ),
            (
                "proc/self/status",
                "Name:\tbrood\nUid:\t1000\t1000\t1000\t1000\nThreads:\t1\nCapEff:\t0000000000000000\n",
            ),
            (
                "proc/self/mountinfo",
                "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n",
            ),
            (
                "proc/12/status",
                "Uid:\t1000\t1000\t1000\t1000\nThreads:\t7\n",
            ),
            ("proc/13/status", "Uid:\t0\t0\t0\t0\nThreads:\t90\n"),
        ] {
            tree.write(path, text);
        }
        tree
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn paths(&self) -> Paths {
        let state = self.0.path().join("not/yet/there");
        Paths {
            root: ProcRoot::at(self.0.path()),
            state,
            checkpoint: None,
        }
    }

    fn facts(&self) -> HostFacts {
        linux::read(&self.paths()).unwrap()
    }
}

#[test]
fn an_ordinary_tree_is_read() {
    let mut facts = Tree::ordinary().facts();
    assert_eq!((facts.kernel.as_str(), facts.cpu.cores), ("6.12.9", 2));
    assert_eq!(facts.memory.available, Bytes::gib(4));
    assert_eq!(
        (facts.linux().pids.tasks, facts.linux().pids.nproc_limit),
        (123, Some(500))
    );
    assert!(facts.linux().pids.nproc_binds);
    assert_eq!(
        facts.linux().pids.user_tasks,
        7,
        "root's tasks do not count"
    );
    assert_eq!((facts.files.open, facts.files.hard), (414, Some(524_288)));
    assert!(!facts.linux().kvm.present && facts.linux().kvm.open_errno.is_some());
    assert_eq!(facts.linux().kvm.pids_per_guest(), 2);
    assert!(facts.state_folder.writable && !facts.state_folder.exists);
    assert_eq!(facts.state_folder.filesystem, "ext4");
    assert!(serde_json::to_value(&facts).unwrap()["pids"]["pid_max"] == 32768);
}

#[test]
fn a_privileged_user_is_exempt_from_nproc() {
    for status in [
        "Uid:\t0\t0\t0\t0\nCapEff:\t0000000000000000\n",
        "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000001000000\n",
    ] {
        let tree = Tree::ordinary();
        tree.write("proc/self/status", status);
        assert!(!tree.facts().linux().pids.nproc_binds, "{status}");
    }
}

#[test]
fn a_missing_or_odd_file_is_named() {
    let tree = Tree::ordinary();
    tree.write("proc/loadavg", "odd");
    let error = linux::read(&tree.paths()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("/proc/loadavg does not say how many tasks exist")
    );
    fs::remove_file(tree.0.path().join("proc/meminfo")).unwrap();
    let error = linux::read(&tree.paths()).unwrap_err();
    assert!(
        error.to_string().contains("/proc/meminfo: No such file"),
        "{error}"
    );
    assert!(error.hint().contains("/proc"));
}

#[test]
fn an_ext4_without_a_journal_is_known_by_its_device() {
    let tree = Tree::ordinary();
    let without = |tree: &Tree| {
        let paths = tree.paths();
        let run = linux::RunFolder::read(&paths.root, &paths.state);
        run.unwrap().without_journal
    };
    assert!(!without(&tree), "its device is not known");
    fs::create_dir_all(tree.0.path().join("sys/dev/block")).unwrap();
    let device = tree.0.path().join("sys/dev/block/254:0");
    std::os::unix::fs::symlink("../../devices/virtio1/block/vda", device).unwrap();
    tree.write("proc/fs/jbd2/vda1-8/info", "another device\n");
    assert!(without(&tree));
    tree.write("proc/fs/jbd2/vda-8/info", "");
    assert!(!without(&tree));
    fs::remove_dir_all(tree.0.path().join("proc/fs/jbd2")).unwrap();
    let mounts = "27 1 254:0 / / rw - xfs /dev/vda rw\n";
    tree.write("proc/self/mountinfo", mounts);
    assert!(!without(&tree));
}

#[test]
fn the_tightest_group_binds_in_version_2() {
    let tree = Tree::ordinary();
    tree.write("proc/self/mountinfo", "27 1 254:0 / / rw - ext4 /dev/vda rw\n31 27 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    tree.write("proc/self/cgroup", "0::/outer/inner\n");
    tree.write("sys/fs/cgroup/outer/pids.max", "300\n");
    tree.write("sys/fs/cgroup/outer/pids.current", "290\n");
    tree.write("sys/fs/cgroup/outer/inner/pids.max", "200\n");
    tree.write("sys/fs/cgroup/outer/inner/pids.current", "20\n");
    tree.write("sys/fs/cgroup/outer/inner/memory.max", "max\n");
    tree.write("sys/fs/cgroup/outer/inner/memory.high", "1000000\n");
    tree.write("sys/fs/cgroup/outer/inner/memory.current", "700000\n");
    tree.write(
        "sys/fs/cgroup/outer/inner/memory.stat",
        "anon 1\ninactive_file 500000\n",
    );
    let groups = tree.facts().linux().groups.clone();
    let pids = groups.pids.unwrap();
    assert_eq!(
        (pids.file, pids.limit, pids.used),
        (PathBuf::from("/sys/fs/cgroup/outer/pids.max"), 300, 290)
    );
    let memory = groups.memory.unwrap();
    assert!(memory.file.ends_with("inner/memory.high"));
    assert_eq!(
        memory.room(),
        800_000,
        "inactive page cache is given back before guests die"
    );
}

#[test]
fn version_1_controllers_have_their_own_mounts() {
    let tree = Tree::ordinary();
    // As in a container: the mount shows only the container's part of the hierarchy.
    tree.write(
        "proc/self/mountinfo",
        "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
         35 31 0:32 /box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
         39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
         41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    );
    tree.write(
        "proc/self/cgroup",
        "8:pids:/\n4:memory:/box/me\n0::/../elsewhere\n",
    );
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000000\n");
    tree.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n");
    tree.write(
        "sys/fs/cgroup/memory/me/memory.limit_in_bytes",
        "9223372036854771712\n",
    );
    tree.write("sys/fs/cgroup/memory/me/memory.usage_in_bytes", "1\n");
    let groups = tree.facts().linux().groups.clone();
    assert_eq!(groups.pids, None, "the root has no limit");
    let file = PathBuf::from("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    assert_eq!(
        groups.memory,
        Some(GroupLimit {
            file,
            limit: 5_000_000,
            used: 1_000_000
        })
    );
}

#[test]
fn this_host_is_read() {
    let state = std::env::temp_dir();
    let facts = HostSource::default()
        .facts(state.clone(), Some(state))
        .unwrap();
    assert!(facts.memory.total >= facts.memory.available && facts.memory.available.0 > 0);
    assert!(facts.state_folder.exists && facts.checkpoint_folder.is_some());
    assert_ne!(facts.state_folder.filesystem, "unknown");
    match facts.system {
        System::Linux(linux) => {
            assert!(linux.pids.tasks > 0 && linux.pids.pid_max > linux.pids.tasks);
            let kvm = linux.kvm;
            assert_eq!(kvm.open_errno.is_none(), kvm.capabilities.is_some());
        }
        System::Freebsd(freebsd) => {
            let processes = freebsd.processes;
            assert!(processes.existing > 0 && processes.max > processes.existing);
        }
    }
}
