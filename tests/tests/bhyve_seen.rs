//! Side effects that bhyve 14.2 was seen to have, and how brood handles them: its environment,
//! title and socket, the compiler that it runs, what a failed suspend leaves. On stand-ins.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    process::Command,
};

use brood_standin::IASL;
use brood_tests::{Lab, Running, array, text, until};

/// How often the machine's iasl has run.
fn compiled(lab: &Lab) -> usize {
    let commands = fs::read_to_string(lab.machine.root().join("commands")).unwrap();
    let programs = commands.lines().filter_map(|line| line.split(' ').nth(1));
    programs.filter(|program| *program == "iasl").count()
}

#[test]
fn a_guests_process_is_small_titled_and_its_owners_alone() {
    let (lab, web) = Lab::with_checkpoint();
    let before = compiled(&lab);
    let report = lab.restore(&web, 1);
    let guest = &array(&report["guests"])[0];
    let (pid, id) = (guest["pid"].as_i64().unwrap(), text(&guest["id"]));
    let of_process = |name: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    // jemalloc(3) keeps little back for a process whose device models hardly allocate.
    let environment = of_process("environ");
    let malloc = environment
        .split('\0')
        .find_map(|v| v.strip_prefix("MALLOC_CONF="));
    assert_eq!(
        malloc,
        Some("narenas:1,tcache:false,dirty_decay_ms:0,muzzy_decay_ms:0")
    );
    // Its command line is gone; brood finds it all the same.
    let title = of_process("cmdline");
    assert_eq!(
        title.trim_end_matches('\0'),
        format!("bhyve: brood-{id} (bhyve)")
    );
    // A user who may write to the socket can have the guest's memory written anywhere.
    let socket = lab.machine.root().join(format!("var/run/bhyve/brood-{id}"));
    let socket = fs::metadata(socket).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o700);
    assert_eq!(
        compiled(&lab),
        before,
        "a patched bhyve's restore compiles nothing"
    );
    lab.destroy_all();
}

#[test]
fn a_restore_needs_iasl_only_where_bhyve_is_a_stock_one_and_says_why_it_failed() {
    let (lab, web) = Lab::with_checkpoint();
    let checked = || {
        let told = lab.brood(&["doctor", "--json"]).json();
        let checks = array(&told["checks"]).iter();
        let mut found = checks.filter(|check| check["name"] == "/usr/sbin/iasl");
        found.next().map(|check| text(&check["status"]).to_owned())
    };
    let iasl = lab.machine.root().join(IASL);
    let hidden = lab.home.path().join("iasl");
    fs::rename(&iasl, &hidden).unwrap();
    assert_eq!(checked(), None);
    let _ = lab.restore(&web, 1);
    lab.destroy_all();
    lab.machine.use_stock_bhyve();
    assert_eq!(checked().as_deref(), Some("fail"));
    let restore = ["restore", &web.to_string(), "-n", "1", "--prefix", "g"];
    let _ = lab
        .brood(&restore)
        .exits(1)
        .says(&["SIGABRT", "Assertion failed: (error == 0)"]);
    lab.nothing_is_left();
    fs::rename(&hidden, &iasl).unwrap();
    assert_eq!(checked().as_deref(), Some("ok"));
    let before = compiled(&lab);
    let _ = lab.restore(&web, 1);
    assert_eq!(compiled(&lab), before + 1);
    lab.destroy_all();
}

/// A suspend that fails leaves a description that is cut off: nothing of it becomes a checkpoint.
#[test]
fn what_a_failed_suspend_left_is_not_imported() {
    let lab = Lab::new();
    let disk = lab.home.path().join("disk");
    fs::write(&disk, [0; 4096]).unwrap();
    let conf = lab.home.path().join("ahci.conf");
    // Its driver has not programmed the ports.
    let ahci = format!(
        "pci.0.5.0.device=ahci\npci.0.5.0.port.0.type=hd\npci.0.5.0.port.0.path={}\n",
        disk.display()
    );
    fs::write(&conf, lab.machine.config() + &ahci).unwrap();
    let conf = conf.to_str().unwrap();
    let mut bhyve = Command::new(lab.machine.root().join("bin/bhyve"));
    bhyve
        .envs(lab.machine.environment())
        .args(["-k", conf, "-H", "-A", "-P", "first"]);
    let bhyve = Running::start(bhyve);
    let socket = lab.machine.root().join("var/run/bhyve/first");
    until("its socket", || socket.exists().then_some(()));
    let raw = lab.home.checkpoints().join("raw");
    let raw = raw.to_str().unwrap();
    lab.machine
        .run("bhyvectl", &[&format!("--suspend={raw}"), "--vm=first"]);
    until("its failure", || {
        bhyve
            .said()
            .contains("Failed to snapshot device state.")
            .then_some(())
    });
    assert!(bhyve.said().contains("port->cmd_lst"), "{}", bhyve.said());
    let web = lab.bundle("web");
    let _ = lab
        .brood(&[
            "checkpoint",
            "import",
            raw,
            &web.to_string(),
            "--bhyve-config",
            conf,
            "--agent",
            "1",
        ])
        .exits(1)
        .says(&["raw.meta"]);
    assert!(!web.ckp().exists(), "there is no checkpoint");
    drop(bhyve);
    lab.machine.run("bhyvectl", &["--destroy", "--vm=first"]);
    fs::remove_file(socket).unwrap();
    lab.destroy_all();
}
