//! QEMU's command line: the same machine for the guest that is booted and for all its clones, with
//! as little as a Linux needs.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        resource::Resource,
        signal::{SigHandler, Signal, signal},
    },
    unistd::setsid,
};

use super::{
    folder::{CONSOLE, CONSOLE_SOCKET, Folder},
    jail::{self, Walls},
};
use crate::{
    checkpoint::{Accelerator, Network, QemuGuest, manifest::Device},
    engine::{
        Forward, GuestNetwork,
        bounded_log::{self, LOG_MAX},
        file_rules::{self, FileRules},
        guest_disks::{DISK, OwnDisk, ROOT},
        resource_limits::{lower, no_core_and_no_locked_memory},
    },
    units::Bytes,
};

/// Version of the devices below. A change of them makes another state.
pub(super) const DEVICES_VERSION: u32 = 1;

/// Name of the agent's port in the guest.
pub(super) const AGENT_PORT: &str = "brood.agent";

/// Model of both disks.
const DISK_MODEL: &str = "virtio-blk-pci";

/// Most that QEMU keeps of translated code, in MiB; it begins anew when that is full. QEMU's own
/// default of 1 GiB lets each guest come to hold that. With 8 MiB a shell that starts one program
/// after the other has to be translated again for each: 147 ms for a program, and 6 ms with 32 MiB.
/// A guest without work touches the same few pages of it either way.
const TRANSLATIONS_MIB: u32 = 32;

/// Descriptors that a QEMU has at most: some thirty of its own, and one for each connection of a
/// guest with a network of the user's.
const OPEN_FILES: u64 = 1024;

/// Has glibc's allocator keep one arena for all threads (mallopt(3)). Other settings of it end its
/// own adjustment to what QEMU allocates, and cost half a MiB more.
const ALLOCATOR: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// Longest file that a disk may come to be: an overlay has tables besides, of 8 bytes for each
/// 64 KiB, and counts of references.
fn longest(disk: &OwnDisk) -> u64 {
    LOG_MAX + disk.size.0 + disk.size.0 / 1024
}

/// The machine.
pub(super) struct Machine<'a> {
    pub(super) guest: &'a QemuGuest,
    pub(super) vcpus: u32,
    pub(super) memory: Bytes,
    /// The file that is the guest's memory.
    pub(super) file: &'a Path,
    /// Whether the guest writes to that file.
    pub(super) writes_file: bool,
    /// The guest's folder; sockets and logs are in it.
    pub(super) folder: &'a Folder,
    /// What its card is connected to, if it has one.
    pub(super) network: &'a GuestNetwork,
    /// The file with the root file system, if that is on a disk.
    pub(super) root: Option<&'a Path>,
    /// The disk that the guest has to itself, if it has one.
    pub(super) disk: Option<&'a OwnDisk>,
    /// What its jail has beside the rules for files.
    pub(super) walls: Walls,
}

/// What a manifest says of these devices.
pub(super) fn devices(guest: &QemuGuest) -> Vec<Device> {
    let always = [("agent", "virtserialport"), ("console", "isa-serial")];
    let card = guest
        .network
        .has_card()
        .then_some(("network", "virtio-net-pci"));
    let root = guest.root.then_some((ROOT, DISK_MODEL));
    let disk = guest.disk.map(|_| (DISK, DISK_MODEL));
    let all = always.into_iter().chain(card).chain(root).chain(disk);
    all.map(|(name, model)| Device {
        name: name.to_owned(),
        model: model.to_owned(),
    })
    .collect()
}

/// QEMU's network of the user for a guest. The state of a guest with a card has a section of this
/// network, so that a guest that is to reach nothing has one too, which passes nothing on.
fn user_network(network: &GuestNetwork) -> String {
    let mut backend = "user,id=network,ipv6=off".to_owned();
    if network.network == Some(Network::None) {
        backend.push_str(",restrict=on");
    }
    for Forward { host, guest_port } in &network.forwards {
        let (address, port) = (host.ip(), host.port());
        backend.push_str(&format!(",hostfwd=tcp:{address}:{port}-:{guest_port}"));
    }
    backend
}

/// The disk that all guests read. Nobody writes to it, so nobody need lock it, and its pages are in
/// the host's memory once.
fn root_disk(file: &Path) -> [String; 6] {
    let file = value(file);
    [
        "-blockdev".to_owned(),
        format!(
            "driver=file,node-name=root-file,filename={file},read-only=on,auto-read-only=off,locking=off"
        ),
        "-blockdev".to_owned(),
        "driver=raw,node-name=root-disk,file=root-file,read-only=on".to_owned(),
        "-device".to_owned(),
        format!("virtio-blk-pci,id={ROOT},drive=root-disk,serial={ROOT},num-queues=1"),
    ]
}

/// The disk that a guest has to itself. What the guest writes is in the host's page cache before it
/// is told so, where the end of QEMU does not matter, and a flush by the guest is one of the file: a
/// crash of the host takes what the guest has not flushed. Blocks that the guest discards are freed.
fn own_disk(disk: &OwnDisk) -> Vec<String> {
    let mut words = Vec::new();
    let mut node = |options: String| words.extend(["-blockdev".to_owned(), options]);
    let device = if disk.is_device {
        "host_device"
    } else {
        "file"
    };
    let file = value(&disk.path);
    node(format!(
        "driver={device},node-name=disk-file,filename={file},discard=unmap"
    ));
    match &disk.base {
        None => node("driver=raw,node-name=disk,file=disk-file,discard=unmap".to_owned()),
        Some(base) => {
            // Named here, and not looked for where the overlay says.
            let base = value(base);
            node(format!(
                "driver=file,node-name=base-file,filename={base},read-only=on,auto-read-only=off,locking=off"
            ));
            node("driver=raw,node-name=base,file=base-file,read-only=on".to_owned());
            node(
                "driver=qcow2,node-name=disk,file=disk-file,backing=base,discard=unmap".to_owned(),
            );
        }
    }
    words.push("-device".to_owned());
    words.push(format!(
        "virtio-blk-pci,id={DISK},drive=disk,serial={DISK},num-queues=1,write-cache=on"
    ));
    words
}

/// A path as the value of an option: QEMU ends a value at a comma, and takes two for one.
fn value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

impl Machine<'_> {
    /// The command line that both have.
    pub(super) fn command(&self) -> Command {
        let Self {
            guest,
            vcpus,
            memory,
            ..
        } = self;
        let accelerator = match guest.accelerator {
            Accelerator::Kvm => "kvm".to_owned(),
            Accelerator::Tcg => format!("tcg,tb-size={TRANSLATIONS_MIB}"),
        };
        let share = if self.writes_file { "on" } else { "off" };
        // QEMU works in the run folder; a socket's path may have 107 bytes only.
        let socket = |name: &str| format!("{}/{name}", self.folder.name());
        let mut command = self.walls.command(&guest.version);
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-vga", "none", "-net", "none"])
            // What a guest could make of a fault in QEMU: no new process, no other user.
            .arg("-sandbox")
            .arg(format!(
                "on,obsolete=deny,elevateprivileges={},spawn=deny,resourcecontrol=deny",
                self.walls.elevation()
            ))
            .arg("-machine")
            .arg(format!(
                "{},memory-backend=memory,vmport=off,suppress-vmdesc=on",
                guest.machine
            ))
            .args(["-accel", &accelerator])
            .args(["-cpu", &guest.cpu])
            .args(["-smp", &vcpus.to_string()])
            .args(["-m", &format!("{}M", memory.0 >> 20)])
            .arg("-object")
            .arg(format!(
                "memory-backend-file,id=memory,size={},share={share},mem-path={}",
                memory.0,
                value(self.file)
            ))
            .arg("-chardev")
            .arg(format!(
                "socket,id=console,server=on,wait=off,path={},logfile={},logappend=on",
                socket(CONSOLE_SOCKET),
                socket(CONSOLE)
            ))
            .args(["-device", "isa-serial,chardev=console"])
            .args(["-device", "virtio-serial-pci,id=ports,max_ports=2"])
            .arg("-chardev")
            .arg(format!(
                "socket,id=agent,server=on,wait=off,path={}",
                socket("agent")
            ))
            .arg("-device")
            .arg(format!(
                "virtserialport,bus=ports.0,chardev=agent,name={AGENT_PORT}"
            ))
            .arg("-chardev")
            .arg(format!(
                "socket,id=qmp,server=on,wait=off,path={}",
                socket("qmp")
            ))
            .args(["-mon", "chardev=qmp,mode=control"])
            // The state has no section of what it was configured with: the manifest has that.
            .args(["-global", "migration.send-configuration=off"]);
        if guest.network.has_card() {
            // Nothing is booted from it; its agent changes the address.
            command
                .args(["-netdev", &user_network(self.network)])
                .arg("-device")
                .arg("virtio-net-pci,id=card,netdev=network,mac=52:54:00:12:34:56,romfile=");
        }
        if let Some(root) = self.root {
            command.args(root_disk(root));
        }
        if let Some(disk) = self.disk {
            command.args(own_disk(disk));
        }
        command.env(ALLOCATOR.0, ALLOCATOR.1);
        command
    }
}

/// Starts a guest's QEMU in a session of its own, so that it outlives the manager. Its process id is
/// in the guest's folder before it is QEMU; until then it holds `lock`. With it comes the version of
/// Landlock whose rules it has taken, or 0.
pub(super) fn start(
    machine: &Machine<'_>,
    mut command: Command,
    input: Stdio,
    lock: &File,
) -> io::Result<(Child, u32)> {
    let folder = machine.folder;
    // What the guest says on its console, and what QEMU itself has to say: without a limit a guest
    // could fill the host's disk.
    let logs_begin = bounded_log::beginning(machine.disk.map_or(0, longest));
    let log = folder.create_file("log")?;
    // QEMU appends to this one itself.
    for log in [&log, &folder.create_file(CONSOLE)?] {
        if log.metadata()?.len() < logs_begin {
            log.set_len(logs_begin)?;
        }
    }
    let pid = folder.create_file("pid")?;
    // Held by the child, which is a copy of this process, until it becomes QEMU.
    let _lock = lock.try_clone()?;
    let pid_file = pid.as_raw_fd();
    command
        .current_dir(folder.run_dir())
        .stdin(input)
        .stdout(log.try_clone()?)
        .stderr(log);
    // Open until the child has them. A guest that is booted has the file of its bundle by way of
    // this process, which one with rules may not look into.
    let rules = match machine.writes_file {
        true => None,
        false => jail::rules(machine)?,
    };
    let limits = Limits {
        file_max: logs_begin + LOG_MAX,
        most_threads: machine.walls.most_threads(machine.vcpus),
    };
    let own_ipc = machine.walls.own_ipc;
    let rules_file = rules.as_ref().map(FileRules::as_raw_fd);
    // SAFETY: become_guest() calls functions that are async-signal-safe only, and allocates nothing.
    unsafe {
        command.pre_exec(move || become_guest(pid_file, limits, own_ipc, rules_file));
    }
    let landlock = rules.as_ref().map_or(0, FileRules::version);
    Ok((command.spawn()?, landlock))
}

/// Limits that are not the same for all.
#[derive(Clone, Copy)]
struct Limits {
    /// The longest file that it writes.
    file_max: u64,
    /// Most processes and threads of its user.
    most_threads: Option<u64>,
}

/// Between fork and exec: a session of its own, limits, the process id, and the jail.
fn become_guest(
    pid_file: RawFd,
    limits: Limits,
    own_ipc: bool,
    rules: Option<RawFd>,
) -> io::Result<()> {
    // A session, not just a process group: the kernel would send a group that is orphaned when this
    // process ends, and has a stopped member, SIGHUP and SIGCONT.
    setsid()?;
    no_core_and_no_locked_memory()?;
    lower(Resource::RLIMIT_FSIZE, limits.file_max)?;
    lower(Resource::RLIMIT_NOFILE, OPEN_FILES)?;
    if let Some(most) = limits.most_threads {
        lower(Resource::RLIMIT_NPROC, most)?;
    }
    // SAFETY: a signal that is ignored runs no handler.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }?;
    // SAFETY: prctl(2) with these arguments reads no memory. Where Yama restricts who may read a
    // process's memory, a later command of this user still may; without Yama it fails, and need not
    // succeed.
    let _ = unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
    // QEMU asks for huge pages for translated code: 2 MiB at once, of which a guest without work
    // uses half. SAFETY: as above. A kernel without it need not succeed.
    let _ = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    note_pid(pid_file)?;
    if own_ipc {
        // Where it may not, it stays.
        let _ = unshare(CloneFlags::CLONE_NEWIPC);
    }
    nix::sys::prctl::set_no_new_privs()?;
    rules.map_or(Ok(()), file_rules::enter)
}

/// Writes this process's id, with functions that are async-signal-safe only.
pub(super) fn note_pid(pid_file: RawFd) -> io::Result<()> {
    let mut digits = [0_u8; 12];
    let mut rest = &mut digits[..];
    writeln!(rest, "{}", std::process::id())?;
    let left = rest.len();
    let text = &digits[..digits.len() - left];
    // SAFETY: the descriptor is the parent's, and open; the text is of this length.
    let written = unsafe { libc::write(pid_file, text.as_ptr().cast(), text.len()) };
    if usize::try_from(written).is_ok_and(|written| written == text.len()) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
