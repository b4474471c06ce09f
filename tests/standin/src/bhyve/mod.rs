//! bhyve(8) of FreeBSD 15.0 with the patches of `kernel-patches/15.0`: what it does to processes,
//! files and the VM, in its own order, with its own words (usr.sbin/bhyve/bhyverun.c, main()).

mod checkpoint;
mod config;
mod console;
mod devices;
mod files;
mod framed;
mod guest;
mod machine;
mod memory;
mod options;
mod suspend;
mod tables;
mod title;

use std::{fs::File, io};

use crate::{
    errno::{EACCES, EEXIST, EINVAL, ENODEV, ENOENT, Errno},
    exit::{EX_OSERR, Exit},
    fault, socket, sysctl,
    vm::{Segment, Vm},
    world::{STOCK, World},
};

use checkpoint::Checkpoint;
use config::Config;
use console::Output;
pub(crate) use console::flush;
use framed::FramedAgent;
use guest::Guest;
use machine::Machine;
use memory::{Memory, PAGE};
pub(crate) use tables::iasl;

const PROGRAM: &str = "bhyve";

/// Boot ROMs: at most 16 MiB, of whole pages (bootrom.c, bootrom_loadrom()).
const ROM_MAX: u64 = 16 * 1024 * 1024;

/// Reads the command line and the configuration, and goes no further.
pub(crate) fn check(arguments: &[String]) -> Result<(), Exit> {
    let options = options::parse(arguments)?;
    let config = options.config;
    if options.name.is_none() && config.get("name").is_none() {
        return Err(options::usage(1));
    }
    options::vcpus(&config)?;
    options::memory_size(&config.get("memory.size").unwrap_or_default())?;
    for flag in [
        "memory.wired",
        "memory.guest_in_core",
        "snapshot.vnode_restore",
    ] {
        config.bool_or(flag, false)?;
    }
    devices::models(&config, Output::default()).map(drop)
}

/// Runs the command. Returns only to fail.
pub(crate) fn main(world: &World, arguments: &[String]) -> Result<(), Exit> {
    let options = options::parse(arguments)?;
    let mut config = options.config;
    fault::pass(world, fault::RESTORE_OPTIONS)?;

    let checkpoint = match &options.restore {
        Some(path) => {
            fault::pass(world, fault::RESTORE_LOAD)?;
            let checkpoint = Checkpoint::open(path)?;
            if let Some(name) = checkpoint.vmname() {
                config.set("name", &name)?;
            }
            Some(checkpoint)
        }
        None => None,
    };
    if let Some(name) = &options.name {
        config.set("name", name)?;
    }
    let name = config.get("name").ok_or_else(|| options::usage(1))?;
    if config.bool_or("config.dump", false)? {
        print!("{}", config.dump());
        return Err(Exit::silent(1));
    }
    let mut ncpus = u64::from(options::vcpus(&config)?);
    let size = config.get("memory.size").unwrap_or_default();
    let mut memsize = options::memory_size(&size)?;

    fault::pass(world, fault::RESTORE_CREATE)?;
    let vm = open(world, &config, &name)?;
    fault::pass(world, fault::RESTORE_CREATED)?;
    // From here on, whatever fails leaves the VM behind.
    if let Some(checkpoint) = &checkpoint {
        (ncpus, memsize) = (checkpoint.ncpus(), checkpoint.memsize());
    }
    if ncpus < 1 {
        return Err(Exit::saying(1, format!("Invalid guest vCPUs ({ncpus})\n")));
    }
    let most = sysctl::number(world, "hw.vmm.maxcpu").map_err(|e| Exit::broken("read", &e))?;
    if ncpus > most {
        let text = format!("{ncpus} vCPUs requested but only {most} available\n");
        return Err(Exit::saying(4, text));
    }
    let ncpus = u32::try_from(ncpus).unwrap_or(u32::MAX);
    let wired = config.bool_or("memory.wired", false)?;
    config.bool_or("memory.guest_in_core", false)?;

    fault::pass(world, fault::RESTORE_MEMORY)?;
    let mut output = Output::default();
    let shared = match &checkpoint {
        Some(checkpoint) => attach(world, &config, &vm, checkpoint, (memsize, wired), output)?,
        None => None,
    };
    vm.change(|record| {
        record.ncpus = ncpus;
        // A segment that is there already must be as long (libvmmapi, vm_alloc_memseg()).
        if memsize == 0 || record.memory.is_some_and(|length| length != memsize) {
            return Err(EINVAL);
        }
        record.memory = Some(memsize);
        Ok(())
    })
    .map_err(|errno| Exit::saying(4, format!("Unable to setup memory ({})\n", errno.number)))?;
    load_rom(world, &config, output)?;

    fault::pass(world, fault::RESTORE_DEVICES)?;
    let devices = devices::init(world, &config, &mut output)?;
    vm.change(|record| {
        record.running = true;
        Ok(())
    })
    .map_err(|errno| Exit::err(PROGRAM, EX_OSERR, "could not activate CPU 0", errno))?;
    fault::pass(world, fault::RESTORE_VCPUS)?;

    let power_button = checkpoint.is_none();
    let memory = match checkpoint {
        Some(checkpoint) => restore(world, &checkpoint, shared, &devices.list, memsize, output)?,
        None => Memory::zero(memsize),
    };

    tables::build(world, &config, !power_button)?;
    title::set(&name).map_err(|e| Exit::broken("set the title", &e))?;
    fault::pass(world, fault::RESTORE_SOCKET)?;
    let listener = socket::bind(world, &name).map_err(|e| {
        let text = Errno::from(&e).text;
        let words = format!("Failed to bind socket \"/var/run/bhyve/{name}\": {text}\n");
        let last = Exit::errx(PROGRAM, EX_OSERR, "Failed to start checkpoint thread");
        Exit::saying(EX_OSERR, output.line(&words) + &last.message)
    })?;

    fault::pass(world, fault::RESTORE_RUN)?;
    let random = |e: io::Error| Exit::broken("start the guest", &e);
    let disk = devices.written().map_err(random)?;
    let mut guest = Guest::new(&name, memory, disk).map_err(random)?;
    if power_button {
        guest.boot().map_err(random)?;
    }
    let agents = devices.consoles.iter().map(|_| FramedAgent::default());
    let machine = Machine {
        agents: agents.collect(),
        world: world.clone(),
        vm,
        output,
        devices,
        guest,
        ncpus,
        power_button,
    };
    machine.books();
    machine.run(&listener)
}

/// do_open(): with a boot ROM the VM is created, or reset if it exists; without, somebody must have
/// created it.
fn open(world: &World, config: &Config, name: &str) -> Result<Vm, Exit> {
    let rom = config.get("bootrom").is_some();
    let failed = |errno: Errno| Exit::err(PROGRAM, 4, "vm_openf", errno);
    match Vm::open(world, name) {
        Ok(vm) if rom => vm.reinit().map(|()| vm).map_err(failed),
        Ok(vm) => Ok(vm),
        Err(ENOENT) if rom => Vm::create(world, name).map_err(failed),
        Err(ENOENT) => Err(Exit::errx(PROGRAM, 4, "no bootrom was configured")),
        Err(errno) => Err(failed(errno)),
    }
}

/// init_bootrom().
fn load_rom(world: &World, config: &Config, output: Output) -> Result<(), Exit> {
    let Some(path) = config.get("bootrom") else {
        return Ok(());
    };
    let failed = |text: String| {
        let last = format!("Device emulation initialization error: {}", ENOENT.text);
        Exit::saying(4, output.line(&text) + &output.line(&last))
    };
    let rom = File::open(world.host(&path)).and_then(|file| file.metadata());
    let rom = rom.map_err(|e| {
        failed(format!(
            "Error opening bootrom \"{path}\": {}",
            Errno::from(&e).text
        ))
    })?;
    let length = rom.len();
    if length == 0 || length > ROM_MAX || !length.is_multiple_of(PAGE) {
        return Err(failed(format!("Invalid bootrom size {length}")));
    }
    Ok(())
}

/// vnode_restore_attach() of kernel-patches/common/vnode-restore.patch: the checkpoint file as
/// guest memory. `None`, and a line on standard error, when it has to be read instead.
fn attach(
    world: &World,
    config: &Config,
    vm: &Vm,
    checkpoint: &Checkpoint,
    (memsize, wired): (u64, bool),
    output: Output,
) -> Result<Option<File>, Exit> {
    let stock = std::env::var_os(STOCK).is_some();
    if stock || !config.bool_or("snapshot.vnode_restore", false)? {
        return Ok(None);
    }
    let fall_back = |why: &str| {
        output.eprint(&format!(
            "vnode restore: {why}; reading the checkpoint instead"
        ));
        Ok(None)
    };
    if wired {
        return fall_back("guest memory is wired (-S, memory.wired)");
    }
    if memsize != checkpoint.length {
        return fall_back("the checkpoint's size is not the guest's");
    }
    let loaded = world.load_module("vmm_vnode");
    if !loaded.map_err(|e| Exit::broken("load a module", &e))? {
        return fall_back("vmm_vnode is not loaded");
    }
    let refused = |errno: Errno| {
        fall_back(&format!(
            "the checkpoint cannot back guest memory: {}",
            errno.text
        ))
    };
    let system = |e: io::Error| Exit::broken("attach the checkpoint", &e);
    let meta = checkpoint.memory.metadata().map_err(system)?;
    if !meta.is_file() {
        return refused(ENODEV);
    }
    if !checkpoint.length.is_multiple_of(PAGE) {
        return refused(EINVAL);
    }
    // Neither its owner, nor the super-user, nor executable by anybody.
    let owner = std::os::unix::fs::MetadataExt::uid(&meta);
    let user = nix::unistd::geteuid();
    let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions());
    if owner != user.as_raw() && !user.is_root() && mode & 0o111 == 0 {
        return refused(EACCES);
    }
    let segment = Segment::of(&checkpoint.memory, checkpoint.length / PAGE).map_err(system)?;
    let attached = vm.change(|record| {
        if record.memory.is_some() || record.segment.is_some() {
            return Err(EEXIST);
        }
        record.segment = Some(segment);
        record.memory = Some(memsize);
        let attached = sysctl::number(world, "hw.vmm.vnode.attached").unwrap_or_default();
        let counted = sysctl::set_number(world, "hw.vmm.vnode.attached", attached + 1);
        counted.map_err(Errno::from)
    });
    if let Err(errno) = attached {
        return refused(errno);
    }
    fault::pass(world, fault::RESTORE_ATTACHED)?;
    checkpoint.memory.try_clone().map(Some).map_err(system)
}

/// The part of main() between the lines that bhyve prints on standard output.
fn restore(
    world: &World,
    checkpoint: &Checkpoint,
    shared: Option<File>,
    devices: &[devices::Device],
    memsize: u64,
    output: Output,
) -> Result<Memory, Exit> {
    output.print("Pausing pci devs...");
    output.print("Restoring vm mem...");
    fault::pass(world, fault::RESTORE_CONTENTS)?;
    let memory = match shared {
        Some(file) => Memory::shared(file, memsize),
        None => {
            let failed = |first: String| {
                Exit::saying(1, first + &output.line("Failed to restore VM memory."))
            };
            if memsize != checkpoint.length {
                return Err(failed(format!(
                    "vm_snapshot_mem: mem size mismatch: {memsize} vs {}\r\n",
                    checkpoint.length
                )));
            }
            let memory = Memory::copy(&checkpoint.memory, memsize);
            console::print("\r\n");
            memory.map_err(|e| {
                // bhyve has one message for reading and writing.
                failed(format!(
                    "Failed to write in file: {}\n",
                    Errno::from(&e).text
                ))
            })?
        }
    };
    output.print("Restoring pci devs...");
    fault::pass(world, fault::RESTORE_DEVICE_STATE)?;
    checkpoint.restore_devices(devices, output)?;
    output.print("Restoring kernel structs...");
    fault::pass(world, fault::RESTORE_KERN)?;
    checkpoint.restore_kern()?;
    output.print("Resuming pci devs...");
    Ok(memory)
}
