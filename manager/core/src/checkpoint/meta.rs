//! The `.meta` file: bhyve's JSON description of the `.kern` file and of the guest.
//!
//! bhyve (`usr.sbin/bhyve/snapshot.c`) writes it with libxo and reads it with libucl, and has used
//! two layouts. FreeBSD 15 lists the kernel's structures under `kern_structs` and names each in
//! `device`. Earlier releases listed them under `structs`, by a number in `snapshot_req` with the
//! name beside it in `debug_name`, and named devices in `snapshot_req`. brood reads both, and
//! writes FreeBSD 15's. It passes over unknown keys, as bhyve does.

use std::{collections::BTreeMap, collections::HashSet, path::Path};

use serde::{Deserialize, Serialize};

use super::{error::Error, json, manifest::Manifest};
use crate::units::Bytes;

/// `VM_MEM_F_WIRED` of vmmapi(3): all guest memory is held in memory.
const WIRED: i32 = 0x02;
/// The structures that `vm_restore_kern_structs` of bhyve wants, all of them.
const BHYVE_STRUCTS: [&str; 9] = [
    "vhpet", "vm", "vioapic", "vlapic", "vmcx", "vatpit", "vatpic", "vpmtmr", "vrtc",
];

/// Name of the one structure in the `.kern` of a KVM checkpoint.
const KVM_STATE: &str = "brood-kvm";

/// What a `.meta` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// How many virtual CPUs.
    pub ncpus: u32,
    /// Name of the guest.
    pub vmname: String,
    /// Guest memory, low and high together; the `.ckp` file's size.
    pub memsize: Bytes,
    /// `VM_MEM_F_*` of vmmapi(3).
    pub memflags: i32,
    /// The kernel's structures in the `.kern` file.
    pub structs: Vec<Part>,
    /// The devices' states in the `.kern` file.
    pub devices: Vec<Part>,
    /// SHA-256 of each field of the manifest except `files`, so that the two files vouch for each
    /// other. Only in what brood writes.
    pub manifest_fields: Option<BTreeMap<String, String>>,
}

/// A part of the `.kern` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The structure or device that it is the state of.
    pub name: String,
    /// Length.
    pub size: Bytes,
    /// Where it starts, in bytes.
    pub file_offset: u64,
}

impl Meta {
    /// What to write for a checkpoint whose `.kern` file is one structure.
    pub(super) fn of(manifest: &Manifest) -> Self {
        let state = Part {
            name: KVM_STATE.to_owned(),
            size: manifest.files.kern.size,
            file_offset: 0,
        };
        Self {
            ncpus: manifest.vcpus,
            vmname: manifest.guest.clone(),
            memsize: manifest.memory.size,
            memflags: 0,
            structs: vec![state],
            devices: Vec::new(),
            manifest_fields: Some(field_digests(manifest)),
        }
    }

    /// The text of a `.meta` that bhyve wrote, with a manifest's digests and guest's name (bhyve is
    /// given each clone's own). Everything else stays as it is, for bhyve to read.
    pub(super) fn vouching(
        bhyves: &[u8],
        manifest: &Manifest,
    ) -> Result<Vec<u8>, serde_json::Error> {
        let mut document: serde_json::Value = serde_json::from_slice(bhyves)?;
        document["basic metadata"]["vmname"] = manifest.guest.as_str().into();
        document["brood"] = serde_json::to_value(Brood {
            manifest_fields: field_digests(manifest),
        })?;
        let mut text = serde_json::to_vec_pretty(&document)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads a `.meta` of either layout.
    ///
    /// # Errors
    /// [`Error::Field`] with `file` and the field that is missing, of the wrong type, or lies
    /// outside a `.kern` file of `kern` bytes.
    pub fn parse(file: &Path, text: &[u8], kern: Bytes) -> Result<Self, Error> {
        let Document {
            basic,
            kern_structs,
            structs,
            devices,
            brood,
        } = json::parse(file, text)?;
        let (key, structs) = match (kern_structs, structs) {
            (Some(new), None) => ("kern_structs", new),
            (None, Some(old)) => ("structs", old),
            (None, None) => {
                let reason = "missing, and so is structs, its name before FreeBSD 15";
                return Err(Error::field_of(file, "kern_structs", reason));
            }
            (Some(_), Some(_)) => {
                let reason = "kern_structs is there as well; bhyve never writes both";
                return Err(Error::field_of(file, "structs", reason));
            }
        };
        Ok(Self {
            ncpus: basic.ncpus,
            vmname: basic.vmname,
            memsize: basic.memsize,
            memflags: basic.memflags,
            structs: parts(file, key, structs, kern)?,
            devices: parts(file, "devices", devices, kern)?,
            manifest_fields: brood.map(|brood| brood.manifest_fields),
        })
    }

    /// Says why `bhyve -r` could not restore from it, or not share its memory.
    pub(crate) fn unfit_for_bhyve(&self) -> Option<String> {
        if self.memflags & WIRED != 0 {
            return Some(format!(
                "memflags is {}: its memory is wired, which clones cannot share; suspend a guest \
                 without memory.wired (bhyve -S)",
                self.memflags
            ));
        }
        let there = |name: &&&str| self.structs.iter().any(|part| part.name == **name);
        let missing: Vec<&str> = BHYVE_STRUCTS
            .iter()
            .filter(|name| !there(name))
            .copied()
            .collect();
        if missing.is_empty() {
            return None;
        }
        Some(format!(
            "the kernel's structures {} are missing in it: bhyve restores all of them or none",
            missing.join(", ")
        ))
    }

    /// The file's text, in FreeBSD 15's layout.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let entries = |parts: &[Part]| {
            let entry = |part: &Part| Entry {
                device: Some(part.name.clone()),
                snapshot_req: None,
                debug_name: None,
                size: part.size,
                file_offset: part.file_offset,
            };
            parts.iter().map(entry).collect()
        };
        let document = Document {
            basic: Basic {
                ncpus: self.ncpus,
                vmname: self.vmname.clone(),
                memsize: self.memsize,
                memflags: self.memflags,
            },
            kern_structs: Some(entries(&self.structs)),
            structs: None,
            devices: entries(&self.devices),
            brood: self
                .manifest_fields
                .clone()
                .map(|manifest_fields| Brood { manifest_fields }),
        };
        let mut text = serde_json::to_vec_pretty(&document)?;
        text.push(b'\n');
        Ok(text)
    }
}

/// The two layouts in one: what only one of them has is optional.
#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(rename = "basic metadata")]
    basic: Basic,
    #[serde(skip_serializing_if = "Option::is_none")]
    kern_structs: Option<Vec<Entry>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    structs: Option<Vec<Entry>>,
    devices: Vec<Entry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    brood: Option<Brood>,
}

#[derive(Serialize, Deserialize)]
struct Basic {
    ncpus: u32,
    vmname: String,
    memsize: Bytes,
    memflags: i32,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_req: Option<Request>,
    #[serde(skip_serializing_if = "Option::is_none")]
    debug_name: Option<String>,
    size: Bytes,
    file_offset: u64,
}

/// `snapshot_req`: `enum snapshot_req` of a kernel structure, or a device's name.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Request {
    Number(u32),
    Name(String),
}

#[derive(Serialize, Deserialize)]
struct Brood {
    manifest_fields: BTreeMap<String, String>,
}

fn parts(file: &Path, key: &str, entries: Vec<Entry>, kern: Bytes) -> Result<Vec<Part>, Error> {
    let mut names = HashSet::new();
    let mut parts = Vec::with_capacity(entries.len());
    for (n, entry) in entries.into_iter().enumerate() {
        let wrong = |field: &str, reason: &str| {
            Error::field_of(file, &format!("{key}[{n}].{field}"), reason)
        };
        let (field, name) = match (entry.device, entry.snapshot_req) {
            (Some(name), None) => ("device", name),
            (None, Some(Request::Name(name))) => ("snapshot_req", name),
            (None, Some(Request::Number(number))) => {
                let name = entry
                    .debug_name
                    .unwrap_or_else(|| format!("struct {number}"));
                ("snapshot_req", name)
            }
            (None, None) => return Err(wrong("device", "missing")),
            (Some(_), Some(_)) => {
                return Err(wrong("snapshot_req", "device is there as well"));
            }
        };
        // bhyve takes the first of a name: the second would never be restored.
        if !names.insert(name.clone()) {
            return Err(wrong(field, "an entry before it has the same name"));
        }
        let end = entry.file_offset.checked_add(entry.size.0);
        if end.is_none_or(|end| end > kern.0) {
            let reason = format!(
                "{} bytes from {} end past the .kern file's {} bytes",
                entry.size.0, entry.file_offset, kern.0
            );
            return Err(wrong("file_offset", &reason));
        }
        parts.push(Part {
            name,
            size: entry.size,
            file_offset: entry.file_offset,
        });
    }
    Ok(parts)
}

/// SHA-256 of the compact JSON of each field of a manifest except `files`. Of `parent` without its
/// path: what the parent is says its digest, and where it lies may change.
pub(super) fn field_digests(manifest: &Manifest) -> BTreeMap<String, String> {
    let mut placeless = manifest.clone();
    if let Some(parent) = &mut placeless.parent {
        parent.path.clear();
    }
    digests(&placeless)
}

/// The same with the parent's path, as earlier versions sealed it.
pub(super) fn field_digests_with_path(manifest: &Manifest) -> BTreeMap<String, String> {
    digests(manifest)
}

fn digests(manifest: &Manifest) -> BTreeMap<String, String> {
    fn digest(field: &impl Serialize) -> String {
        // Plain data: there is nothing in a manifest that has no JSON.
        super::hash::sha256(&serde_json::to_vec(field).unwrap_or_default())
    }
    let Manifest {
        format,
        version,
        guest,
        created_at,
        engine,
        engine_version,
        memory,
        vcpus,
        devices,
        disks,
        working_set,
        bhyve,
        qemu,
        linux,
        parent,
        files: _,
    } = manifest;
    // A manifest of another engine has no such field, and none had it before there was bhyve.
    let bhyve = bhyve.as_ref().map(|guest| ("bhyve", digest(guest)));
    let qemu = qemu.as_ref().map(|guest| ("qemu", digest(guest)));
    let linux = linux.as_ref().map(|guest| ("linux", digest(guest)));
    [
        ("format", digest(format)),
        ("version", digest(version)),
        ("guest", digest(guest)),
        ("created_at", digest(created_at)),
        ("engine", digest(engine)),
        ("engine_version", digest(engine_version)),
        ("memory", digest(memory)),
        ("vcpus", digest(vcpus)),
        ("devices", digest(devices)),
        ("disks", digest(disks)),
        ("working_set", digest(working_set)),
        ("parent", digest(parent)),
    ]
    .into_iter()
    .chain(bhyve)
    .chain(qemu)
    .chain(linux)
    .map(|(field, digest)| (field.to_owned(), digest))
    .collect()
}
