//! Promise 5, *never old*: without a quorum no key encrypts for longer than `max_key_age`.
//!
//! With a quorum a rotation that is under way has a little more time.

use super::{seconds, Checked, Event, Sight};
use crate::SECOND;

/// See the module's head.
pub fn assess(sight: &Sight, event: &Event) -> Checked {
    let Event::Look = event else { return Ok(()) };
    let plan = &sight.plan;
    let limit = plan.max_key_age + plan.max_key_age / 25;
    let limit = limit + plan.handover + plan.request_timeout + 2 * plan.upper + SECOND;
    for (id, view) in sight.servers.iter().filter(|(_, view)| view.awake) {
        let Some(set) = &view.set else { continue };
        let (true, Some(cluster_id)) = (set.agreed, set.cluster_id) else { continue };
        let since = sight.annals.current.get(&(cluster_id, set.current)).copied();
        let since = since.unwrap_or(sight.now);
        // What a server is told while it stands still waits for it, and is as old as it was when sent.
        let pauses = sight.pauses.iter().filter(|(at, _, until)| at == id && *until > since);
        let stood: u64 = pauses.map(|(_, from, until)| (*until).min(sight.now) - from).sum();
        let age = (sight.now - since).saturating_sub(stood);
        // A host that does not take keys, and a process that was just woken, cannot do better.
        let can = view.install_trouble.free_for(sight.now).min(view.trouble.free_for(sight.now));
        if age > limit && can > 2 * SECOND && !sight.lied_since(since) {
            return Err(format!(
                "server {id} encrypts with generation {} after {}; max_key_age is {}",
                set.current,
                seconds(age),
                seconds(plan.max_key_age)
            ));
        }
    }
    Ok(())
}
