//! Text form of a configuration: lines `key=value`, read as `bhyve -k` reads them
//! (`bhyve_parse_simple_config_file` in `usr.sbin/bhyve/bhyverun.c`).

use std::{collections::BTreeMap, fmt::Write, str::FromStr};

use super::{BhyveConfig, BhyveDevice, Com, Error, PciAddress, Topology, device, wrong};
use crate::{
    escaped::is_unprintable,
    units::{Bytes, PAGE_SIZE},
};

/// Settings of the whole machine that are passed through, by key or by `PREFIX.`.
///
/// All are part of the model but those of [`super::model`]'s list of back ends.
pub(super) const SETTINGS: [&str; 13] = [
    "acpi_tables",
    "acpi_tables_in_memory",
    "bios.",
    "board.",
    "chassis.",
    "destroy_on_poweroff",
    "keyboard.layout",
    "lpc.fwcfg",
    "lpc.pcireg.",
    "rtc.use_localtime",
    "system.",
    "virtio_msix",
    "x86.",
];

/// Settings that would keep a guest from sharing its memory, or a checkpoint from being taken of
/// it, when they are true.
const NEVER: [(&str, &str); 3] = [
    ("memory.wired", "wired memory cannot be shared"),
    (
        "memory.guest_in_core",
        "a core file would hold all guest memory",
    ),
    ("gdb.wait", "the guest would wait for a debugger"),
];

/// A configuration as bhyve keeps it: a text for each key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables(pub BTreeMap<String, String>);

impl FromStr for Variables {
    type Err = Error;

    /// Blank lines and lines that begin with `#` are passed over; the last value of a key counts.
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut variables = BTreeMap::new();
        for (n, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match line.split_once('=') {
                Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                    variables.insert(key.to_owned(), value.to_owned());
                }
                _ => {
                    return Err(Error::Line {
                        line: n + 1,
                        text: line.to_owned(),
                    });
                }
            }
        }
        Ok(Self(variables))
    }
}

impl std::fmt::Display for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (key, value) in &self.0 {
            writeln!(f, "{key}={value}")?;
        }
        Ok(())
    }
}

impl Variables {
    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    pub(super) fn take_bool(&mut self, key: &str) -> Result<Option<bool>, Error> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        // As get_config_bool() of usr.sbin/bhyve/config.c understands them.
        match value.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => Ok(Some(true)),
            "false" | "off" | "no" | "0" => Ok(Some(false)),
            _ => Err(wrong(key, &value, "is neither true nor false")),
        }
    }

    pub(super) fn take_number<N: FromStr>(&mut self, key: &str) -> Result<Option<N>, Error> {
        self.take(key)
            .map(|value| {
                value
                    .parse()
                    .map_err(|_| wrong(key, &value, "is not a number that it can have"))
            })
            .transpose()
    }

    fn put(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.0.insert(key.into(), value.into());
    }
}

impl TryFrom<Variables> for BhyveConfig {
    type Error = Error;

    fn try_from(mut from: Variables) -> Result<Self, Error> {
        for (key, why) in NEVER {
            if from.take_bool(key)? == Some(true) {
                return Err(wrong(key, "true", format_args!("cannot be: {why}")));
            }
        }
        // `bhyve -o config.dump=1`, which prints a configuration, prints that as well.
        from.take("config.dump");
        let config = Self {
            name: from.take("name"),
            uuid: from.take("uuid"),
            cpus: topology(&mut from)?,
            memory: memory(&mut from)?,
            bootrom: from.take("lpc.bootrom"),
            bootvars: from.take("lpc.bootvars"),
            com: com(&mut from)?,
            devices: devices(&mut from)?,
            settings: settings(&mut from),
        };
        if let Some(key) = from.0.into_keys().next() {
            return Err(Error::Unknown { key });
        }
        config.validate()?;
        Ok(config)
    }
}

impl FromStr for BhyveConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse::<Variables>()?.try_into()
    }
}

impl BhyveConfig {
    /// The keys and values of the configuration.
    #[must_use]
    pub fn variables(&self) -> Variables {
        let mut all = Variables(self.settings.clone());
        for (key, value) in [
            ("name", &self.name),
            ("uuid", &self.uuid),
            ("lpc.bootrom", &self.bootrom),
            ("lpc.bootvars", &self.bootvars),
        ] {
            if let Some(value) = value {
                all.put(key, value);
            }
        }
        all.put("cpus", self.cpus.cpus().to_string());
        all.put("sockets", self.cpus.sockets.to_string());
        all.put("cores", self.cpus.cores.to_string());
        all.put("threads", self.cpus.threads.to_string());
        all.put("memory.size", self.memory.0.to_string());
        for (com, path) in &self.com {
            all.put(format!("lpc.{com}.path"), path);
        }
        for (address, device) in &self.devices {
            for (key, value) in device.variables() {
                all.put(format!("{address}.{key}"), value);
            }
        }
        all
    }

    /// The text for `bhyve -k`.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        write!(text, "{}", self.variables()).expect("a string takes everything");
        text
    }

    /// Rules that hold between keys.
    fn validate(&self) -> Result<(), Error> {
        for (key, value) in &self.variables().0 {
            // A text of it would be read as another configuration, or as none.
            if key.contains('=') || key.chars().chain(value.chars()).any(is_unprintable) {
                return Err(wrong(key, value, "has characters that a line cannot have"));
            }
            if value.is_empty() {
                return Err(wrong(key, value, "is empty"));
            }
        }
        if let (None, Some(path)) = (&self.bootrom, &self.bootvars) {
            return Err(wrong(
                "lpc.bootvars",
                path,
                "is nothing without lpc.bootrom",
            ));
        }
        let mut bridges = self
            .devices
            .iter()
            .filter(|(_, device)| matches!(device, BhyveDevice::Lpc));
        match (bridges.next(), bridges.next()) {
            (Some((at, _)), _) if at.bus != 0 => {
                let key = format!("{at}.device");
                Err(wrong(&key, "lpc", "can be on bus 0 only"))
            }
            (_, Some((at, _))) => {
                let key = format!("{at}.device");
                Err(wrong(&key, "lpc", "is there already"))
            }
            (None, _) if !self.com.is_empty() || self.bootrom.is_some() => Err(Error::Missing {
                key: "pci.0.31.0.device=lpc, which serial ports and the boot ROM need".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// As `calc_topology` of bhyverun.c: the default of each number is 1, except for sockets, whose
/// default is `cpus`.
fn topology(from: &mut Variables) -> Result<Topology, Error> {
    let cpus: Option<u16> = from.take_number("cpus")?;
    let cores = from.take_number("cores")?.unwrap_or(1);
    let threads = from.take_number("threads")?.unwrap_or(1);
    let sockets = from.take_number("sockets")?.unwrap_or(cpus.unwrap_or(1));
    let topology = Topology {
        sockets,
        cores,
        threads,
    };
    let product = topology.cpus();
    match cpus {
        _ if product == 0 => Err(wrong("cpus", "0", "is no guest")),
        Some(cpus) if u32::from(cpus) != product => Err(wrong(
            "cpus",
            &cpus.to_string(),
            format_args!("is not {sockets} sockets of {cores} cores of {threads} threads"),
        )),
        _ => Ok(topology),
    }
}

/// As `vm_parse_memsize` of libvmmapi: a number of less than a MiB is one of MiB; the suffixes of
/// expand_number(3).
fn memory(from: &mut Variables) -> Result<Bytes, Error> {
    const KEY: &str = "memory.size";
    let value = from.take(KEY).unwrap_or_else(|| "256M".to_owned());
    let bad = |reason: &str| wrong(KEY, &value, reason);
    let (digits, shift) = match value.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&value[..at], 10),
        Some((at, 'm' | 'M')) => (&value[..at], 20),
        Some((at, 'g' | 'G')) => (&value[..at], 30),
        Some((at, 't' | 'T')) => (&value[..at], 40),
        _ => (value.as_str(), 0),
    };
    let number: u64 = digits.parse().map_err(|_| bad("is not a size"))?;
    let shift = if shift == 0 && number < 1 << 20 {
        20
    } else {
        shift
    };
    let bytes = number
        .checked_mul(1 << shift)
        .ok_or_else(|| bad("is too much"))?;
    if shift < 20 && bytes < 1 << 20 {
        return Err(bad(
            "is less than 1 MiB, which bhyve takes for a number of MiB: write it in MiB",
        ));
    }
    if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) {
        return Err(bad("is not a whole number of pages, at least one"));
    }
    Ok(Bytes(bytes))
}

fn com(from: &mut Variables) -> Result<BTreeMap<Com, String>, Error> {
    let mut ports = BTreeMap::new();
    for number in 1..=4 {
        let com = Com::new(number).expect("1 to 4");
        let key = format!("lpc.{com}.path");
        if let Some(path) = from.take(&key) {
            if path == "stdio" {
                let reason = "has no other end once brood has gone; use a null modem (nmdm)";
                return Err(wrong(&key, &path, reason));
            }
            ports.insert(com, path);
        }
    }
    Ok(ports)
}

fn devices(from: &mut Variables) -> Result<BTreeMap<PciAddress, BhyveDevice>, Error> {
    let mut models = Vec::new();
    for (key, model) in &from.0 {
        if let Some(address) = key.strip_suffix(".device")
            && address.starts_with("pci.")
            && address.matches('.').count() == 3
        {
            let place = address
                .parse()
                .map_err(|()| wrong(key, model, "has a place that no PCI device can have"))?;
            models.push((place, key.clone(), model.clone()));
        }
    }
    let mut devices = BTreeMap::new();
    for (address, key, model) in models {
        from.take(&key);
        devices.insert(address, device::take(from, address, &key, model)?);
    }
    Ok(devices)
}

fn settings(from: &mut Variables) -> BTreeMap<String, String> {
    let known = |key: &str| {
        SETTINGS
            .iter()
            .any(|one| key == *one || (one.ends_with('.') && key.starts_with(one)))
    };
    let (taken, left) = std::mem::take(&mut from.0)
        .into_iter()
        .partition(|(key, _)| known(key));
    from.0 = left;
    taken
}
