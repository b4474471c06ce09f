//! Images with a root file system: what brood adds to it, and the initramfs that mounts it.
//!
//! It is read only and the same for all clones; what a guest writes is in its memory, or on a disk
//! of its own.

use super::{
    Error, Images,
    base::{Base, Ingredients},
    cpio::{Archive, Entry},
    description::{FORMAT, Image, Part, Process, Root, VERSION},
    minimal::{DISKS, MODULES, OPTIONS, add_modules},
    scratch::Scratch,
    squashfs,
    tree::{Content, Facts, PathError, Tree},
};
use brood_core::{agent::protocol::ImageProcess, units::Bytes};

/// File systems that a guest needs, with what they need.
const FILESYSTEMS: [&str; 3] = ["loop", "squashfs", "overlay"];
/// What the guest's start calls.
const APPLETS: [&str; 13] = [
    "cat", "chmod", "hostname", "ip", "ln", "mkdir", "mount", "rm", "sh", "sleep", "tr", "usleep",
    "uname",
];
/// Where all that is brood's own is in the guest.
const FOLDER: &str = "usr/lib/brood";

/// What an image with a root file system is made of, beside what all have.
pub(super) struct Contents {
    pub(super) kind: &'static str,
    pub(super) tree: Tree,
    pub(super) sources: Vec<Part>,
    pub(super) process: Option<Process>,
    /// Most that a guest may write to its file system.
    pub(super) size: Option<Bytes>,
}

impl Images {
    /// Builds an image with a root file system. `contents` is asked for once its name is free.
    pub(super) fn build_root(
        &self,
        from: &Ingredients<'_>,
        told: &dyn Fn(&str),
        contents: impl FnOnce(&Scratch) -> Result<Contents, Error>,
    ) -> Result<Image, Error> {
        let scratch = Scratch::new(self, from.name)?;
        let base = Base::obtain(from, &scratch, told)?;
        let mut contents = contents(&scratch)?;
        told("writing the image");
        let added = add_guest_files(&mut contents.tree, &base).and_then(|()| {
            let process = contents.process.as_ref();
            process.map_or(Ok(()), |process| add_process(&mut contents.tree, process))
        });
        added.map_err(|(path, reason)| Error::Root {
            path,
            reason: reason.to_string(),
        })?;
        let kernel = scratch.write("vmlinuz", &base.kernel)?;
        let initramfs = scratch.write("initramfs", &initramfs(&base)?.to_bytes())?;
        let (path, file) = scratch.image_file("root")?;
        squashfs::write(&contents.tree, &file).map_err(|e| Error::Root {
            path: path.display().to_string(),
            reason: e.to_string(),
        })?;
        let root = scratch.finish("root", &file)?;
        let mut sources = base.sources;
        sources.append(&mut contents.sources);
        let size = contents.size.map(|size| format!(" brood.size={}", size.0));
        let mut image = Image {
            format: FORMAT.to_owned(),
            version: VERSION,
            kind: contents.kind.to_owned(),
            sources,
            release: base.release,
            kernel,
            initramfs,
            root: Some(Root {
                file: root.file,
                size: root.size,
                sha256: root.sha256,
                filesystem: squashfs::NAME.to_owned(),
            }),
            command_line: format!(
                "console=ttyS0 rdinit=/init {OPTIONS}{}",
                size.unwrap_or_default()
            ),
            process: contents.process,
            digest: String::new(),
        };
        image.digest = image.compute_digest();
        scratch.publish(&image)?;
        Ok(image)
    }
}

/// The guest's first files, which mount all others.
fn initramfs(base: &Base) -> Result<Archive, Error> {
    let mut archive = Archive::default();
    archive.add("bin/busybox", Entry::File(0o755, base.busybox.clone()));
    archive.add("bin/sh", Entry::Link("busybox"));
    let init = include_str!("guest/initramfs.sh");
    archive.add("init", Entry::File(0o755, init.into()));
    archive.add("disks", Entry::File(0o644, DISKS.into()));
    for path in ["dev", "proc", "sys"] {
        archive.add(path, Entry::Folder(0o755));
    }
    let modules: Vec<_> = MODULES.into_iter().chain(FILESYSTEMS).collect();
    add_modules(&mut archive, &base.modules, &modules)?;
    Ok(archive)
}

/// Adds what the image's programs expect: what the agent reads of it, and the folder.
fn add_process(tree: &mut Tree, process: &Process) -> Result<(), (String, PathError)> {
    let mut put = |path: &str, mode, content| {
        let put = tree.put(path.as_bytes(), Facts::of_mode(mode), content);
        put.map_err(|reason| (path.to_owned(), reason))
    };
    let file = process.of_guest().to_bytes();
    put(ImageProcess::PATH, 0o644, Content::Bytes(file))?;
    match &process.cwd {
        Some(cwd) if !cwd.trim_matches('/').is_empty() && tree.get(cwd).is_none() => {
            let folder = Content::Folder(std::collections::BTreeMap::new());
            let put = tree.put(cwd.as_bytes(), Facts::of_mode(0o755), folder);
            put.map_err(|reason| (cwd.clone(), reason))
        }
        _ => Ok(()),
    }
}

/// Adds what starts the guest, the agent, and the hooks that keep clones apart.
fn add_guest_files(tree: &mut Tree, base: &Base) -> Result<(), (String, PathError)> {
    tree.next_layer();
    let mut put = |path: &str, mode, content| {
        tree.put(path.as_bytes(), Facts::of_mode(mode), content)
            .map_err(|reason| (path.to_owned(), reason))
    };
    let folder = || Content::Folder(std::collections::BTreeMap::new());
    for (name, content) in [
        ("busybox", base.busybox.clone()),
        ("brood-agent", base.agent.clone()),
        ("init", include_str!("guest/root.sh").into()),
        ("port", include_str!("guest/port").into()),
        ("network", include_str!("guest/network").into()),
    ] {
        put(&format!("{FOLDER}/{name}"), 0o755, Content::Bytes(content))?;
    }
    for applet in APPLETS {
        let link = Content::Link(b"../busybox".to_vec());
        put(&format!("{FOLDER}/bin/{applet}"), 0o777, link)?;
    }
    for hooks in ["restored.d", "suspending.d"] {
        put(&format!("etc/brood/{hooks}"), 0o755, folder())?;
    }
    put(
        "etc/brood/restored.d/10-ssh-host-keys",
        0o755,
        Content::Bytes(include_str!("guest/ssh-host-keys").into()),
    )?;
    // Each start writes it anew, and each clone.
    put("etc/machine-id", 0o444, Content::Bytes(Vec::new()))?;
    for (name, text) in [
        ("etc/hostname", "localhost\n"),
        ("etc/hosts", "127.0.0.1 localhost\n"),
        ("etc/resolv.conf", ""),
    ] {
        put(name, 0o644, Content::Bytes(text.into()))?;
    }
    // Users are looked up there.
    for (name, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
    ] {
        if tree.get(name).is_none() {
            let content = Content::Bytes(text.into());
            tree.put(name.as_bytes(), Facts::of_mode(0o644), content)
                .map_err(|reason| (name.to_owned(), reason))?;
        }
    }
    for name in ["dev", "proc", "sys", "run", "root"] {
        if tree.get(name).is_none() {
            tree.put(name.as_bytes(), Facts::of_mode(0o755), folder())
                .map_err(|reason| (name.to_owned(), reason))?;
        }
    }
    if tree.get("tmp").is_none() {
        tree.put(b"tmp", Facts::of_mode(0o1777), folder())
            .map_err(|reason| ("tmp".to_owned(), reason))?;
    }
    Ok(())
}
