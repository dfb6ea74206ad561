//! The form of a frame: what stands before each body, and how both are read and written.
//!
//! Leaves to others who may send what. Invariants: a length is checked before memory is
//! taken for it; a body stands only in buffers of their exact size, which are erased when they are
//! dropped (a buffer that grew would leave copies behind); no input makes anything here panic.
//!
//! ```text
//! offset 0        4        5     6       10           18       34          38    39
//!        length   version  role  sender  incarnation  cluster incarnation  request id  kind  body …
//!        u32      u8       u8    u32     u64          16       u32         u8
//! ```
//! All numbers are big-endian; the length counts what follows it.
//!
//! # Versions
//!
//! The side that dials begins with the newest version that it speaks. A side that is dialled and
//! does not speak it answers with a *notice*, once, and waits; the dialler goes on with the
//! highest version that both speak, or says goodbye with a notice of its own. A response is in the
//! version of its request. So that any two versions can do this, these stay as they are for ever:
//! - the length and the version, at offsets 0 and 4, and that a whole frame has at least 39 bytes;
//! - [`NOTICE`], the version 0, which is none: a frame of it has the header above, the kind 2
//!   (refused) and a body that begins with two bytes, the oldest and the newest version spoken.
//!
//! All else may change with the version. A header of another form is decoded where [`Wire`] knows
//! the version of what it reads. Another encoding of bodies goes by
//! [`super::listener::Caller::version`] for requests that come in; for those that go out it is
//! known in `peers`, where a request is put on the wire, and not before.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{ready, Context, Poll};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::core::server_id::ServerId;

/// A body, erased when it is dropped: it may carry keys.
pub type Body = Zeroizing<Vec<u8>>;

/// The id of a cluster incarnation; all zero where there is none yet.
pub type ClusterId = [u8; 16];

/// What stands in place of a version in a notice, which every version understands.
pub const NOTICE: u8 = 0;
/// The oldest protocol version that this server speaks.
pub const VERSION_MIN: u8 = 1;
/// The newest protocol version that this server speaks.
pub const VERSION_MAX: u8 = 1;

/// The protocol versions that a server speaks: all from `min` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest, never [`NOTICE`].
    pub min: u8,
    /// The newest.
    pub max: u8,
}

impl Versions {
    /// What this code speaks.
    pub const OURS: Versions = Versions { min: VERSION_MIN, max: VERSION_MAX };

    /// Whether this version is among them.
    pub fn contain(self, version: u8) -> bool {
        (self.min..=self.max).contains(&version)
    }

    /// The newest version that both speak.
    pub fn common(self, other: Versions) -> Option<u8> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }

    /// The body of a notice.
    pub fn to_notice(self) -> [u8; 2] {
        [self.min, self.max]
    }

    /// What the body of a notice says; what follows its two bytes is for later versions.
    pub fn of_notice(body: &[u8]) -> Option<Versions> {
        let [min, max, ..] = *body else { return None };
        (NOTICE < min && min <= max).then_some(Versions { min, max })
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min == self.max {
            true => write!(f, "version {}", self.max),
            false => write!(f, "versions {} to {}", self.min, self.max),
        }
    }
}

/// Two servers cannot talk: no version is spoken by both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "it speaks protocol {theirs}, this server {ours}; run versions of the plugin that have one in \
     common"
)]
pub struct NoCommonVersion {
    /// What the other server speaks.
    pub theirs: Versions,
    /// What this one does.
    pub ours: Versions,
}

/// Bytes before the body, the length's own four among them.
pub const HEADER_LEN: usize = 39;

/// Bytes of the length.
const LENGTH_LEN: usize = 4;

/// The most bytes that may follow a length. The largest thing that travels is a snapshot: a
/// server list and some keys, a few KiB.
pub const MAX_FRAME: usize = 1 << 20;

/// The most bytes of a body.
pub const MAX_BODY: usize = MAX_FRAME - (HEADER_LEN - LENGTH_LEN);

/// As what the sender speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A server of the server list.
    Member,
    /// An operator's command.
    Tool,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Wants a response with the same request id.
    Request,
    /// Answers the request with the same request id.
    Response,
    /// Wants no response, and gets none.
    Note,
    /// Wants an empty response from the transport itself: whoever renews a connection learns by
    /// it that the new one is good.
    Hello,
    /// The receiver does not hear this sender; the body is one byte, see
    /// [`super::listener::Refusal`], and the connection ends with it. Of the version [`NOTICE`]:
    /// the receiver does not speak the sender's version.
    Refused,
}

/// What stands before a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The protocol version of the frame, or [`NOTICE`].
    pub version: u8,
    /// As what the sender speaks.
    pub role: Role,
    /// The sender's id in the server list; a tool names the id of the server that it runs on.
    pub sender: ServerId,
    /// The run of the sender's process.
    pub incarnation: u64,
    /// The sender's cluster incarnation.
    pub cluster_id: ClusterId,
    /// Pairs a response with its request on one connection.
    pub request: u32,
    /// What the frame is.
    pub kind: Kind,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The length is more than [`MAX_FRAME`].
    #[error("a frame of {0} bytes is longer than the {MAX_FRAME} that are allowed")]
    TooLong(u64),
    /// The length is less than a header's.
    #[error("a frame of {0} bytes is too short for its header")]
    TooShort(u32),
    /// A protocol version that is not spoken here, or not any more on this connection.
    #[error("a frame is in protocol version {0}, which this server does not speak there")]
    Version(u8),
    /// No such role.
    #[error("a frame has the unknown role {0}")]
    Role(u8),
    /// No such kind.
    #[error("a frame is of the unknown kind {0}")]
    Kind(u8),
    /// The connection ended inside a frame.
    #[error("the connection ended inside a frame")]
    CutShort,
}

/// A whole frame in one buffer of its exact size.
///
/// # Errors
/// [`FrameError::TooLong`] if the body has more than [`MAX_BODY`] bytes.
pub fn encode(header: &Header, body: &[u8]) -> Result<Body, FrameError> {
    let too_long = FrameError::TooLong(body.len() as u64);
    if body.len() > MAX_BODY {
        return Err(too_long);
    }
    let length = u32::try_from(HEADER_LEN - LENGTH_LEN + body.len()).map_err(|_| too_long)?;
    let mut frame = Zeroizing::new(Vec::with_capacity(HEADER_LEN + body.len()));
    frame.extend_from_slice(&length.to_be_bytes());
    frame.push(header.version);
    frame.push(match header.role {
        Role::Member => 0,
        Role::Tool => 1,
    });
    frame.extend_from_slice(&header.sender.0.to_be_bytes());
    frame.extend_from_slice(&header.incarnation.to_be_bytes());
    frame.extend_from_slice(&header.cluster_id);
    frame.extend_from_slice(&header.request.to_be_bytes());
    frame.push(match header.kind {
        Kind::Request => 0,
        Kind::Response => 1,
        Kind::Refused => 2,
        Kind::Note => 3,
        Kind::Hello => 4,
    });
    frame.extend_from_slice(body);
    Ok(frame)
}

/// Reads a length: how many bytes of a body follow the header.
///
/// # Errors
/// The length is outside of what is allowed.
pub fn decode_length(bytes: [u8; LENGTH_LEN]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(bytes);
    if length as usize > MAX_FRAME {
        return Err(FrameError::TooLong(length.into()));
    }
    (length as usize).checked_sub(HEADER_LEN - LENGTH_LEN).ok_or(FrameError::TooShort(length))
}

/// Reads the bytes before a body: the header, and how many bytes the body has. Only `spoken`
/// versions are read, and notices.
///
/// # Errors
/// The first field that is not as it must be.
pub fn decode_header(
    bytes: &[u8; HEADER_LEN],
    spoken: Versions,
) -> Result<(Header, usize), FrameError> {
    let [l0, l1, l2, l3, version, role, rest @ ..] = *bytes;
    let body_len = decode_length([l0, l1, l2, l3])?;
    if version != NOTICE && !spoken.contain(version) {
        return Err(FrameError::Version(version));
    }
    let role = match role {
        0 => Role::Member,
        1 => Role::Tool,
        other => return Err(FrameError::Role(other)),
    };
    let [s0, s1, s2, s3, rest @ ..] = rest;
    let [i0, i1, i2, i3, i4, i5, i6, i7, rest @ ..] = rest;
    let [cluster_id @ .., r0, r1, r2, r3, kind] = rest;
    let kind = match kind {
        0 => Kind::Request,
        1 => Kind::Response,
        2 => Kind::Refused,
        3 => Kind::Note,
        4 => Kind::Hello,
        other => return Err(FrameError::Kind(other)),
    };
    if version == NOTICE && kind != Kind::Refused {
        return Err(FrameError::Version(NOTICE));
    }
    let header = Header {
        version,
        role,
        sender: ServerId(u32::from_be_bytes([s0, s1, s2, s3])),
        incarnation: u64::from_be_bytes([i0, i1, i2, i3, i4, i5, i6, i7]),
        cluster_id,
        request: u32::from_be_bytes([r0, r1, r2, r3]),
        kind,
    };
    Ok((header, body_len))
}

/// A frame taken off a slice: header, body, and what follows them.
pub type Split<'a> = (Header, &'a [u8], &'a [u8]);

/// Reads a whole frame of [`Versions::OURS`] from a slice, as a fuzzer does.
/// `None` if more bytes are needed.
///
/// # Errors
/// As [`decode_header`].
pub fn decode(bytes: &[u8]) -> Result<Option<Split<'_>>, FrameError> {
    if let Some(length) = bytes.first_chunk() {
        decode_length(*length)?;
    }
    let Some((head, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let (header, body_len) = decode_header(head, Versions::OURS)?;
    Ok(rest.split_at_checked(body_len).map(|(body, rest)| (header, body, rest)))
}

/// Why a connection can no longer be read or written.
#[derive(Debug, Error)]
pub enum WireError {
    /// What came is not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection failed or ended.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What [`Wire::poll`] reports.
#[derive(Debug)]
pub enum Event {
    /// The frame that was given to [`Wire::send`] is out.
    Sent,
    /// A header has come; its body is read by the next call.
    Head(Header),
    /// The head of a frame in this version, which is not spoken here, has come. Its body is read
    /// by the next call, to be thrown away.
    Foreign(u8),
    /// The body that belongs to the last [`Event::Head`] or [`Event::Foreign`].
    Body(Body),
    /// The other end closed the connection between two frames.
    Closed,
}

/// Frames over a byte stream, for one task that reads and writes: at most one frame of each
/// direction is in memory.
pub struct Wire<S> {
    stream: S,
    spoken: Versions,
    state: Reading,
    begun: Option<Instant>,
    out: Body,
    written: usize,
    out_begun: Option<Instant>,
}

enum Reading {
    Head { bytes: [u8; HEADER_LEN], filled: usize },
    Body { bytes: Body, filled: usize },
}

impl Reading {
    const START: Reading = Reading::Head { bytes: [0; HEADER_LEN], filled: 0 };
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// A wire over `stream`, which must be verified already; `spoken` versions are read.
    pub fn new(stream: S, spoken: Versions) -> Wire<S> {
        Wire {
            stream,
            spoken,
            state: Reading::START,
            begun: None,
            out: Zeroizing::new(Vec::new()),
            written: 0,
            out_begun: None,
        }
    }

    /// What it goes over.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Whether a frame is on its way out; until it is, no other may be sent.
    pub fn is_sending(&self) -> bool {
        self.out_begun.is_some()
    }

    /// Whether a frame is half read.
    pub fn is_reading(&self) -> bool {
        self.begun.is_some()
    }

    /// Takes an encoded frame to be written by [`Wire::poll`]. Must not be called while
    /// [`Wire::is_sending`].
    pub fn send(&mut self, frame: Body) {
        debug_assert!(!self.is_sending());
        self.out = frame;
        self.written = 0;
        self.out_begun = Some(Instant::now());
    }

    /// When the older of the frames that are half read or half written was begun.
    pub fn begun(&self) -> Option<Instant> {
        match (self.begun, self.out_begun) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Writes what is to be written, and reads on if `may_read`.
    pub fn poll(&mut self, cx: &mut Context<'_>, may_read: bool) -> Poll<Result<Event, WireError>> {
        if self.out_begun.is_some() {
            if let Poll::Ready(done) = self.poll_write(cx) {
                return Poll::Ready(done.map(|()| Event::Sent));
            }
        }
        if may_read {
            return self.poll_read(cx);
        }
        Poll::Pending
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
            }
            self.written += n;
        }
        self.out = Zeroizing::new(Vec::new());
        self.out_begun = None;
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, WireError>> {
        loop {
            let (bytes, filled) = match &mut self.state {
                Reading::Head { bytes, filled } => (bytes.as_mut_slice(), filled),
                Reading::Body { bytes, filled } => (bytes.as_mut_slice(), filled),
            };
            if let Some(space) = bytes.get_mut(*filled..).filter(|space| !space.is_empty()) {
                let mut space = ReadBuf::new(space);
                ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space))?;
                match space.filled().len() {
                    0 if self.begun.is_none() => return Poll::Ready(Ok(Event::Closed)),
                    0 => return Poll::Ready(Err(FrameError::CutShort.into())),
                    n => *filled += n,
                }
                if self.begun.is_none() {
                    self.begun = Some(Instant::now());
                }
            }
            if let Some(event) = self.advance()? {
                return Poll::Ready(Ok(event));
            }
        }
    }

    /// Moves on where a part is complete. A bad length is refused as soon as it is there.
    fn advance(&mut self) -> Result<Option<Event>, FrameError> {
        match &mut self.state {
            Reading::Head { bytes, filled } if *filled == HEADER_LEN => {
                let (event, body_len) = match decode_header(bytes, self.spoken) {
                    Err(FrameError::Version(version)) if version != NOTICE => {
                        let [l0, l1, l2, l3, ..] = *bytes;
                        (Event::Foreign(version), decode_length([l0, l1, l2, l3])?)
                    }
                    decoded => decoded.map(|(header, len)| (Event::Head(header), len))?,
                };
                let bytes = Zeroizing::new(vec![0; body_len]);
                self.state = Reading::Body { bytes, filled: 0 };
                Ok(Some(event))
            }
            Reading::Head { bytes: [l0, l1, l2, l3, ..], filled } => {
                if *filled >= LENGTH_LEN {
                    decode_length([*l0, *l1, *l2, *l3])?;
                }
                Ok(None)
            }
            Reading::Body { bytes, filled } if *filled == bytes.len() => {
                let body = std::mem::take(bytes);
                self.state = Reading::START;
                self.begun = None;
                Ok(Some(Event::Body(body)))
            }
            Reading::Body { .. } => Ok(None),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;

    use super::*;

    fn header() -> Header {
        Header {
            version: VERSION_MAX,
            role: Role::Member,
            sender: ServerId(0x0102_0304),
            incarnation: 0x1112_1314_1516_1718,
            cluster_id: *b"0123456789abcdef",
            request: 7,
            kind: Kind::Request,
        }
    }

    #[test]
    fn stands_on_the_wire_as_documented() {
        let frame = encode(&header(), b"xyz").unwrap();
        assert_eq!(frame.len(), frame.capacity());
        assert_eq!(
            frame.as_slice(),
            b"\x00\x00\x00\x26\x01\x00\x01\x02\x03\x04\x11\x12\x13\x14\x15\x16\x17\x18\
              0123456789abcdef\x00\x00\x00\x07\x00xyz"
        );
    }

    #[test]
    fn comes_back_as_it_went() {
        for role in [Role::Member, Role::Tool] {
            for kind in [Kind::Request, Kind::Response, Kind::Refused, Kind::Note, Kind::Hello] {
                let header = Header { role, kind, ..header() };
                for body in [&b""[..], b"x", &[7; 5000]] {
                    let mut bytes = encode(&header, body).unwrap().to_vec();
                    bytes.extend_from_slice(b"rest");
                    assert_eq!(decode(&bytes).unwrap(), Some((header, body, &b"rest"[..])));
                    for cut in 0..bytes.len() - 4 {
                        assert_eq!(decode(&bytes[..cut]).unwrap(), None, "cut at {cut}");
                    }
                }
            }
        }
    }

    /// This must never change, whatever else does: see the module's head.
    #[test]
    fn a_notice_stands_on_the_wire_for_ever() {
        let versions = Versions { min: 3, max: 7 };
        let header = Header { version: NOTICE, kind: Kind::Refused, request: 0, ..header() };
        let frame = encode(&header, &versions.to_notice()).unwrap();
        assert_eq!(
            frame.as_slice(),
            b"\x00\x00\x00\x25\x00\x00\x01\x02\x03\x04\x11\x12\x13\x14\x15\x16\x17\x18\
              0123456789abcdef\x00\x00\x00\x00\x02\x03\x07"
        );
        let (decoded, body, _) = decode(&frame).unwrap().unwrap();
        assert_eq!((decoded, Versions::of_notice(body)), (header, Some(versions)));
        assert_eq!(Versions::of_notice(b"\x03\x07 and more"), Some(versions));
        for bad in [&b""[..], b"\x01", b"\x00\x01", b"\x02\x01"] {
            assert_eq!(Versions::of_notice(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_newest_common_version_is_taken() {
        let versions = |min, max| Versions { min, max };
        assert_eq!(versions(1, 1).common(versions(1, 2)), Some(1));
        assert_eq!(versions(1, 2).common(versions(1, 2)), Some(2));
        assert_eq!(versions(2, 9).common(versions(1, 4)), Some(4));
        assert_eq!(versions(1, 1).common(versions(2, 2)), None);
        assert_eq!(versions(2, 2).common(versions(1, 1)), None);
        assert_eq!(versions(1, 1).to_string(), "version 1");
        assert_eq!(versions(1, 2).to_string(), "versions 1 to 2");
    }

    #[test]
    fn refuses_each_bad_field() {
        let good = encode(&header(), b"xyz").unwrap();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.to_vec();
            bytes[at] = byte;
            decode(&bytes).map(|_| ())
        };
        assert_eq!(with(4, 0), Err(FrameError::Version(0)));
        assert_eq!(with(4, VERSION_MAX + 1), Err(FrameError::Version(VERSION_MAX + 1)));
        assert_eq!(with(5, 2), Err(FrameError::Role(2)));
        assert_eq!(with(38, 5), Err(FrameError::Kind(5)));
        assert_eq!(with(3, 34), Err(FrameError::TooShort(34)));
        assert_eq!(with(0, 0xff), Err(FrameError::TooLong(0xff00_0026)));
    }

    #[test]
    fn a_length_is_assessed_without_the_rest() {
        assert_eq!(decode_length((MAX_FRAME as u32).to_be_bytes()), Ok(MAX_BODY));
        let over = MAX_FRAME as u32 + 1;
        assert_eq!(decode(&over.to_be_bytes()), Err(FrameError::TooLong(over.into())));
        assert_eq!(decode(&34_u32.to_be_bytes()), Err(FrameError::TooShort(34)));
        let longest = vec![1; MAX_BODY];
        assert_eq!(encode(&header(), &longest).unwrap().len(), MAX_FRAME + LENGTH_LEN);
        assert!(encode(&header(), &vec![1; MAX_BODY + 1]).is_err());
    }

    /// Every single-byte change of a frame gives a header, an error or a wait; never a panic.
    #[test]
    fn no_byte_can_break_it() {
        let good = encode(&header(), b"xyz").unwrap();
        for at in 0..good.len() {
            for byte in 0..=255 {
                let mut bytes = good.to_vec();
                bytes[at] = byte;
                if let Ok(Some((_, body, rest))) = decode(&bytes) {
                    assert_eq!(HEADER_LEN + body.len() + rest.len(), bytes.len());
                }
            }
        }
    }

    #[tokio::test]
    async fn a_wire_reads_what_drips_and_tells_head_and_body() {
        let (mut far, near) = tokio::io::duplex(1);
        let sender = tokio::spawn(async move {
            let frame = encode(&header(), b"hello").unwrap();
            far.write_all(&frame).await.unwrap();
            far.write_all(&frame).await.unwrap();
        });
        let mut wire = Wire::new(near, Versions::OURS);
        for _ in 0..2 {
            let event = poll_fn(|cx| wire.poll(cx, true)).await.unwrap();
            assert!(matches!(event, Event::Head(h) if h == header()), "{event:?}");
            assert!(wire.begun().is_some());
            let event = poll_fn(|cx| wire.poll(cx, true)).await.unwrap();
            assert!(matches!(&event, Event::Body(b) if b.as_slice() == b"hello"), "{event:?}");
            assert!(wire.begun().is_none());
        }
        sender.await.unwrap();
        assert!(matches!(poll_fn(|cx| wire.poll(cx, true)).await, Ok(Event::Closed)));
    }

    #[tokio::test]
    async fn a_wire_refuses_a_length_before_the_header_is_there() {
        let (mut far, near) = tokio::io::duplex(64);
        far.write_all(&[0xff; 4]).await.unwrap();
        let mut wire = Wire::new(near, Versions::OURS);
        let error = poll_fn(|cx| wire.poll(cx, true)).await.unwrap_err();
        assert!(matches!(error, WireError::Frame(FrameError::TooLong(0xffff_ffff))), "{error}");
    }

    #[tokio::test]
    async fn a_wire_passes_over_a_frame_of_another_version() {
        let (mut far, near) = tokio::io::duplex(1024);
        let foreign = Header { version: VERSION_MAX + 1, ..header() };
        far.write_all(&encode(&foreign, b"whatever").unwrap()).await.unwrap();
        far.write_all(&encode(&header(), b"").unwrap()).await.unwrap();
        let mut wire = Wire::new(near, Versions::OURS);
        let event = poll_fn(|cx| wire.poll(cx, true)).await.unwrap();
        assert!(matches!(event, Event::Foreign(v) if v == VERSION_MAX + 1), "{event:?}");
        let event = poll_fn(|cx| wire.poll(cx, true)).await.unwrap();
        assert!(matches!(&event, Event::Body(b) if b.as_slice() == b"whatever"), "{event:?}");
        let event = poll_fn(|cx| wire.poll(cx, true)).await.unwrap();
        assert!(matches!(event, Event::Head(h) if h == header()), "{event:?}");
    }

    #[tokio::test]
    async fn a_wire_tells_a_cut_frame_from_a_closed_connection() {
        let (mut far, near) = tokio::io::duplex(64);
        far.write_all(&[0, 0]).await.unwrap();
        drop(far);
        let mut wire = Wire::new(near, Versions::OURS);
        let error = poll_fn(|cx| wire.poll(cx, true)).await.unwrap_err();
        assert!(matches!(error, WireError::Frame(FrameError::CutShort)), "{error}");
    }
}
