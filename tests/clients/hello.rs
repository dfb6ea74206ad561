//! The plain beginning of a TLS handshake, as anybody on the way can read it: whether the client
//! offers a ticket, and whether the server resumes.
//!
//! In TLS 1.3 a server that resumes says so in its ServerHello by the extension pre_shared_key
//! (RFC 8446, section 4.2.11); in TLS 1.2 its ServerHello is followed by ChangeCipherSpec, perhaps
//! with a new ticket before it, and not by a Certificate (RFC 5077, section 3.1).

use testkit::tickets::{KeyName, TlsVersion};
use testkit::{Error, Result};

/// Types of records.
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
/// Types of handshake messages.
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const NEW_SESSION_TICKET: u8 = 4;
const CERTIFICATE: u8 = 11;
/// Types of extensions.
const SESSION_TICKET: u16 = 35;
const PRE_SHARED_KEY: u16 = 41;
const SUPPORTED_VERSIONS: u16 = 43;
/// TLS 1.3 in supported_versions.
const V13: [u8; 2] = [3, 4];
/// The random value of a ServerHello that is a HelloRetryRequest (RFC 8446, section 4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
/// The longest plain handshake message that is taken for one: no hello is as long.
const MESSAGE_LIMIT: usize = 1 << 16;

/// One piece of what one side sends in clear.
enum Piece {
    Message(u8, Vec<u8>),
    ChangeCipherSpec,
    Alert,
}

/// Takes records apart as they come.
#[derive(Default)]
struct Pieces {
    raw: Vec<u8>,
    messages: Vec<u8>,
}

impl Pieces {
    fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            if let Some([kind, a, b, c]) = self.messages.first_chunk() {
                let end = 4 + usize::from(*a) * 65536 + usize::from(*b) * 256 + usize::from(*c);
                if end > MESSAGE_LIMIT {
                    return Err(Error::new("a handshake message that is none"));
                }
                if self.messages.len() >= end {
                    let kind = *kind;
                    let rest = self.messages.split_off(end);
                    let message = std::mem::replace(&mut self.messages, rest);
                    return Ok(Some(Piece::Message(kind, message[4..].to_vec())));
                }
            }
            let Some([kind, _, _, a, b]) = self.raw.first_chunk() else { return Ok(None) };
            let (kind, end) = (*kind, 5 + usize::from(*a) * 256 + usize::from(*b));
            if self.raw.len() < end {
                return Ok(None);
            }
            let rest = self.raw.split_off(end);
            let record = std::mem::replace(&mut self.raw, rest);
            match kind {
                HANDSHAKE => self.messages.extend_from_slice(&record[5..]),
                CHANGE_CIPHER_SPEC => return Ok(Some(Piece::ChangeCipherSpec)),
                ALERT => return Ok(Some(Piece::Alert)),
                _ => return Err(Error::new(format!("a record of type {kind} before a hello"))),
            }
        }
    }
}

/// What a client's first message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// The name of the key that the offered ticket is encrypted under, if one is offered.
    pub ticket: Option<KeyName>,
}

/// What a client sends until its hello is whole.
#[derive(Default)]
pub struct FromClient(Pieces);

impl FromClient {
    /// Takes what came; tells what the hello says once it is whole.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<Offered>> {
        self.0.raw.extend_from_slice(bytes);
        match self.0.next()? {
            None => Ok(None),
            Some(Piece::Message(CLIENT_HELLO, body)) => offered(&body).map(Some),
            Some(_) => Err(Error::new("a client that does not begin with a ClientHello")),
        }
    }
}

fn offered(body: &[u8]) -> Result<Offered> {
    let mut fields = Fields(body);
    fields.take(2 + 32)?;
    fields.short_vector()?;
    fields.vector()?;
    fields.short_vector()?;
    let mut ticket = None;
    for (kind, value) in fields.extensions()? {
        let bytes = match kind {
            SESSION_TICKET => value,
            // The list of identities, of which the first is the ticket.
            PRE_SHARED_KEY => Fields(Fields(value).vector()?).vector()?,
            _ => continue,
        };
        if let Some(name) = bytes.first_chunk() {
            ticket = Some(*name);
        }
    }
    Ok(Offered { ticket })
}

/// What a server decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The version that it chose.
    pub version: TlsVersion,
    /// Whether it resumed.
    pub resumed: bool,
    /// Whether it asked for a second ClientHello.
    pub retried: bool,
}

/// What a server sends until it is clear whether it resumes.
#[derive(Default)]
pub struct FromServer {
    pieces: Pieces,
    retried: bool,
    /// Its ServerHello was one of TLS 1.2.
    is_v12: bool,
}

impl FromServer {
    /// Takes what came; tells the outcome once there is one.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<Outcome>> {
        self.pieces.raw.extend_from_slice(bytes);
        while let Some(piece) = self.pieces.next()? {
            let retried = self.retried;
            let v12 = |resumed| Outcome { version: TlsVersion::V12, resumed, retried };
            match piece {
                Piece::Message(SERVER_HELLO, body) if !self.is_v12 => {
                    if body.get(2..34) == Some(&RETRY) {
                        self.retried = true;
                        continue;
                    }
                    match v13_resumes(&body)? {
                        Some(resumed) => {
                            return Ok(Some(Outcome { version: TlsVersion::V13, resumed, retried }))
                        }
                        None => self.is_v12 = true,
                    }
                }
                Piece::Message(CERTIFICATE, _) if self.is_v12 => return Ok(Some(v12(false))),
                Piece::Message(NEW_SESSION_TICKET, _) if self.is_v12 => {}
                Piece::ChangeCipherSpec if self.is_v12 => return Ok(Some(v12(true))),
                // After a HelloRetryRequest, for the sake of middleboxes.
                Piece::ChangeCipherSpec if self.retried => {}
                Piece::Alert => return Err(Error::new("the server answered with an alert")),
                Piece::ChangeCipherSpec => return Err(Error::new("ChangeCipherSpec comes first")),
                Piece::Message(kind, _) => {
                    return Err(Error::new(format!("handshake message {kind} in a wrong place")))
                }
            }
        }
        Ok(None)
    }
}

/// Whether this ServerHello resumes; `None` where it is not of TLS 1.3.
fn v13_resumes(body: &[u8]) -> Result<Option<bool>> {
    let mut fields = Fields(body);
    fields.take(2 + 32)?;
    fields.short_vector()?;
    fields.take(2 + 1)?;
    let extensions = fields.extensions()?;
    let has = |wanted: u16| extensions.iter().find(|(kind, _)| *kind == wanted);
    let is_v13 = has(SUPPORTED_VERSIONS).is_some_and(|(_, value)| *value == V13);
    Ok(is_v13.then(|| has(PRE_SHARED_KEY).is_some()))
}

/// The rest of a message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let short = || Error::new("a hello that ends too soon");
        let (head, rest) = self.0.split_at_checked(count).ok_or_else(short)?;
        self.0 = rest;
        Ok(head)
    }

    fn number(&mut self) -> Result<u16> {
        let bytes = self.take(2)?;
        Ok(u16::from(bytes[0]) * 256 + u16::from(bytes[1]))
    }

    /// With one byte of length.
    fn short_vector(&mut self) -> Result<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    /// With two bytes of length.
    fn vector(&mut self) -> Result<&'a [u8]> {
        let length = self.number()?;
        self.take(length.into())
    }

    /// All that is left; there may be none at all.
    fn extensions(&mut self) -> Result<Vec<(u16, &'a [u8])>> {
        let mut found = Vec::new();
        if self.0.is_empty() {
            return Ok(found);
        }
        let mut list = Fields(self.vector()?);
        while !list.0.is_empty() {
            found.push((list.number()?, list.vector()?));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind, 3, 3, (body.len() / 256) as u8, body.len() as u8], body].concat()
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind, 0, (body.len() / 256) as u8, body.len() as u8], body].concat()
    }

    fn extensions(list: &[(u16, &[u8])]) -> Vec<u8> {
        let one = |(kind, value): &(u16, &[u8])| {
            [&kind.to_be_bytes()[..], &(value.len() as u16).to_be_bytes(), value].concat()
        };
        let all = list.iter().map(one).collect::<Vec<_>>().concat();
        [&(all.len() as u16).to_be_bytes()[..], &all].concat()
    }

    fn server_hello(random: [u8; 32], list: &[(u16, &[u8])]) -> Vec<u8> {
        let body = [&[3, 3], &random[..], &[1, 7], &[0x13, 1, 0], &extensions(list)].concat();
        message(SERVER_HELLO, &body)
    }

    fn client_hello(list: &[(u16, &[u8])]) -> Vec<u8> {
        let head = [&[3, 3], &[1; 32][..], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
        record(HANDSHAKE, &message(CLIENT_HELLO, &[head, extensions(list)].concat()))
    }

    /// One byte after another, as a network may bring it; nothing is said before the last one.
    fn said_at_last<T>(bytes: &[u8], mut feed: impl FnMut(&[u8]) -> Result<Option<T>>) -> T {
        let (last, before) = bytes.split_last().unwrap();
        for byte in before {
            assert!(feed(&[*byte]).unwrap().is_none());
        }
        feed(&[*last]).unwrap().unwrap()
    }

    fn outcome(bytes: &[u8]) -> Outcome {
        let mut server = FromServer::default();
        said_at_last(bytes, |bytes| server.feed(bytes))
    }

    #[test]
    fn a_server_of_1_3_resumes_where_it_names_a_pre_shared_key() {
        let version = (SUPPORTED_VERSIONS, &V13[..]);
        for (list, resumed) in [(vec![version], false), (vec![(41, &[0, 0][..]), version], true)] {
            let hello = record(HANDSHAKE, &server_hello([9; 32], &list));
            let expected = Outcome { version: TlsVersion::V13, resumed, retried: false };
            assert_eq!(outcome(&hello), expected);
            // A request for a second hello is no answer, whatever it names.
            let retry = record(HANDSHAKE, &server_hello(RETRY, &[version]));
            let bytes = [retry, record(CHANGE_CIPHER_SPEC, &[1]), hello].concat();
            assert_eq!(outcome(&bytes), Outcome { retried: true, ..expected });
        }
    }

    #[test]
    fn a_server_of_1_2_resumes_where_it_shows_no_certificate() {
        let hello = server_hello([9; 32], &[(SESSION_TICKET, &[])]);
        let v12 = |resumed| Outcome { version: TlsVersion::V12, resumed, retried: false };
        let whole = [hello.clone(), message(CERTIFICATE, &[0; 700])].concat();
        assert_eq!(outcome(&record(HANDSHAKE, &whole)), v12(false));
        let (hello, change) = (record(HANDSHAKE, &hello), record(CHANGE_CIPHER_SPEC, &[1]));
        assert_eq!(outcome(&[&hello[..], &change].concat()), v12(true));
        let ticket = record(HANDSHAKE, &message(NEW_SESSION_TICKET, &[0; 200]));
        assert_eq!(outcome(&[hello, ticket, change].concat()), v12(true));
    }

    #[test]
    fn a_server_that_ends_it_says_nothing_about_resumption() {
        assert!(FromServer::default().feed(&record(ALERT, &[2, 40])).is_err());
        assert!(FromServer::default().feed(&record(CHANGE_CIPHER_SPEC, &[1])).is_err());
        assert!(FromServer::default()
            .feed(&record(HANDSHAKE, &message(CERTIFICATE, &[0])))
            .is_err());
    }

    #[test]
    fn a_client_offers_what_is_no_empty_ticket() {
        let read = |list: &[(u16, &[u8])]| {
            let mut client = FromClient::default();
            said_at_last(&client_hello(list), |bytes| client.feed(bytes)).ticket
        };
        assert_eq!(read(&[(0, &[1, 2, 3])]), None);
        assert_eq!(read(&[(SESSION_TICKET, &[])]), None);
        assert_eq!(read(&[(SESSION_TICKET, &[5; 20])]), Some([5; 16]));
        let identity = [&[0, 26, 0, 20], &[6; 20][..], &[0; 4]].concat();
        assert_eq!(read(&[(0, &[1]), (PRE_SHARED_KEY, &identity)]), Some([6; 16]));
        assert!(FromClient::default().feed(&record(ALERT, &[1, 0])).is_err());
    }
}
