//! Memory of guests, read from their processes: the same for whoever started them, and whatever else
//! runs on the host.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use crate::{command::Interrupt, error::Error};

/// Memory is steady when it moved by no more than this within [`LOOK_EVERY`].
const STEADY: f64 = 0.005;
const LOOK_EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);
/// What the kernel keeps for a thread: its stack.
const STACK_MIB: f64 = 16.0 / 1024.0;

/// What each guest takes that it shares with no other, in MiB.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    /// Pages of the guest's memory that it has written.
    pub(super) guest: f64,
    /// All other pages of its process.
    pub(super) process: f64,
    /// Page tables and kernel stacks.
    pub(super) kernel: f64,
}

impl Memory {
    pub(super) fn total(&self) -> f64 {
        self.guest + self.process + self.kernel
    }

    /// The mean of these processes, once it is steady.
    pub(super) fn settled(pids: &[u32], interrupt: &Interrupt) -> Result<Self, Error> {
        let began = Instant::now();
        let mut before = Self::of(pids)?;
        loop {
            interrupt.check()?;
            thread::sleep(LOOK_EVERY);
            let now = Self::of(pids)?;
            let moved = (now.total() - before.total()).abs();
            if moved <= STEADY * now.total() || began.elapsed() > PATIENCE {
                return Ok(now);
            }
            before = now;
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a mean of a few hundred guests")]
    fn of(pids: &[u32]) -> Result<Self, Error> {
        let mut sum = Self::default();
        for pid in pids {
            let read = |name: &str| {
                let path = format!("/proc/{pid}/{name}");
                fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))
            };
            let (maps, status) = (read("smaps")?, read("status")?);
            sum.add(&maps, &status);
        }
        let each = pids.len() as f64;
        Ok(Self {
            guest: sum.guest / each,
            process: sum.process / each,
            kernel: sum.kernel / each,
        })
    }

    fn add(&mut self, maps: &str, status: &str) {
        let mut of_guest = false;
        for line in maps.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            if !word.ends_with(':') {
                of_guest = rest.ends_with(".ckp");
            } else if word.starts_with("Private_") && word != "Private_Hugetlb:" {
                let part = if of_guest {
                    &mut self.guest
                } else {
                    &mut self.process
                };
                *part += mib(rest);
            }
        }
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default()
        };
        let threads: f64 = field("Threads:").trim().parse().unwrap_or_default();
        self.kernel += mib(field("VmPTE:")) + threads * STACK_MIB;
    }
}

/// `  12 kB` in MiB.
fn mib(text: &str) -> f64 {
    let number = text.split_whitespace().next().unwrap_or_default();
    number.parse::<f64>().unwrap_or_default() / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_the_guest_are_those_of_its_memory_file() {
        let maps = "\
55d0-55d1 rw-p 00000000 fe:00 12 /usr/bin/qemu-system-x86_64\n\
Size:   2048 kB\nPrivate_Clean:  512 kB\nPrivate_Dirty: 512 kB\n\
7f00-7f01 rw-p 00000000 fe:00 13 /state/run/abc.ckp\n\
Rss: 4096 kB\nPrivate_Dirty: 2048 kB\n\
7f02-7f03 rw-p 00000000 00:00 0 \n\
Private_Dirty: 1024 kB\nPrivate_Hugetlb: 1024 kB\n";
        let mut memory = Memory::default();
        memory.add(maps, "Threads:\t2\nVmPTE:\t  992 kB\n");
        assert!((memory.guest - 2.0).abs() < 1e-9, "{memory:?}");
        assert!((memory.process - 2.0).abs() < 1e-9, "{memory:?}");
        assert!((memory.kernel - 1.0).abs() < 1e-9, "{memory:?}");
    }
}
