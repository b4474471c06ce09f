//! Network interfaces: taps, bridges and the loopback, and which process has a tap open
//! (sys/net/if_tuntap.c, if_bridge.c, if_clone.c).

use std::fs::{self, File, OpenOptions};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{
    errno::{EBUSY, EEXIST, EINVAL, ENOENT, ENXIO, Errno},
    sysctl,
    world::World,
};

/// An interface.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Interface {
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    pub(crate) ether: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) addresses: Vec<String>,
    pub(crate) groups: Vec<String>,
    /// Of a bridge: its members.
    pub(crate) members: Vec<String>,
    /// The bridge that it is a member of.
    #[serde(default)]
    pub(crate) bridge: Option<String>,
    /// The device of a tap that was renamed.
    pub(crate) device: Option<String>,
    /// A process waits for its close to destroy it.
    pub(crate) dying: bool,
}

/// Longest name of an interface (`IFNAMSIZ` of net/if.h, less the zero).
pub(crate) const NAME_MAX: usize = 15;

const CLONERS: [&str; 5] = ["tap", "bridge", "vlan", "epair", "lo"];

fn key(name: &str) -> String {
    format!("net/{name}")
}

/// The interface of this name.
pub(crate) fn get(world: &World, name: &str) -> Option<Interface> {
    if name.is_empty() || name.contains('/') {
        return None;
    }
    world.load(&key(name)).ok().flatten()
}

/// Writes it back. The world is locked.
pub(crate) fn put(world: &World, name: &str, interface: &Interface) -> Result<(), Errno> {
    world.store(&key(name), interface).map_err(Errno::from)
}

/// Names of all interfaces, those with numbers in the order of the numbers.
pub(crate) fn names(world: &World) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in fs::read_dir(world.path("net"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_by_key(|name| {
        let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
        let kind = name[..name.len() - digits.len()].to_owned();
        (kind, digits.parse::<u64>().unwrap_or_default())
    });
    Ok(names)
}

/// The kind and the unit of a name such as `tap5`.
pub(crate) fn kind(name: &str) -> Option<(&'static str, Option<u32>)> {
    let cloner = CLONERS.iter().find(|cloner| {
        let unit = name.strip_prefix(**cloner);
        unit.is_some_and(|unit| unit.chars().all(|c| c.is_ascii_digit()))
    })?;
    let unit = &name[cloner.len()..];
    match unit.parse() {
        Ok(unit) => Some((cloner, Some(unit))),
        Err(_) => unit.is_empty().then_some((cloner, None)),
    }
}

/// Creates an interface; without a unit, of the first free one. Returns its name.
///
/// # Errors
/// `EEXIST`, and `EINVAL` for a kind that there is not.
pub(crate) fn create(world: &World, name: &str) -> Result<String, Errno> {
    let _guard = world.lock()?;
    create_locked(world, name)
}

fn create_locked(world: &World, name: &str) -> Result<String, Errno> {
    let (kind, unit) = kind(name).ok_or(EINVAL)?;
    let name = match unit {
        Some(unit) => format!("{kind}{unit}"),
        None => {
            let free = |unit: &u32| {
                let name = format!("{kind}{unit}");
                get(world, &name).is_none() && !world.path("dev").join(name).exists()
            };
            format!("{kind}{}", (0..).find(free).ok_or(EINVAL)?)
        }
    };
    if name.len() > NAME_MAX {
        return Err(EINVAL);
    }
    if get(world, &name).is_some() {
        return Err(EEXIST);
    }
    let mut octets = [0; 4];
    getrandom::fill(&mut octets).map_err(|_| ENXIO)?;
    let [a, b, c, d] = octets;
    // The prefix is that of the FreeBSD Foundation, as if_tuntap.c and if_bridge.c have it.
    let ether = format!("58:9c:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
    let mut interface = Interface {
        mtu: 1500,
        ether: (kind != "lo").then_some(ether),
        groups: vec![kind.to_owned()],
        ..Interface::default()
    };
    if kind == "tap" {
        // The device of an interface that was renamed is still there.
        let path = world.path("dev").join(&name);
        File::create_new(path)?;
        interface.device = Some(name.clone());
    }
    put(world, &name, &interface)?;
    Ok(name)
}

/// The interface that has this tap device.
fn of_device(world: &World, device: &str) -> Result<Option<(String, Interface)>, Errno> {
    let is = |interface: &Interface| interface.device.as_deref() == Some(device);
    // Its own name, unless it was renamed.
    if let Some(interface) = get(world, device).filter(is) {
        return Ok(Some((device.to_owned(), interface)));
    }
    for name in names(world)? {
        if let Some(interface) = get(world, &name)
            && is(&interface)
        {
            return Ok(Some((name, interface)));
        }
    }
    Ok(None)
}

fn device(world: &World, name: &str) -> Result<File, Errno> {
    let path = world.path("dev").join(name);
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(Errno::from)
}

/// open(2) of `/dev/NAME`; closed with the file, so also when its process is killed. A tap that
/// there is not is created, unless `net.link.tap.devfs_cloning` is 0 (tunopen(), tunclone()).
///
/// # Errors
/// `EBUSY` when a process has it open or waits for it to go; `ENOENT`.
pub(crate) fn open_tap(world: &World, name: &str) -> Result<Flock<File>, Errno> {
    let _guard = world.lock()?;
    let mut interface = of_device(world, name)?;
    if interface.is_none() {
        let clones = sysctl::number(world, "net.link.tap.devfs_cloning")? != 0;
        if !clones || !matches!(kind(name), Some(("tap", Some(_)))) {
            return Err(ENOENT);
        }
        create_locked(world, name)?;
        interface = of_device(world, name)?;
    }
    let (interface_name, mut interface) = interface.ok_or(ENOENT)?;
    if interface.dying {
        return Err(EBUSY);
    }
    let lock = Flock::lock(device(world, name)?, FlockArg::LockExclusiveNonblock);
    let lock = lock.map_err(|_| EBUSY)?;
    // tap_init() of net_backends.c brings the link up.
    interface.up = true;
    put(world, &interface_name, &interface)?;
    Ok(lock)
}

/// Whether a process has the tap open.
pub(crate) fn is_open(world: &World, interface: &Interface) -> bool {
    let Some(name) = &interface.device else {
        return false;
    };
    device(world, name)
        .is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err())
}

/// Destroys an interface. For a tap that is open this waits until it is closed (tun_destroy()).
///
/// # Errors
/// `ENXIO` without such an interface.
pub(crate) fn destroy(world: &World, name: &str) -> Result<(), Errno> {
    let waiting = {
        let _guard = world.lock()?;
        let mut interface = get(world, name).ok_or(ENXIO)?;
        if interface.dying {
            return Err(EBUSY);
        }
        interface.dying = true;
        put(world, name, &interface)?;
        interface
            .device
            .map(|device_name| device(world, &device_name))
            .transpose()?
    };
    let _closed = match waiting {
        Some(file) => Some(Flock::lock(file, FlockArg::LockExclusive).map_err(|_| EBUSY)?),
        None => None,
    };
    let _guard = world.lock()?;
    let interface = get(world, name).ok_or(ENXIO)?;
    if let Some(bridge) = &interface.bridge
        && let Some(mut other) = get(world, bridge)
    {
        other.members.retain(|member| member != name);
        put(world, bridge, &other)?;
    }
    for member in &interface.members {
        leave(world, member)?;
    }
    if let Some(device) = &interface.device {
        fs::remove_file(world.path("dev").join(device))?;
    }
    fs::remove_file(world.path(&key(name))).map_err(Errno::from)
}

/// bridge_ioctl_add() of if_bridge.c.
///
/// # Errors
/// `ENOENT` without the member, `EEXIST` when it is one already, `EBUSY` when it is in another
/// bridge, `EINVAL` when it is a bridge or this is none.
pub(crate) fn add_member(world: &World, bridge: &str, member: &str) -> Result<(), Errno> {
    let _guard = world.lock()?;
    let mut interface = get(world, bridge).ok_or(ENXIO)?;
    let is_bridge = |interface: &Interface| interface.groups.iter().any(|g| g == "bridge");
    if !is_bridge(&interface) {
        return Err(EINVAL);
    }
    let mut other = get(world, member).ok_or(ENOENT)?;
    if interface.members.iter().any(|name| name == member) {
        return Err(EEXIST);
    }
    if is_bridge(&other) {
        return Err(EINVAL);
    }
    if other.bridge.is_some() {
        return Err(EBUSY);
    }
    interface.members.push(member.to_owned());
    other.bridge = Some(bridge.to_owned());
    put(world, member, &other)?;
    put(world, bridge, &interface)
}

/// bridge_ioctl_del() of if_bridge.c.
///
/// # Errors
/// `ENOENT` when it is no member.
pub(crate) fn delete_member(world: &World, bridge: &str, member: &str) -> Result<(), Errno> {
    let _guard = world.lock()?;
    let mut interface = get(world, bridge).ok_or(ENXIO)?;
    let before = interface.members.len();
    interface.members.retain(|name| name != member);
    if interface.members.len() == before {
        return Err(ENOENT);
    }
    leave(world, member)?;
    put(world, bridge, &interface)
}

/// An interface is no member of a bridge any more.
fn leave(world: &World, member: &str) -> Result<(), Errno> {
    match get(world, member) {
        Some(mut interface) => {
            interface.bridge = None;
            put(world, member, &interface)
        }
        None => Ok(()),
    }
}

/// Renames an interface; the device of a tap keeps its name.
///
/// # Errors
/// `EEXIST` when the name is taken, `EINVAL` when it is empty or too long.
pub(crate) fn rename(world: &World, name: &str, new: &str) -> Result<(), Errno> {
    let _guard = world.lock()?;
    let interface = get(world, name).ok_or(ENXIO)?;
    if new.is_empty() || new.len() > NAME_MAX || new.contains('/') {
        return Err(EINVAL);
    }
    if get(world, new).is_some() {
        return Err(EEXIST);
    }
    put(world, new, &interface)?;
    if let Some(bridge) = &interface.bridge
        && let Some(mut other) = get(world, bridge)
    {
        let members = other.members.iter_mut();
        members
            .filter(|member| *member == name)
            .for_each(|member| new.clone_into(member));
        put(world, bridge, &other)?;
    }
    for member in &interface.members {
        if let Some(mut other) = get(world, member) {
            other.bridge = Some(new.to_owned());
            put(world, member, &other)?;
        }
    }
    fs::remove_file(world.path(&key(name))).map_err(Errno::from)
}
