//! The Traffic Server around the plugin: settings of the host that defeat what the plugin is for,
//! and what else only the inside can tell.
//!
//! Looked at once, when the plugin starts. Says nothing by itself; what must hold: a file that
//! cannot be read is no reason not to start.

use std::path::PathBuf;

use super::ats;
use crate::core::box_status::{readable, Hint};
use crate::core::multicert;
use crate::load::{self, Dirs};

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Traffic Server's version.
    pub version: Option<String>,
    /// What the operator has to look at.
    pub hints: Vec<Hint>,
    /// See [`crate::core::box_status::HostStatus::ca_digest`].
    pub ca_digest: Option<String>,
}

impl Surroundings {
    /// Looks around. Reads two files of the host's, so it is not for a thread that must not wait.
    pub fn look(dirs: &Dirs) -> Surroundings {
        const TICKET_FILE: &str = "proxy.config.ssl.server.ticket_key.filename";
        const TICKETS: &str = "proxy.config.ssl.server.session_ticket.enable";
        let mut hints = Vec::new();
        if let Some(file) = ats::record_string(TICKET_FILE) {
            hints.push(Hint::TicketKeyFile(readable(&file)));
        }
        if ats::record_int(TICKETS) == Some(0) {
            hints.push(Hint::TicketsDisabled);
        }
        let multicert = load::host_file(&multicert_path(dirs));
        if let Some(text) = multicert.as_ref().and_then(|bytes| std::str::from_utf8(bytes).ok()) {
            hints.extend(multicert::hints(text));
        }
        let version = ats::version().map(|version| readable(&version));
        Surroundings { version, hints, ca_digest: ca_digest(dirs) }
    }
}

fn multicert_path(dirs: &Dirs) -> PathBuf {
    let name = ats::record_string("proxy.config.ssl.server.multicert.filename");
    dirs.config.join(name.unwrap_or_else(|| "ssl_multicert.config".to_owned()))
}

/// The host takes the path to be relative to its prefix, and the name to be relative to the path.
fn ca_digest(dirs: &Dirs) -> Option<String> {
    let name = ats::record_string("proxy.config.ssl.CA.cert.filename")?;
    let path = ats::record_string("proxy.config.ssl.CA.cert.path").unwrap_or_default();
    let bytes = load::host_file(&dirs.install.join(path).join(name))?;
    let digest = openssl::sha::sha256(&bytes);
    Some(digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect())
}
