//! How much of a leader's word this server takes: who may vote, how far keys and lists may have
//! been counted on.
//!
//! Raft has each server take over what comes from a leader, and a member that calls itself a leader
//! has to prove it to nobody. What one message of such a member changes must not stay when it is
//! gone: the other servers must be able to elect one of themselves, and to go on counting. What a
//! state or a message says of itself is checked where it is decoded; here it is held against
//! what this server knows.
//!
//! A server that is catching up knows nothing to hold it against and takes what it is sent. Nobody
//! counts on it, and it joins again if that leads nowhere.

use std::collections::BTreeSet;

use super::peer_client::Peers;
use super::running::Running;
use crate::core::agreed::{Agreed, Command};
use crate::core::agreement::ranked_record::Voters;
use crate::core::node_id::NodeId;
use crate::core::server_id::ServerId;
use crate::core::server_list::{voters as voters_of, ServerList};
use crate::log_sink::Level;
use crate::rpc::{ErrorResponse, WireAppend, WireMembership, WirePayload, WireSnapshot};

/// How far the version of a list may lie above the one that this server knows: a server that was
/// away for as many changes joins first.
const MAX_VERSION_LEAP: u64 = 1 << 20;

/// The most voters that a line names.
const MAX_NAMED: usize = 16;

/// Whether a snapshot is one that a leader could have come to from what this server knows.
///
/// # Errors
/// If it is not, which the log tells.
pub(super) fn admit_snapshot(
    peers: &Peers,
    running: &Running,
    from: ServerId,
    snapshot: &WireSnapshot,
) -> Result<(), ErrorResponse> {
    let generation = snapshot.agreed.ring.newest();
    if !peers.sanity_bounds().has_generation(generation) {
        return refuse(peers, from, &format!("a key of generation {generation}"));
    }
    if knows_nothing(peers) {
        return Ok(());
    }
    let list = snapshot.agreed.server_list.as_ref();
    let known = peers.ctx.views.borrow().agreed.server_list.as_ref().map_or(0, |list| list.version);
    if let Some(list) = list.filter(|l| l.version > known.saturating_add(MAX_VERSION_LEAP)) {
        return refuse(peers, from, &format!("a server list of version {}", list.version));
    }
    let listed: Vec<_> = list.map(ServerList::voters).into_iter().collect();
    let told = Some(&snapshot.agreed);
    admit_membership(peers, running, from, &snapshot.membership, &listed, told)
}

/// Whether the memberships among new entries are ones that a leader could have come to.
///
/// # Errors
/// If one is not, which the log tells.
pub(super) fn admit_append(
    peers: &Peers,
    running: &Running,
    from: ServerId,
    append: &WireAppend,
) -> Result<(), ErrorResponse> {
    // What Raft will not take over cannot be checked: the lists that it rests on may be missing.
    if knows_nothing(peers) || !running.log.goes_on_from(append.previous) {
        return Ok(());
    }
    let mut listed: Option<Vec<BTreeSet<ServerId>>> = None;
    for entry in &append.entries {
        let WirePayload::Membership(membership) = &entry.payload else { continue };
        let listed = listed.get_or_insert_with(|| {
            let lists = append.entries.iter().filter_map(|entry| match &entry.payload {
                WirePayload::Command(Command::ChangeMembership(list)) => Some(list.voters()),
                _ => None,
            });
            running.log.lists().into_iter().chain(lists).collect()
        });
        admit_membership(peers, running, from, membership, listed, None)?;
    }
    Ok(())
}

/// Whether this server has nothing to hold a leader's word against: it is catching up.
fn knows_nothing(peers: &Peers) -> bool {
    !*peers.ctx.caught_up.borrow()
}

/// Whether each set of voters is believable, by the lists that the group had, as this server knows them
/// or as the state says that comes with it (of the lists that this server missed the last one may not
/// have come to vote yet), by those of `listed`, of this server's file, and by the voters that count at
/// present. Learners do not vote; how many there are is bounded.
fn admit_membership(
    peers: &Peers,
    running: &Running,
    from: ServerId,
    membership: &WireMembership,
    listed: &[BTreeSet<ServerId>],
    told: Option<&Agreed>,
) -> Result<(), ErrorResponse> {
    let agreed = peers.ctx.views.borrow().agreed.clone();
    let servers = |nodes: &BTreeSet<NodeId>| -> BTreeSet<ServerId> {
        nodes.iter().map(|node| node.server).collect()
    };
    let present: Vec<BTreeSet<ServerId>> = running.voters().iter().map(servers).collect();
    let sent: Vec<BTreeSet<ServerId>> = membership.configs.iter().map(servers).collect();
    let file = voters_of(&peers.ctx.settings().members);
    let mut known: BTreeSet<Voters> =
        listed.iter().chain(&present).chain([&file]).cloned().collect();
    known.extend(agreed.voters());
    known.extend(told.iter().flat_map(|told| told.voters()));
    match sent.iter().find(|voters| !is_believable(voters, &known)) {
        None => Ok(()),
        Some(voters) => {
            let ids: Vec<String> = voters.iter().take(MAX_NAMED).map(ServerId::to_string).collect();
            let what = format!("voters that are far from every server list ({})", ids.join(", "));
            refuse(peers, from, &what)
        }
    }
}

/// Whether these can be the voters of a group that had the `known` ones: those of one of them or a
/// little more or less, which is how servers begin whose files differ; or on the way from one of them
/// to another, see [`crate::core::agreement::replacement`]. Either way more than half of a known set are
/// among them, so that nobody can make itself one of a few.
fn is_believable(voters: &Voters, known: &BTreeSet<Voters>) -> bool {
    let has_most_of = |list: &Voters| 2 * voters.intersection(list).count() > list.len();
    known.iter().filter(|list| has_most_of(list)).any(|list| {
        let more: Voters = voters.difference(list).copied().collect();
        2 * more.len() < voters.len() || known.iter().any(|other| more.is_subset(other))
    })
}

fn refuse(peers: &Peers, from: ServerId, what: &str) -> Result<(), ErrorResponse> {
    let line = format!(
        "server {from} leads with {what}, which is far from what this server knows; not believed: is \
         that server sound? If it is, restart this one, which then joins anew"
    );
    peers.ctx.log.limited(Level::Warning, "not believed", line);
    Err(ErrorResponse::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::Member;
    use crate::node::fixture::Fixture;
    use std::sync::Arc;

    fn ids(of: &[u32]) -> BTreeSet<ServerId> {
        of.iter().map(|id| ServerId(*id)).collect()
    }

    fn change_membership(agreed: &mut Agreed, version: u64, of: &[u32]) {
        let member = |id: &u32| Member {
            id: ServerId(*id),
            address: "a".into(),
            port: *id as u16,
            subject: None,
            voter: true,
        };
        let members: Vec<Member> = of.iter().map(member).collect();
        agreed
            .apply(Command::ChangeMembership(ServerList::new(version, &members).unwrap()))
            .unwrap();
    }

    /// The leader's snapshot is of between two changes that this server missed: of the list before
    /// are the voters, and the newest one has not come to vote yet.
    #[tokio::test]
    async fn voters_of_a_list_that_this_server_missed_are_known_by_the_state_that_comes_with_them()
    {
        let fixture = Fixture::new();
        let running = fixture.running(None).await;
        let shared = &fixture.shared;
        shared.ctx.caught_up.send_replace(true);
        let mut agreed = Agreed::default();
        change_membership(&mut agreed, 1, &[1, 2, 3]);
        shared.ctx.views.send_modify(|view| view.agreed = Arc::new(agreed.clone()));
        change_membership(&mut agreed, 2, &[4, 5, 6]);
        change_membership(&mut agreed, 3, &[7, 8, 9]);
        let lives = |ids: &[u32]| ids.iter().copied().map(NodeId::of).collect::<BTreeSet<_>>();
        let snapshot = |voters: &[u32]| WireSnapshot {
            to: Default::default(),
            vote: (Default::default(), true),
            last: None,
            membership_at: None,
            membership: WireMembership { configs: vec![lives(voters)], members: lives(voters) },
            id: String::new(),
            agreed: agreed.clone(),
            current_age_ms: 0,
            staged_age_ms: 0,
        };
        let admits =
            |voters| admit_snapshot(&shared.peers, &running, ServerId(2), &snapshot(voters));
        for listed in [&[1, 2, 3][..], &[4, 5, 6], &[7, 8, 9], &[1, 2], &[4, 5], &[7, 8, 9, 10]] {
            assert_eq!(admits(listed), Ok(()), "{listed:?}");
        }
        for never in [&[2][..], &[4, 10], &[3, 4, 7], &[1, 2, 3, 5, 6, 7]] {
            assert_eq!(admits(never), Err(ErrorResponse::Malformed), "{never:?}");
        }
    }

    #[test]
    fn voters_are_believable_that_have_most_of_a_list_and_few_others() {
        let list = [ids(&[1, 2, 3, 4, 5])].into();
        for voters in [&[1, 2, 3, 4, 5][..], &[1, 2, 3], &[1, 2, 3, 6, 7], &[1, 2, 3, 4, 5, 6]] {
            assert!(is_believable(&ids(voters), &list), "{voters:?}");
        }
        for voters in [&[][..], &[4], &[1, 2], &[1, 2, 3, 6, 7, 8], &[6, 7, 8]] {
            assert!(!is_believable(&ids(voters), &list), "{voters:?}");
        }
    }

    #[test]
    fn voters_are_believable_on_the_way_from_one_list_to_another() {
        let lists = [ids(&[1, 2, 3]), ids(&[4, 5, 6, 7, 8])].into();
        for voters in [&[1, 2, 3, 4, 5, 6, 7, 8][..], &[2, 3, 4, 5, 6], &[3, 6, 7, 8]] {
            assert!(is_believable(&ids(voters), &lists), "{voters:?}");
        }
        for voters in [&[1, 4, 5][..], &[1, 2, 3, 4, 5, 6, 9], &[3, 9, 4, 5]] {
            assert!(!is_believable(&ids(voters), &lists), "{voters:?}");
        }
    }
}
