//! Jail of a guest's process: what a guest that takes over its process can still do.
//!
//! The nursery gives up all capabilities, and the right to ever get any, before it forks; its guests
//! inherit that. A guest's process then takes a filter of system calls (seccomp) while it is a spare
//! and waits for its order. The filter leaves what a guest's process does: it names the one socket
//! that it has made, runs its virtual machine, talks to clients that come to the socket, and reads
//! and writes descriptors that it has or is sent. It opens nothing, starts nothing, connects to
//! nothing and signals nobody but itself.

use std::{
    io,
    mem::offset_of,
    os::fd::{AsRawFd, BorrowedFd},
};

use caps::CapSet;
use libc::{seccomp_data, sock_filter, sock_fprog};
use nix::unistd::Pid;

/// Stands in the filter for the id of the process that takes it.
const OWN_PID: u32 = 0x7fff_0b0d;
/// Stands in the filter for the descriptor of the socket that its clients come to.
const CONTROL: u32 = 0x7fff_0b0e;
/// Type of KVM's ioctls (`KVMIO` of linux/kvm.h), and where an ioctl's number has its type.
const KVM_IOCTL: u32 = 0xae00;
const IOCTL_TYPE: u32 = 0xff00;
/// `AUDIT_ARCH_X86_64` of linux/audit.h: the system calls of 64-bit programs, by whose numbers the
/// filter goes.
const X86_64: u32 = 0xc000_003e;

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

/// The filter, made once for all guests of a nursery.
#[derive(Debug)]
pub(crate) struct Jail {
    filter: Filter,
}

/// The filter as the kernel takes it. A guest completes its copy on the stack: a copy on the heap
/// would be pages of the guest's own.
type Filter = [sock_filter; LENGTH];

impl Jail {
    pub(crate) fn new() -> Self {
        Self { filter: filter() }
    }

    /// Confines this process for good. It may still give the socket `control` its address, once.
    #[inline(never)]
    pub(crate) fn enter(&self, control: BorrowedFd<'_>) -> Result<(), String> {
        let pid = Pid::this().as_raw().unsigned_abs();
        let control = control.as_raw_fd().unsigned_abs();
        let mut filter = self.filter;
        for instruction in &mut filter {
            match instruction.k {
                OWN_PID => instruction.k = pid,
                CONTROL => instruction.k = control,
                _ => {}
            }
        }
        let program = sock_fprog {
            len: u16::try_from(filter.len()).expect("a filter has few instructions"),
            filter: filter.as_mut_ptr(),
        };
        let mode = libc::c_long::from(libc::SECCOMP_SET_MODE_FILTER);
        // All threads of the process, if it has any.
        let flags = libc::SECCOMP_FILTER_FLAG_TSYNC;
        // SAFETY: the program describes the array above, which the kernel copies. The filter
        // makes system calls fail, which is no matter of memory.
        match unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) } {
            0 => Ok(()),
            _ => Err(format!(
                "cannot enter its jail: {}",
                io::Error::last_os_error()
            )),
        }
    }
}

/// System calls that are allowed whatever their arguments.
const FREE: [i64; 43] = [
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
    // A guest's flush of its disk.
    libc::SYS_fdatasync,
    libc::SYS_fstat,
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
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// A system call that is allowed if the bits of `mask` in an argument (32 bits of it) have one of
/// two values.
struct Condition {
    call: i64,
    argument: usize,
    mask: u32,
    values: [u32; 2],
}

const CONDITIONS: [Condition; 11] = {
    const fn only(call: i64, argument: usize, mask: u32, value: u32) -> Condition {
        Condition {
            call,
            argument,
            mask,
            values: [value; 2],
        }
    }
    let executable = libc::PROT_EXEC.unsigned_abs();
    let by_descriptor = libc::AT_EMPTY_PATH.unsigned_abs();
    [
        only(libc::SYS_ioctl, 1, IOCTL_TYPE, KVM_IOCTL),
        // Memory that the processor executes is the program's, and no other.
        only(libc::SYS_mmap, 2, executable, 0),
        only(libc::SYS_mprotect, 2, executable, 0),
        // What a guest discards of its disk is freed. Other modes would make files longer, or move
        // what they hold.
        only(
            libc::SYS_fallocate,
            1,
            u32::MAX,
            (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE).unsigned_abs(),
        ),
        // Its end no longer hangs on its nursery's once it can be found, and it has a name then.
        Condition {
            values: [
                libc::PR_SET_PDEATHSIG.unsigned_abs(),
                libc::PR_SET_NAME.unsigned_abs(),
            ],
            ..only(libc::SYS_prctl, 0, u32::MAX, 0)
        },
        // The kernel gives a socket an address once, so this is for its first instruction at most.
        only(libc::SYS_bind, 0, u32::MAX, CONTROL),
        only(libc::SYS_listen, 0, u32::MAX, CONTROL),
        // It stops itself (raise(3)), and looks at open files: by an empty path.
        only(libc::SYS_tgkill, 0, u32::MAX, OWN_PID),
        // It locks a part of a file, and looks whether there is a lease. Other commands would give
        // its nursery's lease back, or name a process that the kernel signals when a descriptor can
        // be read (F_SETOWN), and which signal that is.
        Condition {
            values: [
                libc::F_SETLK.unsigned_abs(),
                libc::F_GETLEASE.unsigned_abs(),
            ],
            ..only(libc::SYS_fcntl, 1, u32::MAX, 0)
        },
        only(libc::SYS_newfstatat, 3, by_descriptor, by_descriptor),
        only(libc::SYS_statx, 2, by_descriptor, by_descriptor),
    ]
};

impl Condition {
    /// Whether there are bits to leave out.
    const fn is_masked(&self) -> bool {
        self.mask != u32::MAX
    }

    const fn has_two_values(&self) -> bool {
        self.values[0] != self.values[1]
    }

    /// Instructions that it takes: three, and one for each of these.
    const fn length(&self) -> usize {
        3 + self.is_masked() as usize + self.has_two_values() as usize
    }
}

/// Instructions of the filter: four, then the conditions, one for each free call, and two answers.
const LENGTH: usize = {
    let (mut length, mut n) = (4 + FREE.len() + 2, 0);
    while n < CONDITIONS.len() {
        length += CONDITIONS[n].length();
        n += 1;
    }
    length
};

/// The filter (`struct seccomp_data` of linux/seccomp.h). It is short, because the kernel
/// translates it in each restore.
fn filter() -> Filter {
    let new = |code: u32, jt, jf, k| sock_filter {
        code: u16::try_from(code).expect("codes have 16 bits"),
        jt,
        jf,
        k,
    };
    let load = |offset: usize| {
        new(
            libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
            0,
            0,
            word(offset),
        )
    };
    let go_if = |k, jt, jf| new(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, k);
    let answer = |action| new(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    // How many instructions a jump at `from` passes over.
    let to_refusal = |from: usize| u8::try_from(LENGTH - 3 - from).expect("the filter is short");
    let to_allow = |from: usize| to_refusal(from) + 1;

    let mut filter = vec![
        // When a filter is installed, the kernel runs it for each number of a system call to find
        // those that it always allows (`seccomp_cache_prepare()` of kernel/seccomp.c), which takes
        // long and saves a guest that makes few calls nothing. It gives up at a load like this.
        load(offset_of!(seccomp_data, instruction_pointer)),
        load(offset_of!(seccomp_data, arch)),
        go_if(X86_64, 0, to_refusal(2)),
        load(offset_of!(seccomp_data, nr)),
    ];
    for condition in CONDITIONS {
        // The other half of an argument is of no meaning to these calls.
        let low = offset_of!(seccomp_data, args) + condition.argument * size_of::<u64>();
        let rest = u8::try_from(condition.length() - 1).expect("a condition is short");
        filter.extend([go_if(number(condition.call), 0, rest), load(low)]);
        if condition.is_masked() {
            let and = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
            filter.push(new(and, 0, 0, condition.mask));
        }
        let [one, other] = condition.values;
        if condition.has_two_values() {
            filter.push(go_if(one, to_allow(filter.len()), 0));
        }
        let at = filter.len();
        filter.push(go_if(other, to_allow(at), to_refusal(at)));
    }
    for call in FREE {
        filter.push(go_if(number(call), to_allow(filter.len()), 0));
    }
    filter.extend([
        answer(libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()),
        answer(libc::SECCOMP_RET_ALLOW),
    ]);
    filter.try_into().expect("as many as were counted")
}

fn number(call: i64) -> u32 {
    u32::try_from(call).expect("numbers of system calls are small")
}

fn word(offset: usize) -> u32 {
    u32::try_from(offset).expect("the data has 64 bytes")
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        net::TcpListener,
        os::fd::{AsFd, OwnedFd},
        process::Command,
    };

    use nix::{
        errno::Errno,
        fcntl::{FallocateFlags, fallocate},
        sys::{
            signal::{Signal, kill},
            socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
            wait::{WaitStatus, waitpid},
        },
        unistd::{ForkResult, fork, getppid},
    };

    use super::*;

    /// What a process does in the jail; each refusal has a bit.
    fn try_all(control: &OwnedFd, other: &OwnedFd) -> u32 {
        let refused =
            |what: std::io::Result<()>| what.is_err_and(|e| e.raw_os_error() == Some(libc::EPERM));
        let address = |name: &[u8]| UnixAddr::new_abstract(name).unwrap();
        let name = format!("brood-jail-{}", Pid::this());
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let tries = [
            refused(File::open("/etc/passwd").map(drop)),
            refused(File::create("/tmp/brood-jail").map(drop)),
            refused(TcpListener::bind("127.0.0.1:0").map(drop)),
            refused(Command::new("/bin/true").status().map(drop)),
            refused(kill(getppid(), None).map_err(Into::into)),
            refused(kill(getppid(), Signal::SIGCONT).map_err(Into::into)),
            // SAFETY: changes whom the kernel signals for the descriptor, and no memory.
            unsafe { libc::fcntl(control.as_raw_fd(), libc::F_SETOWN, getppid().as_raw()) } < 0,
            // SAFETY: gives a lease back, and changes no memory.
            unsafe { libc::fcntl(control.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) } < 0
                && Errno::last() == Errno::EPERM,
            refused(nix::sys::prctl::set_dumpable(true).map_err(Into::into)),
            refused(fallocate(control, FallocateFlags::empty(), 0, 1).map_err(Into::into)),
            refused(bind(other.as_raw_fd(), &address(name.as_bytes())).map_err(Into::into)),
            // What it needs is there.
            nix::sys::signal::raise(Signal::SIGURG).is_ok(),
            nix::sys::prctl::set_name(c"guest").is_ok(),
            bind(control.as_raw_fd(), &address(name.as_bytes())).is_ok(),
            listen(&control, Backlog::new(1).unwrap()).is_ok(),
            // A socket has no blocks, and that is what it is told.
            fallocate(control, punch, 0, 1) == Err(Errno::ENODEV),
            // An address is for good.
            bind(control.as_raw_fd(), &address(b"brood-jail")) == Err(Errno::EINVAL),
        ];
        let bits = tries.iter().enumerate();
        bits.map(|(n, done)| u32::from(*done) << n).sum()
    }

    #[test]
    fn what_a_guest_does_not_need_is_refused() {
        let jail = Jail::new();
        let socket = || {
            let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
            socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap()
        };
        let (control, other) = (socket(), socket());
        let (done, told) = nix::unistd::pipe().unwrap();
        // SAFETY: the child makes system calls and allocates, as a nursery's children do; the
        // allocator of glibc is sound after a fork.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let entered = give_up_privileges().and_then(|()| jail.enter(control.as_fd()));
                let bits = entered.map_or(0, |()| try_all(&control, &other));
                let _ = nix::unistd::write(&told, &bits.to_ne_bytes());
                // SAFETY: ends the process without running what its parent has to run at exit.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
                let mut bits = [0; 4];
                assert_eq!(nix::unistd::read(&done, &mut bits), Ok(4));
                assert_eq!(u32::from_ne_bytes(bits), 0x1_ffff);
            }
        }
    }
}
