//! Disks of guests: the one that a guest has to itself, and the one with the root file system that
//! all guests of a checkpoint read.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Boot, Error};
use crate::{
    checkpoint::{BundlePath, Checkpoint, Watch, manifest::DiskSnapshot, until},
    disk::{self, Owner, Provider, Source},
    guest_id::GuestId,
    owner_only,
    units::Bytes,
};

/// Name and serial number of the disk with the root file system, which all clones read.
pub(super) const ROOT: &str = "root";
/// Name and serial number of the disk that a guest has to itself.
pub(super) const DISK: &str = "disk";
/// Sizes that an empty disk may have: room for a file system, and what an overlay can be made of.
const SIZES: std::ops::RangeInclusive<Bytes> = Bytes::mib(8)..=Bytes::gib(4096);
/// The file of a dataset that is a guest's disk, where the dataset is a file system.
const FILE: &str = "disk";
/// The program that makes a file system in a file.
const MAKE_FILESYSTEM: &str = "mke2fs";
/// How often it is asked whether that is done, or no longer wanted.
const MAKING_POLL: Duration = Duration::from_millis(5);
/// Has the image's first program mount the guest's own disk.
const MOUNT: &str = "brood.disk=mount";
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

/// A disk that a guest has to itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OwnDisk {
    /// The file or device.
    pub(super) path: PathBuf,
    /// Whether it is a device.
    pub(super) is_device: bool,
    /// Its size, as the guest sees it.
    pub(super) size: Bytes,
    /// What it is an overlay of; none when it holds all of the disk.
    pub(super) base: Option<PathBuf>,
}

/// Why a guest cannot have its disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoDisk {
    /// It cannot be used.
    #[error("cannot use its disk: {0}")]
    Io(#[from] io::Error),
    /// It is another one.
    #[error("its disk {} has {found}, and the checkpoint's guest had one of {size}", disk.display())]
    Size {
        /// Where it is.
        disk: PathBuf,
        /// Its size.
        found: Bytes,
        /// What it should be.
        size: Bytes,
    },
    /// There is none.
    #[error("its guests have a disk, and none was made")]
    Missing,
}

/// The disk of a guest that is restored: one of this size, if its checkpoint has any, at a place that
/// was made for it.
pub(super) fn of_restored(
    size: Option<Bytes>,
    location: Option<&Path>,
) -> Result<Option<OwnDisk>, NoDisk> {
    let Some(size) = size else {
        return Ok(None);
    };
    let disk = find(location.ok_or(NoDisk::Missing)?)?;
    if disk.size == size {
        return Ok(Some(disk));
    }
    Err(NoDisk::Size {
        found: disk.size,
        disk: disk.path,
        size,
    })
}

/// Checks that guests of a checkpoint with a disk of this size, if any, need none.
pub(super) fn can_do_without(checkpoint: &Checkpoint, disk: Option<Bytes>) -> Result<(), Error> {
    if disk.is_none() {
        return Ok(());
    }
    Err(Error::Checkpoint {
        checkpoint: checkpoint.path().to_string(),
        reason: "its guests have a disk, and their memory is of no use without it".to_owned(),
    })
}

/// Refuses a disk that no guest can boot with.
pub(super) fn check(disk: Option<&BootDisk>) -> Result<(), Error> {
    match disk {
        Some(BootDisk::Empty(size)) if !SIZES.contains(size) || !size.0.is_multiple_of(1 << 20) => {
            let (least, most) = (SIZES.start(), SIZES.end());
            Err(Error::Refused(format!(
                "a disk is whole MiB from {least} to {most}, not {size}"
            )))
        }
        _ => Ok(()),
    }
}

/// The kernel's command line of a guest that is booted.
pub(super) fn command_line(boot: &Boot<'_>) -> String {
    let line = &boot.image.command_line;
    match boot.disk {
        Some(BootDisk::Empty(_)) => format!("{line} {MOUNT}"),
        _ => line.clone(),
    }
}

/// A disk at a place that was made for a guest.
fn find(location: &Path) -> io::Result<OwnDisk> {
    let begin = Instant::now();
    // A volume's device appears a moment after the volume (zvol_create_minors() of OpenZFS).
    while !location.exists() && begin.elapsed() < DEVICE_PATIENCE {
        thread::sleep(Duration::from_millis(5));
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

/// The file with the root file system of a checkpoint's guests, which have it on a disk.
pub(super) fn root_of(checkpoint: &Checkpoint) -> Result<PathBuf, Error> {
    let manifest = checkpoint.manifest();
    let bundle = checkpoint.path().absolute()?;
    let mut shared = manifest.disks.iter().filter(|disk| disk.is_shared());
    let root = shared.find(|disk| disk.device.as_deref() == Some(ROOT));
    let root = root.ok_or_else(|| Error::Checkpoint {
        checkpoint: bundle.to_string(),
        reason: "its guests have their root file system on a disk, and it does not name that"
            .to_owned(),
    })?;
    Ok(disk::shared_file(&bundle, root)?)
}

/// What a new bundle says of its guest's disks: the one that was sealed with it, and those that
/// guests of the checkpoint that it came from read as well.
pub(super) fn of_suspended(
    mut sealed: Vec<DiskSnapshot>,
    has_disk: bool,
    from: &Checkpoint,
    to: &BundlePath,
    watch: Watch<'_>,
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
        let linked = disk::link_shared(&file, &disk.identity, device, to, watch);
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

/// Puts the disks that the bundle of a booted guest has beside it.
pub(super) fn seal_booted(
    boot: &Boot<'_>,
    own: Option<&NewDisk>,
    to: &BundlePath,
) -> Result<Vec<DiskSnapshot>, Error> {
    let mut disks = Vec::new();
    let watch = &until(boot.limit.cancelled);
    if let Some(root) = boot.root {
        disks.push(disk::link_shared(
            &root.file,
            &root.sha256,
            ROOT,
            to,
            watch,
        )?);
    }
    if let Some(own) = own {
        let sealed = own.seal(to, watch);
        disks.push(sealed.inspect_err(|_| forget_shared(to, &disks))?);
    }
    Ok(disks)
}

/// Removes them when the bundle could not be sealed.
pub(super) fn forget_booted(own: Option<&NewDisk>, bundle: &BundlePath, disks: &[DiskSnapshot]) {
    forget_shared(bundle, disks);
    if let (Some(own), Some(snapshot)) = (own, disks.iter().find(|disk| !disk.is_shared())) {
        own.discard(bundle, snapshot);
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
        cancelled: &AtomicBool,
    ) -> Result<Self, Error> {
        let source = match disk {
            BootDisk::Of(source) => source.clone().absolute()?,
            BootDisk::Empty(size) => {
                let file = folder.join("empty");
                make_filesystem(&file, *size, cancelled)?;
                Source::Reflink { file, copy: true }
            }
        };
        let provider = disk::provider(&source, owner, Some(lock));
        provider.open(None, &|_| Ok(String::new()))?;
        let made = provider
            .clone_for(&guest, &until(cancelled))
            .and_then(|()| {
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
    fn seal(&self, bundle: &BundlePath, watch: Watch<'_>) -> Result<DiskSnapshot, Error> {
        let token = disk::Token::random().map_err(|source| Error::Io {
            action: "draw a random number",
            source,
        })?;
        let snapshot = self.provider.snapshot(&self.guest, bundle, &token, watch)?;
        Ok(DiskSnapshot {
            device: Some(DISK.to_owned()),
            ..snapshot
        })
    }

    /// Removes a snapshot of a bundle that was not sealed.
    fn discard(&self, bundle: &BundlePath, snapshot: &DiskSnapshot) {
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
fn make_filesystem(file: &Path, size: Bytes, cancelled: &AtomicBool) -> Result<(), Error> {
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
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut making = made.map_err(|e| refused(e.to_string()))?;
    let is_made = loop {
        match making.try_wait().map_err(|e| refused(e.to_string()))? {
            Some(status) => break status.success(),
            None if cancelled.load(Ordering::Relaxed) => {
                let _ = making.kill();
                let _ = making.wait();
                return Err(Error::Interrupted);
            }
            None => thread::sleep(MAKING_POLL),
        }
    };
    if is_made {
        return Ok(());
    }
    let mut said = String::new();
    let stderr = making.stderr.as_mut();
    let _ = stderr.map(|stderr| stderr.read_to_string(&mut said));
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
    use crate::engine::NEVER;

    #[test]
    fn a_disk_that_is_called_off_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let guest = GuestId::random().unwrap();
        let lock = tempfile::tempfile().unwrap();
        let file = folder.path().join("source");
        File::create(&file).unwrap().set_len(64 << 20).unwrap();
        fs::write(folder.path().join("data"), vec![7; 1 << 20]).unwrap();
        let copied = Source::Reflink {
            file: folder.path().join("data"),
            copy: true,
        };
        for disk in [BootDisk::Empty(Bytes::gib(4096)), BootDisk::Of(copied)] {
            let place = folder.path().join("place");
            fs::create_dir(&place).unwrap();
            let owner = Owner::of(&place);
            let ended = NewDisk::make(&disk, guest, owner, &place, &lock, &AtomicBool::new(true));
            assert!(ended.is_err_and(|e| e.is_interrupted()), "{disk:?}");
            fs::remove_dir_all(&place).unwrap();
            let left = fs::read_dir(folder.path().join("brood-disks"));
            assert_eq!(left.map_or(0, Iterator::count), 0);
        }
    }

    #[test]
    fn an_empty_disk_costs_next_to_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let owner = Owner::of(folder.path());
        let guest = GuestId::random().unwrap();
        let size = Bytes::mib(512);
        let lock = tempfile::tempfile().unwrap();
        let disk = BootDisk::Empty(size);
        let made = NewDisk::make(&disk, guest, owner, folder.path(), &lock, &NEVER).unwrap();
        assert_eq!((made.disk.size, made.disk.is_device), (size, false));
        let blocks = fs::metadata(&made.disk.path).unwrap().blocks();
        assert!(blocks < 16384, "{blocks} of 512 bytes");
        let path = made.disk.path.clone();
        drop(made);
        assert!(!path.exists());
    }
}
