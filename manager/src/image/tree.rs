//! Files of a root file system, put together in memory from archives: names and facts here, contents
//! in one file on the disk.
//!
//! Paths lead nowhere but into the tree: a symbolic link in one is followed from the tree's root, as
//! the guest will, and `..` never leads above it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

/// Most symbolic links that are followed in one path.
const LINKS_MAX: usize = 40;
/// Most names in one path.
const NAMES_MAX: usize = 256;

/// Who may do what with a file, and its date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Permissions, with the bits for other users' and groups' rights.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// When it was changed, in seconds since 1970.
    pub(super) mtime: u32,
}

impl Facts {
    /// Facts of a file that brood adds: root's, without a date.
    pub(super) fn of_mode(mode: u16) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
        }
    }
}

/// A file's bytes: a part of a file on the disk.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) file: Arc<File>,
    pub(super) at: u64,
    pub(super) length: u64,
}

impl Read for Stored {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.length)
            .unwrap_or(usize::MAX)
            .min(into.len());
        let read = self.file.read_at(&mut into[..wanted], self.at)?;
        self.at += read as u64;
        self.length -= read as u64;
        Ok(read)
    }
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Folder(BTreeMap<Vec<u8>, Node>),
    Stored(Stored),
    Bytes(Vec<u8>),
    /// A symbolic link to this.
    Link(Vec<u8>),
}

/// A name's file.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) facts: Facts,
    pub(super) content: Content,
    /// The number of the layer that it is from.
    layer: usize,
}

/// Why a path cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PathError {
    #[error("its path leads out of the root file system")]
    Above,
    #[error("its path has more than {NAMES_MAX} names")]
    Deep,
    #[error("its path goes through a file that is no folder")]
    NoFolder,
    #[error("its path goes through a ring of links")]
    RingOfLinks,
    #[error("it stands for the root folder")]
    Root,
    #[error("it is a link to a file that is not there")]
    NotFound,
}

/// The tree.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) facts: Facts,
    pub(super) names: BTreeMap<Vec<u8>, Node>,
    layer: usize,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            facts: Facts::of_mode(0o755),
            names: BTreeMap::new(),
            layer: 0,
        }
    }
}

/// The names in a path of an archive. A slash in front means nothing: it is the root's own.
pub(super) fn names(path: &[u8]) -> Result<Vec<Vec<u8>>, PathError> {
    let parts = path.split(|byte| *byte == b'/');
    let parts = parts.filter(|name| !name.is_empty() && *name != b".");
    let parts = parts.map(|name| match name {
        b".." => Err(PathError::Above),
        name => Ok(name.to_vec()),
    });
    let names: Vec<_> = parts.collect::<Result<_, _>>()?;
    if names.len() > NAMES_MAX {
        return Err(PathError::Deep);
    }
    Ok(names)
}

impl Tree {
    /// What is put in from now on is of another layer.
    pub(super) fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// Follows symbolic links in the path of a folder, none of which need be there; the names of the
    /// folder that it stands for.
    fn resolve(&self, path: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, PathError> {
        let mut left: Vec<Vec<u8>> = path.iter().rev().cloned().collect();
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name.is_empty() || name == b"." {
                continue;
            }
            // In a link only: above the root is the root.
            if name == b".." {
                at.pop();
                continue;
            }
            at.push(name);
            if at.len() + left.len() > NAMES_MAX {
                return Err(PathError::Deep);
            }
            match self.find(&at).map(|node| &node.content) {
                Some(Content::Link(to)) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(PathError::RingOfLinks);
                    }
                    at.pop();
                    if to.first() == Some(&b'/') {
                        at.clear();
                    }
                    let to: Vec<_> = to.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
                    left.extend(to.into_iter().rev());
                }
                Some(Content::Folder(_)) | None => {}
                Some(_) => return Err(PathError::NoFolder),
            }
        }
        Ok(at)
    }

    /// What is at a path, in which no link is followed.
    fn find(&self, path: &[Vec<u8>]) -> Option<&Node> {
        let (last, folders) = path.split_last()?;
        let mut names = &self.names;
        for name in folders {
            match &names.get(name)?.content {
                Content::Folder(next) => names = next,
                _ => return None,
            }
        }
        names.get(last)
    }

    /// The names in a folder whose path has been resolved; folders that are missing are made.
    fn folder(&mut self, path: &[Vec<u8>]) -> Result<&mut BTreeMap<Vec<u8>, Node>, PathError> {
        let mut names = &mut self.names;
        for name in path {
            let node = names.entry(name.clone()).or_insert_with(|| Node {
                facts: Facts::of_mode(0o755),
                content: Content::Folder(BTreeMap::new()),
                layer: self.layer,
            });
            match &mut node.content {
                Content::Folder(next) => names = next,
                _ => return Err(PathError::NoFolder),
            }
        }
        Ok(names)
    }

    /// Puts a file under a path, instead of what is there. A folder takes over what is in the folder
    /// that is there already.
    pub(super) fn put(
        &mut self,
        path: &[u8],
        facts: Facts,
        content: Content,
    ) -> Result<(), PathError> {
        let path = names(path)?;
        let Some((name, folder)) = path.split_last() else {
            return match content {
                Content::Folder(_) => {
                    self.facts = facts;
                    Ok(())
                }
                _ => Err(PathError::Root),
            };
        };
        let folder = self.resolve(folder)?;
        let layer = self.layer;
        let names = self.folder(&folder)?;
        match names.get_mut(name) {
            Some(node)
                if matches!(
                    (&node.content, &content),
                    (Content::Folder(_), Content::Folder(_))
                ) =>
            {
                node.facts = facts;
                node.layer = layer;
            }
            _ => {
                let node = Node {
                    facts,
                    content,
                    layer,
                };
                names.insert(name.clone(), node);
            }
        }
        Ok(())
    }

    /// Puts the file of one path under another one, too.
    pub(super) fn hard_link(&mut self, path: &[u8], to: &[u8]) -> Result<(), PathError> {
        let to = names(to)?;
        let (name, folder) = to.split_last().ok_or(PathError::Root)?;
        let mut to = self.resolve(folder)?;
        to.push(name.clone());
        let node = self.find(&to).ok_or(PathError::NotFound)?;
        if matches!(node.content, Content::Folder(_)) {
            return Err(PathError::NotFound);
        }
        let (facts, content) = (node.facts, node.content.clone());
        self.put(path, facts, content)
    }

    /// What is at a path.
    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        let path = names(path.as_bytes()).ok()?;
        let (name, folder) = path.split_last()?;
        let mut path = self.resolve(folder).ok()?;
        path.push(name.clone());
        self.find(&path)
    }

    /// Takes out what is at a path, if anything is.
    pub(super) fn remove(&mut self, path: &str) {
        let Ok(path) = names(path.as_bytes()) else {
            return;
        };
        let Some((name, folder)) = path.split_last() else {
            return;
        };
        if let Ok(folder) = self.resolve(folder)
            && (folder.is_empty() || self.find(&folder).is_some())
            && let Ok(names) = self.folder(&folder)
        {
            names.remove(name);
        }
    }

    /// Hides what layers below this one have under a path.
    pub(super) fn hide(&mut self, path: &[u8]) -> Result<(), PathError> {
        let layer = self.layer;
        let path = names(path)?;
        let (name, folder) = path.split_last().ok_or(PathError::Root)?;
        let mut at = self.resolve(folder)?;
        at.push(name.clone());
        if self.find(&at).is_none() {
            return Ok(());
        }
        at.pop();
        let names = self.folder(&at)?;
        if let Some(node) = names.get_mut(name)
            && node.is_hidden_by(layer)
        {
            names.remove(name);
        }
        Ok(())
    }

    /// Hides what layers below this one have in a folder.
    pub(super) fn hide_all_in(&mut self, path: &[u8]) -> Result<(), PathError> {
        let layer = self.layer;
        let folder = self.resolve(&names(path)?)?;
        let names = self.folder(&folder)?;
        names.retain(|_, node| !node.is_hidden_by(layer));
        Ok(())
    }
}

impl Node {
    /// Whether nothing of it is left when what is below a layer is hidden; takes out the rest.
    fn is_hidden_by(&mut self, layer: usize) -> bool {
        match &mut self.content {
            Content::Folder(names) => {
                names.retain(|_, node| !node.is_hidden_by(layer));
                names.is_empty() && self.layer < layer
            }
            _ => self.layer < layer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(tree: &mut Tree, path: &str, text: &str) -> Result<(), PathError> {
        let content = Content::Bytes(text.into());
        tree.put(path.as_bytes(), Facts::of_mode(0o644), content)
    }

    fn link(tree: &mut Tree, path: &str, to: &str) {
        let content = Content::Link(to.into());
        tree.put(path.as_bytes(), Facts::of_mode(0o777), content)
            .unwrap();
    }

    fn text(tree: &Tree, path: &str) -> Option<String> {
        match &tree.get(path)?.content {
            Content::Bytes(bytes) => Some(String::from_utf8(bytes.clone()).unwrap()),
            _ => None,
        }
    }

    #[test]
    fn links_in_a_path_are_followed_within_the_tree() {
        let mut tree = Tree::default();
        put(&mut tree, "usr/bin/ls", "ls").unwrap();
        link(&mut tree, "bin", "usr/bin");
        put(&mut tree, "./bin/cat", "cat").unwrap();
        assert_eq!(text(&tree, "usr/bin/cat").unwrap(), "cat");
        // A link that leads far above leads to the root.
        link(&mut tree, "up", "../../../../usr");
        put(&mut tree, "up/bin/rm", "rm").unwrap();
        assert_eq!(text(&tree, "/usr/bin/rm").unwrap(), "rm");
        link(&mut tree, "absolute", "/usr");
        put(&mut tree, "absolute/x", "x").unwrap();
        assert_eq!(text(&tree, "usr/x").unwrap(), "x");
        // What is put over a link replaces the link, not its file.
        link(&mut tree, "usr/bin/sh", "ls");
        put(&mut tree, "usr/bin/sh", "sh").unwrap();
        assert_eq!(text(&tree, "usr/bin/ls").unwrap(), "ls");
        tree.hard_link(b"usr/bin/dir", b"bin/ls").unwrap();
        assert_eq!(text(&tree, "bin/dir").unwrap(), "ls");
    }

    #[test]
    fn paths_that_lead_out_or_nowhere_are_refused() {
        let mut tree = Tree::default();
        for path in ["../x", "a/../../x", "..", "a/.."] {
            assert_eq!(put(&mut tree, path, ""), Err(PathError::Above), "{path}");
        }
        for path in ["", ".", "/", "./"] {
            assert_eq!(put(&mut tree, path, ""), Err(PathError::Root), "{path}");
        }
        link(&mut tree, "a", "b");
        link(&mut tree, "b", "a");
        assert_eq!(put(&mut tree, "a/x", ""), Err(PathError::RingOfLinks));
        put(&mut tree, "file", "").unwrap();
        assert_eq!(put(&mut tree, "file/x", ""), Err(PathError::NoFolder));
        let deep = "x/".repeat(NAMES_MAX) + "x";
        assert_eq!(put(&mut tree, &deep, ""), Err(PathError::Deep));
        let mut outside = |to: &[u8]| tree.hard_link(b"h", to);
        assert_eq!(outside(b"../etc/shadow"), Err(PathError::Above));
        assert_eq!(outside(b"/etc/shadow"), Err(PathError::NotFound));
    }

    #[test]
    fn what_hides_hides_older_layers_only() {
        let mut tree = Tree::default();
        for path in ["etc/a", "etc/b", "etc/d/x", "etc/d/y", "var/z"] {
            put(&mut tree, path, "old").unwrap();
        }
        tree.next_layer();
        put(&mut tree, "etc/d/new", "new").unwrap();
        tree.hide(b"etc/a").unwrap();
        tree.hide(b"etc/not-there").unwrap();
        tree.hide_all_in(b"etc/d").unwrap();
        put(&mut tree, "var/z", "new").unwrap();
        tree.hide(b"var/z").unwrap();
        assert_eq!(text(&tree, "etc/a"), None);
        assert_eq!(text(&tree, "etc/b").unwrap(), "old");
        assert_eq!(text(&tree, "etc/d/x"), None);
        assert_eq!(text(&tree, "etc/d/new").unwrap(), "new");
        assert_eq!(text(&tree, "var/z").unwrap(), "new");
    }
}
