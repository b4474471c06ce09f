//! Control characters: what a terminal acts on.

/// Whether a terminal would act on a text.
#[must_use]
pub fn acts_on_terminal(text: &str) -> bool {
    text.chars()
        .any(|c| (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}'))
}
