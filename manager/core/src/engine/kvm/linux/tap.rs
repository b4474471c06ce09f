//! Taps: a network device of the host for each guest, whose other end its process holds.
//!
//! A tap is a TUN device. It lives as long as its descriptor is open (it is not persistent), so it
//! goes with the guest's process, however that ends, and nothing is left to be swept. The kernel
//! gives it the lowest number that is free, and the number makes the address by which the host knows
//! the guest: so two commands need not agree on one, and a guest that is suspended and restored
//! while nobody takes its number keeps it, with its connections.
//!
//! A guest reaches the host and nothing behind it, and no other guest: the kernel takes from the
//! device only packets of its guest's address, and forwards none. Each guest's process besides drops
//! what goes to another guest or comes from one (`brood_machine::line`).

use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

use super::queue;
use brood_machine::line::HOST_SEEN;
use caps::{CapSet, Capability};
use libc::{c_int, c_short, ifreq};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::engine::{Error, Tap};

/// Where TUN devices are made.
const MAKER: &str = "/dev/net/tun";
/// Names of taps: the kernel puts a number in.
const NAMES: &str = "brood%d";
const PREFIX: &str = "brood";
/// The last address for guests, of those that follow the host's.
const LAST: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 254);

/// Packets that wait for a guest at most, a paused one's too; the device has room for them from the
/// start.
const WAITING_MAX: c_int = 64;

/// What a device is set to before it is used; see ip-sysctl.rst of the kernel's documentation.
const SETTINGS: [(&str, &str, &str); 3] = [
    // Packets of another address than the guest's are dropped.
    ("ipv4", "rp_filter", "1"),
    // Nothing that comes from the guest is passed on to another device.
    ("ipv4", "forwarding", "0"),
    ("ipv6", "disable_ipv6", "1"),
];

nix::ioctl_readwrite_bad!(set_interface, libc::TUNSETIFF, ifreq);
nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFADDR, ifreq);
nix::ioctl_write_ptr_bad!(set_peer, libc::SIOCSIFDSTADDR, ifreq);
nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, ifreq);
nix::ioctl_write_ptr_bad!(set_queue_length, libc::SIOCSIFTXQLEN, ifreq);
nix::ioctl_readwrite_bad!(get_index, libc::SIOCGIFINDEX, ifreq);

/// A tap whose guest has not begun. It goes with this value, unless a process has its descriptor.
#[derive(Debug)]
pub(super) struct NewTap {
    pub(super) device: File,
    pub(super) facts: Tap,
}

fn refused(reason: &str) -> Error {
    Error::Refused(format!("--net tap {reason}"))
}

fn not_permitted() -> Error {
    refused(
        "makes network devices, which needs the capability CAP_NET_ADMIN over this host's network: \
         run brood as root, or use --net user",
    )
}

fn failed(source: impl Into<io::Error>) -> Error {
    Error::Io {
        action: "make the guest's tap",
        source: source.into(),
    }
}

/// Refuses where taps cannot be made.
pub(super) fn check() -> Result<(), Error> {
    let may = caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN);
    if !may.unwrap_or(false) {
        return Err(not_permitted());
    }
    open().map(drop)
}

fn open() -> Result<File, Error> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(MAKER);
    file.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            refused(&format!("needs {MAKER}, which is not there: modprobe tun"))
        }
        _ => failed(e),
    })
}

/// A request about the device of this name.
fn about(name: &str) -> ifreq {
    // SAFETY: all fields are numbers, arrays of numbers or unions of these, which may be zero.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

fn with_address(name: &str, address: Ipv4Addr) -> ifreq {
    let mut request = about(name);
    let family = u16::try_from(libc::AF_INET).expect("families are small");
    let internet = libc::sockaddr_in {
        sin_family: family,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.octets()),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain bytes of one size; sockaddr_in is a form of sockaddr (ip(7)).
    let address = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(internet) };
    request.ifr_ifru.ifru_addr = address;
    request
}

/// The address by which the host knows the guest of this device.
fn address_of(name: &str) -> Option<Ipv4Addr> {
    let number: u32 = name.strip_prefix(PREFIX)?.parse().ok()?;
    let address = u32::from(HOST_SEEN).checked_add(1)?.checked_add(number)?;
    let address = Ipv4Addr::from(address);
    (address <= LAST).then_some(address)
}

/// Makes the tap of a guest, which goes by this name.
pub(super) fn create(guest: &str) -> Result<NewTap, Error> {
    let device = open()?;
    let mut request = about(NAMES);
    let kind = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = flags(kind);
    // SAFETY: the descriptor is of a TUN device's maker, and the request is one of its kind.
    let made = unsafe { set_interface(device.as_raw_fd(), &raw mut request) };
    made.map_err(|e| match e {
        // Root of a user namespace has the capability, and it is of no use for a network outside.
        Errno::EPERM => not_permitted(),
        e => failed(e),
    })?;
    let name: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|c| c.to_ne_bytes()[0])
        .collect();
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    let address = address_of(&name).ok_or_else(|| refused("has no address left for a guest"))?;
    // So that a list of devices says whose it is. Without that it serves as well.
    let _ = fs::write(format!("/sys/class/net/{name}/ifalias"), guest);
    for (protocol, setting, value) in SETTINGS {
        let file = format!("/proc/sys/net/{protocol}/conf/{name}/{setting}");
        match fs::write(file, value) {
            // Without the protocol there is nothing to be set.
            Err(e) if e.kind() == io::ErrorKind::NotFound && protocol == "ipv6" => {}
            written => written.map_err(failed)?,
        }
    }
    let of_host = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed)?;
    let mut index = about(&name);
    let mut length = about(&name);
    length.ifr_ifru.ifru_metric = WAITING_MAX;
    // SAFETY: the socket is of the network's, and each request has the field set that it is about
    // (netdevice(7)). The kernel writes the index there.
    let index = unsafe {
        set_queue_length(of_host.as_raw_fd(), &raw const length).map_err(failed)?;
        get_index(of_host.as_raw_fd(), &raw mut index).map_err(failed)?;
        index.ifr_ifru.ifru_ifindex
    };
    queue::remove(index.unsigned_abs()).map_err(failed)?;
    let mut up = about(&name);
    up.ifr_ifru.ifru_flags = flags(libc::IFF_UP | libc::IFF_POINTOPOINT | libc::IFF_NOARP);
    let (ours, theirs) = (with_address(&name, HOST_SEEN), with_address(&name, address));
    // SAFETY: the socket is of IPv4, and each request has the field set that it is about
    // (netdevice(7)). The kernel copies them.
    unsafe {
        set_address(of_host.as_raw_fd(), &raw const ours)
            .and_then(|_| set_peer(of_host.as_raw_fd(), &raw const theirs))
            .and_then(|_| set_flags(of_host.as_raw_fd(), &raw const up))
    }
    .map_err(failed)?;
    Ok(NewTap {
        device,
        facts: Tap { name, address },
    })
}

fn flags(flags: c_int) -> c_short {
    c_short::try_from(flags).expect("flags of a device have 16 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_makes_an_address() {
        let address = |name: &str| address_of(name).map(|address| address.to_string());
        assert_eq!(address("brood0").as_deref(), Some("198.18.0.2"));
        assert_eq!(address("brood254").as_deref(), Some("198.18.1.0"));
        assert_eq!(address("brood131068").as_deref(), Some("198.19.255.254"));
        for none in ["brood131069", "brood4294967295", "brood", "tap0"] {
            assert_eq!(address(none), None, "{none}");
        }
    }
}
