//! Tracer: stops at each system call of a process (ptrace(2)), and ends or stops the process at one
//! of them. So a test hits a moment on purpose, and not by luck.

use std::{
    collections::{HashMap, HashSet},
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::signal;

/// How often the tracer looks whether something happened.
const GLANCE: Duration = Duration::from_micros(20);
/// `op` of a stop at the entry to a system call (ptrace(2), `PTRACE_GET_SYSCALL_INFO`).
const ENTRY: u8 = libc::PTRACE_SYSCALL_INFO_ENTRY;
/// `op` of a stop at its exit.
const EXIT: u8 = libc::PTRACE_SYSCALL_INFO_EXIT;

/// A system call that a traced process is about to make, or has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The process.
    pub pid: i32,
    /// Number of the call.
    pub number: i64,
    /// Its first three arguments.
    pub arguments: [u64; 3],
    /// What came of it; none at its entry.
    pub result: Option<i64>,
}

/// What becomes of a process at a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It goes on.
    GoOn,
    /// It is killed, SIGKILL, and the others are not traced any more.
    Kill,
    /// It is stopped, SIGSTOP, and not traced any more.
    Stop,
}

/// Traces processes until it is dropped or they have ended.
#[derive(Debug)]
pub struct Tracer {
    thread: Option<JoinHandle<Option<Call>>>,
    let_go: Arc<AtomicBool>,
}

impl Tracer {
    /// Traces all threads of these processes from now on, and those to come; their children are not
    /// traced. `decide` is asked at each entry to a system call and each exit from one.
    ///
    /// # Panics
    /// When they cannot be traced.
    #[must_use]
    pub fn attach(pids: &[i32], mut decide: impl FnMut(&Call) -> Then + Send + 'static) -> Self {
        let let_go = Arc::new(AtomicBool::new(false));
        let (pids, leave) = (pids.to_vec(), Arc::clone(&let_go));
        let (attached, ready) = mpsc::channel();
        // Only the thread that has attached to a process can trace it. Its end lets them all go.
        let trace = move || {
            let mut traced = seize(&pids);
            attached.send(()).expect("it is waited for");
            follow(&mut traced, &leave, &mut decide)
        };
        let thread = Some(thread::spawn(trace));
        ready.recv().expect("the processes can be traced");
        Self { thread, let_go }
    }

    /// Lets the processes go; returns the call at which one was killed or stopped, if one was.
    ///
    /// # Panics
    /// When they could not be traced.
    pub fn end(mut self) -> Option<Call> {
        self.let_go.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it ends once");
        thread.join().expect("a tracer that goes on")
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.let_go.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Begins to trace; returns each thread with its process.
fn seize(pids: &[i32]) -> HashMap<i32, i32> {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
    let mut traced = HashMap::new();
    for &pid in pids {
        // A thread may begin meanwhile: look until there is none that is not traced.
        loop {
            let mut new = false;
            for thread in threads(pid) {
                if traced.contains_key(&thread) {
                    continue;
                }
                let tid = Pid::from_raw(thread);
                match ptrace::seize(tid, options) {
                    Ok(()) => ptrace::interrupt(tid).expect("it is traced"),
                    // It has ended, or was traced from its beginning.
                    Err(Errno::ESRCH) => continue,
                    Err(Errno::EPERM) if threads(pid).len() > 1 => {}
                    Err(e) => panic!("cannot trace thread {thread} of {pid}: {e}"),
                }
                traced.insert(thread, pid);
                new = true;
            }
            if !new {
                break;
            }
        }
    }
    traced
}

fn threads(pid: i32) -> HashSet<i32> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

fn follow(
    traced: &mut HashMap<i32, i32>,
    leave: &AtomicBool,
    decide: &mut dyn FnMut(&Call) -> Then,
) -> Option<Call> {
    let mut fate = None;
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG;
    while !traced.is_empty() && !leave.load(Ordering::Relaxed) {
        // One that is gone meanwhile is heard of by the next look.
        let _ = match waitpid(None, Some(flags)) {
            Ok(WaitStatus::PtraceSyscall(tid)) => {
                let then = call_of(tid, traced).map(|call| (call, decide(&call)));
                match then {
                    Some((call, Then::Kill)) => {
                        signal(call.pid, Signal::SIGKILL);
                        // Its end is for its parent to see, which may be in this process.
                        return Some(call);
                    }
                    Some((call, Then::Stop)) => {
                        fate = fate.or(Some(call));
                        signal(call.pid, Signal::SIGSTOP);
                        traced.remove(&tid.as_raw());
                        ptrace::detach(tid, None)
                    }
                    Some((_, Then::GoOn)) | None => ptrace::syscall(tid, None),
                }
            }
            // It is stopped, not only by its tracer. That is left as it is.
            Ok(WaitStatus::PtraceEvent(tid, stop, libc::PTRACE_EVENT_STOP))
                if stop != Signal::SIGTRAP =>
            {
                traced.remove(&tid.as_raw());
                ptrace::detach(tid, None)
            }
            Ok(WaitStatus::PtraceEvent(tid, ..)) => ptrace::syscall(tid, None),
            Ok(WaitStatus::Stopped(tid, arrived)) => ptrace::syscall(tid, arrived),
            Ok(WaitStatus::Exited(tid, _) | WaitStatus::Signaled(tid, ..)) => {
                traced.remove(&tid.as_raw());
                Ok(())
            }
            Err(Errno::ECHILD) => break,
            _ => {
                thread::sleep(GLANCE);
                Ok(())
            }
        };
    }
    fate
}

fn call_of(tid: Pid, traced: &mut HashMap<i32, i32>) -> Option<Call> {
    let pid = match traced.get(&tid.as_raw()) {
        Some(pid) => *pid,
        None => {
            let pid = process_of(tid)?;
            traced.insert(tid.as_raw(), pid);
            pid
        }
    };
    let at = ptrace::syscall_info(tid).ok()?.op;
    let registers = ptrace::getregs(tid).ok()?;
    Some(Call {
        pid,
        number: registers.orig_rax.cast_signed(),
        arguments: [registers.rdi, registers.rsi, registers.rdx],
        result: match at {
            ENTRY => None,
            EXIT => Some(registers.rax.cast_signed()),
            _ => return None,
        },
    })
}

fn process_of(tid: Pid) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok()
}

impl Call {
    /// Whether the process is about to change something outside its own memory: a file, a folder,
    /// another process, or its output.
    #[must_use]
    pub fn is_step(&self) -> bool {
        if self.result.is_some() {
            return false;
        }
        match self.number {
            libc::SYS_write | libc::SYS_writev => self.is_heard(),
            libc::SYS_openat => self.arguments[2] & libc::O_CREAT as u64 != 0,
            libc::SYS_pwrite64
            | libc::SYS_pwritev
            | libc::SYS_fsync
            | libc::SYS_fdatasync
            | libc::SYS_rename
            | libc::SYS_renameat
            | libc::SYS_renameat2
            | libc::SYS_link
            | libc::SYS_linkat
            | libc::SYS_unlink
            | libc::SYS_unlinkat
            | libc::SYS_mkdir
            | libc::SYS_mkdirat
            | libc::SYS_ftruncate
            | libc::SYS_fchmod
            | libc::SYS_copy_file_range
            | libc::SYS_flock
            | libc::SYS_connect
            | libc::SYS_sendto
            | libc::SYS_sendmsg
            | libc::SYS_kill
            | libc::SYS_pidfd_send_signal
            | libc::SYS_clone
            | libc::SYS_clone3
            | libc::SYS_vfork => true,
            _ => false,
        }
    }

    /// Whether the write goes to a file or to another process: not to the log, and not to a thread
    /// of the same process.
    fn is_heard(&self) -> bool {
        let fd = self.arguments[0];
        let to = fs::read_link(format!("/proc/{}/fd/{fd}", self.pid));
        let to = to.map_or(String::new(), |to| to.to_string_lossy().into_owned());
        fd > 2 && (to.starts_with('/') || to.starts_with("socket:"))
    }
}
