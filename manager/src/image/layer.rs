//! Archives of files (tar) put into a tree, one over the other: what a layer of an OCI image has, what
//! it hides of the layers below it, and what no layer may have.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read, Seek, Write},
    rc::Rc,
    sync::Arc,
};

use tar::{Archive, EntryType};

use super::tree::{Content, Facts, PathError, Stored, Tree};

/// Most bytes of all files of an image, unpacked.
pub(super) const UNPACKED_MAX: u64 = 16 << 30;
/// Most names in an image.
const ENTRIES_MAX: u64 = 1 << 20;
/// Longest symbolic link, and longest path.
const PATH_MAX: usize = 4096;
/// Most bytes of what stands before a file's content: its header, long names, attributes. They are
/// kept in memory.
const HEADERS_MAX: u64 = 1 << 20;

/// Begins the name of a file that hides another (the OCI image specification, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// The name of a file that hides all that is in its folder.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why an archive was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Reason {
    #[error("cannot read it: {0}")]
    Read(io::Error),
    #[error("cannot keep its files: {0}")]
    Keep(io::Error),
    #[error("{path}: {reason}")]
    Path { path: String, reason: PathError },
    #[error("{path}: {reason}")]
    Entry { path: String, reason: &'static str },
    #[error("its files have more than {} GiB", UNPACKED_MAX >> 30)]
    Long,
    #[error("it has more than {ENTRIES_MAX} files")]
    Many,
}

/// A file for the contents of all files of a tree, and how much of them there has been.
pub(super) struct Store {
    file: Arc<File>,
    at: u64,
    entries: u64,
}

impl Store {
    /// An empty file.
    pub(super) fn new(file: File) -> Self {
        Self {
            file: Arc::new(file),
            at: 0,
            entries: 0,
        }
    }

    /// Keeps the content of a file.
    fn keep(&mut self, from: &mut impl Read) -> Result<Stored, Reason> {
        let mut file = &*self.file;
        file.seek(io::SeekFrom::Start(self.at))
            .map_err(Reason::Keep)?;
        let at = self.at;
        let mut piece = vec![0; 64 << 10];
        loop {
            let read = match from.read(&mut piece) {
                Ok(0) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(Reason::Read)?,
            };
            self.at += read as u64;
            if self.at > UNPACKED_MAX {
                return Err(Reason::Long);
            }
            file.write_all(&piece[..read]).map_err(Reason::Keep)?;
        }
        Ok(Stored {
            file: Arc::clone(&self.file),
            at,
            length: self.at - at,
        })
    }
}

/// Puts an archive into a tree, over what is there.
pub(super) fn apply(tree: &mut Tree, store: &mut Store, archive: impl Read) -> Result<(), Reason> {
    tree.next_layer();
    let left = Rc::new(Cell::new(HEADERS_MAX));
    let mut archive = Archive::new(Limited {
        from: archive,
        left: Rc::clone(&left),
    });
    let mut entries = archive.entries().map_err(Reason::Read)?;
    loop {
        left.set(HEADERS_MAX);
        let Some(entry) = entries.next() else {
            return Ok(());
        };
        let mut entry = entry.map_err(Reason::Read)?;
        left.set(UNPACKED_MAX);
        store.entries += 1;
        if store.entries > ENTRIES_MAX {
            return Err(Reason::Many);
        }
        let path = entry.path_bytes().into_owned();
        let told = || String::from_utf8_lossy(&path).into_owned();
        let refuse = |reason| Reason::Entry {
            path: told(),
            reason,
        };
        if path.len() > PATH_MAX {
            return Err(refuse("its path is too long"));
        }
        let at_path = |reason| Reason::Path {
            path: told(),
            reason,
        };
        let kind = entry.header().entry_type();
        if let Some(hidden) = whiteout(&path) {
            match hidden {
                Hidden::Below(folder) => tree.hide_all_in(folder),
                Hidden::File(file) => tree.hide(&file),
            }
            .map_err(at_path)?;
            continue;
        }
        let facts = facts(&entry).map_err(refuse)?;
        let link = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
        let target = |link: Option<Vec<u8>>| {
            let link = link.filter(|link| !link.is_empty() && link.len() <= PATH_MAX);
            link.ok_or_else(|| refuse("it is a link to nothing"))
        };
        let put = match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let stored = store.keep(&mut entry)?;
                tree.put(&path, facts, Content::Stored(stored))
            }
            EntryType::Directory => tree.put(&path, facts, Content::Folder(Default::default())),
            EntryType::Symlink => tree.put(&path, facts, Content::Link(target(link)?)),
            EntryType::Link => tree.hard_link(&path, &target(link)?),
            EntryType::XGlobalHeader => Ok(()),
            EntryType::Char | EntryType::Block => {
                return Err(refuse("it is a device, and a guest has its own"));
            }
            EntryType::Fifo => return Err(refuse("it is a pipe")),
            _ => return Err(refuse("it is of a kind that brood does not know")),
        };
        put.map_err(at_path)?;
    }
}

/// What an entry hides.
#[derive(Debug, PartialEq, Eq)]
enum Hidden<'a> {
    /// All that older layers have in this folder.
    Below(&'a [u8]),
    /// This file of an older layer.
    File(Vec<u8>),
}

fn whiteout(path: &[u8]) -> Option<Hidden<'_>> {
    let begin = path
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |at| at + 1);
    let (folder, name) = path.split_at(begin);
    if name == OPAQUE {
        return Some(Hidden::Below(folder));
    }
    let hidden = name.strip_prefix(WHITEOUT)?;
    Some(Hidden::File([folder, hidden].concat()))
}

fn facts<R: Read>(entry: &tar::Entry<'_, R>) -> Result<Facts, &'static str> {
    let header = entry.header();
    let number = |number: io::Result<u64>| {
        let number = number.map_err(|_| "its header is damaged")?;
        u32::try_from(number).map_err(|_| "its owner has no number that Linux knows")
    };
    let mode = header.mode().map_err(|_| "its header is damaged")? & 0o7777;
    Ok(Facts {
        mode: u16::try_from(mode).unwrap_or_default(),
        uid: number(header.uid())?,
        gid: number(header.gid())?,
        // A date that does not fit is none.
        mtime: header
            .mtime()
            .ok()
            .and_then(|at| u32::try_from(at).ok())
            .unwrap_or_default(),
    })
}

/// A reader that fails when there is more than it may have now.
struct Limited<R> {
    from: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        let left = self.left.get().checked_sub(read as u64);
        self.left
            .set(left.ok_or_else(|| io::Error::other("it is longer than it may be"))?);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    /// An archive of these: path, kind, and content or target.
    pub(in crate::image) fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mtime(1000);
            // As it is: the builder's own functions refuse what is tested here.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            let content = match kind {
                EntryType::Symlink | EntryType::Link => {
                    header.as_old_mut().linkname[..content.len()]
                        .copy_from_slice(content.as_bytes());
                    ""
                }
                _ => content,
            };
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn applied(layers: &[&[(&str, EntryType, &str)]]) -> Result<Tree, Reason> {
        let mut tree = Tree::default();
        let mut store = Store::new(tempfile::tempfile().unwrap());
        for layer in layers {
            apply(&mut tree, &mut store, &archive(layer)[..])?;
        }
        Ok(tree)
    }

    fn text(tree: &Tree, path: &str) -> Option<String> {
        match tree.get(path)?.content.clone() {
            Content::Stored(mut stored) => {
                let mut text = String::new();
                stored.read_to_string(&mut text).unwrap();
                Some(text)
            }
            _ => None,
        }
    }

    const FILE: EntryType = EntryType::Regular;
    const FOLDER: EntryType = EntryType::Directory;

    #[test]
    fn layers_lie_one_over_the_other() {
        let tree = applied(&[
            &[
                ("etc/", FOLDER, ""),
                ("etc/name", FILE, "one"),
                ("etc/gone", FILE, "one"),
                ("etc/same", EntryType::Link, "etc/name"),
                ("data/", FOLDER, ""),
                ("data/old", FILE, "one"),
            ],
            &[
                ("./etc/name", FILE, "two"),
                ("etc/.wh.gone", FILE, ""),
                ("data/new", FILE, "two"),
                ("data/.wh..wh..opq", FILE, ""),
                ("link", EntryType::Symlink, "/etc"),
                ("link/more", FILE, "two"),
            ],
        ])
        .unwrap();
        assert_eq!(text(&tree, "etc/name").unwrap(), "two");
        assert_eq!(text(&tree, "etc/same").unwrap(), "one");
        assert_eq!(text(&tree, "etc/gone"), None);
        assert_eq!(text(&tree, "data/old"), None);
        assert_eq!(text(&tree, "data/new").unwrap(), "two");
        assert_eq!(text(&tree, "etc/more").unwrap(), "two");
        let facts = tree.get("etc/name").unwrap().facts;
        assert_eq!(
            (facts.mode, facts.uid, facts.gid, facts.mtime),
            (0o755, 7, 8, 1000)
        );
    }

    #[test]
    fn hostile_layers_are_refused_by_name() {
        for (entry, reason) in [
            (("../x", FILE, ""), "../x: its path leads out"),
            (("a/../../x", FILE, ""), "a/../../x: its path leads out"),
            (
                ("x", EntryType::Link, "../../etc/shadow"),
                "x: its path leads out",
            ),
            (
                ("x", EntryType::Link, "/etc/shadow"),
                "x: it is a link to a file that is not there",
            ),
            (("x", EntryType::Link, ""), "x: it is a link to nothing"),
            (("dev/sda", EntryType::Block, ""), "dev/sda: it is a device"),
            (("dev/mem", EntryType::Char, ""), "dev/mem: it is a device"),
            (("p", EntryType::Fifo, ""), "p: it is a pipe"),
            (("x", EntryType::new(b'Z'), ""), "x: it is of a kind"),
            ((".wh.", FILE, ""), ".wh.: it stands for the root"),
            (("x/.wh..wh..opq/../../..", FILE, ""), "its path leads out"),
        ] {
            let refused = applied(&[&[entry]]).unwrap_err().to_string();
            assert!(refused.contains(reason), "{refused}");
        }
        // A file that says to be longer than the archive.
        let mut cut = archive(&[("x", FILE, &"y".repeat(5000))]);
        cut.truncate(2000);
        let mut tree = Tree::default();
        let mut store = Store::new(tempfile::tempfile().unwrap());
        let cut = apply(&mut tree, &mut store, &cut[..]).unwrap_err();
        assert!(matches!(cut, Reason::Read(_)), "{cut}");
    }

    /// A long name is kept in memory: one of a gibibyte is not read to its end.
    #[test]
    fn a_name_without_end_is_refused() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(1 << 30);
        header.set_cksum();
        let endless = header.as_bytes().chain(io::repeat(b'x'));
        let mut tree = Tree::default();
        let mut store = Store::new(tempfile::tempfile().unwrap());
        let refused = apply(&mut tree, &mut store, endless).unwrap_err();
        assert!(
            refused.to_string().contains("longer than it may be"),
            "{refused}"
        );
    }
}
