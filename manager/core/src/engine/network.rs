//! Network of guests: whether a guest reaches anything, and ports of this host that lead into it.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    str::FromStr,
};
#[cfg(target_os = "linux")]
use std::{io, net::TcpListener};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

#[cfg(target_os = "linux")]
use crate::checkpoint::Checkpoint;
use crate::checkpoint::Network;

/// Stands for the number at the end of a guest's name.
const NUMBER: &str = "{n}";

/// Why no port of this host leads into a guest on a tap.
const NO_PORTS_OF_TAPS: &str = "--publish is for --net user: a guest on a tap has an address, which \
     `brood show` tells, and this host reaches all of its ports there";

/// A port of this host that is to lead to a port of a guest: `[ADDRESS:]PORT:GUEST_PORT`. `{n}` in
/// the port stands for the number at the end of the guest's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    address: Ipv4Addr,
    port: String,
    guest_port: u16,
}

/// Why something is no [`Publish`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} publishes no port: write PORT:GUEST_PORT, such as 8080:80, or ADDRESS:PORT:GUEST_PORT; \
     {{n}} in PORT stands for the guest's number"
)]
pub struct ParsePublishError(String);

impl FromStr for Publish {
    type Err = ParsePublishError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParsePublishError(text.to_owned());
        let (host, guest_port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let (address, port) = match host.rsplit_once(':') {
            Some((address, port)) => (address.parse().map_err(|_| wrong())?, port),
            None => (Ipv4Addr::LOCALHOST, host),
        };
        let publish = Self {
            address,
            port: port.to_owned(),
            guest_port: number(guest_port).ok_or_else(wrong)?,
        };
        // With a number it is a port, whichever that is.
        publish.port_of("1").ok_or_else(wrong)?;
        Ok(publish)
    }
}

/// A port number, without signs.
fn number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            port,
            guest_port,
        } = self;
        write!(f, "{address}:{port}:{guest_port}")
    }
}

impl Serialize for Publish {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Publish {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl Publish {
    fn port_of(&self, guest: &str) -> Option<u16> {
        number(&self.port.replace(NUMBER, guest))
    }

    /// The port for the guest of this name.
    fn forward(&self, name: &str) -> Result<Forward, String> {
        let digits = name.rsplit(|c: char| !c.is_ascii_digit()).next();
        let port = self.port_of(digits.unwrap_or_default()).ok_or_else(|| {
            format!("--publish {self} makes no port from 1 to 65535 for guest {name}")
        })?;
        Ok(Forward {
            host: SocketAddrV4::new(self.address, port),
            guest_port: self.guest_port,
        })
    }
}

/// An address of this host that leads to a port of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Where this host listens.
    pub host: SocketAddrV4,
    /// The guest's port.
    pub guest_port: u16,
}

impl Forward {
    /// Whether this host cannot listen at both.
    fn meets(&self, other: &Forward) -> bool {
        let (one, two) = (self.host.ip(), other.host.ip());
        let same = one == two || one.is_unspecified() || two.is_unspecified();
        self.host.port() == other.host.port() && same
    }
}

/// A network device of this host that leads to one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tap {
    /// The device's name.
    pub name: String,
    /// The address by which this host knows the guest.
    pub address: Ipv4Addr,
}

/// The network that one guest gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    /// What it reaches; none is for the checkpoint to say.
    pub network: Option<Network>,
    /// What leads into it.
    pub forwards: Vec<Forward>,
}

impl GuestNetwork {
    /// The network of the guest of this name.
    ///
    /// # Errors
    /// When no port can be made of its number.
    pub fn of(network: Option<Network>, publish: &[Publish], name: &str) -> Result<Self, String> {
        let forwards = publish.iter().map(|publish| publish.forward(name));
        Ok(Self {
            network,
            forwards: forwards.collect::<Result<_, _>>()?,
        })
    }
}

impl GuestNetwork {
    /// The network of a new guest of a pool. The names of its guests have numbers that grow for
    /// ever, and ports do not: `{n}` stands for the lowest number whose ports are not `taken`.
    ///
    /// # Errors
    /// When there is no such number.
    pub fn of_pool<'a>(
        network: Option<Network>,
        publish: &[Publish],
        taken: impl Iterator<Item = &'a Forward>,
    ) -> Result<Self, String> {
        let taken: Vec<_> = taken.collect();
        for number in 1..=u16::MAX {
            let wanted = Self::of(network, publish, &number.to_string())?;
            let mut wants = wanted.forwards.iter();
            let Some(met) = wants.find(|new| taken.iter().any(|one| one.meets(new))) else {
                return Ok(wanted);
            };
            if !publish.iter().any(|publish| publish.port.contains(NUMBER)) {
                return Err(format!("port {} leads to another guest", met.host.port()));
            }
        }
        Err("all ports lead to other guests".to_owned())
    }
}

/// Checks that guests of a checkpoint, which have a card for `card`, can have this network.
#[cfg(target_os = "linux")]
pub(super) fn can_have(
    checkpoint: &Checkpoint,
    card: Network,
    wanted: &GuestNetwork,
) -> Result<(), super::Error> {
    let has_ports = !wanted.forwards.is_empty();
    if has_ports && wanted.network.unwrap_or(card) == Network::Tap {
        return Err(super::Error::Refused(NO_PORTS_OF_TAPS.to_owned()));
    }
    let needs_card = wanted.network.is_some_and(Network::has_card) || has_ports;
    if card.has_card() || !needs_card {
        return Ok(());
    }
    Err(super::Error::Checkpoint {
        checkpoint: checkpoint.path().to_string(),
        reason: "its guests have no network card: make one with `brood checkpoint make --net user`"
            .to_owned(),
    })
}

/// Why a port leads into no guest.
#[cfg(target_os = "linux")]
#[derive(Debug, thiserror::Error)]
#[error("cannot publish port {} of {}: {source}", .host.port(), .host.ip())]
pub(super) struct PortTaken {
    host: SocketAddrV4,
    source: io::Error,
}

/// Makes sure that this host can listen where it is to: what listens there would say no more than
/// that it cannot.
#[cfg(target_os = "linux")]
pub(super) fn check_ports(forwards: &[Forward]) -> Result<(), PortTaken> {
    forwards.iter().try_for_each(|&Forward { host, .. }| {
        let taken = |source| PortTaken { host, source };
        TcpListener::bind(host).map(drop).map_err(taken)
    })
}

/// Checks what is wanted of the network of so many guests, as far as no engine need know.
///
/// # Errors
/// When several guests would listen on one port, or there is no network to publish from.
pub fn check(network: Option<Network>, publish: &[Publish], guests: u32) -> Result<(), String> {
    let Some(first) = publish.first() else {
        return Ok(());
    };
    if network == Some(Network::None) {
        return Err(format!(
            "--publish {first} needs a network, and --net none leaves guests without one"
        ));
    }
    if network == Some(Network::Tap) {
        return Err(NO_PORTS_OF_TAPS.to_owned());
    }
    let shared = publish.iter().find(|one| !one.port.contains(NUMBER));
    match shared {
        Some(shared) if guests > 1 => Err(format!(
            "{guests} guests cannot have one port: --publish {shared} needs {NUMBER} in the port, \
             which stands for the guest's number"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(text: &str) -> Publish {
        text.parse().unwrap()
    }

    #[test]
    fn ports_are_read_and_written() {
        for (text, whole) in [
            ("8080:80", "127.0.0.1:8080:80"),
            ("0.0.0.0:8{n}:80", "0.0.0.0:8{n}:80"),
        ] {
            assert_eq!(publish(text).to_string(), whole);
            assert_eq!(publish(whole), publish(text));
        }
        for wrong in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:0",
            "x:80",
            "+80:80",
            "80:65536",
            "70000:80",
            "host:80:80",
            "{n}{n}{n}{n}{n}{n}:80",
            "{m}:80",
        ] {
            assert!(wrong.parse::<Publish>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn each_guest_has_a_port_of_its_own() {
        let network = |text: &str, name| GuestNetwork::of(None, &[publish(text)], name);
        let port = |text, name| network(text, name).unwrap().forwards[0].host.port();
        assert_eq!(port("80{n}:80", "web-12"), 8012);
        assert_eq!(port("8080:80", "web-12"), 8080);
        assert!(
            network("8{n}:80", "web-99999")
                .unwrap_err()
                .contains("web-99999")
        );
        assert!(
            network("8{n}:80", "web").is_ok(),
            "a name without a number adds nothing"
        );
        // Guests of a pool have the lowest ports that nobody has.
        let wanted = [publish("80{n}:80"), publish("127.0.0.2:90{n}:90")];
        let mut taken = Vec::new();
        for expected in [801, 802, 803] {
            let network = GuestNetwork::of_pool(None, &wanted, taken.iter()).unwrap();
            assert_eq!(network.forwards[0].host.port(), expected);
            taken.extend(network.forwards);
        }
        drop(taken.drain(2..4));
        // A port that any address of this host has.
        taken.push(
            GuestNetwork::of(None, &[publish("0.0.0.0:902:1")], "")
                .unwrap()
                .forwards[0],
        );
        let network = GuestNetwork::of_pool(None, &wanted, taken.iter()).unwrap();
        assert_eq!(network.forwards[1].host.port(), 904);
        let only = [publish("801:80")];
        let taken = GuestNetwork::of_pool(None, &only, [].iter())
            .unwrap()
            .forwards;
        let refused = GuestNetwork::of_pool(None, &only, taken.iter()).unwrap_err();
        assert!(refused.contains("801"), "{refused}");
        check(None, &[publish("8080:80")], 1).unwrap();
        check(None, &[publish("80{n}:80")], 9).unwrap();
        assert!(check(None, &[publish("8080:80")], 2).is_err());
        for without_ports in [Network::None, Network::Tap] {
            assert!(check(Some(without_ports), &[publish("8080:80")], 1).is_err());
        }
    }
}
