//! Hooks: programs of the image that are run when the guest was restored, or is to be suspended.

use std::{
    fs::{self, File},
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use brood_agent_protocol::{
    Failure, HookEnd, HookResult, Hooks, OsBytes, Reply,
    limits::{MAX_HOOK_OUTPUT, MAX_TEXT},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, killpg},
    unistd::{Pid, pipe2},
};

use super::System;
use crate::{
    call::{Call, Interrupt},
    failure::{Context, invalid},
    process::oom,
    serve::Answer,
};

/// How many hooks an occasion has at most: their results are one message.
const MAX_HOOKS: usize = 64;
/// How often the agent looks whether a hook that has left its output to others has ended.
const END_INTERVAL: Duration = Duration::from_millis(20);
/// What a pipe holds, and what is taken from it at once, in bytes.
const PIPE: usize = 64 * 1024;
const PIECE: usize = 4096;

/// The programs of an occasion.
#[derive(Debug)]
pub(crate) struct HookPrograms {
    asked: Hooks,
    /// By the order of their names.
    paths: Vec<PathBuf>,
}

impl HookPrograms {
    /// Those that the image has for it.
    pub(crate) fn of(asked: Hooks) -> Result<HookPrograms, Failure> {
        let letters = |c: char| c.is_ascii_lowercase() || c == '-';
        if asked.occasion.is_empty() || !asked.occasion.chars().all(letters) {
            return Err(invalid(format!("{:?} is no occasion", asked.occasion)));
        }
        let folder = PathBuf::from(format!("/etc/brood/{}.d", asked.occasion));
        let paths = programs(&folder)?;
        Ok(HookPrograms { asked, paths })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }
}

impl System {
    pub(crate) fn hooks(&self, call: &Call, hooks: Hooks) -> Answer {
        let programs = HookPrograms::of(hooks)?;
        self.run_hooks(call, &programs).map(Reply::Hooks)
    }

    pub(crate) fn run_hooks(
        &self,
        call: &Call,
        programs: &HookPrograms,
    ) -> Result<Vec<HookResult>, Failure> {
        let mut variables = self.variables();
        variables.push(("BROOD_OCCASION", programs.asked.occasion.clone()));
        let HookPrograms { asked, paths } = programs;
        run_all(paths, &variables, asked, &|| call.interrupted())
    }
}

/// The executable files of a folder, by the order of their names; none of one that is not there.
fn programs(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let tried = || format!("cannot list the hooks of {}", folder.display());
    let mut paths = Vec::new();
    match fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.context(tried())?.path();
                let found = fs::metadata(&path);
                let runs = |found: fs::Metadata| {
                    found.is_file() && found.permissions().mode() & 0o111 != 0
                };
                if found.is_ok_and(runs) {
                    paths.push(path);
                }
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).context(tried()),
    }
    paths.sort_unstable();
    if paths.len() > MAX_HOOKS {
        let text = format!("{}: it has {}, more than {MAX_HOOKS}", tried(), paths.len());
        return Err(invalid(text));
    }
    Ok(paths)
}

fn run_all(
    paths: &[PathBuf],
    variables: &[(&'static str, String)],
    hooks: &Hooks,
    interrupted: &dyn Fn() -> Option<Interrupt>,
) -> Result<Vec<HookResult>, Failure> {
    let limit = Duration::from_millis(hooks.limit_ms.into());
    let mut results = Vec::new();
    for path in paths {
        if let Some(interrupt) = interrupted() {
            return Err(interrupt.into());
        }
        let began = Instant::now();
        let (end, output) = run(path, variables, began + limit);
        let failed = end != HookEnd::Code(0);
        let name = path.file_name().unwrap_or_default();
        results.push(HookResult {
            name: OsBytes::from(name),
            end,
            output,
            took_ms: u32::try_from(began.elapsed().as_millis()).unwrap_or(u32::MAX),
        });
        if failed && hooks.stop_at_failure {
            break;
        }
    }
    Ok(results)
}

/// Runs one, and returns the end of its output.
fn run(path: &Path, variables: &[(&'static str, String)], until: Instant) -> (HookEnd, Vec<u8>) {
    let (child, output) = match start(path, variables) {
        Ok(started) => started,
        Err(e) => {
            let mut text = e.to_string();
            text.truncate(text.floor_char_boundary(MAX_TEXT / 2));
            return (HookEnd::NotStarted(text), Vec::new());
        }
    };
    let mut tail = Vec::new();
    let end = attend(child, output, until, &mut tail);
    (end, tail)
}

fn start(path: &Path, variables: &[(&'static str, String)]) -> std::io::Result<(Child, OwnedFd)> {
    let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let mut command = Command::new(path);
    command.env_clear();
    let search = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    command.env("PATH", search).env("HOME", "/");
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.current_dir("/").stdin(Stdio::null());
    command.stdout(write.try_clone()?).stderr(write);
    command.process_group(0);
    // SAFETY: between fork and exec only system calls are made.
    unsafe {
        command.pre_exec(|| {
            oom::restore();
            Ok(())
        });
    }
    Ok((command.spawn()?, read))
}

/// Waits for the end of a hook, or for that of its time.
fn attend(mut child: Child, output: OwnedFd, until: Instant, tail: &mut Vec<u8>) -> HookEnd {
    let mut output = Some(File::from(output));
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            // What it left in the pipe; others may go on writing for ever.
            for _ in 0..PIPE / PIECE {
                take(&mut output, Duration::ZERO, tail);
            }
            return match (status.code(), status.signal()) {
                (Some(code), _) => HookEnd::Code(code),
                (_, signal) => HookEnd::Signal(signal.unwrap_or_default()),
            };
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            if let Ok(group) = i32::try_from(child.id()) {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            let _ = child.wait();
            return HookEnd::TimedOut;
        }
        if output.is_some() {
            take(&mut output, left.min(END_INTERVAL), tail);
        } else {
            // It writes no more; so it ends soon, or does not.
            thread::sleep(left.min(Duration::from_millis(1)));
        }
    }
}

/// Takes a piece of output when there is some in this time.
fn take(output: &mut Option<File>, limit: Duration, tail: &mut Vec<u8>) {
    let Some(open) = output else { return };
    let mut fds = [PollFd::new(open.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    if poll(&mut fds, limit).unwrap_or(0) == 0 {
        return;
    }
    let mut buffer = [0; PIECE];
    let length = open.read(&mut buffer).unwrap_or(0);
    if length == 0 {
        *output = None;
    }
    tail.extend_from_slice(&buffer[..length]);
    tail.drain(..tail.len().saturating_sub(MAX_HOOK_OUTPUT));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(limit_ms: u32, stop_at_failure: bool) -> Hooks {
        Hooks {
            occasion: "restored".to_owned(),
            limit_ms,
            stop_at_failure,
        }
    }

    fn folder(scripts: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in scripts {
            let path = folder.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        folder
    }

    fn results(folder: &Path, hooks: &Hooks) -> Vec<(String, HookEnd, String)> {
        let variables = [("BROOD_GENERATION", "00ff".to_owned())];
        let paths = programs(folder).unwrap();
        let results = run_all(&paths, &variables, hooks, &|| None).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let results = results.into_iter();
        let result = |it: HookResult| (text(it.name.as_bytes()), it.end, text(&it.output));
        results.map(result).collect()
    }

    #[test]
    fn hooks_run_by_name_and_each_end_is_told() {
        let folder = folder(&[
            ("20-fails", "echo no >&2; exit 3"),
            ("10-good", "echo generation $BROOD_GENERATION"),
            ("30-dies", "kill -TERM $$"),
        ]);
        fs::write(folder.path().join("README"), "not a program").unwrap();
        let all = results(folder.path(), &hooks(10_000, false));
        let expected = [
            ("10-good", HookEnd::Code(0), "generation 00ff\n"),
            ("20-fails", HookEnd::Code(3), "no\n"),
            ("30-dies", HookEnd::Signal(15), ""),
        ]
        .map(|(name, end, output)| (name.to_owned(), end, output.to_owned()));
        assert_eq!(all, expected);
        let first = results(folder.path(), &hooks(10_000, true));
        assert_eq!(first, expected[..2]);
    }

    #[test]
    fn a_hook_has_its_time_only() {
        let folder = folder(&[("1", "echo began; sleep 1000")]);
        let began = Instant::now();
        let all = results(folder.path(), &hooks(200, false));
        assert_eq!(
            all,
            [("1".to_owned(), HookEnd::TimedOut, "began\n".to_owned())]
        );
        assert!(began.elapsed() < Duration::from_secs(100));
    }

    #[test]
    fn only_the_end_of_much_output_is_told() {
        let folder = folder(&[("1", "yes | head -c 1000000; echo last")]);
        let all = results(folder.path(), &hooks(60_000, false));
        assert_eq!(all[0].2.len(), MAX_HOOK_OUTPUT);
        assert!(all[0].2.ends_with("y\nlast\n"), "{}", all[0].2);
    }

    #[test]
    fn a_guest_without_hooks_is_none_worse() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent");
        assert_eq!(results(&absent, &hooks(1000, true)), []);
    }
}
