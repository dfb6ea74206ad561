//! `check`: what the plugin would say about a configuration, by the plugin's own code.

use std::path::Path;

use stek_share::core::config::{Problem, Severity};

use crate::cli::{CheckArgs, Place};
use crate::exit_code::{Ended, Outcome};
use crate::locate;
use crate::output::{print, styled, BAD, DOUBTFUL, GOOD};
use crate::rights;

/// Reads the files and prints the plugin's lines.
pub fn run(args: &CheckArgs, place: &Place) -> Ended {
    let source = locate::source_of(&args.file, place)?;
    // A file that belongs to no Traffic Server of this machine is looked at as whoever asks.
    let config = locate::ats_config(place)?.filter(|dir| {
        place.ats_config.is_some()
            || args.file.canonicalize().is_ok_and(|file| file.starts_with(dir))
    });
    let user = config.and_then(|dir| rights::server_user(&dir, Path::new("/proc")));
    let (problems, loaded) = locate::problems_as(user.as_ref(), &source)?;
    let whose = user.map_or(String::new(), |user| format!(", read as user {}", user.name));
    problems.iter().try_for_each(|problem| print(&told(problem)))?;
    let Some(loaded) = loaded else {
        print(&format!(
            "{} the plugin would do nothing with this configuration{whose}\n",
            styled("refused:", BAD)
        ))?;
        return Ok(Outcome::Broken);
    };
    loaded.notes.iter().try_for_each(|note| print(&told(note)))?;
    let settings = &loaded.settings;
    print(&format!(
        "{} server {} of {}{whose}; certificate {}, valid until {}\n",
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
