//! Two runs beside each other: what of this plugin has become worse beyond noise.
//!
//! Noise is half of what the middle half of each run's own measurements is apart, both together, and
//! at least a part of the value and a small amount of its unit: a single measurement knows nothing
//! of its noise.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;
use testkit::figures::{Figure, Figures};
use testkit::{Context, Result};

/// The least part of an earlier value that counts as a change, measured several times or once.
const PART: f64 = 0.1;
const PART_OF_ONE: f64 = 0.3;

/// Compares and tells. Exit code 1 if something of this plugin has become worse.
pub fn run(old: &Path, new: &Path) -> ExitCode {
    let both = read(old).and_then(|old| Ok((old, read(new)?)));
    let (old, new) = match both {
        Ok(both) => both,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let (mut worse, mut better, mut alike) = (0, 0, 0);
    for figure in new.all().iter().filter(|figure| figure.system.is_empty()) {
        let Some(before) = old.find(&figure.system, &figure.name) else { continue };
        let word = match assess(before, figure) {
            Some(true) => {
                worse += 1;
                "WORSE "
            }
            Some(false) => {
                better += 1;
                "better"
            }
            None => {
                alike += 1;
                continue;
            }
        };
        let (from, to) = (before.median(), figure.median());
        println!("{word} {}: {from:.2} -> {to:.2} {}", figure.name, figure.unit);
    }
    println!("{worse} worse, {better} better, {alike} the same within noise");
    if worse == 0 && better + alike == 0 {
        eprintln!("the two have no figure in common");
        return ExitCode::from(2);
    }
    ExitCode::from(u8::from(worse > 0))
}

fn read(file: &Path) -> Result<Figures> {
    figures(&value(file)?).context(file.display())
}

/// What stands in a file of `--json`.
pub fn value(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file).context(file.display())?;
    serde_json::from_str(&text).context(file.display())
}

/// The figures in it.
pub fn figures(value: &Value) -> Result<Figures> {
    Figures::from_json(value.get("figures").unwrap_or(value))
}

/// Whether a figure is worse (`Some(true)`) or better than before, beyond noise.
fn assess(before: &Figure, now: &Figure) -> Option<bool> {
    let half = |figure: &Figure| (figure.middle().1 - figure.middle().0) / 2.0;
    let once = before.values.len() < 3 || now.values.len() < 3;
    let part = before.median().abs() * if once { PART_OF_ONE } else { PART };
    let noise = (half(before) + half(now)).max(part).max(floor(&now.unit));
    let change = now.median() - before.median();
    // A value that is missing now and was there before is as bad as can be.
    if now.median().is_nan() && before.median().is_finite() {
        return Some(true);
    }
    let counts = !["tickets", "rotations"].contains(&now.unit.as_str());
    // Written so that a value that is missing in both is no change.
    (counts && change.abs() > noise).then_some((change > 0.0) != more_is_better(now))
}

fn more_is_better(figure: &Figure) -> bool {
    figure.name.contains("throughput")
        || figure.name.contains("it resumes")
        || figure.name.contains("handshake resumes")
        || figure.name.contains("resumed on another server")
}

/// A change of less than this matters to nobody.
fn floor(unit: &str) -> f64 {
    match unit {
        "ms" => 3.0,
        "ms/s" => 0.5,
        "KiB" => 256.0,
        "bytes/s" => 200.0,
        "/s" => 5.0,
        "s" => 5.0,
        "us" => 20.0,
        "x" => 0.03,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, unit: &str, values: &[f64]) -> Figure {
        let (name, unit) = (name.to_owned(), unit.to_owned());
        Figure { system: String::new(), name, values: values.to_vec(), unit }
    }

    #[test]
    fn worse_is_what_is_beyond_noise_in_the_wrong_direction() {
        let time = |values: &[f64]| figure("spread", "ms", values);
        let before = time(&[20.0, 22.0, 24.0]);
        assert_eq!(assess(&before, &time(&[23.0, 24.0, 25.0])), None);
        assert_eq!(assess(&before, &time(&[40.0, 42.0, 44.0])), Some(true));
        assert_eq!(assess(&before, &time(&[8.0, 9.0, 10.0])), Some(false));
        assert_eq!(assess(&before, &time(&[f64::NAN])), Some(true));
        let rate = |values: &[f64]| figure("throughput", "/s", values);
        assert_eq!(assess(&rate(&[500.0; 3]), &rate(&[300.0; 3])), Some(true));
        let share = |values: &[f64]| figure("resumed on another server, at once", "%", values);
        assert_eq!(assess(&share(&[89.0; 3]), &share(&[98.0; 3])), Some(false));
    }
}
