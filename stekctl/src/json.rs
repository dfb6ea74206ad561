//! What a server says of itself, for scripts. docs/health.md has the fields, and a test holds it to them.

use std::time::Duration;

use serde_json::{json, Value};
use stek_share::client::{
    ClientPolicy, Handshakes, KeyStatus, ReloadStatus, ServerStatus, SitePolicy, TicketScope,
};

/// The version of the form of `--json`: raised when a field goes or changes its meaning, not when one
/// is added.
pub const SCHEMA: u32 = 1;

/// What a server says, for scripts.
pub fn answer_json(status: &ServerStatus, took: Duration) -> Value {
    let ServerStatus { group, keys, list, certificate, host, .. } = status;
    let key = |key: &KeyStatus| json!({ "generation": key.generation.0, "fingerprint": key.fingerprint.to_string() });
    let by_cause = |counts: &[(String, u64)]| -> Value {
        counts.iter().map(|(word, count)| (word.clone(), json!(count))).collect()
    };
    let mut all = json!({
        "answers": true,
        "round_trip_ms": took.as_secs_f64() * 1000.0,
        "version": status.software,
        "uptime_ms": status.uptime_ms,
        "clock_ms": status.clock_ms,
        "role": group.role.word(),
        "leader": group.leader.map(|id| id.0),
        "term": group.term,
        "cluster_id": group.cluster_id.map(|id| id.to_string()),
        "epoch": group.epoch,
        "votes": group.votes,
        "quorum": group.quorum,
        "elections": group.elections,
        "rotations": group.rotations,
        "key_in_use": keys.in_use.word(),
        "current": keys.current.as_ref().map(key),
        "previous": keys.previous.iter().map(key).collect::<Vec<_>>(),
        "staged": keys.staged.as_ref().map(key),
        "installed": keys.installed.0,
        "key_age_ms": keys.age_ms,
        "next_rotation_ms": keys.next_ms,
        "members": list.others.len() + 1,
        "voters": list.voters,
        "list_version": list.version,
        "list_digest": list.digest,
        "file_list_digest": list.file_digest,
        "file_list_difference": list.file_difference,
        "list_members": list.agreed.iter().map(|id| id.0).collect::<Vec<_>>(),
        "options": list.options.iter().map(|(name, value)| (name.clone(), json!(value))).collect::<Value>(),
        "certificate": {
            "subject": certificate.subject,
            "fingerprint": certificate.fingerprint,
            "roots_digest": certificate.roots_digest,
            "expires_s": certificate.expires_s,
            "authority": certificate.authority,
        },
        "traffic_server": host.version,
        "ticket_scope": host.ticket_scope.map(TicketScope::word),
        "client_policy": host.client_policy.as_ref().map(client_policy),
        "installs": host.installs,
        "install_failures": host.install_failures,
        "refused_keys": by_cause(&status.refused_keys),
        "refused_peers": by_cause(&status.refused_peers),
    });
    // Apart, since the macro does not go deep enough for all of it.
    if let Value::Object(fields) = &mut all {
        fields.insert("reload".to_owned(), reload_json(&status.reload));
        let sessions = status.sessions.map(|sessions| {
            json!({
                "sent": sessions.sent,
                "received": sessions.received,
                "dropped": sessions.dropped,
                "inserted": sessions.inserted,
                "refused": sessions.refused,
            })
        });
        fields.insert("sessions".to_owned(), json!(sessions));
        fields.insert("counts".to_owned(), json!(host.handshakes.as_ref().map(counts)));
    }
    all
}

/// What clients' handshakes came to, in the same form wherever it is told.
pub fn counts(count: &Handshakes) -> Value {
    json!({
        "handshakes": count.done,
        "tickets_given": count.given,
        "tickets_opened": count.opened,
        "tickets_opened_by_older_key": count.opened_by_older,
        "tickets_unknown": count.unknown,
        "sessions_by_id": count.by_id,
        "any_resumed": count.any_resumed,
        "resumed_at_most": resumed(count),
    })
}

/// At most this share of the handshakes resumed a session.
pub fn resumed(count: &Handshakes) -> Option<f64> {
    share(count.opened.saturating_add(count.by_id), count.done).map(|share| share.min(1.0))
}

/// A part of a whole, if there is one.
pub fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn reload_json(reload: &ReloadStatus) -> Value {
    json!({
        "count": reload.count,
        "failures": reload.failures,
        "last": reload.last.as_ref().map(|last| {
            json!({ "ago_ms": last.ago_ms, "done": last.done, "words": last.words })
        }),
    })
}

fn client_policy(policy: &ClientPolicy) -> Value {
    let site = |site: &SitePolicy| {
        json!({
            "name": site.name,
            "verify_client": site.asks,
            "authorities": site.authorities,
        })
    };
    json!({
        "certification_level": policy.level,
        "sites": policy.sites.iter().map(site).collect::<Vec<_>>(),
        "digest": policy.digest,
    })
}
