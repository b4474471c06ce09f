//! Public items of the crates that others may build on: a change of one is a change of the listing,
//! so that none is made by accident.
//!
//! `unreachable_pub` sees to it that what is `pub` in these crates can be reached.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use syn::{Fields, ImplItem, Item, Signature, TraitItem, Visibility, spanned::Spanned};

/// Text of a piece of source, in one line.
fn text(of: &impl Spanned) -> String {
    let text = of.span().source_text().expect("it was parsed from text");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// A function without its body.
fn signature(of: &Signature) -> String {
    text(of).replace(",)", ")").replace(", )", ")")
}

/// Public fields of a struct; `..` when it has others.
fn fields(of: &Fields) -> String {
    let shown: Vec<_> = of
        .iter()
        .filter(|field| is_public(&field.vis))
        .map(|field| match &field.ident {
            Some(name) => format!("{name}: {}", text(&field.ty)),
            None => text(&field.ty),
        })
        .chain((of.iter().any(|field| !is_public(&field.vis))).then(|| "..".to_owned()))
        .collect();
    format!("{{ {} }}", shown.join(", "))
}

/// The public parts of an item, a line each.
fn lines(item: &Item) -> Vec<String> {
    match item {
        Item::Const(of) if is_public(&of.vis) => {
            vec![format!(
                "const {}: {} = {}",
                of.ident,
                text(&of.ty),
                text(&of.expr)
            )]
        }
        Item::Type(of) if is_public(&of.vis) => {
            vec![format!("type {} = {}", of.ident, text(&of.ty))]
        }
        Item::Fn(of) if is_public(&of.vis) => vec![signature(&of.sig)],
        Item::Struct(of) if is_public(&of.vis) => {
            vec![format!("struct {} {}", of.ident, fields(&of.fields))]
        }
        Item::Enum(of) if is_public(&of.vis) => of
            .variants
            .iter()
            .map(|variant| {
                let parts = variant.fields.iter().map(|field| match &field.ident {
                    Some(name) => format!("{name}: {}", text(&field.ty)),
                    None => text(&field.ty),
                });
                let parts: Vec<_> = parts.collect();
                format!(
                    "enum {}::{} {{ {} }}",
                    of.ident,
                    variant.ident,
                    parts.join(", ")
                )
            })
            .collect(),
        Item::Trait(of) if is_public(&of.vis) => of
            .items
            .iter()
            .filter_map(|item| match item {
                TraitItem::Fn(function) => Some(signature(&function.sig)),
                TraitItem::Const(of) => Some(format!("const {}: {}", of.ident, text(&of.ty))),
                TraitItem::Type(of) => Some(format!("type {}", of.ident)),
                _ => None,
            })
            .map(|item| format!("trait {}: {item}", of.ident))
            .collect(),
        Item::Impl(of) if of.trait_.is_none() => of
            .items
            .iter()
            .filter_map(|item| match item {
                ImplItem::Fn(function) if is_public(&function.vis) => {
                    Some(signature(&function.sig))
                }
                ImplItem::Const(of) if is_public(&of.vis) => {
                    Some(format!("const {}: {}", of.ident, text(&of.ty)))
                }
                _ => None,
            })
            .map(|item| format!("{}: {item}", text(&*of.self_ty)))
            .collect(),
        Item::Use(of) if is_public(&of.vis) => vec![format!("use {}", text(&of.tree))],
        _ => Vec::new(),
    }
}

/// The public items of all files below a folder, but for those of these names and what only fuzz
/// targets are built with.
fn listing(folder: &str, without: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(folder);
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path),
            }
        }
    }
    files.sort();
    let mut listing = String::new();
    for file in files {
        let name = file.strip_prefix(&root).unwrap().display().to_string();
        let is_left_out = without.iter().any(|other| name.starts_with(other));
        if !name.ends_with(".rs") || is_left_out || name.ends_with("fuzzing.rs") {
            continue;
        }
        let parsed = syn::parse_file(&fs::read_to_string(&file).unwrap()).unwrap();
        for line in parsed.items.iter().flat_map(lines) {
            writeln!(listing, "{name}: {line}").unwrap();
        }
    }
    assert!(listing.lines().count() > 50, "{listing}");
    listing
}

#[test]
fn the_api_of_vmm_sys_is_the_listed_one() {
    // What is generated of FreeBSD's headers has a check of its own (tools/bindings).
    insta::assert_snapshot!(listing("sys/src", &["generated", "abi"]));
}

#[test]
fn the_api_of_the_agents_protocol_is_the_listed_one() {
    insta::assert_snapshot!(listing("agent/protocol/src", &[]));
}

#[test]
fn the_api_of_the_manager_is_the_listed_one() {
    insta::assert_snapshot!(listing("manager/core/src", &[]));
}

#[test]
fn the_api_of_the_machine_is_the_listed_one() {
    insta::assert_snapshot!(listing("machine/src", &[]));
}
