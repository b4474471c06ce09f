//! Probe of the host: which of the programs and modules that bhyve needs are installed. It changes
//! nothing and loads no module.

use nix::unistd::{AccessFlags, access};

use super::host::Host;
use crate::host::{
    folder::Folder,
    freebsd::{BhyveTools, Holes},
};

const COMMANDS: [&str; 5] = ["bhyve", "bhyvectl", "ifconfig", "sysctl", "kldstat"];
const MODULES: [&str; 3] = ["vmm", "vmm_vnode", "nmdm"];

/// The compiler of ACPI tables, which bhyve runs by this very name (`basl_compile` of bhyve's
/// acpi.c).
const IASL: &str = "/usr/sbin/iasl";

/// Looks at this host. `checkpoint` is the folder that is meant, if one is.
#[must_use]
pub fn probe(host: &Host, checkpoint: Option<&Folder>) -> BhyveTools {
    let on = |filesystem| {
        let folder = checkpoint.filter(|folder| folder.exists && folder.filesystem == filesystem);
        folder.map(|folder| folder.path.as_path())
    };
    // An option that is known lacks its argument here; getopt(3) says which of the two it is.
    let known = |program, option| {
        let said = host.run(program, &[option]).err().map(|e| e.to_string());
        said.is_some_and(|text| text.contains("requires an argument"))
    };
    BhyveTools {
        commands: COMMANDS
            .iter()
            .map(|name| ((*name).to_owned(), host.has(name)))
            .collect(),
        restores: known("bhyve", "-r"),
        suspends: known("bhyvectl", "--suspend"),
        modules: MODULES
            .iter()
            .map(|name| {
                let loaded = host.run("kldstat", &["-q", "-m", name]);
                ((*name).to_owned(), loaded.is_ok())
            })
            .collect(),
        builds_tables: host.path(IASL).is_file()
            && access("/tmp", AccessFlags::W_OK | AccessFlags::X_OK).is_ok(),
        holes: on("tmpfs").and_then(Holes::in_folder),
        primarycache: on("zfs").and_then(|folder| {
            let folder = folder.to_str()?;
            let told = host.run("zfs", &["get", "-H", "-o", "value", "primarycache", folder]);
            Some(told.ok()?.trim().to_owned())
        }),
    }
}

impl BhyveTools {
    /// What stands in the way of restoring guests, in words.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let absent = |all: &[(String, bool)]| -> Vec<String> {
            let absent = all.iter().filter(|(_, there)| !there);
            absent.map(|(name, _)| name.clone()).collect()
        };
        let commands = absent(&self.commands);
        let needed: Vec<String> = absent(&self.modules)
            .into_iter()
            // Without it bhyve reads the checkpoint: it costs memory, and works.
            .filter(|name| name != "vmm_vnode")
            .collect();
        if !commands.is_empty() {
            Some(format!("not on PATH: {}", commands.join(", ")))
        } else if !needed.is_empty() {
            Some(format!(
                "not in the kernel: {}; load it: kldload {}",
                needed.join(", "),
                needed.join(" ")
            ))
        } else if !self.restores || !self.suspends {
            let what = if self.restores { "bhyvectl" } else { "bhyve" };
            Some(format!(
                "this {what} was built without checkpoints (WITH_BHYVE_SNAPSHOT in src.conf)"
            ))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> BhyveTools {
        let there = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), true)).collect();
        BhyveTools {
            commands: there(&COMMANDS),
            restores: true,
            suspends: true,
            modules: there(&MODULES),
            primarycache: None,
            builds_tables: true,
            holes: None,
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(good().missing(), None);
        let mut facts = good();
        facts.modules[1].1 = false;
        assert_eq!(facts.missing(), None, "bhyve reads the checkpoint then");
        facts.modules[2].1 = false;
        assert!(facts.missing().unwrap().contains("kldload nmdm"));
        facts.commands[0].1 = false;
        assert!(facts.missing().unwrap().contains("bhyve"));
        let no_snapshots = BhyveTools {
            suspends: false,
            ..good()
        };
        let missing = no_snapshots.missing().unwrap();
        assert!(missing.contains("bhyvectl was built without"), "{missing}");
    }
}
