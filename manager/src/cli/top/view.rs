//! View of `brood top`: the order of guests, a filter, whether the display stands still.

use std::{cmp::Reverse, collections::VecDeque};

use clap::ValueEnum;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{format, picture::Picture};
use crate::types::Guest;

/// Samples of the density that are kept: as many as the widest line may show.
const HISTORY: usize = 400;
/// Guests that a page key moves by.
const PAGE: usize = 10;

/// What guests are sorted by: memory that each has to itself, or shares (most first), name, state,
/// or when it was restored (newest first).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    #[default]
    Private,
    Shared,
    Name,
    State,
    Restored,
}

impl Sort {
    /// The word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Shared => "shared",
            Self::Name => "name",
            Self::State => "state",
            Self::Restored => "restored",
        }
    }

    fn next(self) -> Self {
        let all = Self::value_variants();
        let at = all.iter().position(|sort| *sort == self).unwrap_or(0);
        all[(at + 1) % all.len()]
    }
}

/// The effect of a key on the display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyOutcome {
    /// It goes on.
    Go,
    /// It ends.
    Quit,
}

/// What is shown, and how.
#[derive(Debug, Default)]
pub(crate) struct Display {
    /// The last picture, unless the display stands still.
    pub(crate) picture: Option<Picture>,
    /// Bytes that each guest has to itself, on average; the newest last.
    pub(crate) history: VecDeque<u64>,
    /// What guests are sorted by.
    pub(crate) sort: Sort,
    /// The other way around.
    pub(crate) reverse: bool,
    /// Only guests that have this in their name, state or checkpoint.
    pub(crate) filter: String,
    /// Whether the filter is being typed.
    pub(crate) typing: bool,
    /// Whether the display stands still.
    pub(crate) paused: bool,
    /// Whether the keys are explained.
    pub(crate) help: bool,
    /// Guests that are passed over at the top.
    pub(crate) skip: usize,
    /// Why there is no new picture.
    pub(crate) trouble: Option<String>,
}

impl Display {
    /// There is a new picture.
    pub(crate) fn update(&mut self, picture: Picture) {
        if self.paused {
            return;
        }
        let density = picture.density;
        self.history
            .extend(density.own_bytes.checked_div(density.guests));
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        self.trouble = None;
        self.picture = Some(picture);
    }

    /// Guests as they are to be shown.
    pub(crate) fn guests(&self) -> Vec<&Guest> {
        let Some(picture) = &self.picture else {
            return Vec::new();
        };
        chosen(&picture.guests, self.sort, self.reverse, &self.filter)
    }

    /// A key was pressed.
    pub(crate) fn key(&mut self, key: KeyEvent) -> KeyOutcome {
        if key.kind == KeyEventKind::Release {
            return KeyOutcome::Go;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return KeyOutcome::Quit;
        }
        if self.typing {
            match key.code {
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => {
                    self.typing = false;
                    self.filter.clear();
                }
                KeyCode::Backspace => {
                    self.filter.pop();
                }
                KeyCode::Char(c) => self.filter.push(c),
                _ => {}
            }
            self.skip = 0;
            return KeyOutcome::Go;
        }
        if self.help {
            self.help = false;
            return KeyOutcome::Go;
        }
        let last = self.guests().len().saturating_sub(1);
        match key.code {
            KeyCode::Char('q') => return KeyOutcome::Quit,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('r') => self.reverse = !self.reverse,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Down | KeyCode::Char('j') => self.skip = (self.skip + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.skip = self.skip.saturating_sub(1),
            KeyCode::PageDown => self.skip = (self.skip + PAGE).min(last),
            KeyCode::PageUp => self.skip = self.skip.saturating_sub(PAGE),
            KeyCode::Home => self.skip = 0,
            KeyCode::End => self.skip = last,
            _ => {}
        }
        KeyOutcome::Go
    }
}

/// Guests that have `filter` in their name, state or checkpoint, sorted.
pub(crate) fn chosen<'a>(
    guests: &'a [Guest],
    sort: Sort,
    reverse: bool,
    filter: &str,
) -> Vec<&'a Guest> {
    let wanted = |guest: &&Guest| {
        let texts = [&guest.name, guest.state.name(), &guest.checkpoint];
        texts.iter().any(|text| text.contains(filter))
    };
    let mut chosen: Vec<&Guest> = guests.iter().filter(wanted).collect();
    match sort {
        Sort::Private => chosen.sort_by_key(|guest| Reverse(format::private(guest))),
        Sort::Shared => chosen.sort_by_key(|guest| Reverse(format::shared(guest))),
        Sort::Name => chosen.sort_by(|a, b| by_number(&a.name).cmp(&by_number(&b.name))),
        Sort::State => chosen.sort_by_key(|guest| guest.state),
        Sort::Restored => chosen.sort_by(|a, b| b.created_at.cmp(&a.created_at)),
    }
    if reverse {
        chosen.reverse();
    }
    chosen
}

/// A name such that `web-9` comes before `web-10`.
fn by_number(name: &str) -> (&str, u64) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (stem, name[stem.len()..].parse().unwrap_or(0))
}
