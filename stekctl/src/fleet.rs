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
use crate::own::Places;
use crate::who;

/// Questions under way at a time. Each takes a socket and a handshake's processor time.
const MAX_ASKED: usize = 32;

/// The server in whose name is asked is asked on this machine first: where the list has it may be
/// another one.
pub enum Own {
    /// It is another server.
    NotAsked,
    /// Its own plugin listens at the listed address, and gave the answer, if there is one.
    AtAddress,
    /// Its own plugin answered at this place of the machine, and this came from the listed address.
    Elsewhere {
        /// Where it listens.
        place: Member,
        /// What came from the listed address.
        listed: Box<Answer>,
    },
    /// No plugin answered in this place of the machine; the answer is the listed address's.
    Silent(Member, Unanswered),
}

/// One server of the list, and what it says.
pub struct Server {
    /// Its entry.
    pub member: Member,
    /// What it says and how long that took, or why it says nothing.
    pub answer: Answer,
    /// Whether it is the server of this machine, and what its own plugin made of the question.
    pub own: Own,
    /// How many milliseconds its clock is ahead of the one here, if it answered; the way of the
    /// answer counts as nothing.
    pub clock_offset_ms: Option<i64>,
}

impl Server {
    /// What it says, if it answered.
    pub fn status(&self) -> Option<&ServerStatus> {
        self.answer.as_ref().ok().map(|(status, _)| status)
    }

    /// Where it answered.
    pub fn reached(&self) -> &Member {
        match &self.own {
            Own::Elsewhere { place, .. } => place,
            _ => &self.member,
        }
    }

    /// Whether it is the one in whose name is asked.
    pub fn is_own(&self) -> bool {
        !matches!(self.own, Own::NotAsked)
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

/// What a question came to, and how long the answer took.
pub type Answer = Result<(ServerStatus, Duration), Unanswered>;

/// Asks one server; this machine's where its plugin may listen, and where the list has it.
async fn ask_one(
    client: Client,
    member: &Member,
    places: Option<Places>,
    limit: Duration,
) -> (Answer, Own) {
    let Some(places) = places else { return (client.status(member, limit).await, Own::NotAsked) };
    if places.first.address == member.address && places.first.port == member.port {
        return (client.status(member, limit).await, Own::AtAddress);
    }
    let (here, listed) =
        tokio::join!(ask_here(&client, places, limit), client.status(member, limit));
    match here {
        (place, Ok(answer)) => (Ok(answer), Own::Elsewhere { place, listed: Box::new(listed) }),
        (place, Err(why)) => (listed, Own::Silent(place, why)),
    }
}

/// Asks the plugin of this machine: where, and what came of it.
async fn ask_here(client: &Client, places: Places, limit: Duration) -> (Member, Answer) {
    match (client.status(&places.first, limit).await, places.second) {
        (Err(Unanswered::Unreachable(_)), Some(second)) => {
            let answer = client.status(&second, limit).await;
            (second, answer)
        }
        (answer, _) => (places.first, answer),
    }
}

/// Speaks to the servers of a list in the name of this server.
pub struct Fleet {
    runtime: Runtime,
    client: Client,
    members: Vec<Member>,
    /// The server of this machine, if one is meant.
    own: Option<ServerId>,
    /// Where this machine's plugin may listen.
    places: Places,
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
        let client = Client::new(&loaded.settings, &loaded.tls).on_behalf_of(&who::person());
        let settings = &loaded.settings;
        Ok(Fleet {
            runtime,
            client,
            members: settings.members.clone(),
            own: Some(settings.server_id),
            places: Places::of(settings, limit),
            limit,
        })
    }

    /// The same for a configuration that is not this machine's: nobody is asked here in its name.
    pub fn of_other_machines(self) -> Fleet {
        Fleet { own: None, ..self }
    }

    /// Asks this machine's own plugin alone.
    ///
    /// # Errors
    /// Where it was looked for, and why it did not answer.
    pub fn ask_own(&self) -> Result<(Member, ServerStatus), (Member, Unanswered)> {
        let asked = ask_here(&self.client, self.places.clone(), self.limit);
        let (place, answer) = self.runtime.block_on(asked);
        match answer {
            Ok((status, _)) => Ok((place, status)),
            Err(why) => Err((place, why)),
        }
    }

    /// The entries of the list but this server's.
    pub fn others(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| Some(member.id) != self.own)
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
                let places = (Some(member.id) == self.own).then(|| self.places.clone());
                asked.spawn(async move {
                    let (answer, own) = ask_one(client, &member, places, limit).await;
                    let clock = |(status, _): &(ServerStatus, Duration)| offset(status.clock_ms);
                    let clock_offset_ms = answer.as_ref().ok().and_then(clock);
                    (index, Server { member, answer, own, clock_offset_ms })
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
