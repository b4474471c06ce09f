//! Builder of the minimal image: kernel, busybox and agent.

use std::{
    env,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    DESCRIPTION, Error, FORMAT, Image, ImageFile, Images, Part, VERSION,
    cpio::{Archive, Entry},
    debian::{Package, kernel_of},
    hex, measure,
    modules::Modules,
};
use brood_core::{owner_only, units::Bytes};

/// The package that needs the newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What names of packages with a kernel begin with.
const KERNEL_PREFIX: &str = "linux-image-";
/// The package with the shell and all other programs.
const BUSYBOX: &str = "busybox-static";
/// Modules that the guest loads, with what they need.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtio_blk", "virtio_net"];
/// The kernel's command line. A guest whose kernel has panicked ends; no page is zeroed that nobody
/// reads, since each is one that clones no longer share; and no watchdog wakes an idle guest.
const COMMAND_LINE: &str = "console=ttyS0 rdinit=/sbin/init quiet panic=-1 nowatchdog \
                            init_on_alloc=0 init_on_free=0";
/// Where in the guest the agent is.
const AGENT: &str = "sbin/brood-agent";
/// The agent's program.
const AGENT_PROGRAM: &str = "brood-agent";

/// An image to build.
#[derive(Debug)]
pub(crate) struct Build<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// The agent's program, static.
    pub(crate) agent: &'a Path,
    /// Packages that need not be fetched.
    pub(crate) packages: &'a [PathBuf],
}

/// The agent's program that was installed or built with this program.
pub(crate) fn agent_beside_program() -> Result<PathBuf, Error> {
    let program = env::current_exe().map_err(Error::io("find", Path::new("this program")))?;
    let folder = program.parent().unwrap_or(Path::new("/"));
    let target = folder.parent().unwrap_or(Path::new("/"));
    let places = [
        // As tools/agent builds it: where a plain build has left one too, that is not static.
        target
            .join("x86_64-unknown-linux-gnu/agent")
            .join(AGENT_PROGRAM),
        folder.join(AGENT_PROGRAM),
        // As packages install it.
        target.join("lib/brood").join(AGENT_PROGRAM),
    ];
    if let Some(found) = places.iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    let looked: Vec<_> = places
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    Err(Error::NoAgent(looked.join(", ")))
}

/// A folder that goes with its value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Images {
    /// Builds an image. `told` learns what is being done.
    pub(crate) fn build(&self, build: &Build<'_>, told: &dyn Fn(&str)) -> Result<Image, Error> {
        let path = self.path(build.name)?;
        if path.exists() {
            return Err(Error::Exists(path));
        }
        let agent = program(build.agent)?;
        owner_only::create_folder(&self.folder).map_err(Error::io("create", &self.folder))?;
        let scratch = self.scratch(build.name)?;
        let (packages, image) = (scratch.0.join("packages"), scratch.0.join("image"));
        for folder in [&packages, &image] {
            fs::create_dir(folder).map_err(Error::io("create", folder))?;
        }
        let [kernel, busybox] = obtain(build.packages, &packages, told)?;
        told("unpacking the packages");
        let root = scratch.0.join("root");
        kernel.unpack(&root)?;
        busybox.unpack(&root)?;
        let lacks = |package: &Package, what: &str| Error::Package {
            package: package.part.name.clone(),
            what: what.to_owned(),
        };
        let (vmlinuz, release) =
            find_kernel(&root)?.ok_or_else(|| lacks(&kernel, "kernel /boot/vmlinuz-RELEASE"))?;
        let modules = [
            format!("lib/modules/{release}"),
            format!("usr/lib/modules/{release}"),
        ];
        let modules = modules
            .iter()
            .map(|folder| root.join(folder))
            .find(|path| path.is_dir());
        let modules = Modules::below(&modules.ok_or_else(|| lacks(&kernel, "modules"))?)?;
        let places = ["bin/busybox", "usr/bin/busybox"].map(|path| root.join(path));
        let shell = places.iter().find(|path| path.is_file());
        let shell = program(shell.ok_or_else(|| lacks(&busybox, "busybox"))?)?;

        told("writing the image");
        let agent_part = Part {
            name: AGENT_PROGRAM.to_owned(),
            version: None,
            sha256: hex(&Sha256::digest(&agent)),
        };
        let archive = initramfs(shell, agent, &modules)?;
        let kernel_bytes = fs::read(&vmlinuz).map_err(Error::io("read", &vmlinuz))?;
        let kernel_file = write(&image, "vmlinuz", &kernel_bytes)?;
        let initramfs_file = write(&image, "initramfs", &archive.to_bytes())?;
        let described = Image {
            format: FORMAT.to_owned(),
            version: VERSION,
            kind: "minimal".to_owned(),
            sources: vec![kernel.part, busybox.part, agent_part],
            release,
            digest: Image::digest_of(&kernel_file, &initramfs_file, COMMAND_LINE),
            kernel: kernel_file,
            initramfs: initramfs_file,
            command_line: COMMAND_LINE.to_owned(),
        };
        let mut text = serde_json::to_vec_pretty(&described)
            .map_err(|e| Error::io("write", &image.join(DESCRIPTION))(e.into()))?;
        text.push(b'\n');
        write(&image, DESCRIPTION, &text)?;
        // The name appears with all that is in it. rename(2) replaces no folder that has files.
        match fs::rename(&image, &path) {
            Ok(()) => Ok(described),
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Err(Error::Exists(path)),
            Err(e) => Err(Error::io("create", &path)(e)),
        }
    }

    /// A new folder in the folder of images, so that what is made in it can be renamed.
    fn scratch(&self, name: &str) -> Result<Scratch, Error> {
        let path = self.folder.join(format!(".{name}.{}", std::process::id()));
        // Left by a process of this number that was killed.
        let _ = fs::remove_dir_all(&path);
        owner_only::create_folder(&path).map_err(Error::io("create", &path))?;
        Ok(Scratch(path))
    }
}

/// The two packages of an image: those that were given, the others fetched.
fn obtain(given: &[PathBuf], folder: &Path, told: &dyn Fn(&str)) -> Result<[Package; 2], Error> {
    let given = given.iter().map(|file| Package::of_file(file));
    let given = given.collect::<Result<Vec<_>, _>>()?;
    let find = |wanted: &dyn Fn(&str) -> bool| {
        given
            .iter()
            .find(|package| wanted(&package.part.name))
            .cloned()
    };
    let kernel = match find(&|name| name.starts_with(KERNEL_PREFIX)) {
        Some(kernel) => kernel,
        None => {
            told("fetching the kernel");
            Package::fetch(&kernel_of(KERNEL)?, folder)?
        }
    };
    let busybox = match find(&|name| name == BUSYBOX) {
        Some(busybox) => busybox,
        None => {
            told("fetching busybox");
            Package::fetch(BUSYBOX, folder)?
        }
    };
    Ok([kernel, busybox])
}

/// The kernel in an unpacked package, and its release.
fn find_kernel(root: &Path) -> Result<Option<(PathBuf, String)>, Error> {
    let boot = root.join("boot");
    if !boot.is_dir() {
        return Ok(None);
    }
    for entry in fs::read_dir(&boot).map_err(Error::io("list", &boot))? {
        let entry = entry.map_err(Error::io("list", &boot))?;
        let name = entry.file_name();
        if let Some(release) = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-")) {
            return Ok(Some((entry.path(), release.to_owned())));
        }
    }
    Ok(None)
}

/// Reads a program, and refuses one that needs libraries: the guest has none.
fn program(file: &Path) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    File::open(file)
        .and_then(|mut open| open.read_to_end(&mut content))
        .map_err(Error::io("read", file))?;
    let refuse = |reason| Error::Program {
        file: file.to_owned(),
        reason,
    };
    match needs_interpreter(&content) {
        Some(false) => Ok(content),
        Some(true) => Err(refuse("it is not static, and the guest has no libraries")),
        None => Err(refuse("it is no program for x86-64 Linux")),
    }
}

/// Whether an ELF program for x86-64 names an interpreter, the dynamic linker (elf(5)); none when it
/// is no such program.
fn needs_interpreter(elf: &[u8]) -> Option<bool> {
    const MACHINE: u16 = 62;
    const INTERPRETER: u32 = 3;
    let bytes = |at: usize, count: usize| elf.get(at..at.checked_add(count)?);
    let number = |at: usize, count: usize| -> Option<u64> {
        let bytes = bytes(at, count)?.iter().rev();
        Some(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    if bytes(0, 6)? != b"\x7fELF\x02\x01" || number(18, 2)? != u64::from(MACHINE) {
        return None;
    }
    let table = usize::try_from(number(32, 8)?).ok()?;
    let (size, count) = (number(54, 2)?, number(56, 2)?);
    for entry in 0..count {
        let at = table.checked_add(usize::try_from(entry * size).ok()?)?;
        if number(at, 4)? == u64::from(INTERPRETER) {
            return Some(true);
        }
    }
    Some(false)
}

/// All files of the guest.
fn initramfs(shell: Vec<u8>, agent: Vec<u8>, modules: &Modules) -> Result<Archive, Error> {
    let mut archive = Archive::default();
    archive.add("bin/busybox", Entry::File(0o755, shell));
    archive.add("bin/sh", Entry::Link("busybox"));
    archive.add("sbin/init", Entry::Link("../bin/busybox"));
    archive.add(AGENT, Entry::File(0o755, agent));
    for (path, mode, text) in [
        ("etc/init.d/start", 0o755, include_str!("minimal/start.sh")),
        ("etc/inittab", 0o644, include_str!("minimal/inittab")),
        ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", 0o644, "root:x:0:\n"),
        ("etc/hostname", 0o644, "localhost\n"),
        ("etc/hosts", 0o644, "127.0.0.1 localhost\n"),
    ] {
        archive.add(path, Entry::File(mode, text.into()));
    }
    for (path, mode) in [
        ("dev", 0o755),
        ("etc/brood/restored.d", 0o755),
        ("etc/brood/suspending.d", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("usr/bin", 0o755),
        ("usr/sbin", 0o755),
        ("var/tmp", 0o1777),
    ] {
        archive.add(path, Entry::Folder(mode));
    }
    let ordered = modules.in_order(&MODULES)?;
    let order: String = ordered
        .iter()
        .map(|module| format!("{}.ko\n", module.name))
        .collect();
    archive.add("lib/modules/order", Entry::File(0o644, order.into()));
    for module in ordered {
        let path = format!("lib/modules/{}.ko", module.name);
        archive.add(&path, Entry::File(0o644, module.content));
    }
    Ok(archive)
}

/// Writes a file of the image.
fn write(folder: &Path, name: &str, content: &[u8]) -> Result<ImageFile, Error> {
    let path = folder.join(name);
    let file = owner_only::options()
        .write(true)
        .create_new(true)
        .open(&path);
    file.and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    })
    .map_err(Error::io("write", &path))?;
    let (size, sha256) = measure(&path)?;
    debug_assert_eq!(size, Bytes(content.len() as u64));
    Ok(ImageFile {
        file: name.to_owned(),
        size,
        sha256,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_programs_are_told_from_others() {
        // This very test has an interpreter.
        let this = fs::read(env::current_exe().unwrap()).unwrap();
        assert_eq!(needs_interpreter(&this), Some(true));
        assert_eq!(needs_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(needs_interpreter(&this[..20]), None);
        assert_eq!(needs_interpreter(b""), None);
        // A header that says where its table is, and there is none.
        assert_eq!(needs_interpreter(&this[..64]), None);
    }
}
