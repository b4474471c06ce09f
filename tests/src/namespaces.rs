//! Commands that see another host than the test does: in namespaces of their own, or with what a
//! shell has prepared.

use std::process::Command;

use crate::{Home, Ran, Running, skip};

/// Whether this machine lets the test make namespaces of this kind, by an option of unshare(1).
/// Where it does not, the running test is named as skipped, and must return.
#[must_use]
pub fn namespaces(of: &str) -> bool {
    let made = Command::new("unshare").args([of, "true"]).status();
    let made = made.is_ok_and(|status| status.success());
    if !made {
        skip("unshare does not work here");
    }
    made
}

impl Home {
    /// Runs `brood` without the daemon after `prepare`, in a shell that `around` starts. The current
    /// folder is the home's.
    #[must_use]
    pub fn after(&self, around: &[&str], prepare: &str, args: &[&str]) -> Ran {
        let brood = self.command(args);
        let mut command = Command::new(around[0]);
        command
            .args(&around[1..])
            .args(["sh", "-c", &format!("{prepare} && exec \"$0\" \"$@\"")])
            .arg(brood.get_program())
            .args(brood.get_args())
            .current_dir(self.path());
        for (name, value) in brood.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("BROOD_DAEMON", "off");
        Running::start(command).wait()
    }
}
