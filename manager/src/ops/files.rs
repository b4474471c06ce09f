//! Operations of this process alone: on files that its user may read or write, and on the record
//! itself. The daemon is never asked: it has other rights, and may see other files.

use std::path::{Path, PathBuf};

use super::{
    Error, Local, StateFolder,
    local::{engine, state},
};
#[cfg(target_os = "linux")]
use crate::image::{Image, Images};
use crate::{
    failure::Failure,
    types::{self, DestroyAnswer, ListedCheckpoint, VerifyReport},
};
use brood_core::{
    checkpoint::{self, BhyveGuest, BundlePath, Checkpoint, Watch},
    disk,
    engine::{
        NEVER, Stray,
        bhyve::{
            Bhyve,
            config::{self, BhyveConfig, Variables},
        },
        make_demo_checkpoint,
    },
    guests::{self, Guests},
    rebuild::{Rebuilt, rebuild},
    restore::read_bundle,
    state::BundleAction,
    units::Bytes,
};
#[cfg(target_os = "linux")]
use brood_core::{
    checkpoint::{Network, manifest::EngineKind},
    engine::{
        Boot, BootDisk, BootImage, BootObserver, BootRoot, Booted, Limit,
        kvm::{CpuTemplate, KvmLinux},
        qemu::Qemu,
    },
    state::State,
};

/// What `bhyvectl --suspend` wrote, to be sealed.
#[derive(Debug)]
pub(crate) struct ImportSource<'a> {
    /// The memory; RAW.kern and RAW.meta lie beside it.
    pub(crate) raw: &'a Path,
    /// The guest's configuration, as bhyve -k reads it.
    pub(crate) bhyve_config: &'a Path,
    /// What else is to be known of the guest; its configuration is read from that file.
    pub(crate) guest: BhyveGuest,
}

/// An image to boot, and what its guest is to have.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub(crate) struct ImageBoot<'a> {
    /// Name of the image.
    pub(crate) image: &'a str,
    pub(crate) memory: Bytes,
    pub(crate) vcpus: u32,
    /// The processor that it sees, with the KVM engine.
    pub(crate) cpu_template: CpuTemplate,
    pub(crate) network: Network,
    /// Whether clones read its root file system from a disk.
    pub(crate) root_on_disk: bool,
    /// The disk that each clone has to itself.
    pub(crate) disk: Option<&'a BootDisk>,
    /// Command of the guest's shell that succeeds when the guest is ready.
    pub(crate) ready: Option<&'a str>,
    /// Commands of the guest's shell to run before the seal.
    pub(crate) warm: &'a [String],
    /// For the boot, for becoming ready and for each command.
    pub(crate) limit: Limit<'a>,
}

#[cfg(target_os = "linux")]
impl ImageBoot<'_> {
    /// Refuses what cannot boot.
    fn suits(&self, image: &Image) -> Result<(), Failure> {
        let (name, memory) = (self.image, self.memory);
        if self.root_on_disk && image.root.is_none() {
            let message = format!("image {name:?} has all its files in its initramfs");
            return Err(Failure::new(&message, Some("leave --root out".to_owned())));
        }
        let least = image.least_memory(self.root_on_disk);
        if memory >= least {
            return Ok(());
        }
        let message =
            format!("a guest of image {name:?} needs {least} of memory at least, not {memory}");
        let mut hint = format!("--memory {}M", least.0.div_ceil(1 << 20));
        if !self.root_on_disk && image.root.is_some() {
            hint.push_str(", or --root disk");
        }
        Err(Failure::new(&message, Some(hint)))
    }

    /// Records where disks may come to lie, so that what a crash leaves is found there.
    fn note_places(&self, state: &State, bundle: &BundlePath) -> Result<(), Failure> {
        if self.disk.is_some() || self.root_on_disk {
            state.note_bundle_place(bundle)?;
        }
        if let Some(BootDisk::Of(source)) = self.disk {
            let source = source.clone().absolute().map_err(guests::Error::from)?;
            state.note_disk_place(&source.place())?;
        }
        Ok(())
    }
}

// Checkpoints.
impl Local {
    /// The bundles in a folder.
    pub(crate) fn checkpoints(dir: &Path) -> Result<Vec<ListedCheckpoint>, Failure> {
        let bundles = checkpoint::list(dir)?;
        Ok(bundles.iter().map(Into::into).collect())
    }

    /// A bundle, and whether the state folder trusts it; `None` where it wants nothing or that is
    /// unknown. This never creates a state folder.
    pub(crate) fn inspect(&self, path: &BundlePath) -> Result<(Checkpoint, Option<bool>), Failure> {
        let checkpoint = Checkpoint::open(path)?;
        let trusted = match checkpoint.manifest().wants()[..] {
            [] => None,
            _ => self.is_trusted(&checkpoint),
        };
        Ok((checkpoint, trusted))
    }

    fn is_trusted(&self, checkpoint: &Checkpoint) -> Option<bool> {
        if !self.config.state_dir().ok()?.exists() {
            return Some(false);
        }
        state(&self.config).ok()?.is_trusted(checkpoint).ok()
    }

    /// Reads all of a bundle.
    pub(crate) fn verify(path: &BundlePath, progress: Watch<'_>) -> Result<VerifyReport, Failure> {
        Ok(VerifyReport::of(path, progress)?)
    }

    /// Boots the demo guest and suspends it into a new bundle.
    pub(crate) fn make_demo(
        &self,
        path: &BundlePath,
        memory: Bytes,
        progress: Watch<'_>,
    ) -> Result<types::Checkpoint, Failure> {
        let engine = engine(&self.config)?;
        // A later command finds by that what this one leaves when it is killed. Whoever has no state
        // folder, and may make none, makes checkpoints without it.
        let _use = state(&self.config)
            .ok()
            .and_then(|state| state.use_bundle(path, BundleAction::Write).ok());
        let manifest = make_demo_checkpoint(&*engine, path, memory, progress)?;
        Ok(types::Checkpoint::new(path, &manifest))
    }

    /// Boots an image on QEMU, or on KVM where that is the engine that is named, and suspends its guest
    /// into a new bundle.
    #[cfg(target_os = "linux")]
    pub(crate) fn make(
        &self,
        wanted: &ImageBoot<'_>,
        path: &BundlePath,
        observe: &dyn Fn(Booted),
        progress: Watch<'_>,
    ) -> Result<types::Checkpoint, Failure> {
        let (name, memory) = (wanted.image, wanted.memory);
        let images = Images::in_folder(self.config.images()?);
        let image = images.open(name)?;
        wanted.suits(&image)?;
        let mut files = images.verify(name, &image, &checkpoint::until(wanted.limit.cancelled))?;
        let root = image.root.as_ref().filter(|_| wanted.root_on_disk);
        let root = root.zip(files.root.take_if(|_| wanted.root_on_disk));
        let root = root.map(|(root, file)| BootRoot {
            file,
            sha256: root.sha256.clone(),
        });
        let state = state(&self.config)?;
        wanted.note_places(&state, path)?;
        let initrd = images.initrd(&files)?;
        let image = BootImage {
            kernel: files.kernel,
            initramfs: initrd.path.clone(),
            command_line: image.command_line,
            digest: image.digest,
        };
        let boot = Boot {
            image: &image,
            memory,
            vcpus: wanted.vcpus,
            cpu_template: wanted.cpu_template,
            network: wanted.network,
            root: root.as_ref(),
            disk: wanted.disk,
            owner: state.owner(),
            ready: wanted.ready,
            warm: wanted.warm,
            limit: wanted.limit,
        };
        let run_dir = state.run_dir();
        let observer = BootObserver {
            booted: observe,
            // Who makes it has just named its disk.
            note: &mut |manifest, sha256| state.trust_seal(manifest, sha256),
            progress,
        };
        // No broker is needed while the guest boots.
        let manifest = match self.config.engine.value.0 {
            Some(EngineKind::Kvm) => {
                KvmLinux::new(Path::new("")).make_checkpoint(&run_dir, path, &boot, observer)?
            }
            _ => {
                let engine = Qemu::new("", self.config.qemu.accel.value.0);
                engine.make_checkpoint(&run_dir, path, &boot, observer)?
            }
        };
        Ok(types::Checkpoint::new(path, &manifest))
    }

    /// Seals what bhyve wrote as a new bundle. The bundle is trusted: who imports it has just named
    /// what it wants.
    pub(crate) fn import(
        &self,
        source: ImportSource<'_>,
        path: &BundlePath,
        progress: Watch<'_>,
    ) -> Result<types::Checkpoint, Failure> {
        let mut state = state(&self.config)?;
        let guests = Guests {
            state: &mut state,
            engine: &Bhyve::new(),
            cancelled: &NEVER,
        };
        if let Some(name) = guests.with_disk_and_memory(source.raw)? {
            let raw = source.raw.display();
            let message = format!("{raw} is the memory of {name}, which has a disk");
            let hint = format!("`brood show {name}` says how to seal both");
            return Err(Failure::new(&message, Some(hint)));
        }
        let guest = BhyveGuest {
            config: bhyve_variables(source.bhyve_config)?.0,
            ..source.guest
        };
        let _use = state.use_bundle(path, BundleAction::Write)?;
        let mut trust = |manifest: &_, sha256: &_| state.trust_seal(manifest, sha256);
        let manifest = Bhyve::new().import(source.raw, path, guest, &mut trust, progress)?;
        Ok(types::Checkpoint::new(path, &manifest))
    }

    /// Records the place of a delta's parent, found in the folders that brood has used if none is
    /// given. Returns that place.
    pub(crate) fn rebase(
        &mut self,
        delta: &BundlePath,
        parent: Option<BundlePath>,
    ) -> Result<BundlePath, Failure> {
        self.change_guests(|guests| {
            let parent = match parent {
                Some(parent) => parent,
                None => {
                    let folders = guests.state.folders_of_bundles(&[])?;
                    checkpoint::find_parent(delta, &Vec::from_iter(folders))?
                }
            };
            let _use = guests.state.use_bundle(delta, BundleAction::Remove)?;
            // What it restores is kept from removal by its old parent's name.
            guests.refuse_readers(delta)?;
            checkpoint::rebase(delta, &parent)?;
            Ok(parent)
        })
    }
}

/// Joins a delta and its parents into a new bundle; also returns how many bundles these were.
pub(crate) fn flatten(
    folder: &mut impl StateFolder,
    delta: &BundlePath,
    to: &BundlePath,
    progress: Watch<'_>,
) -> Result<(types::Checkpoint, usize), Error> {
    let state = folder.state()?;
    let delta = Checkpoint::open(delta)?;
    let _uses = (
        read_bundle(state, &delta)?,
        state.use_bundle(to, BundleAction::Write)?,
    );
    let manifest = disk::flatten::<guests::Error>(&delta, to, progress)?;
    Ok((types::Checkpoint::new(to, &manifest), delta.layers().len()))
}

/// The configuration of a guest in a file of bhyve's.
fn bhyve_variables(file: &Path) -> Result<Variables, Failure> {
    let text = std::fs::read_to_string(file).map_err(|e| {
        let message = format!("cannot read {}: {e}", file.display());
        Failure::new(&message, None)
    })?;
    let invalid = |e: config::Error| {
        let message = format!("{}: {e}", file.display());
        Failure::new(&message, Some(e.hint().to_owned()))
    };
    let variables: Variables = text.parse().map_err(invalid)?;
    BhyveConfig::try_from(variables.clone()).map_err(invalid)?;
    Ok(variables)
}

// The record, and guests that have none.
impl Local {
    /// Checks the record for damage; returns the state folder.
    pub(crate) fn check_state(&self) -> Result<PathBuf, Failure> {
        let state = state(&self.config)?;
        state.check()?;
        Ok(state.dir().to_owned())
    }

    /// Rebuilds a damaged record.
    pub(crate) fn rebuild_state(&self) -> Result<Rebuilt, Failure> {
        Ok(rebuild(self.config.state_dir()?, &*engine(&self.config)?)?)
    }

    /// Guests' processes without a record.
    pub(crate) fn strays(&self) -> Result<Vec<Stray>, Failure> {
        let engine = engine(&self.config)?;
        Ok(guests::strays(self.config.state_dir()?, &*engine)?)
    }

    /// Ends them.
    pub(crate) fn destroy_strays(&self) -> Result<DestroyAnswer, Failure> {
        let (dir, engine) = (self.config.state_dir()?, engine(&self.config)?);
        let strays = guests::strays(dir, &*engine)?;
        Ok(guests::destroy_strays(dir, &*engine, &strays)?.into())
    }
}
