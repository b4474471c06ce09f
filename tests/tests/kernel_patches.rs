//! The lines of FreeBSD's files that each hunk in `kernel-patches/` rests on are the lines that
//! were there when the files were read. Only their hashes are kept here.

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A line that a hunk needs: context, or removed.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    patch: String,
    file: String,
    hunk: usize,
    /// Its number in the old file, as the hunk's header has it.
    number: usize,
    text: String,
}

/// A hunk of a file that FreeBSD has.
#[derive(Debug)]
struct Hunk {
    patch: String,
    file: String,
    hunk: usize,
    old: (usize, usize),
    new: (usize, usize),
}

#[derive(Debug)]
struct Row {
    patch: String,
    file: String,
    hunk: usize,
    /// The line's number in the file as it was read.
    line: usize,
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

/// `-12,3` or `+12,3` in a hunk's header: first line, number of lines.
fn range(text: &str, sign: char) -> (usize, usize) {
    let text = text.strip_prefix(sign).expect("a range");
    let (start, count) = text.split_once(',').unwrap_or((text, "1"));
    (start.parse().expect("start"), count.parse().expect("count"))
}

fn read_patch(release: &Path, patch: &str) -> (Vec<Hunk>, Vec<Line>) {
    let text = read(&release.join(patch));
    let (mut hunks, mut lines, mut file) = (Vec::new(), Vec::new(), None::<String>);
    let (mut hunk, mut number) = (0, 0);
    for l in text.lines() {
        if let Some(name) = l.strip_prefix("--- ") {
            file = name.strip_prefix("a/").map(str::to_owned);
            hunk = 0;
            continue;
        }
        let Some(file) = &file else { continue };
        if let Some(ranges) = l.strip_prefix("@@ ") {
            let mut ranges = ranges.split(' ');
            let old = range(ranges.next().expect("old range"), '-');
            let new = range(ranges.next().expect("new range"), '+');
            hunk += 1;
            number = old.0;
            hunks.push(Hunk {
                patch: patch.to_owned(),
                file: file.clone(),
                hunk,
                old,
                new,
            });
        } else if let (true, Some(text)) = (hunk > 0, l.strip_prefix([' ', '-'])) {
            lines.push(Line {
                patch: patch.to_owned(),
                file: file.clone(),
                hunk,
                number,
                text: text.to_owned(),
            });
            number += 1;
        }
    }
    (hunks, lines)
}

fn read_series(release: &Path) -> (Vec<Hunk>, Vec<Line>) {
    let (mut hunks, mut lines) = (Vec::new(), Vec::new());
    for patch in series(release) {
        let (h, l) = read_patch(release, &patch);
        hunks.extend(h);
        lines.extend(l);
    }
    (hunks, lines)
}

fn table(release: &Path) -> Vec<Row> {
    let text = read(&release.join("context.sha256"));
    text.lines()
        .filter(|l| !l.starts_with('#'))
        .map(|l| {
            let f: Vec<&str> = l.split(' ').collect();
            let [patch, file, hunk, line, sha256] = f[..] else {
                panic!("row {l:?}")
            };
            Row {
                patch: patch.to_owned(),
                file: file.to_owned(),
                hunk: hunk.parse().expect("hunk"),
                line: line.parse().expect("line"),
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
        let (_, lines) = read_series(&release);
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

/// No two hunks rest on one line of a file, and the lines of one hunk follow each other.
#[test]
fn lines_of_a_hunk_follow_each_other() {
    for release in releases() {
        let mut taken = BTreeSet::new();
        let mut previous: Option<Row> = None;
        for row in table(&release) {
            assert!(row.line > 0, "{row:?}");
            assert!(taken.insert((row.file.clone(), row.line)), "{row:?}");
            if let Some(before) = &previous
                && (&before.patch, &before.file, before.hunk) == (&row.patch, &row.file, row.hunk)
            {
                assert_eq!(before.line + 1, row.line, "{row:?}");
            }
            previous = Some(row);
        }
    }
}

/// The headers give the lines' numbers in the file as it was read, moved by what the series has
/// added above them by then, so that the series applies to such a file without an offset.
#[test]
fn headers_have_the_numbers_of_the_table() {
    for release in releases() {
        let (hunks, lines) = read_series(&release);
        let rows = table(&release);
        assert_eq!(lines.len(), rows.len());
        // Per file: where hunks were in the pristine file, and by how much they moved the rest.
        let mut moves: BTreeMap<&str, Vec<(String, usize, isize)>> = BTreeMap::new();
        for hunk in &hunks {
            let of_hunk = |patch: &str, file: &str, number: usize| {
                (patch, file, number) == (&hunk.patch, &hunk.file, hunk.hunk)
            };
            let first = rows
                .iter()
                .find(|r| of_hunk(&r.patch, &r.file, r.hunk))
                .unwrap_or_else(|| panic!("not in the table: {hunk:?}"))
                .line;
            let known = moves.entry(&hunk.file).or_default();
            let moved = |same_patch: bool| -> isize {
                known
                    .iter()
                    .filter(|(patch, line, _)| {
                        *line < first && (*patch == hunk.patch) == same_patch
                    })
                    .map(|(_, _, by)| by)
                    .sum()
            };
            let old = first.checked_add_signed(moved(false)).expect("old line");
            let new = old.checked_add_signed(moved(true)).expect("new line");
            assert_eq!((hunk.old.0, hunk.new.0), (old, new), "{hunk:?}");
            let mut numbers = lines
                .iter()
                .filter(|l| of_hunk(&l.patch, &l.file, l.hunk))
                .map(|l| l.number);
            assert_eq!(numbers.next(), Some(old), "{hunk:?}");
            assert_eq!(numbers.count() + 1, hunk.old.1, "{hunk:?}");
            let by = hunk.new.1.checked_signed_diff(hunk.old.1).expect("sizes");
            known.push((hunk.patch.clone(), first, by));
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
