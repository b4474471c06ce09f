//! Network of real Linux guests: what they reach, what leads into them, and that clones are apart.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    thread,
};

use brood_tests::{Daemon, Demo, Home, Running, array, skip, text, until, whole};
use reqwest::Method;
use serde_json::{Value, json};

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
    // Which port leads where is told.
    let shown = json!([{ "address": "127.0.0.1", "port": published, "guest_port": 7 }]);
    assert_eq!(home.json(&["show", "a-1"])["published"], shown);
    assert!(home.json(&["show", "b-1"]).get("published").is_none());
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
    let _ = home.brood(&["destroy", "--all"]).ok();
    claims_of_a_pool_have_ports(&home, &card, &plain);
    a_pool_gets_another_network(&home, &card, &fetch);
    a_name_is_looked_up(&home, &card);
}

/// A number that makes a port with one more digit, and neither 1 nor 2 makes one that is anybody's.
fn free_tens() -> u16 {
    until("two ports in a row", || {
        let tens = free_port() / 10;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        (tens > 200 && free(tens * 10 + 1) && free(tens * 10 + 2)).then_some(tens)
    })
}

/// Guests of a pool are numbered for ever, and have the lowest ports that are free.
fn claims_of_a_pool_have_ports(home: &Home, card: &Demo, plain: &Demo) {
    let create = |from: &Demo, more: &[&str]| {
        let words = [
            "pool", "create", "web", &from.path, "--hot", "1", "--max", "3", "--empty",
        ];
        home.brood(&[&words[..], more].concat())
    };
    for (from, more, why) in [
        (card, &["--publish", "8080:80"][..], "{n}"),
        (
            card,
            &["--net", "none", "--publish", "80{n}:80"],
            "--net none",
        ),
        (plain, &["--publish", "80{n}:80"], "no network card"),
    ] {
        let refused = create(from, more);
        assert!(refused.stderr.contains(why), "{refused:?}");
    }
    let tens = free_tens();
    let publish = format!("{tens}{{n}}:7");
    let _ = create(card, &["--publish", &publish]).ok();
    let settings = home.json(&["pool", "list"]);
    assert_eq!(
        settings[0]["publish"],
        json!([format!("127.0.0.1:{publish}")])
    );
    let claim = || home.json(&["pool", "claim", "web"]);
    let port = |claim: &Value| {
        let published = &claim["published"][0];
        assert_eq!(
            (&published["address"], &published["guest_port"]),
            (&json!("127.0.0.1"), &json!(7))
        );
        whole(&published["port"])
    };
    let base = u64::from(tens) * 10;
    let (one, two) = (claim(), claim());
    assert_eq!((port(&one), port(&two)), (base + 1, base + 2));
    let serve = "nc -l -p 7 -e hostname >/dev/null 2>&1 & echo on";
    let _ = exec(home, text(&two["guest"]), serve);
    let heard = until("the guest's server", || {
        let mut heard = String::new();
        let mut stream = TcpStream::connect(("127.0.0.1", tens * 10 + 2)).ok()?;
        let _ = stream.read_to_string(&mut heard);
        (!heard.is_empty()).then_some(heard)
    });
    assert_eq!(heard.trim(), text(&two["guest"]));
    // A port that is free again is the next guest's, also of one that was waiting.
    let _ = home.brood(&["pool", "release", text(&one["token"])]).ok();
    let _ = home.brood(&["pool", "fill", "web"]).ok();
    let hot = claim();
    assert_eq!(
        (&*hot["tier"].to_string(), port(&hot)),
        ("\"hot\"", base + 1)
    );
    assert_ne!(hot["guest"], one["guest"]);
    // A suspended claim gets one when it is resumed.
    let token = text(&two["token"]);
    let _ = home.brood(&["pool", "suspend", token]).ok();
    let resumed = home.json(&["pool", "resume", token]);
    assert_eq!(port(&resumed), base + 2);
    let _ = home.brood(&["pool", "remove", "web", "--force"]).ok();
}

/// Guests that wait follow a change of their pool's network, and claimed ones do not.
fn a_pool_gets_another_network(home: &Home, card: &Demo, fetch: &str) {
    let hot = || home.json(&["pool", "show", "net"])["hot_guests"].clone();
    let set = |more: &[&str]| home.brood(&[&["pool", "set", "net"], more].concat());
    let claim = || home.json(&["pool", "claim", "net"]);
    let tens = free_tens();
    let publish = format!("{tens}{{n}}:7");
    let create = [
        "pool", "create", "net", &card.path, "--hot", "1", "--max", "3",
    ];
    let _ = home.brood(&create).ok();
    let closed = hot();
    assert_eq!(array(&closed).len(), 1);

    // By the command: the guest that waits is replaced by one with a port, and once only.
    let _ = set(&["--publish", &publish]).ok();
    let open = hot();
    assert!(array(&open).len() == 1 && open != closed, "{open} {closed}");
    let _ = set(&["--publish", &publish, "--lease", "10m"]).ok();
    assert_eq!(hot(), open);
    let one = claim();
    assert_eq!(
        (&json!([one["guest"]]), &one["tier"]),
        (&open, &json!("hot"))
    );
    let port = u64::from(tens) * 10 + 1;
    assert_eq!(whole(&one["published"][0]["port"]), port);
    for (more, why) in [
        (["--publish", "8080:80"], "{n}"),
        (["--net", "none"], "--net none"),
        (["--net", "other"], "or default"),
    ] {
        let refused = set(&more);
        assert!(refused.stderr.contains(why), "{refused:?}");
    }
    // One guest may have such a port, and a second one then not be allowed.
    let full = set(&["--max", "1", "--publish", "8080:80"]).exits(1);
    assert!(full.stdout.contains("1 are missing"), "{full:?}");
    let refused = set(&["--max", "2"]);
    assert!(refused.stderr.contains("{n}"), "{refused:?}");

    // Over the API, where the daemon fills the pool.
    let daemon = Daemon::start(home);
    let change = |body: &Value| {
        let request = daemon.request(Method::PATCH, "/api/v1/pools/net");
        let answer = request.json(body).send().unwrap();
        assert_eq!(answer.status(), 200, "{body}");
        answer.json::<Value>().unwrap()
    };
    let body = json!({ "publish": [], "network": "none", "max": 3, "fill": {} });
    let changed = change(&body);
    assert_eq!(
        (&changed["publish"], &changed["network"]),
        (&json!([]), &json!("none"))
    );
    let two = claim();
    assert_eq!(
        (&two["tier"], &two["published"]),
        (&json!("hot"), &Value::Null)
    );
    assert_eq!(
        exec(home, text(&two["guest"]), &format!("{fetch}; true")),
        ""
    );
    // Who has claimed a guest keeps it as it was.
    let kept = home.json(&["show", text(&one["guest"])]);
    assert_eq!(whole(&kept["published"][0]["port"]), port);
    let old = until("the pool to be filled", || array(&hot()).first().cloned());
    assert_eq!(change(&json!({ "network": null }))["network"], Value::Null);
    let new = until("another guest to wait", || {
        array(&hot()).iter().find(|guest| **guest != old).cloned()
    });
    drop(daemon);

    // By the configuration.
    let file = home.path().join("pools.toml");
    let table = format!(
        "[[pool]]\nname = \"net\"\ncheckpoint = \"{}\"\nhot = 1\nmax = 3\n\
         network = \"user\"\npublish = [\"{publish}\"]\n",
        card.path
    );
    fs::write(&file, table).unwrap();
    let file = file.to_string_lossy();
    let _ = home.brood(&["pool", "apply", "--config", &file]).ok();
    let applied = hot();
    assert!(array(&applied).len() == 1 && applied[0] != new, "{applied}");
    let _ = home.brood(&["pool", "apply", "--config", &file]).ok();
    assert_eq!(hot(), applied);
    assert_eq!(
        whole(&home.json(&["show", text(&applied[0])])["published"][0]["port"]),
        port + 1
    );
    let _ = home.brood(&["pool", "remove", "net", "--force"]).ok();
}

/// A resolver that knows one address for every name.
fn resolver() -> Option<String> {
    // Nobody else is there.
    let address = format!(
        "127.77.{}.{}:53",
        std::process::id() % 250,
        1 + std::process::id() % 7
    );
    let socket = UdpSocket::bind(&address).ok()?;
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            let Some(question) = query[..length].get(12..) else {
                continue;
            };
            let name = question.iter().position(|byte| *byte == 0).unwrap_or(0);
            let Some(question) = question.get(..name + 5) else {
                continue;
            };
            let has_address = question.ends_with(&[0, 1, 0, 1]);
            let mut answer = query[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(has_address), 0, 0, 0, 0]);
            answer.extend(question);
            if has_address {
                // The name of the question; an address; for 60 s; of four bytes.
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
            }
            let _ = socket.send_to(&answer, client);
        }
    });
    Some(address.trim_end_matches(":53").to_owned())
}

/// A guest's resolver is this host's: here one of the test's, which QEMU takes for the host's.
fn a_name_is_looked_up(home: &Home, card: &Demo) {
    let file = home.path().join("resolv.conf");
    let Some(address) = resolver() else {
        return skip("looking up a name: no server may be on port 53 here");
    };
    fs::write(&file, format!("nameserver {address}\n")).unwrap();
    let plain = home.command(&["restore", &card.path, "-n", "1", "--prefix", "dns"]);
    let mut restore = Command::new("unshare");
    restore
        .args([
            "--mount",
            "sh",
            "-c",
            "mount --bind \"$0\" /etc/resolv.conf || exit 99; exec \"$@\"",
        ])
        .arg(&file)
        .arg(plain.get_program())
        .args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => restore.env(name, value),
            None => restore.env_remove(name),
        };
    }
    let restored = restore.output().unwrap();
    let said = String::from_utf8_lossy(&restored.stderr);
    if restored.status.code() == Some(99) || said.contains("unshare") {
        return skip("looking up a name: this user may mount nothing");
    }
    assert!(restored.status.success(), "{said}");
    let said = exec(home, "dns-1", "nslookup www.brood.test; true");
    assert!(said.contains("192.0.2.77"), "{said}");
}
