//! Watcher of a home: a process that ends what belongs to it, when the test is killed.
//!
//! A test that takes too long gets SIGKILL, with its process group; its guests are in sessions of
//! their own, and would stay.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

/// The watcher. It is dismissed when this is dropped, and acts when this process ends before.
#[derive(Debug)]
pub(crate) struct Watcher(Child);

impl Watcher {
    /// Watches over a home's folder.
    pub(crate) fn of(home: &Path) -> Self {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", include_str!("watcher.sh"), "watcher"])
            .arg(home)
            .current_dir("/")
            .env_remove("BROOD_STATE_DIR")
            // The other end is this process's alone: no program that it runs has it.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Who kills the test kills its process group.
            .process_group(0);
        Self(command.spawn().expect("a shell"))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            let _ = input.write_all(b"done\n");
        }
        let _ = self.0.wait();
    }
}
