//! Isolation: clones share a checkpoint's memory and never each other's.

use std::{fs, path::PathBuf};

use brood_tests::{HEAP, Home, USER, array, crowd, sha256, signal, text, whole};
use nix::sys::signal::Signal;

const PAGE: u64 = 4096;

#[test]
fn a_write_is_seen_by_its_clone_alone() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "8M");
    let words = demo.words();
    home.restore(&demo, 20, "c");
    // The first address that may be written, the middle of a page, both sides of where a memory
    // slot may begin, and the last word.
    let addresses = [USER, HEAP + 0x808, 0x1f_fff8, 0x20_0000, words.size() - 8];
    for (n, address) in (1_u64..=20).flat_map(|n| addresses.map(|a| (n, a))) {
        let poke = format!("poke {address} {}", n * address);
        let _ = home.ask(&format!("c-{n}"), &poke);
    }
    for (n, address) in (1_u64..=20).flat_map(|n| addresses.map(|a| (n, a))) {
        assert_eq!(
            home.peek(&format!("c-{n}"), address),
            n * address,
            "c-{n} at {address:#x}"
        );
    }
    for address in addresses {
        assert_eq!(demo.words().at(address), words.at(address));
        assert_ne!(
            demo.words().at(address),
            address,
            "the file was written at {address:#x}"
        );
    }
    // Words beside those that were written, and a clone that comes later, show the file.
    home.restore(&demo, 1, "late");
    for address in addresses {
        assert_eq!(home.peek("late-1", address), words.at(address));
        assert_eq!(home.peek("c-7", address - 16), words.at(address - 16));
    }
}

#[test]
fn every_clone_sums_the_whole_of_memory_as_the_file_has_it() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "16M");
    let words = demo.words();
    home.restore(&demo, 5, "c");
    // Strides that land on other words of each page.
    for stride in [4096, 4104, 20_488] {
        let length = words.size() - USER;
        let expected = words.sum(USER, length, stride);
        for n in 1..=5 {
            let sum = home.ask(&format!("c-{n}"), &format!("sum {USER} {length} {stride}"));
            assert_eq!(sum["sum"], expected, "c-{n}, every {stride} bytes");
        }
    }
    // Each word of a part.
    let expected = words.sum(HEAP, 0x2_0000, 8);
    assert_eq!(
        home.ask("c-1", &format!("sum {HEAP} 128K"))["sum"],
        expected
    );
    // After one clone's write its sum differs, and no other's does.
    let _ = home.ask("c-3", &format!("poke {} 1", HEAP + 8));
    for n in 1..=5 {
        let sum = home.ask(&format!("c-{n}"), &format!("sum {HEAP} 128K"));
        assert_eq!(text(&sum["sum"]) == expected, n != 3, "c-{n}");
    }
}

#[test]
fn the_file_is_the_same_after_two_hundred_clones_ran_and_wrote_and_died() {
    let Some(home) = Home::with_kvm() else { return };
    let _turn = crowd();
    let demo = home.demo("demo", "8M");
    let before = sha256(&demo.ckp());
    let report = home.restore(&demo, 200, "c");
    for (n, guest) in (1_u64..).zip(array(&report["guests"])) {
        let name = text(&guest["name"]);
        let _ = home.ask(name, &format!("dirty {}", n % 40));
        let _ = home.ask(name, &format!("poke {} {n}", USER + n * 8));
        match n % 5 {
            0 => {
                let pid = whole(&guest["pid"]);
                signal(pid.try_into().unwrap(), Signal::SIGKILL);
            }
            1 => drop(home.brood(&["ask", name, "crash"]).exits(1)),
            2 => drop(home.brood(&["destroy", name]).ok()),
            _ => {}
        }
    }
    let running = home.converges();
    assert_eq!(running.len(), 80);
    assert_eq!(sha256(&demo.ckp()), before, "while guests live");
    home.destroy_all();
    assert_eq!(sha256(&demo.ckp()), before, "after they died");
    let _ = home.brood(&["checkpoint", "verify", &demo.path]).ok();
    // And what comes of it is right still.
    home.restore(&demo, 1, "last");
    let length = demo.words().size() - USER;
    let sum = home.ask("last-1", &format!("sum {USER} {length} 4096"));
    assert_eq!(sum["sum"], demo.words().sum(USER, length, 4096));
}

#[test]
fn private_memory_is_what_was_written_and_no_more() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "16M");
    home.restore(&demo, 3, "c");
    let (pristine, _) = home.private_and_shared("c-1");
    assert!(
        pristine <= 4 * PAGE,
        "a pristine clone has {pristine} bytes to itself"
    );
    let mut written = 0;
    for pages in [1, 63, 500] {
        let _ = home.ask("c-1", &format!("dirty {pages}"));
        written += pages;
        let (private, _) = home.private_and_shared("c-1");
        let grown = (private - pristine) / PAGE;
        assert!(
            grown.abs_diff(written) <= 4,
            "{written} pages were written and {grown} became private"
        );
    }
    // Reading makes nothing private, and shows in what is shared.
    let (private, shared) = home.private_and_shared("c-2");
    let _ = home.ask("c-2", "sum 8M 8M 4096");
    let (private_after, shared_after) = home.private_and_shared("c-2");
    assert!(
        private_after <= private + 2 * PAGE,
        "{private} became {private_after}"
    );
    assert!(
        shared_after >= shared + (8 << 20) - 16 * PAGE,
        "{shared} became {shared_after}"
    );
    // What one wrote costs the others nothing.
    let (others, _) = home.private_and_shared("c-3");
    assert!(others <= 4 * PAGE, "{others}");
}

/// What the descriptors of a process are open on, in ascending order of their names.
fn open_files(pid: i32) -> Vec<String> {
    let mut files: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("its descriptors")
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|link| {
            let link = link.to_string_lossy();
            // Sockets and files of memory have a number or a path of their own.
            let name = link.rsplit('/').next().unwrap_or(&link);
            name.split(['[', ' ']).next().unwrap_or(name).to_owned()
        })
        .collect();
    files.sort();
    files
}

/// What a process has mapped so that others see what it writes.
fn shared_mappings(pid: i32) -> Vec<String> {
    fs::read_to_string(format!("/proc/{pid}/maps"))
        .expect("its mappings")
        .lines()
        .filter(|line| {
            line.split(' ')
                .nth(1)
                .is_some_and(|mode| mode.ends_with('s'))
        })
        .map(|line| {
            line.split_whitespace()
                .skip(5)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect()
}

/// How readily the kernel takes a process when memory is short.
fn score(pid: &str) -> i32 {
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
    score.expect("its score").trim().parse().expect("a number")
}

#[test]
fn a_guests_process_has_what_it_needs_and_nothing_of_the_nurserys() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "8M");
    home.restore(&demo, 5, "full");
    let warm = home.named("warm");
    let _ = home
        .brood(&["suspend", "full-1", &warm.path, "--delta"])
        .ok();
    home.restore(&warm, 2, "delta");
    for (guest, layers) in [("full-2", 1), ("full-5", 1), ("delta-1", 2), ("delta-2", 2)] {
        let pid = home.pid(guest);
        let mut needed = vec!["null"; 3];
        // Its own socket, and the one by which it tells the nursery of its end.
        needed.extend(vec!["kvm", "socket:", "socket:", "verdicts"]);
        needed.extend(["anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0"]);
        needed.extend(["demo.ckp", "warm.ckp"].iter().take(layers));
        needed.sort_unstable();
        assert_eq!(open_files(pid), needed, "{guest}");
        assert_eq!(shared_mappings(pid), ["anon_inode:kvm-vcpu:0"], "{guest}");
    }
    // It would show: their nurseries share the memory of orders with the spares.
    for nursery in home.nurseries() {
        assert_eq!(shared_mappings(nursery.pid), ["/dev/zero (deleted)"]);
        assert!(open_files(nursery.pid).len() > 8);
        // When memory is short, the kernel kills guests first, then nurseries, then their manager.
        let (own, guest) = (score("self"), score(&home.pid("full-2").to_string()));
        let nursery = score(&nursery.pid.to_string());
        assert!(own < nursery && nursery < guest, "{own} {nursery} {guest}");
    }
}

/// Soft and hard limit of a process, as `/proc/PID/limits` has them.
fn limits(pid: i32, name: &str) -> [String; 2] {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    let line = limits.lines().find_map(|line| line.strip_prefix(name));
    let mut words = line.expect("the limit").split_whitespace();
    [(); 2].map(|()| words.next().expect("a number").to_owned())
}

#[test]
fn a_guests_process_has_low_resource_limits_and_is_suspended_within_them() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "64M");
    home.restore(&demo, 1, "guest");
    let pid = home.pid("guest-1");
    let largest = ((64 + 16) << 20).to_string();
    for (name, most) in [
        ("Max core file size", "0"),
        ("Max locked memory", "0"),
        ("Max open files", "96"),
        ("Max file size", &largest),
    ] {
        assert_eq!(limits(pid, name), [most; 2], "{name}");
    }
    if nix::unistd::geteuid().is_root() {
        assert_eq!(limits(pid, "Max processes"), ["64"; 2]);
    }
    // It writes all of its memory.
    let _ = home.ask("guest-1", &format!("dirty {}", (60 << 20) / PAGE));
    let full = home.named("full");
    let _ = home.brood(&["suspend", "guest-1", &full.path]).ok();
    home.restore(&full, 1, "again");
    assert!(home.private_and_shared("again-1").1 > 0);
}

#[test]
fn show_says_what_confines_a_guests_process() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "8M");
    home.restore(&demo, 1, "guest");
    let (pid, jail) = (
        home.pid("guest-1"),
        &home.json(&["show", "guest-1"])["jail"],
    );
    let is_root = nix::unistd::geteuid().is_root();
    assert_eq!(jail["syscall_filter"], true, "{jail}");
    assert_eq!(jail["no_new_privileges"], true, "{jail}");
    assert_eq!(jail["capabilities"], "0000000000000000", "{jail}");
    assert_eq!(jail["own_user"], is_root, "{jail}");
    assert_eq!(jail["host_network"], !is_root, "{jail}");
    assert_eq!(jail["host_ipc"], !is_root, "{jail}");
    let user = jail["user"].to_string();
    assert!(status(pid, "Uid:").ends_with(&user), "{jail}");
    // By the same words as the host's.
    let doctor = home.brood(&["doctor"]).stdout;
    let shown = home.brood(&["show", "guest-1"]).ok().stdout;
    let landlock = whole(&jail["landlock"]);
    let files = match landlock {
        0 => "all files of its user".to_owned(),
        version => format!("no files (Landlock {version})"),
    };
    for said in [&doctor, &shown] {
        assert!(said.contains(&files), "{said}");
    }
    // What is known by the kernel alone is known without the record; the rest is not made up.
    for ending in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(home.state().join(format!("brood.sqlite{ending}")));
    }
    let guests = home.list();
    let jail = &home.json(&["show", text(&guests[0]["name"])])["jail"];
    assert_eq!(jail["syscall_filter"], true, "{jail}");
    assert!(jail["landlock"].is_null(), "{jail}");
}

/// What a line of a process's status says.
fn status(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.expect("the field").trim().to_owned()
}

/// Which namespace a process is in.
fn namespace(pid: &str, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("its namespace")
}

#[test]
fn a_guests_process_has_a_user_of_its_own_and_no_network_where_root_restores() {
    let Some(home) = Home::with_kvm() else { return };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: this is not root");
        return;
    }
    let demo = home.demo("demo", "8M");
    home.restore(&demo, 2, "guest");
    let pids = ["guest-1", "guest-2"].map(|guest| home.pid(guest));
    let users = pids.map(|pid| status(pid, "Uid:"));
    assert_ne!(users[0], users[1]);
    for pid in pids {
        let user = 0x7b00_0000 + pid;
        let group = 0x7b00_0000;
        assert_eq!(
            status(pid, "Uid:"),
            [user; 4].map(|id| id.to_string()).join("\t")
        );
        assert_eq!(
            status(pid, "Gid:"),
            [group; 4].map(|id| id.to_string()).join("\t")
        );
        assert_eq!(status(pid, "Groups:"), "");
        assert_eq!(status(pid, "CapPrm:"), "0000000000000000");
        assert_eq!(status(pid, "Seccomp:"), "2");
        for kind in ["net", "ipc"] {
            assert_ne!(namespace(&pid.to_string(), kind), namespace("self", kind));
        }
    }
    // Its manager sees what it holds, and stops and ends it.
    let (private, _) = home.private_and_shared("guest-1");
    assert!(private > 0);
    let _ = home.brood(&["pause", "guest-1"]).ok();
    let _ = home.brood(&["resume", "guest-1"]).ok();
    let _ = home.brood(&["destroy", "--all"]).ok();
}
