//! One guest: its machine, its devices and a session with its agent.

use std::{
    error::Error,
    fs::{self, File},
    io::{self, Read},
    os::unix::{fs::FileExt, net::UnixStream},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use brood_core::agent::{
    Agent, Channel,
    protocol::{Ended, Exec, OsBytes},
};
use brood_machine::{
    acpi,
    boot::{self, Kernel},
    bus::{Bus, Devices},
    channel,
    machine::Machine,
    memory::{self, Backing, Memory},
    state::MachineState,
    threads::Running,
    vcpu::Vcpu,
    virtio::{
        block::{Block, FileDisk},
        console::Console,
        rng::Rng,
    },
};
use kvm_ioctls::{Kvm, VmFd};
use nix::sys::eventfd::EventFd;
use serde_json::{Value, json};

/// How long a kernel may take to come up, in an emulated host too.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// How long an agent that runs may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(180);
/// Size of the guest's disk.
const DISK: u64 = 64 << 20;

type Failure = Box<dyn Error>;

/// Files that a guest is booted from.
pub(crate) struct Image<'a> {
    pub(crate) kernel: &'a str,
    pub(crate) initrd: &'a str,
}

/// A guest that runs, and a session with its agent.
struct Guest {
    kvm: Kvm,
    vm: Arc<VmFd>,
    bus: Arc<Bus>,
    running: Running,
    agent: Agent,
}

/// A machine with its devices: a console for the agent, entropy and a disk.
fn machine(
    kvm: &Kvm,
    ram: Memory,
    vcpus: u8,
    disk: File,
    log: File,
) -> Result<(Machine, Arc<Bus>, Arc<EventFd>), Failure> {
    let machine = Machine::new(kvm, ram, vcpus)?;
    let wake = Arc::new(EventFd::new()?);
    let waker = Arc::clone(&wake);
    let told = move || {
        // It is full: then it wakes as well.
        let _ = waker.write(1);
    };
    let devices = Devices {
        serial: Box::new(log),
        console: Console::new("brood.agent", Box::new(told)),
        rng: Rng::new(Box::new(File::open("/dev/urandom")?)),
        disks: vec![Block::new(
            Box::new(FileDisk::new(disk)?),
            false,
            "brood-disk",
        )],
    };
    let bus = Arc::new(Bus::new(&machine, devices)?);
    Ok((machine, bus, wake))
}

impl Guest {
    /// Runs a machine, and waits for its agent.
    fn run(
        kvm: Kvm,
        machine: Machine,
        bus: Arc<Bus>,
        wake: Arc<EventFd>,
        limit: Duration,
    ) -> Result<Self, Failure> {
        let (ours, theirs) = UnixStream::pair()?;
        let carried = Arc::clone(&bus);
        thread::Builder::new()
            .name("channel".to_owned())
            .spawn(move || channel::carry(&carried, &theirs, &wake))?;
        let vm = Arc::clone(&machine.vm);
        let running = Running::start(machine.vcpus, &bus)?;
        let agent = Agent::over(Channel::over(ours)?, limit)?.with_limit(ANSWER_LIMIT);
        Ok(Self {
            kvm,
            vm,
            bus,
            running,
            agent,
        })
    }

    /// What a shell command says, which must work.
    fn sh(&self, script: &str) -> Result<String, Failure> {
        let ran = self.agent.run(shell(script), 1 << 20)?;
        if ran.ended != Ended::Code(0) {
            let said = String::from_utf8_lossy(&ran.error).into_owned();
            return Err(format!("{script}: {:?}: {said}", ran.ended).into());
        }
        Ok(String::from_utf8(ran.output)?.trim().to_owned())
    }

    fn nonce(&self) -> Result<String, Failure> {
        let nonce = self.agent.ready()?.nonce;
        Ok(format!("{:032x}", u128::from_be_bytes(nonce)))
    }

    /// Has the guest turn itself off; how its processors stopped.
    fn power_off(self) -> Result<String, Failure> {
        // Nobody will say how it ended.
        let _program = self.agent.exec(shell("poweroff -f"))?;
        let (_, stop) = self.running.wait(ANSWER_LIMIT).ok_or("it does not stop")?;
        drop(self.running.stop());
        Ok(format!("{stop:?}"))
    }
}

fn shell(script: &str) -> Exec {
    let words = ["/bin/sh", "-c", script];
    Exec {
        argv: words.iter().map(|word| OsBytes::from(*word)).collect(),
        ..Exec::default()
    }
}

fn say(what: &str, value: &Value) {
    println!("{what} {value}");
}

/// Boots a guest, has it do a few things, and writes a checkpoint of it.
pub(crate) fn boot(image: &Image<'_>, size: u64, vcpus: u8, folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder)?;
    let create = |name: &str, size: u64| -> io::Result<File> {
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true);
        let file = file.open(folder.join(name))?;
        file.set_len(size)?;
        Ok(file)
    };
    let kvm = Kvm::new()?;
    let ram = memory::map(size, Backing::Shared(&create("memory", size)?))?;
    let (disk, log) = (create("disk", DISK)?, create("console", 0)?);
    let (machine, bus, wake) = machine(&kvm, ram.clone(), vcpus, disk, log)?;
    let rsdp = acpi::write(&ram, vcpus, bus.virtio_count())?;
    let kernel = Kernel {
        image: &File::open(image.kernel)?,
        initrd: Some(&File::open(image.initrd)?),
        command_line: "console=ttyS0 rdinit=/sbin/init panic=-1 nowatchdog init_on_alloc=0 init_on_free=0",
    };
    let entry = boot::load(&ram, kernel, rsdp)?;
    machine.vcpus[0].begin_at(entry)?;
    let guest = Guest::run(kvm, machine, bus, wake, BOOT_LIMIT);
    let guest = guest.inspect_err(|_| show_console(folder))?;
    let disk = "dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\\0' D >/tmp/d; \
                dd if=/tmp/d of=/dev/vda bs=64k seek=16 conv=fsync 2>/dev/null; \
                dd if=/dev/vda bs=64k skip=16 count=16 2>/dev/null | cmp - /tmp/d && echo same";
    say(
        "booted",
        &json!({
            "kernel": guest.sh("uname -r")?,
            "processors": guest.sh("grep -c ^processor /proc/cpuinfo")?,
            "memory_kib": guest.sh("awk '/MemTotal/{print $2}' /proc/meminfo")?,
            "clock": guest.sh("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")?,
            "disk": guest.sh(disk)?,
            "entropy": guest.sh("head -c 16 /dev/hwrng | wc -c")?,
            "nonce": guest.nonce()?,
        }),
    );
    guest.sh("echo kept >/run/kept; sync; echo 3 >/proc/sys/vm/drop_caches")?;
    suspend(guest, folder)
}

/// Stops a guest and writes its state; its memory is in its file already.
fn suspend(guest: Guest, folder: &Path) -> Result<(), Failure> {
    let vcpus: Vec<Vcpu> = guest.running.stop();
    let state = MachineState::capture(&guest.kvm, &guest.vm, &vcpus, &guest.bus)?;
    let bytes = serde_json::to_vec(&state)?;
    fs::write(folder.join("state"), &bytes)?;
    say("suspended", &json!({ "state_bytes": bytes.len() }));
    Ok(())
}

/// Restores a clone, has it answer, and keeps it until the input ends.
pub(crate) fn clone(folder: &Path) -> Result<(), Failure> {
    let begin = Instant::now();
    let state: MachineState = serde_json::from_slice(&fs::read(folder.join("state"))?)?;
    let kvm = Kvm::new()?;
    let file = File::open(folder.join("memory"))?;
    let ram = memory::map(file.metadata()?.len(), Backing::Private(&file))?;
    // A disk of its own, as large as the checkpoint's.
    let disk = tempfile::tempfile()?;
    copy_sparse(&File::open(folder.join("disk"))?, &disk)?;
    let log = File::options().append(true).open("/dev/null")?;
    let vcpus = u8::try_from(state.vcpus())?;
    let (machine, bus, wake) = machine(&kvm, ram, vcpus, disk, log)?;
    state.apply(&machine, &bus)?;
    let guest = Guest::run(kvm, machine, bus, wake, ANSWER_LIMIT)?;
    let (answered, memory) = (begin.elapsed(), own_memory()?);
    let kept = guest.sh("cat /run/kept")?;
    let own = guest.sh("echo $$ $(cat /proc/uptime) >/run/kept; sleep 0.2; cat /proc/uptime")?;
    say(
        "cloned",
        &json!({
            "nonce": guest.nonce()?,
            "kept": kept,
            "uptime": own,
            "disk": guest.sh("dd if=/dev/vda bs=64k skip=16 count=16 2>/dev/null | tr -d D | wc -c")?,
            "processors": guest.sh("grep -c ^processor /proc/cpuinfo")?,
            "ms": u64::try_from(answered.as_millis())?,
            "answered_kib": memory,
            "later_kib": own_memory()?,
        }),
    );
    say("balloon", &balloon(&guest)?);
    let _ = io::stdin().read_to_end(&mut Vec::new());
    say("off", &json!({ "stop": guest.power_off()? }));
    Ok(())
}

/// Has the guest use memory and free it; this process's private memory before, with and after.
fn balloon(guest: &Guest) -> Result<Value, Failure> {
    const BIG: u64 = 48 << 10;
    let before = own_memory()?;
    guest.sh("dd if=/dev/zero of=/run/big bs=1M count=48 2>/dev/null")?;
    let with = own_memory()?;
    guest.sh("rm /run/big")?;
    // The guest reports what is free two seconds later.
    let begin = Instant::now();
    let mut after = own_memory()?;
    while after > before + BIG / 4 && begin.elapsed() < ANSWER_LIMIT {
        thread::sleep(Duration::from_millis(100));
        after = own_memory()?;
    }
    Ok(json!({ "before_kib": before, "with_kib": with, "after_kib": after }))
}

/// Copies a file but for its blocks of zeroes.
fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut block = vec![0; 64 << 10];
    for at in (0..size).step_by(block.len()) {
        from.read_exact_at(&mut block, at)?;
        if block.iter().any(|byte| *byte != 0) {
            to.write_all_at(&block, at)?;
        }
    }
    Ok(())
}

/// This process's private memory, in KiB (proc_pid_smaps_rollup).
fn own_memory() -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find(|line| line.starts_with("Private_Dirty:"));
    let word = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(word.ok_or("no such line")?.parse()?)
}

fn show_console(folder: &Path) {
    if let Ok(text) = fs::read(folder.join("console")) {
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(60)..] {
            eprintln!("{line}");
        }
    }
}
