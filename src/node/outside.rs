//! What a box has of the world outside its process: mail to and from other boxes, and the disk.
//!
//! A product's box has mutual TLS and the file system. A simulation brings its own, to run many
//! boxes in one process on a network and on disks that it rules. Time and randomness need nothing
//! here: a process that wants other ones gives them to tokio, std and OpenSSL as their system.
//!
//! Leaves to others what a message means and what is written. What must hold: whoever brings its
//! own mail does what [`crate::transport`] does for it — no request of a sender that
//! [`Porter::admit`] refuses is served, what is heard is noted in [`Heard`], and an answer comes
//! from the incarnation that was asked or not at all.

use std::future::{ready, Future};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::inbox::Inbox;
use super::shared::Shared;
pub use super::state_file::{Files, Stamp, Unusable};
use crate::core::config::Member;
use crate::core::server_id::ServerId;
use crate::journal::Log;
use crate::transport::frame::Header;
use crate::transport::listener::{Caller, ListenDeps, ListenSettings, Listener, Refusal, Service};
use crate::transport::peers::{call_once_by, CallError, Peers};
use crate::transport::resolver::Resolver;
use crate::transport::tls::Tls;
use crate::transport::{Body, Bounds, Heard, Me};

/// What a request is answered, some time.
pub type Reply<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Reads the server list in this server's `server_list_file` as it is now, off the node's thread;
/// `None` if it cannot be read or is no list.
pub type ReadList = Arc<dyn Fn() -> Reply<Option<Vec<Member>>> + Send + Sync>;

/// The world outside a box.
pub struct Outside {
    /// How messages travel; mutual TLS if there is nothing here.
    pub mail: Option<Arc<dyn Mail>>,
    /// Where `state_dir` is.
    pub disk: Arc<dyn Disk>,
    /// Who looks host names up.
    pub resolver: Resolver,
    /// How long this machine has been suspended since it booted: timers stand still meanwhile, and
    /// keys grow older. Never less than before.
    pub suspended: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// How the list in the file is read: without it no list is ever found there.
    pub list_file: ReadList,
    /// How much of connections to bear, where mutual TLS is used.
    pub bounds: Bounds,
}

/// The real one, without a server list.
impl Default for Outside {
    fn default() -> Outside {
        Outside {
            mail: None,
            disk: Arc::new(Files),
            resolver: Resolver::system(),
            suspended: Arc::new(|| Duration::ZERO),
            list_file: Arc::new(|| Box::pin(ready(None))),
            bounds: Bounds::default(),
        }
    }
}

/// Carries one box's messages, in place of mutual TLS.
pub trait Mail: Send + Sync + 'static {
    /// Called once, before anything else: what the box says of itself, and where it is to be noted
    /// whom it heard ([`Heard::note`], [`Heard::note_answer`]).
    fn open(&self, me: &Me, heard: &Heard);

    /// As [`Peers::set_members`].
    fn set_members(&self, members: &[Member]);

    /// As [`Peers::request`].
    fn request(&self, to: ServerId, body: Body, limit: Duration) -> Reply<Result<Body, CallError>>;

    /// As [`Peers::note`].
    fn note(&self, to: ServerId, body: Body, limit: Duration);

    /// As [`call_once_by`], for a box that is no member yet.
    fn ask_stranger(
        &self,
        member: &Member,
        body: Body,
        limit: Duration,
    ) -> Reply<Result<Body, CallError>>;

    /// Hands to `porter` what comes in, until the answer is dropped.
    fn listen(&self, porter: Arc<dyn Porter>) -> Box<dyn Send + Sync>;
}

/// Answers requests that came in by a [`Mail`]: [`Service`] as an object.
pub trait Porter: Send + Sync {
    /// As [`Service::admit`].
    ///
    /// # Errors
    /// Why the sender is not heard.
    fn admit(&self, hello: &Header) -> Result<(), Refusal>;

    /// As [`Service::take_note`].
    fn take_note(&self, from: &Caller, body: Body) -> bool;

    /// As [`Service::serve`].
    fn serve(self: Arc<Self>, from: Caller, body: Body) -> Reply<Option<Body>>;
}

impl<S: Service> Porter for S {
    fn admit(&self, hello: &Header) -> Result<(), Refusal> {
        Service::admit(self, hello)
    }

    fn take_note(&self, from: &Caller, body: Body) -> bool {
        Service::take_note(self, from, body)
    }

    fn serve(self: Arc<Self>, from: Caller, body: Body) -> Reply<Option<Body>> {
        Box::pin(Service::serve(self, from, body))
    }
}

/// Keeps a box's state file, and reads the machine's clocks that it is stamped by. What a disk is
/// asked for may take for ever, and holds up nobody who does not await it.
pub trait Disk: Send + Sync + 'static {
    /// What there is to say against a directory as a place for keys.
    fn doubts_about(&self, dir: &Path) -> Reply<Vec<String>>;

    /// A file's bytes.
    ///
    /// # Errors
    /// It cannot be read, or others may read or write it.
    fn read(&self, path: &Path) -> Reply<Result<Vec<u8>, Unusable>>;

    /// Puts a file of these bytes in the place of what was there, as a whole or not at all. Makes
    /// the directory if it is not there.
    ///
    /// # Errors
    /// It could not be written; what was there may still be.
    fn write(&self, path: &Path, bytes: Vec<u8>) -> Reply<io::Result<()>>;

    /// Removes a file.
    ///
    /// # Errors
    /// It is still there; there having been none is no error.
    fn remove(&self, path: &Path) -> Reply<io::Result<()>>;

    /// The present, on clocks that outlive a process.
    ///
    /// # Errors
    /// The system does not tell.
    fn stamp(&self) -> io::Result<Stamp>;
}

/// A box's way to the others.
pub(super) enum Post {
    Tls(Peers, Resolver),
    Given(Arc<dyn Mail>),
}

impl Post {
    pub fn new(
        (mail, bounds): (Option<Arc<dyn Mail>>, Bounds),
        resolver: Resolver,
        log: &Log,
        tls: watch::Receiver<Tls>,
        me: &Me,
        heard: &Heard,
    ) -> Post {
        match mail {
            None => {
                let peers = Peers::new(log.clone(), tls, me.clone(), heard.clone());
                Post::Tls(peers.resolving(resolver.clone()).within(bounds), resolver)
            }
            Some(mail) => {
                mail.open(me, heard);
                Post::Given(mail)
            }
        }
    }

    pub fn set_members(&self, members: &[Member]) {
        match self {
            Post::Tls(peers, _) => peers.set_members(members),
            Post::Given(mail) => mail.set_members(members),
        }
    }

    pub async fn request(
        &self,
        to: ServerId,
        body: Body,
        limit: Duration,
    ) -> Result<Body, CallError> {
        match self {
            Post::Tls(peers, _) => peers.request(to, body, limit).await,
            Post::Given(mail) => mail.request(to, body, limit).await,
        }
    }

    pub fn note(&self, to: ServerId, body: Body, limit: Duration) {
        match self {
            Post::Tls(peers, _) => peers.note(to, body, limit),
            Post::Given(mail) => mail.note(to, body, limit),
        }
    }

    pub async fn ask_stranger(
        &self,
        shared: &Shared,
        member: &Member,
        body: Body,
        limit: Duration,
    ) -> Result<Body, CallError> {
        match self {
            Post::Tls(_, resolver) => {
                let tls = shared.tls.borrow().for_member(member);
                let place = (member.address.as_str(), member.port);
                call_once_by(resolver, &tls, &shared.sender, place, &body, limit).await
            }
            Post::Given(mail) => mail.ask_stranger(member, body, limit).await,
        }
    }

    /// Starts to let others in.
    pub fn listen(&self, shared: &Arc<Shared>) -> Ears {
        let inbox = Arc::new(Inbox(shared.clone()));
        let bounds = match self {
            Post::Given(mail) => return Ears::Given(mail.listen(inbox)),
            Post::Tls(peers, _) => peers.bounds(),
        };
        let settings = ListenSettings {
            bind_address: shared.settings().bind_address.clone(),
            address: shared.settings().address.clone(),
            port: shared.settings().port,
            members: shared.members().to_vec(),
            bounds,
        };
        let deps = ListenDeps {
            log: shared.log.clone(),
            tls: shared.tls.subscribe(),
            me: shared.sender.clone(),
            heard: shared.heard.clone(),
            counters: shared.counters.clone(),
        };
        Ears::Tls(Listener::start(settings, deps, inbox))
    }
}

/// Lets others in until it is dropped.
pub(super) enum Ears {
    Tls(Listener),
    /// What [`Mail::listen`] gave.
    Given(#[allow(dead_code)] Box<dyn Send + Sync>),
}

impl Ears {
    pub fn set_members(&self, members: &[Member]) {
        if let Ears::Tls(listener) = self {
            listener.set_members(members);
        }
    }
}
