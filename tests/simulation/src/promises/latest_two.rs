//! Promise 2, *the latest two*: what a server installs is its newest keys, as many as `ticket_keys`
//! says, the encrypting one first; a server that joins or returns gets the whole set. A group that is
//! founded anew goes on with the keys of its state files, as long as these are what they should be.

use super::{seconds, Checked, Event, Sight};
use crate::machine::Set;
use crate::SECOND;

/// See the module's head.
pub fn assess(sight: &Sight, event: &Event) -> Checked {
    let (at, set) = match event {
        Event::Installed { at, set } => (at, set),
        Event::Look => return in_step(sight),
        _ => return Ok(()),
    };
    // Without a group a server's own key comes on top of those of its file.
    let most = sight.plan.ticket_keys + u64::from(!set.agreed && sight.plan.keeps_state);
    if set.keys.is_empty() || set.keys.len() as u64 > most {
        return Err(format!("server {at} installs {} keys", set.keys.len()));
    }
    match (set.agreed, set.cluster_id) {
        (true, Some(cluster_id)) => {
            whole(sight, *at, set, cluster_id).and_then(|()| goes_on(sight, cluster_id))
        }
        _ => Ok(()),
    }
}

/// What was agreed reaches the host.
fn in_step(sight: &Sight) -> Checked {
    let limit = sight.plan.installing + 2 * SECOND;
    for (id, view) in &sight.servers {
        let lag = view.lags_since.map_or(0, |since| sight.now - since);
        if lag > limit && sight.settled(*id) && sight.has_company(*id) {
            return Err(format!(
                "the host of server {id} has used another key than its ring for {}",
                seconds(lag)
            ));
        }
    }
    Ok(())
}

/// How long a key has to be in use for all files to have it.
const KEPT_AFTER: u64 = 10 * SECOND;

/// Whether a cluster incarnation that is new here goes on with a key of an earlier one, if it can.
fn goes_on(sight: &Sight, cluster_id: super::Cluster) -> Checked {
    let is_new = sight
        .annals
        .seen
        .range((cluster_id, 0)..=(cluster_id, u64::MAX))
        .all(|(_, at)| *at == sight.now);
    let files_are_good = sight.plan.keeps_state && sight.files_failed.is_none();
    let may_use = sight.plan.max_key_age.saturating_sub(KEPT_AFTER);
    let could = sight.annals.current.iter().any(|((other, _), at)| {
        let age = sight.now - at;
        // A file that was saved before a clock was set is too old, or of the future, to that clock.
        let was_saved = sight.clock_stepped.is_none_or(|stepped| *at > stepped);
        *other != cluster_id && was_saved && age > KEPT_AFTER && age < may_use
    });
    if is_new && files_are_good && could {
        Err("a new cluster incarnation begins with a new key, though there were state files with a \
             young one"
    .to_owned())
    } else {
        Ok(())
    }
}

fn whole(sight: &Sight, at: u32, set: &Set, cluster_id: super::Cluster) -> Checked {
    let staged = (set.newest > set.current).then_some(set.newest);
    if staged.is_some_and(|staged| staged != set.current + 1) {
        return Err(format!("server {at} stages {} behind {}", set.newest, set.current));
    }
    // Then the older ones, as far as there is room, none was revoked, and there are any.
    let mut expected: Vec<u64> = [set.current].into_iter().chain(staged).collect();
    let mut optional = false;
    for generation in (1..set.current).rev() {
        if expected.len() as u64 >= sight.plan.ticket_keys {
            break;
        }
        optional |= sight.may_revoke(cluster_id, generation + 1);
        if optional || set.current - generation >= sight.plan.ticket_keys {
            break;
        }
        expected.push(generation);
    }
    for (place, generation) in expected.iter().enumerate() {
        let known = set.keys.get(place).and_then(|key| sight.annals.place_in(key, cluster_id));
        // A key that no host was given as staged or current is not known, and cannot be expected.
        let is_known = sight.annals.seen.contains_key(&(cluster_id, *generation));
        if is_known && known != Some(*generation) {
            return Err(format!(
                "server {at} has {known:?} in place {place} where generation {generation} belongs"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::promises::View;

    #[test]
    fn a_host_lags_behind_a_ring_of_a_cluster_that_has_begun() {
        let mut sight = Sight::new(Plan::calm(1));
        let began = 50 * SECOND;
        let limit = sight.plan.installing + 2 * SECOND;
        let view = View { listed: true, awake: true, joined: Some(0), ..View::default() };
        let (one, other) = ([1; 16], [2; 16]);
        let cases = [
            (None, false),
            (Some(None), true),
            (Some(Some((one, 3))), false),
            (Some(Some((one, 4))), true),
            (Some(Some((one, 1))), true),
            (Some(Some((other, 3))), true),
        ];
        for (ring, lags) in cases {
            let mut view = view.clone();
            view.note_lag(began, ring, Some((one, 3)));
            view.note_lag(began + 1, ring, Some((one, 3)));
            sight.servers.insert(1, view);
            sight.now = began + limit;
            assert_eq!(in_step(&sight), Ok(()));
            sight.now += 1;
            assert_eq!(in_step(&sight).is_err(), lags, "{ring:?}");
        }
    }
}
