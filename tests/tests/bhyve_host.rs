//! Host of bhyve's guests, on a fake machine of stand-ins: what doctor finds, what admission
//! refuses, limits of guests, and a density run's own work. No bhyve runs here, and no figure of
//! these tests says anything about FreeBSD.

use std::fs;

use brood_core::checkpoint::{AgentProtocol, BhyveGuest, BundlePath, Readiness};
use brood_standin::Release;
use brood_tests::{Daemon, Lab, Running, array, number, text, until, whole};
use serde_json::Value;

/// A checkpoint of this name in the lab.
fn checkpoint(lab: &Lab, name: &str) -> String {
    let path = lab.bundle(name);
    lab.machine.checkpoint(&path);
    path.to_string()
}

/// The doctor's check of this name, whether or not the machine is ready.
fn check(lab: &Lab, name: &str) -> Value {
    let ran = lab.brood(&["doctor", "--json", "--guests", "10"]);
    assert!(matches!(ran.code(), Some(0 | 1)), "{}", ran.stderr);
    let told = ran.json();
    let mut checks = array(&told["checks"]).iter();
    let check = checks.find(|check| check["name"] == name);
    check.unwrap_or_else(|| panic!("{name}: {told}")).clone()
}

#[test]
fn doctor_says_what_bhyve_has_and_what_to_change() {
    let lab = Lab::new();
    let ready = lab.brood(&["doctor", "--guests", "100"]).ok();
    for told in [
        "15.0-RELEASE",
        "vmm",
        "/dev/vmmctl",
        "bhyve's commands",
        "bhyve -r",
        "bhyvectl --suspend",
        "nmdm",
        "kern.maxproc",
        "! vmm_vnode",
        "bhyve loads it for the first guest when it is root; now: kldload vmm_vnode",
        "1: guests can have limits (--rctl)",
    ] {
        assert!(ready.stdout.contains(told), "{told}: {}", ready.stdout);
    }
    for of_others in ["KVM", "maxvmms", "vm.overcommit"] {
        assert!(!ready.stdout.contains(of_others), "{}", ready.stdout);
    }
    let json = lab.json(&["doctor", "--guests", "100"]);
    assert_eq!(json["ok"], true);
    let facts = &json["facts"];
    // FreeBSD 15.0 counts no machines, and vmm is there all the same.
    assert_eq!(facts["vmm"]["max_machines"], Value::Null);
    assert_eq!(facts["vmm"]["loaded"], true);
    assert_eq!(facts["bhyve_maps_checkpoints"], true);
    assert_eq!(facts["processes"]["max"], 34_232);
    assert_eq!(facts["racct"], true);
    assert_eq!(facts["tools"]["restores"], true);

    // The first guest has bhyve load the module.
    let web = checkpoint(&lab, "web");
    let _ = lab.json(&["restore", &web, "-n", "1", "--prefix", "g"]);
    assert_eq!(
        check(&lab, "vmm_vnode")["found"],
        "loaded, ABI 1, 1 segments"
    );
    assert_eq!(check(&lab, "vmm")["found"], "loaded, 1 machines");
    lab.destroy_all();

    lab.machine.unload("nmdm");
    lab.machine.install(&[]);
    let vnode = check(&lab, "vmm_vnode");
    assert_eq!(
        (&vnode["status"], &vnode["found"]),
        (&"fail".into(), &"not installed".into())
    );
    assert!(text(&vnode["hint"]).contains("tools/freebsd/kernel build"));
    let nmdm = check(&lab, "nmdm");
    assert_eq!(nmdm["status"], "fail");
    assert!(text(&nmdm["hint"]).contains("kldload nmdm"));
    lab.machine.boot_with("kern.racct.enable", 0);
    assert_eq!(check(&lab, "kern.racct.enable")["status"], "ok");
    let _ = lab.brood(&["doctor"]).exits(1);
    // Without it guests are not begun, and the same command is named.
    let _ = lab
        .brood(&["restore", &web, "-n", "1"])
        .exits(1)
        .says(&["kldload nmdm", "brood doctor"]);
}

/// FreeBSD 15.0 counts no machines; 15.1 lets a user have four for each processor. On both, what
/// fits is restored, and doctor and the API say that the host is ready.
#[test]
fn hosts_with_and_without_a_limit_on_machines_run_guests() {
    for (release, most) in [(Release::Fifteen, None), (Release::FifteenOne, Some(8))] {
        let lab = Lab::new();
        lab.machine.boot_release(release);
        let web = checkpoint(&lab, "web");
        let told = lab.json(&["doctor", "--guests", "8"]);
        assert_eq!(told["ok"], true, "{told}");
        assert_eq!(
            told["facts"]["vmm"]["max_machines"].as_u64(),
            most,
            "{told}"
        );
        let _ = lab.json(&["restore", &web, "-n", "8", "--prefix", "g"]);
        let ninth = lab.brood(&["restore", &web, "-n", "1", "--prefix", "g"]);
        match most {
            None => drop(ninth.ok()),
            Some(_) => drop(ninth.exits(4).says(&["hw.vmm.maxvmms is 8 and 8 exist"])),
        }
        lab.destroy_all();
    }
    // Without vmm, neither tells of it.
    let lab = Lab::new();
    lab.machine.unload("vmm");
    let vmm = check(&lab, "vmm");
    assert_eq!(
        (&vmm["status"], &vmm["found"]),
        (&"fail".into(), &"not loaded".into())
    );
    assert!(text(&vmm["hint"]).contains("kldload vmm"));
}

/// A stock bhyve passes the variable that maps checkpoints over, and says nothing: its guests cost
/// all their memory, and plan, doctor and admission count so.
#[test]
fn guests_of_a_stock_bhyve_are_counted_with_all_their_memory() {
    let lab = Lab::new();
    let web = checkpoint(&lab, "web");
    let shared = lab.json(&["plan", &web]);
    assert_eq!(shared["sharing"]["shared"], true, "{shared}");
    lab.machine.use_stock_bhyve();
    let plan = lab.json(&["plan", &web]);
    assert_eq!(plan["sharing"]["shared"], false, "{plan}");
    let overhead = whole(&plan["cost"]["overhead"]);
    for case in ["best", "expected", "worst"] {
        assert_eq!(
            whole(&plan[case]["per_guest"]),
            overhead + (4 << 20),
            "{plan}"
        );
    }
    let told = lab.brood(&["plan", &web]).ok();
    assert!(
        told.stdout.contains("without the vmm-vnode patch"),
        "{}",
        told.stdout
    );
    let bhyve = check(&lab, "bhyve");
    assert_eq!(bhyve["status"], "fail", "{bhyve}");
    // Admission does not count on what will not be: a private limit of a page is of no use.
    let room = whole(&plan["worst"]["guests"]) + 1;
    let (guests, private_limit) = (room.to_string(), "--private-limit=4K");
    lab.brood(&["restore", &web, "-n", &guests, private_limit])
        .exits(4)
        .says(&["available memory leaves"]);
    let _ = lab.json(&["restore", &web, "-n", "1", "--prefix", "g", private_limit]);
    let shown = lab.json(&["show", "g-1"]);
    assert_eq!(whole(&shown["private_bytes"]), 4 << 20, "{shown}");
    assert_eq!(whole(&shown["shared_bytes"]), 0, "{shown}");
    let shown = lab.brood(&["show", "g-1"]).ok();
    assert!(shown.stdout.contains("shares nothing"), "{}", shown.stdout);
    lab.destroy_all();
}

#[test]
fn more_machines_than_a_user_may_have_are_refused_before_anything_starts() {
    let lab = Lab::new();
    lab.machine.boot_release(Release::FifteenOne);
    let web = checkpoint(&lab, "web");
    lab.machine.run("sysctl", &["hw.vmm.maxvmms=64"]);
    for n in 0..30 {
        lab.machine
            .run("bhyvectl", &[&format!("--vm=other{n}"), "--create"]);
    }
    let started = fs::read_to_string(lab.machine.root().join("commands")).unwrap();
    let bhyves = |log: &str| log.lines().filter(|line| line.contains(" bhyve ")).count();
    lab.brood(&["restore", &web, "-n", "40"]).exits(4).says(&[
        "cannot restore 40 guests: hw.vmm.maxvmms is 64 and 30 exist; raise it: \
         sysctl hw.vmm.maxvmms=70, and the same in /etc/sysctl.conf, or restore at most 34 guests",
    ]);
    let now = fs::read_to_string(lab.machine.root().join("commands")).unwrap();
    assert_eq!(bhyves(&now), bhyves(&started), "no guest was begun");
    assert_eq!(array(&lab.json(&["list"])).len(), 0);

    let plan = lab.json(&["plan", &web]);
    for case in ["best", "expected", "worst"] {
        assert_eq!(plan[case]["guests"], 34, "{plan}");
        assert_eq!(plan[case]["binds"], "hw.vmm.maxvmms", "{plan}");
    }
    let text = lab.brood(&["plan", &web]).ok();
    assert!(
        text.stdout.contains("hw.vmm.maxvmms (memory holds "),
        "{}",
        text.stdout
    );
    let machines = check(&lab, "hw.vmm.maxvmms");
    assert_eq!(
        (&machines["status"], &machines["found"]),
        (&"ok".into(), &"34 virtual machines left".into())
    );

    // What the hint says is enough.
    lab.machine.run("sysctl", &["hw.vmm.maxvmms=33"]);
    let _ = lab.brood(&["restore", &web, "-n", "4"]).exits(4);
    lab.machine.run("sysctl", &["hw.vmm.maxvmms=34"]);
    let report = lab.json(&["restore", &web, "-n", "4", "--prefix", "g"]);
    assert_eq!(report["restored"], 4);
    // brood's own count as well.
    lab.brood(&["restore", &web, "-n", "1"])
        .exits(4)
        .says(&["hw.vmm.maxvmms is 34 and 34 exist"]);
    let _ = lab.brood(&["destroy", "--all", "--force"]).ok();
    for n in 0..30 {
        lab.machine
            .run("bhyvectl", &[&format!("--vm=other{n}"), "--destroy"]);
    }
    assert_eq!(lab.machine.leftovers(), Vec::<String>::new());
}

/// Guests of a checkpoint whose file system was unmounted by force read zeros: every command that
/// lists them, and the daemon, ends them and says why. Other guests are left alone.
#[test]
fn guests_whose_checkpoint_is_gone_are_ended_with_the_reason() {
    let lab = Lab::new();
    let (web, other) = (lab.bundle("web"), checkpoint(&lab, "other"));
    lab.machine.checkpoint(&web);
    let name = web.to_string();
    let _ = lab.json(&["restore", &name, "-n", "2", "--prefix", "g"]);
    let _ = lab.json(&["restore", &other, "-n", "1", "--prefix", "o"]);
    let _ = lab.brood(&["pause", "g-2"]).ok();
    lab.machine.unmount_by_force(&web);
    let listed = lab.list();
    for guest in &listed {
        let (name, reason) = (text(&guest["name"]), &guest["reason"]);
        if name.starts_with("g-") {
            assert_eq!(guest["state"], "dead", "{guest}");
            assert!(text(reason).contains("was unmounted by force"), "{guest}");
        } else {
            assert_eq!(guest["state"], "running", "{guest}");
        }
    }
    assert_eq!((listed.len(), lab.machine.processes().len()), (3, 1));
    // The reason stays, and what is left of them goes as with any guest that ended.
    let shown = lab.brood(&["show", "g-1"]).ok();
    assert!(
        shown.stdout.contains("read as zeros; brood ended it"),
        "{}",
        shown.stdout
    );
    lab.destroy_all();

    // The daemon sees it by itself.
    let environment = lab.machine.environment();
    let environment: Vec<_> = environment
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let daemon = Daemon::with_environment(&lab.home, &environment);
    let _ = lab.json(&["restore", &name, "-n", "1", "--prefix", "d"]);
    lab.machine.unmount_by_force(&web);
    until("the daemon to end its guest", || {
        lab.machine.processes().is_empty().then_some(())
    });
    let listed = lab.list();
    assert!(
        text(&listed[0]["reason"]).contains("was unmounted by force"),
        "{listed:?}"
    );
    drop(daemon);
    lab.destroy_all();
}

#[test]
fn guests_have_the_limits_that_were_asked_for_until_they_end() {
    let lab = Lab::new();
    let web = checkpoint(&lab, "web");
    let rules = |pid: &Value| {
        let mut own = lab.machine.limits();
        own.retain(|rule| rule.starts_with(&format!("process:{pid}:")));
        own.sort_unstable();
        own
    };
    let report = lab.json(&[
        "restore",
        &web,
        "-n",
        "2",
        "--prefix",
        "g",
        "--rctl",
        "pcpu:deny=50",
        "--rctl",
        "writebps:throttle=10M,openfiles:deny=256",
    ]);
    for guest in array(&report["guests"]) {
        let pid = &guest["pid"];
        assert_eq!(
            rules(pid),
            [
                format!("process:{pid}:openfiles:deny=256"),
                format!("process:{pid}:pcpu:deny=50"),
                format!("process:{pid}:writebps:throttle=10485760"),
            ],
            "{report}"
        );
    }
    let _ = lab.brood(&["destroy", "g-1"]).ok();
    assert_eq!(lab.machine.limits().len(), 3, "they went with the guest");
    lab.destroy_all();

    // Those of the configuration count where no flag says otherwise.
    let config = lab.home.path().join("brood.toml");
    fs::write(&config, "[bhyve]\nrctl = \"nthr:deny=64\"\n").unwrap();
    let mut command = lab.command(&["restore", &web, "-n", "1", "--prefix", "g", "--json"]);
    command.env("BROOD_CONFIG", &config);
    let report = Running::start(command).wait().ok().json();
    let pid = &report["guests"][0]["pid"];
    assert_eq!(rules(pid), [format!("process:{pid}:nthr:deny=64")]);
    lab.destroy_all();

    let restore = |rule: &str| lab.brood(&["restore", &web, "-n", "1", "--rctl", rule]);
    let _ = restore("cputime:deny=5").exits(2).says(&["can be denied"]);
    let mut kvm = lab.command(&["restore", &web, "-n", "1", "--rctl", "pcpu:deny=5"]);
    kvm.env("BROOD_ENGINE", "kvm");
    let _ = Running::start(kvm)
        .wait()
        .exits(1)
        .says(&["control groups"]);
    // A guest that cannot be limited is not run without limits.
    lab.machine.boot_with("kern.racct.enable", 0);
    let _ = restore("pcpu:deny=5")
        .exits(1)
        .says(&["kern.racct.enable=1"]);
    assert_eq!(lab.machine.leftovers(), Vec::<String>::new());
}

/// The stand-in's kernel takes 85 pages for each machine: 45 in zones, 20 in page tables, and what
/// its process has to itself. That the run says so shows that it asked FreeBSD's variables, and set
/// the right ones against each other.
#[test]
fn a_density_run_asks_the_freebsd_kernel_and_explains_its_answer() {
    let lab = Lab::new();
    let web = checkpoint(&lab, "web");
    let step = lab.json(&["density", &web, "--guests", "3", "--dirty-pages", "16"]);
    assert_eq!((whole(&step["guests"]), whole(&step["answered"])), (3, 3));
    assert_eq!(step["engine"], "bhyve");
    assert_eq!(step["machine"]["kernel"], "15.0-RELEASE");
    assert_eq!(step["machine"]["cpu"], "Stand-in Processor");
    assert_eq!(text(&step["machine"]["kvm"]), "none; vmm without vmm_vnode");
    assert_eq!(
        step["checkpoint_sha256_before"],
        step["checkpoint_sha256_after"]
    );
    let breakdown = &step["breakdown"];
    let pages = |value: &Value| number(value) * 256.0;
    let near = |value: &Value, expected: f64| {
        assert!((pages(value) - expected).abs() < 1e-6, "{expected}: {step}");
    };
    near(&breakdown["slab"], 45.0);
    near(&breakdown["page_tables"], 20.0);
    near(&breakdown["vmalloc"], 20.0);
    let private = pages(&breakdown["guest_private"]);
    assert!(private >= 16.0, "{step}");
    // The fake kernel counts what the bhyve processes really have to themselves, too. A run that
    // counted what they share with each other as well, or counted nothing, would leave MiB over.
    let process = pages(&breakdown["process_private"]);
    assert!(process >= 16.0, "{step}");
    let parts = breakdown.as_object().unwrap();
    near(&step["per_guest_mib"], parts.values().map(pages).sum());
    let other = pages(&breakdown["other"]);
    assert!(
        other.abs() <= 32.0,
        "{other} pages are not explained: {step}"
    );
    assert_eq!(lab.machine.leftovers(), Vec::<String>::new());
    let again = lab.json(&["density", &web, "--guests", "1"]);
    assert_eq!(text(&again["machine"]["kvm"]), "none; vmm, vmm_vnode ABI 1");
}

/// Guests without an agent cannot be asked; a run counts those that are ready and live.
#[test]
fn a_density_run_of_guests_without_an_agent_is_not_refused() {
    let lab = Lab::new();
    let raw = lab.home.checkpoints().join("raw");
    lab.machine.suspend_to(&raw);
    let mut config = lab.machine.guest().config;
    config.retain(|key, _| key != "pci.0.3.0.bridge");
    let guest = BhyveGuest {
        config,
        agent: None,
        agent_protocol: AgentProtocol::Lines,
        readiness: Readiness::Console {
            com: 1,
            words: "ready name=".to_owned(),
        },
    };
    let path: BundlePath = lab.home.named("mute").path.parse().unwrap();
    lab.machine.import(&raw, &path, guest).unwrap();
    let ran = lab
        .brood(&[
            "density",
            &path.to_string(),
            "--guests",
            "2",
            "--dirty-pages",
            "8",
            "--json",
        ])
        .ok();
    assert!(ran.stderr.contains("no agent"), "{}", ran.stderr);
    assert_eq!(ran.json()["answered"], 2);
    assert_eq!(lab.machine.leftovers(), Vec::<String>::new());
}
