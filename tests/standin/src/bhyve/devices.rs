//! bhyve's PCI devices: their models, which of them bhyve can save, and what their back ends need
//! from the host (usr.sbin/bhyve/pci_emul.c, net_backends.c, block_if.c, amd64/pci_lpc.c).

use std::{
    fs::{File, OpenOptions},
    io,
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    config::Config,
    console::{Console, Output},
};
use crate::{
    errno::{EBUSY, EINVAL, EIO, Errno},
    exit::Exit,
    fault, network,
    world::World,
};

/// A device model.
struct Model {
    name: &'static str,
    /// The name to use instead, for a name of old (`pe_alias`).
    alias: Option<&'static str>,
    /// Length of its saved state in bytes; `None` for a model that cannot be saved
    /// (`pe_snapshot`). The lengths were seen with bhyve 14.2, but for those of ahci and fbuf,
    /// which are made up.
    state: Option<u64>,
}

const fn model(name: &'static str, alias: Option<&'static str>, state: Option<u64>) -> Model {
    Model { name, alias, state }
}

const MODELS: [Model; 17] = [
    model("hostbridge", None, Some(452)),
    model("amd_hostbridge", None, Some(452)),
    model("lpc", None, Some(620)),
    model("virtio-net", None, Some(613)),
    model("virtio-blk", None, Some(619)),
    model("virtio-rnd", None, Some(538)),
    model("e1000", None, Some(2190)),
    model("ahci", None, Some(4096)),
    model("ahci-hd", Some("ahci"), None),
    model("ahci-cd", Some("ahci"), None),
    model("fbuf", None, Some(16384)),
    model("xhci", None, Some(1077)),
    model("nvme", None, None),
    model("virtio-9p", None, None),
    model("virtio-console", None, None),
    model("virtio-scsi", None, None),
    model("virtio-input", None, None),
];

const SLOTS: u32 = 32;
const FUNCTIONS: u32 = 8;
const BUSES: u32 = 256;

/// A device of a VM.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    /// `MODEL@pci.BUS.SLOT.FUNCTION`, as a checkpoint calls it.
    pub(crate) name: String,
    /// Length of its saved state, if it can be saved.
    pub(crate) state: Option<u64>,
}

/// What the devices hold open.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    /// In the order of bus, slot and function.
    pub(crate) list: Vec<Device>,
    /// The serial ports that have a back end.
    pub(crate) consoles: Vec<Console>,
    taps: Vec<Flock<File>>,
    disks: Vec<Flock<File>>,
    /// Place of the first disk that the guest can write to.
    written: Option<usize>,
}

fn find(name: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.name == name)
}

/// pci_parse_slot(): `-s SLOT,MODEL,OPTIONS` as variables.
///
/// # Errors
/// What bhyve says before it exits with 4.
pub(crate) fn parse_slot(config: &mut Config, option: &str) -> Result<(), String> {
    let invalid = || format!("Invalid PCI slot info field \"{option}\"\n");
    let mut parts = option.splitn(3, ',');
    let place = parts.next().unwrap_or_default();
    let emulation = parts.next().ok_or_else(invalid)?;
    let options = parts.next();
    let numbers: Option<Vec<u32>> = place.split(':').map(|n| n.parse().ok()).collect();
    let (bus, slot, function) = match numbers.as_deref() {
        Some([slot]) => (0, *slot, 0),
        Some([slot, function]) => (0, *slot, *function),
        Some([bus, slot, function]) => (*bus, *slot, *function),
        _ => return Err(invalid()),
    };
    if bus >= BUSES || slot >= SLOTS || function >= FUNCTIONS {
        return Err(invalid());
    }
    let at = format!("pci slot {bus}:{slot}:{function}");
    let model = find(emulation).ok_or_else(|| format!("{at}: unknown device \"{emulation}\"\n"))?;
    let node = format!("pci.{bus}.{slot}.{function}");
    if config.has_node(&node) {
        return Err(format!("{at} already occupied!\n"));
    }
    let mut set = |key: &str, value: &str| {
        let set = config.set(&format!("{node}.{key}"), value);
        set.map_err(|exit| exit.message)
    };
    set("device", model.alias.unwrap_or(model.name))?;
    // The first option of these is the back end, without a name.
    let positional = match emulation {
        "virtio-net" | "e1000" => Some("backend"),
        "virtio-blk" | "nvme" => Some("path"),
        "ahci-hd" | "ahci-cd" => Some("port.0.path"),
        _ => None,
    };
    for (n, part) in options
        .into_iter()
        .flat_map(|text| text.split(','))
        .enumerate()
    {
        match (positional, part.split_once('=')) {
            (Some(key), None) if n == 0 => set(key, part)?,
            (_, Some((key, value))) => set(key, value)?,
            (_, None) => set(part, "true")?,
        }
    }
    Ok(())
}

/// What bhyve says before it exits with 4.
fn failed(output: Output, text: &str, errno: Errno) -> Exit {
    let mut message = String::new();
    if !text.is_empty() {
        message += &output.line(text);
    }
    let what = format!("Device emulation initialization error: {}", errno.text);
    Exit::saying(4, message + &output.line(&what))
}

/// Where a device is: its bus, and its node in the configuration, `pci.BUS.SLOT.FUNCTION`.
type At = (u32, String);

/// The part of init_pci() that looks models up: the devices of the configuration, in the order of
/// bus, slot and function.
///
/// # Errors
/// Ends bhyve with 4.
pub(crate) fn models(config: &Config, output: Output) -> Result<Vec<(At, Device)>, Exit> {
    let mut found = Vec::new();
    for bus in 0..BUSES {
        if !config.has_node(&format!("pci.{bus}")) {
            continue;
        }
        for (slot, function) in (0..SLOTS).flat_map(|s| (0..FUNCTIONS).map(move |f| (s, f))) {
            let node = format!("pci.{bus}.{slot}.{function}");
            if !config.has_node(&node) {
                continue;
            }
            let at = format!("pci slot {bus}:{slot}:{function}");
            let refused = |text: &str| failed(output, &format!("{at}: {text}"), EINVAL);
            let emulation = config
                .get(&format!("{node}.device"))
                .ok_or_else(|| refused("missing \"device\" value"))?;
            let model = find(&emulation)
                .ok_or_else(|| refused(&format!("unknown device \"{emulation}\"")))?;
            if let Some(alias) = model.alias {
                let text = format!("legacy device \"{emulation}\", use \"{alias}\" instead");
                return Err(refused(&text));
            }
            let device = Device {
                name: format!("{}@{node}", model.name),
                state: model.state,
            };
            found.push(((bus, node), device));
        }
    }
    Ok(found)
}

/// init_pci(): opens what the devices of the configuration need.
///
/// # Errors
/// Ends bhyve with 4; what was opened is closed with the process.
pub(crate) fn init(world: &World, config: &Config, output: &mut Output) -> Result<Devices, Exit> {
    let mut devices = Devices::default();
    for ((bus, node), device) in models(config, *output)? {
        let model = device.name.split('@').next().unwrap_or_default();
        let opened = match model {
            "virtio-net" | "e1000" => devices.net(world, config, &node),
            "virtio-blk" | "nvme" => devices.disk(world, config, &node),
            "ahci" => devices.ahci(world, config, &node),
            "lpc" => devices.lpc(world, config, bus, output),
            _ => Ok(()),
        };
        match opened {
            Ok(()) => devices.list.push(device),
            Err(Refusal::Words(text, errno)) => return Err(failed(*output, &text, errno)),
            Err(Refusal::Exit(exit)) => return Err(exit),
        }
    }
    Ok(devices)
}

/// Why a back end was not opened.
enum Refusal {
    /// What the device says, and the error that is left in `errno`.
    Words(String, Errno),
    /// A fault point ends the command.
    Exit(Exit),
}

impl From<Exit> for Refusal {
    fn from(exit: Exit) -> Self {
        Self::Exit(exit)
    }
}

fn refuse(text: impl Into<String>, errno: Errno) -> Refusal {
    Refusal::Words(text.into(), errno)
}

impl Devices {
    /// The first disk that the guest can write to.
    pub(crate) fn written(&self) -> io::Result<Option<File>> {
        let disk = self.written.map(|place| self.disks[place].try_clone());
        disk.transpose()
    }

    /// netbe_init() and tap_init() of net_backends.c, net_parsemac() of net_utils.c.
    fn net(&mut self, world: &World, config: &Config, node: &str) -> Result<(), Refusal> {
        if let Some(mac) = config.get(&format!("{node}.mac")) {
            let octets: Vec<_> = mac.split(':').map(|o| u8::from_str_radix(o, 16)).collect();
            let good = octets.len() == 6
                && octets.iter().all(Result::is_ok)
                && octets.iter().any(|octet| *octet != Ok(0))
                // Not a multicast address.
                && octets[0].as_ref().is_ok_and(|octet| octet & 1 == 0);
            if !good {
                return Err(refuse(format!("Invalid MAC {mac}"), EINVAL));
            }
        }
        let Some(backend) = config.get(&format!("{node}.backend")) else {
            return Ok(());
        };
        let kind = config
            .get(&format!("{node}.type"))
            .unwrap_or_else(|| backend.clone());
        if !kind.starts_with("tap") && !kind.starts_with("vmnet") {
            // Others are known to bhyve and not to the stand-in; nobody's are EINVAL.
            return Err(refuse("", EINVAL));
        }
        let path = format!("/dev/{backend}");
        let failed = |errno| refuse(format!("open of tap device {path} failed"), errno);
        let file = network::open_tap(world, &backend).map_err(failed)?;
        fault::pass(world, fault::RESTORE_TAP)?;
        self.taps.push(file);
        Ok(())
    }

    /// blockif_open() of block_if.c. Nothing keeps two VMs from one disk.
    fn disk(&mut self, world: &World, config: &Config, node: &str) -> Result<(), Refusal> {
        let Some(path) = config.get(&format!("{node}.path")) else {
            return Err(refuse("Missing \"path\" for block device.", EIO));
        };
        let read_only = matches!(config.get(&format!("{node}.ro")).as_deref(), Some("true"));
        let host = world.host(&path);
        let mut open = OpenOptions::new().read(true).write(!read_only).open(&host);
        if open.is_err() && !read_only {
            open = File::open(&host);
        }
        let file = open.map_err(|e| {
            let errno = Errno::from(&e);
            let words = format!("Could not open backing file: {path}: {}", errno.text);
            refuse(
                format!(
                    "bhyve: {words}\nCould not open backing file: {}",
                    errno.text
                ),
                errno,
            )
        })?;
        fault::pass(world, fault::RESTORE_DISK)?;
        // So that a file system with it is busy; others may open it all the same.
        let file =
            Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|_| refuse("", EBUSY))?;
        if !read_only && self.written.is_none() {
            self.written = Some(self.disks.len());
        }
        self.disks.push(file);
        Ok(())
    }

    fn ahci(&mut self, world: &World, config: &Config, node: &str) -> Result<(), Refusal> {
        for port in 0..32 {
            let node = format!("{node}.port.{port}");
            if config.has_node(&node) {
                self.disk(world, config, &node)?;
            }
        }
        Ok(())
    }

    /// pci_lpc_init() and lpc_init().
    fn lpc(
        &mut self,
        world: &World,
        config: &Config,
        bus: u32,
        output: &mut Output,
    ) -> Result<(), Refusal> {
        if self
            .list
            .iter()
            .any(|device| device.name.starts_with("lpc@"))
        {
            return Err(refuse("Only one LPC bridge is allowed.", EIO));
        }
        if bus != 0 {
            return Err(refuse("LPC bridge can be present only on bus 0.", EIO));
        }
        for port in ["com1", "com2", "com3", "com4"] {
            let Some(path) = config.get(&format!("lpc.{port}.path")) else {
                continue;
            };
            let console = Console::open(world, &path).map_err(|(text, errno)| {
                let words = format!("Unable to initialize backend '{path}' for LPC device {port}");
                refuse(text + &words, errno)
            })?;
            output.raw |= console.is_tty();
            fault::pass(world, fault::RESTORE_CONSOLE)?;
            self.consoles.push(console);
        }
        Ok(())
    }
}

/// Takes a lock that another process may hold already.
pub(crate) fn exclusive(file: File) -> Result<Flock<File>, Errno> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| EBUSY)
}
