//! Answers to a guest that asks which card has an address (ARP, RFC 826): each address but its own is
//! the gateway's, and the gateway's card is the line.

use std::net::Ipv4Addr;

use super::translation::GUEST;

/// Length of an Ethernet frame's header.
pub(super) const HEADER: usize = 14;
/// What a frame has in it.
pub(super) const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
/// A request about an address of IPv4, to cards of Ethernet.
const REQUEST: [u8; 8] = [0, 1, 0x08, 0, 6, 4, 0, 1];
/// Length of it.
const LENGTH: usize = 28;
/// The gateway's card: the same for all clones, since a guest remembers it; and the one that passt
/// has, so that a guest may change from one network to the other.
pub(super) const GATEWAY: [u8; 6] = [0x52, 0x55, 0x0a, 0, 0x02, 0x02];

/// The answer to a frame, if it is such a question.
pub(super) fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let question = frame.get(HEADER..HEADER + LENGTH)?;
    if frame[12..HEADER] != ARP || question[..8] != REQUEST {
        return None;
    }
    let (asks, address, wanted) = (&question[8..14], &question[14..18], &question[24..28]);
    let is_own = wanted == GUEST.octets() || wanted == Ipv4Addr::UNSPECIFIED.octets();
    if is_own || wanted == address {
        return None;
    }
    let mut answer = [&frame[6..12], &GATEWAY, &ARP, &question[..7], &[2]].concat();
    for part in [&GATEWAY, wanted, asks, address] {
        answer.extend(part);
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(wanted: Ipv4Addr) -> Vec<u8> {
        let mac = [2, 0, 0, 0, 0, 9];
        let mut frame = [&[0xff; 6][..], &mac, &ARP, &REQUEST, &mac].concat();
        frame.extend(GUEST.octets());
        frame.extend([0; 6]);
        frame.extend(wanted.octets());
        frame
    }

    #[test]
    fn the_gateway_answers_for_all_but_the_guest() {
        let host = Ipv4Addr::new(10, 0, 2, 2);
        let answer_of = answer(&question(host)).unwrap();
        let expected = [
            &[
                2, 0, 0, 0, 0, 9, 0x52, 0x55, 10, 0, 2, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2,
            ][..],
            &[
                0x52, 0x55, 10, 0, 2, 2, 10, 0, 2, 2, 2, 0, 0, 0, 0, 9, 10, 0, 2, 15,
            ],
        ];
        assert_eq!(answer_of, expected.concat());
        assert_eq!(answer(&question(GUEST)), None);
        assert_eq!(answer(&answer_of), None);
        assert_eq!(answer(&question(host)[..HEADER + LENGTH - 1]), None);
    }
}
