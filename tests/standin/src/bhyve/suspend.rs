//! Writer of a checkpoint, as vm_checkpoint() of usr.sbin/bhyve/snapshot.c: it empties the `.kern`
//! file first, then the memory file, then the `.meta`; it writes memory, description, structures
//! and devices in this order; it syncs nothing, and removes nothing when a step fails.

use std::{
    fs::File,
    io::{Seek, Write},
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};
use serde_json::{Value, json};

use super::{
    checkpoint::{ATKBDC, KERN_STRUCTS, with_extension},
    console::{Output, print},
    devices::Device,
    guest::Guest,
};
use crate::{
    errno::{ETXTBSY, Errno},
    exit::Exit,
    fault, vm,
    world::World,
};

/// What goes into a checkpoint.
pub(crate) struct Saved<'a> {
    pub(crate) world: &'a World,
    pub(crate) name: &'a str,
    pub(crate) ncpus: u32,
    pub(crate) devices: &'a [Device],
    pub(crate) guest: &'a Guest,
    pub(crate) output: Output,
}

fn perror(what: &str, errno: Errno) -> Exit {
    Exit::saying(1, format!("{what}: {}\n", errno.text))
}

impl Saved<'_> {
    fn create(&self, folder: BorrowedFd<'_>, name: &str, what: &str) -> Result<File, Exit> {
        // A file that is some VM's memory is like a running program's (vmm_vnode(4)).
        let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
        if vm::text_busy(self.world, path.as_ref()).is_ok_and(|busy| busy) {
            return Err(perror(what, ETXTBSY));
        }
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
        openat(folder, name, flags, Mode::S_IRWXU)
            .map(File::from)
            .map_err(|errno| perror(what, Errno::from(&errno.into())))
    }

    /// Length of a device's state.
    ///
    /// # Errors
    /// What bhyve says of a device that cannot be saved.
    fn length(&self, device: &Device) -> Result<u64, String> {
        const EFAULT: i32 = 14;
        const EOPNOTSUPP: i32 = 45;
        let failed = |ret: i32| {
            self.output
                .line(&format!("Failed to snapshot {}; ret={ret}", device.name))
        };
        if device.name.starts_with("ahci@") && !self.guest.drives_ahci() {
            // Its ports hold addresses of the guest, which its driver has not set (seen with bhyve
            // 14.2).
            let why = "pci_ahci_snapshot: invalid address: port->cmd_lst";
            return Err(self.output.line(why) + &failed(EFAULT));
        }
        device.state.ok_or_else(|| failed(EOPNOTSUPP))
    }

    /// The `.meta` with these parts.
    fn description(&self, structs: &[Value], devices: &[Value]) -> String {
        let text = json!({
            "basic metadata": {
                "ncpus": self.ncpus,
                "vmname": self.name,
                "memsize": self.guest.memory.length(),
                "memflags": 0,
            },
            "kern_structs": structs,
            "devices": devices,
        });
        format!("{text:#}")
    }

    /// Writes the three files into a folder.
    ///
    /// # Errors
    /// bhyve's words on its standard error; the requester gets no answer.
    pub(crate) fn write(&self, folder: BorrowedFd<'_>, name: &str) -> Result<(), Exit> {
        let pass = |point| fault::pass(self.world, point);
        let too_long =
            |what: &str| Exit::saying(1, format!("Failed to construct {what} filename.\n"));
        pass(fault::SUSPEND_RECEIVED)?;
        let kern_name = with_extension(name, ".kern").ok_or_else(|| too_long("kernel data"))?;
        let mut kern = self.create(
            folder,
            &kern_name,
            "Failed to open kernel data snapshot file.",
        )?;
        let memory = self.create(folder, name, "Failed to create checkpoint file")?;
        let meta_name = with_extension(name, ".meta").ok_or_else(|| too_long("vm metadata"))?;
        let mut meta = self.create(
            folder,
            &meta_name,
            "Failed to open vm metadata snapshot file.",
        )?;
        pass(fault::SUSPEND_FILES)?;
        pass(fault::SUSPEND_PAUSED)?;

        let failed = |what: &str, then: &str, e: &std::io::Error| {
            let text = Errno::from(e).text;
            Exit::saying(1, format!("{what}: {text}\n{then}\n"))
        };
        let pages = self.guest.memory.length().div_ceil(super::memory::PAGE);
        for (from, to, point) in [
            (0, pages / 2, fault::SUSPEND_HALFWAY),
            (pages / 2, pages, fault::SUSPEND_MEMORY),
        ] {
            let saved = self.guest.memory.save(&memory, from, to);
            saved.map_err(|e| {
                failed(
                    "Failed to write in file",
                    "Could not write guest memory to file",
                    &e,
                )
            })?;
            pass(point)?;
        }
        // vm_snapshot_mem() ends its progress bar, shown or not.
        print("\r\n");

        let mut offset = 0;
        let mut part = |name: &str, length: u64| {
            let bytes: Vec<u8> = name
                .bytes()
                .cycle()
                .take(usize::try_from(length)?)
                .collect();
            kern.write_all(&bytes)?;
            let entry = json!({ "device": name, "size": length, "file_offset": offset });
            offset += length;
            Ok(entry)
        };
        let unwritten = |e: Box<dyn std::error::Error>| {
            Exit::saying(1, format!("Failed to write all snapshotted data.: {e}\n"))
        };
        let mut structs = Vec::new();
        for (name, length) in KERN_STRUCTS {
            structs.push(part(name, length).map_err(unwritten)?);
        }
        pass(fault::SUSPEND_KERN)?;
        let mut devices = Vec::new();
        for device in self.devices {
            let length = match self.length(device) {
                Ok(length) => length,
                Err(why) => {
                    // The description is written as it goes, and is not ended.
                    let text = self.description(&structs, &devices);
                    let begun = text.find("\n  ]").map_or("", |end| &text[..end]);
                    let _ = meta.write_all(begun.as_bytes());
                    let text = why + "Failed to snapshot device state.\n";
                    return Err(Exit::saying(1, text));
                }
            };
            devices.push(part(&device.name, length).map_err(unwritten)?);
        }
        devices.push(part(ATKBDC.0, ATKBDC.1).map_err(unwritten)?);
        pass(fault::SUSPEND_META)?;
        let text = self.description(&structs, &devices) + "\n";
        let written = meta.write_all(text.as_bytes()).and_then(|()| meta.rewind());
        written.map_err(|e| failed("Failed to write all snapshotted data.", "", &e))?;
        pass(fault::SUSPEND_COMPLETE)
    }
}
