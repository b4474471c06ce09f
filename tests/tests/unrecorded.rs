//! Restores whose guests run and whose last record cannot be written: the command reports the
//! guests, and the next command that can write records them.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use brood_tests::{
    Demo, FileSystem, Home, Kind, Ran, Running, array, signal, skip, text, until, whole,
};
use nix::sys::signal::Signal;

/// Guests of one restore: enough that it can be stopped in the middle.
const GUESTS: usize = 100;

/// A home whose state is on a small file system of its own.
struct Small {
    home: Home,
    demo: Demo,
    place: PathBuf,
}

impl Small {
    fn at(home: Home, place: &Path) -> Self {
        let demo = home.demo("demo", "4M");
        let place = place.to_owned();
        Self { home, demo, place }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.home.command(args);
        command.env("BROOD_STATE_DIR", self.place.join("state"));
        command.env("BROOD_DAEMON", "off");
        command
    }

    fn brood(&self, args: &[&str]) -> Ran {
        Running::start(self.command(args)).wait()
    }

    /// Begins a restore and stops it when its guests are recorded as coming, and not all are there.
    fn stopped_restore(&self, more: &[&str]) -> Running {
        let guests = GUESTS.to_string();
        for n in 0..20 {
            let prefix = format!("r{n}");
            let restore = [
                "restore",
                &self.demo.path,
                "-n",
                &guests,
                "-c",
                "1",
                "--json",
            ];
            let restore = [&restore[..], &["--prefix", &prefix], more].concat();
            let mut running = Running::start(self.command(&restore));
            until("guests to come", || {
                // One at a time: the third is begun when the first has been heard of.
                (self.sockets() > 2 || running.ended()).then_some(())
            });
            running.signal(Signal::SIGSTOP);
            if !running.ended() && self.sockets() < GUESTS {
                return running;
            }
            running.signal(Signal::SIGCONT);
            let _ = running.wait();
            let _ = self.brood(&["destroy", "--all"]).ok();
        }
        panic!("no restore could be stopped in the middle");
    }

    fn sockets(&self) -> usize {
        let run = fs::read_dir(self.place.join("state/run"));
        let files = run.into_iter().flatten().flatten();
        files
            .filter(|file| file.path().extension().is_some_and(|end| end == "sock"))
            .count()
    }

    /// Fills the file system to its last block; what is returned makes room again.
    fn fill(&self) -> PathBuf {
        let fill = self.place.join("fill");
        let mut size = 1 << 20;
        while size > 0 {
            let mut file = fs::File::options();
            let mut file = file.create(true).append(true).open(&fill).unwrap();
            if file.write_all(&vec![1; size]).is_err() {
                size /= 2;
            }
        }
        fill
    }

    fn listed(&self) -> Vec<(String, String)> {
        let guests = self.brood(&["list", "--json"]).ok().json();
        array(&guests)
            .iter()
            .map(|guest| (text(&guest["name"]).into(), text(&guest["state"]).into()))
            .collect()
    }

    fn all_are(&self, state: &str, guests: usize) {
        let listed = self.listed();
        assert_eq!(listed.len(), guests, "{listed:?}");
        assert!(listed.iter().all(|(_, is)| is == state), "{listed:?}");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.place.join("fill"));
        let _ = self.brood(&["destroy", "--all", "--force"]);
    }
}

/// The file system fills up between a restore's first record and its last.
fn fills_up(small: &Small) {
    let restore = small.stopped_restore(&[]);
    let fill = small.fill();
    restore.signal(Signal::SIGCONT);
    let ran = restore.wait().exits(3);
    assert!(ran.stderr.contains("run and are not recorded"), "{ran:?}");
    let report = ran.json();
    // Where a socket takes a block, some have not come to be.
    let restored = usize::try_from(whole(&report["restored"])).unwrap();
    assert!(restored > 0, "{report}");
    assert_eq!(
        whole(&report["failed"]),
        (GUESTS - restored) as u64,
        "{report}"
    );
    assert_eq!(array(&report["undone"]).len(), 1, "{report}");
    // A command that looks meanwhile sees them as they are.
    small.all_are("running", restored);
    fs::remove_file(fill).unwrap();
    small.all_are("running", restored);
    let names = small.listed();
    let _ = small.brood(&["ask", &names[0].0, "ping"]).ok();
    let _ = small.brood(&["destroy", "--all"]).ok();
    small.all_are("none", 0);
}

#[test]
fn guests_that_a_full_tmpfs_cannot_record_are_told_of_and_found() {
    let Some(home) = Home::with_kvm() else { return };
    let mount = home.path().join("small");
    fs::create_dir(&mount).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"])
        .arg(&mount)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        skip("mount does not work here");
        return;
    }
    let small = Small::at(home, &mount);
    fills_up(&small);
    drop(small);
    let unmounted = Command::new("umount").arg("-l").arg(&mount).status();
    assert!(unmounted.unwrap().success());
}

#[test]
fn guests_that_a_full_ext4_cannot_record_are_told_of_and_found() {
    let Some(home) = Home::with_kvm() else { return };
    let Some(files) = FileSystem::small(Kind::Ext4, 8) else {
        return;
    };
    fills_up(&Small::at(home, &files.path()));
}

#[test]
fn guests_of_a_restore_that_is_killed_before_its_last_record_are_found_or_gone() {
    let Some(home) = Home::with_kvm() else { return };
    let place = home.path().join("own");
    fs::create_dir(&place).unwrap();
    let small = Small::at(home, &place);
    let restore = small.stopped_restore(&[]);
    let before = small.sockets();
    restore.signal(Signal::SIGKILL);
    let _ = restore.wait();
    // Those that had answered live, and no process is left of the others.
    until("the rest to end", || {
        let listed = small.listed();
        listed.iter().all(|(_, is)| is == "running").then_some(())
    });
    let listed = small.listed();
    assert!(listed.len() + 1 >= before, "{before}: {listed:?}");
    assert!(listed.len() < GUESTS, "{listed:?}");
    for (name, _) in &listed {
        let _ = small.brood(&["ask", name, "ping"]).ok();
    }
}

#[test]
fn what_could_not_be_done_to_guests_that_answered_is_told_with_them() {
    let Some(home) = Home::with_kvm() else { return };
    let place = home.path().join("own");
    fs::create_dir(&place).unwrap();
    let small = Small::at(home, &place);
    let restore = small.stopped_restore(&["--paused"]);
    // One ends before it can be paused.
    let named = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
        let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
        let here = cwd == small.place.join("state/run");
        (here && name.trim().ends_with("-1") && name.starts_with('r')).then_some(pid)
    });
    signal(named.expect("the first guest is there"), Signal::SIGKILL);
    restore.signal(Signal::SIGCONT);
    let report = restore.wait().exits(3).json();
    assert_eq!(whole(&report["restored"]), GUESTS as u64, "{report}");
    let undone = array(&report["undone"]);
    assert_eq!(undone.len(), 1, "{report}");
    assert!(text(&undone[0]).contains("-1 is not paused"), "{report}");
}
