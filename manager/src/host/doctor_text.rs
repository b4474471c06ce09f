//! The checks of `brood doctor` as an aligned table with marks.

use std::fmt::Write;

use super::doctor::{Check, Status, can_mass_restore};

/// Renders the checks, one a line, each hint below its check, and a last line with the outcome.
/// With `color`, marks are coloured by ANSI escapes.
#[must_use]
pub fn render(checks: &[Check], color: bool) -> String {
    let width = |column: fn(&Check) -> &str| {
        checks
            .iter()
            .map(|check| column(check).chars().count())
            .max()
            .unwrap_or(0)
    };
    // A long path or list of options does not push the last column off the screen.
    let (name, found) = (width(|c| &c.name).min(32), width(|c| &c.found).min(48));
    let mut text = String::new();
    for check in checks {
        let mark = mark(check.status, color);
        let need = match check.need.as_str() {
            "" => String::new(),
            need => format!("need {need}"),
        };
        let line = format!(
            "{mark} {:name$}  {:found$}  {need}",
            check.name, check.found
        );
        let _ = writeln!(text, "{}", line.trim_end());
        if let Some(hint) = &check.hint {
            let _ = writeln!(text, "  {:name$}  → {hint}", "");
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (fails, warnings) = (count(Status::Fail), count(Status::Warn));
    let outcome = match (can_mass_restore(checks), fails, warnings) {
        (true, _, 0) => "is ready for mass restore.".to_owned(),
        (true, _, 1) => "can do mass restore; one thing could be better.".to_owned(),
        (true, _, n) => format!("can do mass restore; {n} things could be better."),
        (false, 1, _) => "is not ready: one thing stands in the way.".to_owned(),
        (false, n, _) => format!("is not ready: {n} things stand in the way."),
    };
    let _ = writeln!(text, "\nThis host {outcome}");
    text
}

fn mark(status: Status, color: bool) -> String {
    let (mark, code) = match status {
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
