//! Drawing of the display: a few lines for the host, the pools, restores in flight, and as many
//! guests as there is room for.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Margin, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Clear, Gauge, Paragraph, Row, Sparkline, Wrap},
};

use super::{
    fit::{Fit, columns},
    format::percent,
    picture::Picture,
    text,
    view::Display,
};
use crate::types::{Guest, RestoreEvent};
use brood_core::{escaped, guests::GuestState};

/// Rows of pools, and of restores, that are shown at most while guests need the room.
const POOLS: usize = 6;
const RESTORES: usize = 3;
/// Memory that is used from which on it is shown as a warning, in hundredths.
const FULL: u64 = 90;
/// Columns from which on there is room for whole paths.
const ROOMY: u16 = 110;
/// Columns of the curve beside the guests' line, at least.
const CURVE: u16 = 8;
/// Columns that are left out, in this order, where there is no room for all: of pools MEAN MS and
/// FILLING, of guests SHARED and PID.
const POOL_COLUMNS_TO_SPARE: [usize; 2] = [9, 4];
const GUEST_COLUMNS_TO_SPARE: [usize; 2] = [3, 4];

const ACCENT: Style = Style::new().fg(Color::Cyan);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);

/// Draws it all.
pub(crate) fn draw(frame: &mut Frame<'_>, display: &Display) {
    let area = frame.area();
    let Some(picture) = &display.picture else {
        let text = display.trouble.as_deref().unwrap_or("looking ...");
        frame.render_widget(Paragraph::new(text), area);
        return;
    };
    let pools = picture.pools.len().min(POOLS);
    let restores = picture.restores.len().min(RESTORES);
    let rows = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let with_head = |n: usize| if n == 0 { 0 } else { rows(n) + 2 };
    let [title, host, density, pool, restore, guests, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(2),
        Constraint::Length(with_head(pools)),
        Constraint::Length(with_head(restores).saturating_sub(1)),
        Constraint::Min(2),
        Constraint::Length(1),
    ])
    .areas(area);
    self::title(frame, title, display, picture);
    self::host(frame, host, picture);
    self::density(frame, density, display, picture);
    self::pools(frame, pool, picture);
    self::restores(frame, restore, picture);
    self::guests(frame, guests, display, picture);
    self::foot(frame, foot, display);
    if display.help {
        help(frame, area);
    }
}

fn title(frame: &mut Frame<'_>, area: Rect, display: &Display, picture: &Picture) {
    let time = picture.at.get(11..19).unwrap_or_default();
    let by = match picture.daemon {
        Some(pid) => format!("with the daemon {pid}"),
        None => "without a daemon".to_owned(),
    };
    let mut line = vec![
        "brood top".bold().cyan(),
        format!("  {time} UTC  {by}").into(),
    ];
    if display.paused {
        line.push("  ".into());
        line.push(" stands still ".reversed());
    }
    frame.render_widget(Line::from(line), area);
    frame.render_widget(
        Line::from("? help").style(DIM).alignment(Alignment::Right),
        area,
    );
}

fn host(frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
    let host = &picture.host;
    let used = host
        .memory_total_bytes
        .saturating_sub(host.memory_available_bytes);
    let lines = [
        (text::memory(picture), used, host.memory_total_bytes),
        (text::tasks(picture), host.tasks, host.pid_max),
    ];
    let widest = lines.iter().map(|(words, ..)| columns(words)).max();
    for ((words, part, whole), row) in lines.iter().zip(area.rows()) {
        let (part, whole) = (*part, *whole);
        let words_wide = Constraint::Length(widest.unwrap_or(0));
        let [left, right] = Layout::horizontal([words_wide, Constraint::Min(8)])
            .spacing(1)
            .areas(row);
        frame.render_widget(words.as_str(), left);
        let used = percent(part, whole);
        let color = if used >= FULL {
            Color::Red
        } else {
            Color::Cyan
        };
        let gauge = Gauge::default()
            .ratio((part as f64 / whole.max(1) as f64).clamp(0.0, 1.0))
            .label("")
            .use_unicode(true)
            .gauge_style(Style::new().fg(color).bg(Color::DarkGray));
        frame.render_widget(gauge, right);
    }
}

/// Two lines: words that are too long for one go on in the second.
fn density(frame: &mut Frame<'_>, area: Rect, display: &Display, picture: &Picture) {
    let words = text::guests(picture);
    let [left, right] =
        Layout::horizontal([Constraint::Max(columns(&words)), Constraint::Min(CURVE)])
            .spacing(1)
            .areas(area);
    frame.render_widget(Paragraph::new(words).wrap(Wrap { trim: true }), left);
    let newest = display.history.iter().rev().take(right.width.into());
    let mut bytes: Vec<u64> = newest.copied().collect();
    bytes.reverse();
    frame.render_widget(Sparkline::default().data(bytes).style(ACCENT), right);
}

fn pools(frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
    let cells: Vec<Vec<String>> = picture.pools.iter().take(POOLS).map(text::pool).collect();
    let area = below(area);
    let fit = Fit::new(&text::POOLS, &cells, area.width, &POOL_COLUMNS_TO_SPARE);
    let rows = picture.pools.iter().zip(cells).map(|(line, cells)| {
        let short = line.pool.entries.hot < line.pool.settings.policy.hot;
        let row = Row::new(fit.chosen(cells));
        if short { row.yellow() } else { row }
    });
    frame.render_widget(fit.table(rows, &text::POOLS), area);
}

fn restores(frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
    let lines = picture.restores.iter().take(RESTORES).map(|event| {
        let what = Span::styled("restoring ", ACCENT);
        Line::from(vec![what, restore(event).into()])
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), below(area));
}

/// How a restore comes along, in words.
pub(super) fn restore(event: &RestoreEvent) -> String {
    let what = match &event.pool {
        Some(pool) => format!("pool {pool}"),
        None => escaped::line(&event.checkpoint).into_owned(),
    };
    let failed = match event.failed {
        0 => String::new(),
        n => format!(", {n} failed"),
    };
    format!("{what}: {} of {}{failed}", event.restored, event.asked)
}

fn guests(frame: &mut Frame<'_>, area: Rect, display: &Display, picture: &Picture) {
    let all = display.guests();
    let area = below(area);
    let shown = || all.iter().skip(display.skip).take(area.height.into());
    let cells: Vec<Vec<String>> = shown()
        .map(|guest| {
            let last = guest.reason.clone().unwrap_or_else(|| from(guest, area));
            text::guest(picture, guest, &last)
        })
        .collect();
    let fit = Fit::new(&text::GUESTS, &cells, area.width, &GUEST_COLUMNS_TO_SPARE);
    let rows = shown().zip(cells).map(|(guest, cells)| {
        let style = match guest.state {
            GuestState::Running => Style::new(),
            GuestState::Paused => DIM,
            GuestState::Restoring => ACCENT,
            GuestState::Dead => Style::new().fg(Color::Red),
        };
        Row::new(fit.chosen(cells)).style(style)
    });
    frame.render_widget(fit.table(rows, &text::GUESTS), area);
}

/// A guest's checkpoint; its name alone where there is not much room.
fn from(guest: &Guest, area: Rect) -> String {
    let path = &guest.checkpoint;
    if area.width >= ROOMY {
        return path.clone();
    }
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

fn foot(frame: &mut Frame<'_>, area: Rect, display: &Display) {
    let all = display.guests().len();
    let order = if display.reverse { ", reversed" } else { "" };
    let mut line = vec![format!("by {}{order}", display.sort.name()).into()];
    if display.typing || !display.filter.is_empty() {
        line.push(format!("  /{}", display.filter).cyan());
        if display.typing {
            line.push("_".slow_blink());
        }
    }
    let first = if all == 0 { 0 } else { display.skip + 1 };
    line.push(format!("  from {first} of {all}").into());
    if let Some(trouble) = &display.trouble {
        line.push(format!("  {trouble}").red());
    }
    frame.render_widget(Line::from(line).style(DIM), area);
}

/// Leaves one line free above.
fn below(area: Rect) -> Rect {
    Rect {
        y: area.y.saturating_add(1).min(area.bottom()),
        height: area.height.saturating_sub(1),
        ..area
    }
}

const KEYS: [(&str, &str); 8] = [
    ("q, Ctrl-C", "quit"),
    ("s", "sort by the next column"),
    ("r", "sort the other way around"),
    ("/", "show only guests with a text; Esc takes it away"),
    ("p, space", "let the display stand still, or go on"),
    ("up, down", "move through the guests"),
    ("PgUp, PgDn", "move by ten"),
    ("Home, End", "to the first, to the last"),
];

fn help(frame: &mut Frame<'_>, area: Rect) {
    let lines: Vec<Line<'_>> = KEYS
        .iter()
        .map(|(key, what)| Line::from(vec![format!("{key:<12}").cyan(), (*what).into()]))
        .chain([
            Line::from(""),
            Line::from("MiB each: memory that a guest has written, its process, page tables,"),
            Line::from("and the kernel's, as `density` found it or as guests cost in general."),
            Line::from("Claims and restores are those that the daemon does."),
        ])
        .collect();
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX) + 2;
    let width = area.width.min(72);
    let [_, middle, _] = Layout::vertical([
        Constraint::Fill(1),
        Constraint::Length(height.min(area.height)),
        Constraint::Fill(1),
    ])
    .areas(area);
    let [_, middle, _] = Layout::horizontal([
        Constraint::Fill(1),
        Constraint::Length(width),
        Constraint::Fill(1),
    ])
    .areas(middle);
    frame.render_widget(Clear, middle);
    frame.render_widget(
        Block::bordered().title(" keys ").border_style(ACCENT),
        middle,
    );
    frame.render_widget(Paragraph::new(lines), middle.inner(Margin::new(2, 1)));
}

#[cfg(test)]
mod tests;
