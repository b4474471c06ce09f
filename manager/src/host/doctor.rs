//! `brood doctor`: each fact that decides whether and how much this host can do, and what to change.

use std::fmt::Display;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    facts::HostFacts,
    folder::Folder,
    kvm::{API_VERSION, KvmFacts},
    plan::CostModel,
};
use crate::{
    restore::admission::{self, Demand, Limit, Unit},
    units::Bytes,
};

/// Guests that a host is examined for unless told otherwise.
pub const DEFAULT_GUESTS: u64 = 1000;
/// Memory slots with which a guest's slots can be added on demand in useful sizes.
const GOOD_SLOTS: u64 = 509;
/// Mappings that a process needs however guests are made; the kernel's default is 65,530.
const LEAST_MAPPINGS: u64 = 4096;
/// Memory of a guest where none is named; it matters only where the kernel never overcommits.
const TYPICAL_GUEST: Bytes = Bytes::mib(256);
/// State is small; this leaves room for a suspended guest.
const GOOD_FREE: Bytes = Bytes::gib(1);

/// How a fact bears on restoring the guests that are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Good as it is.
    Ok,
    /// Works, but slower, denser or safer with a change.
    Warn,
    /// Stands in the way.
    Fail,
}

/// One fact, what it ought to be, and how to make it so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Check {
    /// The fact: a sysctl, a limit, a device, a folder.
    pub name: String,
    /// How it bears on the guests that are wanted.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What is needed; empty where the fact is only told.
    pub need: String,
    /// What to do, with the command.
    pub hint: Option<String>,
}

impl Check {
    fn new(name: impl Into<String>, found: impl Display, need: impl Display) -> Self {
        Self {
            name: name.into(),
            status: Status::Ok,
            found: found.to_string(),
            need: need.to_string(),
            hint: None,
        }
    }

    fn unless(self, good: bool, status: Status, hint: impl Into<String>) -> Self {
        if good {
            self
        } else {
            Self {
                status,
                hint: Some(hint.into()),
                ..self
            }
        }
    }
}

/// Examines the host for restoring `guests` guests. Memory is checked for guests that write
/// little; `plan` tells how many fit when they write more.
#[must_use]
pub fn doctor(facts: &HostFacts, guests: u64) -> Vec<Check> {
    let mut checks = vec![
        Check::new("kernel", &facts.kernel, ""),
        Check::new(
            "cpu",
            format!("{} × {}", facts.cpu.cores, facts.cpu.model),
            "",
        ),
    ];
    checks.extend(kvm(facts));
    let cost = CostModel::default();
    let demand = Demand {
        guests,
        overhead: cost.overhead,
        allowance: cost.pristine_private,
        memory_size: TYPICAL_GUEST,
        outstanding: Bytes(0),
        outstanding_pids: 0,
    };
    checks.extend(
        admission::admit(facts, &demand)
            .limits
            .iter()
            .map(|one| limit(one, guests)),
    );
    checks.push(mappings(facts));
    checks.push(overcommit(facts));
    checks.push(swap(facts));
    checks.extend(state_folder(&facts.state_folder));
    checks.extend(facts.checkpoint_folder.as_ref().map(checkpoint_folder));
    checks
}

/// Whether nothing stands in the way of the guests that were asked about.
#[must_use]
pub fn can_mass_restore(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status != Status::Fail)
}

fn kvm(facts: &HostFacts) -> Vec<Check> {
    let kvm = &facts.kvm;
    let found = match (kvm.present, kvm.open_errno) {
        (false, _) => "absent".to_owned(),
        (true, None) if kvm.modules.is_empty() => "opened".to_owned(),
        (true, None) => format!("opened ({})", kvm.modules.join(", ")),
        (true, Some(errno)) => nix::errno::Errno::from_raw(errno).to_string(),
    };
    let device = Check::new("/dev/kvm", found, "readable and writable").unless(
        kvm.present && kvm.open_errno.is_none(),
        Status::Fail,
        open_hint(kvm, &facts.cpu.vendor),
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

/// A limit as admission sees it. One that lets in fewer guests than wanted stands in the way.
fn limit(limit: &Limit, guests: u64) -> Check {
    let show = |amount| limit.unit.show(amount);
    let found = match limit.reserve {
        0 if limit.available == u64::MAX => "unlimited".to_owned(),
        0 => format!("{} left", show(limit.available)),
        reserve if limit.unit == Unit::Bytes => {
            format!(
                "{} left ({} reserved)",
                show(limit.available),
                show(reserve)
            )
        }
        reserve => format!("{} left ({reserve} reserved)", show(limit.available)),
    };
    let whom = if limit.per_guest == 0 {
        "brood".to_owned()
    } else {
        format!("{guests} guests")
    };
    let fewer = match limit.max_guests() {
        0 => String::new(),
        n => format!("; as it is, {n} guests fit"),
    };
    let hint = format!("{}{fewer}", limit.hint.as_deref().unwrap_or_default());
    Check::new(
        &limit.name,
        found,
        format!("{} for {whom}", show(limit.needed)),
    )
    .unless(limit.fits, Status::Fail, hint)
}

fn mappings(facts: &HostFacts) -> Check {
    Check::new(
        "vm.max_map_count",
        facts.max_map_count,
        format!("{LEAST_MAPPINGS} or more"),
    )
    .unless(
        facts.max_map_count >= LEAST_MAPPINGS,
        Status::Warn,
        "raise it: sysctl -w vm.max_map_count=65530",
    )
}

fn overcommit(facts: &HostFacts) -> Check {
    let found = match facts.memory.overcommit_mode {
        0 => "0 (heuristic)".to_owned(),
        1 => "1 (always)".to_owned(),
        2 => "2 (never)".to_owned(),
        other => other.to_string(),
    };
    Check::new("vm.overcommit_memory", found, "0 or 1").unless(
        facts.memory.overcommit_mode != 2,
        Status::Warn,
        "each guest counts with all its memory, shared or not: sysctl -w vm.overcommit_memory=0",
    )
}

fn swap(facts: &HostFacts) -> Check {
    let found = match facts.memory.swap_total {
        Bytes(0) => "none".to_owned(),
        total => format!("{} of {total} free", facts.memory.swap_free),
    };
    Check::new("swap", found, "")
}

fn state_folder(folder: &Folder) -> [Check; 2] {
    let path = folder.path.display();
    let writable = match (folder.writable, folder.exists) {
        (true, true) => format!("{path}: writable"),
        (true, false) => format!("{path}: can be made"),
        (false, _) => format!("{path}: not writable"),
    };
    [
        Check::new("state folder", writable, "writable").unless(
            folder.writable,
            Status::Fail,
            "set BROOD_STATE_DIR to a folder that this user may write",
        ),
        Check::new(
            "state filesystem",
            format!("{}, {} free", folder.filesystem, folder.free),
            format!("local, on disk, {GOOD_FREE} free"),
        )
        .unless(
            folder.free >= GOOD_FREE,
            Status::Warn,
            "free space there, or set BROOD_STATE_DIR to a folder with more",
        )
        .unless(
            !folder.is_remote(),
            Status::Warn,
            "file locks may not hold over a network; set BROOD_STATE_DIR to a local folder",
        )
        .unless(
            !folder.is_memory(),
            Status::Warn,
            "state there takes memory and is lost at restart; set BROOD_STATE_DIR to a folder on disk",
        ),
    ]
}

fn checkpoint_folder(folder: &Folder) -> Check {
    let options = folder.options.join(",");
    Check::new(
        "checkpoint filesystem",
        format!("{} ({options}), {} free", folder.filesystem, folder.free),
        "local",
    )
    .unless(
        !folder.is_remote(),
        Status::Warn,
        "a guest's page fault waits for the network; copy the checkpoint to a local disk",
    )
    .unless(
        folder.exists,
        Status::Fail,
        format!("there is no folder {}", folder.path.display()),
    )
}
