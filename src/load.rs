//! Reads the configuration files and certificates into checked settings.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::core::config::{Settings, Timers};
use crate::core::server_id::ServerId;
use crate::transport::tls::Tls;

/// Where relative paths may start, in this order.
pub struct Dirs {
    /// The working directory.
    pub working: PathBuf,
    /// The host's install prefix.
    pub install: PathBuf,
    /// The host's configuration directory.
    pub config: PathBuf,
}

/// A usable configuration.
pub struct Loaded {
    /// All options.
    pub settings: Settings,
    /// Certificates.
    pub tls: Tls,
    /// What an operator should look at.
    pub warnings: Vec<Problem>,
}

/// A configuration that cannot be used.
pub struct Refused {
    /// Why.
    pub problems: Vec<Problem>,
    /// What else an operator should look at.
    pub warnings: Vec<Problem>,
}

/// One line for the operator.
pub struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Placeholder: looks only at whether the file is there.
///
/// # Errors
/// The file cannot be read.
pub fn load(argument: &str, dirs: &Dirs) -> Result<Loaded, Refused> {
    let path = dirs.working.join(argument);
    if let Err(why) = std::fs::read(&path) {
        let line = format!("{}: {why}", path.display());
        return Err(Refused { problems: vec![Problem(line)], warnings: Vec::new() });
    }
    let ms = Duration::from_millis;
    let settings = Settings {
        server_id: ServerId(1),
        address: "127.0.0.1".into(),
        port: 1,
        bind_address: None,
        workers: 4,
        timers: Timers { heart_beat: ms(100), election_lower: ms(200), election_upper: ms(400) },
        reserved_log_items: 5,
        snapshot_distance: 5,
        request_timeout: ms(3000),
        key_update_interval: ms(60_000),
        handover_timeout: ms(1500),
        startup_wait: ms(2000),
        ticket_keys: 2,
        max_key_age: ms(86_400_000),
        root_cert_file: PathBuf::new(),
        server_cert_file: PathBuf::new(),
        server_key_file: PathBuf::new(),
        cert_verify_str: String::new(),
        members: Vec::new(),
    };
    Ok(Loaded { settings, tls: Tls, warnings: Vec::new() })
}
