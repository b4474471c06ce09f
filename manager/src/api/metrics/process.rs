//! Metrics of the daemon's own process, under the names that Prometheus' clients use.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;
use nix::sys::resource::{UsageWho, getrusage};
use prometheus_client::{
    metrics::{
        counter::{Atomic, Counter},
        gauge::Gauge,
    },
    registry::{Registry, Unit},
};
use rustix::process::{Resource, getrlimit};

/// A count of seconds.
#[derive(Debug, Default)]
struct Seconds(AtomicU64);

impl Atomic<f64> for Seconds {
    fn inc(&self) -> f64 {
        self.inc_by(1.0)
    }

    fn inc_by(&self, more: f64) -> f64 {
        let before = self.get();
        self.0.store((before + more).to_bits(), Ordering::Relaxed);
        before
    }

    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// Metrics of a process that began at `started`, without those that this host does not report.
pub(super) fn metrics(started: Timestamp) -> Registry {
    let mut registry = Registry::with_prefix("process");
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let seconds = |time: nix::sys::time::TimeVal| {
            time.tv_sec() as f64 + f64::from(i32::try_from(time.tv_usec()).unwrap_or(0)) / 1e6
        };
        let cpu = Counter::<f64, Seconds>::default();
        let _ = cpu.inc_by(seconds(usage.user_time()) + seconds(usage.system_time()));
        let help = "Processor time of the daemon, its guests' not included";
        registry.register_with_unit("cpu", help, Unit::Seconds, cpu);
    }
    let gauge = |value: u64| {
        let gauge = Gauge::<u64, AtomicU64>::default();
        gauge.set(value);
        gauge
    };
    let start = u64::try_from(started.as_second()).unwrap_or(0);
    let help = "When the daemon began, in seconds since 1970";
    registry.register_with_unit("start_time", help, Unit::Seconds, gauge(start));
    if let Some((size, resident)) = memory() {
        let help = "Address space of the daemon";
        registry.register_with_unit("virtual_memory", help, Unit::Bytes, gauge(size));
        let help = "Resident memory of the daemon";
        registry.register_with_unit("resident_memory", help, Unit::Bytes, gauge(resident));
    }
    let folder = if cfg!(target_os = "linux") {
        "/proc/self/fd"
    } else {
        "/dev/fd"
    };
    if let Ok(open) = fs::read_dir(folder) {
        // The folder itself is open while it is read.
        let open = open.count().saturating_sub(1) as u64;
        registry.register("open_fds", "Open files of the daemon", gauge(open));
    }
    if let Some(soft) = getrlimit(Resource::Nofile).current {
        let help = "Files that the daemon may have open";
        registry.register("max_fds", help, gauge(soft));
    }
    registry
}

/// Size of the address space and of what is resident, in bytes.
fn memory() -> Option<(u64, u64)> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = pages.split(' ').map_while(|n| n.parse::<u64>().ok());
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    let page = u64::try_from(page).ok()?;
    Some((pages.next()? * page, pages.next()? * page))
}
