//! Text tables for a terminal: columns as wide as their widest cell, numbers to the right, rows in groups under a heading.

use std::fmt::Write;
use std::time::Duration;

/// Which side of its column a cell keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table under construction.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(&'static str, Side)>,
    groups: Vec<(String, Vec<Vec<String>>)>,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(columns: Vec<(&'static str, Side)>) -> Self {
        Self { columns, groups: Vec::new() }
    }

    /// Adds a row to the group with this heading, which is made where it does not exist.
    ///
    /// # Panics
    /// When the row has more or fewer cells than the table has columns.
    pub fn row(&mut self, heading: &str, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "a row has one cell per column");
        match self.groups.iter_mut().find(|(known, _)| known == heading) {
            Some((_, rows)) => rows.push(cells),
            None => self.groups.push((heading.to_owned(), vec![cells])),
        }
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The table as text, with a newline at the end.
    #[must_use]
    pub fn render(&self) -> String {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, (name, _))| {
                let cells = self.groups.iter().flat_map(|(_, rows)| rows).map(|row| row[at].chars().count());
                cells.chain([name.chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        let mut line = |indent: &str, cells: Vec<&str>| {
            let mut row = indent.to_owned();
            for ((cell, width), (_, side)) in cells.iter().zip(&widths).zip(&self.columns) {
                // Writing to a string cannot fail.
                let _ = match side {
                    Side::Left => write!(row, "{cell:<width$}  "),
                    Side::Right => write!(row, "{cell:>width$}  "),
                };
            }
            text.push_str(row.trim_end());
            text.push('\n');
        };
        line("  ", self.columns.iter().map(|(name, _)| *name).collect());
        for (heading, rows) in &self.groups {
            if !heading.is_empty() {
                // A heading spans the table.
                line("", vec![heading.as_str()]);
            }
            for row in rows {
                line("  ", row.iter().map(String::as_str).collect());
            }
        }
        text
    }
}

/// A count with thin separators, without digits that mean nothing.
#[must_use]
pub fn count(value: f64) -> String {
    if value.abs() < 10.0 && value.fract() != 0.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value <= -0.5 { format!("-{text}") } else { text }
}

/// A latency with the unit that suits it.
#[must_use]
pub fn latency(duration: Duration) -> String {
    let nanos = duration.as_nanos() as f64;
    match nanos {
        n if n < 1e3 => format!("{n:.0} ns"),
        n if n < 1e4 => format!("{:.1} us", n / 1e3),
        n if n < 1e6 => format!("{:.0} us", n / 1e3),
        n if n < 1e7 => format!("{:.2} ms", n / 1e6),
        n if n < 1e9 => format!("{:.1} ms", n / 1e6),
        n => format!("{:.2} s", n / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_columns_under_their_heading() {
        let mut table = Table::new(vec![("workload", Side::Left), ("ops/s", Side::Right)]);
        table.row("single-leader", vec!["write-only".to_owned(), "120,000".to_owned()]);
        table.row("single-thread", vec!["write".to_owned(), "9".to_owned()]);
        table.row("single-leader", vec!["50/50".to_owned(), "1".to_owned()]);
        let rendered = table.render();
        let expected = [
            "  workload      ops/s",
            "single-leader",
            "  write-only  120,000",
            "  50/50             1",
            "single-thread",
            "  write             9",
        ];
        assert_eq!(rendered.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn numbers_are_short_and_exact_enough() {
        assert_eq!(count(1_234_567.2), "1,234,567");
        assert_eq!(count(999.0), "999");
        assert_eq!(count(0.25), "0.25");
        assert_eq!(count(0.0), "0");
        assert_eq!(count(-1_000.0), "-1,000");
        assert_eq!(latency(Duration::from_nanos(420)), "420 ns");
        assert_eq!(latency(Duration::from_nanos(7_140)), "7.1 us");
        assert_eq!(latency(Duration::from_micros(183)), "183 us");
        assert_eq!(latency(Duration::from_micros(1_234)), "1.23 ms");
        assert_eq!(latency(Duration::from_millis(2_500)), "2.50 s");
    }
}
