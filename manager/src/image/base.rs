//! What all images have: a kernel with its modules, busybox, and the agent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    Error,
    description::Part,
    hex,
    modules::Modules,
    package::{Package, kernel_of},
    program::{AGENT_PROGRAM, read_static},
    scratch::Scratch,
};

/// The package that needs the newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What names of packages with a kernel begin with.
const KERNEL_PREFIX: &str = "linux-image-";
/// The package with the shell and what a start needs.
const BUSYBOX: &str = "busybox-static";

/// What is the same for an image of any kind.
#[derive(Debug)]
pub(crate) struct Ingredients<'a> {
    /// The image's name.
    pub(crate) name: &'a str,
    /// The agent's program, static.
    pub(crate) agent: &'a Path,
    /// Packages that need not be fetched.
    pub(crate) packages: &'a [PathBuf],
}

/// Kernel, busybox and agent.
pub(super) struct Base {
    pub(super) release: String,
    pub(super) kernel: Vec<u8>,
    pub(super) modules: Modules,
    pub(super) busybox: Vec<u8>,
    pub(super) agent: Vec<u8>,
    /// Where these three come from.
    pub(super) sources: Vec<Part>,
}

impl Base {
    /// Gets all of it.
    pub(super) fn obtain(
        from: &Ingredients<'_>,
        scratch: &Scratch,
        told: &dyn Fn(&str),
    ) -> Result<Self, Error> {
        let agent = read_static(from.agent)?;
        let packages = scratch.subfolder("packages")?;
        let [kernel, busybox] = packages_of(from.packages, &packages, told)?;
        told("unpacking the packages");
        let unpacked = scratch.subfolder("unpacked")?;
        kernel.unpack(&unpacked)?;
        busybox.unpack(&unpacked)?;
        let lacks = |package: &Package, what: &str| Error::Package {
            package: package.part.name.clone(),
            what: what.to_owned(),
        };
        let (vmlinuz, release) = find_kernel(&unpacked)?
            .ok_or_else(|| lacks(&kernel, "kernel /boot/vmlinuz-RELEASE"))?;
        let modules = ["lib/modules", "usr/lib/modules"]
            .map(|folder| unpacked.join(folder).join(&release))
            .into_iter()
            .find(|path| path.is_dir());
        let modules = Modules::below(&modules.ok_or_else(|| lacks(&kernel, "modules"))?)?;
        let places = ["bin/busybox", "usr/bin/busybox"].map(|path| unpacked.join(path));
        let program = places.iter().find(|path| path.is_file());
        let program = read_static(program.ok_or_else(|| lacks(&busybox, "busybox"))?)?;
        let agent_part = Part {
            name: AGENT_PROGRAM.to_owned(),
            version: None,
            sha256: Some(hex(&Sha256::digest(&agent))),
        };
        Ok(Self {
            release,
            kernel: fs::read(&vmlinuz).map_err(Error::io("read", &vmlinuz))?,
            modules,
            busybox: program,
            agent,
            sources: vec![kernel.part, busybox.part, agent_part],
        })
    }
}

/// The two packages of an image: those that were given, the others fetched.
fn packages_of(
    given: &[PathBuf],
    folder: &Path,
    told: &dyn Fn(&str),
) -> Result<[Package; 2], Error> {
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
