//! Answers about bundles: one JSON form for the command line and for the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{manifest as schema, words};
use brood_core::{
    checkpoint::{
        self, BundlePath, BundleState, CatalogueEntry, Watch,
        manifest::{EngineKind, Manifest},
    },
    disk, guests,
    units::Bytes,
};

/// A bundle in a folder.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ListedCheckpoint {
    /// Its name in the folder.
    pub name: String,
    /// Whether it can be restored from.
    pub state: ListedState,
    /// Length of all its files in bytes, holes counted.
    #[schema(value_type = words::Bytes)]
    pub size: Bytes,
    /// Memory of its guests in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<words::Bytes>)]
    pub memory: Option<Bytes>,
    /// What made it, and can restore it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<words::EngineKind>)]
    pub engine: Option<EngineKind>,
    /// When it was sealed, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// SHA-256 of its memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The bundle that it is a delta of; null when it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub parent: Option<Option<String>>,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whether a bundle can be restored from, as far as can be told without reading its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ListedState {
    /// It can.
    Whole,
    /// Something is wrong with it.
    Broken,
    /// It has no manifest.
    Incomplete,
}

impl ListedState {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Broken => "broken",
            Self::Incomplete => "incomplete",
        }
    }
}

impl From<&CatalogueEntry> for ListedCheckpoint {
    fn from(listed: &CatalogueEntry) -> Self {
        let mut view = Self {
            name: listed.path.name().to_owned(),
            state: ListedState::Whole,
            size: listed.size,
            memory: None,
            engine: None,
            created_at: None,
            sha256: None,
            parent: None,
            error: None,
        };
        match &listed.state {
            BundleState::Whole(manifest) => {
                view.memory = Some(manifest.memory.size);
                view.engine = Some(manifest.engine);
                view.created_at = Some(manifest.created_at.clone());
                view.sha256 = Some(manifest.memory_sha256());
                view.parent = Some(manifest.parent.as_ref().map(|parent| parent.path.clone()));
            }
            BundleState::Broken(error) => {
                view.state = ListedState::Broken;
                view.error = Some(error.to_string());
            }
            BundleState::Incomplete => {
                view.state = ListedState::Incomplete;
                view.error = Some("no manifest: not sealed yet, or never will be".to_owned());
            }
        }
        view
    }
}

/// What is in a bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// Where it lies, `DIR/NAME`.
    pub checkpoint: String,
    /// Memory of its guests in MiB.
    pub memory_mib: f64,
    /// SHA-256 of its memory.
    pub memory_sha256: String,
    /// The bundles that it is a delta of, the nearest first; empty when it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parents: Option<Vec<String>>,
    /// What it wants of this host besides its own files. If the bundle was made elsewhere, brood
    /// does none of this until an operator trusts it (`brood checkpoint trust`).
    pub wants: Vec<String>,
    /// Whether it is trusted, by an operator or because it was made here; null when it wants
    /// nothing, or when that is unknown.
    pub trusted: Option<bool>,
    /// Files of it and of its parents that users other than this one and root may change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed: Vec<String>,
    /// Its manifest.
    #[serde(flatten)]
    #[schema(value_type = schema::Manifest)]
    pub manifest: Manifest,
}

impl Checkpoint {
    /// The view of the bundle at `path` with this manifest.
    #[must_use]
    pub fn new(path: &BundlePath, manifest: &Manifest) -> Self {
        Self {
            checkpoint: path.to_string(),
            memory_mib: manifest.memory.size.as_mib(),
            memory_sha256: manifest.memory_sha256(),
            parents: None,
            wants: manifest.wants(),
            trusted: None,
            exposed: Vec::new(),
            manifest: manifest.clone(),
        }
    }

    /// The view of an open bundle, with its parents.
    #[must_use]
    pub fn of(checkpoint: &checkpoint::Checkpoint, trusted: Option<bool>) -> Self {
        let parents = std::iter::successors(checkpoint.parent(), |parent| parent.parent());
        let view = Self::new(checkpoint.path(), checkpoint.manifest());
        Self {
            parents: Some(parents.map(|parent| parent.path().to_string()).collect()),
            exposed: checkpoint
                .exposures()
                .iter()
                .map(ToString::to_string)
                .collect(),
            trusted: trusted.filter(|_| !view.wants.is_empty()),
            ..view
        }
    }
}

/// A bundle that a guest is suspended into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SuspendTarget<'a> {
    /// The new bundle.
    pub(crate) checkpoint: &'a BundlePath,
    /// Write a delta of its checkpoint.
    pub(crate) delta: bool,
}

/// Where a guest is to be suspended to.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SuspendRequest {
    /// The new bundle: `DIR/NAME`, or a name in the daemon's folder.
    #[schema(example = "/var/tmp/ckp/warm")]
    pub(crate) checkpoint: String,
    /// Write a delta of its checkpoint: only the guest's private pages.
    #[serde(default)]
    pub(crate) delta: bool,
}

/// Result of a verification: the checkpoint is complete and unchanged.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VerifyReport {
    /// The bundle.
    checkpoint: String,
    /// Always true: a damaged checkpoint is an error.
    whole: bool,
    /// SHA-256 of its memory.
    pub(crate) sha256: String,
}

impl VerifyReport {
    /// Reads all of a bundle, and looks for its disks' snapshots.
    pub(crate) fn of(path: &BundlePath, progress: Watch<'_>) -> Result<Self, guests::Error> {
        let checkpoint = checkpoint::Checkpoint::open(path)?;
        checkpoint.verify_memory(progress)?;
        let disks = &checkpoint.manifest().disks;
        if !disks.is_empty() {
            disk::verify(&path.absolute()?, disks, progress)?;
        }
        Ok(Self {
            checkpoint: path.to_string(),
            whole: true,
            sha256: checkpoint.manifest().memory_sha256(),
        })
    }
}

/// A checkpoint was removed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct RemovedCheckpoint {
    /// The bundle.
    pub(crate) checkpoint: String,
    /// Size of its files, in bytes.
    #[schema(value_type = words::Bytes)]
    pub(crate) freed: Bytes,
}
