//! Processes on FreeBSD: sysctl(3) of `kern.proc.pid`, and kqueue(2) for their end.
//!
//! Process descriptors (pdfork(2)) exist for children only, and guests outlive the process that
//! started them. So brood knows a process by its id and start time, and checks both before each
//! signal.

use std::{io, os::unix::ffi::OsStrExt, path::PathBuf, time::Duration};

use nix::{
    errno::Errno,
    sys::{
        event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use vmm_sys::sysctl;

use super::{
    Confinement, Process, ProcessState,
    kinfo::{Kinfo, microseconds},
    vmmap,
};
use crate::units::{Bytes, PAGE_SIZE};

/// A kernel queue that tells of the end of one process (kqueue(2), `EVFILT_PROC`).
#[derive(Debug)]
pub struct Handle {
    process: Process,
    queue: Kqueue,
}

/// What a process is doing, and its start time; `None` when there is no such process.
pub(super) fn look(pid: i32) -> io::Result<Option<(ProcessState, u64)>> {
    let place = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, pid];
    let unknown = || io::Error::other("kern.proc.pid and kern.boottime have another form");
    // The kernel reports the start by the wall clock: the time from boot to start, which it keeps,
    // plus the boot time, which moves when the clock is set.
    loop {
        let booted = boot_time()?;
        let record = match sysctl::read_at(&place) {
            Ok(record) if record.is_empty() => return Ok(None),
            Ok(record) => record,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => return Err(e),
        };
        let kinfo = Kinfo::parse(&record).ok_or_else(unknown)?;
        if boot_time()? == booted {
            let start_time = kinfo.start.checked_sub(booted).ok_or_else(unknown)?;
            let start_time = u64::try_from(start_time).map_err(|_| unknown())?;
            return Ok(Some((kinfo.state, start_time)));
        }
    }
}

/// What confines a process; `None` when it is gone.
pub(super) fn confinement(pid: i32) -> io::Result<Option<Confinement>> {
    let place = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, pid];
    let record = match sysctl::read_at(&place) {
        Ok(record) if record.is_empty() => return Ok(None),
        Ok(record) => record,
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(e) => return Err(e),
    };
    let unknown = || io::Error::other("kern.proc.pid has another form");
    let kinfo = Kinfo::parse(&record).ok_or_else(unknown)?;
    Ok(Some(Confinement {
        user: kinfo.user,
        capsicum: Some(kinfo.in_capability_mode),
        ..Confinement::default()
    }))
}

/// The jail that this process is in, by its id (`ki_jid`); 0 on the host. From within a jail the
/// host's processes are not seen.
pub(crate) fn namespace() -> io::Result<u64> {
    let this = std::process::id().cast_signed();
    let place = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, this];
    let record = sysctl::read_at(&place)?;
    let jail = record
        .get(std::mem::offset_of!(libc::kinfo_proc, ki_jid)..)
        .and_then(|rest| rest.first_chunk())
        .ok_or_else(|| io::Error::other("kern.proc.pid has another form"))?;
    Ok(u64::try_from(i32::from_ne_bytes(*jail)).unwrap_or(0))
}

/// Resident memory of a process that is its own.
pub(super) fn own_memory(pid: i32) -> Option<Bytes> {
    let place = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_VMMAP, pid];
    let own = vmmap::own_pages(&sysctl::read_at(&place).ok()?)?;
    Some(Bytes(PAGE_SIZE).saturating_mul(own))
}

/// The words of a process's command line, each with a zero after it; `None` when it is gone.
pub(super) fn command_line(pid: i32) -> io::Result<Option<Vec<u8>>> {
    let place = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_ARGS, pid];
    match sysctl::read_at(&place) {
        Ok(words) => Ok(Some(words)),
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The folder that a process works in; `None` when the process is gone.
pub(super) fn works_in(pid: i32) -> io::Result<Option<PathBuf>> {
    let place = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_CWD, pid];
    let record = match sysctl::read_at(&place) {
        Ok(record) => record,
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(e) => return Err(e),
    };
    // A `struct kinfo_file`, truncated after its path.
    let path = record
        .get(std::mem::offset_of!(libc::kinfo_file, kf_path)..)
        .and_then(|rest| rest.split(|byte| *byte == 0).next());
    Ok(path.map(|path| std::ffi::OsStr::from_bytes(path).into()))
}

/// `kern.boottime` in microseconds.
fn boot_time() -> io::Result<i64> {
    microseconds(&sysctl::read("kern.boottime")?)
        .ok_or_else(|| io::Error::other("kern.boottime has another form"))
}

pub(super) fn open(process: &Process) -> io::Result<Option<Handle>> {
    let queue = Kqueue::new()?;
    let ident = usize::try_from(process.pid).map_err(io::Error::other)?;
    let end = KEvent::new(
        ident,
        EventFilter::EVFILT_PROC,
        EvFlags::EV_ADD,
        FilterFlag::NOTE_EXIT,
        0,
        0,
    );
    match queue.kevent(&[end], &mut [], None) {
        Ok(_) => {}
        Err(Errno::ESRCH) => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    // The queue tells of whatever has the id; was it ours?
    Ok((process.state()? != ProcessState::Gone).then_some(Handle {
        process: *process,
        queue,
    }))
}

pub(super) fn send(handle: &Handle, signal: Signal) -> io::Result<bool> {
    if handle.process.state()? == ProcessState::Gone {
        return Ok(false);
    }
    match kill(Pid::from_raw(handle.process.pid), signal) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

pub(super) fn wait_for_end(handle: &Handle, timeout: Duration) -> io::Result<bool> {
    // The event comes only once, so look first for an end that was reported already.
    if handle.process.state()? == ProcessState::Gone {
        return Ok(true);
    }
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let nothing = KEvent::new(
        0,
        EventFilter::EVFILT_PROC,
        EvFlags::empty(),
        FilterFlag::empty(),
        0,
        0,
    );
    Ok(handle.queue.kevent(&[], &mut [nothing], Some(timeout))? > 0)
}

/// Children of a process that have this file open: none are looked for, because no engine of
/// FreeBSD has a nursery.
pub(super) fn children_with(_: i32, _: &std::fs::Metadata) -> Vec<Process> {
    Vec::new()
}
