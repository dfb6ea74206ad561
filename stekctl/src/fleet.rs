//! Asks every server of the list how it is, several at a time.
//!
//! Checks nothing. Invariants: a round of questions ends within a bounded number of time
//! limits, however long the list is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use stek_share::client::{Client, Failure as Unanswered, ServerStatus};
use stek_share::core::config::Member;
use stek_share::core::server_id::ServerId;
use stek_share::load::Loaded;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::exit_code::Failure;

/// Questions under way at a time. Each takes a socket and a handshake's processor time.
const MAX_ASKED: usize = 32;

/// One server of the list, and what it says.
pub struct Server {
    /// Its entry.
    pub member: Member,
    /// What it says and how long that took, or why it says nothing.
    pub answer: Result<(ServerStatus, Duration), Unanswered>,
    /// How many milliseconds its clock is ahead of the one here, if it answered; the way of the
    /// answer counts as nothing.
    pub clock_offset_ms: Option<i64>,
}

impl Server {
    /// What it says, if it answered.
    pub fn status(&self) -> Option<&ServerStatus> {
        self.answer.as_ref().ok().map(|(status, _)| status)
    }

    /// Its id.
    pub fn id(&self) -> ServerId {
        self.member.id
    }
}

/// Where a member listens, as one writes it.
pub fn address(member: &Member) -> String {
    if member.address.contains(':') {
        format!("[{}]:{}", member.address, member.port)
    } else {
        format!("{}:{}", member.address, member.port)
    }
}

/// How many milliseconds a clock that says `theirs` is ahead of the one here.
fn offset(theirs: u64) -> Option<i64> {
    let ours = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_millis();
    i64::try_from(theirs).ok()?.checked_sub(i64::try_from(ours).ok()?)
}

/// Speaks to the servers of a list in the name of this server.
pub struct Fleet {
    runtime: Runtime,
    client: Client,
    members: Vec<Member>,
    limit: Duration,
}

impl Fleet {
    /// For this configuration, and at most `limit` for each question.
    ///
    /// # Errors
    /// When there are no threads for it.
    pub fn new(loaded: &Loaded, limit: Duration) -> Result<Fleet, Failure> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime
            .map_err(|error| Failure::new(format!("no threads to ask the servers: {error}")))?;
        let client = Client::new(&loaded.settings, &loaded.tls);
        Ok(Fleet { runtime, client, members: loaded.settings.members.clone(), limit })
    }

    /// Asks all of them; the answers stand in the order of the list.
    pub fn ask(&self) -> Vec<Server> {
        self.runtime.block_on(async {
            let mut asked = JoinSet::new();
            let mut answers = Vec::new();
            for (index, member) in self.members.iter().enumerate() {
                if asked.len() >= MAX_ASKED {
                    answers.extend(asked.join_next().await.and_then(Result::ok));
                }
                let (client, member, limit) = (self.client.clone(), member.clone(), self.limit);
                asked.spawn(async move {
                    let answer = client.status(&member, limit).await;
                    let clock = |(status, _): &(ServerStatus, Duration)| offset(status.clock_ms);
                    let clock_offset_ms = answer.as_ref().ok().and_then(clock);
                    (index, Server { member, answer, clock_offset_ms })
                });
            }
            // A question that panicked has no row; there is none that could.
            while let Some(answer) = asked.join_next().await {
                answers.extend(answer.ok());
            }
            answers.sort_by_key(|(index, _)| *index);
            answers.into_iter().map(|(_, server)| server).collect()
        })
    }

    /// Runs `ask` with the client on the threads that there are.
    pub fn with<T, F>(&self, ask: impl FnOnce(Client) -> F) -> T
    where
        F: std::future::Future<Output = T>,
    {
        self.runtime.block_on(ask(self.client.clone()))
    }
}
