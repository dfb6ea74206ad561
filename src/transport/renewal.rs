//! Puts a new connection in the place of one that has stood for long, or that was made with a
//! certificate which this server has no more.
//!
//! Nothing is lost by it: requests and notes go by the old connection until the peer has answered
//! on the new one, and what was asked on the old one is still answered there. A renewal that fails
//! is tried again; the old connection has its own end.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::peers::{Conversation, DialError, Dialled, End, Hope, PeerConnection};
use super::trust::renewal_after;
use super::Alarm;

/// Tries to renew one connection before it ends at its full age, so that a peer that is away for a
/// moment is asked again in time.
const TRIES: u32 = 30;

/// How far the renewal of one line is.
pub(super) struct Renewal {
    /// The certificate that this side showed on the present connection.
    leaf: Arc<str>,
    due: Instant,
    alarm: Alarm,
    step: Step,
    /// The connection that was renewed last, until its last response is there.
    old: Option<Conversation>,
}

enum Step {
    Rest,
    Dial(Pin<Box<dyn Future<Output = Result<Dialled, DialError>> + Send>>),
    /// The peer is asked on the new connection whether it is good.
    Greet {
        conversation: Box<Conversation>,
        leaf: Arc<str>,
        _hope: Hope,
    },
}

impl Renewal {
    /// Of a connection on which this side showed `leaf`.
    pub fn new(leaf: Arc<str>, max_age: Duration) -> Renewal {
        let due = Instant::now() + renewal_after(max_age);
        let alarm = Alarm::new(due);
        Renewal { leaf, due, alarm, step: Step::Rest, old: None }
    }

    /// Moves on what is under way, and puts a new connection in the place of `present` when there
    /// is one.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        line: &mut PeerConnection,
        present: &mut Conversation,
    ) {
        if let Some(old) = &mut self.old {
            if let Poll::Ready(end) = old.poll(cx, line, None) {
                line.tell_spare_end(&end);
                self.old.take().map(|old| old.part(&end));
            }
        }
        if matches!(self.step, Step::Rest) && self.is_due(cx, line, present) {
            self.step = Step::Dial(Box::pin(line.dial()));
        }
        if let Step::Dial(dialling) = &mut self.step {
            match dialling.as_mut().poll(cx) {
                Poll::Pending => {}
                Poll::Ready(Err(error)) => self.again(line, &error),
                Poll::Ready(Ok(dialled)) => {
                    let leaf = Arc::clone(&dialled.leaf);
                    let (conversation, hope) = line.greet(dialled);
                    let conversation = Box::new(conversation);
                    self.step = Step::Greet { conversation, leaf, _hope: hope };
                }
            }
        }
        if let Step::Greet { conversation, .. } = &mut self.step {
            match conversation.poll(cx, line, None) {
                Poll::Ready(End::Renewed) => self.change_over(cx, line, present),
                Poll::Ready(end) => self.again(line, &end),
                Poll::Pending => {}
            }
        }
    }

    /// Whether it is time. A peer that has not answered yet has its first connection still.
    fn is_due(
        &mut self,
        cx: &mut Context<'_>,
        line: &PeerConnection,
        present: &Conversation,
    ) -> bool {
        if self.old.is_some() || !present.has_heard() {
            return false;
        }
        let newest = line.newest_leaf();
        if self.leaf != newest {
            (self.leaf, self.due) = (newest, Instant::now());
        }
        self.alarm.poll(cx, self.due).is_ready()
    }

    fn change_over(&mut self, cx: &Context<'_>, line: &PeerConnection, present: &mut Conversation) {
        let Step::Greet { conversation, leaf, .. } = mem::replace(&mut self.step, Step::Rest)
        else {
            return;
        };
        self.old = Some(mem::replace(present, *conversation));
        (self.leaf, self.due) = (leaf, Instant::now() + renewal_after(line.max_age()));
        // Both have to be polled in their new places.
        cx.waker().wake_by_ref();
    }

    fn again(&mut self, line: &PeerConnection, why: &dyn fmt::Display) {
        line.tell_spare_end(why);
        self.step = Step::Rest;
        self.due = Instant::now() + line.max_age() / TRIES;
    }
}
