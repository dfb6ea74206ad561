//! A server finds itself in the list, so that one configuration serves all servers.
//!
//! What this machine's addresses and its certificate's names are comes in. Invariants: a server that finds
//! itself in no entry, or in several, is told so and is none of them; what an entry demands of a certificate
//! goes before where the machine is.

use super::identity::AUTO;
use super::{Conf, List, Member, Problem};

/// What a machine knows of itself.
pub struct Oneself<'a> {
    /// Whether the certificate has a name, as `cert_verify_str` has it.
    pub has_name: &'a dyn Fn(&str) -> bool,
    /// Whether an address or host name is this machine's, or one that the certificate is made out to.
    pub is_at: &'a dyn Fn(&str) -> bool,
}

impl Conf {
    /// Whether something is to be found out by [`Conf::find_itself`].
    pub fn is_auto(&self) -> bool {
        self.auto.any()
    }

    /// Puts what the list says of this server in the place of each `auto`. What is wrong, if it is not
    /// there or several entries fit.
    pub fn find_itself(&mut self, list: &List, own: &Oneself<'_>) -> Option<Problem> {
        let found = if self.auto.id {
            match self.search(list, own) {
                Ok(member) => Some(member),
                Err(problem) => {
                    self.usable = false;
                    return Some(*problem);
                }
            }
        } else {
            list.members.iter().find(|member| Some(member.id) == self.server_id)
        };
        // That a number is not in the list is for the check of membership to say.
        let member = found?.clone();
        if self.auto.id {
            self.server_id = Some(member.id);
            self.settings.server_id = member.id;
        }
        if self.auto.address {
            self.address = Some(member.address.clone());
            self.settings.address = member.address;
        }
        if self.auto.port {
            self.port = Some(member.port);
            self.settings.port = member.port;
        }
        None
    }

    fn search<'a>(&self, list: &'a List, own: &Oneself<'_>) -> Result<&'a Member, Box<Problem>> {
        let by_name = |member: &&Member| member.subject.as_deref().is_some_and(own.has_name);
        // An entry that demands a name which this server has not is another one's.
        let by_place = |member: &&Member| member.subject.is_none() && (own.is_at)(&member.address);
        let named: Vec<&Member> = list.members.iter().filter(by_name).collect();
        let found = match named.as_slice() {
            [] => list.members.iter().filter(by_place).collect(),
            _ => named,
        };
        let remedy = "give this server's number in the list, or make an entry's address this \
                      machine's, or its cert_verify_str a name of server_cert_file";
        match found.as_slice() {
            [one] => Ok(one),
            [] => {
                let reason = format!(
                    "finds this server in no entry of \"{}\": none has a cert_verify_str that its \
                     certificate has, or an address of this machine",
                    list.file
                );
                Err(Box::new(self.error("server_id", reason, remedy).value(AUTO)))
            }
            several => {
                let ids: Vec<String> = several.iter().map(|m| m.id.to_string()).collect();
                let reason = format!(
                    "finds this server in several entries of \"{}\", server_id {}",
                    list.file,
                    ids.join(" and ")
                );
                Err(Box::new(self.error("server_id", reason, remedy).value(AUTO)))
            }
        }
    }
}
