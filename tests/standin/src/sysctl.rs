//! sysctl(8): the values that bear on VMs and taps, and those of vmm_vnode(4).

use std::{collections::BTreeMap, fmt::Write, fs, io};

use crate::{
    errno::{EINVAL, Errno},
    exit::Exit,
    vm::{self, Vm},
    world::{Release, World},
};

/// How a value may be changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    /// Read-only, but a tunable of loader.conf(5).
    Tunable,
    Write,
}

/// Name, value in a new world, and how it may be changed. Names and defaults: sys/dev/vmm/vmm_dev.c
/// (`hw.vmm.maxcpu`; of 15.1 `hw.vmm.maxvmms`, 4 for each CPU), sys/net/if_tuntap.c (`net.link.tap`),
/// sys/kern/subr_param.c (`kern.maxproc`, which only the loader sets), sys/vm/swap_pager.c
/// (`vm.overcommit`), zfs(4) (`vfs.zfs.arc.max`), sys/kern/kern_racct.c (`kern.racct.enable`: GENERIC
/// has it off), kmod/vmm_vnode.c (`hw.vmm.vnode`). The amounts of memory, processes and files are
/// made up: those of a host with 32 GiB.
const NUMBERS: [(&str, u64, Access); 30] = [
    ("hw.ncpu", 2, Access::Read),
    ("hw.pagesize", 4096, Access::Read),
    ("hw.physmem", 34_359_738_368, Access::Read),
    ("hw.vmm.maxcpu", 2, Access::Tunable),
    ("hw.vmm.maxvmms", 8, Access::Write),
    ("kern.maxfiles", 1_046_880, Access::Write),
    ("kern.maxproc", 34_232, Access::Tunable),
    ("kern.maxprocperuid", 30_808, Access::Write),
    ("kern.openfiles", 400, Access::Read),
    ("kern.osreldate", 1_500_068, Access::Read),
    ("kern.racct.enable", 0, Access::Tunable),
    ("net.link.bridge.pfil_member", 1, Access::Write),
    ("net.link.tap.devfs_cloning", 1, Access::Write),
    ("net.link.tap.up_on_open", 0, Access::Write),
    ("net.link.tap.user_open", 0, Access::Write),
    ("security.jail.jailed", 0, Access::Read),
    ("vfs.zfs.arc.max", 0, Access::Write),
    ("vm.overcommit", 0, Access::Write),
    ("vm.pmap.pv_page_count", 1_000, Access::Read),
    ("vm.pmap.user_pt_page_count", 2_000, Access::Read),
    ("vm.stats.vm.v_free_count", 6_291_456, Access::Read),
    ("vm.stats.vm.v_free_reserved", 12_000, Access::Read),
    ("vm.stats.vm.v_inactive_count", 131_072, Access::Read),
    ("vm.stats.vm.v_laundry_count", 0, Access::Read),
    ("vm.stats.vm.v_page_count", 8_257_536, Access::Read),
    ("vm.stats.vm.v_page_size", 4096, Access::Read),
    ("vm.stats.vm.v_wire_count", 524_288, Access::Read),
    ("vm.swap_reserved", 1_073_741_824, Access::Read),
    ("vm.swap_total", 4_294_967_296, Access::Read),
    ("vm.uma_kmem_total", 536_870_912, Access::Read),
];

/// Values that are text.
const TEXTS: [(&str, &str); 3] = [
    ("hw.cpu_vendor", "AuthenticAMD"),
    ("hw.model", "Stand-in Processor"),
    ("kern.osrelease", "15.0-RELEASE"),
];

/// Those that only 15.1 has.
const SINCE_15_1: [&str; 1] = ["hw.vmm.maxvmms"];

/// What 15.1 says of itself.
const RELEASE_15_1: [(&str, &str); 2] = [
    ("kern.osreldate", "1501000"),
    ("kern.osrelease", "15.1-RELEASE"),
];

/// What each VM changes of the host's memory, in pages or bytes. Made up, and the same for all, so
/// that a test can tell whether the right values were read and set against each other.
const EACH_VM: [(&str, i64); 4] = [
    ("vm.pmap.user_pt_page_count", 20),
    ("vm.stats.vm.v_free_count", -85),
    ("vm.stats.vm.v_wire_count", 85),
    ("vm.uma_kmem_total", 45 * 4096),
];

/// Those that vmm_vnode(4) has while it is loaded.
const VNODE: [&str; 9] = [
    "hw.vmm.vnode.abi",
    "hw.vmm.vnode.attached",
    "hw.vmm.vnode.file_lost",
    "hw.vmm.vnode.file_resident",
    "hw.vmm.vnode.list",
    "hw.vmm.vnode.pages",
    "hw.vmm.vnode.private_resident",
    "hw.vmm.vnode.private_swapped",
    "hw.vmm.vnode.segments",
];

/// The legacy interface of vmm(4): writing a name creates or destroys a VM.
const CREATE: &str = "hw.vmm.create";
const DESTROY: &str = "hw.vmm.destroy";

/// A number of [`NUMBERS`], or how many VMs were attached.
///
/// # Errors
/// When the world cannot be read.
pub(crate) fn number(world: &World, name: &str) -> io::Result<u64> {
    let set: BTreeMap<String, u64> = world.load("sysctl")?.unwrap_or_default();
    let default = NUMBERS.iter().find(|(other, ..)| *other == name);
    Ok(set
        .get(name)
        .copied()
        .or(default.map(|(_, value, _)| *value))
        .unwrap_or_default())
}

/// Sets a number. The world is locked.
pub(crate) fn set_number(world: &World, name: &str, value: u64) -> io::Result<()> {
    let mut set: BTreeMap<String, u64> = world.load("sysctl")?.unwrap_or_default();
    set.insert(name.to_owned(), value);
    world.store("sysctl", &set)
}

/// Pages of a process that no other has and no file: what it takes of free memory. Those of a stand-in
/// are as real as brood finds them. None of one that has ended.
fn own_pages(process: u32) -> i64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = own.and_then(|text| {
        text.trim()
            .trim_end_matches("kB")
            .trim()
            .parse::<i64>()
            .ok()
    });
    kib.unwrap_or(0) / 4
}

/// A number less or more what the VMs take: for each a share, and of free memory what is its own and
/// its process's.
fn beside_vms(world: &World, name: &str, number: u64) -> io::Result<u64> {
    let Some((_, each)) = EACH_VM.iter().find(|(other, _)| *other == name) else {
        return Ok(number);
    };
    let vms = vm::all(world)?;
    let mut change = 0_i64;
    for (_, record) in &vms {
        let own = match &record.segment {
            Some(segment) => segment.private,
            None => record.resident / 4096,
        };
        change += each;
        if name == "vm.stats.vm.v_free_count" {
            change -= i64::try_from(own).unwrap_or(i64::MAX / 2);
            change -= record.process.map_or(0, own_pages);
        }
    }
    Ok(number.saturating_add_signed(change))
}

/// Whether this kernel has such a variable: its module is loaded, and it is of the world's release.
fn exists(world: &World, name: &str) -> io::Result<bool> {
    let loaded = |module: &str| Ok(world.loaded()?.iter().any(|other| other == module));
    if SINCE_15_1.contains(&name) && world.release()? == Release::Fifteen {
        return Ok(false);
    }
    if name.starts_with("hw.vmm.vnode.") {
        return loaded("vmm_vnode");
    }
    if name.starts_with("hw.vmm.") {
        return loaded("vmm");
    }
    Ok(true)
}

fn value(world: &World, name: &str) -> io::Result<Option<String>> {
    if !exists(world, name)? {
        return Ok(None);
    }
    if world.release()? == Release::FifteenOne
        && let Some((_, text)) = RELEASE_15_1.iter().find(|(other, _)| *other == name)
    {
        return Ok(Some((*text).to_owned()));
    }
    if NUMBERS.iter().any(|(other, ..)| *other == name) {
        let number = number(world, name)?;
        return Ok(Some(beside_vms(world, name, number)?.to_string()));
    }
    if let Some((_, text)) = TEXTS.iter().find(|(other, _)| *other == name) {
        return Ok(Some((*text).to_owned()));
    }
    if name == CREATE || name == DESTROY {
        return Ok(Some(String::new()));
    }
    if !VNODE.contains(&name) {
        return Ok(None);
    }
    let all = vm::all(world)?;
    let segments = || {
        all.iter()
            .filter_map(|(name, vm)| Some((name, vm.segment.as_ref()?)))
    };
    Ok(Some(match name {
        "hw.vmm.vnode.abi" => "1".to_owned(),
        "hw.vmm.vnode.segments" => segments().count().to_string(),
        "hw.vmm.vnode.attached" => number(world, name)?.to_string(),
        "hw.vmm.vnode.file_lost" => segments().filter(|(_, s)| s.lost).count().to_string(),
        "hw.vmm.vnode.pages" => segments().map(|(_, s)| s.pages).sum::<u64>().to_string(),
        "hw.vmm.vnode.private_resident" => {
            segments().map(|(_, s)| s.private).sum::<u64>().to_string()
        }
        "hw.vmm.vnode.list" => segments().fold(String::new(), |mut text, (name, segment)| {
            let _ = writeln!(
                text,
                "{name} segid=0 offset=0 pages={} private_resident={} private_swapped=0 \
                 file_resident=0 file_lost={}",
                segment.pages,
                segment.private,
                u8::from(segment.lost)
            );
            text
        }),
        _ => "0".to_owned(),
    }))
}

/// Runs the command.
pub(crate) fn main(world: &World, arguments: &[String]) -> Result<(), Exit> {
    let wrong = |text: &str| Exit::saying(1, format!("sysctl: {text}\n"));
    let usage = || Exit::saying(1, "usage: sysctl [-aeinNq] name[=value] ...\n");
    let (mut bare, mut quiet, mut ignore, mut names_only, mut equals, mut every) =
        (false, false, false, false, false, false);
    let mut rest = arguments.iter().peekable();
    while let Some(flags) = rest.next_if(|a| a.len() > 1 && a.starts_with('-')) {
        for flag in flags[1..].chars() {
            match flag {
                'n' => bare = true,
                'q' => quiet = true,
                'i' => ignore = true,
                'N' => names_only = true,
                'e' => equals = true,
                'a' => every = true,
                _ => return Err(usage()),
            }
        }
    }
    let mut wanted: Vec<String> = rest.cloned().collect();
    if every {
        let there = |name: &&str| exists(world, name).unwrap_or(false);
        let names = NUMBERS.iter().map(|(name, ..)| *name).filter(there);
        wanted = names.map(str::to_owned).collect();
    } else if wanted.is_empty() {
        return Err(usage());
    }
    let broken = |e: io::Error| Exit::broken("read the sysctl values", &e);
    let mut failed = false;
    for argument in wanted {
        let (name, new) = match argument.split_once('=') {
            Some((name, new)) => (name.to_owned(), Some(new.to_owned())),
            None => (argument, None),
        };
        let Some(old) = value(world, &name).map_err(broken)? else {
            if ignore {
                continue;
            }
            if !quiet {
                eprintln!("sysctl: unknown oid '{name}'");
            }
            failed = true;
            continue;
        };
        let separator = if equals { "=" } else { ": " };
        let label = if bare {
            String::new()
        } else {
            format!("{name}{separator}")
        };
        let Some(new) = new else {
            println!(
                "{}",
                if names_only {
                    name
                } else {
                    format!("{label}{old}")
                }
            );
            continue;
        };
        match set(world, &name, &new) {
            Ok(()) if quiet => {}
            Ok(()) => println!("{label}{old} -> {new}"),
            Err(text) => {
                eprintln!("{}", wrong(&text).message.trim_end());
                failed = true;
            }
        }
    }
    if failed { Err(Exit::silent(1)) } else { Ok(()) }
}

fn set(world: &World, name: &str, new: &str) -> Result<(), String> {
    let refused = |errno: Errno| format!("{name}={new}: {}", errno.text);
    if name == CREATE {
        return Vm::create(world, new).map(drop).map_err(refused);
    }
    if name == DESTROY {
        // vmmdev_lookup_and_destroy(): EINVAL without such a VM.
        let vm = Vm::open(world, new).map_err(|_| refused(EINVAL))?;
        return vm.destroy().map_err(refused);
    }
    if TEXTS.iter().any(|(other, _)| *other == name) {
        return Err(format!("oid '{name}' is read only"));
    }
    let access = NUMBERS
        .iter()
        .find(|(other, ..)| *other == name)
        .map(|(.., access)| *access);
    match access {
        Some(Access::Write) => {}
        Some(Access::Tunable) => {
            return Err(format!("oid '{name}' is a read only tunable"));
        }
        Some(Access::Read) | None => return Err(format!("oid '{name}' is read only")),
    }
    let number = new
        .parse()
        .map_err(|_| format!("invalid integer '{new}'"))?;
    let store = || {
        let _guard = world.lock()?;
        set_number(world, name, number)
    };
    store().map_err(|e| refused((&e).into()))
}
