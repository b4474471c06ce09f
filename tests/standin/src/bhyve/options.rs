//! bhyve's command line and its configuration files (usr.sbin/bhyve/bhyverun.c;
//! amd64/bhyverun_machdep.c, bhyve_optparse()).

use std::fs;

use super::{config::Config, devices};
use crate::{
    errno::Errno,
    exit::{EX_USAGE, Exit},
};

const PROGRAM: &str = "bhyve";

/// Options without and with (`:`) an argument, as getopt(3) takes them.
const OPTIONS: &str = "aehuwxACDHIPSWYk:f:o:p:G:c:s:m:n:l:K:U:r:";

/// What the command line said.
#[derive(Debug)]
pub(crate) struct Options {
    /// All variables.
    pub(crate) config: Config,
    /// `-r`: the checkpoint to restore from.
    pub(crate) restore: Option<String>,
    /// The name on the command line.
    pub(crate) name: Option<String>,
}

/// Ends as bhyve does after its help.
pub(crate) fn usage(code: i32) -> Exit {
    Exit::saying(code, "Usage: bhyve [options] vmname; see bhyve(8)\n")
}

/// Reads the command line.
///
/// # Errors
/// Ends the command as bhyve does when it cannot use an argument.
pub(crate) fn parse(arguments: &[String]) -> Result<Options, Exit> {
    let mut options = Options {
        config: Config::new()?,
        restore: None,
        name: None,
    };
    let mut rest = arguments.iter();
    let mut names = Vec::new();
    while let Some(argument) = rest.next() {
        // getopt(3) stops at the first argument that is no option.
        if argument == "--" || !argument.starts_with('-') || argument == "-" {
            names.extend((argument != "--").then_some(argument));
            names.extend(rest.by_ref());
            break;
        }
        let mut flags = argument[1..].chars();
        while let Some(flag) = flags.next() {
            let known = OPTIONS.find(flag).filter(|_| flag != ':');
            let Some(at) = known else {
                let text = format!("{PROGRAM}: illegal option -- {flag}\n");
                return Err(Exit::saying(1, text + &usage(1).message));
            };
            let mut value = None;
            if OPTIONS[at + 1..].starts_with(':') {
                let attached = flags.as_str();
                flags = "".chars();
                value = if attached.is_empty() {
                    rest.next().cloned()
                } else {
                    Some(attached.to_owned())
                };
                if value.is_none() {
                    let text = format!("{PROGRAM}: option requires an argument -- {flag}\n");
                    return Err(Exit::saying(1, text + &usage(1).message));
                }
            }
            options.take(flag, value.as_deref().unwrap_or_default())?;
        }
    }
    if names.len() > 1 {
        return Err(usage(1));
    }
    options.name = names.first().map(|name| (*name).clone());
    options.alias("lpc.bootrom", "bootrom")?;
    options.alias("lpc.bootvars", "bootvars")?;
    Ok(options)
}

impl Options {
    fn take(&mut self, flag: char, value: &str) -> Result<(), Exit> {
        let invalid =
            |what: &str| Exit::errx(PROGRAM, EX_USAGE, &format!("invalid {what} '{value}'"));
        let config = &mut self.config;
        match flag {
            'a' => config.set("x86.x2apic", "false"),
            'A' => config.set("acpi_tables", "true"),
            'C' => config.set("memory.guest_in_core", "true"),
            'D' => config.set("destroy_on_poweroff", "true"),
            'e' => config.set("x86.strictio", "true"),
            'G' => config.set("gdb.port", value),
            'H' => config.set("x86.vmexit_on_hlt", "true"),
            'I' => Ok(()),
            'K' => config.set("keyboard.layout", value),
            'm' => config.set("memory.size", value),
            'P' => config.set("x86.vmexit_on_pause", "true"),
            'S' => config.set("memory.wired", "true"),
            'u' => config.set("rtc.use_localtime", "false"),
            'U' => config.set("uuid", value),
            'w' => config.set("x86.strictmsr", "false"),
            'W' => config.set("virtio_msix", "false"),
            'x' => config.set("x86.x2apic", "true"),
            'Y' => config.set("x86.mptable", "false"),
            'c' => {
                for part in value.split(',') {
                    let (key, value) = part.split_once('=').unwrap_or(("cpus", part));
                    if !["cpus", "sockets", "cores", "threads"].contains(&key) {
                        return Err(invalid("cpu topology"));
                    }
                    config.set(key, value)?;
                }
                Ok(())
            }
            'p' => {
                let pair = value.split_once(':');
                let numbers = pair.and_then(|(vcpu, host)| {
                    Some((vcpu.parse::<u32>().ok()?, host.parse::<u32>().ok()?))
                });
                let Some((vcpu, host)) = numbers else {
                    return Err(invalid("vcpu pinning configuration"));
                };
                config.set(&format!("vcpu.{vcpu}.cpuset"), &host.to_string())
            }
            'k' => self.read(value),
            'l' => self
                .lpc(value)
                .ok_or_else(|| invalid("lpc device configuration"))?,
            'n' => Err(Exit::errx(
                PROGRAM,
                4,
                "memory domains are not modelled by the stand-in",
            )),
            'o' => self
                .variable(value)?
                .ok_or_else(|| invalid("configuration option")),
            'r' => {
                self.restore = Some(value.to_owned());
                Ok(())
            }
            's' => devices::parse_slot(config, value).map_err(|text| Exit::saying(4, text)),
            'f' => Ok(()),
            'h' => Err(usage(0)),
            _ => Err(usage(1)),
        }
    }

    /// bhyve_parse_config_option(): `None` when it is not `key=value`.
    fn variable(&mut self, line: &str) -> Result<Option<()>, Exit> {
        match line.split_once('=') {
            Some((_, "")) | None => Ok(None),
            Some((path, value)) => self.config.set(path, value).map(Some),
        }
    }

    /// bhyve_parse_simple_config_file().
    fn read(&mut self, path: &str) -> Result<(), Exit> {
        let text = fs::read_to_string(path).map_err(|e| {
            let what = format!("Failed to open configuration file {path}");
            Exit::err(PROGRAM, 4, &what, Errno::from(&e))
        })?;
        for (n, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if self.variable(line)?.is_none() {
                let what = format!("{path} line {}: invalid config option '{line}'", n + 1);
                return Err(Exit::errx(PROGRAM, 4, &what));
            }
        }
        Ok(())
    }

    /// lpc_device_parse() of amd64/pci_lpc.c: `None` when there is no such device.
    fn lpc(&mut self, value: &str) -> Option<Result<(), Exit>> {
        let (device, rest) = match value.split_once(',') {
            Some((device, rest)) => (device.to_ascii_lowercase(), Some(rest)),
            None => (value.to_ascii_lowercase(), None),
        };
        match (device.as_str(), rest) {
            ("bootrom", None) => {
                let text = format!("invalid bootrom option \"{value}\"");
                Some(Err(Exit::errx(PROGRAM, 4, &text)))
            }
            ("bootrom", Some(rest)) => {
                let rom = rest.split(',').next().unwrap_or_default();
                Some(self.config.set("lpc.bootrom", rom))
            }
            ("com1" | "com2" | "com3" | "com4", Some(path)) => {
                Some(self.config.set(&format!("lpc.{device}.path"), path))
            }
            _ => None,
        }
    }

    /// A variable that has another name now.
    fn alias(&mut self, old: &str, new: &str) -> Result<(), Exit> {
        match self.config.get(old) {
            Some(value) if self.config.get(new).is_none() => {
                eprintln!("{PROGRAM}: {old} is deprecated, use '-o {new}' instead");
                self.config.set(new, &value)
            }
            _ => Ok(()),
        }
    }
}

/// parse_int_value(): a number from 1 to 65,535.
fn number(config: &Config, key: &str) -> Result<Option<u32>, Exit> {
    let Some(value) = config.get(key) else {
        return Ok(None);
    };
    let number = value.parse().ok().filter(|n| (1..=65_535).contains(n));
    let what = format!("Invalid value for {key}: '{value}'");
    number
        .map(Some)
        .ok_or_else(|| Exit::errx(PROGRAM, 4, &what))
}

/// calc_topology(): how many virtual CPUs.
///
/// # Errors
/// When the numbers do not fit together.
pub(crate) fn vcpus(config: &Config) -> Result<u32, Exit> {
    let cpus = number(config, "cpus")?;
    let cores = number(config, "cores")?.unwrap_or(1);
    let threads = number(config, "threads")?.unwrap_or(1);
    let sockets = number(config, "sockets")?.unwrap_or(cpus.unwrap_or(1));
    let all = u64::from(sockets) * u64::from(cores) * u64::from(threads);
    let vcpus = u32::try_from(all).ok().filter(|n| *n <= 65_535);
    let vcpus = vcpus.ok_or_else(|| {
        Exit::errx(
            PROGRAM,
            4,
            &format!("Computed number of vCPUs too high: {all}"),
        )
    })?;
    match cpus {
        Some(cpus) if cpus != vcpus => {
            let what = format!(
                "Topology ({sockets} sockets, {cores} cores, {threads} threads) does not match \
                 {cpus} vCPUs"
            );
            Err(Exit::errx(PROGRAM, 4, &what))
        }
        _ => Ok(vcpus),
    }
}

/// vm_parse_memsize() of libvmmapi: bytes, with K, M, G or T; a small number is MiB.
///
/// # Errors
/// When it is no size.
pub(crate) fn memory_size(text: &str) -> Result<u64, Exit> {
    const MIB: u64 = 1024 * 1024;
    let invalid = || Exit::errx(PROGRAM, EX_USAGE, &format!("invalid memsize '{text}'"));
    if let Ok(number) = text.parse::<u64>() {
        let mib = number.checked_mul(MIB).filter(|_| number < MIB);
        return Ok(mib.unwrap_or(number));
    }
    let last = text.chars().next_back().ok_or_else(invalid)?;
    let unit = "bkmgtpe"
        .find(last.to_ascii_lowercase())
        .ok_or_else(invalid)?;
    let number: u64 = text[..text.len() - last.len_utf8()]
        .parse()
        .map_err(|_| invalid())?;
    number.checked_mul(1 << (10 * unit)).ok_or_else(invalid)
}
