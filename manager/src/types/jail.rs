//! View of what confines a guest's process.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use brood_core::{checkpoint::manifest::EngineKind, engine::Confinement, host::jail};

/// What confines a guest's process beside its virtual machine, as this host's kernel says now; but
/// for Landlock, of which the kernel says nothing: that is what the process reported at its restore.
/// What a system does not have, or does not tell, is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Jail {
    /// Its user.
    #[schema(example = 2_063_601_723)]
    pub user: u32,
    /// Whether that is a user of its own, which no other guest and nothing of the host has.
    pub own_user: bool,
    /// Its effective capabilities, as `/proc/PID/status` has them (capabilities(7)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "0000000000000000")]
    pub capabilities: Option<String>,
    /// Whether no program can give it privileges (`PR_SET_NO_NEW_PRIVS`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_new_privileges: Option<bool>,
    /// Whether it has a filter of system calls (seccomp).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syscall_filter: Option<bool>,
    /// Version of Landlock whose rules say which files it reaches; 0 when it has no such rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 7)]
    pub landlock: Option<u32>,
    /// Whether it is in the host's network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_network: Option<bool>,
    /// Whether it is in the host's IPC namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ipc: Option<bool>,
    /// Whether it is in Capsicum's capability mode (FreeBSD).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capsicum: Option<bool>,
}

impl Jail {
    /// The view of a process that is confined so; Landlock is as it reported that.
    pub(crate) fn new(confinement: Confinement, landlock: Option<u32>) -> Self {
        let user = confinement.user;
        Self {
            user,
            own_user: jail::is_guests_user(user),
            capabilities: confinement.capabilities.map(|bits| format!("{bits:016x}")),
            no_new_privileges: confinement.no_new_privileges,
            syscall_filter: confinement.filter,
            landlock,
            host_network: confinement.has_network,
            host_ipc: confinement.has_ipc,
            capsicum: confinement.capsicum,
        }
    }

    /// The same in words, of a guest of this engine: as `brood doctor` says it of a host.
    pub(crate) fn words(&self, engine: EngineKind) -> JailWords<'_> {
        JailWords { jail: self, engine }
    }
}

/// What confines a guest's process, in words.
pub(crate) struct JailWords<'a> {
    jail: &'a Jail,
    engine: EngineKind,
}

impl fmt::Display for JailWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { jail, engine } = self;
        let files = match engine {
            EngineKind::Kvm => jail::NO_FILES,
            EngineKind::Qemu | EngineKind::Bhyve => jail::OWN_FILES,
        };
        let mut parts = Vec::new();
        parts.extend(jail.landlock.map(|version| jail::files(version, files)));
        parts.extend(jail.capsicum.map(|on| match on {
            true => "capability mode (Capsicum)".to_owned(),
            false => "no capability mode".to_owned(),
        }));
        parts.push(format!("{} ({})", jail::user(jail.own_user), jail.user));
        parts.extend(
            jail.host_network
                .map(|hosts| jail::network(hosts).to_owned()),
        );
        parts.extend(jail.capabilities.as_deref().map(|bits| {
            match bits.chars().all(|digit| digit == '0') {
                true => "no capabilities".to_owned(),
                false => format!("capabilities {bits}"),
            }
        }));
        parts.extend(jail.syscall_filter.map(|on| match on {
            true => "a filter of system calls".to_owned(),
            false => "no filter of system calls".to_owned(),
        }));
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_what_is_and_what_is_not() {
        let guest = Confinement {
            user: 0x7b00_0009,
            capabilities: Some(0),
            no_new_privileges: Some(true),
            filter: Some(true),
            has_network: Some(false),
            has_ipc: Some(false),
            capsicum: None,
        };
        let said = |confinement, landlock, engine| {
            Jail::new(confinement, landlock).words(engine).to_string()
        };
        assert_eq!(
            said(guest, Some(7), EngineKind::Kvm),
            "no files (Landlock 7), a user of its own (2063597577), no network, no capabilities, \
             a filter of system calls"
        );
        let bare = Confinement {
            user: 1000,
            capabilities: Some(0x20),
            filter: Some(false),
            has_network: Some(true),
            ..guest
        };
        assert_eq!(
            said(bare, Some(0), EngineKind::Qemu),
            "all files of its user, the manager's user (1000), the host's network, capabilities \
             0000000000000020, no filter of system calls"
        );
        let bhyve = Confinement {
            capsicum: Some(true),
            ..Confinement::default()
        };
        assert_eq!(
            said(bhyve, None, EngineKind::Bhyve),
            "capability mode (Capsicum), the manager's user (0)"
        );
    }
}
