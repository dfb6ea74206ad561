//! `check`: what the plugin would say about a configuration, by the plugin's own code.

use std::path::{Path, PathBuf};

use stek_share::client::TicketScope;
use stek_share::core::config::{Problem, Severity};
use stek_share::host_config;

use crate::cli::{CheckArgs, Place};
use crate::doctor::{ats, machine};
use crate::exit_code::{Ended, Failure, Outcome};
use crate::locate;
use crate::output::{print, styled, BAD, DOUBTFUL, GOOD};
use crate::rights;

/// Reads the files and prints the plugin's lines.
pub fn run(args: &CheckArgs, place: &Place) -> Ended {
    let typed = args.file.as_ref().or(place.config.as_ref());
    let source = match &args.file {
        Some(file) => locate::source_of(file, place)?,
        None => locate::source(place)?,
    };
    // A file that belongs to no Traffic Server of this machine is looked at as whoever asks.
    let is_inside = |dir: &PathBuf| {
        typed.is_none_or(|file| file.canonicalize().is_ok_and(|f| f.starts_with(dir)))
    };
    let config =
        locate::ats_config(place)?.filter(|dir| place.ats_config.is_some() || is_inside(dir));
    let proc = Path::new("/proc");
    let user = config.as_deref().and_then(|dir| rights::server_user(dir, proc));
    let (mut problems, loaded) = locate::problems_as(user.as_ref(), &source)?;
    if let Some(dir) = config.as_deref() {
        let scope = loaded.as_ref().map(|loaded| loaded.settings.ticket_scope);
        problems.extend(around(dir, proc, scope));
    }
    let whose = user.map_or(String::new(), |user| format!(", read as user {}", user.name));
    problems.iter().try_for_each(|problem| print(&told(problem)))?;
    if loaded.is_none() && problems.iter().any(locate::is_for_root) {
        return Err(Failure::new("what may not be read was not checked"));
    }
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
        "{} server {}, in a list of {}{whose}; certificate {}, valid until {}\n",
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

/// What the plugin would say of the Traffic Server around it.
fn around(dir: &Path, proc: &Path, scope: Option<TicketScope>) -> Vec<Problem> {
    let usual = locate::usual().is_some_and(|usual| usual == dir);
    let environment = machine::environment(proc, dir, usual);
    let policy = machine::policy(&environment);
    let found = ats::Host { dir, environment, scope }.findings(None);
    let (_, loadings) = host_config::loadings(dir);
    let first = loadings.unwrap_or_default().into_iter().find(|loading| loading.is_enabled);
    let fault = first.filter(|loading| !loading.is_inline);
    let fault = fault.and_then(|loading| host_config::wrong_arguments(dir, &loading.arguments));
    fault.into_iter().chain(policy).chain(ats::problems(&found, None)).collect()
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
