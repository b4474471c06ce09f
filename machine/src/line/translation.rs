//! Translation of a guest's addresses. All clones of a guest have the same address; the host knows
//! each by another, and changes between them in every packet as it passes.
//!
//! The host has an address of its own for guests, too: that by which guests know it may be one that
//! the host knows otherwise (QEMU's user network and VirtualBox have the same ones).
//!
//! A checksum is changed by what the addresses in it have changed (RFC 1624), so that one that was
//! wrong stays wrong.

use std::net::Ipv4Addr;

/// The address that each guest has.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The address by which a guest knows the host.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The address that the host has for its guests. Those by which it knows them follow.
pub const HOST_SEEN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// What is common to all of them (RFC 2544 sets it aside).
const SEEN_PREFIX: [u8; 2] = [198, 18];
const SEEN_MASK: u8 = 0xfe;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Shortest header of a packet.
const HEADER: usize = 20;
const CHECKSUM_AT: usize = 10;
const SOURCE_AT: usize = 12;
const DESTINATION_AT: usize = 16;
/// Messages of ICMP about a packet, which they have behind eight bytes: unreachable, source quench,
/// redirect, time exceeded, parameter problem.
const ABOUT_A_PACKET: [u8; 5] = [3, 4, 5, 11, 12];
const ABOUT_AT: usize = 8;

/// Translation for one guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Translation {
    /// The address by which the host knows the guest.
    pub(super) guest_seen: Ipv4Addr,
}

/// Two addresses, and what each becomes.
type Pairs = [(Ipv4Addr, Ipv4Addr); 2];

/// Whether an address is one by which the host knows a guest.
fn is_of_guests(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    [first, second & SEEN_MASK] == SEEN_PREFIX && address != HOST_SEEN
}

impl Translation {
    /// Changes a packet of the guest into the host's; whether it is to be passed on.
    pub(super) fn outward(&self, packet: &mut [u8]) -> bool {
        // Another guest is not reached, whatever the host does with the packet.
        let passes = |source, destination| source == GUEST && !is_of_guests(destination);
        let pairs = [(GUEST, self.guest_seen), (HOST, HOST_SEEN)];
        translate(packet, passes, &pairs).is_some()
    }

    /// Changes a packet for the guest into its own; whether it is to be passed on.
    pub(super) fn inward(&self, packet: &mut [u8]) -> bool {
        let seen = self.guest_seen;
        let passes = |source, destination| destination == seen && !is_of_guests(source);
        let pairs = [(seen, GUEST), (HOST_SEEN, HOST)];
        translate(packet, passes, &pairs).is_some()
    }
}

fn translate(
    packet: &mut [u8],
    passes: impl Fn(Ipv4Addr, Ipv4Addr) -> bool,
    pairs: &Pairs,
) -> Option<()> {
    let header = header_length(packet)?;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    // Behind a short packet there may be what fills up a frame.
    let packet = packet.get_mut(..total).filter(|_| total >= header)?;
    if !passes(address(packet, SOURCE_AT), address(packet, DESTINATION_AT)) {
        return None;
    }
    let change = change_header(packet, pairs);
    let begins = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff == 0;
    let (protocol, rest) = (packet[9], &mut packet[header..]);
    match protocol {
        // Later fragments have no header of these.
        _ if !begins => {}
        TCP => change.apply(rest, 16),
        // A checksum of 0 is none.
        UDP if rest.get(6..8) != Some(&[0, 0]) => {
            change.apply(rest, 6);
            if let Some(sum @ [0, 0]) = rest.get_mut(6..8) {
                sum.fill(0xff);
            }
        }
        ICMP if rest
            .first()
            .is_some_and(|kind| ABOUT_A_PACKET.contains(kind)) =>
        {
            if let Some(about) = rest.get_mut(ABOUT_AT..)
                && header_length(about).is_some()
            {
                // The sum over the message stays: that packet's own checksum makes up for it.
                let _ = change_header(about, pairs);
            }
        }
        _ => {}
    }
    Some(())
}

/// Length of the header of a packet that is one.
fn header_length(packet: &[u8]) -> Option<usize> {
    let first = packet.first()?;
    let length = usize::from(first & 0xf) * 4;
    (first >> 4 == 4 && length >= HEADER && packet.len() >= length).then_some(length)
}

fn address(packet: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3])
}

/// Changes both addresses of a packet, and its header's checksum.
fn change_header(packet: &mut [u8], pairs: &Pairs) -> Change {
    let mut change = Change(0);
    for at in [SOURCE_AT, DESTINATION_AT] {
        let was = address(packet, at);
        let becomes = pairs.iter().find(|(from, _)| *from == was);
        if let Some((_, to)) = becomes {
            change.add(was, *to);
            packet[at..at + 4].copy_from_slice(&to.octets());
        }
    }
    change.apply(packet, CHECKSUM_AT);
    change
}

/// By how much the sum of 16-bit words has changed, in ones' complement.
#[derive(Clone, Copy)]
struct Change(u32);

impl Change {
    fn add(&mut self, old: Ipv4Addr, new: Ipv4Addr) {
        let [a, b, c, d] = old.octets().map(|byte| !byte);
        let [e, f, g, h] = new.octets();
        for word in [[a, b], [c, d], [e, f], [g, h]] {
            self.0 += u32::from(u16::from_be_bytes(word));
        }
    }

    /// Changes the checksum there, if there is one.
    fn apply(self, bytes: &mut [u8], at: usize) {
        if let Some(sum) = bytes.get_mut(at..at + 2) {
            let was = u32::from(!u16::from_be_bytes([sum[0], sum[1]]));
            let mut new = was + self.0;
            while new > 0xffff {
                new = (new & 0xffff) + (new >> 16);
            }
            let [_, _, high, low] = (!new).to_be_bytes();
            sum.copy_from_slice(&[high, low]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Ipv4Addr = Ipv4Addr::new(198, 18, 3, 7);
    const TRANSLATION: Translation = Translation { guest_seen: SEEN };

    /// Sum of 16-bit words: 0xffff over what has its checksum in it.
    fn sum(parts: &[&[u8]]) -> u16 {
        let mut sum = 0_u32;
        for part in parts {
            for word in part.chunks(2) {
                sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
            }
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum.try_into().unwrap()
    }

    fn packet(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; HEADER];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&u16::try_from(HEADER + rest.len()).unwrap().to_be_bytes());
        packet[8] = 64;
        packet[9] = protocol;
        packet[SOURCE_AT..][..4].copy_from_slice(&from.octets());
        packet[DESTINATION_AT..][..4].copy_from_slice(&to.octets());
        let checksum = !sum(&[&packet]);
        packet[CHECKSUM_AT..][..2].copy_from_slice(&checksum.to_be_bytes());
        packet.extend(rest);
        packet
    }

    /// With a checksum over the addresses, too, at this place.
    fn with_checksum(mut packet: Vec<u8>, at: usize) -> Vec<u8> {
        let checksum = !sum_of_rest(&packet);
        packet[HEADER + at..][..2].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    fn sum_of_rest(packet: &[u8]) -> u16 {
        let length = u16::try_from(packet.len() - HEADER).unwrap();
        let pseudo = [&[0, packet[9]][..], &length.to_be_bytes()].concat();
        sum(&[&packet[SOURCE_AT..HEADER], &pseudo, &packet[HEADER..]])
    }

    fn ends(packet: &[u8]) -> (Ipv4Addr, Ipv4Addr) {
        (address(packet, SOURCE_AT), address(packet, DESTINATION_AT))
    }

    #[test]
    fn packets_and_their_checksums_are_translated_both_ways() {
        let elsewhere = Ipv4Addr::new(192, 0, 2, 9);
        for (protocol, at) in [(TCP, 16), (UDP, 6)] {
            for (theirs, ours) in [(HOST, HOST_SEEN), (elsewhere, elsewhere)] {
                for n in 0..=u8::MAX {
                    let rest: Vec<u8> = (0..24 + n % 2).map(|byte| byte ^ n).collect();
                    let mut rest = rest;
                    rest[at..at + 2].fill(0);
                    let sent = with_checksum(packet(protocol, GUEST, theirs, &rest), at);
                    let mut there = sent.clone();
                    assert!(TRANSLATION.outward(&mut there));
                    assert_eq!(ends(&there), (SEEN, ours));
                    assert_eq!(sum(&[&there[..HEADER]]), 0xffff);
                    assert_eq!(sum_of_rest(&there), 0xffff);
                    let mut answer = with_checksum(packet(protocol, ours, SEEN, &rest), at);
                    assert!(TRANSLATION.inward(&mut answer));
                    assert_eq!(ends(&answer), (theirs, GUEST));
                    assert_eq!(sum(&[&answer[..HEADER]]), 0xffff);
                    assert_eq!(sum_of_rest(&answer), 0xffff);
                }
            }
        }
        // None is no checksum, and what fills up a frame is no part of a packet.
        let mut plain = packet(UDP, GUEST, HOST, &[0; 12]);
        plain.extend([9; 5]);
        assert!(TRANSLATION.outward(&mut plain));
        assert_eq!(plain[HEADER..], [&[0; 12][..], &[9; 5]].concat());
    }

    #[test]
    fn a_message_about_a_packet_names_it_as_the_guest_knows_it() {
        let about = packet(UDP, SEEN, HOST_SEEN, &[7; 8]);
        let mut message = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &about].concat();
        let checksum = !sum(&[&message]);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let mut message = packet(ICMP, HOST_SEEN, SEEN, &message);
        assert!(TRANSLATION.inward(&mut message));
        assert_eq!(ends(&message), (HOST, GUEST));
        let about = &message[HEADER + ABOUT_AT..];
        assert_eq!(ends(about), (GUEST, HOST));
        assert_eq!(sum(&[&about[..HEADER]]), 0xffff);
        assert_eq!(sum(&[&message[HEADER..]]), 0xffff);
    }

    #[test]
    fn a_guest_is_no_other_guest_and_reaches_none() {
        let sibling = Ipv4Addr::new(198, 19, 0, 4);
        for (from, to) in [
            (sibling, HOST),
            (SEEN, HOST),
            (GUEST, sibling),
            (GUEST, SEEN),
        ] {
            assert!(
                !TRANSLATION.outward(&mut packet(TCP, from, to, &[0; 20])),
                "{from} {to}"
            );
        }
        for (from, to) in [(sibling, SEEN), (HOST_SEEN, sibling), (HOST_SEEN, GUEST)] {
            assert!(
                !TRANSLATION.inward(&mut packet(TCP, from, to, &[0; 20])),
                "{from} {to}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_packet_is_too_strange(
            mut rest in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
            length in 0_usize..100,
            first in 0x40_u8..0x50,
        ) {
            let mut whole = packet(ICMP, GUEST, HOST, &rest);
            whole[0] = first;
            whole.truncate(length);
            let _ = TRANSLATION.outward(&mut whole);
            let _ = TRANSLATION.inward(&mut rest);
        }
    }
}
