//! Out-of-memory kills: which process the kernel kills first, and how the nursery tells such a kill
//! from a SIGKILL that somebody sent.
//!
//! The kernel counts these kills for each control group (`memory.events` of version 2,
//! `memory.oom_control` of version 1) and for the host (`oom_kill` in /proc/vmstat). A guest
//! inherits its nursery's group, so the nursery reads its own group's counters.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    engine::kvm::{exit_reason::ExitReason, fork_server::descriptors::own},
    host::cgroup::oom_kills,
};

/// Adjustment of the kernel's score besides a process's memory (proc_pid_oom_score_adj(5)), so that
/// it kills guests first, then nurseries, then the manager, whose score stays as it is.
const NURSERY_SCORE: i32 = 300;
const GUEST_SCORE: i32 = 500;
/// The highest score.
const SCORE_MAX: i32 = 1000;
/// A kill that was counted longer ago was another process's of the group.
const RECENT: Duration = Duration::from_secs(10);
/// More than any of these files has before the counter.
const TEXT_MAX: usize = 16 << 10;

const OWN_SCORE: &str = "/proc/self/oom_score_adj";

/// How readily the kernel takes a nursery and its guests when memory is short.
///
/// A child has its parent's score, so the nursery takes that of its guests while it forks them.
/// Each guest would need three calls and memory of the kernel's to set its own.
#[derive(Debug)]
pub(crate) struct Scores {
    file: File,
    nursery: String,
    guests: String,
}

impl Scores {
    /// Makes the kernel prefer this nursery to its manager when it has to kill a process; `None`
    /// where the score cannot be written.
    pub(crate) fn new() -> Option<Self> {
        let score: i32 = fs::read_to_string(OWN_SCORE).ok()?.trim().parse().ok()?;
        let file = File::options().write(true).open(OWN_SCORE).ok()?;
        let guests = score.saturating_add(1).clamp(GUEST_SCORE, SCORE_MAX);
        let scores = Self {
            file: own(file.into()).ok()?.into(),
            nursery: score.max(NURSERY_SCORE).to_string(),
            guests: guests.to_string(),
        };
        scores.set(&scores.nursery).ok()?;
        Some(scores)
    }

    /// Gives processes that are forked from now on a higher score than the nursery's.
    pub(crate) fn for_guests(&self) {
        let _ = self.set(&self.guests);
    }

    /// This process is the nursery again.
    pub(crate) fn for_nursery(&self) {
        let _ = self.set(&self.nursery);
    }

    fn set(&self, score: &str) -> io::Result<()> {
        self.file.write_all_at(score.as_bytes(), 0)
    }
}

/// Counters of kills for want of memory.
#[derive(Debug)]
pub(crate) struct OomKills {
    group: Option<Counter>,
    host: Option<Counter>,
}

#[derive(Debug)]
struct Counter {
    file: File,
    /// The control group, as it is named.
    group: String,
    /// Kills that were reported, or that hit no child of this nursery.
    told: u64,
    /// Kills when it was last looked, and when that changed.
    counted: u64,
    changed: Instant,
}

impl OomKills {
    /// Counts from now on.
    pub(crate) fn watch() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let group = counters(&groups)
            .into_iter()
            .find_map(|(group, file)| Counter::open(&file, group));
        Self {
            group,
            host: Counter::open(Path::new("/proc/vmstat"), String::new()),
        }
    }

    /// Why a child ended that was killed by SIGKILL, if it was for want of memory.
    pub(crate) fn reason(&mut self) -> Option<ExitReason> {
        if let Some(group) = &mut self.group {
            let group_name = group.group.clone();
            return group.take().then_some(ExitReason::OutOfMemory {
                group: Some(group_name),
            });
        }
        let killed = self.host.as_mut().is_some_and(Counter::take);
        killed.then_some(ExitReason::OutOfMemory { group: None })
    }
}

/// Where kills may be counted, by the text of /proc/self/cgroup (cgroups(7)).
fn counters(groups: &str) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let folder = group.trim_start_matches('/');
        let mut add = |mount: &str, file: &str| {
            found.push((group.to_owned(), Path::new(mount).join(folder).join(file)));
        };
        if controllers.is_empty() {
            add("/sys/fs/cgroup", "memory.events");
        } else if controllers.split(',').any(|c| c == "memory") {
            add("/sys/fs/cgroup/memory", "memory.oom_control");
        }
    }
    found
}

impl Counter {
    fn open(path: &Path, group: String) -> Option<Self> {
        let file = own(File::open(path).ok()?.into()).ok()?;
        let mut counter = Self {
            file: file.into(),
            group,
            told: 0,
            counted: 0,
            changed: Instant::now(),
        };
        counter.told = counter.read()?;
        counter.counted = counter.told;
        Some(counter)
    }

    fn read(&self) -> Option<u64> {
        let mut text = vec![0; TEXT_MAX];
        let mut length = 0;
        loop {
            match self.file.read_at(&mut text[length..], length as u64) {
                Ok(0) | Err(_) => break,
                Ok(n) => length += n,
            }
        }
        oom_kills(std::str::from_utf8(text.get(..length)?).ok()?)
    }

    /// Whether the counter has a kill that was not reported yet; marks it as reported.
    fn take(&mut self) -> bool {
        let Some(now) = self.read() else {
            return false;
        };
        self.note(now, Instant::now())
    }

    fn note(&mut self, now: u64, at: Instant) -> bool {
        if now != self.counted {
            (self.counted, self.changed) = (now, at);
        } else if at.saturating_duration_since(self.changed) > RECENT {
            self.told = now;
        }
        let untold = self.told < now;
        self.told += u64::from(untold);
        untold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups_are_read() {
        let v2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(oom_kills(v2), Some(2));
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n";
        assert_eq!(oom_kills(v1), Some(7));
        assert_eq!(oom_kills("oom_kill_disable 0\n"), None);
        let groups = "9:name=systemd:/\n4:memory:/a/b\n0::/user.slice\n";
        let files: Vec<_> = counters(groups).into_iter().map(|(_, file)| file).collect();
        let expected = [
            "/sys/fs/cgroup/memory/a/b/memory.oom_control",
            "/sys/fs/cgroup/user.slice/memory.events",
        ];
        assert_eq!(files, expected.map(PathBuf::from));
    }

    #[test]
    fn each_kill_is_told_once_and_an_old_one_is_nobodys() {
        let mut counter = Counter::open(Path::new("/proc/vmstat"), String::new()).unwrap();
        let (base, begin) = (counter.counted, counter.changed);
        assert!(!counter.note(base, begin), "there was none");
        assert!(counter.note(base + 2, begin));
        assert!(counter.note(base + 2, begin));
        assert!(!counter.note(base + 2, begin), "both are told");
        // Two more, of which one was somebody else's.
        assert!(counter.note(base + 4, begin));
        assert!(!counter.note(base + 4, begin + 2 * RECENT));
    }
}
