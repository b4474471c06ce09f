//! Kernel facts of a FreeBSD host, read through its commands. This serves every system but FreeBSD
//! itself; there sysctl(3) answers without a command.

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
};

use super::host::Host;
use crate::host::{
    HostSource,
    folder::MountedOn,
    freebsd::{Kernel, Value},
    proc::ProcRoot,
};

/// All that is asked for: one command for the lot.
const VARIABLES: [&str; 27] = [
    "hw.cpu_vendor",
    "hw.model",
    "hw.ncpu",
    "hw.physmem",
    "hw.vmm.maxcpu",
    "hw.vmm.maxvmms",
    "hw.vmm.vnode.abi",
    "hw.vmm.vnode.segments",
    "kern.maxfiles",
    "kern.maxproc",
    "kern.maxprocperuid",
    "kern.openfiles",
    "kern.osrelease",
    "kern.racct.enable",
    "security.jail.jailed",
    "vm.overcommit",
    "vm.pmap.pv_page_count",
    "vm.pmap.user_pt_page_count",
    "vm.stats.vm.v_active_count",
    "vm.stats.vm.v_free_count",
    "vm.stats.vm.v_inactive_count",
    "vm.stats.vm.v_laundry_count",
    "vm.stats.vm.v_page_size",
    "vm.stats.vm.v_wire_count",
    "vm.swap_reserved",
    "vm.swap_total",
    "vm.uma_kmem_total",
];

/// The kernel of the machine that `host` is.
pub(super) fn source(host: &Host) -> HostSource {
    #[cfg(target_os = "freebsd")]
    if host.is_this_machine() {
        return HostSource::default();
    }
    HostSource::Freebsd {
        kernel: Box::new(Commands::ask(host)),
        root: ProcRoot::at(host.path("/")),
    }
}

/// What commands told.
struct Commands {
    host: Host,
    printed: io::Result<HashMap<String, String>>,
}

impl Commands {
    /// Asks once; each variable is as it was then.
    fn ask(host: &Host) -> Self {
        if host.is_this_machine() && cfg!(not(target_os = "freebsd")) {
            let why = "bhyve is FreeBSD's, and this is another system: unset BROOD_ENGINE";
            return Self {
                host: host.clone(),
                printed: Err(io::Error::new(io::ErrorKind::Unsupported, why)),
            };
        }
        // With -i, what this kernel does not have is passed over.
        let arguments: Vec<&str> = ["-i", "-e"].into_iter().chain(VARIABLES).collect();
        let told = host.run("sysctl", &arguments);
        Self {
            host: host.clone(),
            printed: told.map(|text| parse(&text)).map_err(io::Error::other),
        }
    }
}

/// Lines `NAME=VALUE`.
fn parse(text: &str) -> HashMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commands")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl Kernel for Commands {
    fn sysctl(&self, name: &str) -> io::Result<Value> {
        match &self.printed {
            Ok(printed) => {
                let value = printed.get(name).cloned().map(Value::Printed);
                value.ok_or_else(|| io::ErrorKind::NotFound.into())
            }
            Err(e) => Err(io::Error::other(e.to_string())),
        }
    }

    fn processes(&self, user: Option<u32>) -> io::Result<u64> {
        let user = user.map(|user| user.to_string());
        let arguments = match &user {
            None => vec!["-ax", "-o", "pid="],
            Some(user) => vec!["-x", "-U", user, "-o", "pid="],
        };
        let told = self.host.run("ps", &arguments).map_err(io::Error::other)?;
        Ok(told.lines().count() as u64)
    }

    fn machines_of_user(&self) -> Option<u64> {
        // No command tells of RLIMIT_VMM.
        None
    }

    fn bhyve(&self) -> Option<PathBuf> {
        self.host.find("bhyve")
    }

    #[cfg(target_os = "linux")]
    fn mounted(&self, folder: &Path) -> Option<MountedOn> {
        use crate::host::{folder::Folder, proc::mounts};
        let mounts = mounts(&std::fs::read_to_string("/proc/self/mountinfo").ok()?);
        Folder::mounted(folder, &mounts)
    }

    #[cfg(target_os = "freebsd")]
    fn mounted(&self, folder: &Path) -> Option<MountedOn> {
        crate::host::freebsd::ThisKernel.mounted(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_variables_are_told_apart() {
        let told = parse("hw.ncpu=2\nhw.model=A=B C\n\nnonsense\nhw.ncpux=3\n");
        assert_eq!(told.get("hw.ncpu").map(String::as_str), Some("2"));
        assert_eq!(told.get("hw.model").map(String::as_str), Some("A=B C"));
        assert_eq!(told.len(), 3);
    }
}
