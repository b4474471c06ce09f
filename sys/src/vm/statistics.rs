//! Counters that the kernel keeps for a virtual CPU.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::Vm;
use crate::{Error, abi, name, request};

impl Vm {
    /// All statistics of a virtual CPU, by the kernel's names (`VM_STATS`, `VM_STAT_DESC`), such
    /// as `number of ticks vcpu was idle` or, in bytes and counted on virtual CPU 0 only,
    /// `Resident memory`. Which there are depends on the processor and the release.
    ///
    /// The virtual CPU is created if it does not exist, and is made to exit for a moment if it
    /// runs.
    ///
    /// # Errors
    /// [`Error::Request`]: `EINVAL` if the machine cannot have that virtual CPU.
    pub fn statistics(&self, vcpu: u16) -> Result<BTreeMap<String, u64>, Error> {
        let mut statistics = BTreeMap::new();
        loop {
            let index = statistics_index(statistics.len())?;
            let mut stats = abi::vm_stats {
                cpuid: i32::from(vcpu),
                index,
                ..Default::default()
            };
            // SAFETY: the argument holds no pointers.
            let result = unsafe {
                self.device
                    .request("count events", request::VM_STATS, &mut stats)
            };
            match result {
                // Past the end; a count of 0 says the same just at the end.
                Err(Error::Request {
                    errno: Errno::ENOENT,
                    ..
                }) if index > 0 => break,
                result => result?,
            }
            let count = usize::try_from(stats.num_entries)
                .unwrap_or(0)
                .min(stats.statbuf.len());
            if count == 0 {
                break;
            }
            for (index, value) in (index..).zip(&stats.statbuf[..count]) {
                let mut name = self.statistic_name(index)?;
                // Two of one name stay two, and the count of all stays the next index.
                while statistics.contains_key(&name) {
                    name.push('\'');
                }
                statistics.insert(name, *value);
            }
        }
        Ok(statistics)
    }

    fn statistic_name(&self, index: i32) -> Result<String, Error> {
        let mut desc = abi::vm_stat_desc {
            index,
            ..Default::default()
        };
        // SAFETY: the argument holds no pointers.
        unsafe {
            self.device
                .request("name a statistic", request::VM_STAT_DESC, &mut desc)?;
        };
        Ok(name::text(&desc.desc))
    }
}

fn statistics_index(index: usize) -> Result<i32, Error> {
    i32::try_from(index).map_err(|_| Error::TooLarge {
        action: "count events",
        what: "the number of statistics",
        value: index as u64,
        most: i32::MAX as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up::Kernel;

    /// As `vmm_stat_copy` and `vmm_stat_desc_copy` of `sys/dev/vmm/vmm_stat.c` answer for a
    /// kernel with `total` statistics.
    fn kernel(total: i32) -> Kernel {
        Kernel::new()
            .on(request::VM_STATS, move |stats| {
                assert_eq!(stats.cpuid, 1);
                if stats.index > total {
                    return Err(Errno::ENOENT);
                }
                stats.num_entries = (total - stats.index).min(64);
                for (slot, index) in stats.statbuf.iter_mut().zip(stats.index..total) {
                    *slot = u64::try_from(index).unwrap() * 10;
                }
                Ok(())
            })
            .on(request::VM_STAT_DESC, |desc| {
                desc.desc = name::c_string(&format!("stat {}", desc.index));
                Ok(())
            })
    }

    #[test]
    fn all_statistics_come_whatever_their_number() {
        for total in [0, 1, 63, 64, 65, 128, 200] {
            let vm = Vm::made_up(kernel(total), tempfile::tempfile().unwrap());
            let statistics = vm.statistics(1).unwrap();
            assert_eq!(statistics.len(), usize::try_from(total).unwrap());
            for index in 0..total {
                let expected = u64::try_from(index).unwrap() * 10;
                assert_eq!(statistics[&format!("stat {index}")], expected);
            }
        }
    }

    #[test]
    fn two_statistics_of_one_name_are_both_there() {
        let kernel = kernel(65).on(request::VM_STAT_DESC, |desc| {
            desc.desc = name::c_string("exits");
            Ok(())
        });
        let vm = Vm::made_up(kernel, tempfile::tempfile().unwrap());
        assert_eq!(vm.statistics(1).unwrap().len(), 65);
    }
}
