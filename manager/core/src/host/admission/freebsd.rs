//! Limits of a FreeBSD host, and the settings that raise them.

use super::{
    AdmissionLimit, Demand, OWN_FILES, OWN_PIDS, Unit, host_pid_reserve, memory_reserve,
    own_pid_reserve, remedy, unborn_guests,
};
use crate::host::{facts::HostFacts, freebsd::Freebsd};

/// Open files that a guest's bhyve takes. Measured with bhyve of FreeBSD 14.2: 11 without a network
/// card, 12 with one (docs/freebsd-footprint.md). Each further card or disk takes one more; four
/// are allowed for.
const FILES_PER_GUEST: u64 = 12 + 4;
/// `PID_MAX` of `sys/proc.h`; the kernel lowers `kern.maxproc` to it.
const MOST_PROCESSES: u64 = 99_999;

pub(super) fn limits(facts: &HostFacts, freebsd: &Freebsd, demand: &Demand) -> Vec<AdmissionLimit> {
    let vmm = &freebsd.vmm;
    // Both came after FreeBSD 15.0. A limit that is not there lets everybody in.
    let machines = [
        ("hw.vmm.maxvmms", vmm.max_machines),
        ("RLIMIT_VMM", vmm.user_machines),
    ];
    let machines = machines
        .into_iter()
        .filter_map(|(name, most)| Some((name, most?)));
    let mut limits: Vec<AdmissionLimit> = machines
        .map(|(name, most)| machines_of_user(facts, name, most, vmm.machines, demand))
        .collect();
    limits.extend(processes(freebsd, demand));
    limits.extend(files(facts, demand));
    limits.push(memory(facts, demand));
    limits
}

/// Limit of virtual machines for each user. It counts the machines of other users and of other
/// programs too, since the kernel reports only their number.
fn machines_of_user(
    facts: &HostFacts,
    name: &'static str,
    most: u64,
    existing: u64,
    demand: &Demand,
) -> AdmissionLimit {
    AdmissionLimit::new(name, Unit::Machines)
        .room_beside(most, existing)
        .needs(demand.guests, 1, unborn_guests(facts, demand))
        .remedy(|needed| {
            let limit = needed.saturating_add(existing);
            match name {
                "RLIMIT_VMM" => format!(
                    "raise this user's limit on virtual machines to {limit} in login.conf(5)"
                ),
                // Not in loader.conf: vmm sets it to 4 for each CPU when it is loaded
                // (vmm_handler() of sys/dev/vmm/vmm_dev.c).
                _ => format!("raise it: sysctl {name}={limit}, and the same in /etc/sysctl.conf"),
            }
        })
}

fn processes(freebsd: &Freebsd, demand: &Demand) -> Vec<AdmissionLimit> {
    let processes = &freebsd.processes;
    let limit = |name: &'static str, limit: u64, used: u64, reserve: fn(u64) -> u64| {
        AdmissionLimit::new(name, Unit::Processes)
            .room(limit.saturating_sub(used), reserve(limit))
            .needs(
                demand.guests,
                1,
                OWN_PIDS.saturating_add(demand.outstanding_pids),
            )
            .remedy(|needed| process_remedy(name, needed, used, reserve))
    };
    let mut limits = vec![limit(
        "kern.maxproc",
        processes.max,
        processes.existing,
        host_pid_reserve,
    )];
    if processes.user_limit_binds {
        limits.push(limit(
            "kern.maxprocperuid",
            processes.max_per_user,
            processes.of_user,
            own_pid_reserve,
        ));
        limits.extend(
            processes
                .user_limit
                .map(|most| limit("RLIMIT_NPROC", most, processes.of_user, own_pid_reserve)),
        );
    }
    limits
}

fn process_remedy(name: &str, needed: u64, used: u64, reserve: fn(u64) -> u64) -> String {
    // The reserve grows with the limit, by a tenth of it at most.
    let enough = |limit: u64| {
        u128::from(limit) >= u128::from(needed) + u128::from(used) + u128::from(reserve(limit))
    };
    let limit = remedy::powers_of_two()
        .chain([MOST_PROCESSES])
        .find(|limit| *limit <= MOST_PROCESSES && enough(*limit));
    match (name, limit) {
        (_, None) => {
            format!("no setting is large enough: FreeBSD has at most {MOST_PROCESSES} processes")
        }
        ("kern.maxproc", Some(limit)) => format!(
            "raise it: {name}=\"{limit}\" in /boot/loader.conf, then reboot; the kernel allows \
             one process for each 12 pages of memory"
        ),
        ("RLIMIT_NPROC", Some(limit)) => format!("raise it: ulimit -u {limit}"),
        (_, Some(limit)) => {
            format!("raise it: sysctl {name}={limit}, and the same in /etc/sysctl.conf")
        }
    }
}

fn files(facts: &HostFacts, demand: &Demand) -> [AdmissionLimit; 2] {
    let files = &facts.files;
    let unborn = unborn_guests(facts, demand);
    [
        AdmissionLimit::new("RLIMIT_NOFILE", Unit::Files)
            .room(files.soft.unwrap_or(u64::MAX), 0)
            .needs(demand.guests, 0, OWN_FILES)
            .remedy(own_files_remedy),
        AdmissionLimit::new("kern.maxfiles", Unit::Files)
            .room(files.max.saturating_sub(files.open), 0)
            .needs(
                demand.guests,
                FILES_PER_GUEST,
                OWN_FILES.saturating_add(unborn.saturating_mul(FILES_PER_GUEST)),
            )
            .remedy(|needed| {
                let limit = needed.saturating_add(files.open);
                format!("raise it: sysctl kern.maxfiles={limit}, and the same in /etc/sysctl.conf")
            }),
    ]
}

fn own_files_remedy(needed: u64) -> String {
    let limit = needed.next_power_of_two().max(1024);
    format!("raise it: ulimit -n {limit}, as root if the hard limit is lower")
}

fn memory(facts: &HostFacts, demand: &Demand) -> AdmissionLimit {
    let memory = &facts.memory;
    AdmissionLimit::new("available memory", Unit::Bytes)
        .room(memory.available.0, memory_reserve(memory.total.0))
        .needs(
            demand.guests,
            demand.worst_per_guest().0,
            demand.outstanding.0,
        )
        .promise()
        .remedy(|_| match facts.sharing().why {
            None => remedy::memory(),
            Some(why) => {
                format!("free memory, or have guests share it: {why}, so each takes all its memory")
            }
        })
}
