//! Tables of docs/agent.md: the numbers of messages there are those of the protocol.

use std::collections::BTreeMap;

use syn::{Item, ItemEnum};

const DOCUMENT: &str = include_str!("../../docs/agent.md");
const SOURCES: [&str; 4] = [
    include_str!("../../agent/protocol/src/message.rs"),
    include_str!("../../agent/protocol/src/process.rs"),
    include_str!("../../agent/protocol/src/files.rs"),
    include_str!("../../agent/protocol/src/steps.rs"),
];

/// The variants of an enum of the protocol, in the order that gives them their numbers.
fn variants(name: &str) -> Vec<String> {
    let found = SOURCES.iter().find_map(|source| {
        let file = syn::parse_file(source).unwrap();
        file.items.into_iter().find_map(|item| match item {
            Item::Enum(ItemEnum {
                ident, variants, ..
            }) if ident == name => Some(variants),
            _ => None,
        })
    });
    let variants = found.unwrap_or_else(|| panic!("the protocol has no {name}"));
    variants.iter().map(|one| one.ident.to_string()).collect()
}

/// The tables below headings of the third rank: number and name of each row.
fn tables() -> BTreeMap<&'static str, Vec<(usize, &'static str)>> {
    let mut tables = BTreeMap::<_, Vec<_>>::new();
    let mut heading = "";
    for line in DOCUMENT.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            heading = title;
        } else if line.starts_with("## ") {
            heading = "";
        }
        let mut cells = line.split('|').map(str::trim).skip(1);
        if let (Some(number), Some(name)) = (cells.next(), cells.next())
            && let Ok(number) = number.parse()
            && !heading.is_empty()
        {
            tables.entry(heading).or_default().push((number, name));
        }
    }
    tables
}

#[test]
fn the_documents_tables_are_the_protocols_enums() {
    let tables = tables();
    for (heading, name) in [
        ("From the host", "ToGuest"),
        ("From the guest", "ToHost"),
        ("Requests", "Request"),
        ("Events", "Event"),
        ("Replies", "Reply"),
    ] {
        let variants = variants(name);
        let expected: Vec<(usize, &str)> =
            variants.iter().map(String::as_str).enumerate().collect();
        assert_eq!(tables[heading], expected, "{heading}");
    }
}

/// Lists such as "0 Input, 1 Output or 2 Error" in the text.
#[test]
fn the_documents_lists_are_the_protocols_enums() {
    for name in ["Stream", "ChangeKind", "FailureKind", "Step"] {
        let variants = variants(name);
        let words: Vec<String> = variants
            .iter()
            .enumerate()
            .map(|(number, variant)| format!("{number} {variant}"))
            .collect();
        let (last, first) = words.split_last().unwrap();
        let comma = words.join(", ");
        let or = format!("{} or {last}", first.join(", "));
        assert!(
            DOCUMENT.contains(&comma) || DOCUMENT.contains(&or),
            "{name}: {comma}"
        );
    }
}
