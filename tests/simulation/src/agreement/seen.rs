//! What the checker keeps of records and entries: names of keys, never their bytes, which would
//! count as keys that a process still holds.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use stek_share::core::agreed::{Agreed, Command, Record};
use stek_share::core::agreement::founding::{FoundedCluster, Promise};
use stek_share::core::agreement::ranked_record::{Evidence, RankedRecord, Voters};
use stek_share::core::key_ring::{Command as KeyCommand, KeyRing};
use stek_share::core::node_id::NodeId;
use stek_share::core::stek::Fingerprint;
use stek_share::core::witness::Payload;

/// The sets of voters of a configuration.
pub type Configuration = Vec<BTreeSet<NodeId>>;

/// A record without its keys' bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub lists: Vec<Voters>,
    pub keys: BTreeMap<u64, Fingerprint>,
    pub revoked: BTreeSet<Fingerprint>,
    /// The agreed list's servers, if there is one.
    pub members: Option<BTreeSet<u32>>,
}

impl Evidence for Seen {
    fn lists(&self) -> Vec<Voters> {
        self.lists.clone()
    }

    fn merge(&mut self, other: &Seen) {
        self.revoked.extend(&other.revoked);
    }

    fn recover(&mut self, survivors: &Voters) {
        self.lists = vec![survivors.clone()];
    }
}

fn keys(ring: &KeyRing) -> BTreeMap<u64, Fingerprint> {
    ring.all().map(|held| (held.generation.0, held.stek.fingerprint())).collect()
}

/// What is agreed, without keys' bytes or voters.
pub fn state(agreed: &Agreed) -> Seen {
    let revoked = agreed.ring.revoked_keys().iter().copied().collect();
    let members = agreed.server_list.as_ref();
    let members = members.map(|list| list.ids().iter().map(|id| id.0).collect());
    Seen { lists: Vec::new(), keys: keys(&agreed.ring), revoked, members }
}

/// A report without keys' bytes.
pub fn report(report: &RankedRecord<Record>) -> RankedRecord<Seen> {
    let record = Seen { lists: report.record.lists(), ..state(&report.record.agreed) };
    RankedRecord { rank: report.rank, record }
}

/// The same of a promise.
pub fn promise(given: &Promise<Record>) -> Promise<Seen> {
    Promise { epoch: given.epoch, from: given.from, newest: report(&given.newest) }
}

/// The same of a founding.
pub fn found(found: &FoundedCluster<Record>) -> FoundedCluster<Seen> {
    FoundedCluster { epoch: found.epoch, voters: found.voters.clone(), base: report(&found.base) }
}

/// An entry of a log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Tells it from others.
    pub digest: u64,
    /// Who votes from here on.
    pub voters: Option<Configuration>,
    /// Whether it gives the cluster a sequence of keys.
    pub names: bool,
    /// What the cluster was founded from, and whether it is anything else that is agreed on.
    pub base: Option<Seen>,
    pub is_other: bool,
}

/// What is kept of an entry.
pub fn entry(payload: Payload<'_>) -> Entry {
    let mut hasher = DefaultHasher::new();
    let mut entry = Entry { digest: 0, voters: None, names: false, base: None, is_other: false };
    match payload {
        Payload::Blank => 0.hash(&mut hasher),
        Payload::Voters(voters) => {
            (1, voters).hash(&mut hasher);
            entry.voters = Some(voters.to_vec());
        }
        Payload::Command(Command::Found(record)) => {
            let base = Seen { lists: record.lists(), ..state(&record.agreed) };
            (2, &base.lists, &base.keys, &base.revoked).hash(&mut hasher);
            entry.names = record.agreed.ring.cluster_id().is_some();
            entry.base = Some(base);
        }
        Payload::Command(command) => {
            entry.is_other = true;
            match command {
                Command::Key(KeyCommand::Found { cluster_id }) => {
                    (3, cluster_id).hash(&mut hasher);
                    entry.names = true;
                }
                Command::Key(KeyCommand::Stage { held, revokes }) => {
                    let key = held.stek.fingerprint();
                    (4, held.generation, key, revokes).hash(&mut hasher);
                }
                Command::Key(KeyCommand::Activate { generation, keep }) => {
                    (5, generation, keep).hash(&mut hasher);
                }
                Command::Key(KeyCommand::Revoke(keys)) => (6, keys).hash(&mut hasher),
                Command::ChangeMembership(list) => {
                    (7, list.version, list.digest().to_string()).hash(&mut hasher);
                }
                Command::Found(_) => {}
            }
        }
    }
    entry.digest = hasher.finish();
    entry
}

/// Whether those for which `is` holds are more than half of each set.
pub fn are_most<T>(sets: &[BTreeSet<T>], is: impl Fn(&T) -> bool) -> bool {
    sets.iter().all(|set| 2 * set.iter().filter(|one| is(one)).count() > set.len())
}
