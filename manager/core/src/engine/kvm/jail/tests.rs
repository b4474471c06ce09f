//! What a process in the jail is refused: by all of it, and by each part alone.

use std::{
    fs::{self, File},
    io,
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::FileExt, net::UnixListener},
    },
    path::Path,
    process::Command,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    sys::{
        ptrace,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigHandler, Signal, kill, raise, signal},
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, chdir, fork, getppid, pause},
};

use super::*;
use crate::owner_only;

/// The largest file of guests here.
const LARGEST: Bytes = Bytes::mib(4);

/// The version of the kernel's Landlock.
fn landlock() -> u32 {
    JailFacts::read(&ProcRoot::default()).unwrap().landlock
}

/// What a child says that does `what`.
fn in_child(what: impl FnOnce() -> u64) -> u64 {
    let (said, say) = nix::unistd::pipe().unwrap();
    // SAFETY: the child makes system calls and allocates, as a nursery's children do; the
    // allocator of glibc is sound after a fork.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let _ = nix::unistd::write(&say, &what().to_ne_bytes());
            // SAFETY: ends the process without running what its parent has to run at exit.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            let mut bits = [0; 8];
            assert_eq!(nix::unistd::read(&said, &mut bits), Ok(8));
            u64::from_ne_bytes(bits)
        }
    }
}

/// The names of what a child did, one bit for each.
fn names<const N: usize>(names: [&'static str; N], bits: u64) -> Vec<&'static str> {
    let done = (0..N).filter(|n| bits >> n & 1 == 1);
    done.map(|n| names[n]).collect()
}

fn bits(done: &[bool]) -> u64 {
    let done = done.iter().enumerate();
    done.map(|(n, done)| u64::from(*done) << n).sum()
}

fn seqpacket() -> OwnedFd {
    let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
    socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

/// What a process does in all of the jail.
fn try_all(control: &OwnedFd, other: &OwnedFd) -> u64 {
    let refused = |what: io::Result<()>| what.is_err_and(|e| e.raw_os_error() == Some(libc::EPERM));
    let address = |name: &[u8]| UnixAddr::new_abstract(name).unwrap();
    let name = format!("brood-jail-{}", Pid::this());
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    bits(&[
        refused(File::open("/etc/passwd").map(drop)),
        refused(File::create("brood-jail").map(drop)),
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
        refused(nix::unistd::setuid(0.into()).map_err(Into::into)),
        // What it needs is there.
        raise(Signal::SIGURG).is_ok(),
        nix::sys::prctl::set_name(c"guest").is_ok(),
        bind(control.as_raw_fd(), &address(name.as_bytes())).is_ok(),
        listen(&control, Backlog::new(1).unwrap()).is_ok(),
        // A socket has no blocks, and that is what it is told.
        fallocate(control, punch, 0, 1) == Err(Errno::ENODEV),
        // An address is for good.
        bind(control.as_raw_fd(), &address(b"brood-jail")) == Err(Errno::EINVAL),
    ])
}

#[test]
fn what_a_guest_does_not_need_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (control, other) = (seqpacket(), seqpacket());
    let bits = in_child(|| {
        chdir(dir.path()).unwrap();
        let jail = Jail::of_guests(false, LARGEST).unwrap();
        jail.enter(control.as_fd()).unwrap();
        jail.change_user(getppid()).unwrap();
        try_all(&control, &other)
    });
    assert_eq!(bits, 0x3_ffff, "{bits:#b}");
}

/// What a process tries that has taken one part of the jail, and is not refused.
const TRIES: [&str; 12] = [
    "read a file of the host",
    "read its nursery's file",
    "make a file",
    "remove its nursery's file",
    "name a socket",
    "signal its nursery",
    "signal its sibling",
    "trace its sibling",
    "look into its sibling",
    "connect by TCP",
    "send by UDP",
    "connect to an abstract socket",
];

/// Who listens on the host.
struct Host {
    tcp: TcpListener,
    udp: UdpSocket,
    _unix: UnixListener,
    name: String,
}

impl Host {
    fn new(test: &str) -> Self {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("brood-{test}-{}", Pid::this());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        Self {
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            udp: UdpSocket::bind("127.0.0.1:0").unwrap(),
            _unix: UnixListener::bind_addr(&address).unwrap(),
            name,
        }
    }
}

fn try_each(host: &Host, sibling: Pid) -> u64 {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&host.name).unwrap();
    let udp = host.udp.local_addr().unwrap();
    let send = || UdpSocket::bind("127.0.0.1:0").and_then(|own| own.send_to(b"x", udp));
    let named = bind(
        seqpacket().as_raw_fd(),
        &UnixAddr::new(Path::new("socket")).unwrap(),
    );
    bits(&[
        File::open("/etc/passwd").is_ok(),
        File::open("record").is_ok(),
        File::create("other").is_ok(),
        fs::remove_file("record").is_ok(),
        named.is_ok(),
        kill(getppid(), None).is_ok(),
        kill(sibling, None).is_ok(),
        ptrace::seize(sibling, ptrace::Options::empty()).is_ok(),
        fs::read_dir(format!("/proc/{sibling}/fd")).is_ok_and(|mut all| all.next().is_some()),
        TcpStream::connect(host.tcp.local_addr().unwrap()).is_ok(),
        send().is_ok(),
        std::os::unix::net::UnixStream::connect_addr(&address).is_ok(),
    ])
}

/// What one guest of a nursery may do that has entered the part that `enter` enters, as its sibling
/// has.
fn left(test: &str, with: fn() -> Jail, enter: fn(&Jail)) -> Vec<&'static str> {
    let dir = tempfile::tempdir().unwrap();
    let run_folder = dir.path().join("run");
    owner_only::create_folder(&run_folder).unwrap();
    fs::write(run_folder.join("record"), "").unwrap();
    let host = Host::new(test);
    let done = in_child(|| {
        chdir(&run_folder).unwrap();
        let jail = with();
        let (ready, is_ready) = nix::unistd::pipe().unwrap();
        // SAFETY: as in the function above.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                enter(&jail);
                let _ = nix::unistd::write(&is_ready, &[0]);
                loop {
                    pause();
                }
            }
            ForkResult::Parent { child } => {
                assert_eq!(nix::unistd::read(&ready, &mut [0]), Ok(1));
                let done = in_child(|| {
                    enter(&jail);
                    try_each(&host, child)
                });
                // Its nursery can see and end it.
                assert!(fs::read_dir(format!("/proc/{child}/fd")).unwrap().count() > 3);
                kill(child, Signal::SIGKILL).unwrap();
                waitpid(child, None).unwrap();
                done
            }
        }
    });
    names(TRIES, done)
}

/// A jail of which nothing is entered.
fn open_jail() -> Jail {
    Jail {
        filter: Filter::new(),
        file_rules: None,
        landlock: 0,
        has_users: false,
    }
}

#[test]
fn without_a_jail_all_of_it_works() {
    assert_eq!(left("open", open_jail, |_| {}), TRIES);
}

#[test]
fn by_its_rules_alone_a_process_names_sockets_and_reaches_nobody() {
    // Version 6 has signals.
    if landlock() < 6 {
        return;
    }
    let with = || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        let mut jail = open_jail();
        let bind: Rights = AccessFs::MakeSock.into();
        let rules = FileRules::new([(Path::new("."), bind)]).unwrap();
        jail.file_rules = rules.map(FileRules::into_raw_fd);
        jail
    };
    let enter = |jail: &Jail| file_rules::enter(jail.file_rules.unwrap()).unwrap();
    let left = left("rules", with, enter);
    assert_eq!(left, ["name a socket", "send by UDP"]);
}

#[test]
fn by_its_user_alone_a_process_reaches_none_of_root_and_no_sibling() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let with = || {
        let mut jail = open_jail();
        user::prepare().unwrap();
        jail.has_users = true;
        jail
    };
    let enter = |jail: &Jail| jail.change_user(getppid()).unwrap();
    let left = left("user", with, enter);
    let network = [
        "connect by TCP",
        "send by UDP",
        "connect to an abstract socket",
    ];
    assert_eq!(left, [&["read a file of the host"][..], &network].concat());
}

#[test]
fn by_its_namespaces_alone_a_process_has_no_network() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let with = || {
        leave_namespaces();
        open_jail()
    };
    let left = left("namespaces", with, |_| {});
    assert_eq!(left, TRIES[..9]);
}

#[test]
fn a_nursery_reaches_its_run_folder_and_no_other_file() {
    let dir = tempfile::tempdir().unwrap();
    if landlock() == 0 {
        return;
    }
    let done = in_child(|| {
        chdir(dir.path()).unwrap();
        Jail::of_guests(false, LARGEST).unwrap();
        bits(&[
            fs::write("guest.exit.new", "{}").is_ok(),
            fs::rename("guest.exit.new", "guest.exit").is_ok(),
            fs::remove_file("guest.exit").is_ok(),
            fs::read_to_string("/proc/self/stat").is_ok(),
            File::open("/etc/passwd").is_err(),
            File::create("/tmp/brood-jail").is_err(),
            fs::write("/proc/self/comm", "other").is_err(),
            fs::create_dir("folder").is_err(),
        ])
    });
    assert_eq!(done, 0xff, "{done:#b}");
}

/// What a nursery and its guests try beyond their limits, and what they do within them.
fn try_limits(jail: &Jail, file: &File) -> u64 {
    let file_size = |size: u64| file.write_all_at(&[1], size - 1);
    let too_large =
        |result: io::Result<()>| result.is_err_and(|e| e.raw_os_error() == Some(libc::EFBIG));
    let nobodys_page = vec![0_u8; 4096];
    // SAFETY: locks memory of this process, and changes none.
    let locked = unsafe { libc::mlock(nobodys_page.as_ptr().cast(), 4096) };
    let mut copies = Vec::new();
    let last = loop {
        match file.try_clone() {
            Ok(copy) => copies.push(copy),
            Err(e) => break e.raw_os_error(),
        }
    };
    let highest = copies.iter().map(AsRawFd::as_raw_fd).max().unwrap_or(0);
    drop(copies);
    let core = getrlimit(Resource::RLIMIT_CORE) == Ok((0, 0));
    // What is lowered stays so.
    let raised = setrlimit(Resource::RLIMIT_NOFILE, 1 << 10, 1 << 10);
    let children = match jail.has_users {
        true => {
            limits::enter_guest().unwrap();
            jail.change_user(getppid()).unwrap();
            children_until_refused()
        }
        false => limits::PROCESSES - 1,
    };
    bits(&[
        file_size(LARGEST.0).is_ok(),
        too_large(file_size(LARGEST.0 + (17 << 20))),
        locked < 0,
        last == Some(libc::EMFILE),
        u64::from(highest.unsigned_abs()) < limits::OPEN_FILES,
        core,
        raised == Err(Errno::EPERM),
        children == limits::PROCESSES - 1,
    ])
}

/// How many children this process can have.
fn children_until_refused() -> u64 {
    let mut children = Vec::new();
    // Many more than it should.
    while children.len() < 100 {
        // SAFETY: as in the functions above.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => loop {
                pause();
            },
            Ok(ForkResult::Parent { child }) => children.push(child),
            Err(_) => break,
        }
    }
    for child in &children {
        kill(*child, Signal::SIGKILL).unwrap();
        waitpid(*child, None).unwrap();
    }
    children.len() as u64
}

#[test]
fn what_is_above_a_limit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = tempfile::tempfile().unwrap();
    let done = in_child(|| {
        chdir(dir.path()).unwrap();
        // SAFETY: a signal that is ignored runs no handler. A nursery ignores it, too.
        unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
        let jail = Jail::of_guests(false, LARGEST).unwrap();
        try_limits(&jail, &file)
    });
    assert_eq!(done, 0xff, "{done:#b}");
}
