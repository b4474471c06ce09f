//! What fuzz targets need of this module's own functions.

use std::fs::File;

use super::{
    layer::{Store, apply},
    tree::{Content, Node, Tree},
};

/// Layers of an image, put one over the other; their contents go into `contents`. How many were taken.
/// Every file's content lies within what was kept, and no name leads anywhere else.
pub fn layers(archives: &[&[u8]], contents: &File) -> usize {
    let mut tree = Tree::default();
    let mut store = Store::new(contents.try_clone().unwrap());
    let mut taken = 0;
    for archive in archives {
        if apply(&mut tree, &mut store, *archive).is_err() {
            break;
        }
        taken += 1;
    }
    let length = contents.metadata().unwrap().len();
    for (name, node) in &tree.names {
        check(name, node, length, 0);
    }
    taken
}

fn check(name: &[u8], node: &Node, length: u64, depth: usize) {
    assert!(!name.is_empty() && !name.contains(&b'/'));
    assert!(name != b"." && name != b"..");
    assert!(depth <= 256, "folders in one another");
    match &node.content {
        Content::Folder(names) => names
            .iter()
            .for_each(|(name, node)| check(name, node, length, depth + 1)),
        Content::Stored(stored) => assert!(stored.at + stored.length <= length),
        Content::Bytes(_) | Content::Link(_) => {}
    }
}
