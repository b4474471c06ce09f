//! State folder that cannot be written, or is gone: commands list and end guests all the same.

use std::{fs, path::PathBuf, process::Command};

use brood_tests::{Demo, Home, Ran, Running, array, signal, skip, text, until};
use nix::sys::signal::Signal;

/// A state folder on a file system of its own, of 2 MiB.
struct Small {
    home: Home,
    demo: Demo,
    mount: PathBuf,
}

impl Small {
    fn new() -> Option<Self> {
        let home = Home::with_kvm()?;
        let demo = home.demo("demo", "4M");
        let mount = home.path().join("small");
        fs::create_dir(&mount).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs"])
            .arg(&mount)
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            skip("mount does not work here");
            return None;
        }
        let small = Self { home, demo, mount };
        let restore = ["restore", &small.demo.path, "-n", "3", "--prefix", "a"];
        let _ = small.brood(&restore).ok();
        Some(small)
    }

    fn brood(&self, args: &[&str]) -> Ran {
        let mut command = self.home.command(args);
        command.env("BROOD_STATE_DIR", self.mount.join("state"));
        command.env("BROOD_DAEMON", "off");
        Running::start(command).wait()
    }

    fn list(&self) -> Vec<(String, String, i32)> {
        let guests = self.brood(&["list", "--json"]).ok().json();
        let guests = guests.as_array().unwrap().iter();
        let of = |guest: &serde_json::Value| {
            let pid = guest["pid"].as_i64().unwrap_or(0);
            (
                text(&guest["name"]).to_owned(),
                text(&guest["state"]).to_owned(),
                i32::try_from(pid).unwrap(),
            )
        };
        guests.map(of).collect()
    }

    /// Lays the same file system over itself, read-only: who has it open goes on.
    fn make_read_only(&self) {
        for how in ["bind", "remount,bind,ro"] {
            let mut mount = Command::new("mount");
            mount.args(["-o", how]);
            if how == "bind" {
                mount.arg(&self.mount);
            }
            assert!(mount.arg(&self.mount).status().unwrap().success(), "{how}");
        }
    }

    fn make_writable(&self) {
        let status = Command::new("umount").arg("-l").arg(&self.mount).status();
        assert!(status.unwrap().success());
    }

    /// All that a command can do that does not have to write.
    fn works(&self) {
        let listed = self.list();
        assert_eq!(listed.len(), 3);
        assert!(
            listed.iter().all(|(_, state, _)| state == "running"),
            "{listed:?}"
        );
        let _ = self.brood(&["ask", "a-1", "ping"]).ok();
        let _ = self
            .brood(&["show", "a-1"])
            .ok()
            .says(&["warning", "recorded by the next"]);
        let _ = self.brood(&["pause", "a-1"]).ok();
        let _ = self.brood(&["resume", "a-1"]).ok();
        let _ = self.brood(&["destroy", "a-2"]).ok();
        // It has ended, and its parent looks at that in a moment.
        until("its process to be gone", || {
            (!fs::exists(format!("/proc/{}", listed[1].2)).unwrap()).then_some(())
        });
        // What cannot do without the record says so, and does nothing.
        let _ = self
            .brood(&["restore", &self.demo.path, "-n", "1"])
            .exits(1);
        assert_eq!(
            self.list()
                .iter()
                .filter(|(_, state, _)| state == "running")
                .count(),
            2
        );
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        for (_, _, pid) in self.list() {
            if pid > 0 {
                signal(pid, Signal::SIGKILL);
            }
        }
        let _ = self.brood(&["destroy", "--all"]);
        let _ = Command::new("umount")
            .args(["-l"])
            .arg(&self.mount)
            .status();
    }
}

#[test]
fn guests_are_seen_and_ended_while_the_file_system_is_full() {
    let Some(small) = Small::new() else { return };
    let fill = small.mount.join("fill");
    let mut size = 2 << 20;
    while size > 0 {
        use std::io::Write;
        let mut file = fs::File::options()
            .create(true)
            .append(true)
            .open(&fill)
            .unwrap();
        if file.write_all(&vec![1; size]).is_err() {
            size /= 2;
        }
    }
    small.works();
    fs::remove_file(&fill).unwrap();
    // What was ended has no place among those that run, and goes for good.
    let running: Vec<String> = small
        .list()
        .into_iter()
        .filter(|g| g.1 == "running")
        .map(|g| g.0)
        .collect();
    assert_eq!(running, ["a-1", "a-3"]);
    let _ = small.brood(&["destroy", "--all"]).ok();
    assert_eq!(small.list(), []);
}

#[test]
fn guests_are_seen_and_ended_while_the_file_system_is_read_only() {
    let Some(small) = Small::new() else { return };
    small.make_read_only();
    small.works();
    small.make_writable();
    let running: Vec<String> = small
        .list()
        .into_iter()
        .filter(|g| g.1 == "running")
        .map(|g| g.0)
        .collect();
    assert_eq!(running, ["a-1", "a-3"]);
    let _ = small
        .brood(&["restore", &small.demo.path, "-n", "1", "--prefix", "b"])
        .ok();
}

#[test]
fn an_index_that_was_left_behind_is_no_lost_journal_and_a_lost_journal_is() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 1, "g");
    let file = |end: &str| home.state().join(format!("brood.sqlite-{end}"));
    let database = rusqlite::Connection::open(home.state().join("brood.sqlite")).unwrap();
    let count = "SELECT count(*) FROM guest";
    let count = || {
        database
            .query_row(count, [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    assert_eq!(count(), 1);
    // As a command leaves it that could not remove the index when it ended.
    database
        .query_row("PRAGMA wal_checkpoint(FULL)", [], |_| Ok(()))
        .unwrap();
    let whole = fs::read(file("shm")).unwrap();
    database
        .execute("UPDATE guest SET private_limit = private_limit + 1", [])
        .unwrap();
    let lost = fs::read(file("shm")).unwrap();
    drop(database);
    assert!(!file("shm").exists() && !file("wal").exists());
    fs::write(file("shm"), &whole).unwrap();
    assert_eq!(home.names("running"), ["g-1"]);
    fs::write(file("shm"), &lost).unwrap();
    let _ = home
        .brood(&["list"])
        .exits(1)
        .says(&["damaged", "brood.sqlite-wal is missing"]);
    fs::remove_file(file("shm")).unwrap();
    home.destroy_all();
}

#[test]
fn guests_whose_state_folder_is_gone_are_found_and_ended() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 3, "g");
    assert_eq!(home.json(&["list", "--strays"]), serde_json::json!([]));
    let pids: Vec<i32> = ["g-1", "g-2", "g-3"].map(|name| home.pid(name)).into();
    fs::remove_dir_all(home.state()).unwrap();
    // Those of this folder alone, also when there is a new one in its place.
    for made_again in [false, true] {
        if made_again {
            let _ = home.list();
        }
        let found = home.json(&["list", "--strays"]);
        let found = found.as_array().unwrap();
        let mut names: Vec<&str> = found.iter().map(|stray| text(&stray["name"])).collect();
        names.sort_unstable();
        assert_eq!(names, ["g-1", "g-2", "g-3"]);
        assert!(
            found
                .iter()
                .all(|stray| stray["checkpoint"] == demo.path.as_str())
        );
        assert_eq!(home.state().join("brood.sqlite").exists(), made_again);
    }
    home.restore(&demo, 1, "new");
    let _ = home.brood(&["destroy", "--strays", "--all"]).exits(2);
    let ended = home.json(&["destroy", "--strays"]);
    assert_eq!(array(&ended["guests"]).len(), 3);
    for pid in pids {
        until("it to be gone", || {
            (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(())
        });
    }
    assert_eq!(home.names("running"), ["new-1"]);
    assert_eq!(home.json(&["list", "--strays"]), serde_json::json!([]));
}

#[test]
fn a_guest_without_record_and_socket_is_a_stray() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 2, "g");
    let pid = home.pid("g-1");
    let id = text(&home.json(&["show", "g-1"])["id"]).to_owned();
    let database = rusqlite::Connection::open(home.state().join("brood.sqlite")).unwrap();
    database
        .execute("DELETE FROM guest WHERE name = 'g-1'", [])
        .unwrap();
    drop(database);
    fs::remove_file(home.run_dir().join(format!("{id}.sock"))).unwrap();
    assert_eq!(home.names("running"), ["g-2"]);
    let found = home.json(&["list", "--strays"]);
    assert_eq!((array(&found).len(), &found[0]["pid"]), (1, &pid.into()));
    let _ = home.brood(&["destroy", "--strays"]).ok().says(&[]);
    assert_eq!(home.names("running"), ["g-2"]);
    until("it to be gone", || {
        (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(())
    });
}
