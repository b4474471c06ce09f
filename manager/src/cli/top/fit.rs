//! Fit of tables to a width: a column is as wide as its content, and where not all columns fit,
//! whole columns are left out. A figure that is cut off would be a wrong one.

use ratatui::{
    layout::Constraint,
    style::{Modifier, Style},
    widgets::{Row, Table},
};

/// Columns that words take.
pub(super) fn columns(words: &str) -> u16 {
    u16::try_from(words.chars().count()).unwrap_or(u16::MAX)
}

/// The columns of a table that there is room for.
pub(super) struct Fit {
    /// Which, from the left, and how wide.
    chosen: Vec<(usize, u16)>,
}

impl Fit {
    /// Chooses for these rows, leaving out columns of `spare` in that order. What stays is the
    /// last column's, which alone may be cut off.
    pub(super) fn new(header: &[&str], rows: &[Vec<String>], width: u16, spare: &[usize]) -> Self {
        let wide = |column: usize| {
            let cells = rows.iter().map(|row| columns(&row[column]));
            cells.max().unwrap_or(0).max(columns(header[column]))
        };
        let mut chosen: Vec<(usize, u16)> = (0..header.len()).map(|i| (i, wide(i))).collect();
        for column in spare {
            let all: u16 = chosen.iter().fold(0, |sum, (_, wide)| {
                wide.saturating_add(sum).saturating_add(1)
            });
            if all <= width.saturating_add(1) {
                break;
            }
            chosen.retain(|(i, _)| i != column);
        }
        Self { chosen }
    }

    /// The shown cells of a row.
    pub(super) fn chosen(&self, mut cells: Vec<String>) -> Vec<String> {
        let cell = |(i, _): &(usize, u16)| std::mem::take(&mut cells[*i]);
        self.chosen.iter().map(cell).collect()
    }

    /// The table of such rows.
    pub(super) fn table<'a>(
        &self,
        rows: impl Iterator<Item = Row<'a>>,
        header: &[&'static str],
    ) -> Table<'a> {
        let last = self.chosen.len().saturating_sub(1);
        let width = |(at, (_, wide)): (usize, &(usize, u16))| match at == last {
            true => Constraint::Fill(1),
            false => Constraint::Length(*wide),
        };
        let header = Row::new(self.chosen.iter().map(|(i, _)| header[*i]));
        Table::new(rows, self.chosen.iter().enumerate().map(width))
            .header(header.style(Style::new().add_modifier(Modifier::BOLD)))
            .column_spacing(1)
    }
}
