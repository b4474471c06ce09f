//! What a Linux guest's network card is connected to: passt or a tap.

use std::{
    net::Ipv4Addr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use brood_machine::line::{Connection, Tun};

use super::{
    passt,
    tap::{self, NewTap},
};
use crate::{
    checkpoint::Network,
    engine::{Error, GuestNetwork, Tap, kvm::wire::RequestBytes},
};

/// The host's end of a card.
#[derive(Debug)]
pub(super) enum HostEnd {
    /// A stream to passt.
    Passt(UnixStream),
    /// A tap.
    Tap(NewTap),
}

/// What a guest's process has to know of a tap: where its address and its guest's MAC address stand
/// in a call.
const ADDRESS: std::ops::Range<usize> = 0..4;
const MAC: std::ops::Range<usize> = 4..10;

/// Refuses a network that this host does not have.
pub(super) fn check(network: Network) -> Result<(), Error> {
    match network {
        Network::None => Ok(()),
        Network::User => passt::check(),
        Network::Tap => tap::check(),
    }
}

/// Makes the host's end for the guest of this name, if it is to reach anything. `of_checkpoint` is
/// what it reaches if nothing else is wanted.
pub(super) fn open(
    of_checkpoint: Network,
    wanted: &GuestNetwork,
    guest: &str,
) -> Result<Option<HostEnd>, Error> {
    match wanted.network.unwrap_or(of_checkpoint) {
        Network::None => Ok(None),
        Network::User => passt::start(wanted).map(HostEnd::Passt).map(Some),
        Network::Tap => tap::create(guest).map(HostEnd::Tap).map(Some),
    }
}

impl HostEnd {
    /// What others know of it, if it is a tap.
    pub(super) fn tap(&self) -> Option<&Tap> {
        match self {
            Self::Passt(_) => None,
            Self::Tap(tap) => Some(&tap.facts),
        }
    }

    /// What the process of a guest whose card has the address `mac` is told of it.
    pub(super) fn request(&self, mac: [u8; 6]) -> RequestBytes {
        let mut request = [0; _];
        if let Some(tap) = self.tap() {
            request[ADDRESS].copy_from_slice(&tap.address.octets());
            request[MAC].copy_from_slice(&mac);
        }
        request
    }

    /// Connects a card of this process with it.
    pub(super) fn into_connection(self, mac: [u8; 6]) -> Connection {
        let request = self.request(mac);
        connection(&request, self.into())
    }
}

impl AsFd for HostEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Passt(stream) => stream.as_fd(),
            Self::Tap(tap) => tap.device.as_fd(),
        }
    }
}

impl From<HostEnd> for OwnedFd {
    fn from(end: HostEnd) -> Self {
        match end {
            HostEnd::Passt(stream) => stream.into(),
            HostEnd::Tap(tap) => tap.device.into(),
        }
    }
}

/// What a guest's process has been told of, and handed.
pub(super) fn connection(request: &RequestBytes, fd: OwnedFd) -> Connection {
    let [a, b, c, d] = request[ADDRESS].try_into().expect("four bytes");
    let mac = request[MAC].try_into().expect("six bytes");
    match Ipv4Addr::new(a, b, c, d) {
        Ipv4Addr::UNSPECIFIED => Connection::Stream(fd.into()),
        address => Connection::Tun(Tun::new(fd.into(), address, mac)),
    }
}
