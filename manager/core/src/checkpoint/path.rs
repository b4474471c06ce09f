//! Path of a bundle: a folder and a name, from which the four file names follow.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::error::Error;

/// Longest bundle name in bytes, so that every file name of the bundle fits in 255.
const NAME_MAX: usize = 200;

/// One file of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Ckp,
    Kern,
    Meta,
    Manifest,
}

impl Part {
    /// The three sealed files, in the order in which they get their names.
    pub(super) const SEALED: [Self; 3] = [Self::Ckp, Self::Kern, Self::Meta];
    /// All files. The manifest is first here because it is removed first.
    pub(super) const ALL: [Self; 4] = [Self::Manifest, Self::Kern, Self::Meta, Self::Ckp];

    const fn extension(self) -> &'static str {
        match self {
            Self::Ckp => ".ckp",
            Self::Kern => ".ckp.kern",
            Self::Meta => ".ckp.meta",
            Self::Manifest => ".ckp.brood",
        }
    }

    /// The manifest's key for this file.
    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::Ckp => "files.ckp",
            Self::Kern => "files.kern",
            Self::Meta => "files.meta",
            Self::Manifest => "files",
        }
    }
}

/// Where a bundle lies. `DIR/NAME`, `DIR/NAME.ckp` and `DIR/NAME.ckp.brood` (or the name of any
/// other file of the bundle) all name the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BundlePath {
    dir: PathBuf,
    name: String,
}

impl BundlePath {
    /// Reads a path as a user types it.
    ///
    /// # Errors
    /// [`Error::Name`] when the last part cannot be a bundle's name: empty, not UTF-8, hidden,
    /// longer than 200 bytes, with characters that a terminal would act on, or a folder (`DIR/`).
    pub fn new(path: &Path) -> Result<Self, Error> {
        let refuse = |reason| Error::Name {
            given: path.to_owned(),
            reason,
        };
        if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(refuse("it ends with a slash, as a folder does"));
        }
        let last = path
            .file_name()
            .ok_or_else(|| refuse("it has no last part"))?;
        let last = last
            .to_str()
            .ok_or_else(|| refuse("its name is not UTF-8"))?;
        let name = stem(last).unwrap_or(last);
        if name.is_empty() || name.starts_with('.') {
            return Err(refuse("its name is empty or starts with a dot"));
        }
        if stem(name).is_some() {
            return Err(refuse(
                "its name has a checkpoint's extension more than once",
            ));
        }
        if name.len() > NAME_MAX {
            return Err(refuse("its name is longer than 200 bytes"));
        }
        if name.chars().any(crate::escaped::is_unprintable) {
            return Err(refuse("its name has control characters"));
        }
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        Ok(Self {
            dir,
            name: name.to_owned(),
        })
    }

    /// Name of the bundle, without folder and extensions.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Folder of the bundle; `.` when none was given.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Raw guest memory.
    #[must_use]
    pub fn ckp(&self) -> PathBuf {
        self.file(Part::Ckp)
    }

    /// CPU and device state.
    #[must_use]
    pub fn kern(&self) -> PathBuf {
        self.file(Part::Kern)
    }

    /// bhyve's JSON description.
    #[must_use]
    pub fn meta(&self) -> PathBuf {
        self.file(Part::Meta)
    }

    /// brood's manifest.
    #[must_use]
    pub fn manifest(&self) -> PathBuf {
        self.file(Part::Manifest)
    }

    /// The same bundle with its folder made absolute and free of symlinks. The files themselves
    /// are not looked at.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder does not exist or cannot be reached.
    pub fn absolute(&self) -> Result<Self, Error> {
        let dir = self
            .dir
            .canonicalize()
            .map_err(|cause| Error::io("find the folder", &self.dir, cause))?;
        Ok(Self {
            dir,
            name: self.name.clone(),
        })
    }

    /// The reference to this bundle as a parent: its name where both lie in one folder, so that the
    /// folder can be moved as a whole, else its absolute path.
    pub(super) fn named_from(&self, delta: &Self) -> Result<String, Error> {
        let (place, own) = (self.absolute()?, delta.absolute()?);
        Ok(if place.dir == own.dir {
            place.name
        } else {
            place.to_string()
        })
    }

    pub(super) fn file(&self, part: Part) -> PathBuf {
        self.dir.join(self.file_name(part))
    }

    pub(super) fn file_name(&self, part: Part) -> String {
        format!("{}{}", self.name, part.extension())
    }

    /// Name of a file until its bundle is sealed.
    pub(super) fn temporary_name(&self, part: Part) -> String {
        format!(".{}{}.new", self.name, part.extension())
    }

    /// The bundle that a folder entry belongs to, if it belongs to one.
    pub(super) fn of_entry(dir: &Path, entry: &str) -> Option<Self> {
        let name = match entry.strip_prefix('.') {
            Some(hidden) => stem(hidden.strip_suffix(".new")?)?,
            None => stem(entry)?,
        };
        Self::new(&dir.join(name)).ok()
    }
}

/// `NAME` of a file called `NAME.ckp` or `NAME.ckp.*`.
fn stem(file: &str) -> Option<&str> {
    Part::ALL
        .iter()
        .find_map(|part| file.strip_suffix(part.extension()))
}

impl fmt::Display for BundlePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dir.join(&self.name).display().fmt(f)
    }
}

impl FromStr for BundlePath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::new(Path::new(text))
    }
}
