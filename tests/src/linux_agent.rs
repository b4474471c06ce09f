//! What tests do in a real Linux guest through its agent, and the program that they bring along.

use std::{fs::File, path::PathBuf};

use brood_core::agent::{
    Agent,
    protocol::{Ended, WriteFile},
};

use crate::{Home, PATIENCE, agent, linux_guest::target, skip::without_qemu, text};

/// Where [`put_guest_program`] leaves the program.
pub const GUEST_PROGRAM: &str = "/bin/test-guest";

impl Home {
    /// A session with the agent of a guest. Others wait until it is dropped.
    ///
    /// # Panics
    /// When there is no such guest, or its agent does not answer.
    #[track_caller]
    #[must_use]
    pub fn agent(&self, guest: &str) -> Agent {
        let folder = self.guest_folder(guest);
        let agent = Agent::connect(&folder.join("agent"), PATIENCE);
        agent.expect("an agent that answers").with_limit(PATIENCE)
    }

    /// The folder of a guest of QEMU.
    #[track_caller]
    #[must_use]
    pub fn guest_folder(&self, guest: &str) -> PathBuf {
        let shown = self.json(&["show", guest]);
        self.run_dir().join(format!("{}.qemu", text(&shown["id"])))
    }
}

/// What a line of the guest's shell says, which must succeed.
///
/// # Panics
/// When it does not.
#[track_caller]
#[must_use]
pub fn said(agent: &Agent, line: &str) -> String {
    let ran = agent::run(agent, line);
    let error = String::from_utf8_lossy(&ran.error);
    assert_eq!(ran.ended, Ended::Code(0), "{line}: {error}");
    String::from_utf8_lossy(&ran.output).trim().to_owned()
}

/// The tests' own program for guests. Where it was not built, the running test is named as skipped, and
/// must return.
#[must_use]
pub fn guest_program() -> Option<PathBuf> {
    let program = target().join("x86_64-unknown-linux-gnu/agent/brood-test-guest");
    if program.is_file() {
        return Some(program);
    }
    without_qemu("there is no static brood-test-guest: tools/agent --tests builds it");
    None
}

/// Brings the tests' own program into a guest, as [`GUEST_PROGRAM`].
///
/// Where it was not built, the running test is named as skipped, and must return.
///
/// # Panics
/// When the guest does not take it; or when `BROOD_REQUIRE_QEMU=1` is set, and it was not built.
#[must_use]
pub fn put_guest_program(agent: &Agent) -> Option<()> {
    let program = guest_program()?;
    let mut file = File::open(program).expect("it is there");
    let to = WriteFile {
        path: GUEST_PROGRAM.into(),
        mode: 0o755,
        user: None,
        parents: false,
        sync: false,
        digest: false,
    };
    let written = agent.write_file(to, &mut file);
    let _ = written.expect("the guest has room for it");
    Some(())
}
