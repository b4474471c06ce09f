//! Sample bundle: a small one with a value in every field.

use std::{fs, os::unix::fs::FileExt, path::Path};

use brood_core::{
    checkpoint::{
        BundlePath, Checkpoint, Description, Error, Writer,
        manifest::{
            Device, DiskProvider, DiskSnapshot, EngineKind, Manifest, Memory, PageRange, Segment,
        },
    },
    units::Bytes,
};
use tempfile::TempDir;

pub(crate) const MEMORY: Bytes = Bytes::kib(64);
pub(crate) const KERN: &[u8] = b"registers and devices";

pub(crate) fn description() -> Description {
    let device = |name: &str, model: &str| Device {
        name: name.into(),
        model: model.into(),
    };
    let (low, high) = (Bytes::kib(48), Bytes::kib(16));
    Description {
        guest: "web-1".into(),
        engine: EngineKind::Kvm,
        engine_version: "brood 0.1.0, KVM API 12".into(),
        memory: Memory {
            size: MEMORY,
            segments: vec![
                Segment {
                    guest_address: 0,
                    size: low,
                    file_offset: 0,
                },
                Segment {
                    guest_address: 4 << 30,
                    size: high,
                    file_offset: low.0,
                },
            ],
        },
        vcpus: 2,
        devices: vec![
            device("channel", "brood-channel"),
            device("disk", "virtio-blk"),
        ],
        disks: vec![DiskSnapshot {
            device: Some("disk".into()),
            provider: DiskProvider::Zfs,
            source: "pool/web".into(),
            snapshot: "pool/web@now".into(),
            identity: "4198286400171909149".into(),
        }],
        working_set: vec![
            PageRange { first: 0, count: 3 },
            PageRange {
                first: 15,
                count: 1,
            },
        ],
    }
}

pub(crate) fn writer(path: &BundlePath) -> Result<Writer, Error> {
    let mut writer = Writer::create(path, MEMORY)?;
    writer.memory().write_all_at(b"guest memory", 4096).unwrap();
    writer.write_kern(KERN)?;
    Ok(writer)
}

pub(crate) fn seal(writer: Writer) -> Result<Manifest, Error> {
    seal_as(writer, description())
}

/// Seals a bundle of a guest without a disk.
pub(crate) fn seal_diskless(writer: Writer) -> Result<Manifest, Error> {
    let diskless = Description {
        disks: Vec::new(),
        ..description()
    };
    seal_as(writer, diskless)
}

fn seal_as(writer: Writer, description: Description) -> Result<Manifest, Error> {
    writer.seal(
        description,
        "2026-01-31T12:00:00Z".parse().unwrap(),
        &brood_core::checkpoint::unwatched,
    )
}

/// A sealed bundle in a folder of its own.
pub(crate) struct Sample {
    pub(crate) dir: TempDir,
    pub(crate) path: BundlePath,
    pub(crate) manifest: Manifest,
}

impl Sample {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let path = BundlePath::new(&dir.path().join("web")).unwrap();
        let manifest = seal(writer(&path).unwrap()).unwrap();
        Self {
            dir,
            path,
            manifest,
        }
    }

    pub(crate) fn files(&self) -> [std::path::PathBuf; 4] {
        [
            self.path.manifest(),
            self.path.ckp(),
            self.path.kern(),
            self.path.meta(),
        ]
    }

    /// Everything that brood checks before it restores.
    pub(crate) fn check(&self) -> Result<Checkpoint, Error> {
        let checkpoint = Checkpoint::open(&self.path)?;
        checkpoint.verify_memory(&brood_core::checkpoint::unwatched)?;
        Ok(checkpoint)
    }

    /// The error of [`Self::check`]; it must name a file of this bundle and show it.
    pub(crate) fn refusal(&self, what: &str) -> Error {
        let Err(error) = self.check() else {
            panic!("{what}: accepted")
        };
        let shown = error.to_string();
        assert!(
            self.files().iter().any(|file| file == error.file()),
            "{what}: {shown}"
        );
        assert!(
            shown.contains(&error.file().display().to_string()),
            "{what}: {shown}"
        );
        assert!(
            !shown.contains(|c: char| c.is_control()),
            "{what}: {shown:?}"
        );
        assert!(shown.len() < 2000, "{what}: {} bytes", shown.len());
        assert!(error.hint().is_some(), "{what}: {shown}");
        error
    }
}

/// Replaces a sealed (read-only) file by another.
pub(crate) fn replace(file: &Path, content: &[u8]) {
    fs::remove_file(file).unwrap();
    fs::write(file, content).unwrap();
}
