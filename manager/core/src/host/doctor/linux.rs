//! Checks of `brood doctor` on Linux only: KVM, mappings, overcommit.

use super::{Check, Status};
use crate::checkpoint::manifest::EngineKind;
use crate::host::{
    admission::Unit,
    facts::HostMemory,
    jail::{self, JailFacts},
    kvm::{API_VERSION, KvmFacts},
    linux::{Linux, QemuFacts, RunFolder},
};

/// Memory slots with which a guest's slots can be added on demand in useful sizes.
const GOOD_SLOTS: u64 = 509;
/// Mappings that a process needs however guests are made; the kernel's default is 65,530.
const LEAST_MAPPINGS: u64 = 4096;

/// The engines that guests may run on, and the one that most will. One that is missing does not
/// stand in the way where another can do without it.
pub(super) fn engines(linux: &Linux, vendor: &str) -> (Vec<Check>, EngineKind) {
    let is_wanted = |kind| linux.engines.is_empty() || linux.engines.contains(&kind);
    let mut of_kvm = match is_wanted(EngineKind::Kvm) {
        true => kvm(&linux.kvm, vendor),
        false => Vec::new(),
    };
    let of_qemu = linux.qemu.as_ref().filter(|_| is_wanted(EngineKind::Qemu));
    let mut of_qemu = of_qemu.map_or_else(Vec::new, |facts| qemu(facts).into());
    let works =
        |checks: &[Check]| !checks.is_empty() && checks.iter().all(|c| c.status != Status::Fail);
    let (kvm_works, qemu_works) = (works(&of_kvm), works(&of_qemu));
    let spared = match (kvm_works, qemu_works) {
        (true, false) => &mut of_qemu,
        (false, true) => &mut of_kvm,
        _ => &mut Vec::new(),
    };
    for check in spared.iter_mut().filter(|c| c.status == Status::Fail) {
        check.status = Status::Warn;
    }
    let engine = match of_kvm.is_empty() || (qemu_works && !kvm_works) {
        true => EngineKind::Qemu,
        false => EngineKind::Kvm,
    };
    of_kvm.append(&mut of_qemu);
    of_kvm.push(jail(linux.jail));
    (of_kvm, engine)
}

/// The engine's device and what it can do.
fn kvm(kvm: &KvmFacts, vendor: &str) -> Vec<Check> {
    let found = match (kvm.present, kvm.open_errno) {
        (false, _) => "absent".to_owned(),
        (true, None) if kvm.modules.is_empty() => "opened".to_owned(),
        (true, None) => format!("opened ({})", kvm.modules.join(", ")),
        (true, Some(errno)) => nix::errno::Errno::from_raw(errno).to_string(),
    };
    let device = Check::new("/dev/kvm", found, "readable and writable").unless(
        kvm.present && kvm.open_errno.is_none(),
        Status::Fail,
        open_hint(kvm, vendor),
    );
    let nx_huge_pages = Check::new(
        "kvm.nx_huge_pages",
        format!(
            "{} ({} per guest)",
            kvm.nx_huge_pages.as_deref().unwrap_or("no such parameter"),
            Unit::Pids.show(kvm.pids_per_guest()),
        ),
        "",
    );
    let Some(offered) = kvm.capabilities else {
        return vec![device];
    };
    let yes_no = |yes| if yes { "yes" } else { "no" };
    let newer = "use a newer kernel";
    vec![
        device,
        Check::new("KVM API version", offered.api_version, API_VERSION).unless(
            offered.api_version == API_VERSION,
            Status::Fail,
            "use a kernel from 2.6.22 or later with KVM built in",
        ),
        Check::new(
            "KVM memory slots",
            offered.memory_slots,
            format!("{GOOD_SLOTS} or more"),
        )
        .unless(
            offered.memory_slots >= GOOD_SLOTS,
            Status::Warn,
            "with few slots each guest takes more kernel memory; use a newer kernel",
        ),
        Check::new("KVM immediate exit", yes_no(offered.immediate_exit), "yes").unless(
            offered.immediate_exit,
            Status::Warn,
            newer,
        ),
        Check::new("KVM sync regs", yes_no(offered.sync_regs), "yes").unless(
            offered.sync_regs,
            Status::Warn,
            newer,
        ),
        Check::new("KVM read-only memory", yes_no(offered.readonly_mem), "yes").unless(
            offered.readonly_mem,
            Status::Warn,
            newer,
        ),
        nx_huge_pages,
    ]
}

/// What confines guests' processes beside the virtual machine and a filter of system calls.
fn jail(jail: JailFacts) -> Check {
    let files = jail::files(jail.landlock, jail::NO_FILES);
    let (user, network) = (jail::user(jail.users), jail::network(!jail.namespaces));
    Check::new("guests' jail", format!("{files}, {user}, {network}"), "").unless(
        jail.landlock > 0,
        Status::Warn,
        "the filter of system calls alone keeps a guest that has left its machine from files: use a \
         kernel from 5.13 or later with Landlock, and landlock in its lsm= parameter",
    )
}

/// The program that runs guests of the QEMU engine, and what executes their instructions.
fn qemu(qemu: &QemuFacts) -> [Check; 2] {
    let version = qemu.version.as_deref().unwrap_or("absent");
    let program = Check::new(&*qemu.program, version, "installed").unless(
        qemu.version.is_some(),
        Status::Fail,
        "for guests that are an ordinary Linux: apt-get install qemu-system-x86 (Fedora: dnf install \
         qemu-system-x86-core)",
    );
    let translates = qemu.accelerator != "kvm";
    let why = qemu.why.as_deref().unwrap_or_default();
    let accelerator = Check::new("QEMU accelerator", &qemu.accelerator, "kvm").unless(
        !translates,
        Status::Warn,
        format!(
            "{why}; QEMU translates the guests' instructions: everything works, many times slower, \
             and a guest takes some 20 MiB more"
        ),
    );
    [program, accelerator]
}

fn open_hint(kvm: &KvmFacts, vendor: &str) -> String {
    use nix::errno::Errno;
    let module = match vendor {
        "AuthenticAMD" | "HygonGenuine" => "kvm_amd",
        _ => "kvm_intel",
    };
    match kvm.open_errno.map(Errno::from_raw) {
        Some(Errno::EACCES | Errno::EPERM) => {
            "join the group that may use it, then log in again: usermod -aG kvm \"$USER\""
                .to_owned()
        }
        _ if kvm.present && !kvm.modules.is_empty() => {
            "another hypervisor may hold the processor's virtualization; stop it".to_owned()
        }
        _ => format!(
            "load it: modprobe {module}; if that fails, enable virtualization in the firmware, \
             or nested virtualization if this is a virtual machine"
        ),
    }
}

/// ext4 without a journal looks at each inode that was freed within the last minutes before it
/// gives one out (`recently_deleted` in fs/ext4/ialloc.c), and each guest has a socket.
pub(super) fn run_folder(run: &RunFolder) -> Check {
    let (folder, journal) = (&run.folder, !run.without_journal);
    let found = if journal {
        folder.filesystem.clone()
    } else {
        format!("{} without a journal", folder.filesystem)
    };
    Check::new(
        "filesystem of sockets",
        found,
        "any but ext4 without a journal",
    )
    .unless(
        journal,
        Status::Warn,
        format!(
            "after thousands of guests a restore takes up to 1.6 times as long there; keep \
             sockets in memory: while no guest runs, mount -t tmpfs -o mode=0700 brood-run {}",
            folder.path.display()
        ),
    )
}

pub(super) fn mappings(max_map_count: u64) -> Check {
    Check::new(
        "vm.max_map_count",
        max_map_count,
        format!("{LEAST_MAPPINGS} or more"),
    )
    .unless(
        max_map_count >= LEAST_MAPPINGS,
        Status::Warn,
        "raise it: sysctl -w vm.max_map_count=65530",
    )
}

pub(super) fn overcommit(memory: &HostMemory) -> Check {
    let found = match memory.overcommit_mode {
        0 => "0 (heuristic)".to_owned(),
        1 => "1 (always)".to_owned(),
        2 => "2 (never)".to_owned(),
        other => other.to_string(),
    };
    Check::new("vm.overcommit_memory", found, "0 or 1").unless(
        memory.overcommit_mode != 2,
        Status::Warn,
        "each guest counts with all its memory, shared or not: sysctl -w vm.overcommit_memory=0",
    )
}
