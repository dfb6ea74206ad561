//! Says why this server is on a key of its own: what each listed peer last came to nothing by.
//!
//! A peer that is not there is no news as long as the group is; without the group it is the cause, and
//! nothing else says so.
//!
//! Invariants: one line at most every [`REMINDER`]; none while the group's key is in use, or within
//! [`GRACE`] of the start.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::peer_client::Peers;
use super::KeySet;
use crate::core::server_list::NEIGHBOURS;
use crate::supervise::kept_alive;

/// How long a server may be on its own key without a word: a fleet that starts together, or one whose
/// first name server is dead, has a common key by then.
const GRACE: Duration = Duration::from_secs(15);

/// Between two lines.
const REMINDER: Duration = Duration::from_secs(600);

/// The most peers that a line names.
const MAX_NAMED: usize = 8;

/// Watches until the task is aborted.
pub(super) async fn watch(peers: Arc<Peers>, sets: watch::Receiver<KeySet>) {
    let log = peers.ctx.log.clone();
    kept_alive(&log, "watching over this server's own key", (peers, sets), |(peers, sets)| {
        Box::pin(watch_on(peers, sets.clone()))
    })
    .await;
}

async fn watch_on(peers: &Peers, mut sets: watch::Receiver<KeySet>) {
    loop {
        if sets.wait_for(|set| !set.agreed).await.is_err() {
            return;
        }
        tokio::select! {
            () = sleep(GRACE) => {}
            agreed = sets.wait_for(|set| set.agreed) => {
                if agreed.is_err() { return }
                continue;
            }
        }
        if let Some(line) = line(peers) {
            peers.ctx.log.warning(line);
        }
        tokio::select! {
            () = sleep(REMINDER) => {}
            agreed = sets.wait_for(|set| set.agreed) => if agreed.is_err() { return },
        }
    }
}

/// `None` for a list of one server.
fn line(peers: &Peers) -> Option<String> {
    let (members, troubles) = (peers.ctx.members(), peers.heard.troubles());
    let others = members.len().saturating_sub(1);
    // In a large fleet the rest was not asked.
    let asked = peers.ctx.consulted(NEIGHBOURS);
    let asked = members.iter().filter(|member| asked.contains(&member.id));
    let named = asked.take(MAX_NAMED).map(|member| {
        let is_heard = peers.heard.last(member.id).is_some();
        let fine = if is_heard { "it answers" } else { "it was not asked" };
        let why = troubles.get(&member.id).map_or(fine, |why| &**why);
        format!("server {} ({}:{}): {why}", member.id, member.address, member.port)
    });
    let named = named.collect::<Vec<_>>().join("; ");
    let more = match others.saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    (others > 0).then(|| {
        format!(
            "this server is on a key of its own, whose sessions no other server resumes, for want of \
             a majority of the server list: {named}{more}; see docs/troubleshooting.md"
        )
    })
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::core::config::Member;
    use crate::core::server_id::ServerId;
    use crate::node::fixture::{stek, Fixture};

    fn member(id: u32) -> Member {
        let address = format!("server{id}");
        Member { id: ServerId(id), address, port: 7, subject: None, voter: true }
    }

    #[tokio::test(start_paused = true)]
    async fn every_peer_has_its_cause_and_a_list_of_one_has_no_line() {
        let fixture = Fixture::new();
        let shared = &fixture.shared;
        let me = shared.ctx.me.0;
        shared.peers.set_members(&[member(me)]);
        assert_eq!(line(&shared.peers), None);
        shared.peers.set_members(&[me, me + 1, me + 2].map(member));
        let (one, two) = (ServerId(me + 1), ServerId(me + 2));
        shared.peers.heard.record_trouble(one, "unreachable: refused".into());
        shared.peers.heard.record_trouble(two, "unreachable: no route".into());
        shared.peers.heard.record_answer(two, 1, tokio::time::Instant::now());
        let line_now = line(&shared.peers).unwrap();
        let parts = [
            format!("server {one} (server{one}:7): unreachable: refused; "),
            format!("server {two} (server{two}:7): it answers"),
        ];
        assert!(parts.iter().all(|part| line_now.contains(part)), "{line_now}");
        shared.peers.set_members(&(me..me + 30).map(member).collect::<Vec<_>>());
        assert!(line(&shared.peers).unwrap().contains("; and 21 more"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_line_comes_after_a_while_again_and_again_and_ends_with_the_cause() {
        let fixture = Fixture::new();
        let shared = &fixture.shared;
        shared.peers.set_members(&[shared.ctx.me.0, shared.ctx.me.0 + 1].map(member));
        let (sets, receiver) = watch::channel(KeySet::own(stek(1)));
        let watching = tokio::spawn(watch(shared.peers.clone(), receiver));
        let told = || fixture.count_lines("on a key of its own");
        sleep(GRACE / 2).await;
        assert_eq!(told(), 0);
        sleep(GRACE).await;
        assert_eq!(told(), 1);
        sleep(REMINDER + GRACE).await;
        assert_eq!(told(), 2);
        sets.send_modify(|set| set.agreed = true);
        sleep(REMINDER * 3).await;
        assert_eq!(told(), 2);
        watching.abort();
    }
}
