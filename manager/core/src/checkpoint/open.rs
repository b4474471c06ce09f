//! Opening of a bundle, to restore from it.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use super::{
    compose::{Extent, compose},
    error::{Error, printable},
    exposure::{self, Exposure},
    folder::Folder,
    hash::{self, Tally, Watch},
    json, lineage,
    manifest::{EngineKind, FORMAT, FileSeal, Manifest, Parent, VERSION},
    meta::{self, Meta},
    path::{BundlePath, Part},
    stamp::FileStamp,
    validate::{KERN_MAX, MANIFEST_MAX, META_MAX},
    writers,
};
use crate::units::Bytes;

/// A bundle opened to restore from. Holds the descriptor of the memory file: renaming, replacing
/// or removing the bundle's files does not change what this is.
#[derive(Debug)]
pub struct Checkpoint {
    path: BundlePath,
    manifest: Manifest,
    manifest_sha256: String,
    meta: Meta,
    memory: File,
    kern: Vec<u8>,
    stamp: FileStamp,
    exposures: Vec<Exposure>,
    /// The parent of a delta.
    parent: Option<Box<Checkpoint>>,
}

/// Most deltas over a full checkpoint.
pub const DELTAS_MAX: usize = 8;

impl Checkpoint {
    /// Opens the four files, checks the manifest, all sizes, the content of `.kern` and `.meta`,
    /// and that they agree; of a delta, its parents likewise. The memory is not read: see
    /// [`Self::verify_memory`].
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::Incomplete`] when files are missing; for anything that is
    /// not as it was sealed, the variant that names the file and the field. What is wrong with a
    /// parent is an [`Error::Parent`], and [`Error::OtherParent`] when another lies in its place.
    pub fn open(path: &BundlePath) -> Result<Self, Error> {
        Self::open_over(path, 0, &[])
    }

    /// The same, with more folders in which a parent is looked for that is neither where it was nor
    /// beside its delta.
    ///
    /// # Errors
    /// As of [`Self::open`].
    pub(crate) fn open_among(path: &BundlePath, folders: &[PathBuf]) -> Result<Self, Error> {
        Self::open_over(path, 0, folders)
    }

    /// Opens a bundle that has `deltas` deltas over it.
    fn open_over(path: &BundlePath, deltas: usize, folders: &[PathBuf]) -> Result<Self, Error> {
        let folder = Folder::open(path.dir()).map_err(|cause| match cause.kind() {
            std::io::ErrorKind::NotFound => Error::NotFound {
                bundle: path.clone(),
                file: path.manifest(),
            },
            _ => Error::io("open the folder", path.dir(), cause),
        })?;
        // The manifest is opened first: it is removed first and appears last.
        let manifest_file = open_part(&folder, path, Part::Manifest)?;
        let memory = open_part(&folder, path, Part::Ckp)?;
        let kern_file = open_part(&folder, path, Part::Kern)?;
        let meta_file = open_part(&folder, path, Part::Meta)?;

        let text = read_whole(&manifest_file, &path.manifest(), MANIFEST_MAX)?;
        let manifest = parse_manifest(&path.manifest(), &text)?;
        let manifest_sha256 = hash::sha256(&text);

        let stamp =
            FileStamp::of(&memory).map_err(|cause| Error::io("examine", &path.ckp(), cause))?;
        let files = &manifest.files;
        check_size(path, Part::Ckp, &files.ckp, Bytes(stamp.size))?;
        let kern = read_sealed(path, Part::Kern, &kern_file, &files.kern, KERN_MAX)?;
        let meta_text = read_sealed(path, Part::Meta, &meta_file, &files.meta, META_MAX)?;
        let meta = Meta::parse(&path.meta(), &meta_text, files.kern.size)?;
        agree(path, &manifest, &meta)?;
        let files = [
            (Part::Manifest, &manifest_file),
            (Part::Ckp, &memory),
            (Part::Kern, &kern_file),
            (Part::Meta, &meta_file),
        ];
        let exposures = exposure::find(&folder, path, files, &manifest)?;
        let parent = match &manifest.parent {
            Some(parent) => {
                let over = Over { deltas, folders };
                Some(Box::new(open_parent(path, &manifest, parent, &over)?))
            }
            None => None,
        };
        Ok(Self {
            path: path.clone(),
            manifest,
            manifest_sha256,
            meta,
            memory,
            kern,
            stamp,
            exposures,
            parent,
        })
    }

    /// Where the bundle lay when it was opened.
    #[must_use]
    pub fn path(&self) -> &BundlePath {
        &self.path
    }

    /// What is in it.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// SHA-256 of the manifest's text.
    pub(crate) fn manifest_sha256(&self) -> &str {
        &self.manifest_sha256
    }

    /// Files of this bundle, without its parents, that other users may change.
    pub(super) fn own_exposures(&self) -> &[Exposure] {
        &self.exposures
    }

    /// What the `.meta` file says, checked against the manifest and the `.kern` file.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The parent of a delta.
    #[must_use]
    pub fn parent(&self) -> Option<&Self> {
        self.parent.as_deref()
    }

    /// The bundles whose memory files make up this one's memory: the full checkpoint, then each
    /// delta over it, this one last.
    #[must_use]
    pub fn layers(&self) -> Vec<&Self> {
        let mut layers: Vec<_> =
            std::iter::successors(Some(self), |checkpoint| checkpoint.parent()).collect();
        layers.reverse();
        layers
    }

    /// Where the pages lie that are not the full checkpoint's, by place in [`Self::layers`].
    #[must_use]
    pub(crate) fn extents(&self) -> Vec<Extent> {
        let layers = self.layers();
        let deltas = layers
            .iter()
            .filter_map(|layer| layer.manifest.parent.as_ref());
        compose(deltas.map(|parent| &parent.pages))
    }

    /// This bundle's memory file, opened for reading only: raw guest memory, or a delta's pages.
    #[must_use]
    pub fn memory_file(&self) -> &File {
        &self.memory
    }

    /// CPU and device state, whole, with its digest checked.
    #[must_use]
    pub fn kern(&self) -> &[u8] {
        &self.kern
    }

    /// Identity of the memory file when it was opened.
    #[must_use]
    pub fn stamp(&self) -> FileStamp {
        self.stamp
    }

    /// Identities of the memory files of [`Self::layers`] when they were opened.
    #[must_use]
    pub fn stamps(&self) -> Vec<FileStamp> {
        self.layers().iter().map(|layer| layer.stamp).collect()
    }

    /// Hashes the memory, with that of all parents, through the very descriptors that will be
    /// mapped. Seconds per GiB: about 0.5.
    ///
    /// # Errors
    /// [`Error::Changed`] when a file has changed since it was opened, [`Error::Digest`] when its
    /// content differs from the sealed one, [`Error::Io`] when it cannot be read.
    pub fn verify_memory(&self, watch: Watch<'_>) -> Result<(), Error> {
        self.refuse_writers()?;
        let layers = self.layers();
        let total = layers
            .iter()
            .map(|layer| layer.manifest.files.ckp.size)
            .sum();
        let tally = Tally::new(total, watch);
        layers.iter().try_for_each(|layer| layer.verify_own(&tally))
    }

    /// The same of this bundle's own memory file alone.
    ///
    /// # Errors
    /// As of [`Self::verify_memory`].
    pub(crate) fn verify_layer(&self, watch: Watch<'_>) -> Result<(), Error> {
        self.verify_own(&Tally::new(self.manifest.files.ckp.size, watch))
    }

    fn verify_own(&self, tally: &Tally<'_>) -> Result<(), Error> {
        let file = self.path.ckp();
        let before = self.stamp_now()?;
        if before.size != self.stamp.size {
            return Err(Error::Changed { file });
        }
        let actual = hash::sha256_tallied(&self.memory, tally)
            .map_err(|cause| Error::io("read", &file, cause))?;
        if self.stamp_now()? != before {
            return Err(Error::Changed { file });
        }
        check_digest(&self.path, Part::Ckp, &self.manifest.files.ckp, actual)
    }

    /// Refuses memory files that a process may write to: see `writers.rs`.
    ///
    /// # Errors
    /// [`Error::OpenForWriting`].
    pub(crate) fn refuse_writers(&self) -> Result<(), Error> {
        self.layers()
            .iter()
            .try_for_each(|layer| writers::refuse(&layer.path.ckp(), &layer.memory))
    }

    /// Checks that the memory file and those of all parents are unchanged since they were opened:
    /// by their stamps, and where a stamp differs, by the content.
    ///
    /// # Errors
    /// [`Error::Changed`] when one is not.
    pub fn unchanged(&self) -> Result<(), Error> {
        self.layers()
            .iter()
            .try_for_each(|layer| layer.unchanged_own())
    }

    fn unchanged_own(&self) -> Result<(), Error> {
        if self.stamp_now()? == self.stamp {
            return Ok(());
        }
        // A backup changes attributes, and some set times: the content decides.
        self.verify_layer(&hash::unwatched)
            .map_err(|error| match error {
                Error::Digest { .. } => Error::Changed {
                    file: self.path.ckp(),
                },
                error => error,
            })
    }

    fn stamp_now(&self) -> Result<FileStamp, Error> {
        FileStamp::of(&self.memory).map_err(|cause| Error::io("examine", &self.path.ckp(), cause))
    }
}

/// What a parent is opened for.
struct Over<'a> {
    /// How many deltas lie over the delta whose parent it is.
    deltas: usize,
    /// Where else it may lie.
    folders: &'a [PathBuf],
}

/// Opens the parent of a delta, and checks that the delta was made from it. Searches for a parent
/// that was moved by its digest.
fn open_parent(
    bundle: &BundlePath,
    manifest: &Manifest,
    parent: &Parent,
    over: &Over<'_>,
) -> Result<Checkpoint, Error> {
    let mut path = parent_path(bundle, parent)?;
    if over.deltas >= DELTAS_MAX {
        return Err(Error::TooDeep {
            bundle: bundle.clone(),
            parent: path,
        });
    }
    let open = |path: &BundlePath| Checkpoint::open_over(path, over.deltas + 1, over.folders);
    let mut opened = open(&path);
    let other = opened
        .as_ref()
        .is_ok_and(|opened| opened.manifest.memory_sha256() != parent.sha256);
    if (other || matches!(opened, Err(Error::NotFound { .. })))
        && let Some(found) = lineage::locate(bundle, parent, over.folders)?
        && found != path
    {
        opened = open(&found);
        path = found;
    }
    let opened = match opened {
        Ok(opened) => opened,
        // Which of the parents it is says the innermost.
        Err(error @ (Error::Parent { .. } | Error::OtherParent { .. } | Error::TooDeep { .. })) => {
            return Err(error);
        }
        Err(cause) => {
            return Err(Error::Parent {
                bundle: bundle.clone(),
                parent: path,
                cause: Box::new(cause),
            });
        }
    };
    let found = opened.manifest.memory_sha256();
    if found != parent.sha256 {
        return Err(Error::OtherParent {
            bundle: bundle.clone(),
            parent: path,
            expected: parent.sha256.clone(),
            found,
        });
    }
    if opened.manifest.memory != manifest.memory {
        let reason = format!("is not that of its parent {path}");
        return Err(Error::field_of(&bundle.manifest(), "memory", &reason));
    }
    Ok(opened)
}

/// Where the parent of the delta `bundle` lies.
pub(super) fn parent_path(bundle: &BundlePath, parent: &Parent) -> Result<BundlePath, Error> {
    BundlePath::new(&bundle.dir().join(&parent.path))
        .map_err(|error| Error::field_of(&bundle.manifest(), "parent.path", &error.to_string()))
}

fn open_part(folder: &Folder, path: &BundlePath, part: Part) -> Result<File, Error> {
    if let Some(file) = folder.open_file(&path.file_name(part))? {
        return Ok(file);
    }
    let (bundle, file) = (path.clone(), path.file(part));
    for other in Part::ALL {
        if folder.holds(&path.file_name(other))? || folder.holds(&path.temporary_name(other))? {
            return Err(Error::Incomplete { bundle, file });
        }
    }
    Err(Error::NotFound { bundle, file })
}

/// Reads a manifest of this version, every field checked.
pub(super) fn parse_manifest(file: &Path, text: &[u8]) -> Result<Manifest, Error> {
    /// What a manifest of any version has.
    #[derive(Deserialize)]
    struct Head {
        format: Value,
        version: Value,
        engine_version: Option<Value>,
    }
    let head: Head = json::parse(file, text)?;
    if head.format != FORMAT {
        return Err(Error::field_of(
            file,
            "format",
            &format!("must be {FORMAT:?}"),
        ));
    }
    if head.version.is_u64() && head.version != VERSION {
        let made_by = head
            .engine_version
            .as_ref()
            .and_then(Value::as_str)
            .map(printable);
        return Err(Error::Version {
            file: file.to_owned(),
            found: head.version.to_string(),
            made_by,
        });
    }
    let manifest: Manifest = json::parse(file, text)?;
    manifest
        .validate()
        .map_err(|invalid| Error::field_of(file, &invalid.field, &invalid.reason))?;
    Ok(manifest)
}

/// Reads a file that another process writes, and that must not be longer than `cap`: who writes it may be
/// hostile.
pub(crate) fn read_at_most(path: &Path, cap: Bytes) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(|cause| Error::io("open", path, cause))?;
    read_whole(&file, path, cap)
}

/// Reads a file that must not be longer than `cap`.
pub(super) fn read_whole(file: &File, path: &Path, cap: Bytes) -> Result<Vec<u8>, Error> {
    let too_large = |size| Error::TooLarge {
        file: path.to_owned(),
        size,
        cap,
    };
    let facts = file
        .metadata()
        .map_err(|cause| Error::io("examine", path, cause))?;
    if facts.len() > cap.0 {
        return Err(too_large(Bytes(facts.len())));
    }
    let mut content = Vec::new();
    // One byte more, to see a file that grows meanwhile.
    file.take(cap.0 + 1)
        .read_to_end(&mut content)
        .map_err(|cause| Error::io("read", path, cause))?;
    let size = Bytes(content.len() as u64);
    if size > cap {
        Err(too_large(size))
    } else {
        Ok(content)
    }
}

fn read_sealed(
    path: &BundlePath,
    part: Part,
    file: &File,
    seal: &FileSeal,
    cap: Bytes,
) -> Result<Vec<u8>, Error> {
    let facts = file
        .metadata()
        .map_err(|cause| Error::io("examine", &path.file(part), cause))?;
    check_size(path, part, seal, Bytes(facts.len()))?;
    let content = read_whole(file, &path.file(part), cap)?;
    check_size(path, part, seal, Bytes(content.len() as u64))?;
    check_digest(path, part, seal, hash::sha256(&content))?;
    Ok(content)
}

fn check_size(path: &BundlePath, part: Part, seal: &FileSeal, actual: Bytes) -> Result<(), Error> {
    if actual == seal.size {
        return Ok(());
    }
    Err(Error::Size {
        file: path.file(part),
        manifest: path.manifest(),
        field: format!("{}.size", part.key()),
        expected: seal.size,
        actual,
    })
}

fn check_digest(
    path: &BundlePath,
    part: Part,
    seal: &FileSeal,
    actual: String,
) -> Result<(), Error> {
    if actual == seal.sha256 {
        return Ok(());
    }
    Err(Error::Digest {
        file: path.file(part),
        manifest: path.manifest(),
        field: format!("{}.sha256", part.key()),
        expected: seal.sha256.clone(),
        actual,
    })
}

/// Checks what the manifest and the `.meta` both say.
fn agree(path: &BundlePath, manifest: &Manifest, meta: &Meta) -> Result<(), Error> {
    let differ = |field: &str, reason: &str| {
        let reason = format!("{reason} in {}", path.meta().display());
        Err(Error::field_of(&path.manifest(), field, &reason))
    };
    if manifest.vcpus != meta.ncpus {
        return differ(
            "vcpus",
            &format!("is {}, but ncpus is {}", manifest.vcpus, meta.ncpus),
        );
    }
    if manifest.memory.size != meta.memsize {
        let (ours, theirs) = (manifest.memory.size.0, meta.memsize.0);
        return differ(
            "memory.size",
            &format!("is {ours}, but memsize is {theirs}"),
        );
    }
    if manifest.guest != meta.vmname {
        return differ(
            "guest",
            &format!("is {:?}, but vmname is {:?}", manifest.guest, meta.vmname),
        );
    }
    match &meta.manifest_fields {
        Some(sealed) => {
            let mut fields = meta::field_digests(manifest);
            let with_path = meta::field_digests_with_path(manifest);
            if sealed.get("parent") == with_path.get("parent") {
                fields = with_path;
            }
            if let Some(field) = sealed.keys().find(|field| !fields.contains_key(*field)) {
                return differ(field, "was there when it was sealed, by its SHA-256");
            }
            for (field, digest) in fields {
                if sealed.get(&field) != Some(&digest) {
                    return differ(
                        &field,
                        "changed since it was sealed: its SHA-256 is not that",
                    );
                }
            }
            Ok(())
        }
        // bhyve's own .meta has none.
        None if manifest.engine == EngineKind::Bhyve => Ok(()),
        None => differ("engine", "is kvm, but there are no manifest_fields"),
    }
}
