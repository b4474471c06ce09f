//! Sharing of a checkpoint's memory: whether guests will share it on this host, as far as that can
//! be known before they run. Without sharing, each guest costs all of its memory; plan, doctor and
//! admission count accordingly.

use serde::{Deserialize, Serialize};
use vmm_sys::abi::VM_VNODE_ABI;

use super::{
    facts::{HostFacts, System},
    folder::Folder,
    freebsd::Freebsd,
};

/// Whether guests share a checkpoint's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharing {
    /// Whether guests map the checkpoint, and copy only the pages that they write.
    pub shared: bool,
    /// Why they do not.
    pub why: Option<String>,
}

impl HostFacts {
    /// Whether guests of a checkpoint in [`Self::checkpoint_folder`] share its memory.
    #[must_use]
    pub fn sharing(&self) -> Sharing {
        let why = match &self.system {
            // The engine of Linux maps every checkpoint.
            System::Linux(_) => None,
            System::Freebsd(freebsd) => obstacle(freebsd, self.checkpoint_folder.as_ref()),
        };
        Sharing {
            shared: why.is_none(),
            why,
        }
    }
}

/// What keeps bhyve from mapping a checkpoint: then it reads the file into memory of each guest.
fn obstacle(freebsd: &Freebsd, checkpoint: Option<&Folder>) -> Option<String> {
    let vmm = &freebsd.vmm;
    if freebsd.bhyve_maps_checkpoints == Some(false) {
        return Some("the bhyve on PATH is without the vmm-vnode patch".to_owned());
    }
    match vmm.vnode_abi {
        // bhyve loads it for the first guest.
        None if vmm.vnode_installed => {}
        None => return Some("vmm_vnode is not installed".to_owned()),
        Some(abi) if abi == u64::from(VM_VNODE_ABI) => {}
        Some(abi) => {
            return Some(format!(
                "vmm_vnode speaks ABI {abi}, and brood ABI {VM_VNODE_ABI}"
            ));
        }
    }
    let folder = checkpoint.filter(|folder| folder.is_remote())?;
    Some(format!(
        "files on {} cannot be guest memory",
        folder.filesystem
    ))
}
