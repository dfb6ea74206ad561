//! The operator's side of a server: asks it how it is, and gives it orders, over the mutual TLS that
//! the servers speak among themselves.
//!
//! A tool is authorised as a member is: it acts with the configuration and the certificate of a
//! server of the list. It says in every frame that it is a tool, so that nobody takes it for a second
//! server under that server's `server_id`, and nobody for a member that votes. Invariants:
//! - A question ends within its limit, whatever the other side does; a name has [`NAME_LIMIT`]
//!   before it.
//! - Every failure says what happened and what to do about it, in one line. Which server it was is
//!   for the caller to add.
//! - What comes back was checked: it is bounded, and its texts can be printed as they are.
//!
//! Needs a tokio runtime. Each question makes a connection of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use thiserror::Error;

use crate::core::config::{Member, Settings};
use crate::core::key_ring::Generation;
use crate::core::server_id::ServerId;
use crate::node::RELOAD_LIMIT;
use crate::rpc::{
    self, decode_response, AdminRefusal, ErrorResponse, Malformed, RecoverRefusal, Request,
    Response, MAX_ORIGIN,
};
use crate::transport::frame::NoCommonVersion;
use crate::transport::listener::Refusal;
use crate::transport::peers::{ask_once, DialError};
use crate::transport::resolver::Resolver;
use crate::transport::tls::{HandshakeError, Tls, UNKNOWN_NAME};
use crate::transport::LocalIdentity;

pub use crate::core::client_policy::{ClientPolicy, SitePolicy};
pub use crate::core::rotation::AdminCommand;
pub use crate::core::server_status::{
    CertificateStatus, Count, GroupStatus, Handshakes, Hint, HostStatus, KeyInUse, KeyStatus, Keys,
    LastReload, ListStatus, MemberStatus, ReloadStatus, Role, ServerStatus, SessionStatus,
};
pub use crate::core::ticket_scope::TicketScope;

/// How long a question about a server's status may take unless the caller knows better: a dial to a
/// host that is down takes the longest, 3 s.
pub const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// How long a tool waits for a name: with the system's defaults a first name server that is dead
/// costs 5 s, and the second one answers then.
pub const NAME_LIMIT: Duration = Duration::from_secs(10);

/// What an order may take beyond the options' times, for connections and the way there and back.
const ORDER_MARGIN: Duration = Duration::from_secs(5);

/// How long an order may take with these options: the asked server looks for the leader for one
/// `client_req_timeout`, the leader takes two and a handover.
pub fn admin_limit(settings: &Settings) -> Duration {
    settings.request_timeout * 3 + settings.handover_timeout + ORDER_MARGIN
}

/// How long a reload may take.
pub fn reload_limit() -> Duration {
    RELOAD_LIMIT + ORDER_MARGIN
}

/// The most characters of what is said of a person; four bytes for each fit into a request.
const MAX_PERSON: usize = MAX_ORIGIN / 4;

/// Speaks to servers in the name of the server whose configuration it was made of.
#[derive(Clone)]
pub struct Client {
    me: LocalIdentity,
    tls: Tls,
    person: String,
}

impl Client {
    /// For a configuration and certificates as [`crate::load::load`] gives them.
    pub fn new(settings: &Settings, tls: &Tls) -> Client {
        Client {
            me: LocalIdentity::tool(settings.server_id),
            tls: tls.clone(),
            person: String::new(),
        }
    }

    /// The same on behalf of a person, in words for the log of whoever carries an order out; what is
    /// longer than a line has is cut.
    pub fn on_behalf_of(self, person: &str) -> Client {
        Client { person: person.chars().take(MAX_PERSON).collect(), ..self }
    }

    /// Asks a server how it is, and measures how long the answer took: from sending the question
    /// over a connection that was up until the answer was read, in which the server verified this
    /// side's certificate.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn status(
        &self,
        member: &Member,
        limit: Duration,
    ) -> Result<(ServerStatus, Duration), Failure> {
        match self.ask(member, &Request::ServerStatus, limit).await? {
            (Response::ServerStatus(status), _) if status.id != member.id => {
                Err(Failure::Stranger(status.id))
            }
            (Response::ServerStatus(status), took) => Ok((*status, took)),
            _ => Err(Failure::InvalidResponse),
        }
    }

    /// Has the group rotate or revoke now, through any server: it passes the order on to the leader.
    /// Answers with the generation that is in use then. See [`admin_limit`].
    ///
    /// # Errors
    /// Why it was not done. Where no answer came in time, or [`AdminRefusal`] says so, it may
    /// still happen.
    pub async fn admin_command(
        &self,
        through: &Member,
        command: AdminCommand,
        limit: Duration,
    ) -> Result<Generation, Failure> {
        let request = Request::AdminCommand { command, origin: self.person.clone() };
        match self.ask(through, &request, limit).await? {
            (Response::AdminCommand(Ok(generation)), _) => Ok(generation),
            (Response::AdminCommand(Err(refusal)), _) => Err(Failure::AdminCommand(refusal)),
            _ => Err(Failure::InvalidResponse),
        }
    }

    /// Has a server read its files again, and says what changed. See [`reload_limit`].
    ///
    /// # Errors
    /// Why there is no answer, or [`Failure::Reload`] with the reason why nothing was changed.
    pub async fn reload(&self, member: &Member, limit: Duration) -> Result<String, Failure> {
        match self.ask(member, &Request::Reload { origin: self.person.clone() }, limit).await? {
            (Response::Reloaded(outcome), _) => outcome.map_err(Failure::Reload),
            _ => Err(Failure::InvalidResponse),
        }
    }

    /// Has a server go on with these alone, all others being gone for good; the epoch of the cluster
    /// that is founded. See [`admin_limit`].
    ///
    /// # Errors
    /// Why it was not done. Where no answer came in time it may still happen.
    pub async fn recover(
        &self,
        member: &Member,
        survivors: BTreeSet<ServerId>,
        limit: Duration,
    ) -> Result<u64, Failure> {
        let request = Request::Recover { survivors, origin: self.person.clone() };
        match self.ask(member, &request, limit).await? {
            (Response::Recovered(outcome), _) => outcome.map_err(Failure::Recover),
            _ => Err(Failure::InvalidResponse),
        }
    }

    async fn ask(
        &self,
        member: &Member,
        request: &Request,
        limit: Duration,
    ) -> Result<(Response, Duration), Failure> {
        // None of the two requests can fail to be encoded.
        let body = rpc::encode(request).ok_or(Failure::InvalidResponse)?;
        let tls = self.tls.for_member(member);
        let place = (member.address.as_str(), member.port);
        let resolver = Resolver::system().patient(NAME_LIMIT);
        let asked = ask_once(&resolver, &tls, &self.me, place, &body, limit).await;
        let (answer, took) = asked.map_err(|error| Failure::of(error, limit))?;
        match decode_response(&answer).map_err(Failure::Malformed)? {
            Response::ErrorResponse(why) => Err(Failure::ErrorResponse(why)),
            response => Ok((response, took)),
        }
    }
}

/// Why a server did not do what it was asked.
#[derive(Debug, Error)]
pub enum Failure {
    /// There is no way to it.
    #[error(
        "unreachable: {0}; see that Traffic Server runs there with the plugin started (its \
         diags.log says why if not), that address and port are right, and that no firewall is \
         between"
    )]
    Unreachable(String),
    /// It did not answer in time.
    #[error("no answer within {0} ms; see whether it hangs, or how far away it is")]
    TimedOut(u128),
    /// Its certificate is not accepted here.
    #[error(
        "{0}; compare root_cert_file and cert_verify_str here \
         with server_cert_file there"
    )]
    TheirCertificate(HandshakeError),
    /// It does not accept the certificate that was shown to it.
    #[error(
        "it does not accept this configuration's certificate: {0}; compare server_cert_file here \
         with root_cert_file and cert_verify_str there, and see that this server is still in the group's list"
    )]
    OurCertificate(String),
    /// What listens there does not speak our TLS.
    #[error("no stek_share answers there: {0}; see that address and port are right")]
    NotOurs(HandshakeError),
    /// It does not hear the server in whose name was asked.
    #[error("it refuses to answer: {0}; {remedy}", remedy = remedy(*.0))]
    Refused(Refusal),
    /// No protocol version is common to both.
    #[error(transparent)]
    Version(NoCommonVersion),
    /// It ended the connection where an answer should have come.
    #[error(
        "it closed the connection without an answer: it stops just now, or runs a stek_share too \
         old for this question; try again, else upgrade it"
    )]
    Closed,
    /// The server there is another one.
    #[error("the server there calls itself server_id {0}; correct the server list here or there")]
    Stranger(ServerId),
    /// Its answer is no message.
    #[error("its answer makes no sense: {0}; run the same version of stek_share here and there")]
    Malformed(Malformed),
    /// Its answer is one to something else.
    #[error(
        "its answer is not to this question; run the same version of stek_share here and there"
    )]
    InvalidResponse,
    /// It is in no state to do it.
    #[error("it cannot do that now: {0}; try again in a moment")]
    ErrorResponse(ErrorResponse),
    /// It did not take its files over.
    #[error("not done: {0}")]
    Reload(String),
    /// The group did not carry the order out.
    #[error("not done: {0}")]
    AdminCommand(AdminRefusal),
    /// It cannot go on with these servers alone.
    #[error("{0}")]
    Recover(RecoverRefusal),
}

impl Failure {
    /// Whether the server there trusts our certificate, and knows nobody of its name.
    pub fn is_unknown_name(&self) -> bool {
        matches!(self, Failure::OurCertificate(words) if words == UNKNOWN_NAME)
    }

    /// What happened, without what to do about it.
    pub fn cause(&self) -> String {
        let words = self.to_string();
        words.split_once("; ").map_or(words.clone(), |(cause, _)| cause.to_owned())
    }

    fn of(error: DialError, limit: Duration) -> Failure {
        match error {
            DialError::TimedOut => Failure::TimedOut(limit.as_millis()),
            DialError::RefusedUs(words)
            | DialError::Handshake(_, HandshakeError::RefusedUs(words)) => {
                Failure::OurCertificate(words)
            }
            DialError::Handshake(_, fault @ HandshakeError::NotOurTls(_)) => {
                Failure::NotOurs(fault)
            }
            DialError::Handshake(_, fault @ HandshakeError::Closed) => {
                Failure::Unreachable(fault.to_string())
            }
            DialError::Handshake(_, HandshakeError::Library(words)) => {
                Failure::Unreachable(format!("no TLS can be spoken here, OpenSSL: {words}"))
            }
            DialError::Handshake(_, fault) => Failure::TheirCertificate(fault),
            DialError::Refused(refusal) => Failure::Refused(refusal),
            DialError::NoVersion(none) => Failure::Version(none),
            DialError::Closed => Failure::Closed,
            other => Failure::Unreachable(other.to_string()),
        }
    }
}

fn remedy(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NotAMember => {
            "add the server to the server list, or use another server's configuration"
        }
        Refusal::Certificate => {
            "use the configuration and the certificate of one and the same server"
        }
        _ => "see its diags.log",
    }
}
