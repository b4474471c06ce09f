//! Jail of a guest's process: what a guest that takes over its process can still do.
//!
//! The nursery gives up all capabilities, and the right to ever get any, before it forks; its guests
//! inherit that. A guest's process then takes a filter of system calls (seccomp) before the guest's
//! first instruction. The filter leaves what a guest's process does: it runs its virtual machine,
//! talks to clients that come to its socket, and reads and writes descriptors that it has or is
//! sent. It opens nothing, starts nothing, connects to nothing and signals nobody but itself.

use std::collections::BTreeMap;

use caps::CapSet;
use nix::unistd::Pid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter, sock_filter,
};

/// Stands in the filter for the id of the process that takes it.
const OWN_PID: u32 = 0x7fff_0b0d;
/// Type of KVM's ioctls (`KVMIO` of linux/kvm.h), and where an ioctl's number has its type.
const KVM_IOCTL: u64 = 0xae00;
const IOCTL_TYPE: u64 = 0xff00;

/// Loads the caller's address, which nothing uses. When a filter is installed, the kernel runs it
/// for each number of a system call, to find those that it always allows
/// (`seccomp_cache_prepare()` of kernel/seccomp.c). For this filter that would take 90 µs of a
/// restore, and save a guest that makes few calls next to nothing. It gives up at a load like this.
const LOOK_AT_CALLER: sock_filter = sock_filter {
    code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
    jt: 0,
    jf: 0,
    k: std::mem::offset_of!(libc::seccomp_data, instruction_pointer) as u32,
};

/// Gives up all capabilities, and the right to get any by executing a program.
pub(crate) fn give_up_privileges() -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot give up its privileges: {e}");
    nix::sys::prctl::set_no_new_privs().map_err(|e| failed(&e))?;
    for set in [CapSet::Ambient, CapSet::Bounding] {
        // Only a process that has CAP_SETPCAP may change these, and without a privilege they
        // give none.
        let _ = caps::clear(None, set);
    }
    for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Permitted] {
        caps::clear(None, set).map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// The filter, compiled once for all guests of a nursery.
#[derive(Debug)]
pub(crate) struct Jail {
    filter: BpfProgram,
}

impl Jail {
    pub(crate) fn new() -> Result<Self, String> {
        let failed = |e: seccompiler::BackendError| format!("cannot make its jail: {e}");
        let filter = SeccompFilter::new(
            rules().map_err(failed)?,
            SeccompAction::Errno(libc::EPERM.unsigned_abs()),
            SeccompAction::Allow,
            TargetArch::x86_64,
        );
        let mut filter = filter.and_then(BpfProgram::try_from).map_err(failed)?;
        filter.insert(0, LOOK_AT_CALLER);
        Ok(Self { filter })
    }

    /// Confines this process for good.
    pub(crate) fn enter(&self) -> Result<(), String> {
        let own = Pid::this().as_raw().unsigned_abs();
        let mut filter = self.filter.clone();
        for instruction in filter.iter_mut().filter(|each| each.k == OWN_PID) {
            instruction.k = own;
        }
        apply_filter(&filter).map_err(|e| format!("cannot enter its jail: {e}"))
    }
}

/// System calls that are allowed whatever their arguments.
const FREE: [i64; 42] = [
    // Descriptors that the process has or is sent.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_copy_file_range,
    libc::SYS_fstat,
    libc::SYS_fcntl,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_poll,
    libc::SYS_ppoll,
    // Clients of its socket.
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    // Memory; what maps it is below.
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mremap,
    // Time, signals and the end.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<_, _> = FREE.into_iter().map(|call| (call, Vec::new())).collect();
    let mut only = |call, argument, is, value| {
        let condition = SeccompCondition::new(argument, Width::Dword, is, value)?;
        rules.insert(call, vec![SeccompRule::new(vec![condition])?]);
        Ok::<_, seccompiler::BackendError>(())
    };
    only(libc::SYS_ioctl, 1, Is::MaskedEq(IOCTL_TYPE), KVM_IOCTL)?;
    // Memory that the processor executes is the program's, and no other.
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    only(libc::SYS_mmap, 2, Is::MaskedEq(executable), 0)?;
    only(libc::SYS_mprotect, 2, Is::MaskedEq(executable), 0)?;
    // Its end no longer hangs on its nursery's once it can be found (PR_SET_PDEATHSIG).
    let death_signal = u64::from(libc::PR_SET_PDEATHSIG.unsigned_abs());
    only(libc::SYS_prctl, 0, Is::Eq, death_signal)?;
    // It stops itself (raise(3)), and looks at open files: by an empty path.
    only(libc::SYS_tgkill, 0, Is::Eq, OWN_PID.into())?;
    let by_descriptor = u64::from(libc::AT_EMPTY_PATH.unsigned_abs());
    only(
        libc::SYS_newfstatat,
        3,
        Is::MaskedEq(by_descriptor),
        by_descriptor,
    )?;
    only(
        libc::SYS_statx,
        2,
        Is::MaskedEq(by_descriptor),
        by_descriptor,
    )?;
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, net::TcpListener, process::Command};

    use nix::{
        sys::{
            signal::{Signal, kill},
            wait::{WaitStatus, waitpid},
        },
        unistd::{ForkResult, fork, getppid},
    };

    use super::*;

    /// What a process does in the jail; each refusal has a bit.
    fn try_all() -> i32 {
        let refused =
            |what: std::io::Result<()>| what.is_err_and(|e| e.raw_os_error() == Some(libc::EPERM));
        let tries = [
            refused(File::open("/etc/passwd").map(drop)),
            refused(File::create("/tmp/brood-jail").map(drop)),
            refused(TcpListener::bind("127.0.0.1:0").map(drop)),
            refused(Command::new("/bin/true").status().map(drop)),
            refused(kill(getppid(), None).map_err(Into::into)),
            refused(kill(getppid(), Signal::SIGCONT).map_err(Into::into)),
            // What it needs is there.
            nix::sys::signal::raise(Signal::SIGURG).is_ok(),
        ];
        let bits = tries.iter().enumerate();
        bits.map(|(n, done)| i32::from(*done) << n).sum()
    }

    #[test]
    fn what_a_guest_does_not_need_is_refused() {
        let jail = Jail::new().unwrap();
        // SAFETY: the child makes system calls and allocates, as a nursery's children do; the
        // allocator of glibc is sound after a fork.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let code = match give_up_privileges().and_then(|()| jail.enter()) {
                    Ok(()) => try_all(),
                    Err(_) => 0,
                };
                // SAFETY: ends the process without running what its parent has to run at exit.
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(
                    waitpid(child, None).unwrap(),
                    WaitStatus::Exited(child, 0x7f)
                );
            }
        }
    }
}
