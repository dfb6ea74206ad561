//! Safe calls into Traffic Server: log lines, ticket keys, hooks, records, statistics.
//!
//! Decides nothing: what to say and when to call is for [`super::plugin`] and
//! [`super::installer`]. Invariants: no string reaches the host as a format, none carries a
//! byte that would break a log line, and a function that the host lacks is an error, not a crash.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::path::PathBuf;

use foreign_types::ForeignTypeRef;
use openssl::ssl::SslSession;
use thiserror::Error;
use zeroize::Zeroizing;

use super::sys;
use crate::core::sessions::{SessionBytes, SessionId, MAX_ID, MAX_SESSION};
use crate::core::stek::STEK_LEN;
use crate::log_sink::{Level, LogSink};

/// The plugin's name: its debug tag, the prefix of its lines, and the target of messages to it.
pub const NAME: &str = "stek_share";

const NAME_C: &CStr = c"stek_share";

/// Bytes of one log line at most; what is longer is cut. Room for a list of twenty servers, and a
/// bound on what a peer can make this server write.
pub const MAX_LINE: usize = 4096;

/// Bytes of an operator's message that are looked at; every word that means anything is shorter.
pub const MAX_MESSAGE: usize = 64;

/// Registers the plugin (`TSPluginRegister`). Without this the host stops at start.
pub fn register() -> bool {
    // SAFETY: three string literals that live for ever; called from TSPluginInit only, which is
    // where the host allows it.
    unsafe {
        sys::stek_ats_register(NAME_C.as_ptr(), c"stek_share".as_ptr(), c"see the README".as_ptr())
    }
}

/// Writes lines to the host's own logs: debug lines to traffic.out under the tag, the others to
/// diags.log with the plugin's name in front.
pub struct HostLogSink;

impl LogSink for HostLogSink {
    fn write(&self, level: Level, line: &str) {
        match level {
            Level::Debug => debug(line),
            Level::Note => note(line),
            Level::Warning => warning(line),
            Level::Error => error(line),
        }
    }
}

/// Writes a line for the debug tag, if the operator turned that on (`TSDebug`, `DbgCtl::print`).
pub fn debug(line: &str) {
    // SAFETY: the tag is a literal, the line ends in a NUL and lives over the call; the host may
    // be asked and written to on any thread.
    unsafe {
        if sys::stek_ats_debug_on(NAME_C.as_ptr()) {
            sys::stek_ats_debug(NAME_C.as_ptr(), harmless("", line).as_ptr());
        }
    }
}

/// Writes a note to diags.log (`TSNote`).
pub fn note(line: &str) {
    // SAFETY: the line ends in a NUL and lives over the call, and is never taken as a format.
    unsafe { sys::stek_ats_note(harmless("[stek_share] ", line).as_ptr()) }
}

/// Writes a warning to diags.log (`TSWarning`).
pub fn warning(line: &str) {
    // SAFETY: as in `note`.
    unsafe { sys::stek_ats_warning(harmless("[stek_share] ", line).as_ptr()) }
}

/// Writes an error to diags.log (`TSError`). The host goes on.
pub fn error(line: &str) {
    // SAFETY: as in `note`.
    unsafe { sys::stek_ats_error(harmless("[stek_share] ", line).as_ptr()) }
}

/// `prefix` and `line` as one line of printable text that C can read: control characters, NUL and
/// newlines among them, are written as escapes; the end is cut off at [`MAX_LINE`].
fn harmless(prefix: &str, line: &str) -> CString {
    let mut text = String::with_capacity(prefix.len() + line.len());
    text.push_str(prefix);
    for c in line.chars() {
        if text.len() >= MAX_LINE {
            text.push_str("...");
            break;
        }
        if c.is_control() {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    // There is no NUL left that could make this fail.
    CString::new(text).unwrap_or_default()
}

/// Why the ticket keys were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Rejected {
    /// The bytes are not one or more whole keys; the host would drop the rest without a word.
    #[error("{0} bytes are not a whole number of keys")]
    Length(usize),
    /// `TSSslTicketKeyUpdate` answered `TS_ERROR`, or is missing.
    #[error("Traffic Server refused the ticket keys")]
    Host,
}

/// Replaces the host's ticket keys (`TSSslTicketKeyUpdate`): `keys` is one or more keys of
/// [`STEK_LEN`] bytes, the encrypting one first. The host copies them.
///
/// Must be called from one thread only: the host keeps the set in a static without a guard.
///
/// # Errors
/// See [`Rejected`]; the keys that were installed before stay.
pub fn ticket_key_update(keys: &[u8]) -> Result<(), Rejected> {
    let bad_length = Rejected::Length(keys.len());
    if keys.is_empty() || !keys.len().is_multiple_of(STEK_LEN) {
        return Err(bad_length);
    }
    let len = c_int::try_from(keys.len()).map_err(|_| bad_length)?;
    // SAFETY: pointer and length describe `keys`, which lives over the call; the host reads and
    // copies, it takes a pointer to mutable bytes only for want of `const`.
    let taken = unsafe { sys::stek_ats_ticket_key_update(keys.as_ptr().cast_mut().cast(), len) };
    taken.then_some(()).ok_or(Rejected::Host)
}

/// A moment in the host's life that the plugin can hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// All configuration is loaded and the ports are open, but nothing is accepted yet.
    PortsInitialized,
    /// An operator sent a message (`traffic_ctl plugin msg`), perhaps to another plugin.
    Message,
    /// The host is about to stop.
    Shutdown,
}

/// What the host calls at a [`Lifecycle`] moment. Its answer is not looked at.
pub type Handler = unsafe extern "C" fn(*mut sys::tsapi_cont, c_int, *mut c_void) -> c_int;

/// Has `handler` called at `moment` (`TSLifecycleHookAdd`). For TSPluginInit only: on another
/// thread the host would crash. False if the host lacks the functions.
pub fn on_lifecycle(moment: Lifecycle, handler: Handler) -> bool {
    let hook = match moment {
        Lifecycle::PortsInitialized => sys::STEK_ATS_PORTS_INITIALIZED,
        Lifecycle::Message => sys::STEK_ATS_MSG,
        Lifecycle::Shutdown => sys::STEK_ATS_SHUTDOWN,
    };
    // SAFETY: the handler is a function of this library, which is never unmapped.
    unsafe { sys::stek_ats_on_lifecycle(hook, Some(handler)) }
}

/// Has `handler` called after each `traffic_ctl config reload` (`TSMgmtUpdateRegister`). For TSPluginInit only.
/// False if the host lacks the functions.
pub fn on_config_reload(handler: Handler) -> bool {
    // SAFETY: a literal, and a function of this library, which is never unmapped.
    unsafe { sys::stek_ats_on_config_reload(NAME_C.as_ptr(), Some(handler)) }
}

/// Has `handler` called at each ClientHello of a client over TCP, on the thread that serves it
/// (`TSHttpHookAdd`). The handshake waits until [`go_on`]. For TSPluginInit only. False if this
/// version of the host is not known to have the hook.
pub fn on_client_hello(handler: Handler) -> bool {
    let Some(hook) = version().as_deref().and_then(hello_hook) else { return false };
    // SAFETY: the handler is a function of this library, which is never unmapped.
    unsafe { sys::stek_ats_on_client_hello(hook, Some(handler)) }
}

/// The number of the hook at a ClientHello in this version of the host. A wrong one would be
/// another hook, so that none is guessed.
fn hello_hook(version: &str) -> Option<sys::stek_ats_hello_hook> {
    match version.split('.').next()?.parse::<u32>().ok()? {
        9 => Some(sys::STEK_ATS_CLIENT_HELLO_9),
        10 | 11 => Some(sys::STEK_ATS_CLIENT_HELLO_10),
        _ => None,
    }
}

/// The SSL of a connection (`TSVConnSslConnectionGet`), null if it has none.
///
/// # Safety
/// `connection` is what the host hands over with the event of [`on_client_hello`].
pub unsafe fn ssl_of(connection: *mut c_void) -> *mut c_void {
    // SAFETY: the caller's contract.
    unsafe { sys::stek_ats_ssl(connection) }
}

/// Lets a handshake go on (`TSVConnReenable`). Once for each event.
///
/// # Safety
/// As [`ssl_of`]; the connection may be gone afterwards.
pub unsafe fn go_on(connection: *mut c_void) {
    // SAFETY: the caller's contract.
    unsafe { sys::stek_ats_reenable(connection) }
}

/// Has `handler` called at what becomes of a session of TLS 1.2 in the host's cache, on the thread that
/// serves the connection (`TSHttpHookAdd`). For TSPluginInit only. False if this version of the host is
/// not known to have the hook, or lacks the functions for sessions, as 11 does.
pub fn on_session(handler: Handler) -> bool {
    let Some(hook) = version().as_deref().and_then(session_hook) else { return false };
    // SAFETY: the handler is a function of this library, which is never unmapped.
    unsafe { sys::stek_ats_on_session(hook, Some(handler)) }
}

/// As [`hello_hook`], for sessions.
fn session_hook(version: &str) -> Option<sys::stek_ats_session_hook> {
    match version.split('.').next()?.parse::<u32>().ok()? {
        9 => Some(sys::STEK_ATS_SESSION_9),
        10 => Some(sys::STEK_ATS_SESSION_10),
        _ => None,
    }
}

/// Lets the calling thread use the host's sessions (`TSThreadInit`). Once for each thread.
pub fn init_thread() -> bool {
    // SAFETY: takes nothing; the host keeps what it makes in a place of this thread's.
    unsafe { sys::stek_ats_thread_init() }
}

/// The id that comes with an event of [`on_session`]; `None` if it is none.
///
/// # Safety
/// `data` is null, or what the host hands over with such an event.
pub unsafe fn session_id(data: *const c_void) -> Option<SessionId> {
    // SAFETY: the caller's contract; the host's structure lives over the call.
    let id = unsafe { data.cast::<sys::stek_ats_session_id>().as_ref() }?;
    // SAFETY: the bytes are within the structure; as signed or unsigned they are the same.
    let bytes =
        unsafe { std::slice::from_raw_parts(id.bytes.as_ptr().cast::<u8>(), id.bytes.len()) };
    SessionId::new(bytes.get(..id.len)?)
}

/// A session of the host's cache as OpenSSL writes it (`TSSslSessionGetBuffer`); `None` if it is not
/// there, or longer than the host itself would keep. For the host's threads and those of
/// [`init_thread`].
pub fn session_bytes(id: SessionId) -> Option<SessionBytes> {
    let mut buffer = Zeroizing::new(vec![0_u8; MAX_SESSION]);
    let len = c_int::try_from(buffer.len()).ok()?;
    // SAFETY: the id lives over the call, and so does the buffer, of which no more than `len` bytes
    // are written.
    let taken =
        unsafe { sys::stek_ats_session_bytes(&raw_id(id), buffer.as_mut_ptr().cast(), len) };
    let taken = usize::try_from(taken).ok().filter(|taken| *taken <= buffer.len())?;
    // What is cut off is zeros.
    buffer.truncate(taken);
    SessionBytes::new(buffer)
}

/// Gives the host a session under its id (`TSSslSessionInsert`). For the threads of [`init_thread`].
pub fn insert_session(id: SessionId, session: &SslSession) -> bool {
    // SAFETY: id and session live over the call; the host writes the session down and takes no
    // reference. The caller has made sure that it is of the host's own OpenSSL.
    unsafe { sys::stek_ats_session_insert(&raw_id(id), session.as_ptr().cast()) }
}

/// Has the host forget a session (`TSSslSessionRemove`). For the threads of [`init_thread`].
pub fn remove_session(id: SessionId) -> bool {
    // SAFETY: the id lives over the call.
    unsafe { sys::stek_ats_session_remove(&raw_id(id)) }
}

fn raw_id(id: SessionId) -> sys::stek_ats_session_id {
    let mut raw = sys::stek_ats_session_id { len: id.bytes().len(), bytes: [0; MAX_ID] };
    for (to, from) in raw.bytes.iter_mut().zip(id.bytes()) {
        *to = c_char::from_ne_bytes([*from]);
    }
    raw
}

/// The first [`MAX_MESSAGE`] bytes of an operator's message, and how many there were; `None` if it
/// is for another plugin.
///
/// # Safety
/// `data` is null, or what the host hands over with the event of [`Lifecycle::Message`].
pub unsafe fn message(data: *const c_void) -> Option<(Vec<u8>, usize)> {
    // SAFETY: the caller's contract; the host's structure lives over the call.
    let message = unsafe { data.cast::<sys::stek_ats_msg>().as_ref() }?;
    // SAFETY: the tag is null or ends in a NUL.
    let tag = (!message.tag.is_null()).then(|| unsafe { CStr::from_ptr(message.tag) })?;
    if tag != NAME_C {
        return None;
    }
    if message.data.is_null() {
        return Some((Vec::new(), 0));
    }
    let size = message.data_size.min(MAX_MESSAGE);
    // SAFETY: there are `data_size` bytes, and no more than those are read.
    let bytes = unsafe { std::slice::from_raw_parts(message.data.cast::<u8>(), size) };
    Some((bytes.to_vec(), message.data_size))
}

/// The host's install prefix (`TSInstallDirGet`).
pub fn install_dir() -> Option<PathBuf> {
    // SAFETY: takes nothing; the answer is null or a string that the host never frees.
    unsafe { borrowed(sys::stek_ats_install_dir()) }.map(PathBuf::from)
}

/// The host's configuration directory (`TSConfigDirGet`).
pub fn config_dir() -> Option<PathBuf> {
    // SAFETY: as in `install_dir`.
    unsafe { borrowed(sys::stek_ats_config_dir()) }.map(PathBuf::from)
}

/// The host's version, such as `9.2.9` (`TSTrafficServerVersionGet`).
pub fn version() -> Option<String> {
    // SAFETY: as in `install_dir`.
    unsafe { borrowed(sys::stek_ats_version()) }
}

/// The value of one of the host's string records (`TSMgmtStringGet`); `None` if it is unset, empty
/// or unknown.
pub fn record_string(name: &str) -> Option<String> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends in a NUL and lives over the call. The answer is null or a string that
    // is ours until it is given back, which happens once, after it was copied.
    unsafe {
        let value = sys::stek_ats_mgmt_string(name.as_ptr());
        let copy = borrowed(value);
        if !value.is_null() {
            sys::stek_ats_free(value);
        }
        copy.filter(|text| !text.is_empty())
    }
}

/// The value of one of the host's integer records (`TSMgmtIntGet`); `None` if it is unknown.
pub fn record_int(name: &str) -> Option<i64> {
    let name = CString::new(name).ok()?;
    let mut value = 0;
    // SAFETY: the name ends in a NUL and `value` is ours; both live over the call.
    unsafe { sys::stek_ats_mgmt_int(name.as_ptr(), &mut value) }.then_some(value)
}

/// The value of one of the host's own metrics; `None` if it is unknown. Any thread may ask.
pub fn metric(name: &str) -> Option<i64> {
    let name = CString::new(name).ok()?;
    let mut value = 0;
    // SAFETY: as in `record_int`.
    unsafe { sys::stek_ats_metric(name.as_ptr(), &mut value) }.then_some(value)
}

/// One of the plugin's integers in the host's statistics.
#[derive(Clone, Copy, Debug)]
pub struct Stat(c_int);

impl Stat {
    /// Finds or makes the statistic `plugin.stek_share.<name>` (`TSStatFindName`,
    /// `TSStatCreate`). For TSPluginInit only. Where the host has no room for it, the answer is a
    /// statistic that goes nowhere.
    pub fn new(name: &str) -> Stat {
        let Ok(full) = CString::new(format!("plugin.{NAME}.{name}")) else { return Stat(-1) };
        // SAFETY: the name ends in a NUL and lives over the call; the host copies it.
        Stat(unsafe { sys::stek_ats_stat(full.as_ptr()) })
    }

    /// Sets its value (`TSStatIntSet`). Any thread may.
    pub fn set(self, value: i64) {
        // SAFETY: the number came from the host, or is negative, which the C side skips.
        unsafe { sys::stek_ats_stat_set(self.0, value) }
    }
}

/// A copy of the host's string, or `None` for null.
///
/// # Safety
/// `text` is null or ends in a NUL and lives over the call.
unsafe fn borrowed(text: *const std::ffi::c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller's contract.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_of_readable_text() {
        let line = harmless("[p] ", "a\0b\nc\td\u{7f}\u{85}é%s");
        assert_eq!(line.to_str(), Ok("[p] a\\u{0}b\\nc\\td\\u{7f}\\u{85}é%s"));
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let line = harmless("", &"é".repeat(MAX_LINE));
        let text = line.to_str().unwrap_or_default();
        assert!(text.ends_with("é..."));
        assert_eq!(text.len(), MAX_LINE + 3);
    }

    #[test]
    fn only_whole_keys_go_to_the_host() {
        assert_eq!(ticket_key_update(&[]), Err(Rejected::Length(0)));
        assert_eq!(ticket_key_update(&[1; 47]), Err(Rejected::Length(47)));
        assert_eq!(ticket_key_update(&[1; 49]), Err(Rejected::Length(49)));
    }

    #[test]
    fn only_messages_to_this_plugin_are_read() {
        let of = |tag: Option<&CStr>, data: Option<&[u8]>| {
            let message = sys::stek_ats_msg {
                tag: tag.map_or(std::ptr::null(), CStr::as_ptr),
                data: data.map_or(std::ptr::null(), |bytes| bytes.as_ptr().cast()),
                data_size: data.map_or(7, <[u8]>::len),
            };
            // SAFETY: as the host hands it over.
            unsafe { super::message(std::ptr::from_ref(&message).cast()) }
        };
        assert_eq!(of(Some(NAME_C), Some(b"reload\0")), Some((b"reload\0".to_vec(), 7)));
        assert_eq!(of(Some(NAME_C), Some(b"")), Some((vec![], 0)));
        assert_eq!(of(Some(NAME_C), Some(&[7; 99])), Some((vec![7; MAX_MESSAGE], 99)));
        // The host says that there is something, and gives nothing.
        assert_eq!(of(Some(NAME_C), None), Some((vec![], 0)));
        assert_eq!(of(Some(c"stek_share2"), Some(b"reload")), None);
        assert_eq!(of(None, Some(b"reload")), None);
        // SAFETY: null is allowed.
        assert_eq!(unsafe { super::message(std::ptr::null()) }, None);
    }

    #[test]
    fn the_hook_at_a_client_hello_is_known_for_known_versions_only() {
        for (version, hook) in [
            ("9.2.9", Some(19)),
            ("10.2.1", Some(22)),
            ("11.0.0", Some(22)),
            ("12.0.0", None),
            ("8.1.11", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(hello_hook(version), hook, "{version:?}");
            let session = hook.map(|hook| hook + 5).filter(|_| !version.starts_with("11"));
            assert_eq!(session_hook(version), session, "{version:?}");
        }
    }

    #[test]
    fn without_a_host_every_call_says_so() {
        assert!(!register());
        assert_eq!(ticket_key_update(&[1; STEK_LEN]), Err(Rejected::Host));
        assert_eq!(install_dir(), None);
        assert_eq!(config_dir(), None);
        assert_eq!(version(), None);
        assert_eq!(record_string("proxy.config.ssl.server.ticket_key.filename"), None);
        assert_eq!(record_int("proxy.config.ssl.server.session_ticket.enable"), None);
        assert_eq!(Stat::new("x").0, -1);
        unsafe extern "C" fn never(_: *mut sys::tsapi_cont, _: c_int, _: *mut c_void) -> c_int {
            0
        }
        assert!(!on_client_hello(never) && !on_session(never) && !init_thread());
        let id = SessionId::new(&[7; 32]).unwrap_or_else(|| unreachable!());
        assert!(session_bytes(id).is_none() && !remove_session(id));
    }
}
