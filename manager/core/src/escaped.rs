//! Escaped text: words of guests and file systems made safe for a terminal, without characters that
//! a terminal acts on, or that change the order of the text around them.

use std::{borrow::Cow, fmt::Write};

/// Control characters (C0, DEL and C1), and those that change the order, the breaks or the width of
/// lines.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// `text` with unprintable characters written as `\u{1b}`. Line feeds and tabs stay: single lines
/// of guests and folders are escaped before they are joined.
pub fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_unprintable(c) && !matches!(c, '\n' | '\t'))
}

/// The same in one line.
pub fn line(text: &str) -> Cow<'_, str> {
    escape(text, is_unprintable)
}

/// The same of a line whose colours stay.
pub fn colored_line(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_unprintable(c) && c != '\u{1b}')
}

fn escape(text: &str, is_bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_bad) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_bad(c) {
            escaped.extend(c.escape_unicode());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// JSON with unprintable characters written as `\u009b`. These occur only in strings: outside of
/// them JSON has none but line feeds.
pub fn json(text: &str) -> Cow<'_, str> {
    let is_bad = |c: char| is_unprintable(c) && c != '\n';
    if !text.contains(is_bad) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_bad(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                write!(escaped, "\\u{unit:04x}").expect("a string takes everything");
            }
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_acts_on_is_left() {
        let hostile = "a\u{1b}]0;x\u{7}\u{9b}31m\u{202e}\r\0b\u{7f}\u{2028}c";
        for shown in [line(hostile), lines(hostile), json(hostile)] {
            assert!(!shown.contains(is_unprintable), "{shown}");
        }
        assert_eq!(line("a\nb"), "a\\u{a}b");
        assert_eq!(lines("a\n\tb"), "a\n\tb");
        assert!(matches!(line("plain – ü 漢"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_says_the_same_as_before() {
        let said = "\u{1b}\u{9b}\u{202e}\u{85}\u{feff} ü";
        let text = serde_json::to_string(said).unwrap();
        assert_eq!(serde_json::from_str::<String>(&json(&text)).unwrap(), said);
    }
}
