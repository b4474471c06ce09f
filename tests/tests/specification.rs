//! Specification: each promise of SPECIFICATION.md names tests that are there, or says that none
//! holds it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{File, Item};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Words of a macro's call: functions that a macro makes tests of, and names that it gives to them.
fn words(tokens: TokenStream, into: &mut BTreeSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Ident(word) => drop(into.insert(word.to_string())),
            TokenTree::Group(group) => words(group.stream(), into),
            _ => {}
        }
    }
}

/// Tests of a parsed file: functions with the attribute, and names in calls of macros.
fn add_tests(file: File, into: &mut BTreeSet<String>) {
    for item in file.items {
        match item {
            Item::Fn(function) if function.attrs.iter().any(|a| a.path().is_ident("test")) => {
                into.insert(function.sig.ident.to_string());
            }
            // `macro_rules!` itself makes none; those of `proptest!` stand in its call.
            Item::Macro(call) if call.ident.is_none() => words(call.mac.tokens, into),
            _ => {}
        }
    }
}

/// The tests of `tests/tests/NAME.rs`, or of the files in `tests/tests/NAME`.
fn tests_of(name: &str) -> BTreeSet<String> {
    let folder = repository().join("tests/tests");
    let file = folder.join(name).with_extension("rs");
    let files = match file.is_file() {
        true => vec![file],
        false => fs::read_dir(folder.join(name))
            .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default(),
    };
    let mut tests = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        add_tests(syn::parse_file(&text).unwrap(), &mut tests);
    }
    tests
}

/// What is wrong with the document's tables.
fn faults(document: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut promises = 0;
    for line in document.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let [promise, held] = cells[..] else {
            faults.push(format!("not two columns: {line}"));
            continue;
        };
        let promise = promise.trim();
        if promise == "promise" {
            continue;
        }
        promises += 1;
        let named: Vec<_> = held
            .split('`')
            .skip(1)
            .step_by(2)
            .filter_map(|code| code.split_once("::"))
            .collect();
        if named.is_empty() && !held.trim_start().starts_with("Not held") {
            faults.push(format!("no test: {promise}"));
        }
        for (file, test) in named {
            if !tests_of(file).contains(test) {
                faults.push(format!("there is no test {file}::{test}"));
            }
        }
    }
    if promises == 0 {
        faults.push("there is no promise".to_owned());
    }
    faults
}

#[test]
fn each_promise_names_tests_that_are_there() {
    let document = fs::read_to_string(repository().join("SPECIFICATION.md")).unwrap();
    let faults = faults(&document);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_promise_without_a_test_is_noticed() {
    let table = |held: &str| {
        faults(&format!(
            "| promise | held by |\n|---|---|\n| P. | {held} |"
        ))
    };
    let good = "`isolation::a_write_is_seen_by_its_clone_alone`";
    assert_eq!(table(good), Vec::<String>::new());
    assert_eq!(table("Not held."), Vec::<String>::new());
    assert_eq!(table("the kernel"), ["no test: P."]);
    // A helper is no test, nor is one of another file, nor of no file.
    for wrong in [
        "isolation::open_files",
        "files::a_write_is_seen_by_its_clone_alone",
        "nothing::a_write_is_seen_by_its_clone_alone",
    ] {
        assert_eq!(
            table(&format!("{good}, `{wrong}`")),
            [format!("there is no test {wrong}")]
        );
    }
    assert_eq!(faults("no table"), ["there is no promise"]);
}
