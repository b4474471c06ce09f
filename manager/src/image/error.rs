//! Errors of images: what was tried, on what, and what to do next.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why an image cannot be built or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No image can have this name.
    #[error("{0:?} is no name for an image")]
    Name(String),
    /// There is no such image.
    #[error("there is no image {name:?} in {}", .folder.display())]
    NotFound {
        /// The name.
        name: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// There is one already.
    #[error("there is an image of this name: {}", .0.display())]
    Exists(PathBuf),
    /// The command was interrupted while it read a file.
    #[error("interrupted")]
    Interrupted,
    /// It is not what it was when it was built.
    #[error("{}: {reason}", .file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The agent's program was not found.
    #[error("cannot find brood-agent, the program that answers in the guest; looked for {0}")]
    NoAgent(String),
    /// A program of the guest would not run there.
    #[error("{} cannot run in the guest: {reason}", .file.display())]
    Program {
        /// The program.
        file: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// A package does not have what an image needs.
    #[error("package {package} has no {what}")]
    Package {
        /// The package.
        package: String,
        /// What was looked for in it.
        what: String,
    },
    /// An archive of files, or a layout of such, cannot be used.
    #[error("{archive}: {reason}")]
    Archive {
        /// The archive or layout.
        archive: String,
        /// Why not.
        reason: String,
    },
    /// The root file system cannot be written.
    #[error("cannot write the root file system: {path}: {reason}")]
    Root {
        /// The file, or the path in the guest.
        path: String,
        /// Why not.
        reason: String,
    },
    /// A command of the system.
    #[error("cannot {action}: {said}")]
    Command {
        /// What it was for.
        action: String,
        /// What it said.
        said: String,
    },
    /// A file.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// Whether the work was called off.
    pub(crate) fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }

    /// An error of a file.
    pub(super) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// A hint what to do next.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Interrupted => return None,
            Self::Name(_) => {
                "use 1 to 64 letters, digits, dots, hyphens and underscores, and no dot in front"
            }
            Self::NotFound { .. } => {
                "`brood image list` lists the images; `brood image build --minimal NAME` makes one"
            }
            Self::Exists(_) => "take another name, or remove it: brood image remove NAME",
            Self::Damaged { .. } => "remove it and build it again: brood image remove NAME",
            Self::NoAgent(_) => "build it: tools/agent; or name it: --agent FILE",
            Self::Program { .. } => "`tools/agent` builds brood-agent as a static program",
            Self::Archive { .. } => {
                "nothing was built; make the layout anew, or ask whoever made it"
            }
            Self::Command { .. } => {
                "packages come from apt: `apt-get update` renews its lists; or name files: --deb FILE"
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free disk space, then try again"
            }
            Self::Io { .. } | Self::Package { .. } | Self::Root { .. } => return None,
        };
        Some(hint.to_owned())
    }
}
