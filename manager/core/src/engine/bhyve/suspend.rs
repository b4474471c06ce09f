//! Suspend of a guest: from a running guest to a sealed bundle, in two steps.
//!
//! First `bhyvectl --suspend` has bhyve write three files and end the guest; then brood seals the
//! files. bhyve sends no answer: the end of its process shows that the files are complete, and
//! while the process goes on, only its log says that the suspend failed. Once the guest has ended,
//! these files are all that remains of it. So they keep their own names (`DIR/NAME.raw`,
//! `.raw.kern`, `.raw.meta`) until the bundle is sealed, and the memory's name goes last. As long
//! as that name exists, a repeated suspend goes on where the first was interrupted.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    config::BhyveConfig,
    folder::{Folder, LOG_MAX, SuspendNote},
    guest_config::checked,
    host::Host,
};
use crate::{
    checkpoint::{
        self, BhyveGuest, BundlePath, Checkpoint, Description, KERN_MAX, META_MAX, NoteSeal, Watch,
        Writer,
        manifest::{Device, EngineKind, Manifest, Memory, Segment},
        meta::Meta,
        read_at_most,
    },
    engine::{Error, Process, TakeDisks},
    units::Bytes,
};

/// A suspend has failed if bhyve writes nothing for this long.
const STALL: Duration = Duration::from_secs(20);
/// A request was not received if it shows no effect for this long.
const UNHEARD: Duration = Duration::from_secs(3);
/// A bhyve that has logged an error and lives on for this long has given the suspend up.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How often the files are looked at.
const FILES_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// End of low memory in the guest; the rest begins at 4 GiB (`VM_LOWMEM_LIMIT` and
/// `VM_HIGHMEM_BASE` of libvmmapi).
const LOW_MEMORY: Bytes = Bytes::gib(3);
/// Where high memory begins.
const HIGH_MEMORY: u64 = 4 << 30;

fn io(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

/// The memory file that a guest is suspended to before it is sealed as `path`.
pub(super) fn raw(path: &BundlePath) -> PathBuf {
    path.dir().join(format!("{}.raw", path.name()))
}

/// The bundle that such a file is sealed as.
pub(super) fn bundle(raw: &Path) -> Option<BundlePath> {
    let name = raw.file_name()?.to_str()?.strip_suffix(".raw")?;
    BundlePath::new(&raw.with_file_name(name)).ok()
}

fn beside(raw: &Path, extension: &str) -> PathBuf {
    let mut name = raw.as_os_str().to_owned();
    name.push(extension);
    name.into()
}

/// The three files of a checkpoint as bhyve writes them: memory, state, description.
fn files(raw: &Path) -> [PathBuf; 3] {
    [raw.to_owned(), beside(raw, ".kern"), beside(raw, ".meta")]
}

fn any_is_there(raw: &Path) -> bool {
    files(raw).iter().any(|file| file.exists())
}

/// Removes the files.
pub(super) fn remove_files(raw: &Path) -> io::Result<()> {
    let [memory, kern, meta] = files(raw);
    for file in [meta, kern, memory] {
        match fs::remove_file(file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Has bhyve write the guest to files and end it. If that fails, the guest goes on, and no file is
/// left. If bhyve already does so for an earlier, interrupted command, it is not asked again.
pub(super) fn write(
    host: &Host,
    folder: &Folder,
    vm: &str,
    process: Process,
    raw: &Path,
) -> Result<(), Error> {
    if let Some(begun) = folder
        .suspending()
        .map_err(io("see whether it is being suspended"))?
        .filter(|begun| any_is_there(&begun.memory))
    {
        if begun.memory != raw {
            return Err(Error::Refused(format!(
                "it is being suspended to {} already",
                begun.memory.display()
            )));
        }
        match until_ended(folder, process, raw, begun.log) {
            Ok(()) => return Ok(()),
            Err(End::Unknown(e)) => return Err(e),
            Err(End::GaveUp(_)) => give_up(folder, raw),
        }
    }
    if any_is_there(raw) {
        return Err(Error::Refused(format!(
            "{} is there: an earlier suspend was not sealed; seal it with `brood checkpoint \
             import`, or remove it",
            raw.display()
        )));
    }
    let raw_text = raw.to_string_lossy();
    let said = fs::metadata(folder.file("log")).map_or(0, |log| log.len());
    let begun = SuspendNote {
        memory: raw.to_owned(),
        log: said,
    };
    folder
        .set_suspending(&begun)
        .map_err(io("note the suspend"))?;
    let sent = host.run(
        "bhyvectl",
        &[&format!("--suspend={raw_text}"), &format!("--vm={vm}")],
    );
    // One that failed may have sent its request all the same.
    let unsent = |e: super::host::Error| match until_ended(folder, process, raw, said) {
        Err(End::GaveUp(_)) => Err(End::GaveUp(Error::Refused(e.to_string()))),
        other => other,
    };
    let result = match sent {
        Ok(_) => until_ended(folder, process, raw, said),
        Err(e) => unsent(e),
    };
    match result {
        Ok(()) => Ok(()),
        Err(End::GaveUp(e)) => {
            give_up(folder, raw);
            Err(e)
        }
        // It may still come to its end, and then the files are all that is left of it.
        Err(End::Unknown(e)) => Err(e),
    }
}

/// Removes the files of a guest that goes on.
fn give_up(folder: &Folder, raw: &Path) {
    let _ = remove_files(raw);
    folder.suspended();
}

/// How a suspend failed.
enum End {
    /// The guest goes on or has died: its files are useless.
    GaveUp(Error),
    /// It cannot be told.
    Unknown(Error),
}

/// Waits for the guest's end after it was told to suspend.
fn until_ended(folder: &Folder, process: Process, raw: &Path, said: u64) -> Result<(), End> {
    let written = || -> u64 {
        let sizes = files(raw).map(|file| fs::metadata(file).map_or(0, |facts| facts.len()));
        sizes.iter().sum()
    };
    let (mut last, mut moved) = (written(), Instant::now());
    let mut complained = None;
    loop {
        if !process.may_live() {
            let whole = is_whole(raw).map_err(io("look at what bhyve wrote"));
            return if whole.map_err(End::Unknown)? {
                Ok(())
            } else {
                let said = folder.last_words().unwrap_or_default();
                let died = Error::Died(format!("while it was suspended: {said}"));
                Err(End::GaveUp(died))
            };
        }
        // bhyve prints nothing when all goes well, and goes on after it has said what went wrong.
        if let Some(complaint) = complaint(folder, said) {
            let since = *complained.get_or_insert_with(Instant::now);
            // When all is written, its last words may be those of an end that comes at once.
            let whole = is_whole(raw).map_err(io("look at what bhyve wrote"));
            if !whole.map_err(End::Unknown)? || since.elapsed() > LAST_WORDS {
                let refused = Error::Refused(format!("bhyve could not suspend it: {complaint}"));
                return Err(End::GaveUp(refused));
            }
        }
        let now = written();
        if now != last {
            (last, moved) = (now, Instant::now());
        }
        let unheard = !any_is_there(raw);
        if unheard && moved.elapsed() > UNHEARD {
            return Err(End::GaveUp(Error::Timeout(UNHEARD)));
        }
        if moved.elapsed() > STALL {
            return Err(End::Unknown(Error::Timeout(STALL)));
        }
        std::thread::sleep(FILES_POLL_INTERVAL);
    }
}

/// What bhyve has logged after this position of its log.
fn complaint(folder: &Folder, since: u64) -> Option<String> {
    let mut log = File::open(folder.file("log")).ok()?;
    // A guest may have bhyve log without end: what it says of a suspend comes first.
    log.seek(SeekFrom::Start(since)).ok()?;
    let mut new = Vec::new();
    log.take(LOG_MAX).read_to_end(&mut new).ok()?;
    let text = String::from_utf8_lossy(&new);
    let bad = ["ailed", "ould not", "nable to", "rror"];
    text.lines()
        .map(str::trim)
        .find(|line| bad.iter().any(|word| line.contains(word)))
        .map(str::to_owned)
}

/// Whether the files are those of a whole checkpoint: the description is written last, and says
/// how long the memory is.
///
/// # Errors
/// When that is unknown: then the files must not be removed.
pub(super) fn is_whole(raw: &Path) -> io::Result<bool> {
    let [memory, kern, meta] = files(raw);
    let size = |file: &Path| match fs::metadata(file) {
        Ok(facts) => Ok(Some(Bytes(facts.len()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    };
    let (Some(memory), Some(kern), Some(_)) = (size(&memory)?, size(&kern)?, size(&meta)?) else {
        return Ok(false);
    };
    let described = match read_at_most(&meta, META_MAX) {
        Err(checkpoint::Error::Io { cause, .. }) => return Err(cause),
        text => text.and_then(|text| Meta::parse(&meta, &text, kern)),
    };
    Ok(described.is_ok_and(|described| described.memsize == memory))
}

/// Says why a description is not of a guest with this configuration.
fn agree(config: &BhyveConfig, described: &Meta) -> Result<(), String> {
    if let Some(unfit) = described.unfit_for_bhyve() {
        return Err(unfit);
    }
    if config.cpus.cpus() != described.ncpus {
        let (ours, theirs) = (config.cpus.cpus(), described.ncpus);
        return Err(format!(
            "cpus is {ours} in the configuration, and in the checkpoint {theirs}"
        ));
    }
    if config.memory != described.memsize {
        let (ours, theirs) = (config.memory.0, described.memsize.0);
        return Err(format!(
            "memory.size is {ours} in the configuration, and in the checkpoint {theirs}"
        ));
    }
    let saved = described.devices.iter().map(|part| part.name.as_str());
    config.matches_saved(saved).map_err(|e| e.to_string())
}

/// Guest memory as it lies in the file: low memory first, then high memory, without the hole.
fn layout(size: Bytes) -> Memory {
    let low = size.min(LOW_MEMORY);
    let mut segments = vec![Segment {
        guest_address: 0,
        size: low,
        file_offset: 0,
    }];
    if size > low {
        segments.push(Segment {
            guest_address: HIGH_MEMORY,
            size: size.saturating_sub(low),
            file_offset: low.0,
        });
    }
    Memory { size, segments }
}

/// Whether this memory file is a bundle's, by another name.
pub(super) fn is_memory_of(raw: &Path, bundle: &BundlePath) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|facts| (facts.dev(), facts.ino()));
    matches!((file(raw), file(&bundle.ckp())), (Ok(a), Ok(b)) if a == b)
}

/// The manifest of a bundle that this memory file was sealed as, when only its own name was left to
/// be removed; that is done.
pub(super) fn sealed_already(raw: &Path, path: &BundlePath) -> Result<Option<Manifest>, Error> {
    if !is_memory_of(raw, path) {
        return Ok(None);
    }
    // An incomplete bundle has no manifest.
    let Ok(checkpoint) = Checkpoint::open(path) else {
        return Ok(None);
    };
    remove_files(raw).map_err(io("remove what bhyve wrote"))?;
    Ok(Some(checkpoint.manifest().clone()))
}

/// The last step of a suspend: the three files that bhyve wrote become a bundle.
pub(super) struct Seal<'a> {
    /// The memory file; the others lie beside it.
    pub(super) raw: &'a Path,
    /// The bundle.
    pub(super) to: &'a BundlePath,
    /// The guest's name.
    pub(super) name: &'a str,
    /// The guest's properties that a restore needs.
    pub(super) guest: BhyveGuest,
    /// Version of the engine.
    pub(super) engine_version: String,
    /// Takes the snapshots of its disks.
    pub(super) disks: TakeDisks<'a>,
    /// Called with the manifest before the bundle has its name.
    pub(super) note: NoteSeal<'a>,
    /// Is told how far it is, and can end it.
    pub(super) progress: Watch<'a>,
}

impl Seal<'_> {
    /// Seals the bundle, and removes the files' own names.
    pub(super) fn run(self) -> Result<Manifest, Error> {
        let refuse = |reason: String| Error::Checkpoint {
            checkpoint: self.raw.display().to_string(),
            reason,
        };
        let config = checked(&self.guest).map_err(refuse)?;
        let [memory, kern, meta] = files(self.raw);
        let kern = read_at_most(&kern, KERN_MAX)?;
        let meta_text = read_at_most(&meta, META_MAX)?;
        let described = Meta::parse(&meta, &meta_text, Bytes(kern.len() as u64))?;
        agree(&config, &described).map_err(refuse)?;
        let mut writer = Writer::around(self.to, &memory)?;
        writer.write_kern(&kern)?;
        writer.set_bhyve(self.guest, meta_text);
        let description = Description {
            guest: self.name.to_owned(),
            engine: EngineKind::Bhyve,
            engine_version: self.engine_version,
            memory: layout(described.memsize),
            vcpus: described.ncpus,
            devices: described
                .devices
                .iter()
                .map(|part| Device {
                    name: part.name.clone(),
                    model: part.name.split('@').next().unwrap_or_default().to_owned(),
                })
                .collect(),
            disks: (self.disks)()?,
            working_set: Vec::new(),
        };
        let manifest = writer.seal_noted(
            description,
            jiff::Timestamp::now(),
            self.note,
            self.progress,
        )?;
        remove_files(self.raw).map_err(io("remove what bhyve wrote"))?;
        Ok(manifest)
    }
}
