//! Disks of guests: the one that a guest has to itself, and the one with the root file system that
//! all guests of a checkpoint read.

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::command::{DISK, OwnDisk, ROOT};
use crate::{
    checkpoint::{BundlePath, Checkpoint, manifest::DiskSnapshot},
    disk::{self, Owner, Provider, Source},
    engine::Error,
    guest_id::GuestId,
    owner_only,
    units::Bytes,
};

/// Sizes that an empty disk may have: room for a file system, and what an overlay can be made of.
pub(super) const SIZES: std::ops::RangeInclusive<Bytes> = Bytes::mib(8)..=Bytes::gib(4096);
/// The file of a dataset that is a guest's disk, where the dataset is a file system.
const FILE: &str = "disk";
/// The program that makes a file system in a file.
const MAKE_FILESYSTEM: &str = "mke2fs";
/// How long the device of a new volume may take to appear.
const DEVICE_PATIENCE: Duration = Duration::from_secs(10);

/// The disk that a guest of a new checkpoint has to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootDisk {
    /// An empty one of this size, with a file system (ext4) that the guest mounts.
    Empty(Bytes),
    /// A clone of this one, as it is.
    Of(Source),
}

/// A disk at a place that was made for a guest.
pub(super) fn find(location: &Path) -> io::Result<OwnDisk> {
    let begin = Instant::now();
    // A volume's device appears a moment after the volume (zvol_create_minors() of OpenZFS).
    while !location.exists() && begin.elapsed() < DEVICE_PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    let path = match location.is_dir() {
        true => location.join(FILE),
        false => location.to_owned(),
    };
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let base = disk::overlay_base(&path).map_err(named)?;
    let kind = fs::metadata(&path).map_err(named)?.file_type();
    let measured = File::open(base.as_ref().unwrap_or(&path));
    let size = measured.and_then(|mut file| file.seek(SeekFrom::End(0)));
    let size = Bytes(size.map_err(named)?);
    Ok(OwnDisk {
        is_device: kind.is_block_device(),
        size,
        base,
        path,
    })
}

/// The file with the root file system of a checkpoint's guests, if that is on a disk.
pub(super) fn root_of(checkpoint: &Checkpoint) -> Result<Option<PathBuf>, Error> {
    let manifest = checkpoint.manifest();
    if !manifest.qemu.as_ref().is_some_and(|guest| guest.root) {
        return Ok(None);
    }
    let bundle = checkpoint.path().absolute()?;
    let mut shared = manifest.disks.iter().filter(|disk| disk.is_shared());
    let root = shared.find(|disk| disk.device.as_deref() == Some(ROOT));
    let root = root.ok_or_else(|| Error::Checkpoint {
        checkpoint: bundle.to_string(),
        reason: "its guests have their root file system on a disk, and it does not name that"
            .to_owned(),
    })?;
    Ok(Some(disk::shared_file(&bundle, root)?))
}

/// What a new bundle says of its guest's disks: the one that was sealed with it, and those that
/// guests of the checkpoint that it came from read as well.
pub(super) fn of_suspended(
    mut sealed: Vec<DiskSnapshot>,
    has_disk: bool,
    from: &Checkpoint,
    to: &BundlePath,
) -> Result<Vec<DiskSnapshot>, Error> {
    // That of a guest without such a device goes with it, and none reads it.
    let device = has_disk.then(|| DISK.to_owned());
    for disk in &mut sealed {
        disk.device.clone_from(&device);
    }
    let bundle = from.path().absolute()?;
    for disk in from.manifest().disks.iter().filter(|disk| disk.is_shared()) {
        let file = disk::shared_file(&bundle, disk)?;
        let device = disk.device.as_deref().unwrap_or(ROOT);
        let linked = disk::link_shared(&file, &disk.identity, device, to);
        sealed.push(linked.inspect_err(|_| forget_shared(to, &sealed))?);
    }
    Ok(sealed)
}

/// Removes what a bundle that was not sealed would have shared. The snapshot of the guest's own disk
/// is its caller's.
pub(super) fn forget_shared(bundle: &BundlePath, disks: &[DiskSnapshot]) {
    for disk in disks.iter().filter(|disk| disk.is_shared()) {
        // What cannot be removed now is found again: it is in no bundle.
        let _ = disk::unlink(bundle, disk);
    }
}

/// The disk of a guest that is being booted. It goes with this value.
#[derive(Debug)]
pub(super) struct NewDisk {
    provider: Box<dyn Provider>,
    guest: GuestId,
    pub(super) disk: OwnDisk,
}

impl NewDisk {
    /// Makes one. What is not a clone of a disk that is there already lies in `folder`. Commands that
    /// make it hold on to `lock`.
    pub(super) fn make(
        disk: &BootDisk,
        guest: GuestId,
        owner: Owner,
        folder: &Path,
        lock: &File,
    ) -> Result<Self, Error> {
        let source = match disk {
            BootDisk::Of(source) => source.clone().absolute()?,
            BootDisk::Empty(size) => {
                let file = folder.join("empty");
                make_filesystem(&file, *size)?;
                Source::Reflink { file, copy: true }
            }
        };
        let provider = disk::provider(&source, owner, Some(lock));
        provider.open(None, &|_| Ok(String::new()))?;
        let made = provider.clone_for(&guest).and_then(|()| {
            let missing = || disk::Error::Missing {
                disk: format!("made of {source}"),
            };
            provider.location(&guest)?.ok_or_else(missing)
        });
        let found = made.map_err(Error::from).and_then(|location| {
            find(&location).map_err(|source| Error::Io {
                action: "use the guest's disk",
                source,
            })
        });
        match found {
            Ok(disk) => Ok(Self {
                provider,
                guest,
                disk,
            }),
            Err(e) => {
                let _ = provider.release(&guest);
                Err(e)
            }
        }
    }

    /// The snapshot for a bundle that is being written.
    pub(super) fn seal(&self, bundle: &BundlePath) -> Result<DiskSnapshot, Error> {
        let token = disk::Token::random().map_err(|source| Error::Io {
            action: "draw a random number",
            source,
        })?;
        let snapshot = self.provider.snapshot(&self.guest, bundle, &token)?;
        Ok(DiskSnapshot {
            device: Some(DISK.to_owned()),
            ..snapshot
        })
    }

    /// Removes a snapshot of a bundle that was not sealed.
    pub(super) fn discard(&self, bundle: &BundlePath, snapshot: &DiskSnapshot) {
        let _ = self.provider.discard(bundle, snapshot);
    }
}

impl Drop for NewDisk {
    fn drop(&mut self) {
        // A sweep finds what cannot be removed now.
        let _ = self.provider.release(&self.guest);
    }
}

/// Makes a file with an empty file system of this size, most of it holes.
fn make_filesystem(file: &Path, size: Bytes) -> Result<(), Error> {
    let created = owner_only::options()
        .write(true)
        .create_new(true)
        .open(file);
    created
        .and_then(|file| file.set_len(size.0))
        .map_err(|source| Error::Io {
            action: "make the guest's disk",
            source,
        })?;
    let refused = |reason: String| {
        Error::Refused(format!(
            "a disk needs {MAKE_FILESYSTEM}, of Debian's e2fsprogs: {reason}"
        ))
    };
    // The file is all zeros, so nothing need be zeroed, now or by each clone.
    let made = Command::new(MAKE_FILESYSTEM)
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", "brood"])
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=1,nodiscard"])
        .arg(file)
        .env("PATH", program_path())
        .output()
        .map_err(|e| refused(e.to_string()))?;
    if made.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&made.stderr);
    Err(refused(said.trim().to_owned()))
}

/// Where programs of the system's administrator are besides: not in every user's PATH.
fn program_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_empty_disk_costs_next_to_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let owner = Owner::of(folder.path());
        let guest = GuestId::random().unwrap();
        let size = Bytes::mib(512);
        let lock = tempfile::tempfile().unwrap();
        let disk = BootDisk::Empty(size);
        let made = NewDisk::make(&disk, guest, owner, folder.path(), &lock).unwrap();
        assert_eq!((made.disk.size, made.disk.is_device), (size, false));
        let blocks = fs::metadata(&made.disk.path).unwrap().blocks();
        assert!(blocks < 16384, "{blocks} of 512 bytes");
        let path = made.disk.path.clone();
        drop(made);
        assert!(!path.exists());
    }
}
