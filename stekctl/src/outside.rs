//! Whether the server of this machine is outside the group's list, by what the others and its own plugin say.
//!
//! Invariants: nothing is said where a certificate may be at fault, or one of the others takes it for one of them.

use stek_share::client::Failure as Unanswered;
use stek_share::transport::listener::Refusal;

use crate::fleet::{Own, Server};

/// What there is to say of the others if they do not hear the server in whose name was asked, because it is in
/// no list of theirs; then that is all.
pub fn shut_out(servers: &[Server]) -> Option<String> {
    let server = servers.iter().find(|server| server.is_own())?;
    let id = server.id();
    let nobody_answers = servers.iter().all(|server| server.answer.is_err());
    if nobody_answers && refuses_itself(server) {
        return Some(format!(
            "server {id} is not in the list that its own plugin goes by: it was removed from the group's list \
             and gets no new key; stop its plugin, or give the list with it to all servers and reload one \
             of the others; if it has a new name since, reload this one"
        ));
    }
    let own = server.status()?;
    let others = || servers.iter().filter(|server| !server.is_own());
    let says = |is: fn(&Unanswered) -> bool| others().any(|s| s.answer.as_ref().is_err_and(is));
    let unknown = says(|why| matches!(why, Unanswered::Refused(Refusal::NotAMember)));
    let refused = says(|why| matches!(why, Unanswered::OurCertificate(_)));
    // By its entry's own subject: a common one would be known to all, or be wrong in the files.
    let nameless = server.member.subject.is_some()
        && says(Unanswered::is_unknown_name)
        && others().all(|server| server.answer.is_err());
    let removed = own.list.leaves_out(own.id);
    if own.group.quorum || !(unknown || nameless || removed && refused) {
        return None;
    }
    Some(if removed {
        format!(
            "server {id} was removed from the group's list and gets no new key; stop its plugin, or give \
             the list with it to all servers and reload one of the others"
        )
    } else {
        format!(
            "server {id} is not in the group's list, and encrypts with a key of its own until it is; give \
             the list with it to all servers, reload one of the others, and this one is let in; if it was \
             removed, stop its plugin"
        )
    })
}

/// Whether the plugin of this machine trusts the certificate of its own files, and knows nobody of its name.
fn refuses_itself(own: &Server) -> bool {
    match (&own.own, &own.answer) {
        (Own::Silent(_, why), _) | (Own::AtAddress, Err(why)) => why.is_unknown_name(),
        _ => false,
    }
}
