//! Writer of a bundle: a crash at any moment leaves a complete bundle or none.
//!
//! Files have temporary names (`.NAME.ckp.new`, ...) until [`Writer::seal`]. The writer creates the
//! temporary manifest first and keeps it locked (flock) as long as it lives, so a later writer
//! tells a leftover from a bundle in the making. Before any file gets its final name, the complete
//! manifest is on the disk under its temporary name: by its digests a later writer tells a dead
//! writer's files from somebody else's.

mod lock;
mod place;
#[cfg(test)]
mod tests;

use std::{fs::File, io::Write, os::unix::fs::FileExt, path::Path, thread};

pub(super) use lock::Lock;

use super::{
    BhyveGuest, LinuxGuest, QemuGuest,
    error::Error,
    folder::Naming,
    hash::{Tally, Watch, sha256, sha256_tallied},
    manifest::{
        Device, DiskSnapshot, EngineKind, FORMAT, FileSeal, Files, Manifest, Memory, PageRange,
        Parent, VERSION,
    },
    meta::Meta,
    open::{Checkpoint, DELTAS_MAX},
    pages::PageList,
    path::{BundlePath, Part},
    stamp::FileStamp,
    validate::{KERN_MAX, MANIFEST_MAX, MEMORY_MAX, META_MAX},
};
use crate::{
    faults::{self, Point},
    owner_only,
    units::{Bytes, PAGE_SIZE},
};

/// What a bundle says of the guest; the rest of its manifest follows from its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Name of the guest the checkpoint is taken of.
    pub guest: String,
    /// Engine that made it.
    pub engine: EngineKind,
    /// That engine's version.
    pub engine_version: String,
    /// Guest memory and where each part of it lies in the `.ckp` file.
    pub memory: Memory,
    /// How many virtual CPUs.
    pub vcpus: u32,
    /// Devices, by model.
    pub devices: Vec<Device>,
    /// Disk snapshots taken at the same moment.
    pub disks: Vec<DiskSnapshot>,
    /// Pages that the guest needs at once when it is restored.
    pub working_set: Vec<PageRange>,
}

/// Called with a manifest and its SHA-256 when the bundle's files are on the disk and the bundle
/// does not have its name yet. So the caller's note exists for every bundle that exists, even if
/// the writer is killed.
pub type NoteSeal<'a> = &'a mut dyn FnMut(&Manifest, &str);

/// A `note` that does nothing.
pub fn unnoted(_: &Manifest, _: &str) {}

/// A moment at which a test can stop a writer, as a crash would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Described,
    Hashed,
    Journaled,
    Named(Part),
    NamesOnDisk,
    Sealed,
}

/// A bundle being written. If it is dropped unsealed, it removes its files.
#[derive(Debug)]
pub struct Writer {
    path: BundlePath,
    lock: Lock,
    memory: File,
    kern: File,
    kern_size: Bytes,
    /// The parent of a delta.
    parent: Option<Parent>,
    /// What bhyve wrote of the guest, when it was bhyve.
    bhyve: Option<(BhyveGuest, Vec<u8>)>,
    /// The QEMU that ran the guest, when one did.
    qemu: Option<QemuGuest>,
    /// The machine of a Linux guest that the KVM engine ran.
    linux: Option<LinuxGuest>,
    /// Final names given so far.
    named: Vec<Part>,
    #[cfg(test)]
    pub(super) crash_at: Option<Step>,
}

impl Writer {
    /// Starts a bundle with `memory_size` of guest memory. Creates the folder if it is missing,
    /// and removes what a dead writer of the same bundle left.
    ///
    /// # Errors
    /// [`Error::Exists`] when a file of the bundle exists, [`Error::Busy`] when another process
    /// writes it, [`Error::NoSpace`] when the file system could not hold it with every page
    /// written, [`Error::Field`] for a `memory_size` that no guest can have.
    pub fn create(path: &BundlePath, memory_size: Bytes) -> Result<Self, Error> {
        Self::check_memory(path, memory_size)?;
        let writer = Self::begin(path, memory_size)?;
        writer
            .memory
            .set_len(memory_size.0)
            .map_err(|cause| Error::io("extend", &path.ckp(), cause))?;
        Ok(writer)
    }

    /// Starts a delta of `parent` that will have at most `pages` pages of its own. Its memory file
    /// is empty: the pages go there one after the other, and [`Self::set_pages`] says which they
    /// are.
    ///
    /// # Errors
    /// As of [`Self::create`]; [`Error::TooDeep`] when `parent` is a delta over as many others as
    /// there may be.
    pub fn create_delta(path: &BundlePath, parent: &Checkpoint, pages: u64) -> Result<Self, Error> {
        if parent.layers().len() > DELTAS_MAX {
            return Err(Error::TooDeep {
                bundle: path.clone(),
                parent: parent.path().clone(),
            });
        }
        let mut writer = Self::begin(path, Bytes(PAGE_SIZE).saturating_mul(pages))?;
        writer.parent = Some(Parent {
            path: parent.path().named_from(path)?,
            sha256: parent.manifest().memory_sha256(),
            pages: PageList::default(),
        });
        Ok(writer)
    }

    fn check_memory(path: &BundlePath, memory_size: Bytes) -> Result<(), Error> {
        if memory_size.0 == 0
            || memory_size > MEMORY_MAX
            || !memory_size.0.is_multiple_of(PAGE_SIZE)
        {
            let reason = format!(
                "must be whole pages, at least one and at most {MEMORY_MAX}, is {memory_size}"
            );
            return Err(Error::field_of(&path.ckp(), "memory.size", &reason));
        }
        Ok(())
    }

    fn begin(path: &BundlePath, needed: Bytes) -> Result<Self, Error> {
        faults::at(Point::BundleCreate).map_err(|cause| Error::io("create", &path.ckp(), cause))?;
        let folder = place::open_or_create(path, needed)?;
        let lock = Lock::acquire(path, folder)?;
        for part in Part::ALL {
            if lock.folder().holds(&path.file_name(part))? {
                return Err(Error::Exists {
                    bundle: path.clone(),
                    file: path.file(part),
                });
            }
        }
        place::check_space(path, lock.folder(), needed)?;
        Ok(Self {
            path: path.clone(),
            memory: place::create_temporary(path, lock.folder(), Part::Ckp)?,
            kern: place::create_temporary(path, lock.folder(), Part::Kern)?,
            lock,
            kern_size: Bytes(0),
            parent: None,
            bhyve: None,
            qemu: None,
            linux: None,
            named: Vec::new(),
            #[cfg(test)]
            crash_at: None,
        })
    }

    /// Starts a bundle around an existing memory file of the same file system, to which no process
    /// writes any more. The file gets a second name, and keeps its first until the caller removes
    /// that: until the bundle is sealed, nothing is lost.
    ///
    /// # Errors
    /// As [`Self::create`], and [`Error::Io`] when the file cannot be given another name.
    pub fn around(path: &BundlePath, memory: &Path) -> Result<Self, Error> {
        let size = std::fs::metadata(memory)
            .map_err(|cause| Error::io("examine", memory, cause))?
            .len();
        Self::check_memory(path, Bytes(size))?;
        // It is there already: no more room is needed for it.
        let mut writer = Self::begin(path, Bytes(0))?;
        let name = writer.temporary(Part::Ckp);
        writer
            .lock
            .folder()
            .remove(&path.temporary_name(Part::Ckp))?;
        std::fs::hard_link(memory, &name)
            .map_err(|cause| Error::io("give another name to", memory, cause))?;
        writer.memory = File::options()
            .read(true)
            .write(true)
            .open(&name)
            .map_err(|cause| Error::io("open", &name, cause))?;
        Ok(writer)
    }

    /// Sets what bhyve wrote: the guest's configuration, and the `.meta` to keep.
    pub(crate) fn set_bhyve(&mut self, guest: BhyveGuest, meta: Vec<u8>) {
        self.bhyve = Some((guest, meta));
    }

    /// Sets what QEMU must be like to go on with the guest.
    pub(crate) fn set_qemu(&mut self, guest: QemuGuest) {
        self.qemu = Some(guest);
    }

    /// Sets the machine that a Linux guest of the KVM engine needs.
    pub(crate) fn set_linux(&mut self, guest: LinuxGuest) {
        self.linux = Some(guest);
    }

    /// The memory file, open for reading and writing and as long as the guest's memory, or empty
    /// in a delta. What is never written reads as zeros and takes no space.
    #[must_use]
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// Says which pages a delta's memory file now holds.
    pub fn set_pages(&mut self, pages: PageList) {
        if let Some(parent) = &mut self.parent {
            parent.pages = pages;
        }
    }

    /// Sets the CPU and device state. A second call replaces the first one's.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above 64 MiB, [`Error::Io`] when it cannot be written.
    pub fn write_kern(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let size = Bytes(bytes.len() as u64);
        if size > KERN_MAX {
            return Err(Error::TooLarge {
                file: self.path.kern(),
                size,
                cap: KERN_MAX,
            });
        }
        self.kern
            .set_len(0)
            .and_then(|()| {
                faults::writing(Point::BundleKern, bytes, |bytes| {
                    self.kern.write_all_at(bytes, 0)
                })
            })
            .map_err(|cause| Error::io("write", &self.temporary(Part::Kern), cause))?;
        self.kern_size = size;
        Ok(())
    }

    /// Seals the bundle: writes the `.meta`, hashes the files, makes them read-only and durable,
    /// and gives them their names, the manifest last. Nobody may write to the memory any more.
    ///
    /// # Errors
    /// [`Error::Field`] when the description breaks a rule of the manifest, [`Error::Changed`]
    /// when the memory is written to meanwhile, [`Error::Exists`] when a file of the bundle
    /// appeared meanwhile. After any error nothing of the bundle is left.
    pub fn seal(
        self,
        description: Description,
        created_at: jiff::Timestamp,
        watch: Watch<'_>,
    ) -> Result<Manifest, Error> {
        self.seal_noted(description, created_at, &mut unnoted, watch)
    }

    /// As [`Self::seal`]; calls `note` with the manifest before the first file gets its name.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub(crate) fn seal_noted(
        mut self,
        description: Description,
        created_at: jiff::Timestamp,
        note: NoteSeal<'_>,
        watch: Watch<'_>,
    ) -> Result<Manifest, Error> {
        let mut manifest = self.describe(description, created_at)?;
        let meta_file = self.write_meta(&mut manifest)?;
        self.step(Step::Described)?;

        self.hash(&mut manifest, &meta_file, watch)?;
        manifest
            .validate()
            .map_err(|wrong| self.invalid(&wrong.field, &wrong.reason))?;
        self.step(Step::Hashed)?;

        let digest = self.write_manifest(&manifest)?;
        self.lock.folder().sync()?;
        note(&manifest, &digest);
        self.step(Step::Journaled)?;

        for part in Part::SEALED {
            self.give_name(part)?;
        }
        self.lock.folder().sync()?;
        self.step(Step::NamesOnDisk)?;

        self.give_name(Part::Manifest)?;
        self.lock.folder().sync()?;
        self.finish();
        self.step(Step::Sealed)?;
        Ok(manifest)
    }

    /// The manifest without its digests, checked as far as it can be.
    fn describe(&self, d: Description, created_at: jiff::Timestamp) -> Result<Manifest, Error> {
        let unknown = |size| FileSeal {
            size,
            sha256: "0".repeat(64),
        };
        let stamp = FileStamp::of(&self.memory)
            .map_err(|cause| Error::io("examine", &self.temporary(Part::Ckp), cause))?;
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            guest: d.guest,
            created_at: created_at.to_string(),
            engine: d.engine,
            engine_version: d.engine_version,
            memory: d.memory,
            vcpus: d.vcpus,
            devices: d.devices,
            disks: d.disks,
            working_set: d.working_set,
            bhyve: self.bhyve.as_ref().map(|(guest, _)| guest.clone()),
            qemu: self.qemu.clone(),
            linux: self.linux.clone(),
            parent: self.parent.clone(),
            files: Files {
                ckp: unknown(Bytes(stamp.size)),
                kern: unknown(self.kern_size),
                meta: unknown(Bytes(1)),
            },
        };
        manifest
            .validate()
            .map_err(|wrong| self.invalid(&wrong.field, &wrong.reason))?;
        Ok(manifest)
    }

    fn write_meta(&self, manifest: &mut Manifest) -> Result<File, Error> {
        let text = match &self.bhyve {
            Some((_, meta)) => Meta::vouching(meta, manifest),
            None => Meta::of(manifest).to_json(),
        };
        let text = text.map_err(|cause| Error::io("write", &self.temporary(Part::Meta), cause))?;
        let size = Bytes(text.len() as u64);
        if size > META_MAX {
            return Err(Error::TooLarge {
                file: self.path.meta(),
                size,
                cap: META_MAX,
            });
        }
        manifest.files.meta = FileSeal {
            size,
            sha256: sha256(&text),
        };
        let mut file = place::create_temporary(&self.path, self.lock.folder(), Part::Meta)?;
        faults::writing(Point::BundleMeta, &text, |text| file.write_all(text))
            .map_err(|cause| Error::io("write", &self.temporary(Part::Meta), cause))?;
        Ok(file)
    }

    /// Makes the three files read-only and durable, and hashes them, each in its own thread.
    fn hash(&self, manifest: &mut Manifest, meta: &File, watch: Watch<'_>) -> Result<(), Error> {
        let seals = &mut manifest.files;
        let total = seals.ckp.size + seals.kern.size + seals.meta.size;
        let tally = Tally::new(total, watch);
        let work = [
            (Part::Ckp, &self.memory, &mut seals.ckp),
            (Part::Kern, &self.kern, &mut seals.kern),
            (Part::Meta, meta, &mut seals.meta),
        ];
        thread::scope(|scope| {
            let threads = work.map(|(part, file, seal)| {
                let tally = &tally;
                scope.spawn(move || seal_file(&self.temporary(part), file, seal, tally))
            });
            for thread in threads {
                match thread.join() {
                    Ok(result) => result?,
                    // Only the caller's watch can panic: let it.
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(())
        })
    }

    /// Writes the manifest under its temporary name; returns its SHA-256.
    fn write_manifest(&self, manifest: &Manifest) -> Result<String, Error> {
        let file = self.temporary(Part::Manifest);
        let mut text = serde_json::to_vec_pretty(manifest)
            .map_err(|cause| Error::io("write", &file, cause))?;
        text.push(b'\n');
        let size = Bytes(text.len() as u64);
        if size > MANIFEST_MAX {
            return Err(Error::TooLarge {
                file,
                size,
                cap: MANIFEST_MAX,
            });
        }
        self.lock
            .write(&text)
            .map_err(|cause| Error::io("write", &file, cause))?;
        Ok(sha256(&text))
    }

    fn give_name(&mut self, part: Part) -> Result<(), Error> {
        let (from, to) = (self.path.temporary_name(part), self.path.file_name(part));
        faults::at(Point::BundleName)
            .map_err(|cause| Error::io("name", &self.path.file(part), cause))?;
        let naming = self.lock.folder().give_name(&from, &to)?;
        if naming == Naming::Taken {
            return Err(Error::Exists {
                bundle: self.path.clone(),
                file: self.path.file(part),
            });
        }
        // It has its final name, whatever becomes of the other.
        self.named.push(part);
        if naming == Naming::Linked {
            self.lock.folder().remove(&from)?;
        }
        self.step(Step::Named(part))
    }

    /// What has its name stays, and nothing is cleaned up any more.
    fn finish(&mut self) {
        self.named.clear();
        self.lock.leave();
    }

    fn temporary(&self, part: Part) -> std::path::PathBuf {
        self.path.dir().join(self.path.temporary_name(part))
    }

    fn invalid(&self, field: &str, reason: &str) -> Error {
        Error::field_of(&self.path.manifest(), field, reason)
    }

    /// Where a test's crash happens.
    #[cfg_attr(
        not(test),
        expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests")
    )]
    #[cfg_attr(not(test), expect(clippy::needless_pass_by_ref_mut, reason = "tests"))]
    fn step(&mut self, step: Step) -> Result<(), Error> {
        #[cfg(test)]
        if self.crash_at == Some(step) {
            self.finish();
            return Err(Error::Changed {
                file: self.path.ckp(),
            });
        }
        let _ = step;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The manifest, if it has its name already, goes first: as long as it is there, the bundle
        // must be whole. The lock removes the rest. There is no caller to report to, and the next
        // writer tries again.
        for part in self.named.iter().rev() {
            let removed = self.lock.folder().remove(&self.path.file_name(*part));
            if removed.is_err() {
                break;
            }
        }
    }
}

fn seal_file(
    path: &Path,
    file: &File,
    seal: &mut FileSeal,
    tally: &Tally<'_>,
) -> Result<(), Error> {
    owner_only::seal(file).map_err(|cause| Error::io("make read-only", path, cause))?;
    faults::at(Point::BundleSync)
        .and_then(|()| file.sync_all())
        .map_err(|cause| Error::io("write to disk", path, cause))?;
    let stamp = || FileStamp::of(file).map_err(|cause| Error::io("examine", path, cause));
    let before = stamp()?;
    seal.sha256 = sha256_tallied(file, tally).map_err(|cause| Error::io("read", path, cause))?;
    if stamp()? != before || before.size != seal.size.0 {
        return Err(Error::Changed {
            file: path.to_owned(),
        });
    }
    Ok(())
}
