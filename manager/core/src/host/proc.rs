//! Reader of `/proc` and `/sys` below a root, so that a test can pass a tree of its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::units::Bytes;

/// Why a fact about this host could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that every Linux host has is not readable.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file was read, but the value that is needed is not in it.
    #[error("{} does not say {what}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The value that is not there.
        what: &'static str,
    },
    /// A sysctl(3) variable that every FreeBSD host has is not readable.
    #[error("cannot read the sysctl {name}: {source}")]
    Sysctl {
        /// The variable.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// A hint what to do next.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => {
                "brood reads what the host can hold from /proc and /sys; mount them where brood runs"
            }
            Self::Missing { .. } => {
                "this kernel reports in a layout that brood does not know; please report the file's content"
            }
            Self::Sysctl { .. } => {
                "brood reads what the host can hold from the kernel; in a jail some of it is hidden"
            }
        }
    }
}

/// Where `/proc`, `/sys` and `/dev` are looked up: `/` on a real host, a folder in tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcRoot(PathBuf);

impl Default for ProcRoot {
    fn default() -> Self {
        Self("/".into())
    }
}

impl ProcRoot {
    /// Looks below `root` instead of `/`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// Where the absolute `path` is below this root.
    #[must_use]
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The text of a file that must be there.
    pub fn text(&self, path: &str) -> Result<String, Error> {
        let path = self.path(path);
        fs::read_to_string(&path).map_err(|source| Error::Read { path, source })
    }

    /// The text of a file that may be absent or unreadable, without white space around it.
    pub fn optional(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// The number that is all of a file.
    pub(crate) fn number(&self, path: &str) -> Result<u64, Error> {
        let text = self.text(path)?;
        text.trim().parse().map_err(|_| Error::Missing {
            path: self.path(path),
            what: "a whole number",
        })
    }

    /// An error for a value that is not in `path`.
    pub fn missing(&self, path: &str, what: &'static str) -> Error {
        Error::Missing {
            path: self.path(path),
            what,
        }
    }
}

/// The value after `key` in text of lines `key: value` (`/proc/cpuinfo`, `/proc/self/status`).
pub(crate) fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

/// An amount in text of lines `key: N kB` (`/proc/meminfo`).
pub fn kib_field(text: &str, key: &str) -> Option<Bytes> {
    let kib = field(text, key)?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()?;
    Some(Bytes::kib(1).saturating_mul(kib))
}

/// One line of `/proc/self/mountinfo`; see proc_pid_mountinfo(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The filesystem's device, `MAJOR:MINOR`.
    pub(crate) device: String,
    /// The folder inside the filesystem that is mounted.
    pub(crate) root: PathBuf,
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// Mount options, comma-separated.
    pub(crate) options: String,
    /// Filesystem type, such as `ext4` or `cgroup2`.
    pub(crate) kind: String,
    /// Options of the filesystem; for version 1 control groups these name the controllers.
    pub(crate) super_options: String,
}

/// All mounts, in the order in which they were made. A line that cannot be read is left out.
pub(crate) fn mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<Mount> {
    // Optional fields of any number end with a lone hyphen.
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(2);
    let (device, root) = (left.next()?, left.next()?);
    let (point, options) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (kind, super_options) = (right.next()?, right.nth(1).unwrap_or_default());
    Some(Mount {
        device: device.to_owned(),
        root: unescape(root).into(),
        point: unescape(point).into(),
        options: options.to_owned(),
        kind: kind.to_owned(),
        super_options: super_options.to_owned(),
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash in paths.
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .into_iter()
    .fold(text.to_owned(), |text, (code, plain)| {
        text.replace(code, plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_read() {
        let text = "36 31 0:33 / /sys/fs/cgroup/mem\\040ory rw,nosuid shared:9 master:2 - cgroup cgroup rw,memory\nnonsense\n";
        let [one] = mounts(text).try_into().unwrap();
        assert_eq!(one.point, Path::new("/sys/fs/cgroup/mem ory"));
        assert_eq!(one.root, Path::new("/"));
        assert_eq!(one.device, "0:33");
        assert_eq!(
            (one.kind.as_str(), one.super_options.as_str()),
            ("cgroup", "rw,memory")
        );
        assert_eq!(one.options, "rw,nosuid");
    }

    #[test]
    fn fields_match_whole_keys() {
        let text = "MemTotal:  10 kB\nMemAvailable:   3 kB\nCached: 1 kB\nSwapCached: 2 kB\n";
        assert_eq!(kib_field(text, "Cached"), Some(Bytes::kib(1)));
        assert_eq!(kib_field(text, "MemAvailable"), Some(Bytes::kib(3)));
        assert_eq!(kib_field(text, "Mem"), None);
    }
}
