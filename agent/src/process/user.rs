//! Users, from `/etc/passwd` and `/etc/group`.
//!
//! The files are read here as the C library's `getpwnam(3)` loads modules when it runs, which a
//! static program cannot.

use std::{ffi::CString, fs, path::PathBuf};

use brood_agent_protocol::Failure;
use nix::unistd::{Gid, Uid, getegid, geteuid};

use crate::failure::not_found;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

impl Account {
    /// A user by name or by number, and maybe the only group: `USER[:GROUP]`.
    pub(crate) fn named(text: &str) -> Result<Account, Failure> {
        let (passwd, groups) = databases();
        let (user, group) = match text.split_once(':') {
            Some((user, group)) if !group.is_empty() => (user, Some(group)),
            _ => (text.trim_end_matches(':'), None),
        };
        let account = find(&passwd, &groups, user);
        let mut account =
            account.ok_or_else(|| not_found(format!("the guest has no user {user:?}")))?;
        if let Some(group) = group {
            let gid = group_of(&groups, group);
            account.gid =
                gid.ok_or_else(|| not_found(format!("the guest has no group {group:?}")))?;
            account.groups = vec![account.gid];
        }
        Ok(account)
    }

    /// The user that the agent runs as.
    pub(crate) fn own() -> Account {
        let (passwd, group) = databases();
        let number = geteuid().as_raw().to_string();
        let mut account = find(&passwd, &group, &number).expect("a number is always a user");
        account.gid = getegid();
        account
    }

    /// The variables that a program of this user begins with.
    pub(crate) fn variables(&self) -> [(&'static str, CString); 5] {
        let text = |text: &str| CString::new(text).unwrap_or_default();
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        [
            ("PATH", text(path)),
            ("HOME", text(&self.home.to_string_lossy())),
            ("USER", text(&self.name)),
            ("LOGNAME", text(&self.name)),
            ("SHELL", text(&self.shell.to_string_lossy())),
        ]
    }
}

/// A guest without the files has numbers only.
fn databases() -> (String, String) {
    let read = |path| {
        let bytes = fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    (read("/etc/passwd"), read("/etc/group"))
}

/// A group by name or by number.
fn group_of(groups: &str, name: &str) -> Option<Gid> {
    let of_line = |line: &str| {
        let mut fields = line.split(':');
        let found = fields.next() == Some(name);
        found.then(|| fields.nth(1)?.parse().ok()).flatten()
    };
    let number = || name.parse().ok();
    groups
        .lines()
        .find_map(of_line)
        .or_else(number)
        .map(Gid::from_raw)
}

fn find(passwd: &str, group: &str, user: &str) -> Option<Account> {
    let number = user.parse::<u32>().ok();
    let line = passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else {
            return None;
        };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        (name == user || number == Some(uid)).then_some((name, uid, gid, home, shell))
    });
    // A number needs no entry: images made from containers often have none.
    let number_name = number.map(|number| number.to_string());
    let (name, uid, gid, home, shell) = match (line, number, &number_name) {
        (Some(line), ..) => line,
        (None, Some(number), Some(name)) => (name.as_str(), number, number, "", ""),
        _ => return None,
    };
    let mut groups = vec![Gid::from_raw(gid)];
    for line in group.lines() {
        let fields: Vec<_> = line.split(':').collect();
        if let [_, _, gid, members] = fields[..]
            && members.split(',').any(|member| member == name)
            && let Ok(gid) = gid.parse()
            && !groups.contains(&Gid::from_raw(gid))
        {
            groups.push(Gid::from_raw(gid));
        }
    }
    let or =
        |path: &str, default: &str| PathBuf::from(if path.is_empty() { default } else { path });
    Some(Account {
        name: name.to_owned(),
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        groups,
        home: or(home, "/"),
        shell: or(shell, "/bin/sh"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nada:x:1000:100::/home/ada:\n";
    const GROUP: &str = "users:x:100:\nwheel:x:10:root,ada\naudio:x:63:adam\n";

    #[test]
    fn a_user_by_name_and_by_number() {
        let ada = find(PASSWD, GROUP, "ada").unwrap();
        assert_eq!(find(PASSWD, GROUP, "1000").unwrap(), ada);
        assert_eq!((ada.uid.as_raw(), ada.gid.as_raw()), (1000, 100));
        assert_eq!(ada.groups, [Gid::from_raw(100), Gid::from_raw(10)]);
        assert_eq!(ada.home, PathBuf::from("/home/ada"));
        assert_eq!(ada.shell, PathBuf::from("/bin/sh"));
    }

    #[test]
    fn a_number_without_an_entry_and_a_name_without_one() {
        let nobody = find("", "", "7").unwrap();
        assert_eq!((nobody.uid.as_raw(), nobody.gid.as_raw()), (7, 7));
        assert_eq!(nobody.home, PathBuf::from("/"));
        assert_eq!(find(PASSWD, GROUP, "broken"), None);
        assert_eq!(find(PASSWD, GROUP, "-1"), None);
    }

    #[test]
    fn a_group_by_name_and_by_number() {
        assert_eq!(group_of(GROUP, "wheel"), Some(Gid::from_raw(10)));
        assert_eq!(group_of(GROUP, "77"), Some(Gid::from_raw(77)));
        assert_eq!(group_of(GROUP, "no"), None);
    }
}
