//! Guests of images with a root file system, booted.

use std::{os::unix::net::UnixStream, process::Command};

use brood_tests::{Daemon, Home, PATIENCE, Ran, image_builder, text, whole};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use tokio_tungstenite::tungstenite::{
    Message, client, client::IntoClientRequest, http::HeaderValue,
};

use super::{build, layout::Layout};

/// The program that the image of the test is for.
const APP: &str = "#!/bin/sh\necho \"app $*\"; id -un; pwd; echo $MODE\n";
/// What a guest with a network card has been set to.
const NETWORK: &str = "cat /etc/resolv.conf; grep -c '^eth0.00000000.0202000A' /proc/net/route; \
                       cat /proc/sys/net/ipv4/conf/eth0/arp_notify";

/// The header of a file of root's.
fn header(size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(0o777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

/// An archive with busybox, a user, and the program.
fn archive() -> Vec<u8> {
    let (_, packages) = image_builder().expect("it was there a moment ago");
    let busybox = packages.iter().find(|package| {
        package
            .to_str()
            .is_some_and(|path| path.contains("busybox"))
    });
    let unpacked = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(busybox.unwrap())
        .output()
        .unwrap();
    assert!(unpacked.status.success(), "{unpacked:?}");
    let mut builder = Builder::new(Vec::new());
    let mut add = |path: &str, mode, content: &[u8]| {
        let mut header = header(content.len());
        header.set_mode(mode);
        builder.append_data(&mut header, path, content).unwrap();
    };
    for entry in tar::Archive::new(&unpacked.stdout[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap().ends_with("bin/busybox") {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            add("bin/busybox", 0o755, &content);
        }
    }
    add("bin/app", 0o755, APP.as_bytes());
    let users = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n";
    add("etc/passwd", 0o644, users.as_bytes());
    add(
        "etc/group",
        0o644,
        b"root:x:0:\napp:x:1000:\nwheel:x:10:app\n",
    );
    for name in ["sh", "id", "cat", "grep", "env"] {
        let mut header = header(0);
        header.set_entry_type(EntryType::Symlink);
        let path = format!("bin/{name}");
        builder.append_link(&mut header, path, "busybox").unwrap();
    }
    builder.into_inner().unwrap()
}

fn run(home: &Home, words: &[&str]) -> Ran {
    let words = [&["run"], words].concat();
    home.brood(&words)
}

#[test]
fn a_guest_of_an_oci_image_runs_what_docker_would() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    let mut layout = Layout::new(home.path().join("layout"));
    layout.archive(archive(), "gzip");
    layout.finish();
    let built = build(&home, &["--oci-layout", layout.path(), "app"]);
    let _ = built.expect("it was there a moment ago").ok();
    let app = home.named("app");
    let make = ["checkpoint", "make", "app", &app.path, "--net", "user"];
    let _ = home.brood(&make).ok();
    // Entry point and arguments; other arguments; another program.
    for (words, said) in [
        (&[&*app.path][..], "app --serve\napp\n/srv\ntest\n"),
        (
            &[&app.path, "--", "x", "y z"],
            "app x y z\napp\n/srv\ntest\n",
        ),
        (
            &[
                &app.path,
                "--env",
                "MODE=mine",
                "--user",
                "0:10",
                "--cwd",
                "/",
                "--entrypoint",
                "sh",
                "--",
                "-c",
                "id -u; id -g; pwd; echo $MODE",
            ],
            "0\n10\n/\nmine\n",
        ),
    ] {
        assert_eq!(run(&home, words).ok().stdout, said, "{words:?}");
    }
    // A program beside it has its variables, folder and user, and no entry point.
    home.restore(&app, 1, "a");
    let exec = |words: &[&str]| home.brood(&[&["exec", "a-1"], words].concat());
    let ran = exec(&["--", "sh", "-c", "id; pwd; echo $MODE $HOME $PATH"])
        .ok()
        .stdout;
    let groups = "uid=1000(app) gid=1000(app) groups=10(wheel),1000(app)";
    assert_eq!(ran, format!("{groups}\n/srv\ntest /home/app /bin\n"));
    let ran = exec(&["--user", "root", "--", "sh", "-c", NETWORK])
        .ok()
        .stdout;
    assert_eq!(ran, "nameserver 10.0.2.3\n1\n1\n");
    over_the_api(&home);
    // An image that names no program has none to run.
    let none = run(&home, &[&linux.path]);
    assert_eq!(none.code(), Some(125), "{none:?}");
    assert!(none.stderr.contains("names no program"), "{none:?}");
    let ran = run(&home, &[&linux.path, "--", "echo", "x"]).ok();
    assert_eq!(ran.stdout, "x\n");
}

/// What a program in a guest wrote to its websocket, with its last message.
fn streamed(daemon: &Daemon, guest: &str, start: &Value) -> (String, Value) {
    let address = format!("ws://brood/api/v1/guests/{guest}/exec");
    let mut request = address.into_client_request().unwrap();
    let protocol = HeaderValue::from_static("brood.exec");
    let _ = request
        .headers_mut()
        .insert("sec-websocket-protocol", protocol);
    let stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut socket, _) = client(request, stream).unwrap();
    socket.send(Message::text(start.to_string())).unwrap();
    let (mut output, mut last) = (Vec::new(), Value::Null);
    loop {
        match socket.read().unwrap() {
            Message::Binary(bytes) => output.extend(&bytes[1..]),
            Message::Text(text) => last = serde_json::from_str(&text).unwrap(),
            Message::Close(_) => return (String::from_utf8(output).unwrap(), last),
            _ => {}
        }
    }
}

/// The API runs the image's entry point as the command does, in the guest `a-1`.
fn over_the_api(home: &Home) {
    let daemon = Daemon::start(home);
    let path = "/api/v1/guests/a-1/exec";
    for (asked, said) in [
        (json!({}), "app --serve\napp\n/srv\ntest\n"),
        (
            json!({ "command": [], "args": ["x", "y z"], "user": "root", "cwd": "/" }),
            "app x y z\nroot\n/\ntest\n",
        ),
        (
            json!({ "command": ["sh", "-c", "id -un; pwd; echo $MODE"], "env": { "MODE": "mine" } }),
            "app\n/srv\nmine\n",
        ),
    ] {
        let ran = daemon.post(path, &asked, 200);
        assert_eq!((&ran["code"], text(&ran["output"])), (&json!(0), said));
        let mut start = asked.clone();
        start["type"] = json!("start");
        let (output, last) = streamed(&daemon, "a-1", &start);
        assert_eq!((&*output, &last["code"]), (said, &json!(0)), "{last}");
    }
    let both = json!({ "type": "start", "command": ["true"], "args": ["x"] });
    let (_, refused) = streamed(&daemon, "a-1", &both);
    assert_eq!(refused["problem"]["status"], 400, "{refused}");
    let both = json!({ "command": ["true"], "args": ["x"] });
    let refused = daemon.post(path, &both, 400);
    assert!(text(&refused["detail"]).contains("args"), "{refused}");
}

/// Boots an image of Debian.
pub(crate) fn debian(home: &Home, image: &Value) {
    let root = whole(&image["root"]["size"]);
    let memory = format!("{}M", 112 + root.div_ceil(1 << 19));
    let debian = home.named("debian");
    let make = [
        "checkpoint",
        "make",
        "one",
        &debian.path,
        "--net",
        "user",
        "--memory",
        &memory,
    ];
    let _ = home.brood(&make).ok();
    home.restore(&debian, 1, "d");
    let exec = |words: &[&str]| home.brood(&[&["exec", "d-1"], words].concat()).ok().stdout;
    let words = ["--user", "nobody", "--cwd", "/tmp", "--env", "A=b c"];
    let line = [
        "--",
        "sh",
        "-c",
        "id -un; pwd; echo $A; . /etc/os-release; echo $ID; hostname",
    ];
    assert_eq!(
        exec(&[&words[..], &line].concat()),
        "nobody\n/tmp\nb c\ndebian\nd-1\n"
    );
    assert_eq!(exec(&["--", "sh", "-c", "id -un; pwd"]), "root\n/root\n");
    assert_eq!(
        exec(&["--", "sh", "-c", NETWORK]),
        "nameserver 10.0.2.3\n1\n1\n"
    );
    // What its packages want of each clone.
    let keys = exec(&[
        "--",
        "sh",
        "-c",
        "ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key",
    ]);
    assert!(keys.contains("ED25519"), "{keys}");
}
