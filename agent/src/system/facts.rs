//! Facts of a Linux guest, as `/proc` has them.

use std::{fs, io, thread};

use brood_agent_protocol::{Facts, Reply};
use nix::sys::statvfs::statvfs;

use crate::{failure::Context, serve::Answer};

pub(crate) fn facts() -> Answer {
    let read = |path: &str| fs::read_to_string(path).context(format!("cannot read {path}"));
    let mut facts = Facts::default();
    memory(&read("/proc/meminfo")?, &mut facts);
    load(&read("/proc/loadavg")?, &mut facts);
    facts.uptime_ms = read("/proc/uptime")?
        .split_whitespace()
        .next()
        .and_then(thousandths)
        .unwrap_or(0);
    let cpus = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    facts.cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
    let root = statvfs("/").map_err(io::Error::from);
    let root = root.context("cannot look at the root file system")?;
    facts.root_total = root.blocks() * root.fragment_size();
    facts.root_available = root.blocks_available() * root.fragment_size();
    Ok(Reply::Facts(facts))
}

fn memory(meminfo: &str, facts: &mut Facts) {
    for line in meminfo.lines() {
        let mut words = line.split_whitespace();
        let (name, kib) = (
            words.next(),
            words.next().and_then(|kib| kib.parse::<u64>().ok()),
        );
        match (name, kib) {
            (Some("MemTotal:"), Some(kib)) => facts.memory_total = kib.saturating_mul(1024),
            (Some("MemAvailable:"), Some(kib)) => facts.memory_available = kib.saturating_mul(1024),
            _ => {}
        }
    }
}

/// `0.01 0.02 0.00 1/123 456`: three means, tasks that run of all, the last process.
fn load(loadavg: &str, facts: &mut Facts) {
    let words: Vec<_> = loadavg.split_whitespace().collect();
    for (mean, word) in facts.load_milli.iter_mut().zip(&words) {
        *mean = thousandths(word)
            .and_then(|mean| u32::try_from(mean).ok())
            .unwrap_or(0);
    }
    let tasks = words.get(3).and_then(|word| word.split_once('/'));
    facts.tasks = tasks.and_then(|(_, all)| all.parse().ok()).unwrap_or(0);
}

/// A decimal number with two digits behind its point, such as `1.25`, in thousandths.
fn thousandths(word: &str) -> Option<u64> {
    let (whole, hundredths) = word.split_once('.')?;
    let (whole, hundredths) = (whole.parse::<u64>().ok()?, hundredths.parse::<u64>().ok()?);
    whole
        .checked_mul(1000)?
        .checked_add(hundredths.checked_mul(10)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read() {
        let mut facts = Facts::default();
        memory(
            "MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\n",
            &mut facts,
        );
        load("0.01 1.20 10.00 2/345 678\n", &mut facts);
        assert_eq!(
            (facts.memory_total, facts.memory_available),
            (2 << 20, 1 << 20)
        );
        assert_eq!(facts.load_milli, [10, 1200, 10_000]);
        assert_eq!(facts.tasks, 345);
        assert_eq!(thousandths("12.34"), Some(12_340));
        assert_eq!(thousandths("x"), None);

        let Ok(Reply::Facts(own)) = super::facts() else {
            panic!("this is Linux");
        };
        assert!(own.memory_total > 0 && own.uptime_ms > 0 && own.tasks > 0 && own.root_total > 0);
    }
}
