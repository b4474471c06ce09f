//! Checks of `brood doctor`: each fact that decides whether this host can restore guests, and how
//! many, with the change that helps.

mod freebsd;
mod linux;

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use super::{
    facts::{HostFacts, HostMemory, System},
    folder::{DiskClones, Folder},
    plan::CostModel,
};
use crate::{
    checkpoint::manifest::EngineKind,
    host::admission::{self, AdmissionLimit, Demand, Unit},
    other_writer::OtherWriter,
    units::Bytes,
};

/// Guests that a host is examined for unless told otherwise.
pub const DEFAULT_GUESTS: u64 = 1000;
/// Memory of a guest where none is named. It matters where the kernel never overcommits, and where
/// guests share nothing.
const TYPICAL_GUEST: Bytes = Bytes::mib(256);
/// State is small; this leaves room for a suspended guest.
const GOOD_FREE: Bytes = Bytes::gib(1);

/// How a fact bears on restoring the guests that are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Good as it is.
    Ok,
    /// Works, but slower, denser or safer with a change.
    Warn,
    /// Stands in the way.
    Fail,
}

/// One fact, its required value, and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The fact: a sysctl, a limit, a device, a folder.
    pub name: String,
    /// How it bears on the guests that are wanted.
    pub status: Status,
    /// The value found.
    pub found: String,
    /// The required value; empty for a fact without one.
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
    let cost = match &facts.system {
        System::Linux(linux) => {
            let (of_engines, engine) = linux::engines(linux, &facts.cpu.vendor);
            checks.extend(of_engines);
            CostModel::built_in(engine)
        }
        System::Freebsd(freebsd) => {
            checks.extend(freebsd::vmm(freebsd));
            if let Some(tools) = &freebsd.tools {
                checks.extend(freebsd::tools(tools));
                checks.extend(freebsd::tables(freebsd, tools));
            }
            checks.push(freebsd::racct(freebsd.racct));
            CostModel::built_in(EngineKind::Bhyve)
        }
    };
    let demand = Demand {
        guests,
        overhead: cost.overhead,
        private_limit: cost.pristine_private,
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
    match &facts.system {
        System::Linux(linux) => checks.extend([
            linux::mappings(linux.max_map_count),
            linux::overcommit(&facts.memory),
        ]),
        System::Freebsd(_) => {}
    }
    checks.push(match &facts.system {
        System::Linux(_) => swap(&facts.memory),
        System::Freebsd(_) => freebsd::swap(swap(&facts.memory)),
    });
    checks.extend(state_folder(&facts.state_folder));
    checks.push(disk_clones("state disk clones", facts, &facts.state_folder));
    if let System::Linux(linux) = &facts.system {
        checks.extend(linux.run.as_ref().map(linux::run_folder));
    }
    if let Some(folder) = &facts.checkpoint_folder {
        checks.push(disk_clones("checkpoint disk clones", facts, folder));
        let check = checkpoint_folder(folder);
        match &facts.system {
            System::Linux(_) => checks.push(check),
            System::Freebsd(system) => {
                let tools = system.tools.as_ref();
                checks.push(freebsd::checkpoint_folder(check, folder, tools));
                checks.extend(freebsd::rollback(folder));
                checks.extend(
                    tools
                        .and_then(|tools| tools.holes.as_ref())
                        .map(freebsd::holes),
                );
            }
        }
    }
    checks
}

/// Whether nothing stands in the way of the guests that were asked about.
#[must_use]
pub fn can_mass_restore(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status != Status::Fail)
}

/// A limit as admission sees it. A limit for fewer guests than wanted is a failed check.
fn limit(limit: &AdmissionLimit, guests: u64) -> Check {
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

fn swap(memory: &HostMemory) -> Check {
    let found = match (memory.swap_total, memory.swap_free) {
        (Bytes(0), _) => "none".to_owned(),
        (total, Some(free)) => format!("{free} of {total} free"),
        (total, None) => total.to_string(),
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
        Check::new("state folder", writable, "writable")
            .unless(
                !folder.open_to_others,
                Status::Warn,
                format!("others may look into it, though at none of brood's files: chmod 700 {path}"),
            )
            .unless(
                folder.changed_by.is_none(),
                severity(folder),
                by_others(folder, "brood's files"),
            )
            .unless(
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

/// Nothing is restored from what everybody may change.
fn severity(folder: &Folder) -> Status {
    match folder.changed_by {
        Some(OtherWriter::Everybody) => Status::Fail,
        _ => Status::Warn,
    }
}

/// That others may change what lies in a folder, and what to do.
fn by_others(folder: &Folder, what: &str) -> String {
    let (path, change) = (
        folder.path.display(),
        match folder.changed_by {
            Some(OtherWriter::User(_)) => "chown $(id -u)",
            _ => "chmod go-w",
        },
    );
    let who = folder.changed_by.map(|by| by.to_string());
    let who = who.unwrap_or_default();
    format!("{who} may change {what}: {change} {path}")
}

/// How disks of guests in a folder are cloned. Only guests with disks need that.
fn disk_clones(name: &str, facts: &HostFacts, folder: &Folder) -> Check {
    let found = match (folder.clones, &facts.system) {
        (DiskClones::Reflink, _) => "files that share blocks (reflink)",
        (DiskClones::Zfs, _) => "clones of ZFS snapshots",
        (DiskClones::Overlay, System::Linux(_)) => "qcow2 overlays only",
        (DiskClones::Overlay, System::Freebsd(_)) => "none: disks are copied",
    };
    Check::new(name, found, "")
}

fn checkpoint_folder(folder: &Folder) -> Check {
    let options = match folder.options.join(",") {
        none if none.is_empty() => none,
        options => format!(" ({options})"),
    };
    Check::new(
        "checkpoint filesystem",
        format!("{}{options}, {} free", folder.filesystem, folder.free),
        "local",
    )
    .unless(
        !folder.is_remote(),
        Status::Warn,
        "a guest's page fault waits for the network; copy the checkpoint to a local disk",
    )
    .unless(
        folder.changed_by.is_none(),
        severity(folder),
        by_others(folder, "checkpoints, and with them all guests"),
    )
    .unless(
        folder.exists,
        Status::Fail,
        format!("there is no folder {}", folder.path.display()),
    )
}
