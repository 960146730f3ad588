//! Tables like kubectl's.

use crate::{
    paint::{Paint, Tone},
    wording,
};

/// Columns between two cells.
const GAP: usize = 3;

/// A cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Returns a cell with a tone.
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: wording::one_line(&text.into()), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// Rows under headings.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Returns a table without rows.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|text| Cell::toned(*text, Tone::Heading)).collect()] }
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// Returns the lines, each after an indentation. The last cell of a line is not padded.
    pub(crate) fn to_text(&self, paint: Paint, indentation: &str) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = indentation.to_owned();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&paint.apply(cell.tone, &cell.text));
                line.push_str(&" ".repeat(width + GAP - cell.text.chars().count()));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_last_word() {
        let mut table = Table::new(&["POD", "HITS", "NOTE"]);
        table.push(vec!["a".into(), "1".into(), Cell::default()]);
        table.push(vec!["longer".into(), "10".into(), "é".into()]);
        let text = table.to_text(Paint::NONE, "  ");
        assert_eq!(text, "  POD      HITS   NOTE\n  a        1\n  longer   10     é\n");
    }
}
