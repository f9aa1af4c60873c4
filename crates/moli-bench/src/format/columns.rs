//! A table of texts, for terminals and for Markdown.

use std::fmt::Write as _;

use crate::names::printable;

/// On which side a column's texts begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Heads and rows of cells; rows are as long as there are heads.
#[derive(Debug)]
pub(super) struct Columns {
    heads: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// Columns that have nothing in any row are left out; control characters, which names may bring, are spelled out.
    pub(super) fn new(heads: &[(&'static str, Align)], mut rows: Vec<Vec<String>>) -> Self {
        let used: Vec<bool> = (0..heads.len())
            .map(|column| rows.iter().any(|row| row.get(column).is_some_and(|cell| !cell.is_empty())))
            .collect();
        let mut heads = heads.to_vec();
        retain(&mut heads, &used);
        for row in &mut rows {
            retain(row, &used);
            row.iter_mut().for_each(|cell| *cell = printable(cell));
        }
        Self { heads, rows }
    }

    /// Columns as wide as their widest text, two spaces between them.
    pub(super) fn text(&self) -> String {
        let heads: Vec<String> = self.heads.iter().map(|(head, _)| (*head).to_owned()).collect();
        let lines = || std::iter::once(&heads).chain(&self.rows);
        let width =
            |column: usize| lines().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..heads.len()).map(|column| width(column).unwrap_or_default()).collect();
        let mut text = String::new();
        for row in lines() {
            let mut line = String::new();
            for ((cell, width), (_, align)) in row.iter().zip(&widths).zip(&self.heads) {
                let _ = match align {
                    Align::Left => write!(line, "{cell:<width$}  "),
                    Align::Right => write!(line, "{cell:>width$}  "),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// As Markdown has tables.
    pub(super) fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = line(self.heads.iter().map(|(head, _)| (*head).to_owned()).collect());
        let rule = |align: Align| if align == Align::Left { "---" } else { "---:" }.to_owned();
        text.push_str(&line(self.heads.iter().map(|(_, align)| rule(*align)).collect()));
        for row in &self.rows {
            text.push_str(&line(row.iter().map(|cell| markdown(cell)).collect()));
        }
        text
    }
}

fn retain<T>(items: &mut Vec<T>, used: &[bool]) {
    let mut used = used.iter();
    items.retain(|_| used.next().copied().unwrap_or_default());
}

/// Text that Markdown shows as it is.
pub(super) fn markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if "\\`*_[]<>|#".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_columns_go_and_the_rest_is_aligned() {
        let heads = [("name", Align::Left), ("none", Align::Left), ("number", Align::Right)];
        let rows = [["a|b", "", "1"], ["c\u{1b}[2J", "", "1234567"]];
        let columns = Columns::new(&heads, rows.map(|row| row.map(str::to_owned).to_vec()).to_vec());
        assert_eq!(columns.text(), "name         number\na|b               1\nc\\u{1b}[2J  1234567\n");
        let expected = "| name | number |\n| --- | ---: |\n| a\\|b | 1 |\n| c\\\\u{1b}\\[2J | 1234567 |\n";
        assert_eq!(columns.markdown(), expected);
    }
}
