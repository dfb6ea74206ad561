//! Hellos and frames, whole and in pieces.

use std::future::Future;
use std::io;
use std::pin::{pin, Pin};
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};

use stek_share::transport::frame::{
    encode, encode_hello, read_hello, FrameError, Header, Hello, Reader, Versions, WireError,
    HEADER_LEN, HELLO_LEN, MAX_BODY,
};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::{Builder, Runtime};

/// A whole frame: its parts lie in the input one after another, and give the same bytes when they are
/// encoded again.
pub fn whole(bytes: &[u8]) {
    let _clock = CLOCK.enter();
    let mut context = Context::from_waker(Waker::noop());
    let mut reader = Reader::new(bytes);
    let Poll::Ready(frame) = pin!(reader.next()).poll(&mut context) else {
        panic!("it waits where all is there")
    };
    let Ok(Some((header, body))) = frame else { return };
    assert!(HEADER_LEN + body.len() <= bytes.len() && body.len() <= MAX_BODY);
    let again = encode(&header, &body).expect("what was decoded can be encoded");
    assert_eq!(again.as_slice(), &bytes[..again.len()]);
}

/// A hello: what is understood gives the same bytes when it is encoded again, but for what a later
/// version added.
pub fn hello(bytes: &[u8]) {
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(greeting) = pin!(read_hello(&mut &*bytes)).poll(&mut context) else {
        panic!("it waits where all is there")
    };
    let Ok(Some((hello, answer))) = greeting else { return };
    let Versions { min, max } = hello.versions;
    assert!(min > 0 && min <= max);
    if let Ok(common) = hello.versions.common(Versions::OURS) {
        assert!((min..=max).contains(&common));
    }
    let again = encode_hello(&hello, answer);
    assert_eq!(
        (again[..4].to_vec(), again[8..].to_vec()),
        (bytes[..4].to_vec(), bytes[8..HELLO_LEN].to_vec())
    );
}

/// What a stream gave, and how it ended.
#[derive(Debug, PartialEq)]
enum Seen {
    Hello(Hello, u8),
    Frame(Header, Vec<u8>),
    End(Option<FrameError>),
}

/// A stream in pieces of any size, with pauses in between at which the wait is given up, gives what
/// it gives in one piece: no byte is lost, invented or read twice, and it ends in the same way. The
/// first byte of the input says how the rest is cut.
pub fn stream(input: &[u8]) {
    let [seed, bytes @ ..] = input else { return };
    let in_one = read(bytes, None);
    assert_eq!(in_one, read(bytes, Some(u32::from(*seed))), "cut in pieces");
    let bodies = in_one.iter().map(|seen| match seen {
        Seen::Hello(..) => HELLO_LEN,
        Seen::Frame(_, body) => body.len() + HEADER_LEN,
        Seen::End(_) => 0,
    });
    let known = bodies.sum::<usize>();
    assert!(known <= bytes.len(), "bytes were invented");
    // A hello of this version's length, after which all is known.
    let is_known = bytes.get(4..8) == Some(&[0, 0, 0, 30]);
    if let ([Seen::Hello(..), .., Seen::End(None)], true) = (&in_one[..], is_known) {
        assert_eq!(known, bytes.len(), "bytes were lost");
    }
}

/// Where limits of time are set; the clock is never asked, so none is over.
static CLOCK: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_current_thread().enable_time().build().expect("a runtime without threads")
});

fn read(bytes: &[u8], cuts: Option<u32>) -> Vec<Seen> {
    let _limits = CLOCK.enter();
    let mut from = Pieces { rest: bytes, cuts, paused: false };
    let mut context = Context::from_waker(Waker::noop());
    let end = |error| match error {
        WireError::Frame(error) => Seen::End(Some(error)),
        other => panic!("{other}"),
    };
    let mut seen = Vec::new();
    {
        // A hello is awaited to its end.
        let mut greeting = pin!(read_hello(&mut from));
        let greeting = loop {
            if let Poll::Ready(greeting) = greeting.as_mut().poll(&mut context) {
                break greeting;
            }
        };
        match greeting {
            Ok(Some((hello, answer))) => seen.push(Seen::Hello(hello, answer)),
            Ok(None) => return vec![Seen::End(None)],
            Err(error) => return vec![end(error)],
        }
    }
    let mut reader = Reader::new(from);
    loop {
        let Poll::Ready(next) = pin!(reader.next()).poll(&mut context) else { continue };
        let next = match next {
            Ok(Some((header, body))) => Seen::Frame(header, body.to_vec()),
            Ok(None) => Seen::End(None),
            Err(error) => end(error),
        };
        let ended = matches!(next, Seen::End(_));
        seen.push(next);
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
