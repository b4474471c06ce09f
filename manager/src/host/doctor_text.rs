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
    let _ = match (can_mass_restore(checks), warnings) {
        (true, 0) => writeln!(text, "\nThis host is ready for mass restore."),
        (true, n) => writeln!(
            text,
            "\nThis host can do mass restore; {n} could be better."
        ),
        (false, _) => writeln!(text, "\nThis host is not ready: {fails} in the way."),
    };
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
