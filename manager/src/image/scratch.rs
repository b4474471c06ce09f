//! The folder that an image is made in. It gets the image's name when it is whole.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    Error, Images,
    description::{Image, ImageFile},
    measure,
};
use brood_core::owner_only;

/// The description's name in the image's folder. It is written last.
pub(super) const DESCRIPTION: &str = "image.json";

/// The folder, and one for what goes with it.
pub(super) struct Scratch {
    folder: PathBuf,
    /// Where the image will be.
    image: PathBuf,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Scratch {
    /// A new one in the folder of images, so that what is made in it can be renamed. Refuses the
    /// name of an image that is there.
    pub(super) fn new(images: &Images, name: &str) -> Result<Self, Error> {
        let image = images.path(name)?;
        if image.exists() {
            return Err(Error::Exists(image));
        }
        let all = &images.folder;
        owner_only::create_folder(all).map_err(Error::io("create", all))?;
        let folder = all.join(format!(".{name}.{}", std::process::id()));
        // Left by a process of this number that was killed.
        let _ = fs::remove_dir_all(&folder);
        owner_only::create_folder(&folder).map_err(Error::io("create", &folder))?;
        let scratch = Self { folder, image };
        let made = scratch.made();
        fs::create_dir(&made).map_err(Error::io("create", &made))?;
        Ok(scratch)
    }

    fn made(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// A new folder that goes at the end.
    pub(super) fn subfolder(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.folder.join(name);
        fs::create_dir(&path).map_err(Error::io("create", &path))?;
        Ok(path)
    }

    /// A new file that goes at the end.
    pub(super) fn file(&self, name: &str) -> Result<(PathBuf, File), Error> {
        create(&self.folder, name)
    }

    /// A new file of the image.
    pub(super) fn image_file(&self, name: &str) -> Result<(PathBuf, File), Error> {
        create(&self.made(), name)
    }

    /// Writes a file of the image.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<ImageFile, Error> {
        let (path, mut file) = self.image_file(name)?;
        let written = file.write_all(content);
        written.map_err(Error::io("write", &path))?;
        self.finish(name, &file)
    }

    /// A file of the image that has been written, on the disk and measured.
    pub(super) fn finish(&self, name: &str, file: &File) -> Result<ImageFile, Error> {
        let path = self.made().join(name);
        file.sync_all().map_err(Error::io("write", &path))?;
        let (size, sha256) = measure(&path)?;
        Ok(ImageFile {
            file: name.to_owned(),
            size,
            sha256,
        })
    }

    /// Writes the description; then the name appears with all that is in it.
    pub(super) fn publish(self, image: &Image) -> Result<(), Error> {
        let made = self.made();
        let mut text = serde_json::to_vec_pretty(image)
            .map_err(|e| Error::io("write", &made.join(DESCRIPTION))(e.into()))?;
        text.push(b'\n');
        self.write(DESCRIPTION, &text)?;
        // rename(2) replaces no folder that has files.
        match fs::rename(&made, &self.image) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
                Err(Error::Exists(self.image.clone()))
            }
            Err(e) => Err(Error::io("create", &self.image)(e)),
        }
    }
}

fn create(folder: &Path, name: &str) -> Result<(PathBuf, File), Error> {
    let path = folder.join(name);
    let file = owner_only::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path);
    let file = file.map_err(Error::io("create", &path))?;
    Ok((path, file))
}
