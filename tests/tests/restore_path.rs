//! What a restore passes, as docs/design.md lists it: each file has the function that the list
//! names, and an earlier file of the list calls that function.

use std::{fs, path::Path};

#[test]
fn the_list_of_what_a_restore_passes_is_true() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let read = |path: &str| fs::read_to_string(repository.join(path)).unwrap();
    let document = read("docs/design.md");
    let section = document
        .split("\n## What a restore passes\n")
        .nth(1)
        .unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<(&str, &str)> = section
        .lines()
        .filter_map(|line| {
            let mut quoted = line.strip_prefix("| `")?.split('`');
            Some((quoted.next()?, quoted.nth(1)?))
        })
        .collect();
    assert!(rows.len() > 20, "{rows:?}");
    for (n, (file, function)) in rows.iter().enumerate() {
        let text = read(file);
        let is_defined = ["(", "<"]
            .iter()
            .any(|after| text.contains(&format!("fn {function}{after}")));
        assert!(is_defined, "{file} has no function {function}");
        let is_called = rows[..n].iter().any(|(earlier, _)| {
            let text = read(earlier);
            text.lines().any(|line| calls(line, function))
        });
        assert!(
            n == 0 || is_called,
            "no earlier file calls {function} of {file}"
        );
    }
    let mut files: Vec<_> = rows.iter().map(|(file, _)| file).collect();
    files.sort_unstable();
    files.dedup();
    let said = format!("These are {} files.", files.len());
    assert!(section.contains(&said), "{said}");
}

/// Whether a line of code calls a function of this name.
fn calls(line: &str, function: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(function).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + function.len()..]);
        !before.ends_with(is_name)
            && !before.ends_with("fn ")
            && (after.starts_with('(') || after.starts_with("::<"))
    })
}
