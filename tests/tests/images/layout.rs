//! OCI layouts as tests make them.

use std::{fs, io::Write, path::PathBuf};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// A layout in a folder.
pub(crate) struct Layout {
    pub(crate) folder: PathBuf,
    pub(crate) layers: Vec<Value>,
}

impl Layout {
    pub(crate) fn new(folder: PathBuf) -> Layout {
        fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        let marker = json!({ "imageLayoutVersion": "1.0.0" });
        fs::write(folder.join("oci-layout"), marker.to_string()).unwrap();
        Layout {
            folder,
            layers: Vec::new(),
        }
    }

    /// Adds a blob; a reference to it.
    pub(crate) fn blob(&self, content: &[u8], media_type: &str) -> Value {
        let digest = hex(&Sha256::digest(content));
        fs::write(self.folder.join("blobs/sha256").join(&digest), content).unwrap();
        json!({
            "mediaType": media_type, "size": content.len(), "digest": format!("sha256:{digest}"),
        })
    }

    /// Adds a layer, packed in one of the ways that there are.
    pub(crate) fn layer(&mut self, entries: &[(&str, EntryType, &str)], packed: &str) {
        self.archive(archive(entries), packed);
    }

    /// The same with an archive.
    pub(crate) fn archive(&mut self, archive: Vec<u8>, packed: &str) {
        let content = match packed {
            "gzip" => {
                let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
                packer.write_all(&archive).unwrap();
                packer.finish().unwrap()
            }
            "zstd" => zstd::encode_all(&archive[..], 1).unwrap(),
            _ => archive,
        };
        let kind = match packed {
            "tar" => "application/vnd.oci.image.layer.v1.tar".to_owned(),
            packed => format!("application/vnd.oci.image.layer.v1.tar+{packed}"),
        };
        let layer = self.blob(&content, &kind);
        self.layers.push(layer);
    }

    /// Writes manifest and index, with an image for another platform beside.
    pub(crate) fn finish(&self) {
        let config = json!({
            "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] },
            "config": {
                "User": "app", "Env": ["PATH=/bin", "MODE=test"], "WorkingDir": "/srv",
                "Entrypoint": ["/bin/app"], "Cmd": ["--serve"],
            },
        });
        let config = self.blob(
            config.to_string().as_bytes(),
            "application/vnd.oci.image.config.v1+json",
        );
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": self.layers });
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let mut manifest = self.blob(manifest.to_string().as_bytes(), kind);
        manifest["platform"] = json!({ "os": "linux", "architecture": "amd64" });
        let mut other = self.blob(b"{}", kind);
        other["platform"] = json!({ "os": "linux", "architecture": "arm64" });
        let index = json!({ "schemaVersion": 2, "manifests": [other, manifest] });
        fs::write(self.folder.join("index.json"), index.to_string()).unwrap();
    }

    pub(crate) fn path(&self) -> &str {
        self.folder.to_str().unwrap()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, kind, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_uid(33);
        header.set_gid(33);
        header.set_mtime(1_000_000);
        // As it is: functions that check names would refuse what is tested here.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        let linked = [EntryType::Symlink, EntryType::Link].contains(kind);
        let content = if linked {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
            ""
        } else {
            content
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}
