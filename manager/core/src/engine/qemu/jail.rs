//! Jail of a guest's QEMU beside QEMU's own filter of system calls: its user, its IPC objects, and the
//! files that it may reach.
//!
//! Where root restores, each has a user of its own, as the guests of the KVM engine have. QEMU opens
//! what it was told of as root (memory image, disks, sockets, logs) and changes to that user before it
//! reads anything of the guest; what it is to write later it is handed (`suspend.rs`). It keeps the
//! host's network, which a guest's network of the user is made of. A network namespace for guests
//! without one would cost each 147 KiB. Of that user there are as many processes and threads as the
//! guest's QEMU can have.

use std::{
    env, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use landlock::AccessFs;

use super::{command::Machine, host::PROGRAM};
use crate::{
    checkpoint::Network,
    engine::file_rules::{self, FileRules, Rights},
    host::{
        jail::{FIRST_USER, JailFacts, USERS},
        proc::ProcRoot,
    },
};

/// What has QEMU become a user of its own: that of the number of its process, which the shell had
/// before it. It has one group, which owns nothing.
const BECOME: &str = r#"option=$1 first=$2 users=$3 group=$4
shift 4
exec "$0" "$option" "$group$((first + $$ % users)):$first" "$@""#;

/// Threads of a QEMU that read and write its disks (`THREAD_POOL_MAX_THREADS_DEFAULT` of
/// block/aio.h).
const POOL: u64 = 64;
/// What a QEMU has beside these and its processors': its main loop, RCU's thread, those of a suspend,
/// and KVM's own for its virtual machine. Five were seen.
const OTHER_THREADS: u64 = 16;
/// The inode of the user namespace that the host has booted with (`PROC_USER_INIT_INO` of
/// linux/proc_ns.h).
const FIRST_USER_NAMESPACE: u64 = 0xefff_fffd;

/// What this host lets a clone's QEMU have of its jail.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Walls {
    /// A user of its own.
    pub(super) own_user: bool,
    /// A bound of its user's processes and threads.
    bounds_threads: bool,
    /// An IPC namespace.
    pub(super) own_ipc: bool,
}

impl Walls {
    /// Those of this host, for this user.
    pub(super) fn of_host() -> io::Result<Self> {
        let facts = JailFacts::read(&ProcRoot::default()).map_err(io::Error::other)?;
        Ok(Self {
            own_user: facts.users,
            // Until it changes to its user it is root's. The root of a user namespace has a bound for
            // all of its processes, where the host's has none.
            bounds_threads: facts.users
                && fs::metadata("/proc/self/ns/user")
                    .is_ok_and(|namespace| namespace.ino() == FIRST_USER_NAMESPACE),
            own_ipc: facts.namespaces,
        })
    }

    /// Begins the command line of such a QEMU, of this version.
    pub(super) fn command(self, version: &str) -> Command {
        if !self.own_user {
            return Command::new(PROGRAM);
        }
        let (option, value) = match has_run_with_user(version) {
            true => ("-run-with", "user="),
            false => ("-runas", ""),
        };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", BECOME, PROGRAM, option]);
        command.args([FIRST_USER.to_string(), USERS.to_string(), value.to_owned()]);
        command
    }

    /// Most processes and threads of its user, for a guest with so many processors: twice what one can
    /// have. Guests in two PID namespaces of a host can have one user, for that is their process's
    /// number; and a QEMU that cannot make a thread ends.
    pub(super) fn most_threads(self, vcpus: u32) -> Option<u64> {
        self.bounds_threads
            .then_some(2 * (u64::from(vcpus) + POOL + OTHER_THREADS))
    }

    /// What QEMU's filter of system calls says of other users. One that changes to its own user has
    /// no privilege to change again, and no_new_privs (`children` would filter, too: 7.2).
    pub(super) fn elevation(self) -> &'static str {
        match self.own_user {
            true => "allow",
            false => "deny",
        }
    }
}

/// Whether a QEMU has `-run-with user=` (9.1), which its older option gave way to.
fn has_run_with_user(version: &str) -> bool {
    let mut numbers = version
        .split('.')
        .map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(9), Some(1))
}

/// What QEMU and its libraries read; not all of it is on each host.
const READ: [&str; 19] = [
    "/usr",
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/proc",
    "/sys",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/ld.so.conf",
    "/etc/ssl/openssl.cnf",
    "/etc/gnutls",
    "/etc/crypto-policies",
    "/etc/localtime",
    // For a network of the user: where names are asked for.
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/dev/random",
    "/dev/urandom",
];

/// What it writes, too.
const WRITTEN: [&str; 3] = ["/dev/kvm", "/dev/null", "/dev/zero"];

/// The rules of a guest's QEMU; `None` where the kernel has no Landlock.
pub(super) fn rules(machine: &Machine<'_>) -> io::Result<Option<FileRules>> {
    let written =
        file_rules::read() | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let folder = written | AccessFs::MakeReg | AccessFs::MakeSock | AccessFs::RemoveFile;
    let own = machine.folder.file("");
    let disk = machine.disk;
    let installed = prefix();
    let read = READ.iter().map(Path::new).chain(installed.as_deref());
    let read = read
        .chain(machine.root)
        .chain(disk.and_then(|disk| disk.base.as_deref()));
    let change = WRITTEN.iter().map(Path::new);
    let change = change
        .chain([machine.file])
        .chain(disk.map(|disk| &*disk.path));
    let allowed = read
        .map(|path| (path, file_rules::read()))
        .chain(change.map(|path| (path, written)))
        .chain([(&*own, folder)]);
    let allowed: Vec<(&Path, Rights)> = allowed.collect();
    match machine.guest.network {
        Network::None => FileRules::new(allowed),
        Network::User | Network::Tap => FileRules::with_tcp(allowed),
    }
}

/// Where QEMU is installed: `/opt/qemu` for `/opt/qemu/bin/qemu-system-x86_64`.
fn prefix() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let mut programs = env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    let program = programs.find(|program| program.is_file())?;
    let bin = program.canonicalize().ok()?.parent()?.to_owned();
    let prefix = bin.parent()?;
    // All of the host is no prefix.
    let prefix = if prefix.parent().is_some() {
        prefix
    } else {
        &bin
    };
    Some(prefix.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_versions() {
        for (version, has) in [
            ("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", false),
            ("9.0.4", false),
            ("9.1.0", true),
            ("10.0.2 (Debian 1:10.0.2+ds-2)", true),
            ("unknown", false),
        ] {
            assert_eq!(has_run_with_user(version), has, "{version}");
        }
    }

    #[test]
    fn the_user_is_that_of_the_process_and_the_other_words_stay() {
        for (version, option, before) in [("7.2.22", "-runas", ""), ("9.1.0", "-run-with", "user=")]
        {
            let walls = Walls {
                own_user: true,
                ..Walls::default()
            };
            let sh = walls.command(version);
            let words: Vec<_> = sh.get_args().collect();
            // The shell's own words, with another program in the place of QEMU.
            let mut echo = Command::new(sh.get_program());
            echo.args(&words[..2]).arg("/bin/echo").args(&words[3..]);
            let echo = echo
                .args(["-m", "a b,c=$d"])
                .stdout(std::process::Stdio::piped());
            let child = echo.spawn().unwrap();
            let user = FIRST_USER + child.id() % USERS;
            let said = child.wait_with_output().unwrap().stdout;
            assert_eq!(
                String::from_utf8(said).unwrap(),
                format!("{option} {before}{user}:{FIRST_USER} -m a b,c=$d\n")
            );
        }
    }
}
