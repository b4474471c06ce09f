//! Text form of a picture.

use std::fmt::Write;

use super::{
    format::{age, bytes, ms, percent, private, shared},
    picture::Picture,
    view::{Sort, chosen},
};
use crate::types::Guest;
use brood_core::{escaped, guests::GuestState, units::Bytes};

/// The picture; guests in this order, and of those only the ones that the filter lets through.
pub(crate) fn render(picture: &Picture, sort: Sort, filter: &str) -> String {
    let mut text = String::new();
    let mut say = |line: std::fmt::Arguments<'_>| {
        writeln!(text, "{line}").expect("writing to a string cannot fail");
    };
    say(format_args!("{}", memory(picture)));
    say(format_args!("{}", tasks(picture)));
    say(format_args!("{}", guests(picture)));
    for restore in &picture.restores {
        say(format_args!("restoring {}", super::draw::restore(restore)));
    }
    if !picture.pools.is_empty() {
        say(format_args!(""));
        let rows = picture.pools.iter().map(pool).collect::<Vec<_>>();
        say(format_args!("{}", table(&POOLS, &rows)));
    }
    let chosen = chosen(&picture.guests, sort, false, filter);
    if !chosen.is_empty() {
        say(format_args!(""));
        let rows = chosen
            .iter()
            .map(|guest| self::guest(picture, guest, &guest.checkpoint));
        say(format_args!(
            "{}",
            table(&GUESTS, &rows.collect::<Vec<_>>())
        ));
    }
    text
}

/// Columns of guests.
pub(super) const GUESTS: [&str; 7] = [
    "NAME",
    "STATE",
    "PRIVATE",
    "SHARED",
    "PID",
    "AGE",
    "CHECKPOINT",
];

/// Columns of pools.
pub(super) const POOLS: [&str; 10] = [
    "POOL",
    "HOT",
    "CLAIMED",
    "SUSPENDED",
    "FILLING",
    "CLAIMS",
    "PER S",
    "P50 MS",
    "P99 MS",
    "MEAN MS",
];

/// A guest's row, with what is said of it last.
pub(super) fn guest(picture: &Picture, guest: &Guest, last: &str) -> Vec<String> {
    let pid = guest.pid.map(|pid| pid.to_string());
    vec![
        guest.name.clone(),
        guest.state.name().to_owned(),
        bytes(private(guest)),
        bytes(shared(guest)),
        pid.unwrap_or_else(|| "-".to_owned()),
        picture.age_s(guest).map(age).unwrap_or_default(),
        escaped::line(last).into_owned(),
    ]
}

/// A pool's row.
pub(super) fn pool(line: &super::picture::PoolLine) -> Vec<String> {
    let (row, entries, claims) = (&line.pool.settings, &line.pool.entries, line.claims);
    let dash = || "-".to_owned();
    vec![
        row.name.clone(),
        format!("{}/{}", entries.hot, row.policy.hot),
        entries.claimed.to_string(),
        entries.suspended.to_string(),
        entries.filling.to_string(),
        claims.map_or_else(dash, |c| c.total.to_string()),
        claims
            .and_then(|c| c.per_second)
            .map_or_else(dash, |rate| format!("{rate:.1}")),
        ms(claims.and_then(|c| c.p50_ms)),
        ms(claims.and_then(|c| c.p99_ms)),
        ms(claims.and_then(|c| c.mean_ms)),
    ]
}

/// The host's memory in words.
pub(super) fn memory(picture: &Picture) -> String {
    let host = &picture.host;
    let used = host
        .memory_total_bytes
        .saturating_sub(host.memory_available_bytes);
    format!(
        "memory  {} available of {}, {}% used",
        Bytes(host.memory_available_bytes),
        Bytes(host.memory_total_bytes),
        percent(used, host.memory_total_bytes)
    )
}

/// The host's tasks in words.
pub(super) fn tasks(picture: &Picture) -> String {
    let host = &picture.host;
    format!(
        "tasks   {} of {}, {} left",
        host.tasks,
        host.pid_max,
        host.pid_max.saturating_sub(host.tasks)
    )
}

/// Guests by state, and what they cost, in words.
pub(super) fn guests(picture: &Picture) -> String {
    let mut text = format!("guests  {}", picture.guests.len());
    let states = [
        GuestState::Running,
        GuestState::Paused,
        GuestState::Restoring,
        GuestState::Dead,
    ];
    let counts: Vec<String> = states
        .into_iter()
        .filter(|state| picture.count(*state) > 0)
        .map(|state| format!("{} {}", picture.count(state), state.name()))
        .collect();
    if !counts.is_empty() {
        text += &format!(": {}", counts.join(", "));
    }
    if picture.density.guests > 0 {
        text += &format!(", {:.3} MiB each", picture.density.mib_per_guest);
    }
    text
}

fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(header[column].len())
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut header.iter().copied())];
    lines.extend(
        rows.iter()
            .map(|row| line(&mut row.iter().map(String::as_str))),
    );
    lines.join("\n")
}
