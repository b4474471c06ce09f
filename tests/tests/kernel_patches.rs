//! The lines of FreeBSD's files that each hunk in `kernel-patches/` rests on are the lines that
//! were there when the files were read. Only their hashes are kept here.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A line that a hunk needs: context, or removed.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    patch: String,
    file: String,
    hunk: usize,
    text: String,
}

#[derive(Debug)]
struct Row {
    patch: String,
    file: String,
    hunk: usize,
    /// Place in the file as it was read, where that is known.
    offset: Option<usize>,
    sha256: String,
}

fn patches() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel-patches")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn releases() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(patches())
        .expect("kernel-patches")
        .map(|e| e.expect("entry").path())
        .filter(|p| p.join("series").exists())
        .collect();
    dirs.sort();
    assert!(!dirs.is_empty(), "no release in kernel-patches");
    dirs
}

fn series(release: &Path) -> Vec<String> {
    let text = read(&release.join("series"));
    text.lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty())
        .map(str::to_owned)
        .collect()
}

fn old_lines(release: &Path, patch: &str) -> Vec<Line> {
    let text = read(&release.join(patch));
    let (mut lines, mut file, mut hunk) = (Vec::new(), None, 0);
    for l in text.lines() {
        if let Some(name) = l.strip_prefix("--- ") {
            file = name.strip_prefix("a/").map(str::to_owned);
            hunk = 0;
        } else if l.starts_with("@@ ") {
            hunk += 1;
        } else if let (Some(file), true, Some(text)) = (&file, hunk > 0, l.strip_prefix([' ', '-']))
        {
            let (patch, file) = (patch.to_owned(), file.clone());
            lines.push(Line {
                patch,
                file,
                hunk,
                text: text.to_owned(),
            });
        }
    }
    lines
}

fn table(release: &Path) -> Vec<Row> {
    let text = read(&release.join("context.sha256"));
    text.lines()
        .filter(|l| !l.starts_with('#'))
        .map(|l| {
            let f: Vec<&str> = l.split(' ').collect();
            let [patch, file, hunk, offset, sha256] = f[..] else {
                panic!("row {l:?}")
            };
            Row {
                patch: patch.to_owned(),
                file: file.to_owned(),
                hunk: hunk.parse().expect("hunk"),
                offset: (offset != "-").then(|| offset.parse().expect("offset")),
                sha256: sha256.to_owned(),
            }
        })
        .collect()
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .fold(String::new(), |mut s, b| {
            write!(s, "{b:02x}").expect("write to a string");
            s
        })
}

#[test]
fn hunks_rest_on_the_lines_that_were_read() {
    for release in releases() {
        let lines: Vec<Line> = series(&release)
            .iter()
            .flat_map(|p| old_lines(&release, p))
            .collect();
        let rows = table(&release);
        assert!(!lines.is_empty(), "{}: no hunks", release.display());
        assert_eq!(
            lines.len(),
            rows.len(),
            "{}: lines and rows",
            release.display()
        );
        for (line, row) in lines.iter().zip(&rows) {
            let place = (&line.patch, &line.file, line.hunk);
            assert_eq!(
                place,
                (&row.patch, &row.file, row.hunk),
                "order of the table"
            );
            assert_eq!(sha256(&line.text), row.sha256, "{line:?}");
        }
    }
}

/// Lines of one hunk follow each other, and hunks of one file do not overlap.
#[test]
fn places_in_the_table_agree_with_the_lines() {
    for release in releases() {
        let lines: Vec<Line> = series(&release)
            .iter()
            .flat_map(|p| old_lines(&release, p))
            .collect();
        let mut taken: BTreeMap<(String, usize), usize> = BTreeMap::new();
        let mut previous: Option<(&Line, usize)> = None;
        let mut placed = 0;
        for (line, row) in lines.iter().zip(&table(&release)) {
            let Some(offset) = row.offset else {
                previous = None;
                continue;
            };
            placed += 1;
            if let Some((before, at)) = previous
                && (&before.patch, &before.file, before.hunk)
                    == (&line.patch, &line.file, line.hunk)
            {
                assert_eq!(at + before.text.len() + 1, offset, "{line:?}");
            }
            let end = offset + line.text.len() + 1;
            let other = taken.insert((line.file.clone(), offset), end);
            assert_eq!(other, None, "two hunks rest on one line: {line:?}");
            previous = Some((line, offset));
        }
        assert!(placed * 2 > lines.len(), "most places are known");
        let mut last: BTreeMap<&str, usize> = BTreeMap::new();
        for ((file, start), end) in &taken {
            let before = last.insert(file, *end).unwrap_or(0);
            assert!(before <= *start, "{file}: lines overlap at {start}");
        }
    }
}

/// A file that a patch makes is ours, and says so.
#[test]
fn new_files_are_our_own() {
    for release in releases() {
        let mut made = 0;
        for patch in series(&release) {
            let text = read(&release.join(&patch));
            for part in text.split("--- /dev/null\n").skip(1) {
                let mut lines = part.lines();
                let name = lines
                    .next()
                    .expect("a name")
                    .strip_prefix("+++ b/")
                    .expect("b/");
                let body: String = lines.skip(1).take(6).collect::<Vec<_>>().join("\n");
                assert!(
                    body.contains("SPDX-License-Identifier: BSD-2-Clause"),
                    "{name}"
                );
                assert!(body.contains("The brood authors"), "{name}");
                made += 1;
            }
        }
        assert!(made > 0, "{}: no new files", release.display());
    }
}
