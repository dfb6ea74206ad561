//! What a server says of itself to operators: gathers it from the places where it is known.
//!
//! Decides nothing and changes nothing; the shape is [`ServerStatus`]'s. Invariants: no lock is
//! held longer than it takes to copy what is behind it, and no key byte gets in.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::context::Context;
use super::counters::NodeCounters;
use super::keys as node;
use super::peer_client::Peers;
use super::rejected_keys::{Place, Reason, RejectedKeys};
use super::shared::Shared;
use super::NodeStatus;
use crate::core::agreed::Agreed;
use crate::core::config::{alike, Member, Settings};
use crate::core::key_ring::RingKey;
use crate::core::moment::millis;
use crate::core::server_list::ServerList;
use crate::core::server_status::{
    CertificateStatus, Count, GroupStatus, HostStatus, KeyInUse, KeyStatus, Keys, LastReload,
    ListStatus, MemberStatus, ReloadStatus, ServerStatus, MAX_ENTRIES,
};
use crate::core::text::readable;
use crate::supervise::lock;
use crate::transport::{Cause, Counters};

/// All that this server says of itself.
pub(super) fn status(shared: &Shared) -> ServerStatus {
    let settings = shared.ctx.settings();
    let status = shared.node_status();
    ServerStatus {
        id: shared.ctx.me,
        software: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: shared.peers.sender.incarnation(),
        uptime_ms: millis(shared.ctx.clock.age()),
        clock_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis),
        group: group(&shared.ctx, &shared.node_counters, &status),
        keys: keys(&shared.ctx, &shared.keys, &settings, &status),
        list: list(&shared.peers, &settings, &status),
        certificate: certificate(&shared.peers),
        host: host(&shared.node_counters),
        state_faults: shared.store.faults().iter().map(|line| readable(line)).collect(),
        reload: reload(&shared.node_counters),
        refused_keys: refused_keys(&shared.rejected_keys),
        refused_peers: refused_peers(&shared.peers.counters),
        accepted: shared.peers.counters.accepted(),
        sessions: shared.sessions.as_ref().map(|sessions| sessions.status()),
    }
}

fn host(node_counters: &NodeCounters) -> HostStatus {
    // Called outside the lock.
    let probe = lock(&node_counters.host).clone();
    probe.map(|probe| probe()).unwrap_or_default()
}

fn group(ctx: &Context, node_counters: &NodeCounters, status: &NodeStatus) -> GroupStatus {
    let now = ctx.now();
    GroupStatus {
        role: status.role,
        leader: status.leader,
        term: status.term,
        cluster_id: status.cluster_id,
        epoch: status.epoch,
        votes: status.votes,
        quorum: ctx.in_majority(),
        quorum_ms: ctx.quorum_contact().map(|at| millis(now.since(at))),
        elections: node_counters.elections.load(Ordering::Relaxed),
        leaders: node_counters.leaders.load(Ordering::Relaxed),
        staged: node_counters.staged.load(Ordering::Relaxed),
        rotations: node_counters.rotations.load(Ordering::Relaxed),
    }
}

fn keys(ctx: &Context, keys: &node::Keys, settings: &Settings, status: &NodeStatus) -> Keys {
    let view = ctx.views.borrow().clone();
    let ring = &view.agreed.ring;
    let named = |held: &RingKey| KeyStatus {
        generation: held.generation,
        fingerprint: held.stek.fingerprint(),
    };
    Keys {
        current: ring.current().map(named),
        previous: ring.older().iter().map(named).collect(),
        staged: ring.staged().map(|staged| named(&staged.held)),
        age_ms: millis(status.current_age),
        next_ms: millis(next_rotation(settings, status)),
        interval_ms: millis(settings.key_update_interval),
        in_use: key_in_use(ctx, keys),
        installed: status.installed,
    }
}

/// How long until the next rotation by schedule.
pub(super) fn next_rotation(settings: &Settings, status: &NodeStatus) -> Duration {
    settings.key_update_interval.saturating_sub(status.current_age)
}

/// Whose key the host encrypts with, as far as it said so.
pub(super) fn key_in_use(ctx: &Context, keys: &node::Keys) -> KeyInUse {
    let has_current = ctx.views.borrow().agreed.ring.current().is_some();
    match (keys.installed.borrow().agreed, *keys.alone.borrow()) {
        (true, _) => KeyInUse::Agreed,
        (false, true) if has_current => KeyInUse::Emergency,
        (false, _) => KeyInUse::Own,
    }
}

fn list(peers: &Peers, settings: &Settings, status: &NodeStatus) -> ListStatus {
    let reach = peers.ctx.reach_by_server();
    let others = peers.ctx.others().map(|id| {
        let heard = peers.heard.last(id).map(|at| at.elapsed());
        MemberStatus {
            id,
            heard_ms: heard.map(millis),
            reachable: heard.is_some_and(|ago| ago < reach(id)),
            connected: peers.heard.at_address(id).is_some(),
        }
    });
    let agreed = peers.ctx.views.borrow().agreed.clone();
    // A file whose list no group could have was refused when it was read.
    let file = ServerList::new(0, &settings.members);
    ListStatus {
        version: status.list_version,
        digest: agreed.server_list.as_ref().map(|list| list.digest().to_string()),
        file_digest: file.map(|server_list| server_list.digest().to_string()).unwrap_or_default(),
        file_difference: difference(&agreed, settings).map(|words| readable(&words)),
        agreed: agreed
            .server_list
            .as_ref()
            .map_or_else(Vec::new, |list| list.ids().into_iter().collect()),
        entries: entries(&agreed),
        options: alike(settings)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), readable(&value)))
            .collect(),
        voters: status.voters.try_into().unwrap_or(u32::MAX),
        others: others.collect(),
    }
}

/// The agreed list's entries, if they are few enough to be told.
fn entries(agreed: &Agreed) -> Vec<Member> {
    let list = agreed.server_list.as_ref().filter(|list| list.members().len() <= MAX_ENTRIES);
    let entry = |member: &Member| Member {
        address: readable(&member.address),
        subject: member.subject.as_deref().map(readable),
        ..member.clone()
    };
    list.map_or_else(Vec::new, |list| list.members().iter().map(entry).collect())
}

/// What the file's list has otherwise than the agreed one.
fn difference(agreed: &Agreed, settings: &Settings) -> Option<String> {
    let present = agreed.server_list.as_ref()?;
    let file = ServerList::new(present.version, &settings.members).ok()?;
    present.differences(&file)
}

fn reload(node_counters: &NodeCounters) -> ReloadStatus {
    let last = lock(&node_counters.last_reload).clone();
    ReloadStatus {
        count: node_counters.reloads.load(Ordering::Relaxed),
        failures: node_counters.reload_failures.load(Ordering::Relaxed),
        last: last.map(|(at, done, words)| LastReload {
            ago_ms: millis(at.elapsed()),
            done,
            words,
        }),
    }
}

fn certificate(peers: &Peers) -> CertificateStatus {
    let tls = peers.tls.borrow().clone();
    let ending = tls.expiry().map(|(ending, _)| ending);
    let authority = ending.as_ref().filter(|ending| ending.is_authority);
    CertificateStatus {
        subject: readable(&tls.subject()),
        fingerprint: tls.leaf_fingerprint(),
        roots_digest: tls.roots_digest().to_owned(),
        expires_s: ending.as_ref().map(|ending| ending.left.as_secs()),
        life_s: ending.as_ref().map_or(0, |ending| ending.life.as_secs()),
        authority: authority.map(|ending| readable(&ending.subject)),
    }
}

/// The refused keys by place and reason; those that are 0 are left out.
fn refused_keys(rejected_keys: &RejectedKeys) -> Vec<Count> {
    let all = Place::ALL.into_iter().flat_map(|p| Reason::ALL.into_iter().map(move |r| (p, r)));
    let counts =
        all.map(|(p, r)| (format!("{}_{}", p.word(), r.word()), rejected_keys.count(p, r)));
    counts.filter(|(_, count)| *count > 0).collect()
}

/// The refused connections by cause; those that are 0 are left out.
fn refused_peers(counters: &Counters) -> Vec<Count> {
    let counts = Cause::ALL.into_iter().map(|c| (c.word().to_owned(), counters.refused(c)));
    counts.filter(|(_, count)| *count > 0).collect()
}
