//! Jail of a clone's QEMU: what a guest that has taken its QEMU over could try, tried by its monitor.
//! The same words are tried on a QEMU without a jail, which does all of it.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use brood_tests::{Demo, Home, Running, text, until};
use serde_json::{Value, json};

/// A monitor.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn open(socket: &Path) -> Self {
        let stream = until("the monitor", || UnixStream::connect(socket).ok());
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        assert!(monitor.line().unwrap()["QMP"].is_object());
        assert!(monitor.tell("qmp_capabilities", &json!({})).is_ok());
        monitor
    }

    /// The next line; none when it has closed.
    fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).ok()?;
        (read > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    /// What is said to a command: nothing, or why not.
    fn tell(&mut self, command: &str, with: &Value) -> Result<(), String> {
        let words = json!({ "execute": command, "arguments": with });
        let ended = || "it has ended".to_owned();
        writeln!(self.0.get_mut(), "{words}").map_err(|_| ended())?;
        loop {
            // Lines without an answer are events.
            let line = self.line().ok_or_else(ended)?;
            if line["return"].is_object() {
                return Ok(());
            }
            if line["error"].is_object() {
                return Err(text(&line["error"]["desc"]).to_owned());
            }
        }
    }
}

/// What is tried: a name, a command and its arguments.
type Try = (&'static str, &'static str, Value);

/// What the host has, and nobody gave the guest.
struct Host {
    dir: tempfile::TempDir,
    tcp: TcpListener,
    _unix: UnixListener,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("theirs"), vec![7; 4096]).unwrap();
        Self {
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            _unix: UnixListener::bind(dir.path().join("socket")).unwrap(),
            dir,
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn files(&self) -> Vec<Try> {
        let read = |name, file: &str| {
            let node =
                json!({ "driver": "file", "node-name": name, "filename": file, "read-only": true });
            (name, "blockdev-add", node)
        };
        let dump = format!("file:{}", self.path("dump"));
        let to = json!({ "type": "file", "data": { "out": self.path("log") } });
        let address = json!({ "type": "unix", "data": { "path": self.path("own") } });
        let listener =
            json!({ "type": "socket", "data": { "addr": address, "server": true, "wait": false } });
        vec![
            read("read-theirs", &self.path("theirs")),
            read("read-passwd", "/etc/passwd"),
            (
                "dump memory",
                "dump-guest-memory",
                json!({ "paging": false, "protocol": dump }),
            ),
            (
                "save memory",
                "pmemsave",
                json!({ "val": 0, "size": 4096, "filename": self.path("memory") }),
            ),
            (
                "log to a file",
                "chardev-add",
                json!({ "id": "log", "backend": to }),
            ),
            (
                "name a socket",
                "chardev-add",
                json!({ "id": "own", "backend": listener }),
            ),
        ]
    }

    fn tcp(&self) -> Try {
        let port = self.tcp.local_addr().unwrap().port().to_string();
        let address = json!({ "type": "inet", "data": { "host": "127.0.0.1", "port": port } });
        let to = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        (
            "connect by TCP",
            "chardev-add",
            json!({ "id": "tcp", "backend": to }),
        )
    }

    fn program(&self) -> Try {
        let uri = format!("exec:touch {}", self.path("program"));
        ("run a program", "migrate", json!({ "uri": uri }))
    }
}

/// To connect to a socket.
fn socket(path: &Path) -> Try {
    let address = json!({ "type": "unix", "data": { "path": path } });
    let to = json!({ "type": "socket", "data": { "addr": address, "server": false } });
    (
        "connect to a socket",
        "chardev-add",
        json!({ "id": "unix", "backend": to }),
    )
}

/// A QEMU without a jail.
struct Open(Child);

impl Open {
    fn start(monitor: &Path) -> Self {
        let qmp = format!("unix:{},server=on,wait=off", monitor.display());
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-S",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-vga",
                "none",
            ])
            .args(["-accel", "tcg", "-m", "16M", "-qmp", &qmp])
            .stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_clones_qemu_reaches_nothing_that_it_was_not_given() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    let host = Host::new();
    let unconfined = Open::start(&host.dir.path().join("qmp"));
    let mut open = Monitor::open(&host.dir.path().join("qmp"));
    let mut all = host.files();
    all.extend([host.tcp(), socket(&host.dir.path().join("socket"))]);
    for (name, command, with) in &all {
        assert_eq!(open.tell(command, with), Ok(()), "{name}");
    }
    let (name, command, with) = host.program();
    assert_eq!(open.tell(command, &with), Ok(()), "{name}");
    let ran = PathBuf::from(host.path("program"));
    until("the program", || ran.exists().then_some(()));
    drop(unconfined);

    home.restore(&linux, 2, "g");
    let jail = &home.json(&["show", "g-1"])["jail"];
    let is_root = nix::unistd::geteuid().is_root();
    assert_eq!(jail["own_user"], is_root, "{jail}");
    assert_eq!(jail["host_ipc"], !is_root, "{jail}");
    assert_eq!(jail["syscall_filter"], true, "{jail}");
    assert_eq!(jail["no_new_privileges"], true, "{jail}");
    assert_eq!(jail["capabilities"], "0000000000000000", "{jail}");
    let siblings = &home.json(&["show", "g-2"])["jail"]["user"];
    assert_eq!(jail["user"] != *siblings, is_root, "{jail}");

    let mut own = Monitor::open(&home.guest_folder("g-1").join("qmp"));
    let host = Host::new();
    let refused = |own: &mut Monitor, (name, command, with): Try| {
        let said = own.tell(command, &with).expect_err(name);
        assert!(said.contains("Permission denied"), "{name}: {said}");
    };
    if jail["landlock"] != 0 {
        for each in host.files() {
            refused(&mut own, each);
        }
        for file in [home.guest_folder("g-2").join("guest.json"), linux.ckp()] {
            let node = json!({ "driver": "file", "node-name": "other", "filename": file, "read-only": true });
            refused(&mut own, ("a file of brood's", "blockdev-add", node));
        }
        if jail["landlock"].as_u64() >= Some(4) {
            refused(&mut own, host.tcp());
        }
    }
    if is_root {
        refused(&mut own, socket(&home.guest_folder("g-2").join("agent")));
    }
    // The filter ends a QEMU that would start a program.
    let (_, command, with) = host.program();
    let _ = own.tell(command, &with);
    until("its end", || {
        let shown = home.json(&["show", "g-1"]);
        (shown["state"] == "dead").then_some(())
    });
    assert!(!PathBuf::from(host.path("program")).exists());
    assert_eq!(home.ask("g-2", "exec echo here")["output"], "here\n");
}

/// A clone with all that gives a QEMU threads: several processors, a disk and a network.
fn with_all(home: &Home, plain: &Demo) -> Demo {
    // Beside the checkpoint is the state folder that has its image.
    let made = Path::new(&plain.path).ancestors().nth(2).unwrap();
    let all = home.named("all");
    let options = ["--memory", "128M", "--cpus", CPUS, "--net", "user"];
    let make = ["checkpoint", "make", "linux", &all.path, "--disk", "24M"];
    let mut make = home.command(&[&make[..], &options].concat());
    make.env("BROOD_IMAGE_DIR", made.join("state/images"));
    let _ = Running::start(make).wait().ok();
    all
}

/// Processors of that clone.
const CPUS: &str = "3";

/// Soft and hard limit of a process, as `/proc/PID/limits` has them.
fn limits(pid: i32, name: &str) -> [String; 2] {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    let line = limits.lines().find_map(|line| line.strip_prefix(name));
    let mut words = line.expect("the limit").split_whitespace();
    [(); 2].map(|()| words.next().expect("a number").to_owned())
}

/// Whether this process is in the user namespace that the host has booted with.
fn is_first_user_namespace() -> bool {
    // `PROC_USER_INIT_INO` of linux/proc_ns.h.
    fs::read_link("/proc/self/ns/user").unwrap() == Path::new("user:[4026531837]")
}

#[test]
fn a_clones_qemu_has_threads_enough_and_no_more() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    let all = with_all(&home, &linux);
    let run = |guest: &str, command: &str| {
        let words = ["ask", "--json", guest, "--", "exec", "sh", "-c", command];
        let answer = home.brood(&words).ok().json();
        assert_eq!(answer["code"], 0, "{answer}");
        text(&answer["output"]).trim().to_owned()
    };
    // Many requests of the disk at once, by all processors.
    let work = "for n in 1 2 3 4 5 6 7 8 9; do \
        dd if=/dev/zero of=/data/$n bs=64k count=8 oflag=direct 2>/dev/null & done; wait; \
        ls /data | grep -c '^[0-9]$'";
    home.restore(&all, 2, "a");
    assert_eq!(run("a-1", "nproc"), CPUS);
    assert_eq!(run("a-1", work), "9");
    assert_eq!(run("a-1", "ls /sys/class/net | grep eth"), "eth0");
    let most = 2 * (80 + CPUS.parse::<usize>().unwrap());
    let own_user = home.json(&["show", "a-1"])["jail"]["own_user"] == true;
    let bounded = own_user && is_first_user_namespace();
    if bounded {
        let limit = limits(home.pid("a-1"), "Max processes");
        assert_eq!(limit, [(); 2].map(|()| most.to_string()));
    }
    let bundle = home.named("bundle");
    let _ = home.brood(&["suspend", "a-1", &bundle.path]).ok();
    home.restore(&bundle, 1, "b");
    assert_eq!(run("b-1", "nproc; ls /data | grep -c '^[0-9]$'"), "3\n9");
    assert_eq!(run("b-1", work), "9");
    if !bounded {
        return;
    }
    // One that would have more ends, and its neighbour does not.
    let mut monitor = Monitor::open(&home.guest_folder("b-1").join("qmp"));
    let had = (0..=most).take_while(|n| {
        let thread = json!({ "qom-type": "iothread", "id": format!("thread{n}") });
        monitor.tell("object-add", &thread).is_ok()
    });
    let had = had.count();
    assert!((32..most).contains(&had), "{had}");
    until("its end", || (home.names("dead") == ["b-1"]).then_some(()));
    assert_eq!(run("a-2", "echo here"), "here");
}
