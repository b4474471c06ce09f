//! What a Linux host lets brood do to confine guests' processes.

use serde::Serialize;

use super::proc::{self, Error, ProcRoot};

/// The first of the users that guests of the KVM engine have where root runs the manager. In
/// systemd's list of ranges 0x70000000 to 0x7fffffff are nobody's (systemd.io/UIDS-GIDS).
pub(crate) const FIRST_USER: u32 = 0x7b00_0000;
/// How many there are: ids of processes have 22 bits.
pub(crate) const USERS: u32 = 1 << 22;

/// Parts of the jail that not all hosts, and not all users, have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct JailFacts {
    /// Version of the kernel's Landlock; 0 when it has none.
    pub landlock: u32,
    /// Whether each guest's process can have a user of its own.
    pub users: bool,
    /// Whether guests' processes can leave the host's network.
    pub namespaces: bool,
}

impl JailFacts {
    /// Those of this process.
    ///
    /// # Errors
    /// If a file of `/proc` that every Linux host has cannot be read or understood.
    pub(crate) fn read(root: &ProcRoot) -> Result<Self, Error> {
        // capability.h: CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE; CAP_SYS_ADMIN.
        const FOR_USERS: u64 = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 19;
        const SYS_ADMIN: u64 = 1 << 21;
        let status = root.text("/proc/self/status")?;
        let effective = proc::field(&status, "CapEff")
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .unwrap_or(0);
        let user = proc::field(&status, "Uid").and_then(|ids| ids.split_whitespace().nth(1));
        // Kernels without user namespaces have no such files.
        let has_users = |map| root.text(map).map_or(true, |map| has_range(&map));
        Ok(Self {
            landlock: landlock(),
            users: user == Some("0")
                && effective & FOR_USERS == FOR_USERS
                && ["/proc/self/uid_map", "/proc/self/gid_map"]
                    .into_iter()
                    .all(has_users),
            namespaces: effective & SYS_ADMIN != 0,
        })
    }
}

/// What a process of the KVM engine reaches of files.
pub const NO_FILES: &str = "no files";
/// What one of QEMU reaches.
pub const OWN_FILES: &str = "its own files and those installed";

/// What files a guest's process reaches, in words: `confined` is what it does by rules of Landlock.
#[must_use]
pub fn files(landlock: u32, confined: &str) -> String {
    match landlock {
        0 => "all files of its user".to_owned(),
        version => format!("{confined} (Landlock {version})"),
    }
}

/// Whose user a guest's process has, in words.
#[must_use]
pub fn user(is_own: bool) -> &'static str {
    match is_own {
        true => "a user of its own",
        false => "the manager's user",
    }
}

/// What network a guest's process has, in words.
#[must_use]
pub fn network(has_hosts: bool) -> &'static str {
    match has_hosts {
        true => "the host's network",
        false => "no network",
    }
}

/// Whether a user is one of those that guests have to themselves.
#[must_use]
pub fn is_guests_user(user: u32) -> bool {
    (FIRST_USER..FIRST_USER + USERS).contains(&user)
}

/// Whether a map of users (user_namespaces(7)) has all of guests' users.
fn has_range(map: &str) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), _, Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        first <= FIRST_USER.into() && u64::from(FIRST_USER + USERS) <= first + count
    })
}

/// The version of the kernel's Landlock.
#[cfg(not(target_os = "linux"))]
pub(crate) fn landlock() -> u32 {
    0
}

/// The version of the kernel's Landlock.
#[cfg(target_os = "linux")]
pub(crate) fn landlock() -> u32 {
    /// `LANDLOCK_CREATE_RULESET_VERSION` of linux/landlock.h.
    const ASK_VERSION: u32 = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with these arguments the call reads no memory (landlock_create_ruleset(2)).
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, ASK_VERSION) };
    u32::try_from(version).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_users_has_those_of_guests_or_not() {
        assert!(has_range("         0          0 4294967295\n"));
        let of_container = "         0       1000          1\n         1     100000      65536\n";
        assert!(!has_range(of_container));
        assert!(!has_range(""));
    }
}
