//! Filter of system calls (seccomp) that a guest's process takes.

use std::{
    io,
    mem::offset_of,
    os::fd::{AsRawFd, BorrowedFd},
};

use libc::{seccomp_data, sock_filter, sock_fprog};
use nix::unistd::Pid;

use super::user;

/// Stands in the filter for the id of the process that takes it.
const OWN_PID: u32 = 0x7fff_0b0d;
/// Stands in the filter for that process's own user.
const OWN_USER: u32 = 0x7fff_0b0f;
/// Stands in the filter for the descriptor of the socket that its clients come to.
const CONTROL: u32 = 0x7fff_0b0e;
/// Type of KVM's ioctls (`KVMIO` of linux/kvm.h), and where an ioctl's number has its type.
const KVM_IOCTL: u32 = 0xae00;
const IOCTL_TYPE: u32 = 0xff00;
/// `AUDIT_ARCH_X86_64` of linux/audit.h: the system calls of 64-bit programs, by whose numbers the
/// filter goes.
const X86_64: u32 = 0xc000_003e;

/// The filter as the kernel takes it. A guest completes its copy on the stack: a copy on the heap
/// would be pages of the guest's own.
type Instructions = [sock_filter; LENGTH];

/// The filter, made once for all guests of a nursery.
#[derive(Debug)]
pub(super) struct Filter(Instructions);

impl Filter {
    pub(super) fn new() -> Self {
        Self(instructions())
    }

    /// Confines all threads of this process for good. It may still give the socket `control` its
    /// address, once.
    #[inline(never)]
    pub(super) fn enter(&self, control: BorrowedFd<'_>) -> io::Result<()> {
        let pid = Pid::this().as_raw().unsigned_abs();
        let control = control.as_raw_fd().unsigned_abs();
        let mut filter = self.0;
        for instruction in &mut filter {
            match instruction.k {
                OWN_PID => instruction.k = pid,
                OWN_USER => instruction.k = user::own().as_raw(),
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
            _ => Err(io::Error::last_os_error()),
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

const CONDITIONS: [Condition; 12] = {
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
        // Once it has, it has no right to become another.
        only(libc::SYS_setresuid, 0, u32::MAX, OWN_USER),
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
fn instructions() -> Instructions {
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
