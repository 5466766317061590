//! Tables for people: aligned columns, fitted to the terminal by shortening the columns that can bear it.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// What separates two columns.
const GAP: &str = "  ";

/// The least that a column is shortened to, in terminal columns.
const MIN_COLUMN: usize = 8;

/// On which side a column's texts stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

#[derive(Clone, Debug)]
struct Column {
    title: &'static str,
    side: Side,
    shrinks: bool,
}

/// A table under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a column of words, which are never shortened.
    pub(crate) fn words(self, title: &'static str) -> Self {
        self.column(title, Side::Left, false)
    }

    /// Adds a column of texts that may be shortened.
    pub(crate) fn texts(self, title: &'static str) -> Self {
        self.column(title, Side::Left, true)
    }

    /// Adds a column of numbers.
    pub(crate) fn numbers(self, title: &'static str) -> Self {
        self.column(title, Side::Right, false)
    }

    fn column(mut self, title: &'static str, side: Side, shrinks: bool) -> Self {
        self.columns.push(Column { title, side, shrinks });
        self
    }

    /// Adds a row, a cell for each column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.columns.len(), "a row has a cell for each column");
        self.rows.push(cells.into());
    }

    /// Draws the table within a width, or as wide as it is.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let widths = self.widths(width);
        let mut text = String::new();
        self.draw(&mut text, &widths, self.columns.iter().map(|column| column.title));
        for row in &self.rows {
            self.draw(&mut text, &widths, row.iter().map(String::as_str));
        }
        text
    }

    fn widths(&self, width: Option<usize>) -> Vec<usize> {
        let natural = |index: usize| {
            let cells = self.rows.iter().map(|row| row[index].width()).max().unwrap_or(0);
            cells.max(self.columns[index].title.width())
        };
        let mut widths: Vec<usize> = (0..self.columns.len()).map(natural).collect();
        let Some(width) = width else { return widths };
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        loop {
            let excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(width);
            let widest = (0..widths.len())
                .filter(|index| self.columns[*index].shrinks && widths[*index] > MIN_COLUMN)
                .max_by_key(|index| widths[*index]);
            match widest {
                Some(widest) if excess > 0 => widths[widest] -= 1,
                _ => return widths,
            }
        }
    }

    fn draw<'a>(&self, text: &mut String, widths: &[usize], cells: impl Iterator<Item = &'a str>) {
        let start = text.len();
        for ((cell, column), width) in cells.zip(&self.columns).zip(widths) {
            if text.len() > start {
                text.push_str(GAP);
            }
            let cell = shortened(cell, *width);
            let padding = " ".repeat(width.saturating_sub(cell.width()));
            match column.side {
                Side::Left => text.extend([cell.as_str(), padding.as_str()]),
                Side::Right => text.extend([padding.as_str(), cell.as_str()]),
            }
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
}

/// Draws pairs of a name and a text, the texts aligned.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in pairs {
        text.push_str(name);
        text.push_str(&" ".repeat(width - name.width() + GAP.len()));
        text.push_str(value);
        text.push('\n');
    }
    text
}

/// A text on one line and within a width, with an ellipsis where something was cut off.
fn shortened(text: &str, width: usize) -> String {
    let text = text.replace('\n', " ");
    if text.width() <= width {
        return text;
    }
    let mut used = 1;
    let mut kept: String = text
        .chars()
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= width
        })
        .collect();
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new().words("NAME").numbers("SIZE").texts("ORIGIN").texts("NOTE");
        table.row(["web".into(), "10 GiB".into(), "vms/web@12".into(), "before the\nupgrade".into()]);
        table.row(["a-long-name".into(), "512 MiB".into(), "x".repeat(90), "日本語のメモ".repeat(12)]);
        table
    }

    #[test]
    fn a_table_fits_eighty_columns() {
        let text = sample().render(Some(80));
        for line in text.lines() {
            assert!(line.width() <= 80, "{} columns: {line}", line.width());
        }
        assert!(text.starts_with("NAME            SIZE  ORIGIN"), "{text}");
        assert!(text.contains("\nweb           10 GiB  vms/web@12"), "{text}");
        assert!(text.contains("before the upgrade\n"), "{text}");
        assert_eq!(text.matches('…').count(), 2, "{text}");
    }

    #[test]
    fn a_pipe_gets_everything() {
        let text = sample().render(None);
        assert!(text.contains(&"x".repeat(90)));
        assert!(!text.contains('…'));
    }

    #[test]
    fn what_is_too_narrow_for_anything_is_still_drawn() {
        let text = sample().render(Some(3));
        assert!(text.contains("a-long-name"), "words are never shortened: {text}");
    }

    #[test]
    fn pairs_are_aligned() {
        assert_eq!(pairs(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
    }
}
