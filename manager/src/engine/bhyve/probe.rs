//! What this host has of what bhyve needs, as values. Nothing is changed, and no module loaded.

use serde::Serialize;

use super::host::Host;

/// Facts about bhyve on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BhyveFacts {
    /// The commands that restores run, each with whether it can be.
    pub commands: Vec<(String, bool)>,
    /// Whether `bhyve -r` is known: bhyve was built with `WITH_BHYVE_SNAPSHOT`.
    pub restores: bool,
    /// Whether `bhyvectl --suspend` is known: built with the same.
    pub suspends: bool,
    /// Modules that are wanted, each with whether it is in the kernel.
    pub modules: Vec<(String, bool)>,
    /// ABI of vmm_vnode(4), when it is loaded.
    pub vnode_abi: Option<u64>,
    /// Most virtual machines of one user, `hw.vmm.maxvmms`.
    pub max_vms: Option<u64>,
    /// Most processes of the host, `kern.maxproc`.
    pub max_processes: Option<u64>,
}

const COMMANDS: [&str; 5] = ["bhyve", "bhyvectl", "ifconfig", "sysctl", "kldstat"];
const MODULES: [&str; 3] = ["vmm", "vmm_vnode", "nmdm"];

/// Looks at this host.
#[must_use]
pub fn probe(host: &Host) -> BhyveFacts {
    // An option that is known lacks its argument here; getopt(3) says which of the two it is.
    let known = |program, option| {
        let said = host.run(program, &[option]).err().map(|e| e.to_string());
        said.is_some_and(|text| text.contains("requires an argument"))
    };
    let number = |name: &str| {
        let text = host.run("sysctl", &["-n", name]).ok()?;
        text.trim().parse().ok()
    };
    BhyveFacts {
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
        vnode_abi: number("hw.vmm.vnode.abi"),
        max_vms: number("hw.vmm.maxvmms"),
        max_processes: number("kern.maxproc"),
    }
}

impl BhyveFacts {
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

    fn good() -> BhyveFacts {
        let there = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), true)).collect();
        BhyveFacts {
            commands: there(&COMMANDS),
            restores: true,
            suspends: true,
            modules: there(&MODULES),
            vnode_abi: Some(1),
            max_vms: Some(1000),
            max_processes: Some(20_000),
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(good().missing(), None);
        let mut facts = good();
        facts.modules[1].1 = false;
        facts.vnode_abi = None;
        assert_eq!(facts.missing(), None, "bhyve reads the checkpoint then");
        facts.modules[2].1 = false;
        assert!(facts.missing().unwrap().contains("kldload nmdm"));
        facts.commands[0].1 = false;
        assert!(facts.missing().unwrap().contains("bhyve"));
        let no_snapshots = BhyveFacts {
            suspends: false,
            ..good()
        };
        let missing = no_snapshots.missing().unwrap();
        assert!(missing.contains("bhyvectl was built without"), "{missing}");
    }
}
