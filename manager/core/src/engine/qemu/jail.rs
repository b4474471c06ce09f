//! Jail of a guest's QEMU beside QEMU's own filter of system calls: the files that it may reach.
//!
//! It keeps the manager's user, because the memory image and the disks that it opens are that
//! user's; and the host's network, which a guest's network of the user is made of. A network
//! namespace for guests without one would cost each 147 KiB.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use landlock::AccessFs;

use super::{command::Machine, host::PROGRAM};
use crate::{
    checkpoint::Network,
    engine::file_rules::{self, FileRules, Rights},
};

/// What QEMU and its libraries read; not all of it is on each host.
const READ: [&str; 18] = [
    "/usr",
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
