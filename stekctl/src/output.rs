//! What goes to the screen: lines in colour where the terminal can show it, and tables.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

use crate::exit_code::{Failure, Outcome};

/// What must be mended.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// What should be looked at.
pub const DOUBTFUL: Style = AnsiColor::Yellow.on_default();
/// What is as it should be.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// A table's head.
const HEAD: Style = Style::new().bold();

/// The colour of an outcome.
pub fn style_of(outcome: Outcome) -> Style {
    match outcome {
        Outcome::Healthy => GOOD,
        Outcome::Degraded => DOUBTFUL,
        Outcome::Broken => BAD,
    }
}

/// `text` in a style.
pub fn styled(text: &str, style: Style) -> String {
    format!("{style}{text}{style:#}")
}

/// Prints to standard output. Colours are dropped where they cannot be shown.
///
/// # Errors
/// When standard output cannot be written; a reader that has seen enough is no error.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a line to standard error, where nobody can be told that this failed.
pub fn complain(line: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}

/// One field of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Field {
    text: String,
    style: Style,
}

impl Field {
    /// Plain text.
    pub fn new(text: impl Into<String>) -> Field {
        Field { text: text.into(), style: Style::new() }
    }

    /// The same in a style.
    pub fn style(self, style: Style) -> Field {
        Field { style, ..self }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// Fields in columns, two spaces apart, each as wide as its widest field.
#[derive(Debug)]
pub struct Table(Vec<Vec<Field>>);

impl Table {
    /// A table of a head alone.
    pub fn new<'a>(head: impl IntoIterator<Item = &'a str>) -> Table {
        Table(vec![head.into_iter().map(|name| Field::new(name).style(HEAD)).collect()])
    }

    /// Adds a row at the end.
    pub fn push(&mut self, row: Vec<Field>) {
        self.0.push(row);
    }

    /// All of it, a line for the head and one for each row.
    pub fn render(&self) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.0 {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, field) in widths.iter_mut().zip(row) {
                *width = field.width().max(*width);
            }
        }
        let mut out = String::new();
        for row in &self.0 {
            // Blanks are owed until another field follows, so that no line ends with them.
            let mut blanks = 0;
            for (width, field) in widths.iter().zip(row) {
                out += &" ".repeat(blanks);
                out += &styled(&field.text, field.style);
                blanks = width - field.width() + 2;
            }
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let mut table = Table::new(["ID", "ADDRESS", "X"]);
        table.push(vec![Field::new("1"), Field::new("10.0.0.1:10001").style(BAD), Field::new("é")]);
        table.push(vec![Field::new("200"), Field::new("b"), Field::new("y")]);
        let plain = anstream::adapter::strip_str(&table.render()).to_string();
        let expected = "ID   ADDRESS         X\n1    10.0.0.1:10001  é\n200  b               y\n";
        assert_eq!(plain, expected);
        assert!(table.render().contains("\u{1b}[1m\u{1b}[31m10.0.0.1:10001"));
    }
}
