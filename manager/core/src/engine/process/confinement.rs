//! Confinement of a process, as the kernel tells it: on Linux by `/proc/PID/status` and
//! `/proc/PID/ns`, on FreeBSD by its `struct kinfo_proc`.

/// What confines a process. What the system does not know, or this user may not see, is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Its user.
    pub user: u32,
    /// Its effective capabilities, a bit for each (capabilities(7)).
    pub capabilities: Option<u64>,
    /// Whether no program that it executes gives it privileges (`PR_SET_NO_NEW_PRIVS`).
    pub no_new_privileges: Option<bool>,
    /// Whether it has a filter of system calls (seccomp(2)).
    pub filter: Option<bool>,
    /// Whether it has this process's network.
    pub has_network: Option<bool>,
    /// Whether it has this process's System V and POSIX message queues, semaphores and shared memory.
    pub has_ipc: Option<bool>,
    /// Whether it is in Capsicum's capability mode (capsicum(4)).
    pub capsicum: Option<bool>,
}

#[cfg(target_os = "linux")]
impl Confinement {
    /// What `/proc/PID/status` says of it.
    pub(super) fn of_status(status: &str) -> Option<Self> {
        use crate::host::proc::field;
        let number = |key| field(status, key)?.parse::<u32>().ok();
        Some(Self {
            // The effective one is the second.
            user: field(status, "Uid")?
                .split_whitespace()
                .nth(1)?
                .parse()
                .ok()?,
            capabilities: field(status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok()),
            no_new_privileges: number("NoNewPrivs").map(|set| set != 0),
            // SECCOMP_MODE_FILTER; a kernel without seccomp has no such line.
            filter: Some(number("Seccomp") == Some(2)),
            ..Self::default()
        })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read() {
        let status = "Name:\tguest\nUid:\t1\t2063597577\t3\t4\nCapEff:\t0000000000000020\n\
                      NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let expected = Confinement {
            user: 2_063_597_577,
            capabilities: Some(0x20),
            no_new_privileges: Some(true),
            filter: Some(true),
            ..Confinement::default()
        };
        assert_eq!(Confinement::of_status(status), Some(expected));
        // As old kernels, and those without seccomp, have it.
        let little = Confinement::of_status("Uid:\t0\t0\t0\t0\n").unwrap();
        assert_eq!((little.user, little.filter), (0, Some(false)));
        assert_eq!(
            (little.capabilities, little.no_new_privileges),
            (None, None)
        );
        assert_eq!(Confinement::of_status("Name:\tx\n"), None);
    }
}
