//! Text of `brood doctor`: the checks as an aligned table with marks.

use std::fmt::Write;

use super::doctor::{Check, Status, can_mass_restore};
use crate::escaped;

/// Maximum width of the columns of names and values, so that a long path or list of options does
/// not push the last column off the screen.
const WIDEST: (usize, usize) = (32, 48);
/// What a mark and the space behind it take.
const MARK: usize = 2;

/// Renders the checks, one a line, each hint below its check, and a last line with the outcome.
/// With `color`, marks are coloured by ANSI escapes: all that a terminal acts on in names of
/// folders is written out, so that they are the only ones. Lines are wrapped to `width` columns, if that
/// is known, and go on below the column that they belong to.
#[must_use]
pub fn render(checks: &[Check], color: bool, width: Option<usize>) -> String {
    let checks: Vec<Check> = checks.iter().map(escaped).collect();
    let widest = |column: fn(&Check) -> &str, most: usize| {
        let cells = checks.iter().map(|check| column(check).chars().count());
        cells.max().unwrap_or(0).min(most)
    };
    let name = widest(|c| &c.name, WIDEST.0);
    let found = widest(|c| &c.found, WIDEST.1);
    // Continuation lines and hints begin where the second column does.
    let indent = MARK + name + 2;
    let mut text = String::new();
    for check in &checks {
        let need = match check.need.as_str() {
            "" => String::new(),
            need => format!("need {need}"),
        };
        let row = format!("{:name$}  {:found$}  {need}", check.name, check.found);
        let row = row.trim_end();
        let mark = mark(check, color);
        if width.is_none_or(|width| MARK + row.chars().count() <= width) {
            let _ = writeln!(text, "{mark} {row}");
        } else {
            let first = format!("{:name$}  {}", check.name, check.found);
            let _ = writeln!(text, "{mark} {}", wrapped(&first, MARK, indent, width));
            if !need.is_empty() {
                let need = wrapped(&need, indent, indent, width);
                let _ = writeln!(text, "{:indent$}{need}", "");
            }
        }
        if let Some(hint) = &check.hint {
            let hint = wrapped(hint, indent + 2, indent + 2, width);
            let _ = writeln!(text, "{:indent$}→ {hint}", "");
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (fails, warnings) = (count(Status::Fail), count(Status::Warn));
    let outcome = match (can_mass_restore(&checks), fails, warnings) {
        (true, _, 0) => "is ready for mass restore.".to_owned(),
        (true, _, 1) => "can do mass restore; one thing could be better.".to_owned(),
        (true, _, n) => format!("can do mass restore; {n} things could be better."),
        (false, 1, _) => "is not ready: one thing stands in the way.".to_owned(),
        (false, n, _) => format!("is not ready: {n} things stand in the way."),
    };
    let _ = writeln!(text, "\nThis host {outcome}");
    text
}

fn escaped(check: &Check) -> Check {
    let line = |text: &str| escaped::line(text).into_owned();
    Check {
        name: line(&check.name),
        status: check.status,
        found: line(&check.found),
        need: line(&check.need),
        hint: check.hint.as_deref().map(line),
    }
}

/// `text` in lines of at most `width` columns: the first begins at column `begin`, the others at
/// `indent`. Words are kept whole, however long.
fn wrapped(text: &str, begin: usize, indent: usize, width: Option<usize>) -> String {
    let Some(width) = width else {
        return text.to_owned();
    };
    let mut lines = String::new();
    let mut column = begin;
    for (place, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        let fits = column + usize::from(place > 0) + length <= width;
        if place > 0 && !fits && !word.is_empty() {
            let kept = lines.trim_end().len();
            lines.truncate(kept);
            let _ = write!(lines, "\n{:indent$}", "");
            column = indent;
        } else if place > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines
}

/// A fact that is only told has a mark that says neither yes nor no.
fn mark(check: &Check, color: bool) -> String {
    let (mark, code) = match check.status {
        Status::Ok if check.need.is_empty() => ("·", 2),
        Status::Ok => ("✓", 32),
        Status::Warn => ("!", 33),
        Status::Fail => ("✗", 31),
    };
    if color {
        format!("\x1b[{code}m{mark}\x1b[0m")
    } else {
        mark.to_owned()
    }
}
