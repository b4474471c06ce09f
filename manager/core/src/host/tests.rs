//! Tests of doctor and plan on example hosts.

use std::fs;

use super::{
    cgroup::GroupLimit,
    doctor::{Check, DEFAULT_GUESTS, Status, can_mass_restore, doctor},
    examples::{bhyve, folder, freebsd, healthy},
    facts::{HostFacts, System},
    folder::Folder,
    freebsd::{BhyveTools, Holes, Vmm},
    plan::{CostModel, plan},
};
use crate::host::{doctor_text, plan_text};
use crate::{checkpoint::manifest::EngineKind, units::Bytes};

fn status(checks: &[Check], name: &str) -> Status {
    checks
        .iter()
        .find(|check| check.name == name)
        .expect(name)
        .status
}

#[test]
fn doctor_on_a_healthy_host() {
    let mut host = healthy();
    host.checkpoint_folder = Some(folder("/srv/checkpoints", "xfs"));
    let checks = doctor(&host, DEFAULT_GUESTS);
    assert!(can_mass_restore(&checks));
    insta::assert_snapshot!(doctor_text::render(&checks, false, None));
    let json = serde_json::to_value(&checks[0]).unwrap();
    assert_eq!(
        (&json["status"], &json["name"]),
        (&"ok".into(), &"kernel".into())
    );
}

#[test]
fn doctor_without_kvm() {
    let mut host = healthy();
    host.linux().kvm.present = false;
    host.linux().kvm.open_errno = Some(2);
    host.linux().kvm.capabilities = None;
    host.linux().kvm.modules.clear();
    let checks = doctor(&host, DEFAULT_GUESTS);
    assert!(!can_mass_restore(&checks));
    insta::assert_snapshot!(doctor_text::render(&checks, false, None));

    host.linux().kvm.present = true;
    host.linux().kvm.open_errno = Some(13);
    let text = doctor_text::render(&doctor(&host, DEFAULT_GUESTS), true, None);
    assert!(text.contains("usermod -aG kvm \"$USER\""), "{text}");
    assert!(text.contains("\u{1b}[31m✗\u{1b}[0m"), "marks are coloured");
}

#[test]
fn folders_names_are_written_out_beside_coloured_marks() {
    let hostile = "/a\u{1b}]0;x\u{7}\u{9b}31m\u{202e}\nz";
    let mut host = healthy();
    host.state_folder = folder(hostile, "ext4");
    host.state_folder.open_to_others = true;
    let mut checkpoints = folder(hostile, hostile);
    checkpoints.exists = false;
    host.checkpoint_folder = Some(checkpoints);
    for width in [None, Some(80)] {
        let text = doctor_text::render(&doctor(&host, 10), true, width);
        let plain = [
            "\u{1b}[2m",
            "\u{1b}[31m",
            "\u{1b}[32m",
            "\u{1b}[33m",
            "\u{1b}[0m",
        ]
        .iter()
        .fold(text, |text, colour| text.replace(colour, ""));
        let acts = |c: char| crate::escaped::is_unprintable(c) && c != '\n';
        assert!(!plain.contains(acts), "{plain:?}");
        assert!(plain.contains(r"\u{202e}\u{a}z"), "{plain}");
    }
}

#[test]
fn doctor_on_a_host_with_tiny_limits() {
    let mut host = healthy();
    host.memory.available = Bytes::mib(600);
    host.memory.overcommit_mode = 2;
    host.linux().pids.pid_max = 2048;
    host.linux().pids.nproc_limit = Some(100);
    host.linux().pids.nproc_binds = true;
    host.linux().groups.pids = Some(GroupLimit {
        file: "/sys/fs/cgroup/box/pids.max".into(),
        limit: 64,
        used: 9,
    });
    host.files.soft = Some(20);
    host.files.max = 4096;
    host.linux().max_map_count = 100;
    host.linux().kvm.capabilities.as_mut().unwrap().memory_slots = 32;
    host.linux().run.as_mut().unwrap().without_journal = true;
    host.state_folder = folder("/run/brood", "tmpfs");
    host.state_folder.writable = false;
    host.checkpoint_folder = Some(folder("/mnt/share", "nfs4"));
    let checks = doctor(&host, DEFAULT_GUESTS);
    assert!(!can_mass_restore(&checks));
    insta::assert_snapshot!(doctor_text::render(&checks, false, None));
    assert_eq!(
        status(&doctor(&host, 10), "kernel.pid_max"),
        Status::Ok,
        "fewer guests need less"
    );
}

#[test]
fn doctor_on_a_freebsd_host() {
    let mut host = freebsd();
    host.checkpoint_folder = Some(folder("/srv/checkpoints", "ufs"));
    let checks = doctor(&host, DEFAULT_GUESTS);
    assert!(can_mass_restore(&checks));
    insta::assert_snapshot!(doctor_text::render(&checks, false, None));
}

#[test]
fn doctor_on_a_freebsd_host_as_it_was_installed() {
    let mut host = freebsd();
    host.memory.available = Bytes::gib(2);
    host.memory.overcommit_mode = 1;
    host.files.soft = Some(32);
    host.files.max = 12_328;
    let vmm = &mut host.freebsd().vmm;
    vmm.loaded = false;
    vmm.control_errno = Some(2);
    vmm.control = None;
    vmm.vnode_installed = false;
    vmm.machines = 0;
    vmm.vnode_abi = None;
    vmm.vnode_segments = None;
    let processes = &mut host.freebsd().processes;
    processes.max = 1500;
    processes.user_limit = Some(1000);
    processes.user_limit_binds = true;
    processes.max_per_user = 1000;
    processes.of_user = 20;
    host.checkpoint_folder = Some(folder("/zroot/checkpoints", "zfs"));
    let checks = doctor(&host, DEFAULT_GUESTS);
    assert!(!can_mass_restore(&checks));
    insta::assert_snapshot!(doctor_text::render(&checks, false, None));
}

#[test]
fn doctor_tells_apart_what_is_wrong_with_vmm() {
    let text = |change: fn(&mut Vmm)| {
        let mut host = freebsd();
        change(&mut host.freebsd().vmm);
        let checks = doctor(&host, DEFAULT_GUESTS);
        assert!(!can_mass_restore(&checks));
        doctor_text::render(&checks, false, None)
    };
    let denied = text(|vmm| vmm.control_errno = Some(13));
    assert!(denied.contains("EACCES") && denied.contains("run brood as root"));
    let hidden = text(|vmm| vmm.control_errno = Some(2));
    assert!(hidden.contains("ENOENT") && hidden.contains("devfs"));
    let unloaded = text(|vmm| vmm.loaded = false);
    assert!(
        unloaded.contains("kldload vmm, and for each boot"),
        "{unloaded}"
    );
    let without = text(|vmm| {
        vmm.vnode_abi = None;
        vmm.vnode_installed = false;
    });
    assert!(without.contains("kldload vmm_vnode"), "{without}");
    let other = text(|vmm| vmm.vnode_abi = Some(2));
    assert!(other.contains("ABI 2") && other.contains("the same release"));
    let few = text(|vmm| vmm.max_machines = Some(64));
    assert!(few.contains("sysctl hw.vmm.maxvmms=1003"), "{few}");
    assert!(few.contains("as it is, 61 guests fit"), "{few}");
    let few = text(|vmm| vmm.user_machines = Some(64));
    assert!(few.contains("✗ RLIMIT_VMM"), "{few}");
    assert!(few.contains("to 1003 in login.conf(5)"), "{few}");
    let mut host = freebsd();
    host.freebsd().vmm.control_errno = Some(1);
    host.freebsd().jailed = true;
    let jailed = doctor_text::render(&doctor(&host, DEFAULT_GUESTS), false, None);
    assert!(jailed.contains("allow.vmm in jail.conf(5)"), "{jailed}");
}

/// FreeBSD 15.0 has neither `hw.vmm.maxvmms` nor `RLIMIT_VMM`: a limit that is not there is no
/// limit.
#[test]
fn a_host_without_a_limit_on_machines_is_ready() {
    let host = freebsd();
    let System::Freebsd(system) = &host.system else {
        unreachable!("it was made so")
    };
    assert_eq!(
        (system.vmm.max_machines, system.vmm.user_machines),
        (None, None)
    );
    let checks = doctor(&host, DEFAULT_GUESTS);
    assert!(can_mass_restore(&checks), "{checks:?}");
    assert_eq!(status(&checks, "vmm"), Status::Ok);
    let limits = checks
        .iter()
        .filter(|c| ["hw.vmm.maxvmms", "RLIMIT_VMM"].contains(&&*c.name));
    assert_eq!(limits.count(), 0);
}

/// From FreeBSD 15.1 on, members of the group `vmm` may open the device; machines that live on are
/// for root alone.
#[test]
fn a_member_of_the_group_is_told_to_be_root() {
    let mut host = freebsd();
    host.freebsd().processes.user_limit_binds = true;
    host.freebsd().vmm.control.as_mut().unwrap().mode = 0o660;
    let checks = doctor(&host, 10);
    assert_eq!(status(&checks, "/dev/vmmctl"), Status::Fail);
    let text = doctor_text::render(&checks, false, None);
    assert!(
        text.contains("run brood as root: the group may make only"),
        "{text}"
    );
    host.freebsd().processes.user_limit_binds = false;
    assert_eq!(status(&doctor(&host, 10), "/dev/vmmctl"), Status::Ok);
}

/// Guest memory is charged to no swap, so `vm.overcommit` keeps no guest out.
#[test]
fn overcommit_keeps_no_guest_out_on_freebsd() {
    let mut host = freebsd();
    let before = doctor(&host, DEFAULT_GUESTS);
    host.memory.overcommit_mode = 1;
    (host.memory.commit_limit, host.memory.committed) = (Bytes(0), Bytes(0));
    assert_eq!(doctor(&host, DEFAULT_GUESTS), before);
    assert!(before.iter().all(|check| check.name != "vm.overcommit"));
    let swap = before.iter().find(|check| check.name == "swap").unwrap();
    assert!(
        swap.found.ends_with("private pages reserve none"),
        "{swap:?}"
    );
}

/// What of guests is shared is counted on only where it will be.
#[test]
fn guests_that_share_nothing_cost_all_their_memory() {
    type Change = fn(&mut HostFacts);
    let cases: [(Change, &str); 4] = [
        (
            |host| host.freebsd().bhyve_maps_checkpoints = Some(false),
            "without the vmm-vnode patch",
        ),
        (
            |host| {
                let vmm = &mut host.freebsd().vmm;
                (vmm.vnode_abi, vmm.vnode_installed) = (None, false);
            },
            "vmm_vnode is not installed",
        ),
        (
            |host| host.freebsd().vmm.vnode_abi = Some(9),
            "vmm_vnode speaks ABI 9",
        ),
        (
            |host| host.checkpoint_folder = Some(folder("/net/ckp", "nfs")),
            "files on nfs cannot be guest memory",
        ),
    ];
    let (size, cost) = (Bytes::mib(16), CostModel::built_in(EngineKind::Bhyve));
    let shared = plan(&freebsd(), None, size, &cost);
    assert!(shared.sharing.shared);
    assert_eq!(shared.best.per_guest, cost.overhead + cost.pristine_private);
    for (change, why) in cases {
        let mut host = freebsd();
        change(&mut host);
        let plan = plan(&host, None, size, &cost);
        for case in [&plan.best, &plan.expected, &plan.worst] {
            assert_eq!(case.per_guest, cost.overhead + size, "{why}");
        }
        assert_eq!(plan.best.guests, plan.worst.guests, "{why}");
        assert!(plan.best.guests < shared.best.guests / 2, "{why}");
        let text = plan_text::render(&plan);
        assert!(
            text.contains(why) && text.contains("takes all its memory"),
            "{text}"
        );
        // 1,000 guests of the size that doctor assumes do not fit into 24 GiB then.
        assert_eq!(
            status(&doctor(&host, DEFAULT_GUESTS), "available memory"),
            Status::Fail
        );
    }
    // A module that bhyve will load itself is as good.
    let mut host = freebsd();
    host.freebsd().vmm.vnode_abi = None;
    assert!(host.sharing().shared);
    assert!(healthy().sharing().shared, "Linux maps every checkpoint");
}

/// A stock bhyve compiles ACPI tables in each restore; the patched one does not need the compiler.
#[test]
fn iasl_is_looked_for_where_bhyve_runs_it() {
    let with = |maps, there| {
        let mut host = freebsd();
        host.freebsd().bhyve_maps_checkpoints = Some(maps);
        host.freebsd().tools = Some(BhyveTools {
            builds_tables: there,
            ..bhyve()
        });
        let checks = doctor(&host, 10);
        let found = checks.iter().find(|check| check.name == "/usr/sbin/iasl");
        found.map(|check| check.status)
    };
    assert_eq!(with(true, false), None);
    assert_eq!(with(false, true), Some(Status::Ok));
    assert_eq!(with(false, false), Some(Status::Fail));
}

/// `zfs rollback` changes a checkpoint under its guests.
#[test]
fn checkpoints_in_a_dataset_with_other_things_are_warned_about() {
    let with = |path: &str, point: &str, filesystem: &str| {
        let mut host = freebsd();
        host.checkpoint_folder = Some(Folder {
            mount_point: Some(point.into()),
            ..folder(path, filesystem)
        });
        let checks = doctor(&host, 10);
        let found = checks
            .into_iter()
            .find(|check| check.name == "checkpoint dataset");
        found.map(|check| check.status)
    };
    assert_eq!(
        with("/tank/home/ckp", "/tank/home", "zfs"),
        Some(Status::Warn)
    );
    assert_eq!(with("/tank/ckp", "/tank/ckp", "zfs"), Some(Status::Ok));
    let snapshot = "/tank/home/.zfs/snapshot/monday/ckp";
    let at = "/tank/home/.zfs/snapshot/monday";
    assert_eq!(with(snapshot, at, "zfs"), Some(Status::Ok));
    assert_eq!(with("/ckp/here", "/ckp", "ufs"), None);
}

#[test]
fn holes_of_a_checkpoint_on_tmpfs_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = fs::File::create(dir.path().join("web.ckp")).unwrap();
    let full = dir.path().join("full.ckp");
    fs::write(&full, vec![1; 1 << 16]).unwrap();
    // Some file systems give a file its blocks when it is written out.
    fs::File::open(&full).unwrap().sync_all().unwrap();
    assert_eq!(Holes::in_folder(dir.path()), None);
    sparse.set_len(4 << 20).unwrap();
    let holes = Holes::in_folder(dir.path()).unwrap();
    assert_eq!(holes.file, dir.path().join("web.ckp"));
    assert_eq!(holes.size, Bytes::mib(4));
    let mut host = freebsd();
    host.checkpoint_folder = Some(folder("/ckp", "tmpfs"));
    host.freebsd().tools = Some(BhyveTools {
        holes: Some(holes),
        ..bhyve()
    });
    let checks = doctor(&host, 10);
    assert_eq!(status(&checks, "checkpoint holes"), Status::Warn);
    let text = doctor_text::render(&checks, false, None);
    assert!(
        text.contains("4 MiB of web.ckp") && text.contains("dd if="),
        "{text}"
    );
}

#[test]
fn doctor_wraps_at_the_terminals_width() {
    let mut host = freebsd();
    host.freebsd().vmm.vnode_installed = false;
    host.freebsd().vmm.vnode_abi = None;
    host.checkpoint_folder = Some(folder("/srv/checkpoints", "ufs"));
    let checks = doctor(&host, DEFAULT_GUESTS);
    let unwrapped = doctor_text::render(&checks, false, None);
    assert!(unwrapped.lines().any(|line| line.chars().count() > 100));
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for width in [72, 80, 100] {
        let text = doctor_text::render(&checks, false, Some(width));
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(width), "{width}: {text}");
        assert_eq!(words(&text), words(&unwrapped), "nothing is lost");
    }
}

/// A fact that nobody needs has no mark of approval.
#[test]
fn what_is_only_told_is_neither_good_nor_bad() {
    let mut host = freebsd();
    host.freebsd().racct = None;
    let text = doctor_text::render(&doctor(&host, 10), false, None);
    assert!(text.contains("· kern.racct.enable"), "{text}");
    assert!(text.contains("✓ vmm "), "{text}");
}

/// FreeBSD tells no options of a plain mount.
#[test]
fn a_filesystem_without_options_has_no_empty_parentheses() {
    let mut host = freebsd();
    host.checkpoint_folder = Some(Folder {
        options: Vec::new(),
        ..folder("/ckp", "tmpfs")
    });
    let checks = doctor(&host, 10);
    let check = checks
        .iter()
        .find(|c| c.name == "checkpoint filesystem")
        .unwrap();
    assert_eq!(check.found, "tmpfs, 100 GiB free");
}

#[test]
fn doctor_on_a_host_of_bhyve() {
    let mut host = freebsd();
    host.freebsd().tools = Some(bhyve());
    host.freebsd().racct = Some(true);
    host.checkpoint_folder = Some(folder("/zroot/checkpoints", "zfs"));
    let mut cached = bhyve();
    cached.primarycache = Some("metadata".to_owned());
    host.freebsd().tools = Some(cached);
    let checks = doctor(&host, DEFAULT_GUESTS);
    assert!(can_mass_restore(&checks));
    insta::assert_snapshot!(doctor_text::render(&checks, false, None));
    assert_eq!(status(&checks, "checkpoint filesystem"), Status::Ok);
    let vmm = serde_json::to_value(&host).unwrap();
    assert_eq!(vmm["tools"]["primarycache"], "metadata");
}

#[test]
fn doctor_on_a_host_whose_bhyve_is_the_stock_one() {
    let mut host = freebsd();
    let vmm = &mut host.freebsd().vmm;
    vmm.control_errno = Some(13);
    vmm.max_machines = Some(64);
    vmm.machines = 64;
    (vmm.vnode_abi, vmm.vnode_segments) = (None, None);
    let mut stock = bhyve();
    host.freebsd().bhyve_maps_checkpoints = Some(false);
    (stock.restores, stock.suspends) = (false, false);
    stock.commands[0].1 = false;
    for module in &mut stock.modules {
        module.1 = module.0 == "vmm";
    }
    stock.primarycache = Some("all".to_owned());
    host.freebsd().tools = Some(stock);
    host.freebsd().racct = None;
    host.checkpoint_folder = Some(folder("/zroot/checkpoints", "zfs"));
    let checks = doctor(&host, DEFAULT_GUESTS);
    assert!(!can_mass_restore(&checks));
    insta::assert_snapshot!(doctor_text::render(&checks, false, None));
}

#[test]
fn plans_say_how_many_fit_and_what_binds() {
    let cost = CostModel {
        overhead: Bytes::kib(400),
        pristine_private: Bytes::kib(112),
        expected_private: Bytes::mib(6),
        source: "measured on 1000 live guests".into(),
    };
    let now = plan(&healthy(), None, Bytes::mib(256), &cost);
    insta::assert_snapshot!("plan_now", plan_text::render(&now));
    let large = plan(
        &healthy(),
        Some(Bytes::gib(512)),
        Bytes::mib(256),
        &CostModel::built_in(EngineKind::Kvm),
    );
    insta::assert_snapshot!("plan_large", plan_text::render(&large));
    let mut small = healthy();
    small.linux().groups.memory = Some(GroupLimit {
        file: "/sys/fs/cgroup/box/memory.max".into(),
        limit: Bytes::mib(400).0,
        used: Bytes::mib(40).0,
    });
    let grouped = plan(&small, None, Bytes::mib(256), &cost);
    insta::assert_snapshot!("plan_in_a_group", plan_text::render(&grouped));
    assert_eq!(grouped.memory_limit.as_ref().unwrap().left, Bytes::mib(360));
    for plan in [now, large, grouped] {
        let counts = [plan.best.guests, plan.expected.guests, plan.worst.guests];
        assert!(
            counts.is_sorted_by(|more, fewer| more >= fewer),
            "{counts:?}"
        );
    }
}
