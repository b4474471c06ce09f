//! Disks as ZFS datasets, driven through the `zfs` command.
//!
//! A guest's disk is a clone beside the dataset whose snapshot it comes from. It holds that
//! snapshot (`zfs hold`) as long as it lives, so that not even `zfs destroy -R` removes it. The
//! clone exists before its hold and goes after it: no hold is ever left without the clone by which
//! it is found. A bundle's snapshot is held in the same way under the bundle's own tag.
//!
//! A snapshot lives in the dataset it was taken of. If that is a guest's disk, the dataset outlives
//! the guest: brood marks it as released, and removes it with its last snapshot.

mod command;

use std::{path::PathBuf, thread, time::Duration};

pub use command::{Command, CommandAnswer, Runner};

use super::{Digest, Error, Owner, Provider, SealedDisk, Token};
use crate::zfs_name::{Dataset, SnapshotName};
use crate::{
    checkpoint::{
        BundlePath, Watch,
        manifest::{DiskProvider, DiskSnapshot},
    },
    guest_id::GuestId,
    units::Bytes,
};

/// What the names of brood's datasets, snapshots and holds begin with.
pub(super) const PREFIX: &str = "brood-";
/// Property of a guest's disk: the guest's id.
pub(super) const GUEST: &str = "brood:guest";
/// Property of a bundle's snapshot: the bundle's path.
pub(super) const BUNDLE: &str = "brood:bundle";
/// Property of a guest's disk that is there for its snapshots only.
pub(super) const RELEASED: &str = "brood:released";
/// How often a busy dataset is tried again: what has just ended may still be letting go of it.
const TRIES: u32 = 50;
/// How long between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Disks that are clones of one snapshot.
#[derive(Debug)]
pub struct Zfs {
    owner: Owner,
    source: SnapshotName,
    zfs: Box<dyn Runner>,
}

impl Zfs {
    /// The disks of an owner that come from this snapshot.
    #[must_use]
    pub fn new(owner: Owner, source: SnapshotName, zfs: Box<dyn Runner>) -> Self {
        Self { owner, source, zfs }
    }

    /// The dataset that is a guest's disk.
    #[must_use]
    pub fn disk(&self, guest: &GuestId) -> Dataset {
        let name = format!("{PREFIX}{}", self.owner.name_for(guest));
        self.source.dataset().parent().child(&name)
    }

    /// Runs `zfs`, which must succeed; the last argument names the dataset.
    fn run(&self, action: &'static str, arguments: &[&str]) -> Result<(), Error> {
        let on = arguments.last().copied().unwrap_or_default();
        expect(self.zfs.run(arguments)?, action, on).map(|_| ())
    }

    /// Values of properties, in the order asked for; `None` when there is no such dataset.
    fn get(&self, of: &str, properties: &str) -> Result<Option<Vec<String>>, Error> {
        let arguments = ["get", "-H", "-p", "-o", "property,value", properties, of];
        let answer = self.zfs.run(&arguments)?;
        if answer.is_missing() {
            return Ok(None);
        }
        let said = expect(answer, "look at", of)?.stdout;
        let value = |property| {
            said.lines()
                .filter_map(|line| line.split_once('\t'))
                .find(|(name, _)| *name == property)
                .map_or_else(String::new, |(_, value)| value.to_owned())
        };
        Ok(Some(properties.split(',').map(value).collect()))
    }

    fn guid(&self, snapshot: &str) -> Result<String, Error> {
        let missing = || Error::Missing {
            disk: snapshot.to_owned(),
        };
        let values = self.get(snapshot, "guid")?.ok_or_else(missing)?;
        Ok(values.into_iter().next().unwrap_or_default())
    }

    fn hold(&self, tag: &str, snapshot: &str) -> Result<(), Error> {
        let answer = self.zfs.run(&["hold", tag, snapshot])?;
        if answer.is_held_already() {
            return Ok(());
        }
        expect(answer, "hold", snapshot).map(|_| ())
    }

    fn let_go(&self, tag: &str, snapshot: &str) -> Result<(), Error> {
        let answer = self.zfs.run(&["release", tag, snapshot])?;
        if answer.is_not_held() || answer.is_missing() {
            return Ok(());
        }
        expect(answer, "release the hold on", snapshot).map(|_| ())
    }

    /// Destroys a dataset or snapshot, trying again while something still lets go of it. The
    /// answer is the last one.
    fn destroy(&self, what: &str) -> Result<CommandAnswer, Error> {
        let mut answer = self.zfs.run(&["destroy", what])?;
        for _ in 1..TRIES {
            if !answer.is_busy() {
                break;
            }
            thread::sleep(PAUSE);
            answer = self.zfs.run(&["destroy", what])?;
        }
        Ok(answer)
    }

    /// Names of a disk's snapshots, without the disk's own.
    fn snapshots(&self, disk: &Dataset) -> Result<Vec<String>, Error> {
        let arguments = [
            "list",
            "-H",
            "-r",
            "-d",
            "1",
            "-t",
            "snapshot",
            "-o",
            "name",
            disk.as_str(),
        ];
        let answer = expect(self.zfs.run(&arguments)?, "list", disk.as_str())?;
        let names = answer
            .stdout
            .lines()
            .filter_map(|line| line.split_once('@'));
        Ok(names.map(|(_, name)| name.to_owned()).collect())
    }

    /// A clone that was made by a command that died may not be mounted yet.
    fn mount(&self, disk: &Dataset) -> Result<(), Error> {
        let values = self.get(disk.as_str(), "type,mounted,mountpoint")?;
        match values.as_deref() {
            Some([kind, mounted, at])
                if kind == "filesystem" && mounted == "no" && at.starts_with('/') =>
            {
                self.run("mount", &["mount", disk.as_str()])
            }
            _ => Ok(()),
        }
    }

    /// Destroys a disk that is there for its snapshots only, when it has none any more.
    pub(super) fn destroy_released(&self, disk: &Dataset) -> Result<(), Error> {
        let released = self.get(disk.as_str(), RELEASED)?;
        let released = released.is_some_and(|values| values == ["yes"]);
        if !released || self.snapshots(disk)?.iter().any(|name| is_bundles(name)) {
            return Ok(());
        }
        let answer = self.destroy(disk.as_str())?;
        if answer.is_missing() {
            return Ok(());
        }
        expect(answer, "destroy", disk.as_str()).map(|_| ())
    }

    fn take(&self, name: &str, bundle: &str, tag: &str) -> Result<String, Error> {
        let property = format!("{BUNDLE}={bundle}");
        self.run("take the snapshot", &["snapshot", "-o", &property, name])?;
        self.hold(tag, name)?;
        self.guid(name)
    }

    /// Removes a bundle's snapshot, and the dataset too when it was there for that one only.
    pub(super) fn remove_snapshot(&self, snapshot: &SnapshotName) -> Result<(), Error> {
        let (name, tag) = (snapshot.to_string(), snapshot.name());
        self.let_go(tag, &name)?;
        let answer = self.destroy(&name)?;
        if answer.has_clones() {
            // It stays, and what stays is held.
            self.hold(tag, &name)?;
            return Err(Error::InUse {
                snapshot: name,
                said: answer.said(),
            });
        }
        if !answer.is_missing() {
            expect(answer, "destroy", &name)?;
        }
        let disk = snapshot.dataset();
        if disk.last().starts_with(PREFIX) {
            self.destroy_released(disk)?;
        }
        Ok(())
    }
}

impl Provider for Zfs {
    fn open(&self, sealed: Option<SealedDisk<'_>>, _digest: Digest<'_>) -> Result<(), Error> {
        let name = self.source.to_string();
        let missing = || Error::Missing { disk: name.clone() };
        let properties = format!("guid,{BUNDLE}");
        let values = self.get(&name, &properties)?.ok_or_else(missing)?;
        let Some(sealed) = sealed else {
            return Ok(());
        };
        // A snapshot belongs to one bundle, and goes when that one does.
        let expected = [sealed.disk.identity.clone(), sealed.bundle.to_string()];
        for ((what, found), sealed) in ["guid", BUNDLE].into_iter().zip(values).zip(expected) {
            if found != sealed {
                return Err(Error::Other {
                    disk: name,
                    what,
                    found,
                    sealed,
                });
            }
        }
        Ok(())
    }

    // A command of ZFS is short, and done as a whole.
    fn clone_for(&self, guest: &GuestId, _: Watch<'_>) -> Result<(), Error> {
        let (disk, source) = (self.disk(guest), self.source.to_string());
        let property = format!("{GUEST}={guest}");
        let arguments = ["clone", "-o", &property, &source, disk.as_str()];
        let answer = self.zfs.run(&arguments)?;
        if !answer.ok {
            match self.get(disk.as_str(), "origin")? {
                Some(values) if values == [&*source] => self.mount(&disk)?,
                Some(_) => {
                    return Err(Error::Taken {
                        disk: disk.to_string(),
                        origin: source,
                    });
                }
                None if answer.is_missing() => return Err(Error::Missing { disk: source }),
                None => {
                    expect(answer, "make a clone of", &source)?;
                }
            }
        }
        self.hold(disk.last(), &source)
    }

    fn location(&self, guest: &GuestId) -> Result<Option<PathBuf>, Error> {
        let disk = self.disk(guest);
        let values = self.get(disk.as_str(), "type,mountpoint")?;
        Ok(match values.as_deref() {
            // zvol(4): volumes appear under /dev/zvol, on FreeBSD and on Linux.
            Some([kind, _]) if kind == "volume" => Some(format!("/dev/zvol/{disk}").into()),
            Some([_, at]) if at.starts_with('/') => Some(at.into()),
            _ => None,
        })
    }

    /// What was written is counted when it is on the disk, which takes ZFS some seconds.
    fn own_bytes(&self, guest: &GuestId) -> Result<Option<Bytes>, Error> {
        let disk = self.disk(guest);
        let Some(values) = self.get(disk.as_str(), "used")? else {
            return Ok(None);
        };
        let used = values.into_iter().next().unwrap_or_default();
        match used.parse() {
            Ok(used) => Ok(Some(Bytes(used))),
            Err(_) => Err(Error::Zfs {
                action: "look at",
                dataset: disk.to_string(),
                said: format!("used: {used}"),
            }),
        }
    }

    fn release(&self, guest: &GuestId) -> Result<(), Error> {
        let disk = self.disk(guest);
        self.let_go(disk.last(), &self.source.to_string())?;
        let answer = self.destroy(disk.as_str())?;
        if answer.ok || answer.is_missing() {
            return Ok(());
        }
        if !self.snapshots(&disk)?.is_empty() {
            let mark = format!("{RELEASED}=yes");
            return self.run("mark as released", &["set", &mark, disk.as_str()]);
        }
        expect(answer, "destroy", disk.as_str()).map(|_| ())
    }

    fn snapshot(
        &self,
        guest: &GuestId,
        bundle: &BundlePath,
        token: &Token,
        _: Watch<'_>,
    ) -> Result<DiskSnapshot, Error> {
        let disk = self.disk(guest);
        let tag = format!("{PREFIX}{token}");
        let snapshot = disk.at(&tag);
        let path = super::found::recordable(bundle)?;
        match self.take(&snapshot.to_string(), &path, &tag) {
            Ok(guid) => Ok(DiskSnapshot {
                device: None,
                provider: DiskProvider::Zfs,
                source: disk.to_string(),
                snapshot: snapshot.to_string(),
                identity: guid,
            }),
            Err(e) => {
                // What cannot be removed now is found again: it is in no bundle.
                let _ = self.remove_snapshot(&snapshot);
                Err(e)
            }
        }
    }

    fn discard(&self, _bundle: &BundlePath, snapshot: &DiskSnapshot) -> Result<(), Error> {
        self.remove_snapshot(&snapshot.snapshot.parse()?)
    }
}

/// Whether a snapshot is a bundle's, by what follows the `@`.
pub(super) fn is_bundles(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|token| token.parse::<Token>().is_ok())
}

pub(super) fn expect(
    answer: CommandAnswer,
    action: &'static str,
    on: &str,
) -> Result<CommandAnswer, Error> {
    if answer.ok {
        return Ok(answer);
    }
    Err(Error::Zfs {
        action,
        dataset: on.to_owned(),
        said: answer.said(),
    })
}
