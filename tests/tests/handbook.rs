//! Documents: the tools accept every command of docs/freebsd.md, and brood can talk to its agent.
//! brood's commands in the other documents parse, and their links lead somewhere.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use brood_tests::{
    PATIENCE,
    handbook::{self, blocks, check},
};
use nix::{
    pty::openpty,
    sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
    unistd::ttyname,
};

const DOCUMENT: &str = include_str!("../../docs/freebsd.md");

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn every_command_is_one_that_the_tools_take() {
    let mistakes = check(DOCUMENT, repository());
    let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    assert_eq!(told, [] as [String; 0]);
    // It has something of each kind, or it would say little.
    let commands: Vec<String> = blocks(DOCUMENT)
        .iter()
        .filter(|block| block.kind == "sh")
        .flat_map(|block| block.text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    for command in [
        "brood restore",
        "brood checkpoint import",
        "brood pool create",
        "brood density",
        "bhyve -k",
        "bhyvectl --suspend",
        "zfs create",
        "ifconfig bridge0",
        "sysctl kern.maxprocperuid",
        "kldload",
        "kldstat",
        "tools/freebsd/kernel",
        "tools/freebsd/verify",
        "tools/freebsd/cross",
    ] {
        let there = commands.iter().any(|line| line.starts_with(command));
        assert!(there, "{command} is not in the document");
    }
}

#[test]
fn it_says_that_none_of_it_was_run() {
    assert!(DOCUMENT.contains("**Nothing here was run on FreeBSD 15.**"));
    for claim in [
        "works on FreeBSD",
        "tested on FreeBSD",
        "measured on FreeBSD",
    ] {
        assert!(!DOCUMENT.contains(claim), "{claim}");
    }
}

/// The documents for people, by their paths in the repository.
fn documents() -> Vec<(String, String)> {
    let mut paths: Vec<String> = [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "SPECIFICATION.md",
        "sys/README.md",
    ]
    .map(str::to_owned)
    .into();
    for entry in fs::read_dir(repository().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        paths.extend(name.ends_with(".md").then(|| format!("docs/{name}")));
    }
    let read = |path: String| {
        let text = fs::read_to_string(repository().join(&path)).unwrap();
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// The lines of a document inside its blocks of code, or outside of them.
fn lines(text: &str, inside: bool) -> Vec<&str> {
    let mut code = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            code = !code;
        } else if code == inside {
            lines.push(line);
        }
    }
    lines
}

#[test]
fn brood_takes_its_commands_in_all_documents() {
    let mut commands = 0;
    for (path, text) in documents() {
        let mut block = String::new();
        for line in lines(&text, true) {
            // Behind two spaces is what it does; what has an ellipsis is no whole command.
            let command = line.split("  ").next().unwrap_or_default();
            if command.starts_with("brood ") && !command.contains("...") {
                commands += 1;
                block.push_str(command);
                block.push('\n');
            }
        }
        if !block.is_empty() {
            assert_eq!(said("sh", &block), [] as [String; 0], "{path}");
        }
    }
    assert!(commands > 40, "{commands}");
}

/// What GitHub and others call a heading in a link.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_'))
        .collect()
}

#[test]
fn links_of_documents_lead_somewhere_and_the_index_has_all() {
    let documents = documents();
    let mut broken = Vec::new();
    let mut seen = 0;
    for (path, text) in &documents {
        let prose = lines(text, false).join("\n");
        for link in prose.split("](").skip(1) {
            let link = link.split(')').next().unwrap_or_default();
            if link.starts_with("http") {
                continue;
            }
            seen += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => repository().join(path),
                file => repository().join(path).with_file_name(file),
            };
            let there = fs::read_to_string(&target).unwrap_or_default();
            let mut headings = lines(&there, false)
                .into_iter()
                .filter(|line| line.starts_with('#'))
                .map(|line| anchor(line.trim_start_matches('#').trim()));
            let named = heading.is_empty() || headings.any(|name| name == heading);
            if !target.exists() || !named {
                broken.push(format!("{path}: {link}"));
            }
        }
    }
    assert_eq!(broken, [] as [String; 0]);
    assert!(seen > 40, "{seen}");
    let (_, index) = documents
        .iter()
        .find(|(path, _)| path == "docs/README.md")
        .unwrap();
    for (path, _) in &documents {
        if let Some(name) = path.strip_prefix("docs/") {
            let listed = name == "README.md" || index.contains(&format!("]({name})"));
            assert!(listed, "{path} is not in the index");
        }
    }
}

/// What is said of a document with this one block.
fn said(kind: &str, text: &str) -> Vec<String> {
    let document = format!("# Title\n\n```{kind}\n{text}\n```\n");
    let mistakes = check(&document, repository());
    mistakes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_line_that_no_tool_takes_is_noticed() {
    for (line, words) in [
        (
            "brood restore /ckp/web --gests 5",
            "unexpected argument '--gests'",
        ),
        ("brood restoer /ckp/web", "unrecognized subcommand"),
        (
            "brood restore /ckp/web --guests 1 --disk tape:0",
            "reflink:FILE",
        ),
        (
            "brood checkpoint import /ckp/web.raw /ckp/web",
            "--bhyve-config",
        ),
        ("brood list | brood pool claim", "<POOL>"),
        ("bhyve -Q base", "illegal option -- Q"),
        (
            "bhyve -k /nowhere/base.conf base",
            "Failed to open configuration file",
        ),
        (
            "bhyve -o pci.0.9.0.device=floppy base",
            "unknown device \"floppy\"",
        ),
        ("bhyve -m lots base", "invalid memsize"),
        ("bhyvectl --suspend=/ckp/web.raw", "Usage"),
        (
            "bhyvectl --suspnd=/ckp/web.raw --vm=base",
            "unrecognized option",
        ),
        ("zfs create tank/vm/base", "parent does not exist"),
        (
            "zfs create -o primarycahe=metadata tank/ckp",
            "invalid property",
        ),
        ("zfs snapshot tank/vm@clean", "dataset does not exist"),
        ("ifconfig bridge0 addm tap0", "does not exist"),
        (
            "ifconfig bridge0 create; ifconfig bridge0 addmember tap0",
            "bad value",
        ),
        ("sysctl hw.vmm.maxvms=1000", "unknown oid"),
        ("sysctl kern.maxproc=8192", "read only tunable"),
        ("kldload vmm_vnodes", "no module"),
        ("kldstat -q -m vmm_vnodes", "exit"),
        ("tools/freebsd/kernel --modlues build", "--modlues"),
        ("tools/freebsd/kernel biuld", "biuld"),
        ("tools/freebsd/kernel --src", "lacks its argument"),
        ("tools/freebsd/kernels build", "cannot run it"),
        ("newfs -Q /dev/gpt/ckp", "newfs(8)"),
        ("sysrc brod_enable=YES", "rc.conf"),
        ("rm -r /ckp", "no rule for this command"),
        ("brood ask one-1 'ping", "a quote is not closed"),
    ] {
        let mistakes = said("sh", line);
        let found = mistakes.iter().any(|mistake| mistake.contains(words));
        assert!(found, "{line}: {mistakes:?} without {words:?}");
        assert!(
            mistakes.iter().all(|m| m.starts_with("line 4: ")),
            "{mistakes:?}"
        );
    }
    assert_eq!(
        said("sh", "brood list\nzfs list && sysctl hw.ncpu >/dev/null"),
        [""; 0]
    );
}

#[test]
fn what_is_wrong_elsewhere_is_noticed_too() {
    for (kind, text, words) in [
        ("loader.conf", "vmm_laod=\"YES\"", "vmm_laod"),
        ("loader.conf", "vmmm_load=\"YES\"", "vmmm_load"),
        ("loader.conf", "vmm_load=YES", "name=\"value\""),
        ("loader.conf", "kern.maxprocs=\"8192\"", "kern.maxprocs"),
        ("sysctl.conf", "hw.vmm.maxvms=1000", "unknown oid"),
        ("src.conf", "WITH_BHYVE_SNAPSHOTS=yes", "src.conf"),
        ("bhyve /a.conf", "pci.0.9.0.device=nvme", "cannot save"),
        ("text", "anything", "no rule for blocks"),
        ("sh guest", "hostname x", "no rule for this command"),
    ] {
        let mistakes = said(kind, text);
        let found = mistakes.iter().any(|mistake| mistake.contains(words));
        assert!(found, "{kind} {text}: {mistakes:?} without {words:?}");
    }
    // In the text, and in a table.
    let mistakes = check(
        "Set `hw.vmm.maxvm`.\n\n| `vfs.zfs.arc.maxi` | x |\n",
        repository(),
    );
    let told: Vec<(usize, &str)> = mistakes.iter().map(|m| (m.line, m.what.as_str())).collect();
    let unknown = "no sysctl variable that is known";
    assert_eq!(
        told,
        [
            (1, &*format!("hw.vmm.maxvm: {unknown}")),
            (3, &*format!("vfs.zfs.arc.maxi: {unknown}"))
        ]
    );
}

/// The agent of the document, with stand-ins of what it runs in the guest.
struct Agent {
    child: Child,
    lines: mpsc::Receiver<String>,
    port: File,
    _slave: std::os::fd::OwnedFd,
    dir: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("brood-agent");
        let blocks = handbook::blocks(DOCUMENT);
        let text = blocks.iter().find(|block| block.kind == "sh agent");
        // What must not be written on the machine that tests.
        let text = text
            .expect("the agent")
            .text
            .replace("/etc/machine-id", "\"$ROOT/machine-id\"");
        fs::write(&script, text).unwrap();
        for name in ["hostname", "ifconfig", "service", "stty"] {
            let path = dir.path().join(name);
            let fails = "case $* in *fails*) exit 1 ;; esac";
            fs::write(
                &path,
                format!("#!/bin/sh\necho {name} \"$@\" >>\"$ROOT/ran\"\n{fails}\n"),
            )
            .unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let pair = openpty(None, None).unwrap();
        let mut modes = tcgetattr(&pair.slave).unwrap();
        cfmakeraw(&mut modes);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &modes).unwrap();
        let path = format!(
            "{}:{}",
            dir.path().display(),
            std::env::var("PATH").unwrap()
        );
        let child = Command::new("/bin/sh")
            .arg(&script)
            .arg(ttyname(&pair.slave).unwrap())
            .arg("vtnet7")
            .env("PATH", path)
            .env("ROOT", dir.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let port: File = pair.master.into();
        let (said, lines) = mpsc::channel();
        let reader = BufReader::new(port.try_clone().unwrap());
        thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                let _ = said.send(line);
            }
        });
        Self {
            child,
            lines,
            port,
            _slave: pair.slave,
            dir,
        }
    }

    fn ask(&mut self, request: &str) -> String {
        // As brood sends it: a newline ends whatever half a line is there.
        self.port
            .write_all(format!("\n@0badcafe {request}\n").as_bytes())
            .unwrap();
        let line = self.lines.recv_timeout(PATIENCE).expect("an answer");
        let answer = line.strip_prefix("!0badcafe ").expect("with its tag");
        answer.to_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_agent_speaks_the_protocol() {
    let mut agent = Agent::start();
    let first = agent.ask("ping");
    let (nonce, counter) = first.split_once(' ').unwrap();
    assert!(
        nonce.len() == "nonce=".len() + 16 && nonce.starts_with("nonce="),
        "{first}"
    );
    assert_eq!(counter, "counter=1");
    agent.port.write_all(b"login: root\n# @ half\n").unwrap();
    let identity = "identity name=web-7 generation=00ff mac=02:00:00:00:00:07 seed=0123456789abcdef \
                    entropy=aabb";
    assert_eq!(agent.ask(identity), format!("{nonce} counter=2"));
    let ran = fs::read_to_string(agent.dir.path().join("ran")).unwrap();
    for line in [
        "hostname web-7",
        "ifconfig vtnet7 ether 02:00:00:00:00:07",
        "service dhclient restart vtnet7",
    ] {
        assert!(ran.lines().any(|other| other == line), "{line}: {ran}");
    }
    let id = fs::read_to_string(agent.dir.path().join("machine-id")).unwrap();
    assert_eq!(id, "0123456789abcdef0123456789abcdef\n");
    assert!(agent.ask("identity name=fails").starts_with("error"));
    assert!(agent.ask("reboot now").starts_with("error: reboot"));
    assert_eq!(agent.ask("ping x"), format!("{nonce} counter=5"));
}
