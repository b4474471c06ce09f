//! Images of guests: a kernel and an initramfs, made from Debian's packages, that a checkpoint is
//! booted from.
//!
//! ```text
//! IMAGES/NAME/vmlinuz      the kernel of linux-image-cloud-amd64
//!             initramfs    busybox, the modules that reach the agent's port, brood-agent
//!             image.json   what it was made of, and the digests of the two
//! ```
//!
//! An image has no dates, no numbers of inodes and no order of a folder in it: the same packages
//! and the same agent give the same digest. Nothing is mounted, and no privilege is needed.

mod build;
mod cpio;
mod debian;
mod error;
mod modules;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use brood_core::{
    checkpoint::{sha256_file, unwatched},
    directory,
    units::Bytes,
};

pub(crate) use build::{Build, agent_beside_program};
pub(crate) use error::Error;

/// Value of [`Image::format`].
const FORMAT: &str = "brood-image";
/// The version that this brood writes, and the only one it reads.
const VERSION: u32 = 1;
/// The description's name in the image's folder. It is written last.
const DESCRIPTION: &str = "image.json";
/// Longest name of an image.
const NAME_MAX: usize = 64;

/// What an image was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    /// A package's name, or a program's.
    pub(crate) name: String,
    /// The package's version; none of a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
    /// SHA-256 of the package or program.
    pub(crate) sha256: String,
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

/// An image, as its `image.json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Image {
    /// Always [`FORMAT`].
    pub(crate) format: String,
    /// Always [`VERSION`].
    pub(crate) version: u32,
    /// What kind of image: `minimal`.
    pub(crate) kind: String,
    /// What it was made of.
    pub(crate) sources: Vec<Part>,
    /// The kernel's release, such as `6.1.0-56-cloud-amd64`.
    pub(crate) release: String,
    /// The kernel.
    pub(crate) kernel: ImageFile,
    /// The initramfs.
    pub(crate) initramfs: ImageFile,
    /// The kernel's command line.
    pub(crate) command_line: String,
    /// What tells this image from any other: a SHA-256 over kernel, initramfs and command line.
    pub(crate) digest: String,
}

impl Image {
    /// The digest of an image with these files.
    fn digest_of(kernel: &ImageFile, initramfs: &ImageFile, command_line: &str) -> String {
        let text = format!("{} {} {command_line}", kernel.sha256, initramfs.sha256);
        hex(&Sha256::digest(text))
    }
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
        let digest = Image::digest_of(&image.kernel, &image.initramfs, &image.command_line);
        if digest != image.digest {
            return Err(damaged("its digest is not that of its files".to_owned()));
        }
        Ok(image)
    }

    /// Compares the files of an image with their digests; returns where kernel and initramfs are.
    pub(crate) fn verify(&self, name: &str, image: &Image) -> Result<[PathBuf; 2], Error> {
        let folder = self.path(name)?;
        let mut found = [&image.kernel, &image.initramfs].into_iter().map(|part| {
            let path = folder.join(&part.file);
            let plain = Path::new(&part.file)
                .file_name()
                .is_some_and(|file| *file == *part.file);
            let (size, sha256) = if plain {
                measure(&path)?
            } else {
                (Bytes(0), String::new())
            };
            if (size, &sha256) == (part.size, &part.sha256) {
                Ok(path)
            } else {
                Err(Error::Damaged {
                    file: path,
                    reason: "its content is not what image.json says".to_owned(),
                })
            }
        });
        // Two parts, so two results.
        let (kernel, initramfs) = (found.next(), found.next());
        let missing = || Error::Name(name.to_owned());
        Ok([
            kernel.ok_or_else(missing)??,
            initramfs.ok_or_else(missing)??,
        ])
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
    let measured = File::open(path).and_then(|file| {
        let size = file.metadata()?.len();
        Ok((Bytes(size), sha256_file(&file, &unwatched)?))
    });
    measured.map_err(Error::io("read", path))
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
    use super::*;

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
        let (kernel, initramfs) = (file("vmlinuz", "kernel"), file("initramfs", "files"));
        let command_line = "quiet".to_owned();
        Image {
            format: FORMAT.to_owned(),
            version: VERSION,
            kind: "minimal".to_owned(),
            sources: Vec::new(),
            release: "6.1.0".to_owned(),
            digest: Image::digest_of(&kernel, &initramfs, &command_line),
            kernel,
            initramfs,
            command_line,
        }
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
        images.verify("web", &image).unwrap();
        fs::write(path.join("initramfs"), "other").unwrap();
        let damaged = images.verify("web", &image).unwrap_err().to_string();
        assert!(damaged.contains("initramfs"), "{damaged}");
        // A description cannot point out of its folder.
        let mut outside = image.clone();
        outside.kernel.file = "../web/vmlinuz".to_owned();
        assert!(images.verify("web", &outside).is_err());
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
