//! Binds each session to the site that it was made with, by OpenSSL's session id context.
//!
//! At each ClientHello, before OpenSSL decides about resumption, and after Traffic Server has
//! applied what sni.yaml says of the name, the connection gets the context that
//! [`crate::core::ticket_scope`] makes of the name and of the certificate that the client is asked
//! for. OpenSSL resumes no session of another context: the client makes a full handshake, in which
//! it is asked. With `ticket_scope: host` nothing of this is called.
//!
//! Connections over QUIC: with OpenSSL's own QUIC, in 10.2 and later, the host calls no hook for them,
//! and they keep its own context, which no session of ours has. With quiche, from 10.1 on, it calls
//! the hook with the connection's SSL as for all others, and they are bound as those are.
//!
//! Invariants:
//! - The handshake goes on exactly once for each event, whatever happened before.
//! - This runs on the host's threads for every handshake: no lock, no wait, no allocation that
//!   grows, no panic that crosses.
//! - A connection that could not be bound resumes nothing, and nobody resumes its sessions.
//! - The host's SSL is touched only where host and plugin use one and the same OpenSSL.

use std::ffi::{c_int, c_uchar, c_uint, c_void};
use std::hash::{BuildHasher, RandomState};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};

use once_cell::sync::OnceCell;
use openssl_sys as ffi;

use super::{ats, sys};
use crate::core::ticket_scope::{
    server_name, server_name_extension, Binding, TicketScope, CONTEXT_LEN,
};
use crate::log_sink::Log;
use crate::supervise::fail_point;

/// CA subjects that are sorted together. A file that names more, which is far more than a client
/// would be shown in earnest, is sorted piece by piece: then its order matters.
const SORTED_SUBJECTS: usize = 512;

/// The number of the server_name extension.
const SERVER_NAME: c_uint = 0;

/// Bits of the verify mode that say what a client is asked for; others say when, and are not the
/// same in all versions of the host.
const ASKED_FOR: c_int = ffi::SSL_VERIFY_PEER | ffi::SSL_VERIFY_FAIL_IF_NO_PEER_CERT;

/// Whether connections are bound.
static BINDS: AtomicBool = AtomicBool::new(false);

/// Whether the host calls [`on_client_hello`].
static HOOKED: AtomicBool = AtomicBool::new(false);

/// What the names of first ClientHellos are hashed with; filled before the hook is added. Nobody
/// outside can tell which names have the same hash.
static NAMES: OnceCell<RandomState> = OnceCell::new();

/// What OpenSSL calls with each message of a handshake.
type MessageCallback =
    unsafe extern "C" fn(c_int, c_int, c_int, *const c_void, usize, *mut ffi::SSL, *mut c_void);

// What openssl-sys does not declare.
extern "C" {
    fn SSL_set_session_id_context(
        ssl: *mut ffi::SSL,
        context: *const c_uchar,
        len: c_uint,
    ) -> c_int;
    fn SSL_get_client_CA_list(ssl: *const ffi::SSL) -> *mut ffi::OPENSSL_STACK;
    fn SSL_set_msg_callback(ssl: *mut ffi::SSL, callback: Option<MessageCallback>);
    fn X509_NAME_get0_der(
        name: *const ffi::X509_NAME,
        der: *mut *const c_uchar,
        len: *mut usize,
    ) -> c_int;
}

/// `SSL_CTRL_SET_MSG_CALLBACK_ARG`.
const SET_MESSAGE_ARGUMENT: c_int = 16;

/// Has the host call in at each ClientHello, if the configuration wants that or could not be read
/// yet. For TSPluginInit only.
pub fn add_hook(scope: Option<TicketScope>) {
    if scope != Some(TicketScope::Host) && shares_openssl() {
        NAMES.get_or_init(RandomState::new);
        HOOKED.store(ats::on_client_hello(on_client_hello), Ordering::Relaxed);
    }
}

/// Binds connections from now on, or does not.
pub fn begin(scope: TicketScope, log: &Log) {
    let binds = scope == TicketScope::Site && HOOKED.load(Ordering::Relaxed);
    if scope == TicketScope::Site && !binds {
        log.warning(format!(
            "ticket_scope: site has no effect in Traffic Server {}: its OpenSSL is another one than \
             this plugin's, or this plugin does not know its hooks; sessions are bound as Traffic \
             Server does it; give ticket_scope: host to all servers of the list",
            ats::version().as_deref().unwrap_or("of unknown version")
        ));
    }
    BINDS.store(binds, Ordering::Relaxed);
}

/// The scope that is in effect.
pub fn in_effect() -> TicketScope {
    if BINDS.load(Ordering::Relaxed) {
        TicketScope::Site
    } else {
        TicketScope::Host
    }
}

/// Whether the functions of OpenSSL that this file calls are those that the host calls. A host
/// may come with an OpenSSL of its own, or with BoringSSL, whose structures are others.
pub fn shares_openssl() -> bool {
    let functions = [
        (c"SSL_client_hello_get0_ext", ffi::SSL_client_hello_get0_ext as *const c_void),
        (c"SSL_set_session_id_context", SSL_set_session_id_context as *const c_void),
        (c"SSL_get_verify_mode", ffi::SSL_get_verify_mode as *const c_void),
        (c"SSL_get_client_CA_list", SSL_get_client_CA_list as *const c_void),
        (c"SSL_set_msg_callback", SSL_set_msg_callback as *const c_void),
        (c"SSL_ctrl", ffi::SSL_ctrl as *const c_void),
        (c"SSL_version", ffi::SSL_version as *const c_void),
        (c"X509_NAME_get0_der", X509_NAME_get0_der as *const c_void),
    ];
    // SAFETY: a null name is the program itself; the handle stays for as long as that runs.
    let host = unsafe { libc::dlopen(std::ptr::null(), libc::RTLD_LAZY) };
    // SAFETY: the handle is the program's and the name ends in a NUL.
    let theirs = |name: &std::ffi::CStr| unsafe { libc::dlsym(host, name.as_ptr()) };
    !host.is_null() && functions.iter().all(|(name, ours)| theirs(name).cast_const() == *ours)
}

/// Called by the host at each ClientHello.
unsafe extern "C" fn on_client_hello(
    _cont: *mut sys::tsapi_cont,
    event: c_int,
    connection: *mut c_void,
) -> c_int {
    let is_hello = i64::from(event) == i64::from(sys::STEK_ATS_CLIENT_HELLO_EVENT);
    if is_hello && BINDS.load(Ordering::Relaxed) {
        // SAFETY: this is the host's data for this event.
        let ssl = unsafe { ats::ssl_of(connection) }.cast::<ffi::SSL>();
        if !ssl.is_null() {
            let bound = catch_unwind(AssertUnwindSafe(|| {
                fail_point("hook-hello");
                // SAFETY: the SSL of a connection whose ClientHello is being looked at.
                unsafe { bind(ssl) }
            }));
            if !matches!(bound, Ok(true)) {
                // SAFETY: as above.
                unsafe { isolate(ssl) };
            }
        }
    }
    // SAFETY: once for this event, and nothing of the connection is touched afterwards.
    unsafe { ats::go_on(connection) };
    0
}

/// Gives a connection its context; whether that was possible.
///
/// # Safety
/// `ssl` is a server's connection whose ClientHello is being looked at, on this thread.
unsafe fn bind(ssl: *mut ffi::SSL) -> bool {
    let (mut body, mut len) = (std::ptr::null(), 0);
    // SAFETY: the caller's contract; what is found belongs to the connection and stays over the
    // call.
    let extension = unsafe {
        (ffi::SSL_client_hello_get0_ext(ssl, SERVER_NAME, &mut body, &mut len) == 1
            && !body.is_null())
        .then(|| slice::from_raw_parts(body, len))
    };
    // SAFETY: the caller's contract.
    let asked = unsafe { ffi::SSL_get_verify_mode(ssl) } & ASKED_FOR;
    let name = extension.and_then(server_name).unwrap_or_default();
    let mut binding = Binding::new(name, asked.unsigned_abs());
    if asked != 0 {
        // SAFETY: the caller's contract.
        unsafe { add_subjects(ssl, &mut binding) };
    }
    // SAFETY: the caller's contract.
    unsafe { set_context(ssl, &binding.finish()) && watch(ssl, extension) }
}

/// Adds the subjects of the authorities whose certificates a client is asked for.
///
/// # Safety
/// As [`bind`].
unsafe fn add_subjects(ssl: *const ffi::SSL, binding: &mut Binding) {
    // SAFETY: the caller's contract; the list belongs to the connection or its SSL_CTX, which nobody
    // changes while connections use it, and a null list counts as an empty one, whose length is -1.
    let (list, count) = unsafe {
        let list = SSL_get_client_CA_list(ssl);
        (list, ffi::OPENSSL_sk_num(list))
    };
    let mut subjects: [&[u8]; SORTED_SUBJECTS] = [&[]; SORTED_SUBJECTS];
    let mut filled = 0;
    for at in 0..count.max(0) {
        let (mut der, mut len) = (std::ptr::null(), 0);
        // SAFETY: `at` is within the list, whose elements are names; what is read from a
        // certificate has its DER at hand, so that nothing is written.
        let there = unsafe {
            let name = ffi::OPENSSL_sk_value(list, at).cast::<ffi::X509_NAME>();
            !name.is_null() && X509_NAME_get0_der(name, &mut der, &mut len) == 1 && !der.is_null()
        };
        if let (true, Some(place)) = (there, subjects.get_mut(filled)) {
            // SAFETY: the name's own bytes, which live as long as the list.
            *place = unsafe { slice::from_raw_parts(der, len) };
            filled += 1;
        }
        if filled == subjects.len() {
            binding.add_subjects(&mut subjects);
            filled = 0;
        }
    }
    let (subjects, _) = subjects.split_at_mut(filled);
    binding.add_subjects(subjects);
}

/// # Safety
/// As [`bind`].
unsafe fn set_context(ssl: *mut ffi::SSL, context: &[u8; CONTEXT_LEN]) -> bool {
    // SAFETY: the caller's contract; OpenSSL copies the bytes.
    unsafe { SSL_set_session_id_context(ssl, context.as_ptr(), CONTEXT_LEN as c_uint) == 1 }
}

/// Gives a connection a context that no other has, so that it resumes nothing and nobody resumes
/// its sessions.
///
/// # Safety
/// As [`bind`].
unsafe fn isolate(ssl: *mut ffi::SSL) {
    let mut context = [0; CONTEXT_LEN];
    // Without chance there is no handshake either.
    let _ = openssl::rand::rand_bytes(&mut context);
    // SAFETY: the caller's contract.
    unsafe { set_context(ssl, &context) };
}

/// Looks at what else comes in this handshake. A client may send a second ClientHello, for which
/// the host calls no hook and which OpenSSL does not compare with the first: it could name another
/// site than the one that the connection was bound to.
///
/// # Safety
/// As [`bind`].
unsafe fn watch(ssl: *mut ffi::SSL, extension: Option<&[u8]>) -> bool {
    let Some(hash) = hash_of(extension) else { return false };
    // SAFETY: the caller's contract. The argument is a number that is never taken for a pointer.
    unsafe {
        let argument = std::ptr::without_provenance_mut::<c_void>(hash);
        ffi::SSL_ctrl(ssl, SET_MESSAGE_ARGUMENT, 0, argument);
        SSL_set_msg_callback(ssl, Some(on_message));
    }
    true
}

/// What tells one server_name extension from another, and none from any.
fn hash_of(extension: Option<&[u8]>) -> Option<usize> {
    // The lowest bits are as good as all; a pointer has 64 of them on all that the host runs on.
    NAMES.get().map(|names| names.hash_one(extension) as usize)
}

/// Called by OpenSSL with each message that comes after the first ClientHello, before it looks at
/// it itself.
unsafe extern "C" fn on_message(
    is_sent: c_int,
    _version: c_int,
    content: c_int,
    bytes: *const c_void,
    len: usize,
    ssl: *mut ffi::SSL,
    argument: *mut c_void,
) {
    const HANDSHAKE: c_int = 22;
    const CLIENT_HELLO: u8 = 1;
    const FINISHED: u8 = 20;
    if is_sent != 0 || content != HANDSHAKE || bytes.is_null() {
        return;
    }
    // SAFETY: OpenSSL's own buffer, which lives over the call.
    let message = unsafe { slice::from_raw_parts(bytes.cast::<u8>(), len) };
    match message.first() {
        Some(&CLIENT_HELLO) => {
            let same = catch_unwind(AssertUnwindSafe(|| {
                hash_of(server_name_extension(message)) == Some(argument.addr())
            }));
            if !matches!(same, Ok(true)) {
                // SAFETY: the connection that was bound, on its own thread.
                unsafe { isolate(ssl) };
            }
        }
        // In TLS 1.3 no ClientHello can come any more.
        // SAFETY: as above.
        Some(&FINISHED) => unsafe {
            if ffi::SSL_version(ssl) >= ffi::TLS1_3_VERSION {
                SSL_set_msg_callback(ssl, None);
            }
        },
        _ => {}
    }
}
