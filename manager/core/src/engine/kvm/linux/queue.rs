//! Queue of a network device, by the kernel's rtnetlink(7): none. A default queue (fq_codel) takes
//! 70 KiB for each device, and keeps megabytes of packets for a guest that is paused.

use std::{
    io::{self, IoSlice},
    os::fd::AsRawFd,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, socket,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A request to set a device's queue: `struct nlmsghdr`, `struct tcmsg` and an attribute, of the
/// headers linux/netlink.h and linux/rtnetlink.h.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Request {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    sender: u32,
    family: [u8; 4],
    device: i32,
    handle: u32,
    parent: u32,
    info: u32,
    attribute_length: u16,
    attribute: u16,
    name: [u8; 8],
}

/// The answer: `struct nlmsghdr`, and the error of `struct nlmsgerr`.
#[derive(FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
struct Answer {
    header: [u32; 4],
    /// A number of errno(3), negated; 0 when it was done.
    error: i32,
}

/// Its place: the root of all queues of a device (`TC_H_ROOT`).
const ROOT: u32 = u32::MAX;
/// `TCA_KIND`: the attribute that names a queue.
const KIND: u16 = 1;

/// Has the device of this index pass on packets without a queue.
pub(super) fn remove(device: u32) -> io::Result<()> {
    let number = |n: i32| u16::try_from(n).expect("flags and kinds of messages have 16 bits");
    let request = Request {
        length: u32::try_from(size_of::<Request>()).expect("it is short"),
        kind: libc::RTM_NEWQDISC,
        flags: number(
            libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
        ),
        sequence: 1,
        sender: 0,
        family: [0; 4],
        device: i32::try_from(device).map_err(io::Error::other)?,
        handle: 0,
        parent: ROOT,
        info: 0,
        attribute_length: 12,
        attribute: KIND,
        name: *b"noqueue\0",
    };
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let kernel = NetlinkAddr::new(0, 0);
    let data = [IoSlice::new(request.as_bytes())];
    sendmsg(
        socket.as_raw_fd(),
        &data,
        &[],
        MsgFlags::empty(),
        Some(&kernel),
    )?;
    let mut bytes = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
    let answer = Answer::read_from_prefix(&bytes[..length]);
    let (answer, _) = answer.map_err(|_| io::ErrorKind::UnexpectedEof)?;
    match answer.error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
