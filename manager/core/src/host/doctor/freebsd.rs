//! Checks of `brood doctor` on FreeBSD only: vmm and its modules, the installed bhyve, ZFS.

use nix::errno::Errno;
use vmm_sys::abi::VM_VNODE_ABI;

use super::{Check, Status};
use crate::host::{
    folder::Folder,
    freebsd::{BhyveTools, Freebsd, Holes, Vmm},
};

/// The hypervisor, who may use it, and what shares a checkpoint between its guests.
pub(super) fn vmm(freebsd: &Freebsd) -> Vec<Check> {
    let vmm = &freebsd.vmm;
    let found = if vmm.loaded {
        format!("loaded, {} machines", vmm.machines)
    } else {
        "not loaded".to_owned()
    };
    let mut checks = vec![Check::new("vmm", found, "loaded").unless(
        vmm.loaded,
        Status::Fail,
        "load it: kldload vmm, and for each boot vmm_load=\"YES\" in /boot/loader.conf; if that \
             fails, enable virtualization (VT-x with EPT, or AMD-V) in the firmware",
    )];
    if vmm.loaded {
        checks.push(control(vmm, freebsd));
    }
    checks.push(vnode(vmm));
    checks.extend(freebsd.bhyve_maps_checkpoints.map(maps_checkpoints));
    checks
}

/// The device that guests' machines are created by, and who may open it.
fn control(vmm: &Vmm, freebsd: &Freebsd) -> Check {
    let errno = vmm.control_errno.map(Errno::from_raw);
    let found = match (vmm.control, errno) {
        (None, errno) => errno.map_or_else(|| "not there".to_owned(), |e| e.to_string()),
        (Some(owner), None) => owner.to_string(),
        (Some(owner), Some(errno)) => format!("{owner}: {errno}"),
    };
    // From FreeBSD 15.1 on the device is root's and the group's `vmm`. Whoever is not root may make
    // machines only that end with the descriptor that they were made by (vmmdev_create() of
    // sys/dev/vmm/vmm_dev.c).
    let root = vmm.control.is_some_and(|owner| owner.uid == 0);
    let by_group = errno.is_none() && root && freebsd.processes.user_limit_binds;
    let hint = match errno {
        _ if freebsd.jailed => {
            "this jail needs allow.vmm in jail.conf(5), and a devfs(8) rule that shows vmmctl and vmm/*"
        }
        None => {
            "run brood as root: the group may make only machines that end with their maker, and \
             brood's guests outlive it"
        }
        Some(Errno::EACCES | Errno::EPERM) => {
            "run brood as root: nobody else may make machines that outlive their maker"
        }
        _ => "a devfs(8) ruleset hides it: devfs rule add path vmmctl unhide",
    };
    Check::new(vmm_sys::VMM_CTL_PATH, found, "readable and writable").unless(
        errno.is_none() && !by_group,
        Status::Fail,
        hint,
    )
}

/// Whether the bhyve on PATH maps a checkpoint. A stock one passes the variable over without a
/// word.
fn maps_checkpoints(maps: bool) -> Check {
    let found = if maps {
        "maps checkpoints"
    } else {
        "reads checkpoints, and shares none"
    };
    Check::new("bhyve", found, "maps checkpoints").unless(
        maps,
        Status::Fail,
        "each guest has a copy of all its memory: put the patched bhyve first in PATH \
         (/usr/local/vmmvnode/bin), or build it: tools/freebsd/kernel build, then install",
    )
}

fn vnode(vmm: &Vmm) -> Check {
    let found = match (vmm.vnode_abi, vmm.vnode_segments) {
        (None, _) if vmm.vnode_installed => "installed, not loaded".to_owned(),
        (None, _) => "not installed".to_owned(),
        (Some(abi), segments) => {
            format!("loaded, ABI {abi}, {} segments", segments.unwrap_or(0))
        }
    };
    let check = Check::new("vmm_vnode", found, format!("loaded, ABI {VM_VNODE_ABI}"));
    match vmm.vnode_abi {
        None if vmm.vnode_installed => check.unless(
            false,
            Status::Warn,
            "bhyve loads it for the first guest when it is root; now: kldload vmm_vnode, and for \
             each boot vmm_vnode_load=\"YES\" in /boot/loader.conf",
        ),
        None => check.unless(
            false,
            Status::Fail,
            "without it each guest has a copy of all its memory: tools/freebsd/kernel build, then install; \
             then kldload vmm_vnode, and for each boot vmm_vnode_load=\"YES\" in /boot/loader.conf",
        ),
        Some(abi) => check.unless(
            abi == u64::from(VM_VNODE_ABI),
            Status::Fail,
            "build the module and brood from the same release",
        ),
    }
}

/// The installed parts of bhyve.
pub(super) fn tools(tools: &BhyveTools) -> Vec<Check> {
    let missing: Vec<&str> = tools
        .commands
        .iter()
        .filter(|(_, there)| !there)
        .map(|(name, _)| name.as_str())
        .collect();
    let found = if missing.is_empty() {
        "all on PATH".to_owned()
    } else {
        format!("not on PATH: {}", missing.join(", "))
    };
    let names: Vec<&str> = tools
        .commands
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    let built = |name: &str, known: bool| {
        Check::new(name, if known { "known" } else { "unknown" }, "known").unless(
            known,
            Status::Fail,
            "it was built without checkpoints: WITH_BHYVE_SNAPSHOT=yes in src.conf(5); \
             tools/freebsd/kernel build does that, then install",
        )
    };
    let mut checks = vec![
        Check::new("bhyve's commands", found, names.join(", ")).unless(
            missing.is_empty(),
            Status::Fail,
            "they are of the base system: have /sbin, /bin, /usr/sbin and /usr/bin in PATH",
        ),
        built("bhyve -r", tools.restores),
        built("bhyvectl --suspend", tools.suspends),
    ];
    // vmm and vmm_vnode have checks of their own.
    let others = tools
        .modules
        .iter()
        .filter(|(name, _)| !name.starts_with("vmm"));
    checks.extend(others.map(|(name, loaded)| {
        let found = if *loaded { "loaded" } else { "not loaded" };
        Check::new(name, found, "loaded").unless(
            *loaded,
            Status::Fail,
            format!(
                "load it: kldload {name}, and for each boot {name}_load=\"YES\" in /boot/loader.conf"
            ),
        )
    }));
    checks
}

/// A bhyve without the patch compiles ACPI tables at each start, a restore too: it runs iasl by a
/// shell, with files in /tmp, and dies by SIGABRT when it cannot. One with the patch leaves the
/// tables of a restored guest as they are.
pub(super) fn tables(freebsd: &Freebsd, tools: &BhyveTools) -> Option<Check> {
    if freebsd.bhyve_maps_checkpoints != Some(false) {
        return None;
    }
    let found = if tools.builds_tables {
        "there, and /tmp writable"
    } else {
        "not there, or /tmp not writable"
    };
    let check = Check::new("/usr/sbin/iasl", found, "there, and /tmp writable").unless(
        tools.builds_tables,
        Status::Fail,
        "a stock bhyve compiles ACPI tables in each restore, and aborts when it cannot: install the \
         base system's iasl (it is of WITH_ACPI), or use the patched bhyve, which does not",
    );
    Some(check)
}

/// Whether guests can be limited. This is information only, no requirement.
pub(super) fn racct(enabled: Option<bool>) -> Check {
    let found = match enabled {
        Some(true) => "1: guests can have limits (--rctl)",
        Some(false) => "0: guests cannot have limits (--rctl)",
        None => "not in this kernel",
    };
    Check::new("kern.racct.enable", found, "")
}

/// Swap. Guests reserve none of it: FreeBSD charges guest memory to no user, whatever
/// `vm.overcommit` is.
pub(super) fn swap(check: Check) -> Check {
    let found = format!("{}; guests' private pages reserve none", check.found);
    Check { found, ..check }
}

/// ZFS keeps what is mapped in its own cache too, unless it was told not to.
pub(super) fn checkpoint_folder(
    check: Check,
    folder: &Folder,
    tools: Option<&BhyveTools>,
) -> Check {
    let primarycache = tools.and_then(|tools| tools.primarycache.as_deref());
    let twice = folder.filesystem == "zfs"
        && folder.exists
        && !matches!(primarycache, Some("metadata" | "none"));
    check.unless(
        !twice,
        Status::Warn,
        "ZFS caches a checkpoint twice, in the ARC and as mapped pages: keep it on UFS or tmpfs, \
         or zfs set primarycache=metadata DATASET",
    )
}

/// `zfs rollback` and `zfs receive -F` change a file under the guests whose memory it is. That is a
/// danger where a dataset holds other things too, for which somebody may do that.
pub(super) fn rollback(folder: &Folder) -> Option<Check> {
    if folder.filesystem != "zfs" || !folder.exists {
        return None;
    }
    let snapshot = folder
        .path
        .components()
        .any(|part| part.as_os_str() == ".zfs");
    let own = folder.mount_point.as_deref() == Some(folder.path.as_path());
    let found = match (snapshot, own, &folder.mount_point) {
        (true, ..) => "a snapshot".to_owned(),
        (_, true, _) => "a dataset of its own".to_owned(),
        (.., Some(point)) => format!("a folder in the dataset at {}", point.display()),
        (.., None) => "a folder in a dataset".to_owned(),
    };
    let check = Check::new("checkpoint dataset", found, "its own, or a snapshot").unless(
        snapshot || own,
        Status::Warn,
        "zfs rollback and zfs receive -F of that dataset change the memory of guests that run: \
         zfs create a dataset for checkpoints, or restore from its .zfs/snapshot/NAME",
    );
    Some(check)
}

/// A hole of a file in tmpfs has no page to share: each guest that reads it gets one of its own.
pub(super) fn holes(holes: &Holes) -> Check {
    let Holes { file, size } = holes;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    Check::new("checkpoint holes", format!("{size} of {name}"), "none").unless(
        false,
        Status::Warn,
        format!(
            "on tmpfs each guest that reads there takes a page of its own: copy it again without \
             holes, dd if=ORIGINAL of={} bs=1m",
            file.display()
        ),
    )
}
