//! What an image says of itself: `image.json`.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::hex;
use brood_core::{
    agent::protocol::{ImageProcess, OsBytes},
    units::Bytes,
};

/// Value of [`Image::format`].
pub(super) const FORMAT: &str = "brood-image";
/// The version that this brood writes, and the only one it reads.
pub(super) const VERSION: u32 = 1;

/// What an image was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    /// A package's name, or a program's, or a layer's.
    pub(crate) name: String,
    /// The package's version; none of anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
    /// SHA-256 of the package, program or layer; none of a package that mmdebstrap installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
}

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageFile {
    /// Its name in the image's folder.
    pub(crate) file: String,
    /// Its length.
    pub(crate) size: Bytes,
    /// SHA-256 of its content.
    pub(crate) sha256: String,
}

/// A root file system, which guests only read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Root {
    /// Its name in the image's folder.
    pub(crate) file: String,
    /// Its length.
    pub(crate) size: Bytes,
    /// SHA-256 of its content.
    pub(crate) sha256: String,
    /// How it is laid out: `squashfs`.
    pub(crate) filesystem: String,
}

/// What programs of an image expect, as its author said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    /// Environment, each `NAME=VALUE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) env: Vec<String>,
    /// Working folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cwd: Option<String>,
    /// User, or user and group: `USER[:GROUP]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// The program, and its first arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) entrypoint: Vec<String>,
    /// The arguments, or the program where there is no entry point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) command: Vec<String>,
}

impl Process {
    /// What the agent of a guest reads of it.
    pub(super) fn of_guest(&self) -> ImageProcess {
        let words = |words: &[String]| words.iter().map(|word| OsBytes::from(&**word)).collect();
        let variables = self.env.iter().filter_map(|word| word.split_once('='));
        ImageProcess {
            env: variables
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            cwd: self.cwd.as_deref().map(OsBytes::from),
            user: self.user.clone(),
            entrypoint: words(&self.entrypoint),
            command: words(&self.command),
        }
    }

    /// Whether all of its words can be those of a program.
    pub(super) fn is_sound(&self) -> bool {
        let of_program = self.entrypoint.iter().chain(&self.command);
        let words = of_program
            .chain(&self.env)
            .chain(&self.cwd)
            .chain(&self.user);
        !words.into_iter().any(|word| word.contains('\0'))
            && !self.env.iter().any(|word| word.starts_with('='))
    }
}

/// An image, as its `image.json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Image {
    /// Always [`FORMAT`].
    pub(crate) format: String,
    /// Always [`VERSION`].
    pub(crate) version: u32,
    /// What kind of image: `minimal`, `debian` or `oci`.
    pub(crate) kind: String,
    /// What it was made of.
    pub(crate) sources: Vec<Part>,
    /// The kernel's release, such as `6.1.0-56-cloud-amd64`.
    pub(crate) release: String,
    /// The kernel.
    pub(crate) kernel: ImageFile,
    /// The initramfs.
    pub(crate) initramfs: ImageFile,
    /// The root file system; a minimal image has all in its initramfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) root: Option<Root>,
    /// The kernel's command line.
    pub(crate) command_line: String,
    /// What its programs expect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) process: Option<Process>,
    /// What tells this image from any other: a SHA-256 over kernel, initramfs, root file system,
    /// command line and what programs expect.
    pub(crate) digest: String,
}

impl Image {
    /// The digest of an image that has all but that.
    pub(super) fn compute_digest(&self) -> String {
        let mut text = format!("{} {}", self.kernel.sha256, self.initramfs.sha256);
        if let Some(root) = &self.root {
            text = format!("{text} {} {}", root.filesystem, root.sha256);
        }
        if let Some(process) = &self.process {
            let process = serde_json::to_string(process).unwrap_or_default();
            text = format!("{text} {process}");
        }
        hex(&Sha256::digest(format!("{text} {}", self.command_line)))
    }

    /// The least memory that a guest of it boots with. Where its root file system is in its memory, it
    /// has that and the initramfs for a moment twice, packed and unpacked, beside the kernel.
    #[cfg(target_os = "linux")]
    pub(crate) fn least_memory(&self, root_on_disk: bool) -> Bytes {
        match &self.root {
            Some(_) if root_on_disk => Bytes::mib(96),
            Some(root) => Bytes((96 << 20) + 2 * root.size.0),
            None => Bytes(0),
        }
    }

    /// What it takes on the disk.
    pub(crate) fn size(&self) -> Bytes {
        let root = self.root.as_ref().map_or(Bytes(0), |root| root.size);
        [self.kernel.size, self.initramfs.size, root]
            .into_iter()
            .sum()
    }
}
