//! Text tables: columns as wide as their widest cell, two spaces between. Pure.

use std::fmt;

/// A table with a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    empty: &'static str,
    notes: Vec<String>,
}

impl Table {
    pub(super) fn new<'a>(head: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            head: head.into_iter().map(str::to_uppercase).collect(),
            rows: Vec::new(),
            empty: "",
            notes: Vec::new(),
        }
    }

    /// What is printed instead of a table without rows.
    pub(super) fn or_say(mut self, text: &'static str) -> Self {
        self.empty = text;
        self
    }

    /// Cells that are as long as they are.
    pub(super) fn whole_row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Cells of several lines, or very long ones (a verifier's log), are cut: `--json` has them
    /// whole.
    pub(super) fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows
            .push(cells.into_iter().map(|cell| short(cell.as_ref())).collect());
    }

    /// A line below the table.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() && !self.empty.is_empty() {
            writeln!(f, "{}", self.empty)?;
        } else {
            let width = |column: usize| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells
                    .map(|cell| cell.chars().count())
                    .chain([self.head[column].chars().count()])
                    .max()
                    .unwrap_or(0)
            };
            let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
            let mut line = |cells: Vec<&str>| {
                let mut text = String::new();
                for (cell, width) in cells.into_iter().zip(&widths) {
                    let missing = width.saturating_sub(cell.chars().count());
                    text.push_str(cell);
                    text.extend(std::iter::repeat_n(' ', missing + 2));
                }
                writeln!(f, "{}", text.trim_end())
            };
            line(self.head.iter().map(String::as_str).collect())?;
            for row in &self.rows {
                line(row.iter().map(String::as_str).collect())?;
            }
        }
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        Ok(())
    }
}

/// The longest cell, in characters.
const MAX_CELL: usize = 300;

fn short(cell: &str) -> String {
    let line = cell.lines().next().unwrap_or_default();
    match line.char_indices().nth(MAX_CELL) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None if line.len() < cell.len() => format!("{line}…"),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_spaces() {
        let mut table = Table::new(["NAME", "N"]).or_say("nothing");
        assert_eq!(table.to_string(), "nothing\n");
        table.row(["é", "12345"]);
        table.row(["longer than the head", ""]);
        table.note("a note");
        assert_eq!(
            table.to_string(),
            "NAME                  N\n\
             é                     12345\n\
             longer than the head\n\
             a note\n"
        );
    }

    #[test]
    fn a_cell_is_one_line_of_a_length_that_can_be_read() {
        let mut table = Table::new(["X", "Y"]);
        table.row([
            format!("first\n{}", "x".repeat(100_000)),
            "y".repeat(100_000),
        ]);
        let text = table.to_string();
        assert!(text.contains("first…"), "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() < 700),
            "{}",
            text.len()
        );
    }
}
