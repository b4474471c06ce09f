//! Fault points at which a command can be made to fail, so that a test can stop the work between
//! any two of its steps.
//!
//! `BROOD_STANDIN_FAIL=point[:nth][:kill|error|hang|slow]`; commas separate several. With `nth`
//! only the nth passage of the point in the whole world fails, in whichever process; without it,
//! every passage does. `kill` is SIGKILL to the command itself, `hang` waits for a signal, `slow`
//! goes on after three seconds, and `error`, the default, ends the step as the real command would
//! end it there.

use std::{
    env,
    fs::OpenOptions,
    io::{Seek, Write},
    os::fd::AsFd,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, raise},
    unistd::pause,
};

use crate::{
    exit::{EX_SOFTWARE, Exit},
    world::World,
};

/// A point.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    /// How it is named in the environment.
    pub(crate) name: &'static str,
    /// Where it is.
    pub(crate) place: &'static str,
    /// The exit code of `error`.
    code: i32,
    /// What `error` says.
    message: &'static str,
}

macro_rules! points {
    ($($id:ident = $name:literal, $place:literal, $code:literal, $message:literal;)*) => {
        $(pub(crate) const $id: Point = Point {
            name: $name, place: $place, code: $code, message: $message,
        };)*
        /// All points, in the order of a restore, a suspend and the rest.
        pub(crate) const ALL: &[Point] = &[$($id),*];
    };
}

points! {
    RESTORE_OPTIONS = "restore.options", "options and configuration were read", 4,
        "bhyve: Failed to allocate memory\n";
    RESTORE_LOAD = "restore.load", "before the checkpoint's files are opened", 1,
        "Failed to open restore file: Input/output error\nFailed to load guest RAM file.\n";
    RESTORE_CREATE = "restore.create", "before the VM is created", 4,
        "bhyve: vm_openf: Cannot allocate memory\n";
    RESTORE_CREATED = "restore.created", "the VM was created and has nothing yet", 71,
        "bhyve: vm_limit_rights: Cannot allocate memory\n";
    RESTORE_MEMORY = "restore.memory", "before guest memory is set up", 4,
        "Unable to setup memory (12)\n";
    RESTORE_ATTACHED = "restore.attached", "the checkpoint was attached as guest memory", 70,
        "bhyve: vnode restore: guest memory is not laid out as the checkpoint; \
         unset snapshot.vnode_restore\n";
    RESTORE_DEVICES = "restore.devices", "before the devices' back ends are opened", 4,
        "Device emulation initialization error: Input/output error\n";
    RESTORE_TAP = "restore.tap", "a tap was opened", 4,
        "tap device O_NONBLOCK failed\nDevice emulation initialization error: Input/output error\n";
    RESTORE_DISK = "restore.disk", "a disk was opened", 4,
        "Device emulation initialization error: Input/output error\n";
    RESTORE_CONSOLE = "restore.console", "a console was opened", 4,
        "Device emulation initialization error: Input/output error\n";
    RESTORE_VCPUS = "restore.vcpus", "the virtual CPUs were added, stopped", 1,
        "Failed to pause PCI device state.\n";
    RESTORE_CONTENTS = "restore.contents", "before guest memory is read from the checkpoint", 1,
        "Failed to restore VM memory.\n";
    RESTORE_DEVICE_STATE = "restore.device-state", "before the devices' state is restored", 1,
        "Failed to restore PCI device state.\n";
    RESTORE_KERN = "restore.kern", "before the kernel's structures are restored", 65,
        "bhyve: Failed to restore vm: Input/output error\n";
    RESTORE_SOCKET = "restore.socket", "before the checkpoint socket is bound", 71,
        "bhyve: Failed to start checkpoint thread\n";
    RESTORE_RUN = "restore.run", "before the virtual CPUs run", 71,
        "bhyve: Unable to restore time: Input/output error\n";
    GUEST_READY = "guest.ready", "the guest runs and has said nothing yet", 4,
        "vm_run error -1, errno 5\n";
    GUEST_ANSWER = "guest.answer", "a line was read from the console, before the answer", 4,
        "vm_run error -1, errno 5\n";
    SUSPEND_CONNECT = "suspend.connect", "bhyvectl, before it connects", 61,
        "connect() failed: Connection refused\n";
    SUSPEND_SENT = "suspend.sent", "bhyvectl, after the request was sent", 5,
        "nvlist_send() failed: Input/output error\n";
    SUSPEND_RECEIVED = "suspend.received", "bhyve, before any file is opened", 1,
        "Failed to open kernel data snapshot file.: Input/output error\n";
    SUSPEND_FILES = "suspend.files", "the three files are open and empty", 1,
        "Failed to get libxo handle on metadata file.: Input/output error\n";
    SUSPEND_PAUSED = "suspend.paused", "the guest is paused", 1, "Could not pause devices\r\n";
    SUSPEND_HALFWAY = "suspend.halfway", "half of guest memory was written", 1,
        "Failed to write in file: No space left on device\n\
         vm_snapshot_mem: Could not write lowmem\r\n\
         Could not write guest memory to file: No space left on device\n";
    SUSPEND_MEMORY = "suspend.memory", "guest memory was written", 1,
        "Failed to snapshot vm basic metadata.\n";
    SUSPEND_KERN = "suspend.kern", "the kernel's structures were written", 1,
        "Failed to write all snapshotted data.: No space left on device\n\
         Failed to snapshot vm kernel data.\n";
    SUSPEND_META = "suspend.meta", "everything but the description was written", 1,
        "Failed to snapshot device state.\n";
    SUSPEND_COMPLETE = "suspend.complete", "the files are complete, the VM still exists", 4,
        "vm_run error -1, errno 5\n";
    SUSPEND_DESTROYED = "suspend.destroyed", "all is done, the process still lives", 4,
        "vm_run error -1, errno 6\n";
    CTL_OPENED = "bhyvectl.opened", "the VM was opened and nothing done yet", 1, "errno = 5\n";
    CTL_DESTROYED = "bhyvectl.destroyed", "the VM was destroyed", 1, "errno = 5\n";
    ZFS_SNAPSHOT = "zfs.snapshot", "before a snapshot is made", 1,
        "cannot create snapshots : out of space\n";
    ZFS_SNAPSHOTTED = "zfs.snapshotted", "a snapshot was made", 1,
        "internal error: Input/output error\n";
    ZFS_CLONE = "zfs.clone", "before a clone is made", 1, "cannot create: out of space\n";
    ZFS_CLONED = "zfs.cloned", "a clone was made and is not mounted yet", 1,
        "filesystem successfully created, but not mounted\n";
    ZFS_DESTROY = "zfs.destroy", "before anything is destroyed", 1,
        "cannot destroy: pool I/O is currently suspended\n";
    ZFS_DESTROYED = "zfs.destroyed", "what was to go is destroyed", 1,
        "internal error: Input/output error\n";
    ZFS_HOLD = "zfs.hold", "before a snapshot is held", 1,
        "cannot hold: pool I/O is currently suspended\n";
    ZFS_HELD = "zfs.held", "a snapshot was held", 1, "internal error: Input/output error\n";
    ZFS_RELEASE = "zfs.release", "before a hold is released", 1,
        "cannot release: pool I/O is currently suspended\n";
    ZFS_RELEASED = "zfs.released", "a hold was released", 1,
        "internal error: Input/output error\n";
    RCTL_ADD = "rctl.add", "before a rule is added", 1,
        "rctl: failed to add rule: Cannot allocate memory\n";
    RCTL_ADDED = "rctl.added", "a rule was added", 1,
        "rctl: failed to add rule: Cannot allocate memory\n";
    IFCONFIG_CREATE = "ifconfig.create", "before an interface is created", 1,
        "ifconfig: SIOCIFCREATE2: Cannot allocate memory\n";
    IFCONFIG_CREATED = "ifconfig.created", "an interface was created, its name not told yet", 1,
        "ifconfig: ioctl (SIOCSIFNAME): Input/output error\n";
    IFCONFIG_ADDM = "ifconfig.addm", "before a member is added to a bridge", 1,
        "ifconfig: BRDGADD: Cannot allocate memory\n";
    IFCONFIG_DESTROY = "ifconfig.destroy", "before an interface is destroyed", 1,
        "ifconfig: SIOCIFDESTROY: Input/output error\n";
}

/// How long a slow step takes.
const SLOW: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Error,
    Hang,
    Slow,
}

/// Passes the point, unless it is made to fail here.
///
/// # Errors
/// The step's own way to fail.
pub(crate) fn pass(world: &World, point: Point) -> Result<(), Exit> {
    let Some(wanted) = env::var_os("BROOD_STANDIN_FAIL") else {
        return Ok(());
    };
    for fault in wanted.to_string_lossy().split(',') {
        let (name, nth, action) = parse(fault)?;
        if name != point.name || !due(world, point, nth)? {
            continue;
        }
        match action {
            Action::Error => return Err(Exit::saying(point.code, point.message)),
            Action::Hang => hang(world),
            Action::Slow => std::thread::sleep(SLOW),
            Action::Kill => {
                let _ = raise(Signal::SIGKILL);
            }
        }
    }
    Ok(())
}

/// Waits for a signal, or for the end of the world's owner.
fn hang(world: &World) -> ! {
    loop {
        match world.owner() {
            Ok(None) => pause(),
            Ok(Some(owner)) => {
                let mut end = [PollFd::new(owner.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut end, PollTimeout::NONE);
            }
            Err(_) => std::process::exit(EX_SOFTWARE),
        }
    }
}

fn parse(fault: &str) -> Result<(&str, Option<u64>, Action), Exit> {
    let wrong = || {
        let text = format!(
            "standin: BROOD_STANDIN_FAIL: {fault:?} is not point[:nth][:kill|error|hang|slow]; \
             `standin points` lists the points\n"
        );
        Exit::saying(EX_SOFTWARE, text)
    };
    let mut parts = fault.split(':');
    let name = parts.next().unwrap_or_default();
    if !ALL.iter().any(|point| point.name == name) {
        return Err(wrong());
    }
    let (mut nth, mut action) = (None, Action::Error);
    for (n, part) in parts.enumerate() {
        match (n, part) {
            (0 | 1, "kill") => action = Action::Kill,
            (0 | 1, "error") => action = Action::Error,
            (0 | 1, "hang") => action = Action::Hang,
            (0 | 1, "slow") => action = Action::Slow,
            (0, number) => nth = Some(number.parse().map_err(|_| wrong())?),
            _ => return Err(wrong()),
        }
    }
    Ok((name, nth, action))
}

/// Counts this passage of the point, and says whether it is the one that is to fail.
fn due(world: &World, point: Point, nth: Option<u64>) -> Result<bool, Exit> {
    let Some(nth) = nth else { return Ok(true) };
    let path = world.path("faults").join(point.name);
    let count = || {
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.write_all(b".")?;
        // The end of this process's own byte, whichever other process writes.
        file.stream_position()
    };
    let passed = count().map_err(|e| Exit::broken("count a fault", &e))?;
    Ok(passed == nth)
}
