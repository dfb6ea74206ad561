//! What Traffic Server's own files say around the plugin: settings that keep sessions from being resumed
//! although the key is shared, or let more through under it than is meant, and whether the plugin is loaded.
//!
//! The words of settings are [`stek_share::core::findings`]'s, which are the plugin's. Invariants: what
//! the running server says of its own records goes before what files say, which may be newer.

use std::path::Path;

use stek_share::client::{Hint, ServerStatus, TicketScope};
use stek_share::core::config::{Problem, Severity};
use stek_share::core::findings::{self, Finding, Source, REPEATED};
use stek_share::host_config;

/// What is known of a Traffic Server without asking it.
pub struct Host<'a> {
    /// Its configuration directory.
    pub dir: &'a Path,
    /// The environment of its process, if it runs and can be looked at.
    pub environment: Vec<(String, String)>,
    /// `ticket_scope` of the configuration, if that can be used.
    pub scope: Option<TicketScope>,
}

impl Host<'_> {
    /// What its files say, and its environment. `running` is what the server itself said, if it did.
    pub fn findings(&self, running: Option<&ServerStatus>) -> Vec<Finding> {
        let told = running.and_then(|status| status.host.version.as_deref());
        let version = told.and_then(findings::host_version);
        let version = version.or_else(|| host_config::version_by_files(self.dir));
        let scope = running.and_then(|status| status.host.ticket_scope).or(self.scope);
        let records = host_config::records(self.dir).under(self.environment.iter().cloned());
        let mut found = findings::of_records(|name| records.get(name), version, scope);
        let get = |name: &str| Some(records.get(name)?.value).filter(|value| !value.is_empty());
        found.extend(host_config::of_sites(self.dir, get, version, scope));
        found
    }
}

/// Whether the server says for itself what was found in its files.
pub fn is_found(hint: &Hint, found: &[Finding]) -> bool {
    matches!(hint, Hint::Setting(told) if found.iter().any(|finding| finding == told))
}

/// The lines of what was found. A record that the running server does not have so is no error yet.
pub fn problems(found: &[Finding], running: Option<&ServerStatus>) -> Vec<Problem> {
    let problem = |finding: &Finding| {
        let problem = finding.problem();
        let is_of_record = findings::RECORDS.contains(&finding.field.as_str());
        let is_so = |status: &ServerStatus| {
            let kinds = status.host.hints.iter().map(|hint| match hint {
                Hint::Setting(told) => Some(told.kind),
                _ => None,
            });
            kinds.flatten().any(|kind| kind == finding.kind)
        };
        let is_yet_to_come = is_of_record
            && finding.kind.is_hint()
            && !matches!(finding.source, Source::Running)
            && running.is_some_and(|status| status.host.version.is_some() && !is_so(status));
        if !is_yet_to_come {
            return problem;
        }
        let reason = format!(
            "{}; the running Traffic Server does not have it so, and will from its next start on, or \
             reload",
            problem.reason
        );
        Problem { severity: Severity::Warning, reason, ..problem }
    };
    found.iter().map(problem).collect()
}

/// Whether one of the lines is about early data.
pub fn is_early(found: &[Problem]) -> bool {
    found.iter().any(|problem| problem.to_string().contains(REPEATED.0))
}

/// Whether plugin.config loads the plugin, once, with the configuration that is looked at.
pub fn in_plugin_config(dir: &Path, conf: Option<&Path>) -> Vec<Problem> {
    let (path, found) = host_config::loadings(dir);
    let file = path.display().to_string();
    let all = match found {
        Ok(all) => all,
        Err(why) => {
            let reason = format!("{why}, so it is not known whether the plugin is loaded");
            return vec![Problem::warning(&file, reason, "give --ats-config DIR")];
        }
    };
    let mut enabled = all.iter().filter(|loading| loading.is_enabled);
    let Some(loading) = enabled.next() else {
        let (reason, remedy) = match all.first() {
            Some(_) => (
                "has stek_share.so with enabled: false, so this server shares no key",
                "take 'enabled: false' out",
            ),
            None => (
                "does not load stek_share.so, so this server shares no key",
                "add the line 'stek_share.so stek_share/server_conf.yaml', or give --ats-config DIR if \
                 this is not the Traffic Server that is meant",
            ),
        };
        let line = all.first().and_then(|loading| loading.line);
        return vec![Problem::error(&file, reason, remedy).at(line)];
    };
    let mut found = Vec::new();
    for again in enabled {
        let reason = "loads stek_share.so once more; only the first line counts";
        found.push(Problem::warning(&file, reason, "take it out").at(again.line));
    }
    if loading.is_inline {
        let reason = "has the configuration of stek_share.so in itself: Traffic Server hands over a file that \
                      it makes elsewhere, so that names beside it mean nothing, and a reload reads that file";
        let remedy = "write it into a file of its own, and name that in params";
        found.push(Problem::warning(&file, reason, remedy).at(loading.line));
        return found;
    }
    found.extend(host_config::wrong_arguments(dir, &loading.arguments));
    let named = loading.arguments.first().map(|argument| dir.join(argument));
    if let (Some(conf), Some(named)) = (conf, named) {
        // A relative name may be found elsewhere too; then nothing can be said.
        if let (Ok(conf), Ok(named)) = (conf.canonicalize(), named.canonicalize()) {
            if conf != named {
                let reason = format!("names another configuration than {}", conf.display());
                let remedy = "give -c with the file that Traffic Server uses";
                found.push(
                    Problem::warning(&file, reason, remedy)
                        .at(loading.line)
                        .value(named.display().to_string()),
                );
            }
        }
    }
    found
}
