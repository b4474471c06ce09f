//! Network of real Linux guests: what they reach, what leads into them, and that clones are apart.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    thread,
};

use brood_tests::{Demo, Home, Running, text, until};

/// A home, a checkpoint of a Linux with a network card, and one of a Linux without.
fn home() -> Option<(Home, Demo, Demo)> {
    let (home, plain) = Home::with_qemu()?;
    // Beside the checkpoint is the state folder that has its image.
    let made = Path::new(&plain.path).ancestors().nth(2)?;
    let card = home.named("card");
    let mut make = home.command(&["checkpoint", "make", "linux", &card.path, "--net", "user"]);
    make.env("BROOD_IMAGE_DIR", made.join("state/images"));
    let _ = Running::start(make).wait().ok();
    Some((home, card, plain))
}

/// What a command in a guest wrote.
#[track_caller]
fn exec(home: &Home, guest: &str, command: &str) -> String {
    let asked = home.brood(&["ask", "--json", guest, "--", "exec", "sh", "-c", command]);
    text(&asked.ok().json()["output"]).trim().to_owned()
}

/// A server of this host that tells everybody a word; its port.
fn server(word: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.write_all(word.as_bytes());
        }
    });
    port
}

/// A port that nobody listens on, for now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn clones_reach_the_host_and_are_reached_and_not_each_other() {
    let Some((home, card, plain)) = home() else {
        return;
    };
    let inspected = home.json(&["checkpoint", "inspect", &card.path]);
    assert_eq!(inspected["qemu"]["network"], "user");
    let port = server("from the host");
    let fetch = format!("nc -w 5 10.0.2.2 {port} </dev/null");
    let restore = |from: &Demo, prefix: &str, more: &[&str]| {
        let words = ["restore", &from.path, "-n", "1", "--prefix", prefix];
        home.brood(&[&words[..], more].concat())
    };

    // Two clones, each behind an address of its own, and with a MAC address of its own.
    let published = free_port();
    let publish = format!("{published}:7");
    let _ = restore(&card, "a", &["--publish", &publish]).ok();
    let _ = restore(&card, "b", &[]).ok();
    for guest in ["a-1", "b-1"] {
        assert_eq!(exec(&home, guest, &fetch), "from the host", "{guest}");
        let mac = exec(&home, guest, "cat /sys/class/net/eth0/address");
        assert_eq!(mac, text(&home.json(&["show", guest])["mac"]));
        let resolver = exec(&home, guest, "cat /etc/resolv.conf");
        assert_eq!(resolver, "nameserver 10.0.2.3");
    }
    let serve = "nc -l -p 7 -e echo hello from $(hostname) >/dev/null 2>&1 & echo on";
    assert_eq!(exec(&home, "a-1", serve), "on");
    // The address that both have is each one's own.
    assert_eq!(
        exec(&home, "b-1", "nc -w 3 10.0.2.15 7 </dev/null; true"),
        ""
    );
    let heard = until("the guest's server", || {
        let mut heard = String::new();
        let mut stream = TcpStream::connect(("127.0.0.1", published)).ok()?;
        let _ = stream.read_to_string(&mut heard);
        (!heard.is_empty()).then_some(heard)
    });
    assert_eq!(heard.trim(), "hello from a-1");

    // A port that is taken is named, and nothing is left.
    let refused = restore(&card, "c", &["--publish", &publish]);
    let refused = refused.exits(1);
    assert!(
        refused
            .stderr
            .contains(&format!("publish port {published}")),
        "{refused:?}"
    );
    for (from, more, why) in [
        (&plain, ["--net", "user"], "--net user"),
        (&card, ["--publish", "80"], "PORT:GUEST_PORT"),
    ] {
        let refused = restore(from, "d", &more);
        assert!(refused.stderr.contains(why), "{refused:?}");
    }
    let two = ["restore", &card.path, "-n", "2", "--publish", "8080:80"];
    assert!(home.brood(&two).exits(1).stderr.contains("{n}"));

    // A suspended guest has its card again.
    let to = home.named("to");
    let _ = home.brood(&["suspend", "b-1", &to.path, "--delta"]).ok();
    let _ = restore(&to, "e", &[]).ok();
    assert_eq!(exec(&home, "e-1", &fetch), "from the host");

    // Without a network nothing is reached; without a card there is no interface.
    let _ = restore(&card, "n", &["--net", "none"]).ok();
    assert_eq!(exec(&home, "n-1", &format!("{fetch}; true")), "");
    let _ = restore(&plain, "p", &["--net", "none"]).ok();
    assert_eq!(exec(&home, "p-1", "ls /sys/class/net"), "lo");
    assert_eq!(home.names("running"), ["a-1", "e-1", "n-1", "p-1"]);
}
