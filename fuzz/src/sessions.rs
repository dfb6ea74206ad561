//! A session of another server, as the host's own OpenSSL reads it before the host is given it.

use stek_share::core::sessions::{
    check, SessionBytes, SessionId, CLOCK_TOLERANCE, MAX_LIFE, MAX_SESSION,
};
use stek_share::host::session_worker::read;
use stek_share::transport::Body;

/// What is let through is of TLS 1.2 or earlier, has its own id and no other, no ticket, no
/// certificate, and an end within a day; and is read as the same when OpenSSL writes it again.
pub fn take(bytes: &[u8]) {
    let Some(session) = SessionBytes::new(Body::new(bytes.to_vec())) else {
        return assert!(bytes.is_empty() || bytes.len() > MAX_SESSION);
    };
    let Ok((parsed, facts)) = read(&session) else { return };
    // A second later, whenever that was: by the clock of today every seed would have ended.
    let now_s = facts.made_s.saturating_add(1);
    let other = SessionId::new(&[7; 31]).expect("an id");
    if facts.id != Some(other) {
        assert!(check(&facts, other, now_s).is_err(), "under another's id");
    }
    let Some(id) = facts.id else { return };
    match check(&facts, id, now_s) {
        Ok(ends_s) => {
            let most = MAX_LIFE.as_secs() + CLOCK_TOLERANCE.as_secs();
            assert!(ends_s > now_s && ends_s - now_s <= most, "{facts:?}");
            assert!(!facts.is_of_tls13 && !facts.has_ticket && !facts.has_certificate);
            assert_eq!(parsed.id(), id.bytes());
            let again = SessionBytes::new(Body::new(parsed.to_der().expect("it was read")));
            let again = again.map(|again| read(&again).expect("it was written").1);
            assert!(again.is_none_or(|again| again == facts), "another one when it is written");
        }
        Err(why) => assert!(!why.to_string().contains(|c: char| c.is_control())),
    }
}
