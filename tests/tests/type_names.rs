//! Names of public types: no two of the manager's two crates have the same one, so that a search for
//! a name finds its type.
//!
//! Two things are not counted. An `Error` is always named with its module. A type in `types` may
//! be called as the type of the core that it shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{Ident, Item, UseTree, Visibility};

const CRATES: [&str; 2] = ["manager/core/src", "manager/src"];
const SHOWN: &str = "manager/src/types/";

/// A type: its name, and the file where it is defined.
type Definition = (String, PathBuf);

/// A module of a crate.
#[derive(Default)]
struct Module {
    file: PathBuf,
    types: Vec<String>,
    /// Modules right below it, and whether they are public.
    below: BTreeMap<String, (bool, Module)>,
    /// What it re-exports for everybody: paths.
    exports: Vec<Vec<String>>,
}

impl Module {
    fn read(file: &Path, folder: &Path) -> Self {
        let text = fs::read_to_string(file).unwrap();
        let items = syn::parse_file(&text).unwrap().items;
        let mut module = Self::default();
        module.add(file, folder, items);
        module
    }

    fn add(&mut self, file: &Path, folder: &Path, items: Vec<Item>) {
        self.file = file.to_owned();
        for item in items {
            let (visible, name) = match &item {
                Item::Struct(item) => (&item.vis, &item.ident),
                Item::Enum(item) => (&item.vis, &item.ident),
                Item::Union(item) => (&item.vis, &item.ident),
                Item::Trait(item) => (&item.vis, &item.ident),
                Item::Type(item) => (&item.vis, &item.ident),
                Item::Use(item) => {
                    if is_public(&item.vis) {
                        self.exports(&item.tree, &mut Vec::new());
                    }
                    continue;
                }
                Item::Mod(item) => {
                    let name = item.ident.to_string();
                    let folder = folder.join(&name);
                    let module = if let Some((_, items)) = item.content.clone() {
                        let mut module = Self::default();
                        module.add(file, &folder, items);
                        module
                    } else {
                        let own = folder.join("mod.rs");
                        let beside = folder.with_extension("rs");
                        Self::read(if own.exists() { &own } else { &beside }, &folder)
                    };
                    self.below.insert(name, (is_public(&item.vis), module));
                    continue;
                }
                _ => continue,
            };
            if is_public(visible) {
                self.types.push(name.to_string());
            }
        }
    }

    fn exports(&mut self, tree: &UseTree, path: &mut Vec<String>) {
        let add = |exports: &mut Vec<_>, path: &[String], name: &Ident| {
            exports.push(path.iter().cloned().chain([name.to_string()]).collect());
        };
        match tree {
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.exports(&part.tree, path);
                path.pop();
            }
            UseTree::Name(name) => add(&mut self.exports, path, &name.ident),
            UseTree::Rename(name) => add(&mut self.exports, path, &name.ident),
            UseTree::Glob(_) => {}
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.exports(tree, path);
                }
            }
        }
    }

    /// The public types of this module and of the public ones below it.
    fn public(&self, found: &mut BTreeSet<Definition>) {
        let own = |name: &String| (name.clone(), self.file.clone());
        found.extend(self.types.iter().map(own));
        for path in &self.exports {
            let path = path.strip_prefix(&["self".to_owned()]).unwrap_or(path);
            found.extend(self.definition(path));
        }
        for (public, module) in self.below.values() {
            if *public {
                module.public(found);
            }
        }
    }

    /// The type at this path from here, if there is one.
    fn definition(&self, path: &[String]) -> Option<Definition> {
        let (first, rest) = path.split_first()?;
        if rest.is_empty() && self.types.contains(first) {
            return Some((first.clone(), self.file.clone()));
        }
        if rest.is_empty() {
            let ends = |path: &&Vec<String>| path.last() == Some(first) && path.len() > 1;
            let path = self.exports.iter().find(ends)?;
            return self.definition(path.strip_prefix(&["self".to_owned()]).unwrap_or(path));
        }
        self.below.get(first)?.1.definition(rest)
    }
}

fn is_public(visible: &Visibility) -> bool {
    matches!(visible, Visibility::Public(_))
}

#[test]
fn no_two_public_types_have_one_name() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = BTreeSet::new();
    for folder in CRATES {
        let folder = repository.join(folder);
        Module::read(&folder.join("lib.rs"), &folder).public(&mut found);
    }
    assert!(found.len() > 200, "{} public types are found", found.len());
    let mut places = BTreeMap::<_, Vec<_>>::new();
    for (name, file) in found {
        let file = file.strip_prefix(&repository).unwrap().to_owned();
        places.entry(name).or_default().push(file);
    }
    places.remove("Error");
    let mut twice = Vec::new();
    for (name, files) in places {
        let is_shown = |file: &PathBuf| file.starts_with(SHOWN);
        let shown = files.iter().filter(|file| is_shown(file)).count();
        let is_pair = files.len() == 2 && shown == 1 && files[0].starts_with(CRATES[0]);
        if files.len() > 1 && !is_pair {
            twice.push(format!("{name}: {files:?}"));
        }
    }
    assert!(twice.is_empty(), "{}", twice.join("\n"));
}
