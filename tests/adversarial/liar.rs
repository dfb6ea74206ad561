//! A member that is asked, and lies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use stek_share::core::agreement::epoch::Epoch;
use stek_share::core::log_id::LogId;
use stek_share::core::node_id::Incarnation;
use stek_share::core::pre_vote::Status;
use stek_share::core::server_id::ServerId;
use stek_share::log_sink::Log;
use stek_share::rpc::{decode_request, encode, AppendAnswer, Request, Response};
use stek_share::transport::frame::{Body, Hello};
use stek_share::transport::listener::{
    Answer, Caller, ListenDeps, ListenSettings, Listener, Refusal, Service,
};
use stek_share::transport::{Counters, LastSeen, LocalIdentity};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::fleet::{wait_for, Fleet, Lines};
use crate::insider::{cluster_id, leader_id, life};
use crate::{leader_term, rotate, three_of_four, ENEMY};

/// The highest term and index that a message may carry at all.
const HIGHEST: u64 = 1 << 62;

/// Answers each question with the worst that passes for an answer.
pub struct Liar {
    told: AtomicU64,
    cluster_id: [u8; 16],
}

impl Service for Liar {
    fn admit(&self, _: &Hello) -> Result<(), Refusal> {
        Ok(())
    }

    fn take_one_way(&self, _: &Caller, _: Body) -> bool {
        true
    }

    fn serve(self: Arc<Self>, _: Caller, body: Body) -> Answer {
        Box::pin(async move {
            let lie = leader_id(HIGHEST);
            let far = Some(LogId { leader_id: leader_id(1), index: HIGHEST });
            let number = self.told.fetch_add(1, Ordering::Relaxed);
            let response = match decode_request(&body).ok()? {
                Request::Status(asker) => Response::Status(Status {
                    node: life(ENEMY),
                    cluster: Epoch { counter: HIGHEST, founder: life(ENEMY) },
                    known: HIGHEST,
                    // Of whoever asks it says that there was a later life, the next that may be.
                    yours: Incarnation(asker.node.incarnation.0 + 1),
                    caught_up: true,
                    quorum: number.is_multiple_of(2),
                    vote: lie,
                    last_log_id: Some(LogId { leader_id: lie, index: HIGHEST }),
                    cluster_id: stek_share::core::key_ring::ClusterId::from_bytes(self.cluster_id),
                    ..Status::default()
                }),
                Request::Vote(_) => {
                    Response::Vote { vote: (lie, false), granted: true, last_log_id: far }
                }
                Request::Append(_) => Response::Append(match number % 3 {
                    0 => AppendAnswer::HigherVote(lie, true),
                    1 => AppendAnswer::HigherVote(leader_id(u64::MAX), false),
                    _ => AppendAnswer::Partial(far),
                }),
                Request::Snapshot(_) => Response::Snapshot { vote: (lie, true) },
                Request::Heartbeat(_) => {
                    Response::Heartbeat { node: life(ENEMY), vote: (lie, true), in_sync: false }
                }
                _ => return None,
            };
            encode(&response)
        })
    }
}

/// The enemy listens where the list says; keep both.
pub fn listen(fleet: &mut Fleet) -> (Runtime, Listener, Arc<Liar>) {
    let runtime = Runtime::new().unwrap();
    let port = fleet.members[ENEMY as usize - 1].port;
    let settings = ListenSettings {
        bind_address: None,
        address: "127.0.0.1".to_owned(),
        port,
        members: fleet.members.clone(),
        bounds: Default::default(),
    };
    let cluster_id = cluster_id(fleet);
    let deps = ListenDeps {
        log: Log::new(Arc::new(Lines::default())),
        tls: watch::channel(fleet.tls()).1,
        me: LocalIdentity::member(ServerId(ENEMY), 666, move || cluster_id),
        heard: LastSeen::new(),
        counters: Counters::new(),
    };
    let liar = Arc::new(Liar { told: AtomicU64::new(0), cluster_id });
    let service = liar.clone();
    let listener = runtime.block_on(async { Listener::start(settings, deps, service) });
    (runtime, listener, liar)
}

#[test]
fn lies_of_one_member_unseat_nobody_and_take_no_empty_server_in() {
    let mut fleet = three_of_four();
    let (leader, term) = leader_term(&fleet);
    let (_runtime, _listener, liar) = listen(&mut fleet);
    wait_for(
        "the liar to be asked",
        || liar.told.load(Ordering::Relaxed) > 20,
        || fleet.describe(),
    );
    rotate(&fleet);
    assert_eq!(leader_term(&fleet), (leader, term), "{}", fleet.describe());
    // A server that lost its memory asks the liar too.
    let other = (1..ENEMY).find(|id| *id != leader).unwrap();
    fleet.kill(other);
    fleet.start(other);
    fleet.wait_until_one();
    rotate(&fleet);
    // With the liar's vote worth nothing, a second server without memory would be one fault too many.
    let (_, after) = leader_term(&fleet);
    assert!(after < term + 1_000, "term {after}, {}", fleet.describe());
}
