//! Context of the patches in `kernel-patches/`: each series rests on the lines that FreeBSD's files
//! had when they were read. Only their hashes are kept here, with ten lines on each side of each
//! hunk.

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Lines on each side of a hunk that the record must have.
const AROUND: usize = 10;

/// A hunk of a file that FreeBSD has.
#[derive(Debug, Clone)]
struct Hunk {
    patch: String,
    file: String,
    old: (usize, usize),
    new: (usize, usize),
    /// Context, removed and added lines, each with its sign in front.
    lines: Vec<String>,
}

/// What is recorded of one file as it was read.
#[derive(Debug, Clone, Default)]
struct Recorded {
    version: String,
    characters: usize,
    lines: usize,
    whole: String,
    known: BTreeMap<usize, String>,
}

type Record = BTreeMap<String, Recorded>;

/// A line of a file while a series is applied: its hash if it is recorded, and its number in the
/// file as it was read, unless the series added it.
type Line = (Option<String>, Option<usize>);

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

fn read_patch(release: &Path, patch: &str) -> Vec<Hunk> {
    let text = read(&release.join(patch));
    let (mut hunks, mut file) = (Vec::<Hunk>::new(), None::<String>);
    for l in text.lines() {
        if let Some(name) = l.strip_prefix("--- ") {
            file = name.strip_prefix("a/").map(str::to_owned);
        } else if let (Some(file), Some(ranges)) = (&file, l.strip_prefix("@@ ")) {
            let mut ranges = ranges.split(' ');
            hunks.push(Hunk {
                patch: patch.to_owned(),
                file: file.clone(),
                old: range(ranges.next().expect("old range"), '-'),
                new: range(ranges.next().expect("new range"), '+'),
                lines: Vec::new(),
            });
        } else if let (Some(_), Some(hunk)) = (&file, hunks.last_mut())
            && l.starts_with([' ', '-', '+'])
            && !l.starts_with("+++ ")
        {
            hunk.lines.push(l.to_owned());
        }
    }
    hunks
}

fn read_series(release: &Path) -> Vec<Hunk> {
    series(release)
        .iter()
        .flat_map(|patch| read_patch(release, patch))
        .collect()
}

/// The record of a series, or of the one that it stands on (`as ../15.0`).
fn read_record(release: &Path) -> Record {
    let text = read(&release.join("windows.sha256"));
    if let Some(other) = text.lines().find_map(|l| l.strip_prefix("as ")) {
        return read_record(&release.join(other));
    }
    let (mut record, mut file) = (Record::new(), None::<String>);
    for l in text.lines().filter(|l| !l.starts_with('#')) {
        let f: Vec<&str> = l.split(' ').collect();
        match f[..] {
            ["file", path, version, characters, lines, whole] => {
                let new = Recorded {
                    version: version.to_owned(),
                    characters: characters.parse().expect("characters"),
                    lines: lines.parse().expect("lines"),
                    whole: whole.to_owned(),
                    known: BTreeMap::new(),
                };
                assert!(record.insert(path.to_owned(), new).is_none(), "{path}");
                file = Some(path.to_owned());
            }
            [number, hash] => {
                let of = record.get_mut(file.as_ref().expect("a file")).expect("it");
                let number = number.parse().expect("number");
                assert!(of.known.insert(number, hash.to_owned()).is_none(), "{l}");
            }
            _ => panic!("row {l:?}"),
        }
    }
    record
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .fold(String::new(), |mut s, b| {
            write!(s, "{b:02x}").expect("write to a string");
            s
        })
}

/// Applies one hunk to what is known of its file, at the very line of its header, and returns
/// the lines that it rests on.
fn apply_hunk(hunk: &Hunk, moved: isize, file: &mut Vec<Line>) -> Result<Vec<usize>, String> {
    let wrong = |why: &str| {
        Err(format!(
            "{}: {}: {:?}: {why}",
            hunk.patch, hunk.file, hunk.old
        ))
    };
    let old: Vec<&str> = hunk
        .lines
        .iter()
        .filter_map(|l| l.strip_prefix([' ', '-']))
        .collect();
    let added = hunk.lines.iter().filter(|l| l.starts_with('+')).count();
    let removed = hunk.lines.iter().filter(|l| l.starts_with('-')).count();
    if old.len() != hunk.old.1 || old.len() + added - removed != hunk.new.1 {
        return wrong("the header has other numbers of lines");
    }
    if hunk.old.0.checked_add_signed(moved) != Some(hunk.new.0) {
        return wrong("the header has another place");
    }
    let start = hunk.new.0 - 1;
    let Some(there) = file.get(start..start + old.len()) else {
        return wrong("beyond the end of the file");
    };
    let mut rests_on = Vec::new();
    for ((known, number), text) in there.iter().zip(&old) {
        let Some(number) = number else {
            return wrong("rests on a line that the series added");
        };
        if known.as_deref() != Some(sha256(text).as_str()) {
            return wrong(&format!("line {number} of the file is not {text:?}"));
        }
        rests_on.push(*number);
    }
    let mut there = there.iter().cloned();
    let mut after = Vec::new();
    for line in &hunk.lines {
        match line.strip_prefix('+') {
            Some(text) => after.push((Some(sha256(text)), None)),
            None => {
                let old = there.next().expect("counted above");
                if line.starts_with(' ') {
                    after.push(old);
                }
            }
        }
    }
    file.splice(start..start + old.len(), after);
    Ok(rests_on)
}

/// Applies a series to a record. Every line near a hunk must be in it, and no two hunks may rest
/// on one line.
fn apply(hunks: &[Hunk], record: &Record) -> Result<(), String> {
    let mut files: BTreeMap<&str, Vec<Line>> = record
        .iter()
        .map(|(name, f)| {
            let line = |n| (f.known.get(&n).cloned(), Some(n));
            (name.as_str(), (1..=f.lines).map(line).collect())
        })
        .collect();
    let mut moved: BTreeMap<(&str, &str), isize> = BTreeMap::new();
    let mut taken = BTreeSet::new();
    let mut near = BTreeSet::new();
    for hunk in hunks {
        let Some(file) = files.get_mut(hunk.file.as_str()) else {
            return Err(format!("{} is not in the record", hunk.file));
        };
        let moved = moved.entry((&hunk.patch, &hunk.file)).or_default();
        let rests_on = apply_hunk(hunk, *moved, file)?;
        *moved += hunk.new.1.checked_signed_diff(hunk.old.1).expect("sizes");
        for number in &rests_on {
            if !taken.insert((&hunk.file, *number)) {
                return Err(format!("two hunks rest on {}:{number}", hunk.file));
            }
        }
        let (first, last) = (rests_on[0], rests_on[rests_on.len() - 1]);
        let of = &record[&hunk.file];
        for number in first.saturating_sub(AROUND).max(1)..=(last + AROUND).min(of.lines) {
            near.insert((hunk.file.as_str(), number));
            if !of.known.contains_key(&number) {
                return Err(format!("{}:{number} is not in the record", hunk.file));
            }
        }
    }
    let known = |(name, f): (&_, &Recorded)| f.known.len() - count(&near, name);
    match record.iter().map(known).sum::<usize>() {
        0 => Ok(()),
        n => Err(format!("{n} lines of the record are near no hunk")),
    }
}

fn count(near: &BTreeSet<(&str, usize)>, name: &String) -> usize {
    near.iter().filter(|(file, _)| file == name).count()
}

#[test]
fn each_series_applies_to_its_record() {
    for release in releases() {
        let hunks = read_series(&release);
        assert!(!hunks.is_empty(), "{}: no hunks", release.display());
        if let Err(why) = apply(&hunks, &read_record(&release)) {
            panic!("{}: {why}", release.display());
        }
    }
}

/// Each record comes from whole files, and says which.
#[test]
fn records_name_versions_and_lengths() {
    for release in releases() {
        for (name, file) in read_record(&release) {
            assert!(!file.version.is_empty(), "{name}");
            assert!(file.characters > file.lines, "{name}");
            assert_eq!(file.whole.len(), 64, "{name}");
        }
    }
}

/// One tab too many or too few in a line of a patch is noticed, whichever line it is.
#[test]
fn a_tab_more_in_a_patch_is_noticed() {
    let mut tried = 0;
    for release in releases() {
        let (hunks, record) = (read_series(&release), read_record(&release));
        for (at, hunk) in hunks.iter().enumerate() {
            for (row, line) in hunk.lines.iter().enumerate() {
                if line.starts_with('+') {
                    continue;
                }
                let mut wrong = vec![format!("{line}\t")];
                if let Some(tab) = line.find('\t') {
                    wrong.push(format!("{}\t{}", &line[..tab], &line[tab..]));
                    wrong.push(format!("{}{}", &line[..tab], &line[tab + 1..]));
                }
                for wrong in wrong {
                    let mut hunks = hunks.clone();
                    hunks[at].lines[row].clone_from(&wrong);
                    apply(&hunks, &record).expect_err(&wrong);
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 100, "{tried} mistakes tried");
}

/// The same mistake in the record is noticed: where a hunk rests on the line by its hash, and
/// anywhere near one if the line is left out or stands at another number.
#[test]
fn a_tab_more_in_a_record_is_noticed() {
    for release in releases() {
        let (hunks, record) = (read_series(&release), read_record(&release));
        for hunk in &hunks {
            for line in hunk.lines.iter().filter(|l| !l.starts_with('+')) {
                let (right, wrong) = (sha256(&line[1..]), sha256(&format!("{}\t", &line[1..])));
                let mut record = record.clone();
                let known = &mut record.get_mut(&hunk.file).expect("in the record").known;
                for hash in known.values_mut().filter(|h| **h == right) {
                    hash.clone_from(&wrong);
                }
                apply(&hunks, &record).expect_err(line);
            }
        }
        for (name, file) in &record {
            for number in file.known.keys() {
                let mut record = record.clone();
                record
                    .get_mut(name)
                    .expect("in the record")
                    .known
                    .remove(number);
                apply(&hunks, &record).expect_err("a line is missing");
            }
        }
    }
}

/// A hunk whose header has another place is noticed, though `patch` would find the lines.
#[test]
fn a_header_with_another_place_is_noticed() {
    for release in releases() {
        let (hunks, record) = (read_series(&release), read_record(&release));
        for at in 0..hunks.len() {
            let mut hunks = hunks.clone();
            hunks[at].old.0 += 1;
            hunks[at].new.0 += 1;
            apply(&hunks, &record).expect_err("another place");
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
