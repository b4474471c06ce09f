//! Kernel modules of an image: those that it wants, with all that they need, in the order in which
//! they must be loaded.
//!
//! A module names what it needs in its section `.modinfo`, as `depends=a,b` (modpost of Linux's
//! build writes it). What is not among the modules is built into the kernel.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::Error;

/// Begins the list of what a module needs.
const DEPENDS: &[u8] = b"depends=";

/// A module and its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// Its name, with underscores.
    pub(super) name: String,
    /// The module, as insmod(8) takes it.
    pub(super) content: Vec<u8>,
}

/// The modules below a folder, by name.
pub(super) struct Modules(BTreeMap<String, PathBuf>);

impl Modules {
    /// Finds all modules below this folder.
    pub(super) fn below(folder: &Path) -> Result<Self, Error> {
        let mut found = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
                let entry = entry.map_err(Error::io("list", &folder))?;
                let kind = entry.file_type().map_err(Error::io("look at", &folder))?;
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if let Some(name) = entry.file_name().to_str().and_then(module_name) {
                    found.insert(name, entry.path());
                }
            }
        }
        Ok(Self(found))
    }

    /// These modules with all that they need, in the order to load them. One that is not there is
    /// built into the kernel.
    pub(super) fn in_order(&self, wanted: &[&str]) -> Result<Vec<Module>, Error> {
        let mut ordered: Vec<Module> = Vec::new();
        // Depth first; a module is put down behind all that it needs.
        let mut open: Vec<(Module, Vec<String>)> = Vec::new();
        let mut next: Vec<String> = wanted.iter().rev().map(|&name| name.to_owned()).collect();
        loop {
            let missing = match open.last_mut() {
                Some((_, needs)) => needs.pop(),
                None => next.pop(),
            };
            match missing {
                Some(name) => {
                    let known = ordered.iter().any(|module| module.name == name)
                        || open.iter().any(|(module, _)| module.name == name);
                    if let Some(path) = self.0.get(&name).filter(|_| !known) {
                        let content = read(path)?;
                        let needs = depends(&content);
                        open.push((Module { name, content }, needs));
                    }
                }
                None => match open.pop() {
                    Some((module, _)) => ordered.push(module),
                    None => return Ok(ordered),
                },
            }
        }
    }
}

/// A module's name, from its file's: `virtio-rng.ko.xz` is `virtio_rng`.
fn module_name(file: &str) -> Option<String> {
    let plain = file.strip_suffix(".xz").unwrap_or(file);
    Some(plain.strip_suffix(".ko")?.replace('-', "_"))
}

/// Reads a module, unpacked.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).map_err(Error::io("read", path));
    }
    let unpacked = Command::new("xz").args(["-dc"]).arg(path).output();
    let unpacked = unpacked.map_err(Error::io("unpack", path))?;
    if unpacked.status.success() {
        Ok(unpacked.stdout)
    } else {
        Err(Error::Command {
            action: format!("unpack {}", path.display()),
            said: String::from_utf8_lossy(&unpacked.stderr).trim().to_owned(),
        })
    }
}

/// Names of the modules that a module needs.
fn depends(module: &[u8]) -> Vec<String> {
    let mut strings = module.split(|byte| *byte == 0);
    let Some(list) = strings.find_map(|string| string.strip_prefix(DEPENDS)) else {
        return Vec::new();
    };
    let names = String::from_utf8_lossy(list);
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_comes_before_it_and_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("drivers/virtio")).unwrap();
        for (file, needs) in [
            (
                "drivers/virtio/virtio_pci.ko",
                "virtio,virtio-ring,built_in",
            ),
            ("drivers/virtio/virtio.ko", "virtio_ring"),
            ("drivers/virtio/virtio-ring.ko", ""),
            ("drivers/console.ko", "virtio,virtio_ring"),
            ("drivers/of-no-use.ko", "virtio"),
            ("drivers/README", ""),
        ] {
            let content = format!("\x7fELF..\0license=GPL\0depends={needs}\0name=x\0");
            fs::write(folder.path().join(file), content).unwrap();
        }
        let modules = Modules::below(folder.path()).unwrap();
        let ordered = modules
            .in_order(&["virtio_pci", "console", "absent"])
            .unwrap();
        let names: Vec<_> = ordered.iter().map(|module| &module.name[..]).collect();
        assert_eq!(names, ["virtio_ring", "virtio", "virtio_pci", "console"]);
    }

    #[test]
    fn a_ring_of_needs_comes_to_an_end() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.ko"), "\0depends=b\0").unwrap();
        fs::write(folder.path().join("b.ko"), "\0depends=a\0").unwrap();
        let ordered = Modules::below(folder.path())
            .unwrap()
            .in_order(&["a"])
            .unwrap();
        assert_eq!(ordered.len(), 2);
    }

    #[test]
    fn names_are_without_hyphens_and_endings() {
        assert_eq!(module_name("virtio-rng.ko.xz").unwrap(), "virtio_rng");
        assert_eq!(module_name("failover.ko").unwrap(), "failover");
        assert_eq!(module_name("modules.order"), None);
    }
}
