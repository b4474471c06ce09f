//! A real Linux for tests: the minimal image, and a checkpoint of it, both made once for each build
//! of brood and kept in the target folder.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{brood, skip::without_qemu};

/// Packages that the image is made of.
const KERNEL: &str = "linux-image-cloud-amd64";
const BUSYBOX: &str = "busybox-static";
/// A kernel with drivers that the other one does not have yet.
const LATER_KERNEL: &str = "linux-image-6.12-cloud-amd64";
/// What the guest does before it is sealed: a program that counts, and a page of its own in use. It
/// starts no program for each step, which would keep the processor of many clones busy.
const WARM: &str = "mkfifo /run/tick; setsid sh -c 'exec 3<>/run/tick; n=0; while :; do n=$((n+1)); echo $n >/run/count; read -t 1 x <&3; done' \
                    </dev/null >/dev/null 2>&1 &";
/// The checkpoint's memory.
const MEMORY: &str = "128M";
/// Size of the disk that a guest has to itself.
const DISK: &str = "24M";

/// What builds images in tests: the agent's program and the packages.
///
/// Where they cannot be had, the running test is named as skipped, and must return.
///
/// # Panics
/// When `BROOD_REQUIRE_QEMU=1` is set, and they cannot be had.
#[must_use]
pub fn image_builder() -> Option<(PathBuf, Vec<PathBuf>)> {
    let target = target();
    let agent = target.join("x86_64-unknown-linux-gnu/agent/brood-agent");
    if !agent.is_file() {
        without_qemu("there is no static brood-agent: tools/agent builds it");
        return None;
    }
    match packages(&target.join("linux-guest/packages")) {
        Ok(packages) => Some((agent, packages)),
        Err(why) => {
            without_qemu(&format!("no Debian packages for a guest: {why}"));
            None
        }
    }
}

/// The package of a later kernel than that of [`image_builder`].
///
/// Where it cannot be had, the running test is named as skipped, and must return.
#[must_use]
pub fn later_kernel() -> Option<PathBuf> {
    let folder = target().join("linux-guest/later-kernel");
    let obtain = || -> Result<PathBuf, String> {
        fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        // One test fetches it, the others wait for that.
        let lock = File::create(folder.join("lock")).map_err(|e| e.to_string())?;
        lock.lock().map_err(|e| e.to_string())?;
        kernel_in(&folder, LATER_KERNEL)
    };
    match obtain() {
        Ok(package) => Some(package),
        Err(why) => {
            without_qemu(&format!("no {LATER_KERNEL}: {why}"));
            None
        }
    }
}

/// A checkpoint of a real Linux, `DIR/NAME`, which nobody may change. The first test boots it, the
/// others wait for that.
///
/// Where QEMU is not installed, the running test is named as skipped, and must return.
///
/// # Panics
/// When it cannot be booted; or when `BROOD_REQUIRE_QEMU=1` is set, and QEMU is not installed.
#[must_use]
pub fn linux_guest() -> Option<String> {
    checkpoint_of("linux", |folder, agent, packages, checkpoint| {
        build(folder, &["--minimal", "linux"], agent, packages);
        let options = ["--memory", MEMORY, "--warm", WARM];
        make(folder, "linux", &options, checkpoint);
    })
}

/// A checkpoint of a real Linux that reads its root file system from a disk and writes to a disk of
/// its own, as [`linux_guest`]. Its disks lie beside it, so that a test takes a copy of it.
#[must_use]
pub(crate) fn linux_with_disks() -> Option<String> {
    checkpoint_of("disks", |folder, agent, packages, checkpoint| {
        let layout = folder.join("layout");
        write_layout(&layout);
        let layout = layout.to_str().expect("plain letters");
        build(folder, &["--oci-layout", layout, "disks"], agent, packages);
        let options = ["--memory", "96M", "--root", "disk", "--disk", DISK];
        make(folder, "disks", &options, checkpoint);
    })
}

/// Writes an OCI layout of an image that has hardly any files: a shell, and one to read.
///
/// # Panics
/// When there is no room for it.
pub fn write_layout(folder: &Path) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a folder");
    let blob = |content: &[u8], kind: &str| {
        let digest: String = Sha256::digest(content)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        fs::write(blobs.join(&digest), content).expect("there is room");
        let digest = format!("sha256:{digest}");
        json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest,
                "size": content.len() })
    };
    let mut layer = tar::Builder::new(Vec::new());
    let mut put = |path: &str, kind: tar::EntryType, content: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_mtime(1_000_000);
        header.set_uid(0);
        header.set_gid(0);
        let added = if kind == tar::EntryType::Symlink {
            header.set_size(0);
            layer.append_link(&mut header, path, content)
        } else {
            header.set_size(content.len() as u64);
            layer.append_data(&mut header, path, content.as_bytes())
        };
        added.expect("an archive in memory");
    };
    for folder in ["bin", "etc", "srv", "var", "tmp"] {
        put(folder, tar::EntryType::Directory, "");
    }
    put("bin/sh", tar::EntryType::Symlink, "/usr/lib/brood/busybox");
    put("srv/of-image", tar::EntryType::Regular, "of the image\n");
    let layer = layer.into_inner().expect("an archive in memory");
    let layer = blob(&layer, "layer.v1.tar");
    let config = json!({ "architecture": "amd64", "os": "linux", "config": {},
                         "rootfs": { "type": "layers", "diff_ids": [] } });
    let config = blob(config.to_string().as_bytes(), "config.v1+json");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    let mut manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    manifest["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    for (name, text) in [
        ("index.json", index),
        ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })),
    ] {
        fs::write(folder.join(name), text.to_string()).expect("there is room");
    }
}

/// Makes the checkpoint of this name unless it is there.
fn checkpoint_of(name: &str, make: impl FnOnce(&Path, &Path, &[PathBuf], &Path)) -> Option<String> {
    let version = Command::new("qemu-system-x86_64").arg("--version").output();
    let Ok(version) = version else {
        without_qemu("no qemu-system-x86_64");
        return None;
    };
    let folder = target().join("linux-guest");
    fs::create_dir_all(&folder).expect("a folder in the target folder");
    // Held until the checkpoint is there, by one process.
    let lock = File::create(folder.join("lock")).expect("a lock");
    lock.lock().expect("a lock");
    let (agent, packages) = image_builder()?;
    let mut key = Sha256::new();
    key.update(&version.stdout);
    key.update(env::var("BROOD_QEMU_ACCEL").unwrap_or_default());
    key.update(WARM);
    key.update(MEMORY);
    key.update(DISK);
    for file in packages.iter().chain([&agent, &brood()]) {
        let facts = fs::metadata(file).expect("a file that is there");
        key.update(format!("{file:?} {} {:?}", facts.len(), facts.modified()));
    }
    let key: String = key
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let of_key = folder.join(&key);
    let checkpoint = of_key.join("ckp").join(name);
    if !checkpoint.with_extension("ckp.brood").is_file() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            // Of earlier builds.
            let kept = ["packages", &key].map(OsStr::new);
            if !kept.contains(&&*entry.file_name()) && entry.path().is_dir() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        make(&of_key, &agent, &packages, &checkpoint);
    }
    Some(checkpoint.to_str().expect("plain letters").to_owned())
}

/// Runs brood in the state folder in which the shared images are.
fn run(folder: &Path, words: &[&str]) {
    let mut command = Command::new(brood());
    command
        .args(words)
        .env("BROOD_STATE_DIR", folder.join("state"))
        .env("BROOD_CONFIG", "/dev/null");
    let ran = command.output().expect("brood runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{command:?}: {said}");
}

/// Builds an image.
fn build(folder: &Path, what: &[&str], agent: &Path, packages: &[PathBuf]) {
    // Of a test that was killed before it had the checkpoint.
    let _ = fs::remove_dir_all(folder.join("state/images").join(what[what.len() - 1]));
    let mut words = vec!["image", "build"];
    words.extend(what);
    let agent = agent.to_str().expect("plain letters");
    words.extend(["--agent", agent]);
    for package in packages {
        words.extend(["--deb", package.to_str().expect("plain letters")]);
    }
    run(folder, &words);
}

/// Boots an image.
fn make(folder: &Path, image: &str, options: &[&str], checkpoint: &Path) {
    let mut words = vec!["checkpoint", "make"];
    words.extend(options);
    words.extend(["--", image, checkpoint.to_str().expect("plain letters")]);
    run(folder, &words);
}

/// The kernel's and busybox's package, fetched when they are not there.
fn packages(folder: &Path) -> Result<Vec<PathBuf>, String> {
    fs::create_dir_all(folder).map_err(|e| e.to_string())?;
    let kernel = kernel_in(folder, KERNEL)?;
    if package_in(folder, BUSYBOX).is_none() {
        fetch(folder, BUSYBOX)?;
    }
    let busybox = package_in(folder, BUSYBOX);
    let busybox = busybox.ok_or_else(|| format!("apt-get left no {BUSYBOX}"))?;
    Ok(vec![kernel, busybox])
}

/// The package of the kernel that this one depends on, fetched when it is not there.
fn kernel_in(folder: &Path, name: &str) -> Result<PathBuf, String> {
    const PREFIX: &str = "linux-image-";
    if let Some(there) = package_in(folder, PREFIX) {
        return Ok(there);
    }
    let needs = output(folder, Command::new("apt-cache").args(["depends", name]))?;
    let mut needs = needs
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    let kernel = needs.find(|need| need.starts_with(PREFIX));
    fetch(folder, kernel.ok_or("apt-cache names no kernel")?)?;
    package_in(folder, PREFIX).ok_or_else(|| format!("apt-get left no {PREFIX}"))
}

/// A package in a folder whose name begins so.
fn package_in(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        (name.starts_with(prefix) && name.ends_with(".deb")).then(|| entry.path())
    })
}

/// Has apt fetch a package into a folder.
fn fetch(folder: &Path, name: &str) -> Result<(), String> {
    let mut command = Command::new("apt-get");
    let fetch = command.args(["-q", "-o", "APT::Sandbox::User=root", "download", name]);
    let fetched = output(folder, fetch).or_else(|_| {
        // On a fresh machine apt has no lists yet, or old ones.
        output(folder, Command::new("apt-get").args(["-q", "update"]))?;
        output(folder, fetch)
    });
    fetched.map(drop)
}

/// What a command wrote that works in this folder.
fn output(folder: &Path, command: &mut Command) -> Result<String, String> {
    let ran = command.current_dir(folder).env("LC_ALL", "C").output();
    let ran = ran.map_err(|e| format!("{command:?}: {e}"))?;
    if ran.status.success() {
        Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
    } else {
        Err(format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&ran.stderr).trim()
        ))
    }
}

/// The program passt, of Debian's package.
///
/// Where it cannot be had, the running test is named as skipped, and must return.
#[must_use]
pub fn passt() -> Option<PathBuf> {
    let folder = target().join("linux-guest/passt");
    let program = folder.join("usr/bin/passt");
    let unpack = || -> Result<(), String> {
        fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        // One test makes it, the others wait for that.
        let lock = File::create(folder.join("lock")).map_err(|e| e.to_string())?;
        lock.lock().map_err(|e| e.to_string())?;
        if program.is_file() {
            return Ok(());
        }
        fetch(&folder, "passt")?;
        let package = package_in(&folder, "passt").ok_or("apt-get left no passt")?;
        let mut unpack = Command::new("dpkg-deb");
        output(&folder, unpack.arg("--extract").arg(package).arg(".")).map(drop)
    };
    match unpack() {
        Ok(()) => Some(program),
        Err(why) => {
            without_qemu(&format!("no passt: {why}"));
            None
        }
    }
}

/// The target folder.
pub(crate) fn target() -> PathBuf {
    let test = env::current_exe().expect("a test knows where it is");
    let profile = test.ancestors().find(|dir| dir.join("deps").is_dir());
    let target = profile
        .and_then(Path::parent)
        .expect("tests are built in target/PROFILE/deps");
    target.to_owned()
}
