//! `brood top` in a real terminal (tmux), and for scripts.

use std::{fs::File, io::Read, process::Command};

use brood_tests::{Daemon, Home, array, brood, keys, skip, text, until, whole};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    pty::{Winsize, openpty},
    sys::signal::Signal,
};

/// A tmux server of this test, with one window that runs a shell.
struct Tmux<'a> {
    home: &'a Home,
    socket: String,
}

impl<'a> Tmux<'a> {
    /// `None` where there is no tmux.
    fn start(home: &'a Home, width: u32, height: u32) -> Option<Self> {
        let there = Command::new("tmux").arg("-V").output();
        if !there.is_ok_and(|ran| ran.status.success()) {
            skip("no tmux");
            return None;
        }
        let socket = home.path().join("tmux").to_str().unwrap().to_owned();
        let tmux = Self { home, socket };
        let _ = tmux.run(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-s",
            "top",
            "-x",
            &width.to_string(),
            "-y",
            &height.to_string(),
            "env PS1='$ ' sh",
        ]);
        tmux.until("a prompt", |seen| seen.contains('$'));
        Some(tmux)
    }

    fn run(&self, args: &[&str]) -> String {
        let ran = Command::new("tmux")
            .args(["-S", &self.socket])
            .args(args)
            .env_remove("TMUX")
            .env("TERM", "xterm-256color")
            .env("BROOD_STATE_DIR", self.home.state())
            .env("BROOD_CONFIG", "/dev/null")
            .output()
            .expect("tmux runs");
        assert!(ran.status.success(), "tmux {args:?}: {ran:?}");
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    fn keys(&self, keys: &[&str]) {
        let _ = self.run(&[&["send-keys", "-t", "top"], keys].concat());
    }

    fn seen(&self) -> String {
        self.run(&["capture-pane", "-p", "-t", "top"])
    }

    fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        until(what, || {
            let seen = self.seen();
            wanted(&seen).then_some(seen)
        })
    }

    /// Starts `brood top` in the shell, and waits until it shows something.
    fn top(&self, args: &str) {
        let line = format!("{} top -i 0.2 {args}", brood().display());
        self.keys(&[&line, "Enter"]);
        self.until("the display", |seen| {
            seen.contains("available of") && self.is_full_screen()
        });
    }

    fn is_full_screen(&self) -> bool {
        let shown = self.run(&["display-message", "-p", "-t", "top", "#{alternate_on}"]);
        shown.trim() == "1"
    }

    /// The shell has its terminal back, as it was: it echoes what is typed, and lines are lines.
    fn is_given_back(&self, code: u32) {
        until("the shell", || (!self.is_full_screen()).then_some(()));
        self.keys(&[
            "echo ended:$?; stty -a | tr ' ;' '\\n\\n' | grep -cx -e echo -e icanon",
            "Enter",
        ]);
        let wanted = format!("ended:{code}\n2");
        self.until(&wanted, |seen| seen.contains(&wanted));
        self.keys(&["clear", "Enter"]);
        self.until("a clear window", |seen| !seen.contains("ended"));
    }
}

impl Drop for Tmux<'_> {
    fn drop(&mut self) {
        let _ = Command::new("tmux")
            .args(["-S", &self.socket, "kill-server"])
            .output();
    }
}

/// The pid of the `brood top` of this home.
fn pid(home: &Home) -> i32 {
    until("brood top", || {
        let ran = Command::new("pgrep")
            .args(["-f", "^[^ ]*brood top -i"])
            .output()
            .expect("pgrep runs");
        let all = String::from_utf8_lossy(&ran.stdout).into_owned();
        all.lines().find_map(|line| {
            let pid: i32 = line.parse().ok()?;
            let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
            let state = home.state();
            let mine = format!("BROOD_STATE_DIR={}\0", state.display());
            String::from_utf8_lossy(&environment)
                .contains(&mine)
                .then_some(pid)
        })
    })
}

#[test]
fn a_person_sees_guests_come_sorts_filters_and_leaves() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let Some(tmux) = Tmux::start(&home, 80, 24) else {
        return;
    };
    home.restore(&demo, 3, "web");
    let _ = home.brood(&["ask", "web-2", "dirty", "200"]).ok();
    tmux.top("");
    let seen = tmux.until("the guests", |seen| seen.contains("web-3"));
    assert!(seen.contains("without a daemon"), "{seen}");
    let at = |seen: &str, name: &str| seen.lines().position(|line| line.starts_with(name));
    assert!(
        at(&seen, "web-2") < at(&seen, "web-1"),
        "the one with most memory of its own is the first\n{seen}"
    );
    // It goes on while it is watched, and finds a daemon that comes.
    home.restore(&demo, 2, "api");
    tmux.until("guests that come", |seen| seen.contains("api-2"));
    let daemon = Daemon::start(&home);
    let with = format!("with the daemon {}", daemon.pid());
    tmux.until("the daemon", |seen| seen.contains(&with));
    let _ = home
        .brood(&["pool", "create", "p", &demo.path, "--hot", "2"])
        .ok();
    tmux.until("the pool", |seen| seen.contains("2/2"));
    tmux.keys(&["s", "s"]);
    tmux.until("the other order", |seen| {
        seen.contains("by name") && at(seen, "api-1") < at(seen, "web-2")
    });
    tmux.keys(&["/"]);
    tmux.keys(&["web", "Enter"]);
    tmux.until("the filter", |seen| {
        seen.contains("/web") && !seen.contains("api-1")
    });
    tmux.keys(&["?"]);
    tmux.until("help", |seen| seen.contains("sort by the next"));
    tmux.keys(&["Escape"]);
    tmux.until("no help", |seen| !seen.contains("sort by the next"));
    tmux.keys(&["p"]);
    tmux.until("a display that stands still", |seen| {
        seen.contains("stands still")
    });
    let _ = tmux.run(&["resize-window", "-t", "top", "-x", "140", "-y", "40"]);
    tmux.until("a wider display", |seen| {
        seen.lines()
            .next()
            .is_some_and(|line| line.chars().count() > 120)
    });
    tmux.keys(&["q"]);
    tmux.is_given_back(0);
    let _ = home.brood(&["pool", "remove", "p", "--force"]).ok();
}

#[test]
fn the_terminal_is_given_back_however_it_ends() {
    let home = Home::bare();
    let Some(tmux) = Tmux::start(&home, 80, 24) else {
        return;
    };
    tmux.top("");
    tmux.keys(&["C-c"]);
    tmux.is_given_back(0);
    for (signal, code) in [(Signal::SIGTERM, 130), (Signal::SIGHUP, 130)] {
        tmux.top("");
        brood_tests::signal(pid(&home), signal);
        tmux.is_given_back(code);
    }
    // A state that cannot be read any more is reported, and ends nothing.
    tmux.top("");
    let database = home.state().join("brood.sqlite");
    for file in [&database, &home.state().join("brood.sqlite-wal")] {
        let _ = std::fs::write(file, "no database, and long enough to be told from one");
    }
    tmux.keys(&["q"]);
    tmux.is_given_back(0);
    std::fs::remove_dir_all(home.state()).expect("it is ours");
}

/// Its terminal closes, and no signal comes: it leads no session.
#[test]
fn it_ends_when_its_terminal_is_gone() {
    let home = Home::bare();
    for typed in ["", "/we"] {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).expect("a terminal");
        // Else the other end would stay open: the process itself would have it.
        fcntl(&pty.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("it is ours");
        fcntl(&pty.slave, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("it is ours");
        let slave = || pty.slave.try_clone().expect("a descriptor");
        let mut command = home.command(&["top", "-i", "0.2"]);
        command.env("TERM", "xterm-256color");
        command.stdin(slave()).stdout(slave()).stderr(slave());
        let mut top = command.spawn().expect("brood runs");
        drop((command, pty.slave));
        let mut terminal = File::from(pty.master);
        std::io::Write::write_all(&mut terminal, typed.as_bytes()).expect("typed");
        let mut seen = Vec::new();
        let wanted = b"available";
        while !seen.windows(wanted.len()).any(|part| part == wanted) {
            let mut bytes = [0; 4096];
            let count = terminal.read(&mut bytes).expect("it draws");
            seen.extend_from_slice(&bytes[..count]);
        }
        drop(terminal);
        let ended = until("it to end", || top.try_wait().expect("it is ours"));
        assert_eq!(ended.code(), Some(130), "{ended:?}");
    }
}

#[test]
fn at_80_columns_nothing_is_cut_off() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let Some(tmux) = Tmux::start(&home, 80, 24) else {
        return;
    };
    let long = "a-pool-whose-name-is-as-long-x";
    let _ = home
        .brood(&["pool", "create", long, &demo.path, "--hot", "2"])
        .ok();
    home.restore(&demo, 12, "web");
    let _ = home.brood(&["pause", "web-2"]).ok();
    brood_tests::signal(home.pid("web-3"), Signal::SIGKILL);
    tmux.top("--sort name");
    let seen = tmux.until("the dead guest", |seen| seen.contains("1 dead"));
    let words: Vec<&str> = seen.split_whitespace().collect();
    let words = words.join(" ");
    for whole in ["14: ", "10 running", "3 paused", "1 dead", "MiB each"] {
        assert!(words.contains(whole), "{whole}\n{seen}");
    }
    let row = seen.lines().find(|line| line.starts_with(long));
    assert!(row.is_some_and(|row| row.contains("2/2")), "{seen}");
    for heading in ["CLAIMED", "CLAIMS", "P50 MS", "P99 MS", "CHECKPOINT"] {
        assert!(seen.contains(heading), "{heading}\n{seen}");
    }
    assert!(seen.contains(&format!("{long}-1 ")), "{seen}");
    tmux.keys(&["q"]);
    tmux.is_given_back(0);
    let _ = home.brood(&["pool", "remove", long, "--force"]).ok();
}

#[test]
fn scripts_get_it_once() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 2, "g");
    let _ = home.brood(&["ask", "g-2", "dirty", "100"]).ok();
    let here = home.json(&["top"]);
    assert_eq!(
        keys(&here),
        [
            "at", "daemon", "density", "guests", "host", "pools", "restores"
        ]
    );
    assert!(here["daemon"].is_null());
    assert_eq!(
        (array(&here["guests"]).len(), &here["density"]["guests"]),
        (2, &2.into())
    );
    let private = |guest: usize| whole(&here["guests"][guest]["private_bytes"]);
    assert!(private(1) >= private(0) + 100 * 4096, "{here}");

    let daemon = Daemon::start(&home);
    let _ = home
        .brood(&["pool", "create", "p", &demo.path, "--hot", "1"])
        .ok();
    let _ = home.brood(&["pool", "claim", "p"]).ok();
    let by_daemon = home.json(&["top"]);
    assert_eq!(by_daemon["daemon"], daemon.pid());
    let pool = &by_daemon["pools"][0];
    assert_eq!(
        (&pool["name"], &pool["claims"]["total"]),
        (&"p".into(), &1.into())
    );
    assert!(pool["claims"]["mean_ms"].as_f64().unwrap() > 0.0);
    let once = home.brood(&["top", "--once", "--filter", "g-"]).ok().stdout;
    let rows: Vec<&str> = once.lines().filter(|line| line.starts_with("g-")).collect();
    assert!(
        rows[0].starts_with("g-2") && rows[1].starts_with("g-1"),
        "{once}"
    );
    assert!(once.lines().any(|line| line.starts_with("p ")), "{once}");
    let _ = home
        .brood(&["top"])
        .exits(1)
        .says(&["no terminal", "--once"]);
    let _ = text(&by_daemon["at"]);
    let _ = home.brood(&["pool", "remove", "p", "--force"]).ok();
}
