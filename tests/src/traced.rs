//! Command that is traced from its first system call on.

use std::{fs, path::Path, process::Command};

use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::{Call, Ran, Running, Then, Tracer, until};

/// Runs `command` in `folder`; `decide` is asked as by [`Tracer::attach`]. Returns what it came to,
/// and at which call it was killed or stopped, if it was.
///
/// # Panics
/// When it cannot be started or traced.
#[must_use]
pub fn traced(
    command: &Command,
    folder: &Path,
    decide: impl FnMut(&Call) -> Then + Send + 'static,
) -> (Ran, Option<Call>) {
    let gate = folder.join("gate");
    let _ = fs::remove_file(&gate);
    mkfifo(&gate, Mode::S_IRWXU).expect("a pipe with a name");
    let mut shell = Command::new("sh");
    shell
        // The traced process must be no child of this process, which would get all its events.
        .args(["-c", r#"(read go < gate; exec "$0" "$@"); exit $?"#])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(folder);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let running = Running::start(shell);
    let pid = until("the command's process", || {
        let pid = running.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        children.ok()?.trim().parse().ok()
    });
    let tracer = Tracer::attach(&[pid], decide);
    fs::write(&gate, "go\n").expect("somebody reads");
    let ran = running.wait();
    let fate = tracer.end();
    fs::remove_file(&gate).expect("it was made above");
    (ran, fate)
}
