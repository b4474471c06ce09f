//! Other writers of a file or folder: its owner, its group or everybody, if they are neither this
//! user nor root. Whoever may change a checkpoint chooses the memory of all guests restored from
//! it.

use std::{fmt, fs::Metadata, os::unix::fs::MetadataExt};

use nix::unistd::{getegid, geteuid};
use serde::Serialize;

/// Others than this user and root who may change a file or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OtherWriter {
    /// Its owner, who may also let others.
    User(u32),
    /// Members of its group.
    Group(u32),
    /// Everybody on this host.
    Everybody,
}

impl OtherWriter {
    /// The other writer of the file or folder with these facts; the widest one.
    pub fn of(facts: &Metadata) -> Option<Self> {
        let folder = facts.is_dir();
        Self::by(facts.mode(), facts.uid(), facts.gid(), folder)
    }

    pub(crate) fn by(mode: u32, owner: u32, group: u32, folder: bool) -> Option<Self> {
        let (user, own_group) = (geteuid().as_raw(), getegid().as_raw());
        // Where only owners may rename and remove their files, others can only add some.
        let sticky = folder && mode & 0o1000 != 0;
        // A user's own group, of the same number, has nobody else in it.
        let alone = group == 0 || (group == own_group && own_group == user);
        if mode & 0o002 != 0 && !sticky {
            Some(Self::Everybody)
        } else if owner != 0 && owner != user {
            Some(Self::User(owner))
        } else if mode & 0o020 != 0 && !sticky && !alone {
            Some(Self::Group(group))
        } else {
            None
        }
    }
}

impl fmt::Display for OtherWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Group(gid) => write!(f, "group {gid}"),
            Self::Everybody => f.write_str("everybody"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_group_and_everybody_are_told_apart() {
        let me = geteuid().as_raw();
        let (other, group) = (me + 4711, getegid().as_raw() + 4711);
        for (mode, owner, folder, expected) in [
            (0o400, me, false, None),
            (0o755, 0, true, None),
            (0o400, other, false, Some(OtherWriter::User(other))),
            (0o664, me, false, Some(OtherWriter::Group(group))),
            (0o666, other, false, Some(OtherWriter::Everybody)),
            (0o777, me, true, Some(OtherWriter::Everybody)),
            (0o1777, me, true, None),
            (0o1775, me, true, None),
            (0o1777, me, false, Some(OtherWriter::Everybody)),
        ] {
            let found = OtherWriter::by(mode, owner, group, folder);
            assert_eq!(found, expected, "{mode:o} of {owner}");
        }
        assert_eq!(OtherWriter::by(0o664, me, 0, false), None);
    }
}
