//! The folder that an image is made in. It gets the image's name when it is whole.
//!
//! Its owner holds it locked (flock(2)), and so do the programs that the owner has started. Whoever
//! gets the lock of another's folder knows that all of them have ended, and removes it.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::{
    Error, Images,
    description::{Image, ImageFile},
    hex, measure,
};
use brood_core::{directory, guest_id::random, owner_only};

/// The description's name in the image's folder. It is written last.
pub(super) const DESCRIPTION: &str = "image.json";

/// The end of the name of a folder that an image is made in: `.NAME.NUMBER.building`.
const SUFFIX: &str = ".building";

/// The folder, and one for what goes with it.
pub(super) struct Scratch {
    folder: PathBuf,
    _lock: File,
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
        sweep(all);
        let number: [u8; 8] = random().map_err(Error::io("name a folder in", all))?;
        let folder = all.join(format!(".{name}.{}{SUFFIX}", hex(&number)));
        let lock = create_locked(&folder).map_err(Error::io("create", &folder))?;
        let scratch = Self {
            folder,
            _lock: lock,
            image,
        };
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

/// Makes a folder, and locks it for this process and the programs that it starts.
fn create_locked(folder: &Path) -> io::Result<File> {
    loop {
        owner_only::create_folder(folder)?;
        let lock = match File::open(folder) {
            // A sweep was faster.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            lock => lock?,
        };
        match lock.try_lock() {
            // A sweep has it, and removes it.
            Err(TryLockError::WouldBlock) => continue,
            locked => locked?,
        }
        let there = fs::metadata(folder).is_ok_and(|facts| {
            lock.metadata()
                .is_ok_and(|locked| locked.ino() == facts.ino())
        });
        if there {
            fcntl(&lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
            return Ok(lock);
        }
    }
}

/// Whether an image may be made in a folder of this name.
fn is_scratch(name: &str) -> bool {
    let middle = name.strip_prefix('.').and_then(|n| n.strip_suffix(SUFFIX));
    let number = middle.and_then(|middle| Some(middle.rsplit_once('.')?.1));
    number.is_some_and(|digits| {
        digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Removes the folders that killed commands have left. What cannot be removed is tried again by the
/// next look.
pub(super) fn sweep(images: &Path) {
    for entry in directory::entries(images).unwrap_or_default() {
        if !is_scratch(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let Ok(lock) = File::open(entry.path()) else {
            continue;
        };
        if lock.try_lock().is_ok()
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            let folder = entry.path();
            tracing::warn!(%error, "cannot remove {}, which a killed command left", folder.display());
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
