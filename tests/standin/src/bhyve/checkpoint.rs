//! Checkpoint that bhyve restores: its three files, and what bhyve reads from them and when
//! (usr.sbin/bhyve/snapshot.c).
//!
//! bhyve reads the `.meta` with libucl, which accepts more than JSON; the stand-in accepts JSON
//! only.

use std::{
    fs::{self, File},
    io,
};

use nix::sys::signal::{Signal, raise};
use serde_json::Value;

use super::{console::Output, devices::Device};
use crate::{
    errno::{EISDIR, Errno},
    exit::{EX_DATAERR, Exit},
};

const PROGRAM: &str = "bhyve";

/// FreeBSD's `NAME_MAX`: the longest path of a checkpoint, with its ending (strcat_extension()).
const NAME_MAX: usize = 255;

/// The kernel's structures that a checkpoint has (snapshot_kern_structs), with their lengths on AMD
/// (seen with bhyve 14.2; `vmcx` has 664 bytes on Intel).
pub(crate) const KERN_STRUCTS: [(&str, u64); 9] = [
    ("vhpet", 284),
    ("vm", 312),
    ("vioapic", 388),
    ("vlapic", 4169),
    ("vmcx", 772),
    ("vatpit", 172),
    ("vatpic", 118),
    ("vpmtmr", 4),
    ("vrtc", 140),
];

/// The keyboard controller, which is no PCI device and has no address, and the length of its state
/// (seen with bhyve 14.2).
pub(crate) const ATKBDC: (&str, u64) = ("atkbdc", 141);

/// An open checkpoint (`struct restore_state`).
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// Guest memory.
    pub(crate) memory: File,
    /// Length of the memory file in bytes.
    pub(crate) length: u64,
    kern: u64,
    meta: Value,
}

/// The path of another file of the checkpoint; `None` when it is too long.
pub(crate) fn with_extension(base: &str, extension: &str) -> Option<String> {
    if base.len() + extension.len() > NAME_MAX {
        eprintln!("Filename exceeds maximum length.");
        return None;
    }
    Some(format!("{base}{extension}"))
}

/// perror(3), then what the caller says.
fn perror(what: &str, error: &io::Error, then: &str) -> String {
    format!("{what}: {}\n{then}\n", Errno::from(error).text)
}

impl Checkpoint {
    /// load_restore_file().
    ///
    /// # Errors
    /// Ends bhyve with 1 when a file is missing, empty or not to be parsed.
    pub(crate) fn open(path: &str) -> Result<Self, Exit> {
        Self::load(path).map_err(|text| {
            let last = format!("Failed to read checkpoint info from file: '{path}'.\n");
            Exit::saying(1, text + &last)
        })
    }

    fn load(path: &str) -> Result<Self, String> {
        const MEMORY: &str = "Failed to load guest RAM file.";
        const KERN: &str = "Failed to load guest kernel data file.";
        const META: &str = "Failed to load guest metadata file.";
        let memory =
            File::open(path).map_err(|e| perror("Failed to open restore file", &e, MEMORY))?;
        let stat = memory.metadata();
        let stat = stat.map_err(|e| perror("Failed to stat restore file", &e, MEMORY))?;
        if stat.len() == 0 {
            return Err(format!("Restore file is empty.\n{MEMORY}\n"));
        }
        let kern_path =
            with_extension(path, ".kern").ok_or("Failed to construct kernel data filename.\n")?;
        let kern = File::open(kern_path).and_then(|file| file.metadata());
        let kern = kern.map_err(|e| perror("Failed to open kernel data file", &e, KERN))?;
        if kern.len() == 0 {
            return Err(format!("Kernel data file is empty.\n{KERN}\n"));
        }
        if kern.is_dir() {
            let text = EISDIR.text;
            return Err(format!("Failed to map restore file: {text}\n{KERN}\n"));
        }
        let meta_path = with_extension(path, ".meta")
            .ok_or("Failed to construct kernel metadata filename.\n")?;
        let meta = fs::read(&meta_path).ok();
        let meta = meta.and_then(|text| serde_json::from_slice(&text).ok());
        let meta =
            meta.ok_or_else(|| format!("Failed to parse metadata file: '{meta_path}'\n{META}\n"))?;
        Ok(Self {
            memory,
            length: stat.len(),
            kern: kern.len(),
            meta,
        })
    }

    fn basic(&self, key: &str) -> Option<&Value> {
        const BASIC: &str = "basic metadata";
        let Some(basic) = self.meta.get(BASIC) else {
            eprintln!("Failed to find '{BASIC}' object.");
            return None;
        };
        if !basic.is_object() {
            eprintln!("Object '{BASIC}' is not a JSON object.");
            return None;
        }
        let value = basic.get(key);
        if value.is_none() {
            // Without a newline, as bhyve has it.
            eprint!("Missing key: '{key}'");
        }
        value
    }

    fn number(&self, key: &str) -> u64 {
        let Some(value) = self.basic(key) else {
            return 0;
        };
        let number = value.as_i64();
        if number.is_none() {
            eprint!("Cannot convert '{key}' value to int.");
        }
        number.and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
    }

    /// lookup_vmname().
    pub(crate) fn vmname(&self) -> Option<String> {
        let value = self.basic("vmname")?;
        if value.as_str().is_none() {
            eprint!("Cannot convert 'vmname' value to string.");
        }
        value.as_str().map(str::to_owned)
    }

    /// lookup_guest_ncpus(): 0 when it cannot be told.
    pub(crate) fn ncpus(&self) -> u64 {
        self.number("ncpus")
    }

    /// lookup_memsize(), in bytes: 0 when it cannot be told.
    pub(crate) fn memsize(&self) -> u64 {
        self.number("memsize")
    }

    /// lookup_dev(): the length of an entry's state; `None` when there is no such entry.
    fn lookup(&self, array: &str, name: &str) -> Option<u64> {
        let Some(entries) = self.meta.get(array) else {
            // Whatever is looked up, this is what bhyve calls it.
            eprintln!("Failed to find 'devices' object.");
            return None;
        };
        let Some(entries) = entries.as_array() else {
            eprintln!("Object 'devices' is not an array.");
            return None;
        };
        for entry in entries {
            match entry.get("device").map(Value::as_str) {
                None => eprint!("Missing key: 'device'"),
                Some(None) => eprint!("Cannot convert 'device' value to string."),
                Some(Some(other)) if other == name => {
                    let size = entry_number(entry, "size")?;
                    let offset = entry_number(entry, "file_offset")?;
                    if size < 0
                        || offset < 0
                        || i128::from(offset) + i128::from(size) > i128::from(self.kern)
                    {
                        eprintln!(
                            "Assertion failed: (file_offset + size <= kdata_len), function \
                             lookup_check_dev, file snapshot.c."
                        );
                        let _ = raise(Signal::SIGABRT);
                    }
                    return u64::try_from(size).ok();
                }
                Some(Some(_)) => {}
            }
        }
        None
    }

    /// vm_restore_devices(): each device of the VM must be in the checkpoint. What else is in the
    /// checkpoint is passed over.
    ///
    /// # Errors
    /// Ends bhyve with 1.
    pub(crate) fn restore_devices(&self, devices: &[Device], output: Output) -> Result<(), Exit> {
        let keyboard = Device {
            name: ATKBDC.0.to_owned(),
            state: Some(ATKBDC.1),
        };
        for device in devices.iter().chain([&keyboard]) {
            self.restore_device(device, output).map_err(|text| {
                let last = output.line("Failed to restore PCI device state.");
                Exit::saying(1, text + &last)
            })?;
        }
        Ok(())
    }

    fn restore_device(&self, device: &Device, output: Output) -> Result<(), String> {
        const E2BIG: i32 = 7;
        const EOPNOTSUPP: i32 = 45;
        let name = &device.name;
        let size = self.lookup("devices", name);
        let size = size.ok_or_else(|| output.line(&format!("Failed to lookup dev: {name}")))?;
        if size == 0 {
            return Err(output.line(&format!("Restore device size is 0: {name}")));
        }
        let failed = |errno: i32| output.line(&format!("Failed to restore dev: {name} {errno}"));
        match device.state {
            None => Err(failed(EOPNOTSUPP)),
            Some(state) if state > size => Err(format!(
                "vm_snapshot_buf: buffer too small\r\n{}",
                failed(E2BIG)
            )),
            Some(_) => Ok(()),
        }
    }

    /// vm_restore_kern_structs(): all nine must be there.
    ///
    /// # Errors
    /// Ends bhyve with `EX_DATAERR`.
    pub(crate) fn restore_kern(&self) -> Result<(), Exit> {
        for (name, _) in KERN_STRUCTS {
            let what = match self.lookup("kern_structs", name) {
                None => format!("Cannot find kern struct {name}"),
                Some(0) => format!("data with zero size for {name}"),
                Some(_) => continue,
            };
            return Err(Exit::errx(PROGRAM, EX_DATAERR, &what));
        }
        Ok(())
    }
}

fn entry_number(entry: &Value, key: &str) -> Option<i64> {
    match entry.get(key) {
        None => {
            eprint!("Missing key: '{key}'");
            None
        }
        Some(value) => {
            let number = value.as_i64();
            if number.is_none() {
                eprint!("Cannot convert '{key}' value to int.");
            }
            number
        }
    }
}
