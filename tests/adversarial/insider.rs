//! A member in the wrong hands: it has a good certificate and says what it likes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use openssl::ssl::{SslConnector, SslMethod, SslStream, SslVerifyMode};
use stek_share::core::agreed::Agreed;
use stek_share::core::log_id::{LeaderId, LogId};
use stek_share::core::node_id::{Incarnation, NodeId};
use stek_share::core::pre_vote::Status;
use stek_share::core::server_id::ServerId;
use stek_share::rpc::{
    decode_response, encode, Recipient, Request, Response, WireAppend, WireMembership, WireSnapshot,
};
use stek_share::transport::frame::{self, Header, Hello, Kind, Role, Versions};
use testkit::pki::Identity;

use crate::fleet::{Fleet, PATIENCE};
use crate::ENEMY;

/// One connection of the enemy to a server.
pub struct Insider {
    stream: SslStream<TcpStream>,
    cluster_id: [u8; 16],
    asked: u32,
}

impl Insider {
    /// Connects to the server `to` with a certificate as good as any member's.
    pub fn connect(fleet: &mut Fleet, to: u32) -> Insider {
        let to = door(fleet, to);
        Insider::connect_at(fleet, to)
    }

    /// The same at any address.
    pub fn connect_at(fleet: &mut Fleet, to: SocketAddr) -> Insider {
        let identity = fleet.identity(ENEMY);
        Insider::connect_as(fleet, to, &identity).expect("a good certificate opens the door")
    }

    /// The same with any certificate; `None` if the handshake fails, which it need not where the
    /// certificate is bad, since a TLS 1.3 client is done before it is checked.
    pub fn connect_as(fleet: &Fleet, to: SocketAddr, identity: &Identity) -> Option<Insider> {
        let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
        builder.set_verify(SslVerifyMode::NONE);
        builder.set_certificate(&identity.certificate).unwrap();
        builder.set_private_key(&identity.key).unwrap();
        let config = builder.build().configure().unwrap();
        let config = config.verify_hostname(false).use_server_name_indication(false);
        let tcp = TcpStream::connect(to).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        tcp.set_nodelay(true).unwrap();
        let stream = config.connect("server", tcp).ok()?;
        Some(Insider { stream, cluster_id: cluster_id(fleet), asked: 0 })
    }

    /// Asks, and takes the answer; `None` if the server closes instead. What is Raft's goes to the
    /// very node that this server is, in the cluster that it has part in.
    pub fn ask(&mut self, request: &Request) -> Option<Response> {
        let mut body = encode(request).unwrap().to_vec();
        if matches!(request, Request::Vote(_) | Request::Append(_) | Request::Snapshot(_)) {
            let status = self.try_status()?;
            let to = Recipient { node: status.node, cluster: status.cluster };
            // It comes first, and stands for nobody until now: a zero for each of its numbers.
            let nobody = encode(&Recipient::default()).unwrap().len();
            body.splice(1..=nobody, encode(&to).unwrap().iter().copied());
        }
        self.ask_bytes(ServerId(ENEMY), frame::VERSION_MAX, &body)
    }

    /// The same with any sender, version and body.
    pub fn ask_bytes(&mut self, sender: ServerId, version: u8, body: &[u8]) -> Option<Response> {
        self.send(sender, version, body).ok()?;
        self.answer()
    }

    /// Says hello, and hears the server's.
    fn greet(&mut self, sender: ServerId, version: u8) -> std::io::Result<()> {
        let hello = Hello {
            versions: Versions { min: version, max: version },
            role: Role::Member,
            sender,
            incarnation: 666,
            cluster_id: self.cluster_id,
        };
        self.stream.write_all(&frame::encode_hello(&hello, 0))?;
        let mut theirs = [0; frame::HELLO_LEN];
        self.stream.read_exact(&mut theirs)?;
        if theirs.ends_with(&[0]) {
            Ok(())
        } else {
            Err(std::io::ErrorKind::ConnectionRefused.into())
        }
    }

    /// Sends without waiting for the answer; the first time it says hello before.
    pub fn send(&mut self, sender: ServerId, version: u8, body: &[u8]) -> std::io::Result<()> {
        self.send_as(Kind::Request, sender, version, body)
    }

    /// The same as a frame of any kind.
    pub fn send_as(
        &mut self,
        kind: Kind,
        sender: ServerId,
        version: u8,
        body: &[u8],
    ) -> std::io::Result<()> {
        if self.asked == 0 {
            self.greet(sender, version)?;
        }
        self.asked += 1;
        let (request, cluster_id) = (self.asked, self.cluster_id);
        let header = Header { kind, request, cluster_id };
        self.stream.write_all(&frame::encode(&header, body).unwrap())
    }

    /// The next answer; `None` if there is none, because the server closed or refused.
    pub fn answer(&mut self) -> Option<Response> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).ok()?;
        let mut rest = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut rest).ok()?;
        // The kind of a response, and what is behind the rest of its header.
        (rest.first() == Some(&1)).then(|| decode_response(&rest[frame::HEADER_LEN - 4..]).unwrap())
    }

    /// Says from now on that it is of this cluster incarnation.
    pub fn set_cluster(&mut self, cluster_id: [u8; 16]) {
        self.cluster_id = cluster_id;
    }

    /// What the server says of itself.
    pub fn status(&mut self) -> Status {
        self.try_status().expect("a status")
    }

    /// The same; `None` if it says nothing.
    pub fn try_status(&mut self) -> Option<Status> {
        match self.ask(&Request::Status(Status::default()))? {
            Response::Status(status) => Some(status),
            other => panic!("no status: {other:?}"),
        }
    }
}

/// Where a server listens.
pub fn door(fleet: &Fleet, id: u32) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, fleet.members[id as usize - 1].port).into()
}

/// The cluster incarnation of a fleet that has one.
pub fn cluster_id(fleet: &Fleet) -> [u8; 16] {
    let mut clusters = fleet.servers.values().filter_map(|b| b.node_status().cluster_id);
    clusters.next().map_or([0; 16], |cluster_id| cluster_id.to_bytes())
}

/// Some life of a server.
pub fn life(id: u32) -> NodeId {
    NodeId { server: ServerId(id), incarnation: Incarnation(7) }
}

/// A term of the enemy's own.
pub fn leader_id(term: u64) -> LeaderId {
    LeaderId { term, node: life(ENEMY) }
}

/// A heartbeat in this term, as if the enemy had been elected in it.
pub fn heartbeat(leader_id: LeaderId) -> WireAppend {
    WireAppend {
        to: Recipient::default(),
        vote: (leader_id, true),
        previous: None,
        entries: Vec::new(),
        commit: None,
        age: None,
        quorum: true,
    }
}

/// A snapshot in this term.
pub fn snapshot(leader_id: LeaderId, index: u64, agreed: Agreed) -> WireSnapshot {
    let members = (1..=ENEMY).map(life).collect();
    let configs = vec![(1..=ENEMY).map(life).collect()];
    WireSnapshot {
        to: Recipient::default(),
        vote: (leader_id, true),
        last: Some(LogId { leader_id, index }),
        membership_at: None,
        membership: WireMembership { configs, members },
        id: "enemy".to_owned(),
        agreed,
        current_age_ms: 0,
        staged_age_ms: 0,
    }
}
