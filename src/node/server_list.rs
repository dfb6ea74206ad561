//! The server list as the group agrees on it. How Raft's membership follows is for `replacement`.
//!
//! A wrong list must not wedge the group: Raft can leave a membership change only through a
//! majority of the old *and* of the new members, so both are asked for before anything is agreed.
//! Nor may one server alone change the list: an operator
//! puts the new one into the files of the servers, and the leader asks for it there. Invariants:
//! - A list is taken only from a member that answers at its listed address, as the replacement of the
//!   list that the group has now, and only if more than half of the voters have it in their files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use tokio::join;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, Instant};

use super::list_file::READ_LIMIT;
use super::peer_client::{status_at, status_of, Peers};
use super::{forward, origin};
use crate::consensus::network::{CallFailure, RpcClient};
use crate::consensus::state_machine::AgreedView;
use crate::core::agreed::{Agreed, Command};
use crate::core::config::Member;
use crate::core::pre_vote::Status;
use crate::core::server_id::ServerId;
use crate::core::server_list::{Digest, ServerList};
use crate::log_sink::Level;
use crate::rpc::{MembershipRefusal, Request, Response};
use crate::supervise::{fail_point, kept_alive};
use crate::transport::listener::Caller;

/// How long a server may take to say what it is, a new connection included.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// How long a server may take to say what its file holds: a read that waits for the one before, the
/// pause in between, and the way.
const FILE_LIMIT: Duration = READ_LIMIT.saturating_mul(3);

/// Between two attempts to find a leader that takes the list.
const STEP_PAUSE: Duration = Duration::from_millis(100);

/// How often a server says that its file has another list than the group.
const REMINDER: Duration = Duration::from_secs(600);

/// A server that has not been in sync with the group for so long may have missed a new list; longer than
/// any election takes.
const OUT_OF_TOUCH: Duration = Duration::from_secs(10);

/// How often a server whose file has another list than the group looks whether it is in touch, and one that
/// has missed a list at its file.
const TOUCH_LOOK: Duration = Duration::from_secs(1);

/// Has this server know the members that the group agreed on, until the task is aborted.
pub(super) async fn follow(peers: Arc<Peers>) {
    let log = peers.ctx.log.clone();
    kept_alive(&log, "following the server list", peers, |peers| {
        Box::pin(follow_on(peers.clone()))
    })
    .await;
}

async fn follow_on(peers: Arc<Peers>) {
    let mut views = peers.ctx.views.subscribe();
    let mut settings = peers.ctx.watch_settings();
    let mut caught_up = peers.ctx.caught_up.subscribe();
    let mut told: Option<(String, Instant)> = None;
    // What was loaded from the file, or what it held when it was looked at since.
    let mut file = settings.borrow().members.clone();
    // For which version of the agreed list it was looked at, and when.
    let mut looked: Option<(u64, Instant)> = None;
    loop {
        let is_behind = peers.ctx.has_missed_list();
        let view = views.borrow_and_update().clone();
        if settings.has_changed().unwrap_or(false) {
            file.clone_from(&settings.borrow_and_update().members);
            looked = None;
        }
        fail_point("server_list");
        if let Some(server_list) = &view.agreed.server_list {
            let mut members = places(&peers, &view.agreed, server_list);
            members.extend(leaving(&peers, server_list, &view));
            members.extend(new_peers(&peers, &file, &view.agreed, server_list));
            if !*caught_up.borrow_and_update() {
                members.extend(others_so_far(&peers, &members));
            }
            peers.set_members(&members);
            // Where the operator has given all servers the new list and had one of them reload, the
            // file has the agreed list although what was loaded from it differs; or one that the group
            // has agreed on behind this server's back.
            let pause = if is_behind { TOUCH_LOOK } else { REMINDER };
            let due = looked.is_none_or(|(version, at)| {
                version != server_list.version || at.elapsed() >= pause
            });
            if due && (is_behind || difference(&file, &view.agreed, server_list).is_some()) {
                looked = Some((server_list.version, Instant::now()));
                if let Some(members) = peers.list_file.read().await {
                    let is_new = members != file;
                    file = members;
                    if ServerList::new(0, &file).is_ok_and(|file| file.same_members(server_list)) {
                        peers.ctx.set_file_list(file.clone());
                        continue;
                    }
                    if is_new {
                        continue;
                    }
                }
            }
            // Of two lists that differ it need not be the file's that is to be mended.
            if !is_behind {
                let words = difference(&file, &view.agreed, server_list);
                told = words.map(|words| remind(&peers, words, told));
            }
        }
        let rest = told.as_ref().map(|(_, at)| REMINDER.saturating_sub(at.elapsed()));
        let rest = rest.map(|rest| rest.min(TOUCH_LOOK)).or(is_behind.then_some(TOUCH_LOOK));
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            changed = caught_up.changed() => if changed.is_err() { return },
            () = peers.ctx.missed_list.notified() => {}
            _ = settings.changed() => {
                file.clone_from(&settings.borrow_and_update().members);
                looked = None;
            }
            () = sleep(rest.unwrap_or(REMINDER)), if rest.is_some() => {}
        }
    }
}

/// Says what differs, unless it said the same a short while ago: views change with every key.
/// Answers with what was said last, and when.
fn remind(peers: &Peers, words: String, told: Option<(String, Instant)>) -> (String, Instant) {
    match told {
        Some((last, at)) if last == words && at.elapsed() < REMINDER => (last, at),
        _ => {
            peers.ctx.log.warning(format!(
                "server_list_file differs from the list that the group agreed on: {words}"
            ));
            (words, Instant::now())
        }
    }
}

/// Where to find the members. A first list is merely that of the first leader's file, and a server's
/// own file takes precedence over it, since servers may know each other by different addresses; a list that
/// was agreed on by a reload counts everywhere.
fn places(peers: &Peers, agreed: &Agreed, server_list: &ServerList) -> Vec<Member> {
    let settings = peers.ctx.settings();
    let own = |member: &Member| settings.members.iter().find(|m| m.id == member.id);
    let is_own = agreed.is_list_of_a_file();
    let choose = |member: &Member| own(member).filter(|_| is_own).unwrap_or(member).clone();
    server_list.members().iter().map(choose).collect()
}

/// Members that the list no longer has, but that Raft still counts on until its own membership
/// has followed: without them there might be no majority to let them go, or to found another cluster.
fn leaving(peers: &Peers, server_list: &ServerList, view: &AgreedView) -> Vec<Member> {
    let mut voters = view.voters.clone();
    if !view.has_base {
        voters.extend(peers.ctx.kept().record.voters.into_iter().flatten());
    }
    let (known, leaving) = (peers.ctx.members(), view.agreed.leaving());
    let counts = |m: &&Member| server_list.get(m.id).is_none() && voters.contains(&m.id);
    let still: BTreeMap<ServerId, &Member> =
        known.iter().chain(leaving).filter(counts).map(|m| (m.id, m)).collect();
    still.into_values().cloned().collect()
}

/// The peers that this server has had and that are not among `members`. One that catches up may pass
/// through a list of before, in which the leader is not that sends it the log.
fn others_so_far(peers: &Peers, members: &[Member]) -> Vec<Member> {
    let known = peers.ctx.members();
    let is_new = |member: &&Member| members.iter().all(|m| m.id != member.id);
    known.iter().filter(is_new).cloned().collect()
}

/// Members of this server's file that the list it remembers has not, while it is out of touch.
///
/// The group may have a new list since, and a leader that this server has never heard of: if that one
/// were kept out, nobody could tell this server of the new list for as long as it leads. Who belongs to the
/// majority says that there is one. Once the server has caught up, the agreed list alone counts again. A
/// file with a list that the group has left is merely behind, and adds nobody.
fn new_peers(
    peers: &Peers,
    file: &[Member],
    agreed: &Agreed,
    server_list: &ServerList,
) -> Vec<Member> {
    let in_sync_at = peers.ctx.last_in_sync();
    let is_late = in_sync_at.is_none_or(|at| peers.ctx.now().since(at) >= OUT_OF_TOUCH);
    let Ok(file) = ServerList::new(0, file) else { return Vec::new() };
    if !is_late && !peers.ctx.has_missed_list() || agreed.has_left(&file) {
        return Vec::new();
    }
    file.members().iter().filter(|member| server_list.get(member.id).is_none()).cloned().collect()
}

/// What this server's file has otherwise than the agreed list, and what to do about it.
fn difference(file: &[Member], agreed: &Agreed, present: &ServerList) -> Option<String> {
    let file = ServerList::new(present.version, file).ok()?;
    let remedy = if !agreed.has_left(&file) {
        "or put it on all servers and have one of them reload"
    } else {
        "the group has left the list that it holds; to have that one again, reload with the \
         group's list first, and then with this one"
    };
    present.differences(&file).map(|words| format!("{words}; mend the file, {remedy}"))
}

/// Whether a file's list is one that the group never had.
pub(super) fn asks_for_new(peers: &Peers, members: &[Member]) -> bool {
    let agreed = peers.ctx.views.borrow().agreed.clone();
    let (Some(present), Ok(file)) = (&agreed.server_list, ServerList::new(0, members)) else {
        return false;
    };
    if agreed.is_list_of_a_file() {
        !file.same_servers(present)
    } else {
        !file.same_members(present) && !agreed.has_left(&file)
    }
}

/// Brings a list to the leader, wherever it is; answers with its version once the group has
/// agreed on it.
pub(super) async fn change_membership(
    peers: &Arc<Peers>,
    members: Vec<Member>,
) -> Result<u64, MembershipRefusal> {
    let limit = peers.ctx.settings().request_timeout + PROBE_LIMIT * 2 + FILE_LIMIT;
    let deadline = Instant::now() + peers.ctx.settings().request_timeout;
    loop {
        let Some(id) = forward::find(&peers.ctx, deadline).await else {
            return Err(MembershipRefusal::NoLeader);
        };
        let present = peers.ctx.views.borrow().agreed.server_list.as_ref().map(ServerList::digest);
        let Some(replaces) = present else { return Err(MembershipRefusal::NoLeader) };
        let answer = if id == peers.ctx.me {
            let origin = origin::reload(peers.ctx.me);
            change_membership_here(peers, replaces, members.clone(), origin).await
        } else {
            let request = Request::ChangeMembership { replaces, members: members.clone() };
            match peers.call(id, request, limit).await {
                Ok(Response::MembershipChanged(answer)) => answer,
                Err(CallFailure::Unreachable | CallFailure::NobodyListens)
                    if !renames_own(peers, &members) =>
                {
                    Err(MembershipRefusal::NoLeader)
                }
                _ => Err(MembershipRefusal::Unknown),
            }
        };
        if let Ok(version) = answer {
            // Or this server would take its new file for one that differs.
            let mut views = peers.ctx.views.subscribe();
            let known = views.wait_for(|view| {
                view.agreed.server_list.as_ref().is_some_and(|list| list.version >= version)
            });
            let _ = timeout(PROBE_LIMIT, known).await;
        }
        if answer != Err(MembershipRefusal::NoLeader) || Instant::now() >= deadline {
            return answer;
        }
        sleep(STEP_PAUSE).await;
    }
}

/// Whether a list names another certificate for this server than the one that it shows. A group that
/// has agreed on it hears this server no more until it shows that one, and so the answer may get lost.
pub(super) fn renames_own(peers: &Peers, members: &[Member]) -> bool {
    let tls = peers.tls.borrow().with_members(members);
    !tls.is_of(peers.ctx.me, &tls.names())
}

/// The same for a member that brought a list here, if it is the one that answers at its address.
pub(super) async fn change_membership_for(
    peers: &Arc<Peers>,
    from: &Caller,
    replaces: Digest,
    members: Vec<Member>,
) -> Result<u64, MembershipRefusal> {
    let origin = origin::caller(from);
    if !is_at_place(peers, from).await {
        let line = format!(
            "refused a server list from {origin}: that is not what answers at the address of this \
             server"
        );
        peers.ctx.log.limited(Level::Warning, "list from elsewhere", line);
        return Err(MembershipRefusal::NotAtPlace);
    }
    change_membership_here(peers, replaces, members, origin).await
}

/// Whether a member is the very process that answers at the address which the list has for it; asks
/// there if that is not known.
async fn is_at_place(peers: &Arc<Peers>, from: &Caller) -> bool {
    if peers.heard.at_address(from.id).is_none() {
        let _ = status_of(peers, from.id, PROBE_LIMIT).await;
    }
    peers.heard.at_address(from.id) == Some(from.incarnation)
}

/// Has the group agree on a list, if this server leads, enough servers of both lists are there, and enough
/// of the present ones have it in their files.
async fn change_membership_here(
    peers: &Arc<Peers>,
    replaces: Digest,
    members: Vec<Member>,
    origin: String,
) -> Result<u64, MembershipRefusal> {
    let running = peers.ctx.running().ok_or(MembershipRefusal::NoLeader)?;
    let server = running.raft.server_metrics().borrow().clone();
    if server.state != ServerState::Leader {
        return Err(MembershipRefusal::NoLeader);
    }
    let agreed = peers.ctx.views.borrow().agreed.clone();
    let old = agreed.server_list.as_ref().ok_or(MembershipRefusal::NoLeader)?;
    let new =
        ServerList::new(old.version.saturating_add(1), &members).map_err(MembershipRefusal::Bad)?;
    if new.same_members(old) {
        return Ok(old.version);
    }
    // Nor does a leader take a list that the present one no longer has.
    if old.get(peers.ctx.me).is_none() {
        return Err(MembershipRefusal::NoLeader);
    }
    if replaces != old.digest() {
        return Err(MembershipRefusal::Stale(old.version));
    }
    // A change that has begun can only go on; one whose new peers do not come can be taken back.
    let voters = running.voters();
    let [present] = voters.as_slice() else { return Err(MembershipRefusal::UnderWay(old.version)) };
    let present: &BTreeSet<ServerId> = &present.iter().map(|node| node.server).collect();
    let (whole, files) = join!(probe(peers, old, &new), files(peers, present, &new));
    for (ids, of_new) in [(present, false), (&new.ids(), true)] {
        let missing: Vec<ServerId> = ids.difference(&whole).copied().collect();
        if missing.len() * 2 >= ids.len() {
            return Err(MembershipRefusal::TooFew { of_new, missing });
        }
    }
    is_wanted(present, &files)?;
    let (version, digest) = (new.version, new.digest());
    let write = running.raft.client_write(Command::ChangeMembership(new));
    match timeout(peers.ctx.settings().request_timeout, write).await {
        Ok(Ok(response)) => match response.data {
            Some(Err(refusal)) => Err(MembershipRefusal::Refused(refusal.to_string())),
            _ => {
                peers.ctx.log.note(format!(
                    "server list version {version} (digest {digest}): ordered by {origin}"
                ));
                Ok(version)
            }
        },
        Ok(Err(_)) => Err(MembershipRefusal::Unknown),
        Err(_) => Err(MembershipRefusal::TimedOut),
    }
}

/// What each voter says, as far as it does: whether its file holds this list now.
async fn files(
    peers: &Arc<Peers>,
    voters: &BTreeSet<ServerId>,
    new: &ServerList,
) -> BTreeMap<ServerId, bool> {
    let list = new.digest();
    let mut questions = JoinSet::new();
    for id in voters.iter().copied() {
        let peers = peers.clone();
        questions.spawn(async move {
            if id == peers.ctx.me {
                return Some((id, peers.list_file.holds(list).await));
            }
            match peers.call(id, Request::ListInFile(list), FILE_LIMIT).await {
                Ok(Response::ListInFile(holds)) => Some((id, holds)),
                _ => None,
            }
        });
    }
    let mut answers = BTreeMap::new();
    while let Some(answer) = questions.join_next().await {
        answers.extend(answer.ok().flatten());
    }
    answers
}

/// Whether more than half of the voters have the list in their files.
fn is_wanted(
    voters: &BTreeSet<ServerId>,
    files: &BTreeMap<ServerId, bool>,
) -> Result<(), MembershipRefusal> {
    let having = |said: Option<bool>| -> Vec<ServerId> {
        voters.iter().copied().filter(|id| files.get(id).copied() == said).collect()
    };
    if having(Some(true)).len() * 2 > voters.len() {
        Ok(())
    } else {
        Err(MembershipRefusal::NotInFiles { lacking: having(Some(false)), silent: having(None) })
    }
}

/// Which servers of both lists are there: old members that remember everything, and new peers that
/// answer at the place where the new list has them.
async fn probe(peers: &Arc<Peers>, old: &ServerList, new: &ServerList) -> BTreeSet<ServerId> {
    let mut probes = JoinSet::new();
    for member in old.members().iter().chain(new.members()).cloned() {
        let is_old = old.get(member.id) == Some(&member);
        let was_member = old.get(member.id).is_some();
        let moved = !is_old && was_member;
        if member.id != peers.ctx.me && !(moved && new.get(member.id) != Some(&member)) {
            let peers = peers.clone();
            probes.spawn(async move {
                let status = if is_old {
                    status_of(&peers, member.id, PROBE_LIMIT).await.ok()
                } else {
                    status_at(&peers, &member, PROBE_LIMIT).await
                };
                let ours = peers.ctx.cluster();
                let fits = |status: &Status| {
                    if was_member {
                        status.caught_up && status.cluster == ours
                    } else {
                        status.cluster.is_none() || status.cluster == ours
                    }
                };
                status.filter(fits).map(|_| member.id)
            });
        }
    }
    let mut whole = BTreeSet::from([peers.ctx.me]);
    while let Some(answer) = probes.join_next().await {
        whole.extend(answer.ok().flatten());
    }
    whole
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::Mutex;

    use super::*;
    use crate::core::agreed::Record;
    use crate::core::agreement::epoch::Epoch;
    use crate::core::agreement::ranked_record::{Rank, RankedRecord};
    use crate::core::config::Settings;
    use crate::node::environment::{Environment, ReadList};
    use crate::node::fixture::{settings, Fixture};

    fn list(ids: &[u32]) -> Vec<Member> {
        let port = |id: u32| u16::try_from(id).unwrap();
        let member = |&id| Member {
            id: ServerId(id),
            address: "127.0.0.1".to_owned(),
            port: port(id),
            subject: None,
            voter: true,
        };
        ids.iter().map(member).collect()
    }

    fn agreed(lists: &[&[u32]]) -> Agreed {
        let mut agreed = Agreed::default();
        for (version, ids) in (1..).zip(lists) {
            let server_list = ServerList::new(version, &list(ids)).unwrap();
            agreed.apply(Command::ChangeMembership(server_list)).unwrap();
        }
        agreed
    }

    /// Raft's membership has not followed, and this server is out of its cluster.
    #[tokio::test]
    async fn a_voter_that_the_list_no_longer_has_is_a_peer_until_the_membership_has_followed() {
        let shared = Fixture::new().shared;
        let agreed = agreed(&[&[1, 2], &[2, 3]]);
        let server_list = agreed.server_list.clone().unwrap();
        let voters = |ids: &[u32]| ids.iter().copied().map(ServerId).collect::<BTreeSet<_>>();
        let heard = |view: &AgreedView| {
            leaving(&shared.peers, &server_list, view).iter().map(|m| m.id.0).collect::<Vec<_>>()
        };
        let held = Record { agreed: agreed.clone(), ..Record::of_file(voters(&[1, 2])) };
        let rank = Rank { epoch: Epoch { counter: 7, ..Epoch::default() }, ..Rank::default() };
        shared.ctx.begin_anew(shared.ctx.node(), RankedRecord { rank, record: held });
        let mut view = AgreedView { agreed: Arc::new(agreed), ..AgreedView::default() };
        assert_eq!(heard(&view), [1], "by the record that it holds");
        (view.voters, view.has_base) = (voters(&[1, 2, 3]), true);
        assert_eq!(heard(&view), [1], "by Raft's membership");
        view.voters = voters(&[2, 3]);
        assert_eq!(heard(&view), [0; 0]);
    }

    /// The leader is in no list that this server has come to yet.
    #[tokio::test]
    async fn a_server_that_catches_up_keeps_the_peers_that_it_had() {
        let shared = Fixture::new().shared;
        shared.peers.set_members(&list(&[1, 2, 3]));
        let agreed = Arc::new(agreed(&[&[1, 2, 3], &[1, 2]]));
        shared.ctx.set_settings(Settings { members: list(&[1, 2, 3]), ..settings() });
        shared.ctx.views.send_modify(|view| (view.agreed, view.has_base) = (agreed, true));
        let following = tokio::spawn(follow(shared.peers.clone()));
        let has_third = || shared.ctx.ids().contains(&ServerId(3));
        for _ in 0..20 {
            assert!(has_third());
            sleep(Duration::from_millis(5)).await;
        }
        shared.ctx.caught_up.send_replace(true);
        let gone = async {
            while has_third() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(Duration::from_secs(30), gone).await.is_ok());
        following.abort();
    }

    #[tokio::test]
    async fn a_server_that_missed_a_list_hears_the_new_peers_of_its_file_until_it_is_in_touch() {
        let shared = Fixture::new().shared;
        let heard = |agreed: &Agreed| {
            let server_list = agreed.server_list.as_ref().unwrap();
            let file = list(&[1, 2, 4]);
            let new_peers = new_peers(&shared.peers, &file, agreed, server_list);
            new_peers.iter().map(|m| m.id.0).collect::<Vec<_>>()
        };
        assert_eq!(heard(&agreed(&[&[1, 2, 3]])), [4]);
        assert_eq!(heard(&agreed(&[&[1, 2, 4]])), [0; 0], "the list has all");
        assert_eq!(heard(&agreed(&[&[1, 2, 4], &[1, 2]])), [0; 0], "the group has left that list");
        shared.ctx.record_contact(true);
        assert_eq!(heard(&agreed(&[&[1, 2, 3]])), [4], "the leader has not brought its list yet");
        shared.ctx.record_in_sync();
        assert_eq!(heard(&agreed(&[&[1, 2, 3]])), [0; 0], "the agreed list alone counts");
    }

    /// Its file has the list that the group agreed on while this server was cut off, and the leader is new
    /// in it.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_hears_of_a_newer_list_looks_into_its_file() {
        let file = Arc::new(Mutex::new(list(&[1, 2, 3])));
        let held = file.clone();
        let list_file: ReadList = Arc::new(move || {
            let held = held.lock().unwrap().clone();
            Box::pin(ready(Some(held)))
        });
        let shared = Fixture::within(Environment { list_file, ..Environment::default() }).shared;
        shared.ctx.set_settings(Settings { members: list(&[1, 2, 3]), ..settings() });
        let agreed = Arc::new(agreed(&[&[1, 2, 3]]));
        shared.ctx.views.send_modify(|view| (view.agreed, view.has_base) = (agreed, true));
        shared.ctx.caught_up.send_replace(true);
        shared.ctx.record_in_sync();
        let following = tokio::spawn(follow(shared.peers.clone()));
        let knows_fourth = || shared.ctx.ids().contains(&ServerId(4));
        *file.lock().unwrap() = list(&[1, 2, 3, 4]);
        shared.ctx.hear_list_version(1);
        sleep(REMINDER * 2).await;
        assert!(!knows_fourth(), "what is agreed is what it knows");
        // A file of before says nothing, and is looked into again.
        shared.ctx.record_in_sync();
        *file.lock().unwrap() = list(&[1, 2, 3]);
        sleep(Duration::from_millis(1)).await;
        shared.ctx.hear_list_version(2);
        sleep(TOUCH_LOOK * 2).await;
        assert!(!knows_fourth());
        *file.lock().unwrap() = list(&[1, 2, 3, 4]);
        shared.ctx.hear_list_version(2);
        sleep(TOUCH_LOOK * 2).await;
        assert!(knows_fourth());
        // The leader has told it since of the list that counts.
        shared.ctx.record_in_sync();
        sleep(TOUCH_LOOK * 2).await;
        assert!(!knows_fourth());
        following.abort();
    }
}
