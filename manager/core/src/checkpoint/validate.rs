//! Rules for the fields of a manifest. They are the same when brood seals a bundle and when it
//! opens one from anywhere.

use std::{collections::HashSet, fmt};

use super::manifest::{
    DiskProvider, DiskSnapshot, EngineKind, FORMAT, FileSeal, Manifest, Memory, PageRange, Parent,
    VERSION,
};
use crate::{
    escaped::is_unprintable,
    units::{Bytes, PAGE_SIZE},
    zfs_name::SnapshotName,
};

/// Longest manifest that is read. It holds the list of pages of a 3 GiB guest that has written
/// every other page.
pub(crate) const MANIFEST_MAX: Bytes = Bytes::mib(4);
/// Longest `.ckp`.
pub(crate) const MEMORY_MAX: Bytes = Bytes::gib(4096);
/// Longest `.ckp.kern`.
pub(crate) const KERN_MAX: Bytes = Bytes::mib(64);
/// Longest `.ckp.meta`.
pub(crate) const META_MAX: Bytes = Bytes::mib(1);
/// Most virtual CPUs of a guest.
pub(crate) const VCPUS_MAX: u32 = 1024;
/// Most ranges in a working set; as many still fit in [`MANIFEST_MAX`].
pub(crate) const WORKING_SET_MAX: usize = 16_384;

/// Longest name of a guest, device or model, in bytes.
const NAME_MAX: usize = 128;
/// Longest engine version or disk snapshot name, in bytes.
const TEXT_MAX: usize = 256;
/// Most memory segments, devices or disks.
const LIST_MAX: usize = 1024;
/// Longest path of a parent or of a disk's source, in bytes: PATH_MAX of Linux.
const PATH_MAX: usize = 4096;

/// A field with an invalid value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {reason}")]
pub struct Invalid {
    /// Path of the field, such as `memory.segments[0].size`.
    pub field: String,
    /// Which rule it breaks.
    pub reason: String,
}

type Verdict = Result<(), Invalid>;

fn invalid(field: impl fmt::Display, reason: impl fmt::Display) -> Invalid {
    Invalid {
        field: field.to_string(),
        reason: reason.to_string(),
    }
}

impl Manifest {
    /// Checks every field by itself and against the others. Files are not looked at.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub(crate) fn validate(&self) -> Verdict {
        if self.format != FORMAT {
            return Err(invalid("format", format_args!("must be {FORMAT:?}")));
        }
        if self.version != VERSION {
            return Err(invalid("version", format_args!("must be {VERSION}")));
        }
        text("guest", &self.guest, NAME_MAX)?;
        moment(&self.created_at)?;
        text("engine_version", &self.engine_version, TEXT_MAX)?;
        self.memory.validate()?;
        self.validate_qemu()?;
        self.validate_linux()?;
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            let reason = format!("must be from 1 to {VCPUS_MAX}, is {}", self.vcpus);
            return Err(invalid("vcpus", reason));
        }
        self.validate_devices()?;
        working_set(&self.working_set, self.memory.size)?;
        // A delta may have no page of its own; everything else has something in it.
        let least = u64::from(self.parent.is_none());
        seal("files.ckp", &self.files.ckp, least, MEMORY_MAX)?;
        seal("files.kern", &self.files.kern, 1, KERN_MAX)?;
        seal("files.meta", &self.files.meta, 1, META_MAX)?;
        if let Some(parent) = &self.parent {
            return self.validate_delta(parent);
        }
        if self.files.ckp.size != self.memory.size {
            let reason = format!(
                "is {}, but memory.size is {}",
                self.files.ckp.size.0, self.memory.size.0
            );
            return Err(invalid("files.ckp.size", reason));
        }
        Ok(())
    }

    fn validate_qemu(&self) -> Verdict {
        let Some(guest) = &self.qemu else {
            return Ok(());
        };
        if self.engine != EngineKind::Qemu {
            return Err(invalid("qemu", "is there, but engine is not qemu"));
        }
        text("qemu.version", &guest.version, TEXT_MAX)?;
        text("qemu.machine", &guest.machine, NAME_MAX)?;
        text("qemu.cpu", &guest.cpu, NAME_MAX)?;
        text("qemu.nonce", &guest.nonce, NAME_MAX)?;
        sha256("qemu.image", &guest.image)
    }

    fn validate_linux(&self) -> Verdict {
        let Some(guest) = &self.linux else {
            return Ok(());
        };
        if self.engine != EngineKind::Kvm {
            return Err(invalid("linux", "is there, but engine is not kvm"));
        }
        text("linux.virtualization", &guest.virtualization, NAME_MAX)?;
        text("linux.nonce", &guest.nonce, NAME_MAX)?;
        sha256("linux.image", &guest.image)
    }

    fn validate_delta(&self, parent: &Parent) -> Verdict {
        text("parent.path", &parent.path, PATH_MAX)?;
        sha256("parent.sha256", &parent.sha256)?;
        if parent.pages.end() > self.memory.size.pages() {
            let reason = "reaches past the end of the memory";
            return Err(invalid("parent.pages", reason));
        }
        let (size, pages) = (self.files.ckp.size.0, parent.pages.count());
        if size != pages * PAGE_SIZE {
            let reason = format!("is {size}, but parent.pages has {pages} pages");
            return Err(invalid("files.ckp.size", reason));
        }
        Ok(())
    }

    fn validate_devices(&self) -> Verdict {
        at_most("devices", self.devices.len(), LIST_MAX)?;
        let mut names = HashSet::new();
        for (n, device) in self.devices.iter().enumerate() {
            let field = format!("devices[{n}].name");
            text(&field, &device.name, NAME_MAX)?;
            text(format_args!("devices[{n}].model"), &device.model, NAME_MAX)?;
            if !names.insert(device.name.as_str()) {
                return Err(invalid(field, "another device has the same name"));
            }
        }
        at_most("disks", self.disks.len(), LIST_MAX)?;
        let mut with_disk = HashSet::new();
        for (n, disk) in self.disks.iter().enumerate() {
            disk.validate(n)?;
            let field = format!("disks[{n}].device");
            let device = disk.device.as_deref();
            if device.is_some_and(|device| !names.contains(device)) {
                return Err(invalid(field, "no device has this name"));
            }
            if !with_disk.insert(device) {
                return Err(invalid(field, "this device has another snapshot already"));
            }
        }
        Ok(())
    }
}

impl DiskSnapshot {
    /// Checks the `n`th disk by itself.
    fn validate(&self, n: usize) -> Verdict {
        let field = |name: &str| format!("disks[{n}].{name}");
        text(field("source"), &self.source, PATH_MAX)?;
        text(field("snapshot"), &self.snapshot, TEXT_MAX)?;
        let name = disk_name(self.provider, &self.snapshot);
        name.map_err(|reason| invalid(field("snapshot"), reason))?;
        match self.provider {
            DiskProvider::Zfs => {
                let guid = self.identity.parse::<u64>().ok();
                if guid.is_none_or(|guid| guid.to_string() != self.identity) {
                    return Err(invalid(
                        field("identity"),
                        "must be a guid in decimal digits",
                    ));
                }
            }
            DiskProvider::Reflink | DiskProvider::Shared => {
                sha256(field("identity"), &self.identity)?;
            }
        }
        Ok(())
    }
}

/// Says why a snapshot cannot have this name: one of ZFS is that of a dataset, and a file lies
/// beside the bundle.
fn disk_name(provider: DiskProvider, name: &str) -> Result<(), String> {
    match provider {
        DiskProvider::Zfs => {
            let parsed = name.parse::<SnapshotName>();
            parsed
                .map(|_| ())
                .map_err(|e| format!("names no snapshot: {e}"))
        }
        DiskProvider::Reflink | DiskProvider::Shared
            if name.contains('/') || matches!(name, "." | "..") =>
        {
            Err("must be the name of a file beside the bundle".to_owned())
        }
        DiskProvider::Reflink | DiskProvider::Shared => Ok(()),
    }
}

impl Memory {
    /// Checks sizes, alignment, order and overlap, in the guest and in the file.
    fn validate(&self) -> Verdict {
        whole_pages("memory.size", self.size.0)?;
        if self.size.0 == 0 || self.size > MEMORY_MAX {
            let reason = format!("must be above 0 and at most {MEMORY_MAX}, is {}", self.size);
            return Err(invalid("memory.size", reason));
        }
        at_most("memory.segments", self.segments.len(), LIST_MAX)?;
        let mut sum = 0_u64;
        let mut guest_end = 0;
        let mut in_file = Vec::with_capacity(self.segments.len());
        for (n, segment) in self.segments.iter().enumerate() {
            let field = |name: &str| format!("memory.segments[{n}].{name}");
            whole_pages(field("guest_address"), segment.guest_address)?;
            whole_pages(field("size"), segment.size.0)?;
            whole_pages(field("file_offset"), segment.file_offset)?;
            if segment.size.0 == 0 {
                return Err(invalid(field("size"), "must not be 0"));
            }
            if segment.size > self.size {
                return Err(invalid(field("size"), "is more than memory.size"));
            }
            if segment.guest_address < guest_end {
                let reason = "must lie above the segment before it";
                return Err(invalid(field("guest_address"), reason));
            }
            guest_end = segment
                .guest_address
                .checked_add(segment.size.0)
                .ok_or_else(|| invalid(field("guest_address"), "ends past 2^64"))?;
            let file_end = segment
                .file_offset
                .checked_add(segment.size.0)
                .filter(|end| *end <= self.size.0)
                .ok_or_else(|| invalid(field("file_offset"), "ends past the end of the file"))?;
            in_file.push((segment.file_offset, file_end, n));
            // Cannot overflow: at most 1024 segments of at most 4 TiB.
            sum += segment.size.0;
        }
        in_file.sort_unstable();
        if let Some(pair) = in_file.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            let field = format!("memory.segments[{}].file_offset", pair[1].2);
            return Err(invalid(field, "overlaps another segment in the file"));
        }
        if sum != self.size.0 {
            let reason = format!(
                "is {}, but the segments' sizes add up to {sum}",
                self.size.0
            );
            return Err(invalid("memory.size", reason));
        }
        Ok(())
    }
}

fn working_set(ranges: &[PageRange], memory: Bytes) -> Verdict {
    at_most("working_set", ranges.len(), WORKING_SET_MAX)?;
    for (n, range) in ranges.iter().enumerate() {
        if range.count == 0 {
            return Err(invalid(
                format_args!("working_set[{n}].count"),
                "must not be 0",
            ));
        }
        if range.first >= memory.pages() {
            let field = format!("working_set[{n}].first");
            return Err(invalid(field, "lies past the end of the memory"));
        }
        if range.count > memory.pages() - range.first {
            let field = format!("working_set[{n}].count");
            return Err(invalid(field, "reaches past the end of the memory"));
        }
    }
    Ok(())
}

fn seal(field: &str, seal: &FileSeal, least: u64, cap: Bytes) -> Verdict {
    if seal.size.0 < least || seal.size > cap {
        let reason = format!("must be from {least} to {}, is {}", cap.0, seal.size.0);
        return Err(invalid(format_args!("{field}.size"), reason));
    }
    sha256(format_args!("{field}.sha256"), &seal.sha256)
}

fn sha256(field: impl fmt::Display, digest: &str) -> Verdict {
    let digit = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    if digest.len() != 64 || !digest.bytes().all(digit) {
        return Err(invalid(field, "must be 64 lower-case hexadecimal digits"));
    }
    Ok(())
}

fn moment(text: &str) -> Verdict {
    // Parsed, then written again: one moment has one text.
    let same = |moment: &jiff::Timestamp| moment.to_string() == text;
    if text.parse().ok().filter(same).is_none() {
        let reason = "must be a moment in UTC, such as 2026-01-31T12:00:00Z";
        return Err(invalid("created_at", reason));
    }
    Ok(())
}

fn text(field: impl fmt::Display, text: &str, max: usize) -> Verdict {
    if text.is_empty() {
        return Err(invalid(field, "must not be empty"));
    }
    if text.len() > max {
        return Err(invalid(
            field,
            format_args!("must have at most {max} bytes"),
        ));
    }
    if text.chars().any(is_unprintable) {
        return Err(invalid(field, "must not have control characters"));
    }
    Ok(())
}

fn whole_pages(field: impl fmt::Display, bytes: u64) -> Verdict {
    if !bytes.is_multiple_of(PAGE_SIZE) {
        let reason = format!("must be a multiple of {PAGE_SIZE}, is {bytes}");
        return Err(invalid(field, reason));
    }
    Ok(())
}

fn at_most(field: &str, items: usize, max: usize) -> Verdict {
    if items > max {
        return Err(invalid(
            field,
            format_args!("must have at most {max} entries, has {items}"),
        ));
    }
    Ok(())
}
