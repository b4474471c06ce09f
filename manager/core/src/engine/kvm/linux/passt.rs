//! passt: the network of a Linux guest's user. A process for each guest, which ends when the guest's
//! end of its stream is closed.

use std::{
    env, fs, io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Command, Stdio},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::engine::{Error, Forward, GuestNetwork, network};

const PROGRAM: &str = "passt";
/// The addresses that guests of QEMU have, too: images set them.
const ADDRESSES: [&str; 12] = [
    "--address",
    "10.0.2.15",
    "--netmask",
    "24",
    "--gateway",
    "10.0.2.2",
    "--dns-forward",
    "10.0.2.3",
    "--dns",
    "none",
    "--search",
    "none",
];
/// Of the gateway: the same for all clones, since a guest remembers it.
const GATEWAY: [&str; 2] = ["--mac-addr", "52:55:0a:00:02:02"];
/// A guest asks nobody for its addresses.
const ASKED_NOTHING: [&str; 4] = ["--no-dhcp", "--no-ndp", "--no-ra", "--no-dhcpv6"];
/// Where the kernel lists the routes of this process.
const ROUTES: &str = "/proc/self/net/route";

/// Refuses where it is not installed.
pub(super) fn check() -> Result<(), Error> {
    let path = env::var_os("PATH").unwrap_or_default();
    let there = env::split_paths(&path).any(|folder| folder.join(PROGRAM).is_file());
    match there {
        true => Ok(()),
        false => Err(refused("there is no such program in PATH")),
    }
}

fn refused(reason: &str) -> Error {
    Error::Refused(format!(
        "a network card needs {PROGRAM}, of Debian's package of that name: {reason}"
    ))
}

/// Starts the network of a guest; returns its end of the stream.
pub(super) fn start(wanted: &GuestNetwork) -> Result<UnixStream, Error> {
    let failed = |source| Error::Io {
        action: "start the guest's network",
        source,
    };
    network::check_ports(&wanted.forwards).map_err(|e| Error::Refused(e.to_string()))?;
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut command = Command::new(PROGRAM);
    command
        .args(["--quiet", "--ipv4-only", "--mtu", "1500"])
        .args(ADDRESSES)
        .args(GATEWAY)
        .args(ASKED_NOTHING)
        .args(["--udp-ports", "none"]);
    if wanted.forwards.is_empty() {
        command.args(["--tcp-ports", "none"]);
    }
    for Forward { host, guest_port } in &wanted.forwards {
        let (address, port) = (host.ip(), host.port());
        command.args(["--tcp-ports", &format!("{address}/{port}:{guest_port}")]);
    }
    // It refuses to begin on a host without a way out.
    if !has_way_out().map_err(failed)? {
        command.args(["--interface", "lo"]);
    }
    command.args(["--fd", &theirs.as_raw_fd().to_string()]);
    let inherited = theirs.as_raw_fd();
    // SAFETY: between fork and exec one async-signal-safe call is made (fcntl), on a descriptor that
    // this process holds until the child has begun.
    unsafe {
        command.pre_exec(move || {
            let fd = std::os::fd::BorrowedFd::borrow_raw(inherited);
            fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
            Ok(())
        });
    }
    // It ends here when it is ready, and goes on in the background.
    let ran = command.stdin(Stdio::null()).current_dir("/").output();
    let ran = ran.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => refused("there is no such program in PATH"),
        _ => failed(e),
    })?;
    if ran.status.success() {
        return Ok(ours);
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    // What it cannot tell a log that is not there matters less.
    let mut lines = said.lines().filter(|line| !line.contains("syslog"));
    let said = lines.next_back().unwrap_or("it said nothing").trim();
    Err(refused(&crate::escaped::line(said)))
}

/// Whether this host has a default route.
fn has_way_out() -> io::Result<bool> {
    let routes = fs::read_to_string(ROUTES)?;
    let mut destinations = routes.lines().skip(1);
    Ok(destinations.any(|route| route.split_whitespace().nth(1) == Some("00000000")))
}
