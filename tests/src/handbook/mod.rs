//! Check of a document whose commands are for a machine that is not here: FreeBSD.
//!
//! Every block of code has a kind, and every line of it a rule: brood's own grammar, a stand-in
//! that refuses what the real command refuses, the help of a tool of this repository, or an entry
//! in a table that names its source. A line without a rule fails the test, so nothing goes
//! unchecked.

mod commands;
mod known;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use brood_core::engine::bhyve::config::{BhyveConfig, Variables};
use brood_standin::{Release, World};
use tempfile::TempDir;

use crate::standin;

/// Something in a document that is not right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Line of the document, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// A block of code.
#[derive(Clone, Debug)]
pub struct Block {
    /// What follows the backquotes: `sh`, `bhyve PATH` and so on.
    pub kind: String,
    /// Line of the document at which its text begins, from 1.
    pub line: usize,
    /// The text.
    pub text: String,
}

/// The blocks of code of a document in Markdown.
#[must_use]
pub fn blocks(document: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (n, line) in document.lines().enumerate() {
        match (line.trim_end().strip_prefix("```"), open) {
            (Some(kind), false) => {
                open = true;
                blocks.push(Block {
                    kind: kind.to_owned(),
                    line: n + 2,
                    text: String::new(),
                });
            }
            (Some(_), true) => open = false,
            (None, true) => {
                if let Some(block) = blocks.last_mut() {
                    block.text += line;
                    block.text += "\n";
                }
            }
            (None, false) => {}
        }
    }
    blocks
}

/// What commands are checked against: a fake machine, this repository, and the files that the
/// document has its reader write.
struct Checker {
    world: World,
    repository: PathBuf,
    /// Paths of the document, and where they are for the check.
    files: Vec<(String, PathBuf)>,
    mistakes: Vec<Mistake>,
    _dir: TempDir,
}

/// Checks a document that lies in this repository; its commands are taken in their order.
///
/// # Panics
/// When no fake machine can be made.
#[must_use]
pub fn check(document: &str, repository: &Path) -> Vec<Mistake> {
    let dir = TempDir::new().expect("a temporary folder");
    let world = World::create(&dir.path().join("world"), &standin()).expect("a world");
    world.add_pool("tank").expect("a pool");
    world.set_loaded(&known::MODULES).expect("a world");
    let mut checker = Checker {
        world,
        repository: repository.to_owned(),
        files: Vec::new(),
        mistakes: Vec::new(),
        _dir: dir,
    };
    let blocks = blocks(document);
    for block in &blocks {
        if let Some(path) = block.kind.strip_prefix("bhyve ") {
            checker.file(path, &block.text);
        }
    }
    for block in &blocks {
        checker.block(block);
    }
    checker.variables(document);
    checker.mistakes
}

impl Checker {
    fn mistake(&mut self, line: usize, what: impl Into<String>) {
        let what = what.into();
        self.mistakes.push(Mistake { line, what });
    }

    /// Writes a file that the document shows where commands find it.
    fn file(&mut self, path: &str, text: &str) {
        let place = self.world.path(&format!("file{}", self.files.len()));
        fs::write(&place, text).expect("the machine can be written");
        self.files.push((path.to_owned(), place));
    }

    fn block(&mut self, block: &Block) {
        // What 15.0 has not is for hosts of a later release only.
        if let Some(kind) = block.kind.strip_suffix(" 15.1") {
            let kind = kind.to_owned();
            self.world
                .set_release(Release::FifteenOne)
                .expect("a world");
            self.block(&Block {
                kind,
                ..block.clone()
            });
            self.world.set_release(Release::Fifteen).expect("a world");
            return;
        }
        let lines = || block.text.lines().zip(block.line..);
        match block.kind.as_str() {
            "sh" => self.commands(block, known::HOST),
            "sh guest" => self.commands(block, known::GUEST),
            // The test runs it.
            "sh agent" => {}
            "loader.conf" => {
                for (text, line) in lines() {
                    self.loader(line, text);
                }
            }
            "sysctl.conf" => {
                for (text, line) in lines() {
                    let words = ["sysctl".to_owned(), text.to_owned()];
                    self.command(line, &words, known::HOST);
                }
            }
            "src.conf" => {
                let path = self.repository.join("kernel-patches/15.0/src.conf");
                let theirs = fs::read_to_string(path).unwrap_or_default();
                for (text, line) in lines() {
                    if !theirs.lines().any(|other| other == text) {
                        self.mistake(
                            line,
                            format!("{text:?} is not in kernel-patches/15.0/src.conf"),
                        );
                    }
                }
            }
            kind if kind.starts_with("bhyve ") => {
                let variables = block.text.parse::<Variables>();
                if let Err(e) = variables.and_then(BhyveConfig::try_from) {
                    self.mistake(block.line, format!("brood refuses this configuration: {e}"));
                }
            }
            kind => self.mistake(
                block.line,
                format!("there is no rule for blocks of {kind:?}"),
            ),
        }
    }

    /// A line of loader.conf(5).
    fn loader(&mut self, line: usize, text: &str) {
        let pair = text.split_once('=');
        let value = pair.and_then(|(_, value)| value.strip_prefix('"')?.strip_suffix('"'));
        let (Some((name, _)), Some(_)) = (pair, value) else {
            self.mistake(line, format!("{text:?} is not name=\"value\""));
            return;
        };
        let is_known = match name.strip_suffix("_load") {
            Some(module) => known::MODULES.contains(&module),
            None => name == "kernel" || self.is_variable(name),
        };
        if !is_known {
            self.mistake(
                line,
                format!("{name}: neither a module nor a tunable that is known"),
            );
        }
    }

    /// Whether a sysctl(8) variable is one that the stand-in or `brood doctor` knows.
    fn is_variable(&self, name: &str) -> bool {
        let doctor = ["host/freebsd.rs", "host/doctor/freebsd.rs"]
            .iter()
            .any(|file| {
                let text = fs::read_to_string(self.repository.join("manager/core/src").join(file));
                text.is_ok_and(|text| text.contains(&format!("\"{name}\"")))
            });
        let arguments = ["-n".to_owned(), name.to_owned()];
        doctor || brood_standin::accepts(&self.world, "sysctl", &arguments).is_ok()
    }

    /// Every sysctl(8) variable that the document names, wherever it does.
    fn variables(&mut self, document: &str) {
        let part = |c: char| c.is_ascii_alphanumeric() || "._".contains(c);
        for (text, line) in document.lines().zip(1..) {
            for word in text.split(|c| !part(c)) {
                let word = word.trim_end_matches('.');
                let is_one = known::TREES
                    .iter()
                    .any(|tree| word.strip_prefix(tree).is_some_and(|rest| !rest.is_empty()));
                if is_one && !self.is_variable(word) {
                    self.mistake(line, format!("{word}: no sysctl variable that is known"));
                }
            }
        }
    }
}
