//! Which user runs the Traffic Server that is meant.
//!
//! Looking at files as that user is for [`crate::locate`].

use std::path::Path;

use stek_share::host::identity::{self, User};

use crate::doctor::machine;
use crate::locate;
use crate::users;

/// The user that runs the Traffic Server of this configuration directory, for root, who may read what
/// that user may not: of the process that runs, or else of the records. `None` if it is the present one.
pub fn server_user(config: &Path, proc: &Path) -> Option<User> {
    if !identity::is_root() {
        return None;
    }
    let usual = locate::usual().is_some_and(|usual| usual == config);
    let user = match machine::servers(proc, config, usual).first() {
        Some(pid) => users::of_process(&proc.join(pid.to_string()))?,
        None => users::in_records(config)?,
    };
    (user.uid != 0).then_some(user)
}
