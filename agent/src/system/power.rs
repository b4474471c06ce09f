//! The end of the guest.

use std::{path::Path, process::Command};

use brood_agent_protocol::Power;

/// Ends the guest: by its init system where that is systemd, else at once, with what is held of
/// files written back.
pub(crate) fn shutdown(power: Power) {
    nix::unistd::sync();
    if Path::new("/run/systemd/system").exists() {
        let verb = match power {
            Power::Off => "poweroff",
            Power::Reboot => "reboot",
        };
        if Command::new("systemctl")
            .arg(verb)
            .status()
            .is_ok_and(|status| status.success())
        {
            return;
        }
    }
    #[cfg(target_os = "linux")]
    let how = match power {
        Power::Off => libc::RB_POWER_OFF,
        Power::Reboot => libc::RB_AUTOBOOT,
    };
    #[cfg(not(target_os = "linux"))]
    let how = match power {
        // RB_POWEROFF and RB_AUTOBOOT of <sys/reboot.h>
        Power::Off => 0x4000,
        Power::Reboot => 0,
    };
    // SAFETY: reboot(2) takes numbers only.
    unsafe { libc::reboot(how) };
}
