//! The identity of a clone: what tells it from others of its checkpoint.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::PoisonError,
};

use brood_agent_protocol::{Failure, Identity, Interface, Reply};

use super::System;
use crate::{
    failure::{Context, invalid},
    serve::Answer,
};

/// Where programs in the guest find the generation.
const GENERATION: &str = "/run/brood/generation";

impl System {
    /// Changes what is named, in this order; what comes after a failure stays as it was.
    pub(crate) fn identify(&self, identity: Identity) -> Answer {
        if let Some(name) = &identity.hostname {
            set_hostname(name)?;
        }
        if let Some(id) = &identity.machine_id {
            set_machine_id(Path::new("/"), &hex(id)).context("cannot write the machine-id")?;
        }
        if let Some(interface) = &identity.interface {
            set_mac(interface)?;
        }
        if let Some(generation) = &identity.generation {
            let tried = format!("cannot write {GENERATION}");
            set_generation(&hex(generation)).context(tried)?;
        }
        let mut known = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let Identity {
            hostname,
            machine_id,
            interface,
            generation,
        } = identity;
        known.hostname = hostname.or(known.hostname.take());
        known.machine_id = machine_id.or(known.machine_id);
        known.interface = interface.or(known.interface.take());
        known.generation = generation.or(known.generation);
        Ok(Reply::Nothing)
    }

    /// The identity as the variables of a hook.
    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        let known = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let hostname = known.hostname.clone();
        [
            ("BROOD_HOSTNAME", hostname),
            ("BROOD_MACHINE_ID", known.machine_id.map(|id| hex(&id))),
            ("BROOD_GENERATION", known.generation.map(|id| hex(&id))),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// See hostname(7): letters, digits, `-` and `.`, at most 64 in Linux.
fn is_hostname(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    (1..=64).contains(&name.len()) && name.chars().all(good) && !name.starts_with(['-', '.'])
}

fn set_hostname(name: &str) -> Result<(), Failure> {
    if !is_hostname(name) {
        return Err(invalid(format!("{name:?} cannot be a host name")));
    }
    let tried = format!("cannot set the host name {name}");
    #[cfg(target_os = "linux")]
    let length = name.len();
    #[cfg(not(target_os = "linux"))]
    let length = libc::c_int::try_from(name.len()).unwrap_or(0);
    // SAFETY: the pointer and the length are those of `name`.
    let result = unsafe { libc::sethostname(name.as_ptr().cast(), length) };
    nix::errno::Errno::result(result).context(&tried)?;
    // A guest that has no such file takes its name from elsewhere when it boots.
    replace_existing(Path::new("/etc/hostname"), name).context(tried)
}

fn set_generation(line: &str) -> io::Result<()> {
    let file = Path::new(GENERATION);
    match replace(file, line) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all("/run/brood")?;
            replace(file, line)
        }
        replaced => replaced,
    }
}

/// Writes machine-id(5), and D-Bus's copy where that is a file of its own.
fn set_machine_id(root: &Path, id: &str) -> io::Result<()> {
    replace(&root.join("etc/machine-id"), id)?;
    let copy = root.join("var/lib/dbus/machine-id");
    if fs::symlink_metadata(&copy).is_ok_and(|found| found.is_file()) {
        replace(&copy, id)?;
    }
    Ok(())
}

/// Makes this line the content of a file.
fn replace(path: &Path, line: &str) -> io::Result<()> {
    if let Ok(file) = open_in_place(path) {
        return overwrite(file, line);
    }
    // There is none; or a link, which is replaced and not followed.
    let draft = path.with_extension("brood-new");
    fs::write(&draft, format!("{line}\n"))?;
    fs::rename(&draft, path)
}

/// The same where there is such a file.
fn replace_existing(path: &Path, line: &str) -> io::Result<()> {
    match open_in_place(path) {
        Ok(file) => overwrite(file, line),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => replace(path, line),
    }
}

fn open_in_place(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let in_place = options.write(true).custom_flags(libc::O_NOFOLLOW);
    in_place.open(path)
}

/// Writes in place: that is far less code of the kernel than another file which replaces this one,
/// and a clone pays for each piece of code that it runs first. A line is less than a page, and one
/// write.
fn overwrite(mut file: File, line: &str) -> io::Result<()> {
    let line = format!("{line}\n");
    let before = file.seek(SeekFrom::End(0))?;
    file.write_all_at(line.as_bytes(), 0)?;
    let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
    if before > length {
        file.set_len(length)?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn set_mac(_: &Interface) -> Result<(), Failure> {
    Err(crate::failure::unsupported("set a MAC address"))
}

#[cfg(target_os = "linux")]
fn set_mac(interface: &Interface) -> Result<(), Failure> {
    let name = match &interface.name {
        Some(name) => name.clone(),
        None => first_interface().context("cannot find a network interface")?,
    };
    if interface.mac[0] & 1 != 0 {
        return Err(invalid("a MAC address of a group cannot be an interface's"));
    }
    change_mac(&name, interface.mac).context(format!("cannot set the MAC address of {name}"))
}

/// The first by name that has a device behind it.
#[cfg(target_os = "linux")]
fn first_interface() -> io::Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/class/net")? {
        let entry = entry?;
        if entry.path().join("device").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    let first = names.into_iter().next();
    first.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the guest has none"))
}

/// See netdevice(7). A driver that changes no address while the interface is up gets it down.
#[cfg(target_os = "linux")]
fn change_mac(name: &str, mac: [u8; 6]) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFHWADDR, libc::ifreq);

    // SAFETY: a request of zeros is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let kind = SockType::Datagram;
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
    let fd = socket.as_raw_fd();

    let mut address = request;
    let hardware = libc::sockaddr {
        sa_family: libc::ARPHRD_ETHER,
        sa_data: std::array::from_fn(|at| {
            libc::c_char::from_ne_bytes([mac.get(at).copied().unwrap_or(0)])
        }),
    };
    address.ifr_ifru.ifru_hwaddr = hardware;
    // SAFETY: the request is as the kernel takes it, and lives as long as the call.
    match unsafe { set_address(fd, &raw const address) } {
        Err(nix::errno::Errno::EBUSY) => {}
        result => return Ok(result.map(drop)?),
    }
    // SAFETY: as above; the kernel writes the flags into the request.
    unsafe { get_flags(fd, &raw mut request)? };
    // SAFETY: the kernel has just written this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::c_short::try_from(libc::IFF_UP).expect("it is 1");
    request.ifr_ifru.ifru_flags = flags & !up;
    // SAFETY: as above.
    unsafe { set_flags(fd, &raw const request)? };
    // SAFETY: as above.
    let changed = unsafe { set_address(fd, &raw const address) };
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: as above.
    unsafe { set_flags(fd, &raw const request)? };
    changed?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names() {
        for good in ["a", "clone-7", "a.example.org"] {
            assert!(is_hostname(good), "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "ä", "a\n", &"a".repeat(65)] {
            assert!(!is_hostname(bad), "{bad}");
        }
    }

    #[test]
    fn a_machine_id_is_written_where_programs_look() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "old\n").unwrap();
        };
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        write("etc/machine-id");
        set_machine_id(root.path(), "1234").unwrap();
        assert_eq!(read("etc/machine-id"), "1234\n");
        assert!(!root.path().join("var").exists());

        write("var/lib/dbus/machine-id");
        set_machine_id(root.path(), "5678").unwrap();
        assert_eq!(read("var/lib/dbus/machine-id"), "5678\n");

        // A link to the other file stays one.
        fs::remove_file(root.path().join("var/lib/dbus/machine-id")).unwrap();
        let link = root.path().join("var/lib/dbus/machine-id");
        std::os::unix::fs::symlink("../../../etc/machine-id", &link).unwrap();
        set_machine_id(root.path(), "9abc").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(read("var/lib/dbus/machine-id"), "9abc\n");
        let left: Vec<_> = fs::read_dir(root.path().join("etc")).unwrap().collect();
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn bytes_in_hexadecimal() {
        assert_eq!(hex(&[0, 0x0f, 0xff]), "000fff");
    }
}
