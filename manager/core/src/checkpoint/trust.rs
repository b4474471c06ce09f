//! Demands of a bundle on its host: the commands, files and addresses that it would have the host
//! use besides the bundle's own files. A bundle vouches only for itself: whoever made it could
//! choose any of them.

use super::{
    Readiness,
    manifest::{DiskProvider, Manifest},
};

impl Manifest {
    /// Its demands on a host, in words; empty when it needs nothing but its own files.
    #[must_use]
    pub fn wants(&self) -> Vec<String> {
        let mut wants = Vec::new();
        if let Some(guest) = &self.bhyve {
            match &guest.readiness {
                Readiness::Command { argv } => wants.push(format!("run {:?}", argv.join(" "))),
                Readiness::Tcp { address } => wants.push(format!("connect to {address:?}")),
                Readiness::Agent | Readiness::Console { .. } => {}
            }
            for (key, value) in &guest.config {
                // Each clone gets taps, serial ports and the like of its own.
                if matches!(key.as_str(), "lpc.bootrom" | "lpc.bootvars")
                    || (key.starts_with("pci.") && key.ends_with(".path"))
                {
                    wants.push(format!("open {value:?} ({key})"));
                } else if key.starts_with("pci.") && key.ends_with(".bridge") {
                    wants.push(format!("join a tap to {value:?} ({key})"));
                }
            }
        }
        for disk in &self.disks {
            // A snapshot that is a file lies beside the bundle, and is the bundle's own.
            if disk.provider == DiskProvider::Zfs {
                wants.push(format!("clone {:?}", disk.snapshot));
            }
        }
        wants
    }
}
