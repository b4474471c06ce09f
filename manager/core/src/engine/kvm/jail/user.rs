//! User of a guest's process: one of its own where root runs the manager, so that a guest that takes
//! over its process may signal no sibling and trace none, and owns no file, by whatever way it gets
//! there.
//!
//! Its number is that of the process above [`FIRST_USER`]: two guests that live have two, and nobody
//! has to keep a list of them. A guest's process takes it when it has named its socket, which stays
//! root's: so a user that a later guest has again has nothing of the former one.

use caps::{Capability, CapsHashSet};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};

use crate::host::jail::{FIRST_USER, USERS};

/// What a nursery of such guests keeps: to have them become other users, and then to end them and
/// to see what they have open. Its manager needs the last two as well.
const KEPT: [Capability; 3] = [
    Capability::CAP_SETUID,
    Capability::CAP_KILL,
    Capability::CAP_SYS_PTRACE,
];

/// What a nursery keeps of its privileges when its guests have users of their own. It has no groups
/// from then on but one that owns nothing, and so have they.
pub(super) fn prepare() -> nix::Result<CapsHashSet> {
    let group = Gid::from_raw(FIRST_USER);
    setgroups(&[])?;
    setresgid(group, group, group)?;
    Ok(KEPT.into_iter().collect())
}

/// The user of the guest whose process this is.
pub(super) fn own() -> Uid {
    Uid::from_raw(FIRST_USER + Pid::this().as_raw().unsigned_abs() % USERS)
}

/// Makes this process its own user's, in all its threads. It has no capabilities from then on.
pub(super) fn become_own() -> nix::Result<()> {
    let user = own();
    setresuid(user, user, user)
}
