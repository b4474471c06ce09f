//! Writer of a cpio archive in the form that Linux unpacks as an initramfs: "newc"
//! (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).
//!
//! Entries are sorted, belong to root, have no date, and are numbered one after the other: the
//! archive depends on nothing but names, modes and contents.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};

/// What a name in the archive stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A folder with these permissions.
    Folder(u32),
    /// A file with these permissions.
    File(u32, Vec<u8>),
    /// A symbolic link to this.
    Link(&'static str),
}

/// An archive.
#[derive(Debug, Default)]
pub(super) struct Archive(BTreeMap<String, Entry>);

/// File types of stat(2).
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
/// Name of the entry that ends an archive.
const END: &str = "TRAILER!!!";

impl Archive {
    /// Adds an entry, with the folders that it lies in. Paths have no slash in front.
    pub(super) fn add(&mut self, path: &str, entry: Entry) {
        for (at, _) in path.match_indices('/') {
            let folder = path[..at].to_owned();
            self.0.entry(folder).or_insert(Entry::Folder(0o755));
        }
        self.0.insert(path.to_owned(), entry);
    }

    /// The archive's bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.0) {
            let (mode, content): (u32, &[u8]) = match entry {
                Entry::Folder(mode) => (FOLDER | mode, &[]),
                Entry::File(mode, content) => (FILE | mode, content),
                Entry::Link(to) => (LINK | 0o777, to.as_bytes()),
            };
            append(&mut out, number, mode, path, content);
        }
        append(&mut out, 0, 0, END, &[]);
        out
    }
}

/// Writes an archive of one file, which is too long to be kept in memory. The kernel unpacks it after
/// an archive that it is appended to.
#[cfg_attr(
    not(any(target_os = "linux", test)),
    expect(dead_code, reason = "only QEMU's guests have such a file")
)]
pub(super) fn append_file(
    out: &mut impl Write,
    path: &str,
    content: &mut impl Read,
    length: u32,
) -> io::Result<()> {
    let mut head = Vec::new();
    header(&mut head, 1, FILE | 0o400, path, length);
    out.write_all(&head)?;
    let copied = io::copy(&mut content.take(length.into()), out)?;
    if copied != u64::from(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut tail = Vec::new();
    append(&mut tail, 0, 0, END, &[]);
    // Each part begins at a multiple of 4.
    out.write_all(&[0; 3][..(copied.next_multiple_of(4) - copied) as usize])?;
    out.write_all(&tail)
}

fn append(out: &mut Vec<u8>, number: u32, mode: u32, path: &str, content: &[u8]) {
    let length = u32::try_from(content.len()).expect("no file of an initramfs has 4 GiB");
    header(out, number, mode, path, length);
    out.extend_from_slice(content);
    pad(out);
}

/// What stands before a file's content. It is a multiple of 4 long.
fn header(out: &mut Vec<u8>, number: u32, mode: u32, path: &str, length: u32) {
    let begin = out.len();
    let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
    // Inode, mode, owner, group, links, date, length, device (2), node's device (2), length of
    // the name with its zero, checksum.
    let fields = [
        number,
        mode,
        0,
        0,
        links,
        0,
        length,
        0,
        0,
        0,
        0,
        u32::try_from(path.len() + 1).expect("no path has 4 GiB"),
        0,
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    let length = (out.len() - begin).next_multiple_of(4);
    out.resize(begin + length, 0);
}

/// Each part begins at a multiple of 4.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    /// GNU cpio reads it as it was meant.
    #[test]
    fn cpio_reads_the_archive() {
        let mut archive = Archive::default();
        archive.add("sbin/init", Entry::Link("../bin/busybox"));
        archive.add("bin/busybox", Entry::File(0o755, b"program".to_vec()));
        archive.add("tmp", Entry::Folder(0o1777));
        archive.add("etc/empty", Entry::File(0o600, Vec::new()));
        let mut one = Vec::new();
        append_file(&mut one, "disk", &mut &b"12345"[..], 5).unwrap();
        assert_eq!(one.len() % 4, 0);
        assert!(append_file(&mut one, "disk", &mut &b"1234"[..], 5).is_err());
        let cpio = Command::new("cpio")
            .args(["--list", "--verbose", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut cpio) = cpio else {
            assert_eq!(archive.to_bytes().len() % 4, 0, "and cpio is not installed");
            return;
        };
        cpio.stdin
            .take()
            .unwrap()
            .write_all(&archive.to_bytes())
            .unwrap();
        let listed = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        let listed: Vec<(&str, &str)> = listed
            .lines()
            .map(|line| (&line[..10], line.rsplit("1970 ").next().unwrap()))
            .collect();
        assert_eq!(
            listed,
            [
                ("drwxr-xr-x", "bin"),
                ("-rwxr-xr-x", "bin/busybox"),
                ("drwxr-xr-x", "etc"),
                ("-rw-------", "etc/empty"),
                ("drwxr-xr-x", "sbin"),
                ("lrwxrwxrwx", "sbin/init -> ../bin/busybox"),
                ("drwxrwxrwt", "tmp"),
            ]
        );
    }
}
