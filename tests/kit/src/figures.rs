//! Measured values: gathered under names, shown as a table, written as JSON.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;
use std::{fmt, fs};

use crate::{Context, Result};

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured, in words.
    pub name: String,
    /// How much.
    pub value: f64,
    /// In which unit, such as `ms` or `KiB`.
    pub unit: &'static str,
}

/// Values in the order in which they were measured.
#[derive(Clone, Debug, Default)]
pub struct Figures(Vec<Figure>);

impl Figures {
    /// Adds a value.
    pub fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.0.push(Figure { name: name.into(), value, unit });
    }

    /// Adds median, smallest and greatest of some times, in milliseconds, and their number.
    pub fn add_times(&mut self, name: &str, times: &[Duration]) {
        let millis: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        self.add_spread(name, &millis, "ms");
    }

    /// The same for any values.
    pub fn add_spread(&mut self, name: &str, values: &[f64], unit: &'static str) {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        if let (Some(least), Some(most)) = (sorted.first(), sorted.last()) {
            self.add(format!("{name}, median of {}", sorted.len()), median(&sorted), unit);
            self.add(format!("{name}, least"), *least, unit);
            self.add(format!("{name}, most"), *most, unit);
        }
    }

    /// All of them.
    pub fn all(&self) -> &[Figure] {
        &self.0
    }

    /// Writes a JSON array of `{"name": ..., "value": ..., "unit": ...}`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_json(&self, file: &Path) -> Result<()> {
        fs::write(file, self.json()).context(file.display())
    }

    fn json(&self) -> String {
        let mut text = String::from("[\n");
        for (i, Figure { name, value, unit }) in self.0.iter().enumerate() {
            let comma = if i + 1 < self.0.len() { "," } else { "" };
            let value = if value.is_finite() { format!("{value:.3}") } else { "null".into() };
            let (name, unit) = (quoted(name), quoted(unit));
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "  {{\"name\": {name}, \"value\": {value}, \"unit\": {unit}}}{comma}"
            );
        }
        text + "]\n"
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
        for Figure { name, value, unit } in &self.0 {
            writeln!(f, "{name:width$}  {value:>12.2} {unit}")?;
        }
        Ok(())
    }
}

/// The middle of some values; of an even number the mean of the two in the middle; of none NaN.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match (sorted.get(half), sorted.get(half.wrapping_sub(1))) {
        (Some(above), Some(below)) if sorted.len() % 2 == 0 => (above + below) / 2.0,
        (Some(middle), _) => *middle,
        _ => f64::NAN,
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
        assert_eq!(median(&[5.0]), 5.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn json_quotes_what_it_must() {
        let mut figures = Figures::default();
        figures.add("say \"a\\b\"\n", 1.5, "ms");
        figures.add("nothing", f64::NAN, "ms");
        assert_eq!(
            figures.json(),
            "[\n  {\"name\": \"say \\\"a\\\\b\\\"\\u000a\", \"value\": 1.500, \"unit\": \"ms\"},\n  \
             {\"name\": \"nothing\", \"value\": null, \"unit\": \"ms\"}\n]\n"
        );
    }

    #[test]
    fn times_are_shown_in_milliseconds() {
        let mut figures = Figures::default();
        figures.add_times("start", &[7, 3, 5].map(Duration::from_millis));
        let values: Vec<f64> = figures.all().iter().map(|figure| figure.value).collect();
        assert_eq!(values, [5.0, 3.0, 7.0]);
        assert!(figures.to_string().starts_with("start, median of 3          5.00 ms\n"));
    }
}
