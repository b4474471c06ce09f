//! Arrows: imports of one module from another below the same one, found in the source by `syn`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use syn::{
    Ident, Item, ItemMod, ItemUse, Macro, UseTree,
    visit::{self, Visit},
};

/// An import from another module, or from `brood_core`.
#[derive(Debug)]
pub(crate) struct Arrow {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) file: String,
    pub(crate) line: usize,
}

/// Why the arrows cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read {}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot parse {}: {source}", .path.display())]
    Parse { path: PathBuf, source: syn::Error },
}

/// The arrows between the modules right below the module `above` of the crate whose source is in
/// this folder of the repository.
pub(crate) fn arrows(repository: &Path, folder: &str, above: &[&str]) -> Result<Vec<Arrow>, Error> {
    let root = repository.join(folder);
    let mut files = Vec::new();
    sources(&root, &mut files).map_err(|source| Error::Read {
        path: root.clone(),
        source,
    })?;
    files.sort();
    let mut arrows = Vec::new();
    for path in files {
        let inside = path.strip_prefix(&root).expect("it was found there");
        let module = module(inside);
        // The module above only names those below it.
        if module.len() <= above.len() || !module.iter().zip(above).all(|(a, b)| a == b) {
            continue;
        }
        let text = fs::read_to_string(&path);
        let text = text.map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })?;
        let file = syn::parse_file(&text);
        let file = file.map_err(|source| Error::Parse {
            path: path.clone(),
            source,
        })?;
        let mut finder = Finder {
            file: format!("{folder}/{}", inside.display()),
            above,
            module,
            arrows: &mut arrows,
        };
        finder.visit_file(&file);
    }
    Ok(arrows)
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The path of a file's module in its crate: that of `engine/kvm/mod.rs` is `engine`, `kvm`.
fn module(file: &Path) -> Vec<String> {
    let words = file.with_extension("");
    let words = words.iter().map(|word| word.to_string_lossy().into_owned());
    let mut module: Vec<_> = words.collect();
    if module.last().is_some_and(|word| word == "mod") || module == ["lib"] {
        module.pop();
    }
    module
}

struct Finder<'a> {
    file: String,
    above: &'a [&'a str],
    /// The module that is looked at.
    module: Vec<String>,
    arrows: &'a mut Vec<Arrow>,
}

impl Finder<'_> {
    /// Notes an arrow when this path leads out of the module below `above`.
    fn path(&mut self, path: &[&Ident]) {
        let Some(to) = self.target(path) else { return };
        let from = &self.module[self.above.len()];
        if to != *from {
            self.arrows.push(Arrow {
                from: from.clone(),
                to,
                file: self.file.clone(),
                line: path[0].span().start().line,
            });
        }
    }

    /// The module right below `above` that a path leads to.
    fn target(&self, path: &[&Ident]) -> Option<String> {
        let words = path.iter().map(ToString::to_string);
        let target: Vec<_> = match path.first()?.to_string().as_str() {
            "brood_core" => words.collect(),
            "crate" => words.skip(1).collect(),
            "super" => {
                let ups = path.iter().take_while(|word| **word == "super").count();
                let parents = &self.module[..self.module.len().checked_sub(ups)?];
                parents.iter().cloned().chain(words.skip(ups)).collect()
            }
            _ => return None,
        };
        let is_below = target.iter().zip(self.above).all(|(a, b)| a == b);
        target.get(self.above.len()).filter(|_| is_below).cloned()
    }

    fn tree<'t>(&mut self, tree: &'t UseTree, path: &mut Vec<&'t Ident>) {
        match tree {
            UseTree::Path(part) => {
                path.push(&part.ident);
                self.tree(&part.tree, path);
                path.pop();
            }
            UseTree::Name(name) => {
                path.push(&name.ident);
                self.path(path);
                path.pop();
            }
            UseTree::Rename(name) => {
                path.push(&name.ident);
                self.path(path);
                path.pop();
            }
            UseTree::Glob(_) => self.path(path),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.tree(tree, path);
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let Some((_, items)) = &item.content else {
            return;
        };
        self.module.push(item.ident.to_string());
        for item in items {
            self.visit_item(item);
        }
        self.module.pop();
    }

    fn visit_item(&mut self, item: &'ast Item) {
        visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.tree(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let words: Vec<_> = path.segments.iter().map(|segment| &segment.ident).collect();
        self.path(&words);
        visit::visit_path(self, path);
    }

    /// The arguments of a macro are no syntax tree: expressions among them are looked at.
    fn visit_macro(&mut self, found: &'ast Macro) {
        self.visit_path(&found.path);
        let text = found.tokens.to_string();
        for start in ["crate :: ", "brood_core :: "] {
            for (at, _) in text.match_indices(start) {
                let path = text[at..].split(|c: char| !c.is_alphanumeric() && !"_: ".contains(c));
                let path = path.into_iter().next().unwrap_or_default();
                let words = path
                    .split("::")
                    .map(str::trim)
                    .filter(|word| !word.is_empty());
                let span = found.bang_token.spans[0];
                let words: Vec<_> = words
                    .map_while(|word| {
                        syn::parse_str::<Ident>(word)
                            .ok()
                            .or_else(|| (word == "crate").then(|| Ident::new("crate", span)))
                    })
                    .map(|mut word| {
                        word.set_span(span);
                        word
                    })
                    .collect();
                self.path(&words.iter().collect::<Vec<_>>());
            }
        }
    }
}
