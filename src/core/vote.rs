//! Whether a server may give its vote, and if not, the one reason why.
//!
//! Raft counts the votes and has the last word; what it would say is told here as well, so that
//! there is a reason for each refusal. Invariants: a node votes in its own cluster only; nobody is
//! voted for while a leader is heard.

use thiserror::Error;

use super::log_id::{LeaderId, LogId};
use super::node_id::NodeId;
use super::server_id::ServerId;

/// What a candidate asks with.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The server that sent the request.
    pub sender: ServerId,
    /// The term, and who is the candidate in it.
    pub id: LeaderId,
    /// The end of its log.
    pub last_log_id: Option<LogId>,
    /// Whether it asks this very node, in the cluster that it has part in.
    pub is_for_me: bool,
    /// Whether this server believes that there is this term.
    pub is_plausible: bool,
}

/// The server that is asked.
#[derive(Clone, Copy, Debug)]
pub struct Voter {
    /// This node.
    pub me: NodeId,
    /// Whether Raft runs here.
    pub is_running: bool,
    /// Its vote, and whether that one is known to lead.
    pub vote: Option<(LeaderId, bool)>,
    /// The end of its log.
    pub last_log_id: Option<LogId>,
    /// Whether it hears a leader.
    pub hears_leader: bool,
    /// Whether it leads with a majority and is going to stay.
    pub leads: bool,
}

/// Why no vote is given; in the order in which they are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VoteRefusal {
    /// Raft does not run here at present.
    #[error("this server is starting")]
    Starting,
    /// It asks an earlier life of this server, or in another cluster.
    #[error("it asks a node that this server is not")]
    OtherNode,
    /// It asks in the name of another server.
    #[error("it asks in the name of server {0}")]
    InAnothersName(ServerId),
    /// Its term is far beyond what anybody else knows of.
    #[error("term {0} is not plausible")]
    Implausible(u64),
    /// Another leader was heard lately.
    #[error("server {0} was heard as the leader a moment ago")]
    HearsLeader(ServerId),
    /// This server leads itself.
    #[error("this server leads with a majority")]
    Leads,
    /// The highest vote that this server knows, its own or a leader's, is above the candidate's.
    #[error("this server knows a higher vote: server {} in term {}", .0.node.server, .0.term)]
    Voted(LeaderId),
    /// It lacks something that this server has.
    #[error("its log is behind this server's")]
    Behind,
}

impl VoteRefusal {
    /// Whether Raft is asked all the same: its answer carries the vote that this server knows, which a candidate
    /// with a lower one has to take over.
    pub fn is_rafts(self) -> bool {
        matches!(self, VoteRefusal::Voted(_) | VoteRefusal::Behind)
    }
}

/// Whether this server may vote for a candidate.
///
/// # Errors
/// Why not.
pub fn may_grant(voter: &Voter, candidate: &Candidate) -> Result<(), VoteRefusal> {
    if !voter.is_running {
        return Err(VoteRefusal::Starting);
    }
    if !candidate.is_for_me {
        return Err(VoteRefusal::OtherNode);
    }
    if candidate.id.node.server != candidate.sender {
        return Err(VoteRefusal::InAnothersName(candidate.id.node.server));
    }
    if !candidate.is_plausible {
        return Err(VoteRefusal::Implausible(candidate.id.term));
    }
    // With a vote that is not known to lead this server follows nobody, whoever was heard before.
    match voter.vote {
        Some((leader, true)) if leader.node != voter.me && voter.hears_leader => {
            return Err(VoteRefusal::HearsLeader(leader.node.server));
        }
        _ => {}
    }
    // Raft's own lease keeps followers from voting against a leader that they hear, but not the
    // leader itself from stepping down at a mere request.
    if voter.leads {
        return Err(VoteRefusal::Leads);
    }
    match voter.vote {
        Some((own, _)) if own > candidate.id => Err(VoteRefusal::Voted(own)),
        _ if voter.last_log_id > candidate.last_log_id => Err(VoteRefusal::Behind),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader_id(term: u64, node: u32) -> LeaderId {
        LeaderId { term, node: NodeId::of(node) }
    }

    fn end(term: u64, index: u64) -> Option<LogId> {
        Some(LogId { leader_id: leader_id(term, 1), index })
    }

    fn voter() -> Voter {
        Voter {
            me: NodeId::of(1),
            is_running: true,
            vote: Some((leader_id(5, 3), true)),
            last_log_id: end(5, 9),
            hears_leader: false,
            leads: false,
        }
    }

    fn candidate() -> Candidate {
        Candidate {
            sender: ServerId(2),
            id: leader_id(6, 2),
            last_log_id: end(5, 9),
            is_for_me: true,
            is_plausible: true,
        }
    }

    #[test]
    fn each_reason_is_told_and_the_first_one_if_there_are_several() {
        assert_eq!(may_grant(&voter(), &candidate()), Ok(()));
        type Fault = fn(&mut Voter, &mut Candidate);
        let faults: [(VoteRefusal, Fault); 8] = [
            (VoteRefusal::Starting, |v, _| v.is_running = false),
            (VoteRefusal::OtherNode, |_, c| c.is_for_me = false),
            (VoteRefusal::InAnothersName(ServerId(2)), |_, c| c.sender = ServerId(4)),
            (VoteRefusal::Implausible(6), |_, c| c.is_plausible = false),
            (VoteRefusal::HearsLeader(ServerId(3)), |v, _| v.hears_leader = true),
            (VoteRefusal::Leads, |v, _| v.leads = true),
            (VoteRefusal::Voted(leader_id(7, 3)), |v, _| v.vote = Some((leader_id(7, 3), true))),
            (VoteRefusal::Behind, |v, _| v.last_log_id = end(5, 10)),
        ];
        for (at, (reason, fault)) in faults.iter().enumerate() {
            let (mut voter, mut candidate) = (voter(), candidate());
            fault(&mut voter, &mut candidate);
            assert_eq!(may_grant(&voter, &candidate), Err(*reason));
            for (later, fault) in &faults[at + 1..] {
                fault(&mut voter, &mut candidate);
                assert_eq!(may_grant(&voter, &candidate), Err(*reason), "and {later:?}");
            }
        }
    }

    #[test]
    fn raft_hears_of_a_candidate_that_it_alone_refuses() {
        for (reason, is_rafts) in [
            (VoteRefusal::Voted(leader_id(7, 3)), true),
            (VoteRefusal::Behind, true),
            (VoteRefusal::Leads, false),
            (VoteRefusal::OtherNode, false),
        ] {
            assert_eq!(reason.is_rafts(), is_rafts);
            let line = reason.to_string();
            assert!(!line.is_empty() && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn a_leader_that_is_followed_keeps_its_followers_and_nobody_else() {
        let hears = |vote: Option<(LeaderId, bool)>| {
            let voter = Voter { vote, hears_leader: true, ..voter() };
            may_grant(&voter, &candidate())
        };
        assert_eq!(
            hears(Some((leader_id(5, 3), true))),
            Err(VoteRefusal::HearsLeader(ServerId(3)))
        );
        assert_eq!(hears(Some((leader_id(5, 3), false))), Ok(()), "its vote is another's since");
        assert_eq!(hears(Some((leader_id(5, 1), true))), Ok(()), "the one that it heard is itself");
        assert_eq!(hears(None), Ok(()));
    }

    #[test]
    fn the_same_candidate_may_ask_twice_and_no_other_one_in_its_term() {
        let again = Voter { vote: Some((leader_id(6, 2), false)), ..voter() };
        assert_eq!(may_grant(&again, &candidate()), Ok(()));
        let other = Voter { vote: Some((leader_id(6, 3), false)), ..voter() };
        assert_eq!(may_grant(&other, &candidate()), Err(VoteRefusal::Voted(leader_id(6, 3))));
    }
}
