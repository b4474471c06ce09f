//! PCI devices that bhyve saves in a checkpoint, and their settings.
//!
//! The list follows `usr.sbin/bhyve`: bhyve saves a device model whose `struct pci_devemu` has
//! `pe_snapshot`. It saves every PCI device of a guest, and the whole checkpoint fails when one
//! device cannot be saved (`pci_snapshot` in `pci_emul.c`).

use std::collections::BTreeMap;

use super::{Error, PciAddress, Variables, wrong};

/// Registers of a device's PCI header that can be set (`bhyve_config(5)`, `pcireg`).
const PCI_IDS: [&str; 5] = ["vendor", "device", "revid", "subvendor", "subdevice"];

/// A PCI device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BhyveDevice {
    /// `hostbridge`, with the PCI ids it is to show, if others than its own: `pcireg.*`.
    HostBridge {
        /// Ids by their names, such as `vendor`.
        ids: BTreeMap<String, String>,
    },
    /// `lpc`: the bridge to the serial ports and the boot ROM.
    Lpc,
    /// `virtio-blk`.
    VirtioBlk(Disk),
    /// `virtio-net`.
    VirtioNet(Nic),
    /// `virtio-rnd`.
    VirtioRnd,
    /// `ahci`, with its ports in their order.
    Ahci(Vec<Port>),
    /// `e1000`.
    E1000(Nic),
    /// `fbuf`: a frame buffer of 32 MiB, all of it written at the start, and a VNC server.
    Fbuf {
        /// `rfb`: where the VNC server listens.
        rfb: Option<String>,
        /// `password` of the VNC server.
        password: Option<String>,
        /// `w`: width in pixels.
        width: Option<u16>,
        /// `h`: height in pixels.
        height: Option<u16>,
        /// `vga`: `on`, `io` or `off`.
        vga: Option<String>,
    },
    /// `xhci`, with a tablet in each of so many slots.
    Xhci {
        /// `slot.1` to `slot.N` hold tablets.
        tablets: u8,
    },
}

/// A disk's back end, and the properties that the guest sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// File or device.
    pub path: String,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// `nocache`: past the host's cache.
    pub nocache: bool,
    /// `sync`: each write waits for the disk.
    pub sync: bool,
    /// `nodelete`: trims are not passed on.
    pub nodelete: bool,
    /// `sectorsize`, `LOGICAL[/PHYSICAL]`.
    pub sectorsize: Option<String>,
    /// `ser`: serial number, up to 20 characters. bhyve makes one of the path when there is none,
    /// which differs between guests.
    pub serial: Option<String>,
    /// `bootindex`.
    pub bootindex: Option<u32>,
}

/// A network card's back end, and the properties that the guest sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// `backend`: the host's interface.
    pub backend: Option<String>,
    /// `mac`.
    pub mac: Option<String>,
    /// `mtu`; virtio-net only.
    pub mtu: Option<u16>,
    /// `bridge`: the bridge that the tap becomes a member of. bhyve passes it over.
    pub bridge: Option<String>,
}

/// The device on a port of an AHCI controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// `type`.
    pub kind: PortKind,
    /// The medium.
    pub disk: Disk,
}

/// Kind of an AHCI device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// `hd`
    Disk,
    /// `cd`
    Optical,
}

/// Takes the settings of the device of this model at `address`.
pub(super) fn take(
    from: &mut Variables,
    address: PciAddress,
    key: &str,
    model: String,
) -> Result<BhyveDevice, Error> {
    let of = |name: &str| format!("{address}.{name}");
    Ok(match model.as_str() {
        "hostbridge" => BhyveDevice::HostBridge {
            ids: PCI_IDS
                .iter()
                .filter_map(|id| Some(((*id).to_owned(), from.take(&of(&format!("pcireg.{id}")))?)))
                .collect(),
        },
        "lpc" => BhyveDevice::Lpc,
        "virtio-blk" => BhyveDevice::VirtioBlk(disk(from, &address.to_string())?),
        "virtio-net" => BhyveDevice::VirtioNet(Nic {
            mtu: from.take_number(&of("mtu"))?,
            ..nic(from, address)
        }),
        "virtio-rnd" => BhyveDevice::VirtioRnd,
        "ahci" => BhyveDevice::Ahci(ports(from, address)?),
        "e1000" => BhyveDevice::E1000(nic(from, address)),
        "fbuf" => {
            if from.take_bool(&of("wait"))? == Some(true) {
                let reason = "cannot be: the guest would wait for a viewer";
                return Err(wrong(&of("wait"), "true", reason));
            }
            BhyveDevice::Fbuf {
                rfb: from.take(&of("rfb")),
                password: from.take(&of("password")),
                width: from.take_number(&of("w"))?,
                height: from.take_number(&of("h"))?,
                vga: from.take(&of("vga")),
            }
        }
        "xhci" => BhyveDevice::Xhci {
            tablets: tablets(from, address)?,
        },
        _ => {
            return Err(Error::NotSaved {
                key: key.to_owned(),
                model,
            });
        }
    })
}

fn disk(from: &mut Variables, node: &str) -> Result<Disk, Error> {
    let of = |name: &str| format!("{node}.{name}");
    let key = of("path");
    let path = from.take(&key).ok_or(Error::Missing { key })?;
    let serial = from.take(&of("ser"));
    if let Some(serial) = serial.as_ref().filter(|serial| serial.len() > 20) {
        return Err(wrong(&of("ser"), serial, "has more than 20 characters"));
    }
    // `direct` is an older name of `sync`.
    let direct = from.take_bool(&of("direct"))?.unwrap_or(false);
    Ok(Disk {
        path,
        read_only: from.take_bool(&of("ro"))?.unwrap_or(false),
        nocache: from.take_bool(&of("nocache"))?.unwrap_or(false),
        sync: from.take_bool(&of("sync"))?.unwrap_or(false) || direct,
        nodelete: from.take_bool(&of("nodelete"))?.unwrap_or(false),
        sectorsize: from.take(&of("sectorsize")),
        serial,
        bootindex: from.take_number(&of("bootindex"))?,
    })
}

fn nic(from: &mut Variables, address: PciAddress) -> Nic {
    let mut text = |name: &str| from.take(&format!("{address}.{name}"));
    Nic {
        backend: text("backend"),
        mac: text("mac"),
        mtu: None,
        bridge: text("bridge"),
    }
}

fn ports(from: &mut Variables, address: PciAddress) -> Result<Vec<Port>, Error> {
    let mut ports = Vec::new();
    // bhyve's controller has at most 32 ports.
    while ports.len() < 32 {
        let node = port_key(address, ports.len());
        let key = format!("{node}.type");
        let kind = match from.take(&key).as_deref() {
            None => break,
            Some("hd") => PortKind::Disk,
            Some("cd") => PortKind::Optical,
            Some(other) => return Err(wrong(&key, other, "is neither hd nor cd")),
        };
        let disk = disk(from, &node)?;
        ports.push(Port { kind, disk });
    }
    Ok(ports)
}

/// Key of a port's settings.
fn port_key(address: PciAddress, port: usize) -> String {
    format!("{address}.port.{port}")
}

fn tablets(from: &mut Variables, address: PciAddress) -> Result<u8, Error> {
    let mut tablets = 0;
    // bhyve's controller has 8 slots.
    while tablets < 8 {
        let key = format!("{address}.slot.{}.device", tablets + 1);
        match from.take(&key).as_deref() {
            None => break,
            Some("tablet") => tablets += 1,
            Some(other) => return Err(wrong(&key, other, "is not a tablet")),
        }
    }
    Ok(tablets)
}

impl BhyveDevice {
    /// Name of the model, as `device=` has it and as it is saved in the `.meta`.
    #[must_use]
    pub fn model(&self) -> &'static str {
        match self {
            Self::HostBridge { .. } => "hostbridge",
            Self::Lpc => "lpc",
            Self::VirtioBlk(_) => "virtio-blk",
            Self::VirtioNet(_) => "virtio-net",
            Self::VirtioRnd => "virtio-rnd",
            Self::Ahci(_) => "ahci",
            Self::E1000(_) => "e1000",
            Self::Fbuf { .. } => "fbuf",
            Self::Xhci { .. } => "xhci",
        }
    }

    /// Its network card, when it is one.
    #[must_use]
    pub(crate) fn nic(&self) -> Option<&Nic> {
        match self {
            Self::VirtioNet(nic) | Self::E1000(nic) => Some(nic),
            _ => None,
        }
    }

    pub(super) fn nic_mut(&mut self) -> Option<&mut Nic> {
        match self {
            Self::VirtioNet(nic) | Self::E1000(nic) => Some(nic),
            _ => None,
        }
    }

    /// Its disks, each with the key that its settings are below.
    #[must_use]
    pub(crate) fn disks_at(&self, address: PciAddress) -> Vec<(String, &Disk)> {
        match self {
            Self::VirtioBlk(disk) => vec![(address.to_string(), disk)],
            Self::Ahci(ports) => {
                let disks = ports.iter().enumerate();
                disks
                    .map(|(n, port)| (port_key(address, n), &port.disk))
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn disks_at_mut(&mut self, address: PciAddress) -> Vec<(String, &mut Disk)> {
        match self {
            Self::VirtioBlk(disk) => vec![(address.to_string(), disk)],
            Self::Ahci(ports) => {
                let disks = ports.iter_mut().enumerate();
                disks
                    .map(|(n, port)| (port_key(address, n), &mut port.disk))
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    /// Keys below the device's own, and their values.
    pub(super) fn variables(&self) -> Vec<(String, String)> {
        let mut all = DeviceKeys(vec![("device".to_owned(), self.model().to_owned())]);
        match self {
            Self::Lpc | Self::VirtioRnd => {}
            Self::HostBridge { ids } => {
                for (id, value) in ids {
                    all.text(&format!("pcireg.{id}"), Some(value));
                }
            }
            Self::VirtioBlk(disk) => all.disk("", disk),
            Self::VirtioNet(nic) | Self::E1000(nic) => {
                all.text("backend", nic.backend.as_ref());
                all.text("mac", nic.mac.as_ref());
                all.text("mtu", nic.mtu.as_ref());
                all.text("bridge", nic.bridge.as_ref());
            }
            Self::Ahci(ports) => {
                for (n, port) in ports.iter().enumerate() {
                    let kind = match port.kind {
                        PortKind::Disk => "hd",
                        PortKind::Optical => "cd",
                    };
                    all.text(&format!("port.{n}.type"), Some(&kind));
                    all.disk(&format!("port.{n}."), &port.disk);
                }
            }
            Self::Fbuf {
                rfb,
                password,
                width,
                height,
                vga,
            } => {
                all.text("rfb", rfb.as_ref());
                all.text("password", password.as_ref());
                all.text("w", width.as_ref());
                all.text("h", height.as_ref());
                all.text("vga", vga.as_ref());
            }
            Self::Xhci { tablets } => {
                for slot in 1..=*tablets {
                    all.text(&format!("slot.{slot}.device"), Some(&"tablet"));
                }
            }
        }
        all.0
    }
}

struct DeviceKeys(Vec<(String, String)>);

impl DeviceKeys {
    fn text(&mut self, key: &str, value: Option<&impl ToString>) {
        if let Some(value) = value {
            self.0.push((key.to_owned(), value.to_string()));
        }
    }

    fn disk(&mut self, node: &str, disk: &Disk) {
        self.text(&format!("{node}path"), Some(&disk.path));
        for (name, set) in [
            ("ro", disk.read_only),
            ("nocache", disk.nocache),
            ("sync", disk.sync),
            ("nodelete", disk.nodelete),
        ] {
            if set {
                self.text(&format!("{node}{name}"), Some(&"true"));
            }
        }
        self.text(&format!("{node}sectorsize"), disk.sectorsize.as_ref());
        self.text(&format!("{node}ser"), disk.serial.as_ref());
        self.text(&format!("{node}bootindex"), disk.bootindex.as_ref());
    }
}
