//! Mutual TLS: one context for both directions, who is trusted, and the handshakes.
//!
//! Knows nothing of frames, files or keys: PEM text comes in as bytes. Invariants:
//! - Both sides demand a certificate that chains to the given root alone (never to the system's
//!   store), is valid now, is fit for a TLS server, and whose leaf has a wanted name, its subject or a
//!   subject alternative name: that of `cert_verify_str`, or the own one of an entry of the server list.
//!   A server's purpose is asked of both sides, since many CAs issue nothing else.
//! - A member whose entry names a subject of its own has that one and no other: the side that
//!   dials demands it in the handshake, the side that is dialled asks [`Tls::is_of`].
//! - [`Tls::accept`] and [`Tls::connect`] give a stream only after this side verified the other;
//!   until then no byte of a frame is read or written.
//! - A connection that stands is checked by the function that checked it at its handshake.
//! - No session is resumed and no ticket is issued between peers, so that each connection is
//!   verified anew.
//!
//! Long because: who is trusted is one assessment, and its parts are of no use elsewhere.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::md::Md;
use openssl::pkey::{Id, PKey, Private};
use openssl::pkey_ctx::{HkdfMode, PkeyCtx};
use openssl::ssl::{
    self, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslSessionCacheMode,
    SslVerifyMode, SslVersion,
};
use openssl::stack::{Stack, StackRef};
use openssl::x509::store::{X509Store, X509StoreBuilder};
use openssl::x509::verify::X509VerifyParam;
use openssl::x509::{
    X509PurposeId, X509Ref, X509StoreContext, X509StoreContextRef, X509VerifyResult, X509,
};
use socket2::SockRef;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_openssl::SslStream;
use zeroize::Zeroizing;

use super::issuer::Issuer;
use super::names::Names;
use super::self_handshake;
use super::x509_name::one_line;
use crate::core::config::Member;
use crate::core::expiry::Expiry;
use crate::core::server_id::ServerId;
use crate::core::text::short_digest;
use crate::supervise::{fail_point, lock};

/// A TLS stream whose other end was verified.
pub type Stream = SslStream<Socket>;

/// For TLS 1.2: forward secrecy and an AEAD, nothing else. TLS 1.3 has nothing weaker anyway.
const TLS12_CIPHERS: &str = "ECDHE+AESGCM:ECDHE+CHACHA20";

/// `SSL_OP_CLEANSE_PLAINTEXT` of OpenSSL 3: erase decrypted bytes once they were handed over.
/// The `openssl` crate has no name for it.
const CLEANSE_PLAINTEXT: u32 = 1 << 1;

/// The first OpenSSL whose options have [`CLEANSE_PLAINTEXT`], in the form of its version number.
const OPENSSL_3: i64 = 0x3000_0000;

/// The most characters of a stranger's subject or of a library's reason that reach a line.
const MAX_QUOTED: usize = 200;

/// A TCP connection that can move from one tokio runtime to another.
#[derive(Debug)]
pub struct Socket {
    tcp: Option<TcpStream>,
    /// While the wall clock shows this, the chain of whoever is at the other end is valid; nothing until
    /// that was assessed.
    valid: Range<SystemTime>,
}

impl Socket {
    fn new(tcp: TcpStream) -> Socket {
        Socket { tcp: Some(tcp), valid: UNIX_EPOCH..UNIX_EPOCH }
    }

    /// What [`Tls::assess`] said of the other end once the handshake was over.
    pub(super) fn valid(&self) -> Range<SystemTime> {
        self.valid.clone()
    }

    /// Has the system throw away what it has not sent yet when this is closed.
    pub(super) fn discard_unsent(&self) {
        if let Some(tcp) = &self.tcp {
            let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
    }

    /// Where the other end is.
    pub(super) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.as_ref().ok_or(io::ErrorKind::NotConnected)?.peer_addr()
    }

    /// Has the present runtime wait for this socket from now on.
    fn settle(&mut self) -> io::Result<()> {
        if let Some(tcp) = self.tcp.take() {
            self.tcp = Some(TcpStream::from_std(tcp.into_std()?)?);
        }
        Ok(())
    }

    fn tcp(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        // Empty only after a failed move, which ends the connection.
        self.tcp.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.tcp()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.tcp()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp()?.poll_shutdown(cx)
    }
}

/// Certificates and trust, loaded and checked. Cloning makes another handle.
#[derive(Clone)]
pub struct Tls(Arc<Inner>, Arc<Roll>, Option<Handle>);

/// Whose certificates are accepted.
struct Roll {
    /// The members whose entry names a subject, and that subject.
    own: BTreeMap<ServerId, String>,
    /// Whether `cert_verify_str` is accepted as well.
    takes_common: bool,
    /// Whether this is about one server that is dialled.
    is_of_one: bool,
}

struct Inner {
    context: SslContext,
    leaf: X509,
    /// See [`Tls::leaf_fingerprint`].
    leaf_mark: Arc<str>,
    /// `cert_verify_str`; empty means any.
    common: String,
    /// What [`Tls::derive_key`] expands: the private key in DER form, extracted (RFC 5869 section 2.2).
    extract: Zeroizing<Vec<u8>>,
    /// See [`Tls::roots_digest`].
    roots_digest: String,
    /// See [`Tls::roots`].
    roots: Vec<String>,
    /// The own leaf and what leads to the root, in this order.
    chain: Vec<Link>,
}

/// One step of HKDF with SHA-256, 32 bytes. They stand in one place, which is erased: what moves is where
/// that is.
fn hkdf(mode: HkdfMode, secret: &[u8], purpose: &[u8]) -> Result<Zeroizing<Vec<u8>>, ErrorStack> {
    let mut derivation = PkeyCtx::new_id(Id::HKDF)?;
    derivation.derive_init()?;
    derivation.set_hkdf_mode(mode)?;
    derivation.set_hkdf_md(Md::sha256())?;
    derivation.set_hkdf_key(secret)?;
    derivation.add_hkdf_info(purpose)?;
    let mut key = Zeroizing::new(vec![0; 32]);
    derivation.derive(Some(&mut *key))?;
    Ok(key)
}

/// One certificate of the own chain.
struct Link {
    subject: String,
    valid: Range<SystemTime>,
    /// Its last moment, as OpenSSL writes it.
    not_after: String,
}

/// Why certificates cannot be used. The words for it, and which file it was, are for the caller to add.
#[derive(Debug)]
pub enum TlsError {
    /// The root file has no certificate in PEM form.
    RootGarbage,
    /// The certificate file has no certificate in PEM form.
    ChainGarbage,
    /// The key file has no private key in PEM form.
    KeyGarbage,
    /// The key is protected by a passphrase, which nobody could type here.
    KeyEncrypted,
    /// The key is another one's.
    KeyMismatch {
        /// The leaf's subject in the one-line form.
        subject: String,
    },
    /// The leaf is no longer valid.
    Expired {
        /// The leaf's subject in the one-line form.
        subject: String,
        /// Its last moment.
        not_after: String,
    },
    /// The leaf is not valid yet.
    NotYetValid {
        /// The leaf's subject in the one-line form.
        subject: String,
        /// Its first moment.
        not_before: String,
    },
    /// The leaf has no subject, by which servers are told from each other.
    NoSubject,
    /// The leaf's subject is not the one that peers ask for.
    SubjectMismatch {
        /// The leaf's subject in the one-line form.
        found: String,
    },
    /// The leaf does not chain to the root, or is not fit for a TLS server.
    ChainUntrusted {
        /// The subject of the certificate at fault in the one-line form.
        subject: String,
        /// OpenSSL's reason.
        reason: String,
        /// OpenSSL's number of the reason.
        code: i32,
        /// Its last moment, as OpenSSL writes it.
        not_after: String,
        /// How the name of its issuer stands to the certificates that are there.
        issuer: Issuer,
    },
    /// A handshake with itself came to nothing, and would with every peer.
    NoHandshake {
        /// The leaf's subject in the one-line form, and the kinds of its key and signature.
        leaf: String,
        /// OpenSSL's reason.
        reason: String,
        /// OpenSSL's number of the reason.
        code: i32,
        /// How many bytes of certificates are sent.
        sent: usize,
    },
    /// OpenSSL refused something else, such as a key that is too short for its security level.
    OpenSsl(ErrorStack),
}

impl From<ErrorStack> for TlsError {
    fn from(stack: ErrorStack) -> TlsError {
        TlsError::OpenSsl(stack)
    }
}

impl Tls {
    /// Loads PEM text and checks that it works: that it parses, that key and certificate belong
    /// together, that the leaf is valid now, has the subject `cert_verify_str` (empty means any)
    /// and chains to `root`. Of `chain` the first certificate is the leaf, the rest is sent along.
    ///
    /// Never asks for a passphrase.
    ///
    /// # Errors
    /// The first check that failed.
    pub fn from_pem(
        root: &[u8],
        chain: &[u8],
        key: &[u8],
        cert_verify_str: &str,
    ) -> Result<Tls, TlsError> {
        Tls::from_pem_as(root, chain, key, cert_verify_str, None)
    }

    /// The same for a server whose own entry of the server list may name the subject that its leaf
    /// has in place of `cert_verify_str`. Which other subjects are accepted is for
    /// [`Tls::with_members`] to say.
    ///
    /// # Errors
    /// The first check that failed.
    pub fn from_pem_as(
        root: &[u8],
        chain: &[u8],
        key: &[u8],
        cert_verify_str: &str,
        own: Option<&str>,
    ) -> Result<Tls, TlsError> {
        let roots = certificates(root).ok_or(TlsError::RootGarbage)?;
        let mut chain = certificates(chain).ok_or(TlsError::ChainGarbage)?;
        let leaf = chain.remove(0);
        let key = private_key(key)?;
        check_leaf(&leaf, &key, own.unwrap_or(cert_verify_str))?;
        let links = check_chain(&roots, &leaf, &chain)?;
        let common = cert_verify_str.to_owned();
        let sent = chain.iter().try_fold(leaf.to_der()?.len(), |sum, certificate| {
            Ok::<_, ErrorStack>(sum + certificate.to_der()?.len())
        })?;
        let no_handshake = |(code, reason)| {
            let leaf = format!("{} ({})", one_line(leaf.subject_name()), made_of(&leaf));
            TlsError::NoHandshake { leaf, reason, code, sent }
        };
        let refused = |stack: ErrorStack| {
            let last = stack.errors().last();
            let reason = last.and_then(|last| last.reason()).unwrap_or("no reason given");
            no_handshake((last.map_or(0, |last| last.reason_code()), reason.to_owned()))
        };
        let context = context(store_of(&roots)?, &leaf, chain, &key).map_err(refused)?;
        self_handshake::shake_hands(&context)?.map_err(no_handshake)?;
        let roll = Roll { own: BTreeMap::new(), takes_common: true, is_of_one: false };
        let (roots_digest, roots) = (digest_of(&roots)?, named(&roots));
        let leaf_mark = fingerprint(&leaf).into();
        let extract =
            hkdf(HkdfMode::EXTRACT_ONLY, &Zeroizing::new(key.private_key_to_der()?), &[])?;
        let inner =
            Inner { context, leaf, leaf_mark, common, extract, roots_digest, roots, chain: links };
        Ok(Tls(Arc::new(inner), Arc::new(roll), None))
    }

    /// The same, with its handshakes computed by the workers of another runtime, so that no flood
    /// of strangers can keep the present one from its timers. An established connection comes
    /// back to the runtime that asked for it.
    pub fn on(&self, workers: Handle) -> Tls {
        Tls(self.0.clone(), self.1.clone(), Some(workers))
    }

    /// These certificates in place of `old`, with the workers that computed its handshakes.
    pub fn in_place_of(&self, old: &Tls) -> Tls {
        Tls(self.0.clone(), self.1.clone(), old.2.clone())
    }

    /// A handle on the same certificates that accepts those of these members: `cert_verify_str`,
    /// and the subjects that entries name. An empty `cert_verify_str` stands for any certificate
    /// only as long as there is an entry that names none.
    pub fn with_members(&self, members: &[Member]) -> Tls {
        let named = |m: &Member| m.subject.clone().map(|subject| (m.id, subject));
        let own: BTreeMap<_, _> = members.iter().filter_map(named).collect();
        let takes_common = !self.0.common.is_empty() || own.is_empty() || own.len() < members.len();
        Tls(self.0.clone(), Arc::new(Roll { own, takes_common, is_of_one: false }), self.2.clone())
    }

    /// A handle on the same certificates that accepts that of this member alone.
    pub fn for_member(&self, member: &Member) -> Tls {
        let own: BTreeMap<_, _> = member.subject.iter().map(|s| (member.id, s.clone())).collect();
        let takes_common = own.is_empty();
        Tls(self.0.clone(), Arc::new(Roll { own, takes_common, is_of_one: true }), self.2.clone())
    }

    /// A key for sealing what only this server may read again, drawn from its private key by HKDF
    /// with SHA-256 (RFC 5869). Different purposes give unrelated keys.
    ///
    /// # Errors
    /// OpenSSL failed.
    pub fn derive_key(&self, purpose: &[u8]) -> Result<Zeroizing<Vec<u8>>, ErrorStack> {
        hkdf(HkdfMode::EXPAND_ONLY, &self.0.extract, purpose)
    }

    /// Whether a leaf with these names is one of ours.
    pub fn names_match(&self, names: &Names) -> bool {
        let Roll { own, takes_common, .. } = &*self.1;
        (*takes_common && matches(&self.0.common, names)) || own.values().any(|own| names.has(own))
    }

    /// Whether a leaf with these names is the one of the server `id`: that of its entry if it names
    /// one, else that of `cert_verify_str`.
    pub fn is_of(&self, id: ServerId, names: &Names) -> bool {
        match self.1.own.get(&id) {
            Some(own) => names.has(own),
            None => matches(&self.0.common, names),
        }
    }

    /// What to say of a leaf that [`Tls::names_match`] refuses.
    fn wrong_subject(&self, names: &Names) -> HandshakeError {
        // A subject alone tells enough where subjects are what is asked for.
        let by_subject = |wanted: &String| wanted.is_empty() || wanted.starts_with('/');
        let names = if self.1.own.values().chain([&self.0.common]).all(by_subject) {
            clip(names.subject())
        } else {
            clip(&names.to_string())
        };
        if self.1.is_of_one && !self.1.takes_common {
            HandshakeError::NotListed(names)
        } else {
            HandshakeError::WrongSubject(names)
        }
    }

    /// The own leaf's names.
    pub fn names(&self) -> Names {
        Names::of(&self.0.leaf)
    }

    /// The own leaf's subject in the one-line form.
    pub fn subject(&self) -> String {
        one_line(self.0.leaf.subject_name())
    }

    /// The end to speak of among those of the own leaf and the certificates that lead to the root,
    /// and that moment as OpenSSL writes it.
    pub fn expiry(&self) -> Option<(Expiry, String)> {
        let ending = Expiry::first(self.expiries())?;
        let link = self.0.chain.iter().find(|link| link.subject == ending.subject)?;
        Some((ending, link.not_after.clone()))
    }

    /// All of them, the own leaf's first.
    pub fn expiries(&self) -> Vec<Expiry> {
        let now = SystemTime::now();
        let life =
            |link: &Link| link.valid.end.duration_since(link.valid.start).unwrap_or_default();
        let Some(leaf) = self.0.chain.first() else { return Vec::new() };
        let all = self.0.chain.iter().enumerate().map(|(at, link)| Expiry {
            subject: link.subject.clone(),
            is_authority: at > 0,
            left: link.valid.end.duration_since(now).unwrap_or_default(),
            // One that cuts the leaf's life short is as urgent as the leaf would be.
            life: if link.valid.end < leaf.valid.end {
                life(link).max(life(leaf))
            } else {
                life(link)
            },
        });
        all.collect()
    }

    /// The own leaf's last moment, as OpenSSL writes it.
    pub fn not_after(&self) -> String {
        self.0.leaf.not_after().to_string()
    }

    /// SHA-256 over the own leaf, in hex.
    pub fn leaf_fingerprint(&self) -> String {
        self.0.leaf_mark.to_string()
    }

    /// The same, shared.
    pub(super) fn leaf_mark(&self) -> Arc<str> {
        Arc::clone(&self.0.leaf_mark)
    }

    /// The first 8 hex digits of a hash over the certificates of the root, in any order, for
    /// comparing servers at a glance.
    pub fn roots_digest(&self) -> &str {
        &self.0.roots_digest
    }

    /// The certificates of the root, each once: the subject, and the first 8 hex digits of SHA-256 over it.
    pub fn roots(&self) -> &[String] {
        &self.0.roots
    }

    /// Whether an end that shows this leaf, and sends `rest` along, is one of ours now; and while
    /// the wall clock shows what time it remains so: as long as all certificates of the chain are
    /// valid.
    ///
    /// # Errors
    /// Why it is none of us.
    pub fn assess(
        &self,
        leaf: &X509Ref,
        rest: &StackRef<X509>,
    ) -> Result<Range<SystemTime>, HandshakeError> {
        let names = Names::of(leaf);
        let library = HandshakeError::library;
        let mut context = X509StoreContext::new().map_err(library)?;
        let outcome = context.init(self.0.context.cert_store(), leaf, rest, |context| {
            if !context.verify_cert()? {
                let at = context.current_cert().map(|c| one_line(c.subject_name()));
                let fault = (at.unwrap_or_default(), context.error().error_string());
                return Ok(Err(HandshakeError::Untrusted(format!(
                    "{}: {}",
                    clip(&fault.0),
                    fault.1
                ))));
            }
            let chain = context.chain().into_iter().flatten();
            let all: Vec<_> = chain.map(validity).collect::<Result<_, _>>()?;
            let common = all.into_iter().reduce(|a, b| a.start.max(b.start)..a.end.min(b.end));
            Ok(Ok(common.unwrap_or(UNIX_EPOCH..UNIX_EPOCH)))
        });
        let valid = outcome.map_err(library)??;
        if self.names_match(&names) {
            Ok(valid)
        } else {
            Err(self.wrong_subject(&names))
        }
    }

    /// Shakes hands as the side that was dialled. Sets no time limit of its own.
    ///
    /// # Errors
    /// Why the other end is not one of us.
    pub async fn accept(&self, tcp: TcpStream) -> Result<Stream, HandshakeError> {
        self.shake_hands(tcp, Side::Dialled).await
    }

    /// Shakes hands as the side that dials. Sets no time limit of its own. With TLS 1.3 the
    /// other end may still refuse us after this succeeded; that shows at the first read.
    ///
    /// # Errors
    /// Why the other end is not one of us, or that it refused us.
    pub async fn connect(&self, tcp: TcpStream) -> Result<Stream, HandshakeError> {
        self.shake_hands(tcp, Side::Dialling).await
    }

    async fn shake_hands(&self, tcp: TcpStream, side: Side) -> Result<Stream, HandshakeError> {
        let mut socket = Socket::new(tcp);
        let Some(workers) = &self.2 else { return self.shake_hands_here(socket, side).await };
        let moved = |error: io::Error| HandshakeError::Library(clip(&error.to_string()));
        let tls = self.clone();
        // A set, because it ends its task when this future is dropped, as at a time limit.
        let mut task = JoinSet::new();
        task.spawn_on(
            async move {
                socket.settle().map_err(moved)?;
                fail_point("worker");
                tls.shake_hands_here(socket, side).await
            },
            workers,
        );
        let shaken = task.join_next().await.and_then(Result::ok);
        let mut stream = shaken.unwrap_or(Err(HandshakeError::Closed))?;
        stream.get_mut().settle().map_err(moved)?;
        Ok(stream)
    }

    async fn shake_hands_here(&self, tcp: Socket, side: Side) -> Result<Stream, HandshakeError> {
        let fault = Arc::new(Mutex::new(None));
        let mut ssl = Ssl::new(&self.0.context).map_err(HandshakeError::library)?;
        let (tls, note) = (self.clone(), Arc::clone(&fault));
        ssl.set_verify_callback(
            SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT,
            move |chain_is_good, context| {
                // OpenSSL calls this; a panic that reached it would end the whole process.
                let assessed = AssertUnwindSafe(|| verify(chain_is_good, context, &tls, &note));
                catch_unwind(assessed).unwrap_or(false)
            },
        );
        let mut stream = SslStream::new(ssl, tcp).map_err(HandshakeError::library)?;
        let shaken = match side {
            Side::Dialled => Pin::new(&mut stream).accept().await,
            Side::Dialling => Pin::new(&mut stream).connect().await,
        };
        if let Err(error) = shaken {
            let fault = lock(&fault).take();
            return Err(fault.unwrap_or_else(|| HandshakeError::of(&error)));
        }
        // The callback has checked already. This asks once more, of the finished connection, so
        // that no change to the callback's wiring can let anybody in unseen.
        let ssl = stream.ssl();
        let leaf = ssl.peer_certificate().ok_or(HandshakeError::NoCertificate)?;
        if ssl.verify_result() != X509VerifyResult::OK {
            return Err(HandshakeError::Untrusted(ssl.verify_result().error_string().to_owned()));
        }
        let rest = Stack::new().map_err(HandshakeError::library)?;
        let valid = self.assess(&leaf, ssl.peer_cert_chain().unwrap_or(&rest))?;
        stream.get_mut().valid = valid;
        Ok(stream)
    }
}

/// Prints the own subject only.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({})", self.subject())
    }
}

#[derive(Clone, Copy)]
enum Side {
    Dialled,
    Dialling,
}

/// What it means that the other end refuses a certificate which it trusts, without a word on what is wrong.
pub const UNKNOWN_NAME: &str =
    "it knows no server of its name, which is not in the group's list yet, or no longer (alert handshake failure)";

/// Why a handshake came to nothing. The texts fit behind an address and a colon.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// The other end showed no certificate.
    #[error("it showed no certificate")]
    NoCertificate,
    /// The other end's certificate does not verify.
    #[error("its certificate is not trusted: {0}")]
    Untrusted(String),
    /// The other end's certificate is of our root but has another subject, or other names.
    #[error(
        "its certificate has the subject {0}, which is neither cert_verify_str nor that of a server in the \
         list"
    )]
    WrongSubject(String),
    /// The server that was dialled has another server's certificate.
    #[error("its certificate is not the one listed for this server_id: it has the subject {0}")]
    NotListed(String),
    /// What came is not TLS, or not a version or cipher that we speak.
    #[error("it does not speak our TLS: {0}")]
    NotOurTls(String),
    /// The other end sent an alert: it does not accept us.
    #[error("it refused our handshake: {0}")]
    RefusedUs(String),
    /// The other end closed the connection.
    #[error("it closed the connection during the handshake")]
    Closed,
    /// OpenSSL failed on our side.
    #[error("OpenSSL: {0}")]
    Library(String),
}

impl HandshakeError {
    pub(super) fn library(stack: ErrorStack) -> HandshakeError {
        HandshakeError::Library(clip(&stack.to_string()))
    }

    /// Sorts an error of the handshake by OpenSSL's reason codes, which are the same in 1.1.1
    /// and 3.x.
    fn of(error: &ssl::Error) -> HandshakeError {
        const NO_CERTIFICATE: i32 = 199; // SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE
                                         // What OpenSSL makes of our own decision on a chain that it finds good: RFC 8446, section 6.
        const HANDSHAKE_FAILURE: i32 = ALERTS + 40;
        let Some(last) = error.ssl_error().and_then(|stack| stack.errors().last()) else {
            return HandshakeError::Closed;
        };
        let reason = clip(last.reason().unwrap_or("no reason given"));
        match last.reason_code() {
            NO_CERTIFICATE => HandshakeError::NoCertificate,
            HANDSHAKE_FAILURE => HandshakeError::RefusedUs(UNKNOWN_NAME.to_owned()),
            code if code > ALERTS => HandshakeError::RefusedUs(reason),
            _ if reason.contains("unexpected eof") => HandshakeError::Closed,
            _ => HandshakeError::NotOurTls(reason),
        }
    }
}

/// The alert with which the other end finished an established connection, if that is what an
/// error of reading or writing says.
pub(super) fn alert_in(error: &io::Error) -> Option<String> {
    match HandshakeError::of(error.get_ref()?.downcast_ref::<ssl::Error>()?) {
        HandshakeError::RefusedUs(alert) => Some(alert),
        _ => None,
    }
}

/// OpenSSL's reason codes above this one are alerts from the other end: `SSL_AD_REASON_OFFSET`.
const ALERTS: i32 = 1000;

/// OpenSSL asks this for each certificate of a chain, from the root down to the leaf, and once
/// more for each fault. A fault is noted and never forgiven.
fn verify(
    chain_is_good: bool,
    context: &mut X509StoreContextRef,
    tls: &Tls,
    note: &Mutex<Option<HandshakeError>>,
) -> bool {
    fail_point("verify");
    let names = context.current_cert().map(Names::of).unwrap_or_default();
    let fault = if !chain_is_good {
        let subject = clip(names.subject());
        HandshakeError::Untrusted(format!("{subject}: {}", context.error().error_string()))
    } else if context.error_depth() == 0 && !tls.names_match(&names) {
        context.set_error(X509VerifyResult::APPLICATION_VERIFICATION);
        tls.wrong_subject(&names)
    } else {
        return true;
    };
    lock(note).get_or_insert(fault);
    false
}

fn digest_of(roots: &[X509]) -> Result<String, ErrorStack> {
    let mut ders: Vec<Vec<u8>> =
        roots.iter().map(|root| root.to_der()).collect::<Result<_, _>>()?;
    ders.sort_unstable();
    ders.dedup();
    Ok(short_digest(&openssl::sha::sha256(&ders.concat())))
}

/// What people call certificates by.
fn named(certificates: &[X509]) -> Vec<String> {
    let name = |certificate: &X509| {
        let mark: String = fingerprint(certificate).chars().take(8).collect();
        format!("{} ({mark})", clip(&one_line(certificate.subject_name())))
    };
    let mut names: Vec<String> = certificates.iter().map(name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// SHA-256 over a certificate, in hex.
pub(super) fn fingerprint(certificate: &X509Ref) -> String {
    match certificate.digest(MessageDigest::sha256()) {
        Ok(digest) => digest.iter().map(|b| format!("{b:02x}")).collect(),
        Err(_) => "unknown".to_owned(),
    }
}

/// When the wall clock has a certificate valid. OpenSSL refuses it at the very second that it names
/// as its end, as the range does.
fn validity(certificate: &X509Ref) -> Result<Range<SystemTime>, ErrorStack> {
    Ok(moment(certificate.not_before())?..moment(certificate.not_after())?)
}

/// What the wall clock shows then; a moment before 1970 is taken for 1970.
fn moment(at: &Asn1TimeRef) -> Result<SystemTime, ErrorStack> {
    let since = Asn1Time::from_unix(0)?.diff(at)?;
    let seconds = i64::from(since.days) * 86_400 + i64::from(since.secs);
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    // A certificate's year has four digits.
    Ok(UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH))
}

fn matches(wanted: &str, names: &Names) -> bool {
    wanted.is_empty() || names.has(wanted)
}

/// At most [`MAX_QUOTED`] characters of what somebody else wrote.
fn clip(text: &str) -> String {
    text.chars().take(MAX_QUOTED).collect()
}

fn context(
    store: X509Store,
    leaf: &X509Ref,
    rest: Vec<X509>,
    key: &PKey<Private>,
) -> Result<SslContext, ErrorStack> {
    let mut context = SslContextBuilder::new(SslMethod::tls())?;
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    context.set_cipher_list(TLS12_CIPHERS)?;
    let mut options =
        SslOptions::NO_TICKET | SslOptions::NO_COMPRESSION | SslOptions::NO_RENEGOTIATION;
    if openssl::version::number() >= OPENSSL_3 {
        options |= SslOptions::from_bits_retain(CLEANSE_PLAINTEXT.into());
    }
    context.set_options(options);
    // Buffers of idle connections are given back, and a write that is continued later may have
    // moved in memory meanwhile.
    context.set_mode(
        SslMode::RELEASE_BUFFERS
            | SslMode::ACCEPT_MOVING_WRITE_BUFFER
            | SslMode::ENABLE_PARTIAL_WRITE,
    );
    // One system call per record instead of two.
    context.set_read_ahead(true);
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.set_num_tickets(0)?;
    context.set_certificate(leaf)?;
    context.set_private_key(key)?;
    for certificate in rest {
        context.add_extra_chain_cert(certificate)?;
    }
    context.set_cert_store(store);
    context.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    Ok(context.build())
}

/// The roots, and the purpose that every leaf must be fit for. A purpose that the store names wins
/// over the one that OpenSSL would pick by who dialled.
fn store_of(roots: &[X509]) -> Result<X509Store, ErrorStack> {
    let mut store = X509StoreBuilder::new()?;
    store.set_purpose(X509PurposeId::SSL_SERVER)?;
    // A handshake asks for as much by itself; whoever is checked later must not get by with less.
    let level = SslContextBuilder::new(SslMethod::tls())?.build().security_level();
    let mut wanted = X509VerifyParam::new()?;
    wanted.set_auth_level(i32::try_from(level).unwrap_or(i32::MAX));
    store.set_param(&wanted)?;
    for root in roots {
        store.add_cert(root.clone())?;
    }
    Ok(store.build())
}

/// All certificates of a PEM text, `None` if there are none or one is broken.
fn certificates(pem: &[u8]) -> Option<Vec<X509>> {
    if has_encrypted_certificate(pem) {
        return None;
    }
    X509::stack_from_pem(pem).ok().filter(|found| !found.is_empty())
}

/// Whether a certificate claims to be encrypted. Nobody makes such files, but OpenSSL would ask
/// the terminal for a passphrase.
fn has_encrypted_certificate(pem: &[u8]) -> bool {
    let text = String::from_utf8_lossy(pem);
    text.split("-----BEGIN ").skip(1).any(|block| {
        let kind = block.split("-----").next().unwrap_or_default();
        let body = block.split("-----END ").next().unwrap_or_default();
        kind.ends_with("CERTIFICATE") && body.contains("ENCRYPTED")
    })
}

fn private_key(pem: &[u8]) -> Result<PKey<Private>, TlsError> {
    let mut asked = false;
    let loaded = PKey::private_key_from_pem_callback(pem, |_| {
        asked = true;
        Ok(0)
    });
    loaded.map_err(|_| if asked { TlsError::KeyEncrypted } else { TlsError::KeyGarbage })
}

fn check_leaf(leaf: &X509Ref, key: &PKey<Private>, wanted: &str) -> Result<(), TlsError> {
    let subject = one_line(leaf.subject_name());
    if !leaf.public_key()?.public_eq(key) {
        return Err(TlsError::KeyMismatch { subject });
    }
    let now = Asn1Time::days_from_now(0)?;
    let has_come = |time: &Asn1TimeRef| time.compare(&now).map(|order| order.is_le());
    if has_come(leaf.not_after())? {
        return Err(TlsError::Expired { subject, not_after: leaf.not_after().to_string() });
    }
    if !has_come(leaf.not_before())? {
        return Err(TlsError::NotYetValid { subject, not_before: leaf.not_before().to_string() });
    }
    if subject.is_empty() && wanted.starts_with('/') {
        return Err(TlsError::NoSubject);
    }
    let names = Names::of(leaf);
    if !matches(wanted, &names) {
        let found = if wanted.starts_with('/') { subject } else { names.to_string() };
        return Err(TlsError::SubjectMismatch { found });
    }
    Ok(())
}

/// Verifies the own leaf as the peers will; its chain.
fn check_chain(roots: &[X509], leaf: &X509Ref, rest: &[X509]) -> Result<Vec<Link>, TlsError> {
    let mut untrusted = Stack::new()?;
    for certificate in rest {
        untrusted.push(certificate.clone())?;
    }
    let store = store_of(roots)?;
    X509StoreContext::new()?.init(&store, leaf, &untrusted, |context| {
        if !context.verify_cert()? {
            let code = context.error();
            let at = context.current_cert();
            let name = |c: &X509Ref| one_line(c.subject_name());
            return Ok(Err(TlsError::ChainUntrusted {
                subject: at.map(name).unwrap_or_default(),
                reason: code.error_string().to_owned(),
                code: code.as_raw(),
                not_after: at.map(|c| c.not_after().to_string()).unwrap_or_default(),
                issuer: at.map_or(Issuer::Missing, |c| Issuer::of(c, roots, rest)),
            }));
        }
        let chain = context.chain().into_iter().flatten();
        let link = |certificate: &X509Ref| {
            Ok(Link {
                subject: one_line(certificate.subject_name()),
                valid: validity(certificate)?,
                not_after: certificate.not_after().to_string(),
            })
        };
        chain.map(link).collect::<Result<_, ErrorStack>>().map(Ok)
    })?
}

/// Of what kind a certificate's key and signature are, for whom a policy refuses either.
fn made_of(certificate: &X509Ref) -> String {
    let key = certificate.public_key().ok();
    let curve = || key.as_ref()?.ec_key().ok()?.group().curve_name()?.short_name().ok();
    let kind = match (curve(), &key) {
        (Some(curve), _) => format!("a key of {curve}"),
        (None, Some(key)) => match key.id() {
            Id::RSA => format!("an RSA key of {} bits", key.bits()),
            Id::DSA => format!("a DSA key of {} bits", key.bits()),
            _ => format!("a key of {} bits", key.bits()),
        },
        (None, None) => "a key of an unknown kind".to_owned(),
    };
    let signature = certificate.signature_algorithm().object().to_string();
    format!("{kind}, signed with {signature}")
}
