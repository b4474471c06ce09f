//! Admission on fake hosts, and against an oracle that plays out what guests may do.

use proptest::prelude::*;

use super::*;
use crate::host::{
    cgroup::GroupLimit,
    examples::{freebsd, healthy},
};

/// Guests of 256 MiB that may write 1 MiB each and cost half a MiB beside.
fn demand(guests: u64) -> Demand {
    Demand {
        guests,
        overhead: Bytes::kib(512),
        private_limit: Bytes::mib(1),
        memory_size: Bytes::mib(256),
        outstanding: Bytes(0),
        outstanding_pids: 0,
    }
}

fn group(file: &str, limit: u64, used: u64) -> Option<GroupLimit> {
    Some(GroupLimit {
        file: file.into(),
        limit,
        used,
    })
}

fn limit<'a>(verdict: &'a Verdict, name: &str) -> &'a AdmissionLimit {
    let named = |limit: &&AdmissionLimit| limit.name.starts_with(name);
    verdict.limits.iter().find(named).expect(name)
}

#[test]
fn too_many_guests_are_refused_by_the_limit_that_binds_first() {
    let mut host = healthy();
    host.memory.available = Bytes::gib(200);
    host.memory.total = Bytes::gib(256);
    let verdict = admit(&host, &demand(15_000));
    let error = verdict.check(false).unwrap_err();
    // 32,768 - 500 tasks - 3,276 reserved = 28,992; less 8 of brood's, by 2.
    assert_eq!(
        error.to_string(),
        "cannot restore 15000 guests: kernel.pid_max leaves 28992 pids for guests (2 each) and \
         30008 pids are needed; raise it: sysctl -w kernel.pid_max=65536, or restore at most 14492 guests"
    );
    assert_eq!(
        error.hint(),
        Some("raise it: sysctl -w kernel.pid_max=65536")
    );
    assert_eq!(verdict.max_guests(), 14_492);
    assert!(verdict.check(true).is_err(), "pids are never overcommitted");

    host.linux().kvm.nx_huge_pages = Some("never".into());
    assert!(
        admit(&host, &demand(15_000)).fits(),
        "then one pid per guest is enough"
    );
    host.linux().pids.pid_max = 1 << 22;
    host.linux().kvm.nx_huge_pages = None;
    assert!(admit(&host, &demand(15_000)).fits());
}

#[test]
fn each_limit_is_named_with_what_raises_it() {
    type Change = fn(&mut crate::host::facts::HostFacts);
    let cases: [(Change, &str); 8] = [
        (
            |host| host.linux().pids.threads_max = 2000,
            "kernel.threads-max leaves 500 pids for guests (2 each) and 2008 pids are needed; \
             raise it: sysctl -w kernel.threads-max=4096, or restore at most 246 guests",
        ),
        (
            |host| host.linux().groups.pids = group("/sys/fs/cgroup/a/pids.max", 500, 100),
            "/sys/fs/cgroup/a/pids.max leaves 375 pids for guests (2 each) and 2008 pids are needed; \
             raise it: echo 4096 > /sys/fs/cgroup/a/pids.max, or restore at most 183 guests",
        ),
        (
            |host| {
                host.linux().pids.nproc_limit = Some(1000);
                host.linux().pids.nproc_binds = true;
                host.linux().pids.user_tasks = 990;
            },
            "RLIMIT_NPROC leaves 0 pids for guests (2 each) and 2008 pids are needed; \
             raise it: ulimit -u 4096; as it is, no guest fits",
        ),
        (
            |host| host.files.soft = Some(32),
            "RLIMIT_NOFILE leaves 32 open files for brood and 64 open files are needed; \
             raise it: ulimit -n 1024; as it is, no guest fits",
        ),
        (
            |host| host.files.max = 10_000,
            "fs.file-max leaves 8000 open files for guests (10 each) and 10064 open files are needed; \
             raise it: sysctl -w fs.file-max=16384, or restore at most 793 guests",
        ),
        (
            |host| host.memory.available = Bytes::gib(1),
            "MemAvailable leaves 532.5 MiB for guests (1.5 MiB each) and 1.5 GiB are needed; \
             free memory, or allow each guest less private memory, or restore at most 354 guests",
        ),
        (
            |host| host.linux().groups.memory = group("/cg/memory.max", Bytes::gib(1).0, 0),
            "/cg/memory.max leaves 896 MiB for guests (1.5 MiB each) and 1.5 GiB are needed; \
             raise it: echo 1628M > /cg/memory.max, or allow each guest less private memory, \
             or restore at most 597 guests",
        ),
        (
            |host| host.memory.overcommit_mode = 2,
            "CommitLimit leaves 10.8 GiB for guests (256.5 MiB each) and \
             250.5 GiB are needed; with vm.overcommit_memory=2 each guest counts in full: \
             sysctl -w vm.overcommit_memory=0, or restore at most 42 guests",
        ),
    ];
    for (change, expected) in cases {
        let mut host = healthy();
        change(&mut host);
        let error = admit(&host, &demand(1000))
            .check(false)
            .unwrap_err()
            .to_string();
        assert_eq!(error, format!("cannot restore 1000 guests: {expected}"));
    }
}

#[test]
fn each_limit_of_freebsd_is_named_with_what_raises_it() {
    type Change = fn(&mut crate::host::facts::HostFacts);
    let cases: [(Change, &str); 7] = [
        (
            |host| host.freebsd().vmm.user_machines = Some(64),
            "RLIMIT_VMM is 64 and 3 exist; raise this user's limit on virtual machines to 1003 in \
             login.conf(5), or restore at most 61 guests",
        ),
        (
            |host| host.freebsd().vmm.max_machines = Some(64),
            "hw.vmm.maxvmms is 64 and 3 exist; raise it: sysctl hw.vmm.maxvmms=1003, and the same \
             in /etc/sysctl.conf, or restore at most 61 guests",
        ),
        (
            |host| host.freebsd().processes.max = 1500,
            "kern.maxproc leaves 420 processes for guests (1 each) and 1008 processes are needed; \
             raise it: kern.maxproc=\"4096\" in /boot/loader.conf, then reboot; the kernel allows \
             one process for each 12 pages of memory, or restore at most 412 guests",
        ),
        (
            |host| {
                host.freebsd().processes.user_limit_binds = true;
                host.freebsd().processes.max_per_user = 500;
            },
            "kern.maxprocperuid leaves 475 processes for guests (1 each) and 1008 processes are \
             needed; raise it: sysctl kern.maxprocperuid=2048, and the same in /etc/sysctl.conf, \
             or restore at most 467 guests",
        ),
        (
            |host| host.files.soft = Some(32),
            "RLIMIT_NOFILE leaves 32 open files for brood and 64 open files are needed; \
             raise it: ulimit -n 1024, as root if the hard limit is lower; as it is, no guest fits",
        ),
        (
            |host| host.files.max = 10_400,
            "kern.maxfiles leaves 10000 open files for guests (16 each) and 16064 open files are \
             needed; raise it: sysctl kern.maxfiles=16464, and the same in /etc/sysctl.conf, or \
             restore at most 621 guests",
        ),
        (
            |host| host.memory.available = Bytes::gib(1),
            "available memory leaves 368.6 MiB for guests (1.5 MiB each) and 1.5 GiB are needed; \
             free memory, or allow each guest less private memory, or restore at most 245 guests",
        ),
    ];
    assert!(admit(&freebsd(), &demand(1000)).fits());
    for (change, expected) in cases {
        let mut host = freebsd();
        change(&mut host);
        let error = admit(&host, &demand(1000))
            .check(false)
            .unwrap_err()
            .to_string();
        assert_eq!(error, format!("cannot restore 1000 guests: {expected}"));
    }
    let error = admit(&freebsd(), &demand(200_000))
        .check(false)
        .unwrap_err();
    assert!(error.hint().is_some());
    let verdict = admit(&freebsd(), &demand(200_000));
    assert_eq!(
        limit(&verdict, "kern.maxproc").hint.as_deref(),
        Some("no setting is large enough: FreeBSD has at most 99999 processes")
    );
}

/// A guest that shares nothing takes all its memory, whatever it is allowed to write.
#[test]
fn a_private_limit_means_nothing_where_nothing_is_shared() {
    let mut host = freebsd();
    host.freebsd().bhyve_maps_checkpoints = Some(false);
    let verdict = admit(&host, &demand(1000));
    let memory = limit(&verdict, "available memory");
    assert_eq!(memory.per_guest, (Bytes::kib(512) + Bytes::mib(256)).0);
    assert!(!memory.fits);
    let hint = memory.hint.as_deref().unwrap();
    assert!(
        hint.contains("without the vmm-vnode patch, so each"),
        "{hint}"
    );
    assert_eq!(
        private(&host, Bytes::mib(1), Bytes::mib(256)),
        Bytes::mib(256)
    );
    assert_eq!(
        private(&freebsd(), Bytes::mib(1), Bytes::mib(256)),
        Bytes::mib(1)
    );
}

/// Guests that were promised a place and do not exist yet take machines, processes and files.
#[test]
fn promised_guests_count_on_freebsd() {
    let mut host = freebsd();
    host.freebsd().vmm.max_machines = Some(103);
    let of = |outstanding_pids| Demand {
        outstanding_pids,
        ..demand(60)
    };
    assert!(admit(&host, &of(40)).fits());
    let verdict = admit(&host, &of(41));
    assert_eq!(limit(&verdict, "hw.vmm.maxvmms").max_guests(), 59);
    assert!(!verdict.fits());
}

#[test]
fn following_the_hint_is_enough() {
    let last_number = |hint: &str| -> u64 {
        let number = hint
            .rsplit(|c: char| !c.is_ascii_digit())
            .find(|text| !text.is_empty());
        number.unwrap().parse().unwrap()
    };
    for guests in [1, 700, 14_493, 100_000, 900_000] {
        let mut host = healthy();
        host.memory.available = Bytes::gib(4096);
        host.linux().pids.pid_max = 1024;
        let wanted = demand(guests);
        let verdict = admit(&host, &wanted);
        host.linux().pids.pid_max =
            last_number(limit(&verdict, "kernel.pid_max").hint.as_ref().unwrap());
        assert!(
            limit(&admit(&host, &wanted), "kernel.pid_max").fits,
            "{guests}"
        );
    }
    let verdict = admit(&healthy(), &demand(5_000_000));
    let hint = limit(&verdict, "kernel.pid_max").hint.clone().unwrap();
    assert_eq!(
        hint,
        "no setting is large enough: Linux has at most 4194304 pids"
    );
}

#[test]
fn overcommit_skips_memory_that_guests_may_use_and_says_what_it_risks() {
    let mut host = healthy();
    let wanted = Demand {
        private_limit: Bytes::gib(9),
        ..demand(1000)
    };
    assert_eq!(
        wanted.worst_per_guest(),
        Bytes::kib(512) + Bytes::mib(256),
        "never past its memory"
    );
    let verdict = admit(&host, &wanted);
    assert!(!verdict.fits());
    assert_eq!(verdict.check(true), Ok(()));
    assert_eq!(
        verdict.memory_risk().unwrap(),
        "if every guest comes to use what it is allowed, 250.5 GiB are needed and MemAvailable leaves \
         19.5 GiB: 231.0 GiB short; then the kernel kills guests or other processes on this host to \
         free memory. At most 77 guests are safe"
    );
    assert_eq!(admit(&host, &demand(10)).memory_risk(), None);
    host.memory.overcommit_mode = 2;
    assert!(
        admit(&host, &wanted).check(true).is_err(),
        "the kernel itself would refuse"
    );
}

/// A live or admitted guest of the oracle.
#[derive(Clone, Debug)]
struct Played {
    worst: u64,
    /// Host memory that it takes now; none while it is admitted and not started.
    used: Option<u64>,
}

#[derive(Clone, Debug)]
enum Event {
    /// Somebody asks for guests with a private limit in MiB.
    Restore(u64, u64),
    /// The first admitted guest after the index is started.
    Start(usize),
    /// A guest writes, in MiB, up to its private limit.
    Write(usize, u64),
    /// A guest ends.
    End(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..400_u64, 0..64_u64).prop_map(|(guests, mib)| Event::Restore(guests, mib)),
        any::<usize>().prop_map(Event::Start),
        any::<usize>().prop_map(Event::Start),
        (any::<usize>(), 0..64_u64).prop_map(|(guest, mib)| Event::Write(guest, mib)),
        any::<usize>().prop_map(Event::End),
    ]
}

proptest! {
    /// Whatever order restores, starts, writes and ends come in, all guests together can take all
    /// they are allowed at once, and the reserve is still there.
    #[test]
    fn admitted_guests_never_pass_the_budget(
        events in prop::collection::vec(event(), 1..120),
        memory_mib in 200..16_000_u64,
        pid_max in 1200..6000_u64,
    ) {
        let mut idle = {
            let mut host = healthy();
            host.memory.available = Bytes::mib(memory_mib);
            host.linux().pids.pid_max = pid_max;
            host
        };
        let mut guests: Vec<Played> = Vec::new();
        for event in events {
            match event {
                Event::Restore(count, mib) => {
                    let used: u64 = guests.iter().filter_map(|guest| guest.used).sum();
                    let alive = guests.iter().filter(|guest| guest.used.is_some()).count() as u64;
                    let unborn = guests.len() as u64 - alive;
                    // What the host shows, and what the books say was promised.
                    let mut now = idle.clone();
                    now.memory.available = now.memory.available.saturating_sub(Bytes(used));
                    now.linux().pids.tasks += 2 * alive;
                    now.files.open += FILES_PER_GUEST * alive;
                    let worst: u64 = guests.iter().map(|guest| guest.worst).sum();
                    let wanted = Demand {
                        private_limit: Bytes::mib(mib),
                        outstanding: Bytes(worst - used),
                        outstanding_pids: 2 * unborn,
                        ..demand(count)
                    };
                    let verdict = admit(&now, &wanted);
                    prop_assert_eq!(verdict.fits(), verdict.check(false).is_ok());
                    if verdict.fits() {
                        let new = Played { worst: wanted.worst_per_guest().0, used: None };
                        guests.extend(std::iter::repeat_n(new, usize::try_from(count).unwrap()));
                    }
                }
                Event::Start(from) if !guests.is_empty() => {
                    let len = guests.len();
                    // A batch, as a restore with some concurrency would.
                    for i in 0..len.min(40) {
                        let guest = &mut guests[(from % len + i) % len];
                        guest.used.get_or_insert(Bytes::kib(512).0);
                    }
                }
                Event::Write(guest, mib) if !guests.is_empty() => {
                    let len = guests.len();
                    let guest = &mut guests[guest % len];
                    let worst = guest.worst;
                    guest.used = guest.used.map(|used| (used + Bytes::mib(mib).0).min(worst));
                }
                Event::End(guest) if !guests.is_empty() => {
                    let len = guests.len();
                    guests.swap_remove(guest % len);
                }
                _ => {}
            }
            // The oracle: the worst case of everybody, from the idle host.
            if !guests.is_empty() {
                let worst: u64 = guests.iter().map(|guest| guest.worst).sum();
                let reserve = memory_reserve(idle.memory.total.0);
                prop_assert!(worst + reserve <= idle.memory.available.0);
                let tasks = idle.linux().pids.tasks + 2 * guests.len() as u64 + OWN_PIDS;
                prop_assert!(tasks + host_pid_reserve(pid_max) <= pid_max);
            }
        }
    }

    /// `max_guests` fits and one more does not, whatever the host.
    #[test]
    fn max_guests_is_exact(
        available in 0..1_u64 << 42,
        pid_max in 300..1_u64 << 22,
        tasks in 0..5000_u64,
        files in 0..1_u64 << 20,
        group_pids in prop::option::of((0..20_000_u64, 0..2000_u64)),
        group_memory in prop::option::of((0..1_u64 << 40, 0..1_u64 << 38)),
        mode in 0..3_u64,
        overhead in 0..1_u64 << 24,
        private_limit in 0..1_u64 << 30,
        outstanding in 0..1_u64 << 34,
        outstanding_pids in 0..2000_u64,
    ) {
        let mut host = healthy();
        host.memory.available = Bytes(available);
        host.memory.overcommit_mode = mode;
        host.linux().pids.pid_max = pid_max;
        host.linux().pids.tasks = tasks;
        host.files.max = files;
        host.linux().groups.pids = group_pids.and_then(|(limit, used)| group("/p", limit, used));
        host.linux().groups.memory = group_memory.and_then(|(limit, used)| group("/m", limit, used));
        let of = |guests| Demand {
            overhead: Bytes(overhead),
            private_limit: Bytes(private_limit),
            outstanding: Bytes(outstanding),
            outstanding_pids,
            ..demand(guests)
        };
        let most = admit(&host, &of(1)).max_guests();
        let at = |guests| admit(&host, &of(guests));
        prop_assert_eq!(at(most + 7).max_guests(), most, "it does not depend on what is asked");
        prop_assert!(!at(most + 1).fits());
        prop_assert!(most == 0 || at(most).fits());
        prop_assert!(at(u64::MAX).check(false).is_err(), "nothing wraps around");
    }
}
