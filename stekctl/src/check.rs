//! `check`: what the plugin would say about a configuration, by the plugin's own code.

use stek_share::core::config::{Problem, Severity};

use crate::cli::{CheckArgs, Place};
use crate::outcome::{Ended, Outcome};
use crate::place;
use crate::screen::{print, styled, BAD, DOUBTFUL, GOOD};

/// Reads the files and prints the plugin's lines.
pub fn run(args: &CheckArgs, place: &Place) -> Ended {
    let source = place::source_of(&args.file, place)?;
    let (problems, loaded) = place::problems(&source);
    problems.iter().try_for_each(|problem| print(&told(problem)))?;
    let Some(loaded) = loaded else {
        print(&format!(
            "{} the plugin would do nothing with this configuration\n",
            styled("refused:", BAD)
        ))?;
        return Ok(Outcome::Broken);
    };
    loaded.notes.iter().try_for_each(|note| print(&told(note)))?;
    let settings = &loaded.settings;
    print(&format!(
        "{} server {} of {}; certificate {}, valid until {}\n",
        styled("usable:", GOOD),
        settings.server_id,
        settings.members.len(),
        Some(loaded.tls.subject())
            .filter(|s| !s.is_empty())
            .unwrap_or("without subject".to_owned()),
        loaded.tls.not_after()
    ))?;
    Ok(if problems.is_empty() { Outcome::Healthy } else { Outcome::Degraded })
}

/// A problem as a line that begins with how bad it is.
pub fn told(problem: &Problem) -> String {
    let (word, style) = match problem.severity {
        Severity::Error => ("error:", BAD),
        Severity::Warning => ("warning:", DOUBTFUL),
        Severity::Note => ("note:", GOOD),
    };
    format!("{} {problem}\n", styled(word, style))
}
