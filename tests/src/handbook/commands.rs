//! Command lines in documents, and the rule that checks each.

use std::{path::Path, process::Command};

use super::{
    Block, Checker,
    known::{self, Known},
};

/// The commands of a line: what stands between `|`, `&&` and `;`, without redirections.
fn split(line: &str) -> Option<Vec<Vec<String>>> {
    let mut commands = vec![Vec::new()];
    let mut words = shlex::split(line)?.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "|" | "||" | "&&" | ";" | "&" => commands.push(Vec::new()),
            ">" | ">>" | "<" => drop(words.next()),
            other if other.starts_with(['>', '<']) => {}
            other => match other.strip_suffix(';') {
                Some(last) => {
                    commands.last_mut()?.push(last.to_owned());
                    commands.push(Vec::new());
                }
                None => commands.last_mut()?.push(word),
            },
        }
    }
    commands.retain(|words| !words.is_empty());
    Some(commands)
}

impl Checker {
    /// Checks each line of a block; one that ends with a backslash goes on in the next.
    pub(super) fn commands(&mut self, block: &Block, table: &[Known]) {
        let mut whole = String::new();
        for (text, line) in block.text.lines().zip(block.line..) {
            if let Some(begun) = text.strip_suffix('\\') {
                whole += begun;
                continue;
            }
            whole += text;
            match split(&whole) {
                Some(commands) => {
                    for words in commands {
                        self.command(line, &words, table);
                    }
                }
                None => self.mistake(line, format!("a quote is not closed: {whole}")),
            }
            whole.clear();
        }
    }

    /// Checks a command by its rule.
    pub(super) fn command(&mut self, line: usize, words: &[String], table: &[Known]) {
        let Some((name, arguments)) = words.split_first() else {
            return;
        };
        let checked = match name.as_str() {
            "brood" => brood::cli::grammar()
                .try_get_matches_from(words)
                .map(drop)
                .map_err(|e| e.to_string()),
            tool if tool.starts_with("tools/") => self.tool(tool, arguments),
            "kldload" | "kldunload" => modules(arguments),
            standin if brood_standin::COMMANDS.contains(&standin) => {
                let here: Vec<String> = arguments.iter().map(|word| self.here(word)).collect();
                brood_standin::accepts(&self.world, standin, &here)
            }
            other => known::check(table, other, arguments),
        };
        if let Err(why) = checked {
            self.mistake(line, format!("{}: {}", words.join(" "), why.trim_end()));
        }
    }

    /// Where a path of the document is for the check.
    fn here(&self, word: &str) -> String {
        let found = self.files.iter().find(|(path, _)| path == word);
        found.map_or_else(|| word.to_owned(), |(_, here)| here.display().to_string())
    }

    /// A tool of this repository: it exists, and its help has each option and word.
    fn tool(&self, tool: &str, arguments: &[String]) -> Result<(), String> {
        let path = self.repository.join(tool);
        let output = Command::new(&path).arg("--help").output();
        let output = output.map_err(|e| format!("cannot run it: {e}"))?;
        if !output.status.success() {
            return Err(format!("--help: {}", output.status));
        }
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let known = |word: &str| help.split(|c| !is_part(c)).any(|other| other == word);
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            if !known(word) {
                return Err(format!("its help does not know {word}"));
            }
            // The option's argument, which help shows in capitals.
            let of_option = help
                .lines()
                .filter_map(|l| l.trim().strip_prefix(word.as_str()));
            let takes = |rest: &str| {
                let next = rest.strip_prefix(' ').and_then(|rest| rest.chars().next());
                next.is_some_and(|c| c.is_ascii_uppercase())
            };
            if word.starts_with('-') && of_option.into_iter().any(takes) && words.next().is_none() {
                return Err(format!("{word} lacks its argument"));
            }
        }
        Ok(())
    }
}

/// kldload(8) and kldunload(8): modules by their names or files.
fn modules(arguments: &[String]) -> Result<(), String> {
    if arguments.is_empty() {
        return Err("which module?".to_owned());
    }
    for module in arguments {
        let stem = Path::new(module).file_stem().unwrap_or_default();
        if !known::MODULES.iter().any(|known| stem == *known) {
            return Err(format!("{module} is no module that is known"));
        }
    }
    Ok(())
}
