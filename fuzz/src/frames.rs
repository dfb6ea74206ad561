//! Frames, whole and in pieces.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use stek_share::transport::frame::{
    self, decode, encode, Event, FrameError, Versions, Wire, WireError, HEADER_LEN, MAX_BODY,
    NOTICE,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A whole frame from a slice: its parts lie in the input one after another, and give the same
/// bytes when they are encoded again.
pub fn whole(bytes: &[u8]) {
    let Ok(Some((header, body, rest))) = decode(bytes) else { return };
    assert_eq!(HEADER_LEN + body.len() + rest.len(), bytes.len());
    assert!(body.len() <= MAX_BODY);
    let again = encode(&header, body).expect("what was decoded can be encoded");
    assert_eq!(again.as_slice(), &bytes[..again.len()]);
    assert!(header.version == NOTICE || Versions::OURS.contain(header.version));
    if let Some(theirs) = Versions::of_notice(body) {
        assert!(theirs.min > NOTICE && theirs.min <= theirs.max);
        assert_eq!(Versions::of_notice(&theirs.to_notice()), Some(theirs));
        if let Some(common) = theirs.common(Versions::OURS) {
            assert!(theirs.contain(common) && Versions::OURS.contain(common));
        }
    }
}

/// What a stream gave: the events, and how it ended.
#[derive(Debug, PartialEq)]
enum Seen {
    Head(frame::Header),
    Foreign(u8),
    Body(Vec<u8>),
    End(Option<FrameError>),
}

/// A stream in pieces of any size, with pauses in between, gives what it gives in one piece: no
/// byte is lost, invented or read twice, and it ends in the same way. The first byte of the input
/// says which versions are spoken, and a part of it how the rest is cut.
pub fn stream(input: &[u8]) {
    let [versions, seed, bytes @ ..] = input else { return };
    let spoken = match versions % 3 {
        0 => Versions::OURS,
        1 => Versions { min: 1, max: 7 },
        _ => Versions { min: 2, max: 3 },
    };
    let in_one = read(bytes, spoken, None);
    assert_eq!(in_one, read(bytes, spoken, Some(u32::from(*seed))), "cut in pieces");
    let bodies: usize = in_one
        .iter()
        .map(|seen| match seen {
            Seen::Body(body) => body.len() + HEADER_LEN,
            _ => 0,
        })
        .sum();
    assert!(bodies <= bytes.len(), "bytes were invented");
    assert!(matches!(in_one.last(), Some(Seen::End(_))));
    if let Some(Seen::End(None)) = in_one.last() {
        assert_eq!(bodies, bytes.len(), "bytes were lost");
    }
}

fn read(bytes: &[u8], spoken: Versions, cuts: Option<u32>) -> Vec<Seen> {
    let mut wire = Wire::new(Pieces { rest: bytes, cuts, paused: false }, spoken);
    let mut context = Context::from_waker(Waker::noop());
    let mut seen = Vec::new();
    loop {
        let event = match wire.poll(&mut context, true) {
            Poll::Pending => continue,
            Poll::Ready(Ok(Event::Closed)) => Seen::End(None),
            Poll::Ready(Ok(Event::Head(header))) => Seen::Head(header),
            Poll::Ready(Ok(Event::Foreign(version))) => Seen::Foreign(version),
            Poll::Ready(Ok(Event::Body(body))) => Seen::Body(body.to_vec()),
            Poll::Ready(Ok(Event::Sent)) => panic!("nothing was sent"),
            Poll::Ready(Err(WireError::Frame(error))) => Seen::End(Some(error)),
            Poll::Ready(Err(WireError::Io(error))) => panic!("{error}"),
        };
        if let Seen::Foreign(version) = event {
            assert!(!spoken.contain(version) && version != NOTICE);
        }
        let ended = matches!(event, Seen::End(_));
        seen.push(event);
        if ended {
            return seen;
        }
    }
}

/// A connection on which bytes come in pieces, with pauses.
struct Pieces<'a> {
    rest: &'a [u8],
    cuts: Option<u32>,
    paused: bool,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut size = self.rest.len().min(space.remaining());
        if let Some(cuts) = &mut self.cuts {
            // A linear congruential generator is random enough to cut by.
            *cuts = cuts.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let random = (*cuts >> 16) as usize;
            size = size.min(1 + random % 61);
            self.paused = !self.paused && random % 4 == 0;
            if self.paused {
                return Poll::Pending;
            }
        }
        let (piece, rest) = self.rest.split_at(size);
        space.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        panic!("nothing is written")
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
