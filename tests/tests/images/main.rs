//! Images of guests with a root file system: of Debian's packages and of OCI layouts, whoever made
//! those.

mod boot;
mod layout;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    thread,
};

use backhand::{FilesystemReader, InnerNode};
use brood_tests::{Home, Ran, Running, image_builder, signal, text, until, whole, without_qemu};
use layout::Layout;
use nix::sys::signal::Signal;
use serde_json::json;
use tar::EntryType;

/// `brood image build` with the packages of the tests.
fn build(home: &Home, words: &[&str]) -> Option<Ran> {
    let (agent, packages) = image_builder()?;
    let mut command = vec![
        "image",
        "build",
        "--json",
        "--agent",
        agent.to_str().unwrap(),
    ];
    for package in &packages {
        command.extend(["--deb", package.to_str().unwrap()]);
    }
    command.extend(words);
    Some(home.brood(&command))
}

/// Files of a root file system: what they hold, `-> TO` of a link, `/` of a folder.
fn files(root: &Path) -> BTreeMap<String, String> {
    let reader = BufReader::new(File::open(root).unwrap());
    let filesystem = FilesystemReader::from_reader(reader).unwrap();
    let described = filesystem.files().map(|node| {
        let content = match &node.inner {
            InnerNode::File(file) => {
                let mut content = Vec::new();
                let mut reader = filesystem.file(file).reader();
                reader.read_to_end(&mut content).unwrap();
                String::from_utf8_lossy(&content).into_owned()
            }
            InnerNode::Symlink(link) => format!("-> {}", link.link.display()),
            InnerNode::Dir(_) => "/".to_owned(),
            other => panic!("{other:?}"),
        };
        (node.fullpath.to_str().unwrap().to_owned(), content)
    });
    described.collect()
}

const FILE: EntryType = EntryType::Regular;
const FOLDER: EntryType = EntryType::Directory;

#[test]
fn an_oci_layout_becomes_an_image() {
    let home = Home::bare();
    let layout = |name: &str| {
        let mut layout = Layout::new(home.path().join(name));
        let base = [
            ("usr/", FOLDER, ""),
            ("usr/bin/", FOLDER, ""),
            ("bin", EntryType::Symlink, "usr/bin"),
            ("etc/", FOLDER, ""),
            ("etc/motd", FILE, "old"),
            ("etc/old", FILE, "old"),
            ("data/", FOLDER, ""),
            ("data/old", FILE, "old"),
        ];
        layout.layer(&base, "gzip");
        let app = [
            ("bin/app", FILE, "program"),
            ("bin/same", EntryType::Link, "bin/app"),
            ("etc/.wh.old", FILE, ""),
        ];
        layout.layer(&app, "zstd");
        let last = [
            ("etc/motd", FILE, "new"),
            ("data/.wh..wh..opq", FILE, ""),
            ("data/new", FILE, "new"),
        ];
        layout.layer(&last, "tar");
        layout.finish();
        layout
    };
    let (one, two) = (layout("one"), layout("two"));
    let Some(built) = build(&home, &["--oci-layout", one.path(), "one"]) else {
        return;
    };
    let image = built.ok().json();
    let process = &image["process"];
    assert_eq!(process["env"], json!(["PATH=/bin", "MODE=test"]));
    assert_eq!(process["entrypoint"], json!(["/bin/app"]));
    assert_eq!(process["command"], json!(["--serve"]));
    assert_eq!(
        (&process["cwd"], &process["user"]),
        (&json!("/srv"), &json!("app"))
    );
    let files = files(&home.state().join("images/one/root"));
    let content = |path: &str| files.get(path).map_or("none", String::as_str);
    assert_eq!(content("/bin"), "-> usr/bin");
    assert_eq!(content("/usr/bin/app"), "program");
    assert_eq!(content("/usr/bin/same"), "program");
    assert_eq!(content("/etc/motd"), "new");
    assert_eq!(
        (content("/etc/old"), content("/data/old")),
        ("none", "none")
    );
    assert_eq!(content("/data/new"), "new");
    assert_eq!(content("/etc/brood/restored.d"), "/");
    assert!(content("/usr/lib/brood/brood-agent").len() > 100_000);
    // The same layers, in another place and a second later.
    let again = build(&home, &["--oci-layout", two.path(), "two"]).unwrap();
    assert_eq!(again.ok().json()["digest"], image["digest"]);
    let listed = home.json(&["image", "list"]);
    assert_eq!(listed["images"][0]["kind"], "oci");
    assert!(whole(&listed["images"][0]["size"]) > 1 << 20);
    let inspected = home.brood(&["image", "inspect", "one"]).ok().stdout;
    assert!(inspected.contains("/bin/app --serve"), "{inspected}");
    let _ = home.brood(&["image", "remove", "one"]).ok();
    assert!(!home.state().join("images/one").exists());
}

#[test]
fn a_hostile_layout_makes_no_image() {
    let home = Home::bare();
    let refused = |name: &str, hurt: &dyn Fn(&mut Layout), reason: &str| {
        let mut layout = Layout::new(home.path().join(name));
        layout.layer(&[("etc/", FOLDER, ""), ("etc/motd", FILE, "x")], "gzip");
        hurt(&mut layout);
        if !layout.folder.join("index.json").exists() {
            layout.finish();
        }
        let Some(built) = build(&home, &["--oci-layout", layout.path(), name]) else {
            return false;
        };
        assert_eq!(built.code(), Some(1), "{name}: {built:?}");
        assert!(built.stderr.contains(reason), "{name}: {built:?}");
        true
    };
    let layer = |entry: (&'static str, EntryType, &'static str)| {
        move |layout: &mut Layout| layout.layer(&[entry], "gzip")
    };
    if !refused(
        "above",
        &layer(("../../etc/cron.d/x", FILE, "x")),
        "../../etc/cron.d/x",
    ) {
        return;
    }
    refused(
        "link",
        &layer(("x", EntryType::Link, "/etc/shadow")),
        "a file that is not there",
    );
    refused(
        "device",
        &layer(("dev/sda", EntryType::Block, "")),
        "dev/sda: it is a device",
    );
    let change = |layout: &mut Layout| {
        let digest = text(&layout.layers[0]["digest"]).replace("sha256:", "");
        let blob = layout.folder.join("blobs/sha256").join(digest);
        let mut content = fs::read(&blob).unwrap();
        *content.last_mut().unwrap() ^= 1;
        fs::write(blob, content).unwrap();
    };
    refused("changed", &change, "does not have this digest");
    let rename = |layout: &mut Layout| {
        layout.layers[0]["digest"] = json!("sha256:../../../../etc/passwd");
    };
    refused("named", &rename, "is no SHA-256 digest");
    let size = |layout: &mut Layout| layout.layers[0]["size"] = json!(1);
    refused("size", &size, "bytes, not 1");
    let other = |layout: &mut Layout| {
        let mut only = layout.blob(b"{}", "application/vnd.oci.image.manifest.v1+json");
        only["platform"] = json!({ "os": "linux", "architecture": "arm64" });
        let index = json!({ "schemaVersion": 2, "manifests": [only] });
        fs::write(layout.folder.join("index.json"), index.to_string()).unwrap();
    };
    refused("platform", &other, "no image for linux/amd64");
    let images = fs::read_dir(home.state().join("images"));
    assert_eq!(images.map_or(0, Iterator::count), 0, "something is left");
}

#[test]
fn debian_is_the_same_when_it_is_built_again_and_boots() {
    let Some((home, _)) = Home::with_qemu() else {
        return;
    };
    if Command::new("mmdebstrap")
        .arg("--version")
        .output()
        .is_err()
    {
        without_qemu("no mmdebstrap");
        return;
    }
    if image_builder().is_none() {
        return;
    }
    let install = |name: &str| {
        let words = [
            "debian",
            name,
            "--packages",
            "openssh-server",
            "--size",
            "64M",
        ];
        build(&home, &words).unwrap().ok().json()
    };
    let (one, two) = thread::scope(|scope| {
        let other = scope.spawn(|| install("two"));
        (install("one"), other.join().unwrap())
    });
    assert_eq!(one["root"], two["root"]);
    assert_eq!(one["digest"], two["digest"]);
    assert_eq!(one["sources"], two["sources"]);
    let sources = one["sources"].as_array().unwrap();
    assert!(
        sources
            .iter()
            .any(|source| source["name"] == "openssh-server")
    );
    assert!(text(&one["command_line"]).ends_with("brood.size=67108864"));
    let files = files(&home.state().join("images/one/root"));
    assert!(files["/etc/brood/restored.d/10-ssh-host-keys"].contains("ssh-keygen -q"));
    let keys: Vec<_> = files
        .keys()
        .filter(|path| path.contains("ssh_host_"))
        .collect();
    assert!(keys.is_empty(), "secrets of one machine: {keys:?}");
    assert_eq!(files["/etc/machine-id"], "");
    boot::debian(&home, &one);
}

/// The folder of a build that was killed stays as long as one of its programs works there, and then
/// goes with the next look.
#[test]
fn what_a_killed_build_leaves_is_removed() {
    let home = Home::bare();
    // A program that works for ever, in place of the one that reads packages.
    let programs = home.path().join("programs");
    fs::create_dir(&programs).unwrap();
    let (program, pid) = (programs.join("dpkg-deb"), home.path().join("pid"));
    let script = format!("#!/bin/sh\necho $$ >{}\nexec sleep 4711\n", pid.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let package = home.path().join("a.deb");
    fs::write(&package, "").unwrap();
    let deb = package.to_str().unwrap();
    let mut command = home.command(&["image", "build", "--minimal", "one", "--deb", deb]);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", programs.display()));
    let build = Running::start(command);
    let worker: i32 = until("the program", || {
        fs::read_to_string(&pid).ok()?.trim().parse().ok()
    });
    build.signal(Signal::SIGKILL);
    assert_eq!(build.wait().killed_by(), Some(9));
    let images = home.state().join("images");
    let left = || {
        let _ = home.brood(&["image", "list"]).ok();
        let entries = fs::read_dir(&images).unwrap().flatten();
        entries.map(|entry| entry.file_name()).collect::<Vec<_>>()
    };
    // A folder that is not a build's stays, whatever its name is like.
    fs::create_dir(images.join(".other.0123456789abcdef")).unwrap();
    assert_eq!(left().len(), 2);
    signal(worker, Signal::SIGKILL);
    until("it to be removed", || {
        (left() == [".other.0123456789abcdef"]).then_some(())
    });
}
