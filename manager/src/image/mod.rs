//! Images of guests, that checkpoints are booted from: a kernel and an initramfs, and of most kinds a
//! root file system.
//!
//! ```text
//! IMAGES/NAME/vmlinuz      the kernel of linux-image-cloud-amd64
//!             initramfs    busybox and modules; in a minimal image also the agent and all else
//!             root         the root file system, as squashfs, which guests only read
//!             image.json   what it was made of, and the digests of the others
//! ```
//!
//! An image has no dates of its build, no numbers of inodes and no order of a folder in it: the same
//! packages or layers and the same agent give the same digest. Nothing is mounted.

mod base;
mod cpio;
mod debian;
mod description;
mod error;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
#[cfg(target_os = "linux")]
mod initrd;
mod layer;
mod minimal;
mod modules;
mod oci;
mod package;
mod program;
mod root;
mod scratch;
mod squashfs;
mod tree;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use brood_core::{
    checkpoint::{Watch, is_interrupted, sha256_file, unwatched},
    directory,
    units::Bytes,
};

use description::{FORMAT, VERSION};
use scratch::DESCRIPTION;

pub(crate) use base::Ingredients;
pub(crate) use debian::Debian;
pub(crate) use description::Image;
pub(crate) use error::Error;
pub(crate) use oci::Layout;
pub(crate) use program::agent_beside_program;

/// Longest name of an image.
const NAME_MAX: usize = 64;

/// Where the files of an image are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// The root file system; none of a minimal image.
    pub(crate) root: Option<PathBuf>,
}

/// The folder of all images.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    folder: PathBuf,
}

impl Images {
    /// The images in this folder, which need not be there.
    pub(crate) fn in_folder(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Where an image is, or is to be.
    pub(crate) fn path(&self, name: &str) -> Result<PathBuf, Error> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty()
            || name.len() > NAME_MAX
            || name.starts_with('.')
            || !name.chars().all(plain)
        {
            return Err(Error::Name(name.to_owned()));
        }
        Ok(self.folder.join(name))
    }

    /// Removes what killed builds have left.
    pub(crate) fn sweep(&self) {
        scratch::sweep(&self.folder);
    }

    /// Names of the images that there are, in order.
    pub(crate) fn names(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for entry in directory::entries(&self.folder).map_err(Error::io("list", &self.folder))? {
            let name = entry.file_name().into_string().unwrap_or_default();
            if self
                .path(&name)
                .is_ok_and(|path| path.join(DESCRIPTION).is_file())
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// An image's description, checked.
    pub(crate) fn open(&self, name: &str) -> Result<Image, Error> {
        let file = self.path(name)?.join(DESCRIPTION);
        let text = match fs::read(&file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotFound {
                    name: name.to_owned(),
                    folder: self.folder.clone(),
                });
            }
            other => other.map_err(Error::io("read", &file))?,
        };
        let damaged = |reason: String| Error::Damaged {
            file: file.clone(),
            reason,
        };
        let image: Image = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        if image.format != FORMAT || image.version != VERSION {
            return Err(damaged(format!(
                "it is {} of version {}, and this brood reads {FORMAT} of version {VERSION}",
                image.format, image.version
            )));
        }
        if image.compute_digest() != image.digest {
            return Err(damaged("its digest is not that of its files".to_owned()));
        }
        Ok(image)
    }

    /// Compares the files of an image with their digests, as long as `watch` lets it; returns where
    /// they are.
    pub(crate) fn verify(
        &self,
        name: &str,
        image: &Image,
        watch: Watch<'_>,
    ) -> Result<Files, Error> {
        let folder = self.path(name)?;
        let find = |file: &str, size: Bytes, sha256: &str| {
            let path = folder.join(file);
            let plain = Path::new(file)
                .file_name()
                .is_some_and(|name| *name == *file);
            if plain && measure_watched(&path, watch)? == (size, sha256.to_owned()) {
                Ok(path)
            } else {
                Err(Error::Damaged {
                    file: path,
                    reason: "its content is not what image.json says".to_owned(),
                })
            }
        };
        let (kernel, initramfs) = (&image.kernel, &image.initramfs);
        Ok(Files {
            kernel: find(&kernel.file, kernel.size, &kernel.sha256)?,
            initramfs: find(&initramfs.file, initramfs.size, &initramfs.sha256)?,
            root: image
                .root
                .as_ref()
                .map(|root| find(&root.file, root.size, &root.sha256))
                .transpose()?,
        })
    }

    /// Removes an image. Checkpoints that were made of it need it no more.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name)?;
        if !path.join(DESCRIPTION).is_file() {
            return Err(Error::NotFound {
                name: name.to_owned(),
                folder: self.folder.clone(),
            });
        }
        // Without its description it is no image, whatever else is left of it.
        let description = path.join(DESCRIPTION);
        fs::remove_file(&description).map_err(Error::io("remove", &description))?;
        fs::remove_dir_all(&path).map_err(Error::io("remove", &path))
    }
}

/// Length and SHA-256 of a file.
fn measure(path: &Path) -> Result<(Bytes, String), Error> {
    measure_watched(path, &unwatched)
}

fn measure_watched(path: &Path, watch: Watch<'_>) -> Result<(Bytes, String), Error> {
    let measured = File::open(path).and_then(|file| {
        let size = file.metadata()?.len();
        Ok((Bytes(size), sha256_file(&file, watch)?))
    });
    measured.map_err(|e| match is_interrupted(&e) {
        true => Error::Interrupted,
        false => Error::io("read", path)(e),
    })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use brood_core::checkpoint::until;

    use super::{
        description::{ImageFile, Root},
        *,
    };

    fn sample(folder: &Path) -> Image {
        let file = |name: &str, content: &str| {
            let path = folder.join(name);
            fs::write(&path, content).unwrap();
            let (size, sha256) = measure(&path).unwrap();
            ImageFile {
                file: name.to_owned(),
                size,
                sha256,
            }
        };
        let root = file("root", "disk");
        let mut image = Image {
            format: FORMAT.to_owned(),
            version: VERSION,
            kind: "debian".to_owned(),
            sources: Vec::new(),
            release: "6.1.0".to_owned(),
            kernel: file("vmlinuz", "kernel"),
            initramfs: file("initramfs", "files"),
            root: Some(Root {
                file: root.file,
                size: root.size,
                sha256: root.sha256,
                filesystem: "squashfs".to_owned(),
            }),
            command_line: "quiet".to_owned(),
            process: None,
            digest: String::new(),
        };
        image.digest = image.compute_digest();
        image
    }

    #[test]
    fn an_image_is_found_checked_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::in_folder(folder.path().join("images"));
        assert_eq!(images.names().unwrap(), Vec::<String>::new());
        assert!(matches!(images.open("web"), Err(Error::NotFound { .. })));
        let path = images.path("web").unwrap();
        fs::create_dir_all(&path).unwrap();
        assert_eq!(
            images.names().unwrap(),
            Vec::<String>::new(),
            "it is not whole"
        );
        let image = sample(&path);
        let describe = |image: &Image| {
            fs::write(path.join(DESCRIPTION), serde_json::to_vec(image).unwrap()).unwrap();
        };
        describe(&image);
        assert_eq!(images.names().unwrap(), ["web"]);
        assert_eq!(images.open("web").unwrap(), image);
        images.verify("web", &image, &unwatched).unwrap();
        let cancelled = AtomicBool::new(true);
        let called_off = images.verify("web", &image, &until(&cancelled));
        assert!(called_off.unwrap_err().is_interrupted());
        for file in ["root", "initramfs"] {
            fs::write(path.join(file), "other").unwrap();
            let damaged = images
                .verify("web", &image, &unwatched)
                .unwrap_err()
                .to_string();
            assert!(damaged.contains(file), "{damaged}");
        }
        // A description cannot point out of its folder.
        let mut outside = image.clone();
        outside.kernel.file = "../web/vmlinuz".to_owned();
        assert!(images.verify("web", &outside, &unwatched).is_err());
        outside.command_line = "init=/bin/sh".to_owned();
        describe(&outside);
        assert!(matches!(images.open("web"), Err(Error::Damaged { .. })));
        images.remove("web").unwrap();
        assert!(!path.exists());
        assert!(matches!(images.remove("web"), Err(Error::NotFound { .. })));
    }

    #[test]
    fn names_stay_in_the_folder() {
        let images = Images::in_folder("/images".into());
        for bad in ["", ".", "..", ".web", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(matches!(images.path(bad), Err(Error::Name(_))), "{bad}");
        }
        assert_eq!(
            images.path("debian-12.5_a").unwrap(),
            Path::new("/images/debian-12.5_a")
        );
    }
}
