//! Known commands without a stand-in, each with the options that a document may use and their
//! source. A document may use no other command.

/// A command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    name: &'static str,
    /// Options, as they are written.
    options: &'static [&'static str],
    /// Manual page, or the like.
    source: &'static str,
}

const fn known(
    name: &'static str,
    options: &'static [&'static str],
    source: &'static str,
) -> Known {
    Known {
        name,
        options,
        source,
    }
}

/// Modules of the kernel: vmm(4), vmm_vnode(4) of this repository, nmdm(4); `kernel` is itself one.
pub(super) const MODULES: [&str; 4] = ["kernel", "vmm", "vmm_vnode", "nmdm"];

/// What names of sysctl(8) variables begin with.
pub(super) const TREES: [&str; 6] = ["hw.", "kern.", "net.", "security.", "vfs.", "vm."];

/// On the host.
pub(super) const HOST: &[Known] = &[
    known("bhyveload", &["-m", "-c", "-d"], "bhyveload(8)"),
    known("bectl", &[], "bectl(8)"),
    known("cargo", &["--release", "--locked", "-p"], "cargo-build(1)"),
    known("cu", &["-l"], "cu(1)"),
    known("dd", &[], "dd(1)"),
    known("export", &[], "sh(1)"),
    known("git", &["--depth", "--branch"], "git-clone(1)"),
    known("install", &["-m"], "install(1)"),
    known("mkdir", &["-p"], "mkdir(1)"),
    known("mount", &["-t", "-o"], "mount(8), tmpfs(4)"),
    known("newfs", &["-U"], "newfs(8)"),
    known("pkg", &["-y"], "pkg-install(8)"),
    known("procstat", &[], "procstat(1)"),
    known("service", &[], "service(8)"),
    known("shutdown", &["-r"], "shutdown(8)"),
    known("sysrc", &[], "sysrc(8)"),
    known("vmstat", &["-z"], "vmstat(8)"),
    known("xz", &["-dc"], "xz(1)"),
];

/// In a guest that runs FreeBSD.
pub(super) const GUEST: &[Known] = &[
    known("/usr/sbin/daemon", &["-r"], "daemon(8)"),
    known("chmod", &[], "chmod(1)"),
    known("echo", &[], "echo(1)"),
    known("sysrc", &[], "sysrc(8)"),
];

/// Names that sysrc(8) may set: of rc.conf(5), and of packaging/freebsd/brood.in, with `_env` as
/// rc.subr(8) has it for every service.
const RC: [&str; 6] = [
    "brood_enable",
    "brood_env",
    "cloned_interfaces",
    "ifconfig_bridge0",
    "ifconfig_vtnet0",
    "kld_list",
];

/// Checks a command by a table.
pub(super) fn check(table: &[Known], name: &str, arguments: &[String]) -> Result<(), String> {
    let known = table.iter().find(|known| known.name == name);
    let known = known.ok_or("there is no rule for this command")?;
    let options = arguments.iter().filter(|word| word.starts_with('-'));
    for option in options {
        if !known.options.contains(&option.as_str()) {
            let source = known.source;
            return Err(format!(
                "{option} is not among the options known of {source}"
            ));
        }
    }
    if name == "sysrc" {
        for pair in arguments {
            let variable = pair
                .split_once('=')
                .map(|(name, _)| name.trim_end_matches('+'));
            if !variable.is_some_and(|name| RC.contains(&name)) {
                return Err(format!("{pair}: no variable of rc.conf that is known"));
            }
        }
    }
    Ok(())
}
