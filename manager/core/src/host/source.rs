//! Source of host facts: the kernel that brood asks.

use std::path::PathBuf;

use super::{
    facts::{HostFacts, Paths},
    freebsd::{self, Kernel},
    linux,
    proc::{Error, ProcRoot},
};

/// The kernel of the host that guests run on.
pub enum HostSource {
    /// Linux, through `/proc` and `/sys`.
    Linux(ProcRoot),
    /// FreeBSD.
    Freebsd {
        /// What it is asked through.
        kernel: Box<dyn Kernel>,
        /// Where its devices are.
        root: ProcRoot,
    },
}

impl Default for HostSource {
    /// The kernel that runs here.
    #[cfg(not(target_os = "freebsd"))]
    fn default() -> Self {
        Self::Linux(ProcRoot::default())
    }

    /// The kernel that runs here.
    #[cfg(target_os = "freebsd")]
    fn default() -> Self {
        Self::Freebsd {
            kernel: Box::new(freebsd::ThisKernel),
            root: ProcRoot::default(),
        }
    }
}

impl HostSource {
    /// Reads every fact, with those of the folder of brood's state and of a checkpoint's.
    ///
    /// # Errors
    ///
    /// If something that every host of this system tells cannot be read or understood. What may
    /// rightly be absent (KVM, vmm, control groups, folders) is a fact instead.
    pub fn facts(&self, state: PathBuf, checkpoint: Option<PathBuf>) -> Result<HostFacts, Error> {
        let (Self::Linux(root) | Self::Freebsd { root, .. }) = self;
        let paths = Paths {
            root: root.clone(),
            state,
            checkpoint,
        };
        match self {
            Self::Linux(_) => linux::read(&paths),
            Self::Freebsd { kernel, .. } => freebsd::read(&paths, &**kernel),
        }
    }
}
