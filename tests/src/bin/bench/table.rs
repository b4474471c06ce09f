//! Table of results: for people, for a document, for scripts.

use brood::density::step::Machine;
use serde::Serialize;

use super::{
    goal::{Goal, Row, Verdict},
    spread::Spread,
};

const HEADER: [&str; 6] = ["measured", "goal", "brood", "floor", "ratio", ""];

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    machine: Machine,
    rounds: u32,
    /// The lines.
    pub(crate) rows: Vec<Row>,
}

impl Table {
    /// An empty one.
    pub(crate) fn new(machine: Machine, rounds: u32) -> Self {
        Self {
            machine,
            rounds,
            rows: Vec::new(),
        }
    }

    /// One JSON object.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("a table is plain data")
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let rows = self.cells();
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells
                .chain([HEADER[column].len()])
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let padded: Vec<_> = cells
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            padded.join("  ").trim_end().to_owned() + "\n"
        };
        let mut text = line(&mut HEADER.into_iter());
        for row in &rows {
            text += &line(&mut row.iter().map(String::as_str));
        }
        text + "\n" + &self.footer()
    }

    /// For a document.
    pub(crate) fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut text = line(&HEADER.map(str::to_owned)) + &line(&HEADER.map(|_| "---".to_owned()));
        for row in self.cells() {
            text += &line(&row);
        }
        text + "\n" + &self.footer()
    }

    fn footer(&self) -> String {
        let Machine {
            kernel,
            cpu,
            cores,
            memory_mib,
            kvm,
        } = &self.machine;
        let gib = memory_mib / 1024.0;
        format!(
            "Medians of {} rounds (ten-thousand: one), with the least and the most. Linux {kernel}, {kvm}, {cores} cores of {cpu}, \
             {gib:.0} GiB; by `tools/bench`.\n",
            self.rounds
        )
    }

    fn cells(&self) -> Vec<[String; 6]> {
        self.rows.iter().map(cells).collect()
    }
}

fn cells(row: &Row) -> [String; 6] {
    let unit = row.unit;
    let floor = row.floor.map_or_else(String::new, |floor| {
        format!("{} ({})", figure(floor.measured, unit), floor.baseline)
    });
    let ratio = row
        .floor
        .map_or_else(String::new, |floor| spread(floor.ratio, "×"));
    [
        row.figure.clone(),
        row.goal
            .map_or_else(String::new, |goal| shown_goal(goal, row)),
        spread(row.measured, unit),
        floor,
        ratio,
        row.verdict
            .map_or_else(String::new, |verdict| shown_verdict(verdict, row)),
    ]
}

fn shown_goal(goal: Goal, row: &Row) -> String {
    let limit = goal.limit();
    match goal {
        Goal::RatioAtMost(_) => format!("≤ {limit} × floor"),
        Goal::AtMost(_) => with_unit(&format!("≤ {limit}"), row.unit),
        Goal::LessThan(_) => with_unit(&format!("< {limit}"), row.unit),
        Goal::AtLeast(_) => with_unit(&format!("≥ {limit}"), row.unit),
    }
}

fn shown_verdict(verdict: Verdict, row: &Row) -> String {
    match (verdict, row.goal) {
        (Verdict::MissedBy(by), Some(goal)) => {
            let unit = if matches!(goal, Goal::RatioAtMost(_)) {
                "×"
            } else {
                row.unit
            };
            let part = by / goal.limit() * 100.0;
            format!("missed by {} ({part:.0} %)", with_unit(&number(by), unit))
        }
        (Verdict::Unknown, _) => "not known: the host was too busy".to_owned(),
        _ => "reached".to_owned(),
    }
}

/// `median unit (min–max)`; a single value has no spread.
fn spread(spread: Option<Spread>, unit: &str) -> String {
    let median = figure(spread, unit);
    match spread {
        Some(Spread { min, max, .. }) if min < max => {
            format!("{median} ({}–{})", number(min), number(max))
        }
        _ => median,
    }
}

/// The median alone.
fn figure(spread: Option<Spread>, unit: &str) -> String {
    spread.map_or_else(
        || "?".to_owned(),
        |spread| with_unit(&number(spread.median), unit),
    )
}

fn with_unit(text: &str, unit: &str) -> String {
    format!("{text} {unit}").trim_end().to_owned()
}

/// Three digits that say something; whole numbers as they are.
fn number(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Measurement, floor::Slot};

    fn table() -> Table {
        let machine = Machine {
            kernel: "6.18.1".into(),
            cpu: "A Processor".into(),
            cores: 2,
            memory_mib: 24576.0,
            kvm: "kvm_intel, API 12".into(),
        };
        let mut table = Table::new(machine, 3);
        let (brood, full) = ([1.0, 1.5, 2.0], [1.0, 1.0, 1.0]);
        let row = Row::alone(Measurement::Latency, "restore p50", "ms", &brood, None);
        table
            .rows
            .push(row.against(Slot::Full, &brood, &full, Some(Goal::RatioAtMost(1.25))));
        table.rows.push(Row::alone(
            Measurement::Resume,
            "resume p50",
            "ms",
            &[0.25],
            Some(Goal::LessThan(1.0)),
        ));
        table
    }

    #[test]
    fn a_person_sees_goal_figure_spread_and_verdict() {
        let expected = "\
measured     goal            brood             floor             ratio            \n\
restore p50  ≤ 1.25 × floor  1.50 ms (1–2)     1 ms (full slot)  1.50 × (1–2)  missed by 0.250 × (20 %)\n\
resume p50   < 1 ms          0.250 ms                                          reached\n\
\n\
Medians of 3 rounds (ten-thousand: one), with the least and the most. Linux 6.18.1, kvm_intel, API 12, 2 cores of A Processor, \
24 GiB; by `tools/bench`.\n";
        let squeezed = |text: &str| {
            let lines = text
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            lines.collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&table().text()), squeezed(expected));
    }

    #[test]
    fn a_document_gets_a_table_with_as_many_cells_in_each_line() {
        let text = table().markdown();
        let lines: Vec<_> = text.lines().take_while(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), 4);
        assert!(
            lines.iter().all(|line| line.matches('|').count() == 7),
            "{text}"
        );
        assert!(lines[3].contains("| < 1 ms | 0.250 ms |"), "{text}");
    }

    #[test]
    fn a_script_gets_names_that_stay() {
        let json: serde_json::Value = serde_json::from_str(&table().json()).unwrap();
        let row = &json["rows"][0];
        assert_eq!(row["measurement"], "latency");
        assert_eq!(row["floor"]["slot"], "full");
        assert_eq!(row["floor"]["ratio"]["median"], 1.5);
        assert_eq!(row["goal"]["kind"], "ratio_at_most");
        assert_eq!(row["verdict"]["missed_by"], 0.25);
        assert_eq!(json["rows"][1]["verdict"], "reached");
    }

    #[test]
    fn numbers_are_as_long_as_they_are_worth() {
        let shown: Vec<_> = [10000.0, 8192.5, 12.34, 1.234, 0.1234]
            .into_iter()
            .map(number)
            .collect();
        assert_eq!(shown, ["10000", "8192", "12.3", "1.23", "0.123"]);
    }
}
