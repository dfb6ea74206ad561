//! What goes over a connection: the hello with which each side begins, and frames after it.
//!
//! Leaves to others who may send what. Invariants:
//! - A length is checked before memory is taken for it.
//! - A body stands only in buffers of their exact size, which are erased when they are dropped (a
//!   buffer that grew would leave copies behind).
//! - No input makes anything here panic.
//! - [`Reader::next`] and [`Writer::write`] may be dropped at any time and called again: no byte is
//!   lost or sent twice.
//!
//! ```text
//! hello  0    1    2     4       8     9       13           21          37      38
//!        min  max  "SK"  length  role  sender  incarnation  cluster id  answer  ...
//!        u8   u8         u32     u8    u32     u64          16          u8
//!
//! frame  0       4     5        9           25
//!        length  kind  request  cluster id  body ...
//!        u32     u8    u32      16
//! ```
//! All numbers are big-endian; a length counts what follows it.
//!
//! # Versions
//!
//! The side that dials sends its hello first. The other side answers with its own, in which it says
//! too whether it hears the dialler; frames follow in the newest version that both speak. So that
//! any two versions can do this, the first 38 bytes of a hello stay as they are for ever, and what
//! a later version adds behind them is passed over. The form of frames, their kinds and their
//! bodies may change with the version. A kind that is not known here, and a one-way message whose
//! body is not, are passed over: a version may add some without being another one.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Cursor};

use thiserror::Error;
use tokio::io::{split, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{timeout_at, Instant};
use zeroize::Zeroizing;

use super::bounds::FRAME_LIMIT;
use crate::core::server_id::ServerId;

/// A body, erased when it is dropped: it may carry keys.
pub type Body = Zeroizing<Vec<u8>>;

/// The id of a cluster incarnation; all zero where there is none yet.
pub type ClusterId = [u8; 16];

/// The oldest protocol version that this server speaks.
pub const VERSION_MIN: u8 = 2;
/// The newest protocol version that this server speaks.
pub const VERSION_MAX: u8 = 2;

/// The protocol versions that a server speaks: all from `min` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest, never 0.
    pub min: u8,
    /// The newest.
    pub max: u8,
}

impl Versions {
    /// What this code speaks.
    pub const OURS: Versions = Versions { min: VERSION_MIN, max: VERSION_MAX };

    /// The newest version that both speak.
    ///
    /// # Errors
    /// There is none.
    pub fn common(self, theirs: Versions) -> Result<u8, NoCommonVersion> {
        let newest = self.max.min(theirs.max);
        let is_common = newest >= self.min.max(theirs.min);
        is_common.then_some(newest).ok_or(NoCommonVersion { theirs, ours: self })
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "version {}", self.max)
        } else {
            write!(f, "versions {} to {}", self.min, self.max)
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

/// Bytes of a hello that say how long it is.
const HELLO_HEAD: usize = 8;

/// Bytes of a hello as this version sends it.
pub const HELLO_LEN: usize = 38;

/// The most bytes that may follow the length of a hello: much more than later versions could want
/// to say, and next to nothing for who has to keep it.
const MAX_HELLO: usize = 1024;

/// What tells a hello from anything else.
const MARK: [u8; 2] = *b"SK";

/// Bytes before the body of a frame, the length's own four among them.
pub const HEADER_LEN: usize = 25;

/// Bytes of the length of a frame.
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

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The protocol versions that it speaks.
    pub versions: Versions,
    /// As what it speaks.
    pub role: Role,
    /// Its id in the server list; a tool names the id of the server that it runs on.
    pub sender: ServerId,
    /// The run of its process.
    pub incarnation: u64,
    /// Its cluster incarnation.
    pub cluster_id: ClusterId,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Wants a response with the same request id.
    Request,
    /// Answers the request with the same request id.
    Response,
    /// Wants no response, and gets none.
    OneWay,
    /// Of a kind that is not known here.
    Unknown(u8),
}

/// What stands before a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Pairs a response with its request on one connection.
    pub request: u32,
    /// The sender's cluster incarnation when it was sent.
    pub cluster_id: ClusterId,
}

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The connection begins with something else, or with an impossible range of versions.
    #[error("the connection begins with something that is no hello")]
    NoHello,
    /// The length is more than is allowed.
    #[error("a frame of {0} bytes is longer than the {MAX_FRAME} that are allowed")]
    TooLong(u64),
    /// The length is less than a header's.
    #[error("a frame of {0} bytes is too short for its header")]
    TooShort(u32),
    /// No such role.
    #[error("a hello has the unknown role {0}")]
    Role(u8),
    /// What does not belong on this side of a connection.
    #[error("a frame asks for nothing, or asks where nothing may be asked")]
    Kind,
    /// The connection ended inside a frame.
    #[error("the connection ended inside a frame")]
    CutShort,
}

/// The bytes of a hello, with what it answers: 0, or why the other side is not heard.
pub fn encode_hello(hello: &Hello, answer: u8) -> Vec<u8> {
    let Hello { versions, role, sender, incarnation, cluster_id } = hello;
    let mut bytes = vec![versions.min, versions.max, MARK[0], MARK[1]];
    bytes.extend_from_slice(&((HELLO_LEN - HELLO_HEAD) as u32).to_be_bytes());
    bytes.push(match role {
        Role::Member => 0,
        Role::Tool => 1,
    });
    bytes.extend_from_slice(&sender.0.to_be_bytes());
    bytes.extend_from_slice(&incarnation.to_be_bytes());
    bytes.extend_from_slice(cluster_id);
    bytes.push(answer);
    bytes
}

/// Reads how a hello begins: the versions, and how many bytes follow.
fn decode_hello_head(bytes: [u8; HELLO_HEAD]) -> Result<(Versions, usize), FrameError> {
    let [min, max, mark @ .., l0, l1, l2, l3] = bytes;
    let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    let length_fits = (HELLO_LEN - HELLO_HEAD..=MAX_HELLO).contains(&length);
    if mark != MARK || min == 0 || min > max || !length_fits {
        return Err(FrameError::NoHello);
    }
    Ok((Versions { min, max }, length))
}

/// Reads what follows the head of a hello.
fn decode_identity(versions: Versions, bytes: &[u8]) -> Result<(Hello, u8), FrameError> {
    let Some(([role, rest @ ..], _)) = bytes.split_first_chunk::<{ HELLO_LEN - HELLO_HEAD }>()
    else {
        return Err(FrameError::NoHello);
    };
    let role = match *role {
        0 => Role::Member,
        1 => Role::Tool,
        other => return Err(FrameError::Role(other)),
    };
    let [s0, s1, s2, s3, rest @ ..] = *rest;
    let [i0, i1, i2, i3, i4, i5, i6, i7, cluster_id @ .., answer] = rest;
    let sender = ServerId(u32::from_be_bytes([s0, s1, s2, s3]));
    let incarnation = u64::from_be_bytes([i0, i1, i2, i3, i4, i5, i6, i7]);
    Ok((Hello { versions, role, sender, incarnation, cluster_id }, answer))
}

/// Reads a hello from a stream; `None` if the other side closed it before.
///
/// # Errors
/// What came is no hello, or the connection failed.
pub async fn read_hello(
    from: &mut (impl AsyncRead + Unpin),
) -> Result<Option<(Hello, u8)>, WireError> {
    let mut head = [0; HELLO_HEAD];
    let begun = from.read(&mut head).await?;
    let Some(rest) = head.get_mut(begun..).filter(|_| begun > 0) else { return Ok(None) };
    from.read_exact(rest).await.map_err(WireError::inside)?;
    let (versions, length) = decode_hello_head(head)?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await.map_err(WireError::inside)?;
    Ok(Some(decode_identity(versions, &bytes)?))
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
    frame.push(match header.kind {
        Kind::Request => 0,
        Kind::Response => 1,
        Kind::OneWay => 2,
        Kind::Unknown(kind) => kind,
    });
    frame.extend_from_slice(&header.request.to_be_bytes());
    frame.extend_from_slice(&header.cluster_id);
    frame.extend_from_slice(body);
    Ok(frame)
}

/// Reads a length: how many bytes of a body follow the header.
fn decode_length(bytes: [u8; LENGTH_LEN]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(bytes);
    if length as usize > MAX_FRAME {
        return Err(FrameError::TooLong(length.into()));
    }
    (length as usize).checked_sub(HEADER_LEN - LENGTH_LEN).ok_or(FrameError::TooShort(length))
}

/// Reads the bytes before a body: the header, and how many bytes the body has.
fn decode_header(bytes: &[u8; HEADER_LEN]) -> Result<(Header, usize), FrameError> {
    let [l0, l1, l2, l3, kind, r0, r1, r2, r3, cluster_id @ ..] = *bytes;
    let body_len = decode_length([l0, l1, l2, l3])?;
    let kind = match kind {
        0 => Kind::Request,
        1 => Kind::Response,
        2 => Kind::OneWay,
        other => Kind::Unknown(other),
    };
    Ok((Header { kind, request: u32::from_be_bytes([r0, r1, r2, r3]), cluster_id }, body_len))
}

/// Why a connection can no longer be read or written.
#[derive(Debug, Error)]
pub enum WireError {
    /// What came is not what it should be.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection failed or ended.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A frame was begun and took longer than [`FRAME_LIMIT`].
    #[error("a frame took too long")]
    TooSlow,
}

impl WireError {
    /// An error where more had to come.
    fn inside(error: io::Error) -> WireError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => FrameError::CutShort.into(),
            _ => error.into(),
        }
    }
}

/// Frames over a byte stream whose other end was verified; both directions go on side by side.
pub struct Wire<S> {
    /// What comes in.
    pub reader: Reader<ReadHalf<S>>,
    /// What goes out.
    pub writer: Writer<WriteHalf<S>>,
}

impl<S: AsyncRead + AsyncWrite> Wire<S> {
    /// Frames over `stream` from now on.
    pub fn new(stream: S) -> Wire<S> {
        let (from, to) = split(stream);
        let writer = Writer { to, waiting: VecDeque::new(), begun: None };
        Wire { reader: Reader::new(from), writer }
    }

    /// What it goes over, for closing it.
    pub fn into_stream(self) -> S
    where
        S: Unpin,
    {
        self.reader.from.unsplit(self.writer.to)
    }
}

/// Reads frames; at most one is in memory.
pub struct Reader<R> {
    from: R,
    head: [u8; HEADER_LEN],
    /// The frame whose header is complete.
    body: Option<(Header, Body)>,
    /// Bytes of the head, or of the body once there is one.
    filled: usize,
    /// When the first byte of a frame came that is not complete.
    begun: Option<Instant>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Of the frames that come from there.
    pub fn new(from: R) -> Reader<R> {
        Reader { from, head: [0; HEADER_LEN], body: None, filled: 0, begun: None }
    }

    /// Whether a frame is half read.
    pub fn is_reading(&self) -> bool {
        self.begun.is_some()
    }

    /// The next frame; `None` if the other end closed the connection between two frames. A frame
    /// may be long in coming, but not in being sent.
    ///
    /// # Errors
    /// What came is not a frame, or the connection failed.
    pub async fn next(&mut self) -> Result<Option<(Header, Body)>, WireError> {
        loop {
            let whole = match &mut self.body {
                None => &mut self.head[..],
                Some((_, body)) => body.as_mut_slice(),
            };
            if let Some(space) = whole.get_mut(self.filled..).filter(|space| !space.is_empty()) {
                let reading = self.from.read(space);
                let got = match self.begun {
                    None => reading.await?,
                    Some(begun) => timeout_at(begun + FRAME_LIMIT, reading)
                        .await
                        .map_err(|_| WireError::TooSlow)??,
                };
                match (got, self.begun) {
                    (0, None) => return Ok(None),
                    (0, Some(_)) => return Err(FrameError::CutShort.into()),
                    _ => self.filled += got,
                }
                self.begun.get_or_insert_with(Instant::now);
            }
            if let Some(frame) = self.advance()? {
                return Ok(Some(frame));
            }
        }
    }

    /// Moves on where a part is complete. A bad length is refused as soon as it is there.
    fn advance(&mut self) -> Result<Option<(Header, Body)>, FrameError> {
        match &self.body {
            None if self.filled == HEADER_LEN => {
                let (header, body_len) = decode_header(&self.head)?;
                self.body = Some((header, Zeroizing::new(vec![0; body_len])));
                self.filled = 0;
                Ok(None)
            }
            None => {
                let [l0, l1, l2, l3, ..] = self.head;
                if self.filled >= LENGTH_LEN {
                    decode_length([l0, l1, l2, l3])?;
                }
                Ok(None)
            }
            Some((_, body)) if self.filled < body.len() => Ok(None),
            Some(_) => {
                (self.filled, self.begun) = (0, None);
                Ok(self.body.take())
            }
        }
    }
}

/// Writes frames one after another.
pub struct Writer<W> {
    to: W,
    /// What its owner bounds, each with how much of it is written.
    waiting: VecDeque<Cursor<Body>>,
    /// When the first of them was begun.
    begun: Option<Instant>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Frames that are not out yet.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes an encoded frame, to be written by [`Writer::write`].
    pub fn send(&mut self, frame: Body) {
        self.waiting.push_back(Cursor::new(frame));
    }

    /// Writes the next frame to its end.
    ///
    /// # Errors
    /// The connection failed, or the other end does not read.
    pub async fn write(&mut self) -> Result<(), WireError> {
        let Some(frame) = self.waiting.front_mut() else { return Ok(()) };
        let limit = *self.begun.get_or_insert_with(Instant::now) + FRAME_LIMIT;
        let writing = timeout_at(limit, self.to.write_all_buf(frame));
        writing.await.map_err(|_| WireError::TooSlow)??;
        self.waiting.pop_front();
        self.begun = None;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header { kind: Kind::Request, request: 7, cluster_id: *b"0123456789abcdef" }
    }

    fn hello() -> Hello {
        Hello {
            versions: Versions { min: 3, max: 7 },
            role: Role::Tool,
            sender: ServerId(0x0102_0304),
            incarnation: 0x1112_1314_1516_1718,
            cluster_id: *b"0123456789abcdef",
        }
    }

    async fn read(bytes: &[u8]) -> Result<Option<(Hello, u8)>, WireError> {
        read_hello(&mut &*bytes).await
    }

    #[test]
    fn stands_on_the_wire_as_documented() {
        let frame = encode(&header(), b"xyz").unwrap();
        assert_eq!(frame.len(), frame.capacity());
        let expected = b"\x00\x00\x00\x18\x00\x00\x00\x00\x070123456789abcdefxyz";
        assert_eq!(frame.as_slice(), expected);
    }

    /// This must never change, whatever else does: see the module's head.
    #[tokio::test]
    async fn a_hello_stands_on_the_wire_for_ever() {
        let bytes =
            b"\x03\x07SK\x00\x00\x00\x1e\x01\x01\x02\x03\x04\x11\x12\x13\x14\x15\x16\x17\x18\
                      0123456789abcdef\x05";
        assert_eq!(encode_hello(&hello(), 5), bytes);
        assert_eq!(read(bytes).await.unwrap(), Some((hello(), 5)));
        let mut longer = bytes.to_vec();
        longer[7] += 4;
        longer.extend_from_slice(b"morerest");
        let mut rest = longer.as_slice();
        assert_eq!(read_hello(&mut rest).await.unwrap(), Some((hello(), 5)));
        assert_eq!(rest, b"rest", "what a later version adds is passed over");
        assert_eq!(read(b"").await.unwrap(), None);
        for (at, byte) in [(0, 0), (0, 8), (2, b'x'), (3, b'x'), (4, 1), (6, 5), (7, 0x1d), (8, 2)]
        {
            let mut bad = bytes.to_vec();
            bad[at] = byte;
            let error = read(&bad).await.unwrap_err();
            let expected = if at == 8 { FrameError::Role(2) } else { FrameError::NoHello };
            assert!(matches!(error, WireError::Frame(e) if e == expected), "{at}: {error}");
        }
        for cut in 1..bytes.len() {
            let error = read(&bytes[..cut]).await.unwrap_err();
            assert!(matches!(error, WireError::Frame(FrameError::CutShort)), "{cut}: {error}");
        }
    }

    /// The first frame of these bytes.
    async fn decode(bytes: &[u8]) -> Result<Option<(Header, Body)>, WireError> {
        Reader::new(bytes).next().await
    }

    #[tokio::test]
    async fn comes_back_as_it_went() {
        for kind in [Kind::Request, Kind::Response, Kind::OneWay, Kind::Unknown(200)] {
            let header = Header { kind, ..header() };
            for body in [&b""[..], b"x", &[7; 5000]] {
                let mut bytes = encode(&header, body).unwrap().to_vec();
                bytes.extend_from_slice(b"rest");
                let (found, same) = decode(&bytes).await.unwrap().unwrap();
                assert_eq!((found, same.as_slice()), (header, body));
                for cut in 1..bytes.len() - 4 {
                    let error = decode(&bytes[..cut]).await.unwrap_err();
                    let is_cut = matches!(error, WireError::Frame(FrameError::CutShort));
                    assert!(is_cut, "cut at {cut}: {error}");
                }
            }
        }
    }

    #[test]
    fn the_newest_common_version_is_taken() {
        let versions = |min, max| Versions { min, max };
        assert_eq!(versions(1, 1).common(versions(1, 2)), Ok(1));
        assert_eq!(versions(1, 2).common(versions(1, 2)), Ok(2));
        assert_eq!(versions(2, 9).common(versions(1, 4)), Ok(4));
        let parted = NoCommonVersion { theirs: versions(2, 2), ours: versions(1, 1) };
        assert_eq!(versions(1, 1).common(versions(2, 2)), Err(parted));
        assert!(versions(2, 2).common(versions(1, 1)).is_err());
        assert_eq!(versions(1, 1).to_string(), "version 1");
        assert_eq!(versions(1, 2).to_string(), "versions 1 to 2");
    }

    #[test]
    fn a_length_is_within_bounds() {
        assert_eq!(decode_length((MAX_FRAME as u32).to_be_bytes()), Ok(MAX_BODY));
        let over = MAX_FRAME as u32 + 1;
        assert_eq!(decode_length(over.to_be_bytes()), Err(FrameError::TooLong(over.into())));
        assert_eq!(decode_length(20_u32.to_be_bytes()), Err(FrameError::TooShort(20)));
        let longest = vec![1; MAX_BODY];
        assert_eq!(encode(&header(), &longest).unwrap().len(), MAX_FRAME + LENGTH_LEN);
        assert!(encode(&header(), &vec![1; MAX_BODY + 1]).is_err());
    }

    /// Every single-byte change of a frame gives a frame or an error; never a panic.
    #[tokio::test]
    async fn no_byte_can_break_it() {
        let good = encode(&header(), b"xyz").unwrap();
        for at in 0..good.len() {
            for byte in 0..=255 {
                let mut bytes = good.to_vec();
                bytes[at] = byte;
                if let Ok(Some((_, body))) = decode(&bytes).await {
                    assert!(HEADER_LEN + body.len() <= bytes.len());
                }
            }
        }
    }

    /// Both sides are dropped at each pause and go on: nothing is lost or said twice.
    #[tokio::test]
    async fn frames_that_drip_come_whole_though_each_wait_is_given_up() {
        let (far, near) = tokio::io::duplex(1);
        let (mut far, mut near) = (Wire::new(far), Wire::new(near));
        for body in [&b"hello"[..], b""] {
            far.writer.send(encode(&header(), body).unwrap());
        }
        let mut got = Vec::new();
        while got.len() < 2 {
            tokio::select! {
                biased;
                frame = near.reader.next() => got.push(frame.unwrap().unwrap()),
                sent = far.writer.write(), if far.writer.waiting() > 0 => sent.unwrap(),
                () = tokio::task::yield_now() => {}
            }
        }
        assert!(!near.reader.is_reading());
        let expected = [&b"hello"[..], b""].map(|body| (header(), Zeroizing::new(body.to_vec())));
        assert_eq!(got, expected);
        drop(far.into_stream());
        assert!(matches!(near.reader.next().await, Ok(None)));
    }

    #[tokio::test]
    async fn a_length_is_refused_before_the_header_is_there() {
        let (mut far, near) = tokio::io::duplex(64);
        far.write_all(&[0xff; 4]).await.unwrap();
        let error = Reader::new(near).next().await.unwrap_err();
        assert!(matches!(error, WireError::Frame(FrameError::TooLong(0xffff_ffff))), "{error}");
    }

    #[tokio::test]
    async fn a_cut_frame_is_told_from_a_closed_connection() {
        let (mut far, near) = tokio::io::duplex(64);
        far.write_all(&[0, 0]).await.unwrap();
        drop(far);
        let error = Reader::new(near).next().await.unwrap_err();
        assert!(matches!(error, WireError::Frame(FrameError::CutShort)), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_is_begun_has_its_time_in_both_directions() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut near = Wire::new(near);
        near.writer.send(encode(&header(), &[7; 1000]).unwrap());
        let begun = Instant::now();
        assert!(matches!(near.writer.write().await, Err(WireError::TooSlow)));
        assert_eq!(begun.elapsed(), FRAME_LIMIT);
        let drip = async {
            tokio::time::sleep(FRAME_LIMIT).await;
            let begun = Instant::now();
            for byte in encode(&header(), b"x").unwrap().iter() {
                far.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(FRAME_LIMIT / 20).await;
            }
            begun
        };
        let (begun, read) = tokio::join!(drip, async {
            let read = near.reader.next().await;
            (Instant::now(), read)
        });
        assert!(matches!(read.1, Err(WireError::TooSlow)), "{:?}", read.1);
        assert_eq!(read.0 - begun, FRAME_LIMIT);
    }
}
