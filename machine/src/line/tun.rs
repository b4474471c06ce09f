//! Line to a TUN device of the host: IP packets, whose frames and addresses end here.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::Ipv4Addr,
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd},
};

use super::{
    arp::{self, GATEWAY, HEADER, IPV4},
    translation::Translation,
};
use crate::virtio::net::FRAME_MAX;

/// A TUN device (`IFF_TUN`, `IFF_NO_PI` of linux/if_tun.h), whose descriptor does not block.
#[derive(Debug)]
pub struct Tun {
    device: File,
    translation: Translation,
    mac: [u8; 6],
}

impl Tun {
    /// The device for a guest whose card has the address `mac`, and whom the host knows by `seen`.
    #[must_use]
    pub fn new(device: File, seen: Ipv4Addr, mac: [u8; 6]) -> Self {
        let translation = Translation { guest_seen: seen };
        Self {
            device,
            translation,
            mac,
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Takes a frame of the guest; returns one that answers it.
    pub(super) fn send(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let (header, packet) = frame.split_at_checked(HEADER)?;
        if header[12..] != IPV4 {
            return arp::answer(frame);
        }
        let mut packet = packet.to_vec();
        if self.translation.outward(&mut packet) {
            // What the host does not take is lost, as on any network.
            let _ = (&self.device).write(&packet);
        }
        None
    }

    /// Reads a packet, and gives its frame if it is for the guest; whether there may be another.
    pub(super) fn read(&self, give: impl FnOnce(&[u8])) -> io::Result<ControlFlow<()>> {
        let mut frame = [0; FRAME_MAX];
        let (header, packet) = frame.split_at_mut(HEADER);
        let length = match (&self.device).read(packet) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(ControlFlow::Break(())),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(ControlFlow::Break(())),
            Err(e) => return Err(e),
        };
        if self.translation.inward(&mut packet[..length]) {
            header[..6].copy_from_slice(&self.mac);
            header[6..12].copy_from_slice(&GATEWAY);
            header[12..].copy_from_slice(&IPV4);
            give(&frame[..HEADER + length]);
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::{fd::OwnedFd, unix::net::UnixDatagram};

    use super::*;
    use crate::line::translation::{GUEST, HOST, HOST_SEEN};

    /// A packet without a transport's header.
    fn packet(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let header = [0x45, 0, 0, 24, 0, 0, 0, 0, 64, 253, 0, 0];
        [&header[..], &from.octets(), &to.octets(), &[7; 4]].concat()
    }

    #[test]
    fn packets_of_the_host_are_frames_of_the_guest() {
        let (ours, host) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        host.set_nonblocking(true).unwrap();
        let seen = Ipv4Addr::new(198, 18, 0, 2);
        let tun = Tun::new(OwnedFd::from(ours).into(), seen, [2, 0, 0, 0, 0, 9]);
        let header = [&[0; 12][..], &IPV4].concat();
        for (from, passes) in [(GUEST, true), (HOST, false)] {
            let frame = [&header[..], &packet(from, HOST)].concat();
            assert_eq!(tun.send(&frame), None);
            let mut heard = [0; 100];
            let length = host.recv(&mut heard);
            assert_eq!(length.is_ok(), passes);
            if passes {
                assert_eq!(
                    (&heard[12..16], &heard[20..24]),
                    (&seen.octets()[..], &[7; 4][..])
                );
            }
        }
        for (to, passes) in [(GUEST, false), (seen, true)] {
            host.send(&packet(HOST_SEEN, to)).unwrap();
            let mut given = Vec::new();
            assert!(
                tun.read(|frame| given = frame.to_vec())
                    .unwrap()
                    .is_continue()
            );
            assert_eq!(!given.is_empty(), passes);
            if passes {
                assert_eq!(given[..6], [2, 0, 0, 0, 0, 9]);
                assert_eq!(given[26..34], [HOST.octets(), GUEST.octets()].concat());
            }
        }
        assert!(tun.read(|_| panic!("there is none")).unwrap().is_break());
    }
}
