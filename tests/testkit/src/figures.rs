//! Measured values: gathered under names, shown as a table, written as JSON and read again, so that
//! a later run can be compared.

use std::path::Path;
use std::time::Duration;
use std::{fmt, fs};

use serde_json::{json, Value};

use crate::{Context, Error, Result};

/// So few measurements have no middle half worth the name.
pub const FEW: usize = 8;

/// What was measured of one system, once or several times.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Whose figure it is, such as `plain`; empty for the plugin itself.
    pub system: String,
    /// What was measured, in words.
    pub name: String,
    /// Each measurement, in order. One that came to nothing is NaN.
    pub values: Vec<f64>,
    /// In which unit, such as `ms` or `KiB`.
    pub unit: String,
}

impl Figure {
    /// The middle of all measurements that came to something.
    pub fn median(&self) -> f64 {
        let known: Vec<f64> = self.values.iter().copied().filter(|v| v.is_finite()).collect();
        median(&known)
    }

    /// The smallest measurement; NaN without any.
    pub fn least(&self) -> f64 {
        self.values.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The greatest measurement; NaN without any.
    pub fn most(&self) -> f64 {
        self.values.iter().copied().fold(f64::NAN, f64::max)
    }

    /// Between what the middle half of the measurements lies; of fewer than [`FEW`] all of them.
    pub fn middle(&self) -> (f64, f64) {
        let mut known: Vec<f64> = self.values.iter().copied().filter(|v| v.is_finite()).collect();
        known.sort_by(f64::total_cmp);
        let cut = if known.len() < FEW { 0 } else { known.len() / 4 };
        let at = |index: usize| known.get(index).copied().unwrap_or(f64::NAN);
        (at(cut), at(known.len().saturating_sub(cut + 1)))
    }

    /// How many measurements came to nothing.
    pub fn failed(&self) -> usize {
        self.values.iter().filter(|value| !value.is_finite()).count()
    }
}

/// Figures in the order in which they were measured.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    all: Vec<Figure>,
    system: String,
}

impl Figures {
    /// From now on figures are those of `system`.
    pub fn of(&mut self, system: &str) -> &mut Self {
        self.system = system.into();
        self
    }

    /// Adds a value.
    pub fn add(&mut self, name: impl Into<String>, value: f64, unit: &str) {
        self.add_spread(&name.into(), &[value], unit);
    }

    /// Adds times, in milliseconds.
    pub fn add_times(&mut self, name: &str, times: &[Duration]) {
        let millis: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        self.add_spread(name, &millis, "ms");
    }

    /// Adds several measurements of one thing.
    pub fn add_spread(&mut self, name: &str, values: &[f64], unit: &str) {
        if !values.is_empty() {
            let (system, name) = (self.system.clone(), name.to_owned());
            self.all.push(Figure { system, name, values: values.to_vec(), unit: unit.into() });
        }
    }

    /// All of them.
    pub fn all(&self) -> &[Figure] {
        &self.all
    }

    /// The figure of that system and name.
    pub fn find(&self, system: &str, name: &str) -> Option<&Figure> {
        self.all.iter().find(|figure| figure.system == system && figure.name == name)
    }

    /// A JSON array of `{"system", "name", "unit", "median", "least", "most", "values"}`.
    pub fn json(&self) -> Value {
        let rounded = |value: f64| {
            if value.is_finite() {
                json!((value * 1e3).round() / 1e3)
            } else {
                Value::Null
            }
        };
        let figure = |figure: &Figure| {
            json!({
                "system": figure.system,
                "name": figure.name,
                "unit": figure.unit,
                "median": rounded(figure.median()),
                "least": rounded(figure.least()),
                "most": rounded(figure.most()),
                "values": figure.values.iter().map(|v| rounded(*v)).collect::<Vec<_>>(),
            })
        };
        self.all.iter().map(figure).collect()
    }

    /// Writes [`Figures::json`].
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_json(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.json()).context("JSON")?;
        fs::write(file, text + "\n").context(file.display())
    }

    /// Takes what [`Figures::json`] gave.
    ///
    /// # Errors
    /// When a part is missing or has another type.
    pub fn from_json(value: &Value) -> Result<Self> {
        let strange = || Error::new("these are no figures");
        let figure = |value: &Value| {
            let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
            let values = value.get("values")?.as_array()?;
            let values = values.iter().map(|value| value.as_f64().unwrap_or(f64::NAN)).collect();
            let (system, name, unit) = (text("system")?, text("name")?, text("unit")?);
            Some(Figure { system, name, values, unit })
        };
        let all = value.as_array().ok_or_else(strange)?;
        let all: Option<Vec<Figure>> = all.iter().map(figure).collect();
        Ok(Self { all: all.ok_or_else(strange)?, system: String::new() })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = |figure: &Figure| match figure.system.as_str() {
            "" => figure.name.clone(),
            system => format!("{system}: {}", figure.name),
        };
        let width = self.all.iter().map(|figure| label(figure).len()).max().unwrap_or(0);
        for figure in &self.all {
            if figure.failed() == figure.values.len() {
                writeln!(f, "{:width$}  {:>12}", label(figure), "never")?;
                continue;
            }
            write!(f, "{:width$}  {:>12.2} {}", label(figure), figure.median(), figure.unit)?;
            match figure.values.len() {
                1 => writeln!(f)?,
                count => {
                    let (least, most) = (figure.least(), figure.most());
                    writeln!(f, "  ({least:.2} to {most:.2}, median of {count})")?;
                }
            }
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
        (Some(above), Some(below)) if sorted.len().is_multiple_of(2) => (above + below) / 2.0,
        (Some(middle), _) => *middle,
        _ => f64::NAN,
    }
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
    fn what_is_written_as_json_is_read_again() -> Result<()> {
        let mut figures = Figures::default();
        figures.add("say \"a\\b\"\n", 1.5, "ms");
        figures.of("other").add_spread("some", &[1.0, f64::NAN, 3.0], "KiB");
        let again = Figures::from_json(&figures.json())?;
        assert_eq!(again.all()[0], figures.all()[0]);
        let some = again.find("other", "some").ok_or_else(|| Error::new("not there"))?;
        assert_eq!((some.median(), some.least(), some.most(), some.failed()), (2.0, 1.0, 3.0, 1));
        assert!(Figures::from_json(&json!([{ "name": "x" }])).is_err());
        assert_eq!(some.middle(), (1.0, 3.0));
        let many = Figure { values: (1..=12).map(f64::from).collect(), ..some.clone() };
        assert_eq!(many.middle(), (4.0, 9.0));
        Ok(())
    }

    #[test]
    fn times_are_shown_in_milliseconds() {
        let mut figures = Figures::default();
        figures.add_times("start", &[7, 3, 5].map(Duration::from_millis));
        assert_eq!(figures.to_string(), "start          5.00 ms  (3.00 to 7.00, median of 3)\n");
    }
}
