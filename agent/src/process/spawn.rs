//! Starts a program in a session and process group of its own, with pipes or a terminal.

use std::{
    ffi::{CString, OsStr},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use brood_agent_protocol::{Exec, Failure, OsBytes, TerminalSize};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    pty::{Winsize, grantpt, posix_openpt, ptsname, unlockpt},
    unistd::{chdir, setgid, setgroups, setsid, setuid},
};

use super::user::Account;
use crate::failure::{Context, invalid};

/// The agent's ends of a program's streams; they do not block.
pub(super) struct Streams {
    pub(super) input: Option<OwnedFd>,
    pub(super) output: Option<OwnedFd>,
    pub(super) error: Option<OwnedFd>,
}

/// Both ends of a new terminal.
struct Pty {
    master: OwnedFd,
    slave: OwnedFd,
}

/// A started program.
pub(super) struct Started {
    pub(super) pid: u32,
    pub(super) streams: Streams,
    /// The terminal, where it has one.
    pub(super) terminal: Option<OwnedFd>,
}

pub(super) fn spawn(exec: &Exec) -> Result<Started, Failure> {
    let Some(program) = exec.argv.first() else {
        return Err(invalid("the program to run has no name"));
    };
    let account = match &exec.user {
        Some(user) => Account::named(user)?,
        None => Account::own(),
    };
    let tried = format!("cannot run {program:?}");
    let mut command = Command::new(program.as_os_str());
    command.args(exec.argv[1..].iter().map(OsBytes::as_os_str));
    variables(&mut command, exec, &account)?;
    let cwd = folder(exec, &account)?;
    let terminal = exec
        .terminal
        .map(open_terminal)
        .transpose()
        .context(&tried)?;
    connect(&mut command, exec, terminal.as_ref()).context(&tried)?;

    let has_terminal = terminal.is_some();
    let become_user = exec.user.is_some().then_some(account);
    // SAFETY: between fork and exec only system calls are made; all that they need was allocated
    // before.
    unsafe {
        command.pre_exec(move || prepare(has_terminal, become_user.as_ref(), &cwd));
    }
    let mut child = command.spawn().context(&tried)?;
    // The slave's end is in `command`; a reader of the terminal waits for ever while it is open.
    drop(command);
    let mut streams = Streams {
        input: child.stdin.take().map(OwnedFd::from),
        output: child.stdout.take().map(OwnedFd::from),
        error: child.stderr.take().map(OwnedFd::from),
    };
    let terminal = terminal.map(|pty| pty.master);
    if let Some(master) = &terminal {
        let copy = || master.try_clone().context(&tried);
        streams.input = exec.input.then(copy).transpose()?;
        streams.output = Some(copy()?);
    }
    let fds = [&streams.input, &streams.output, &streams.error];
    for fd in fds.into_iter().flatten() {
        fcntl(fd.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context(&tried)?;
    }
    Ok(Started {
        pid: child.id(),
        streams,
        terminal,
    })
}

fn variables(command: &mut Command, exec: &Exec, account: &Account) -> Result<(), Failure> {
    command.env_clear();
    for (name, value) in account.variables() {
        command.env(name, OsStr::from_bytes(value.as_bytes()));
    }
    if exec.terminal.is_some() {
        command.env("TERM", "xterm-256color");
    }
    for (name, value) in &exec.env {
        let bad = |byte: &u8| *byte == 0 || *byte == b'=';
        if name.as_bytes().is_empty() || name.as_bytes().iter().any(bad) {
            return Err(invalid(format!(
                "{name:?} cannot be the name of a variable"
            )));
        }
        command.env(name.as_os_str(), value.as_os_str());
    }
    Ok(())
}

/// The folder that the program starts in. A home that is not there is no reason not to start.
fn folder(exec: &Exec, account: &Account) -> Result<CString, Failure> {
    let path = match &exec.cwd {
        Some(path) => {
            let path = Path::new("/").join(path.as_path());
            let tried = format!("cannot start in {}", path.display());
            let metadata = fs::metadata(&path).context(&tried)?;
            if !metadata.is_dir() {
                return Err(invalid(format!("{tried}: it is no folder")));
            }
            path
        }
        None if account.home.is_dir() => account.home.clone(),
        None => "/".into(),
    };
    let text = CString::new(path.as_os_str().as_bytes());
    text.map_err(|_| invalid("the folder to start in has a byte 0 in its name"))
}

/// As openpty(3) does. That one is in FreeBSD's libutil, whose version differs between releases.
fn open_terminal(size: TerminalSize) -> io::Result<Pty> {
    static NAMES: Mutex<()> = Mutex::new(());
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = {
        let _one_at_a_time = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the name is in a buffer of the C library's, which the next call overwrites. Only
        // this function calls it, and copies the name under the lock.
        unsafe { ptsname(&master)? }
    };
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true);
    let slave = options
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(name)?
        .into();
    let pty = Pty {
        master: master.into(),
        slave,
    };
    set_window(&pty.slave, size)?;
    Ok(pty)
}

nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, Winsize);

/// Sets the size of a terminal.
pub(super) fn set_window(terminal: &OwnedFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open for as long as it is borrowed, and the size outlives the call.
    unsafe { set_size(terminal.as_raw_fd(), &raw const size)? };
    Ok(())
}

fn connect(command: &mut Command, exec: &Exec, pty: Option<&Pty>) -> io::Result<()> {
    if let Some(pty) = pty {
        command.stdin(pty.slave.try_clone()?);
        command.stdout(pty.slave.try_clone()?);
        command.stderr(pty.slave.try_clone()?);
    } else {
        command.stdin(if exec.input {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        command.stdout(Stdio::piped());
        command.stderr(Stdio::piped());
    }
    Ok(())
}

nix::ioctl_write_int_bad!(set_controlling_terminal, libc::TIOCSCTTY);

/// What the child does before it becomes the program.
fn prepare(has_terminal: bool, account: Option<&Account>, cwd: &CString) -> io::Result<()> {
    setsid()?;
    super::oom::restore();
    if has_terminal {
        // SAFETY: descriptor 0 is the terminal, which no other session has.
        unsafe { set_controlling_terminal(0, 0)? };
    }
    if let Some(account) = account {
        setgroups(&account.groups)?;
        setgid(account.gid)?;
        setuid(account.uid)?;
    }
    chdir(cwd.as_c_str())?;
    Ok(())
}
