//! Edge: replicas that talk over loopback sockets. Each has a clock of its own, hours apart from the others'.

use super::batch::{MAX_ENTRIES, encode};
use super::envelope::{Refusal, Route, read_reply, request_headers};
use super::hub::Peers;
use super::link::{ForwardError, Link, LinkError, Presence};
use super::metrics::PeerMetrics;
use super::outbound::Outbound;
use super::server::{Declined, Reports};
use super::signature::{BodyHash, Claims, PeerKey, Signature};
use crate::ownership::members::{Member, Owner, View};
use crate::ownership::rendezvous::device_hash;
use crate::ownership::shared::Ownership;
use crate::presence::table::Heard;
use crate::status::intake::{Outcome, Relay, Unanswered};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use prometheus::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

mod faults;
mod refusals;
mod replicas;

const SECRET: &[u8] = b"sixteen bytes or more";
const HOUR_MS: u64 = 3_600_000;
/// What an owner says that cannot write.
const LATER: Outcome = Outcome::Later { retry_after_seconds: 60 };

/// A table that remembers what was done to it, with a clock that a test can move.
struct Notes {
    start: Instant,
    offset_ms: AtomicU64,
    heard: Mutex<Vec<(Heard, u64)>>,
    merged: Mutex<Vec<Vec<Heard>>>,
    witnessed: Mutex<Vec<(u64, u64)>>,
}

/// Owners' side of forwarded reports: remembers them and acknowledges all.
#[derive(Default)]
struct Taken {
    reports: Mutex<Vec<(String, bool, Bytes)>>,
}

struct Replica {
    identity: &'static str,
    address: SocketAddr,
    notes: Arc<Notes>,
    taken: Arc<Taken>,
    ownership: Arc<Ownership>,
    metrics: PeerMetrics,
    peers: Arc<Peers>,
    stop: CancellationToken,
}

// === impl Notes ===

impl Notes {
    fn new(offset_ms: u64) -> Arc<Self> {
        let (heard, merged, witnessed) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { start: Instant::now(), offset_ms: offset_ms.into(), heard, merged, witnessed })
    }

    fn hear(&self, device: u64) {
        let heard = Heard { device, age_ms: 0, boot: 5, sequence: device, said: 0 };
        self.heard.lock().push((heard, self.now_ms()));
    }

    fn advance(&self, by_ms: u64) {
        self.offset_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    fn horizons(&self) -> Vec<u64> {
        self.witnessed.lock().iter().map(|(_, horizon_ms)| *horizon_ms).collect()
    }

    /// All devices of all batches, in the order in which they came.
    fn devices(&self) -> Vec<u64> {
        self.merged.lock().iter().flatten().map(|heard| heard.device).collect()
    }

    fn is_untouched(&self) -> bool {
        self.merged.lock().is_empty() && self.witnessed.lock().is_empty()
    }
}

impl Presence for Notes {
    fn now_ms(&self) -> u64 {
        self.offset_ms.load(Ordering::Relaxed) + u64::try_from(self.start.elapsed().as_millis()).unwrap()
    }

    fn merge(&self, heard: &[Heard], _: u64) {
        self.merged.lock().push(heard.to_vec());
    }

    fn heard_since(&self, mark_ms: u64) -> (Vec<Heard>, u64) {
        let heard = self.heard.lock();
        // What is heard in the very millisecond of a mark is told twice, which is harmless, but tests count.
        while heard.last().is_some_and(|(_, at_ms)| *at_ms >= self.now_ms()) {
            std::thread::yield_now();
        }
        let now_ms = self.now_ms();
        let fresh = heard.iter().filter(|(_, at_ms)| *at_ms >= mark_ms);
        let aged = fresh.map(|(heard, at_ms)| Heard { age_ms: u32::try_from(now_ms - at_ms).unwrap(), ..*heard });
        (aged.collect(), now_ms)
    }

    fn whole(&self) -> (Vec<Heard>, u64) {
        self.heard_since(0)
    }

    fn witness(&self, incarnation: u64, horizon_ms: u64) {
        self.witnessed.lock().push((incarnation, horizon_ms));
    }

    fn told(&self) {}
}

// === impl Reports for Taken ===

impl Reports for Taken {
    fn report<'a>(&'a self, device: &'a str, connect: bool, body: Bytes) -> BoxFuture<'a, Result<Outcome, Declined>> {
        Box::pin(async move {
            if body == "bad" {
                return Err(Declined::Bad);
            }
            if body == "later" {
                return Ok(LATER);
            }
            if body == "never" {
                std::future::pending::<()>().await;
            }
            self.reports.lock().push((device.to_owned(), connect, body));
            Ok(Outcome::Done { rejected: Vec::new() })
        })
    }
}

// === impl Replica ===

impl Replica {
    /// Replicas that see each other, with incarnations 1, 2, …; none sends anything by itself.
    async fn several<const N: usize>(identities: [&'static str; N]) -> [Self; N] {
        let mut listeners = Vec::new();
        for _ in identities {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses: Vec<SocketAddr> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let member = |at: usize| Member::new(identities[at], at as u64 + 1, Some(addresses[at]));
        let members: Vec<Member> = (0..N).map(member).collect();
        let mut at = 0;
        let mut listeners = listeners.into_iter();
        identities.map(|identity| {
            at += 1;
            let view = View::new(1, members.clone(), identity);
            let replica = Self::new(identity, addresses[at - 1], view, at as u64 * HOUR_MS);
            replica.serve(listeners.next().unwrap());
            replica
        })
    }

    fn new(identity: &'static str, address: SocketAddr, view: View, offset_ms: u64) -> Self {
        Self::with(Ownership::fixed(identity, view), identity, address, offset_ms)
    }

    fn with(ownership: Arc<Ownership>, identity: &'static str, address: SocketAddr, offset_ms: u64) -> Self {
        let (notes, taken) = (Notes::new(offset_ms), Arc::new(Taken::default()));
        let metrics = PeerMetrics::register(&Registry::new()).unwrap();
        let peers = Peers::new(&ownership, key(), notes.clone(), metrics.clone());
        Self { identity, address, notes, taken, ownership, metrics, peers, stop: CancellationToken::new() }
    }

    fn serve(&self, listener: TcpListener) {
        tokio::spawn(self.peers.clone().serve(listener, self.taken.clone(), self.stop.clone()));
    }

    /// Sends batches to all others each second.
    fn run(&self, until: &CancellationToken) -> tokio::task::JoinHandle<()> {
        tokio::spawn(self.peers.clone().run(until.clone()))
    }

    fn incarnation(&self) -> u64 {
        self.ownership.incarnation()
    }

    /// A link of its own to another one, perhaps through something in between, that sends when it is told to.
    fn link(&self, to: &Replica, through: SocketAddr) -> Arc<Link> {
        let client = super::client::Client::new(key(), self.identity, self.incarnation(), self.metrics.clone());
        let outbound = Outbound::new(self.incarnation(), to.incarnation());
        let (presence, metrics) = (self.notes.clone(), self.metrics.clone());
        Link::new(&to.identity.into(), through, outbound, Arc::new(client), presence, metrics)
    }

    /// A device that this replica works for.
    fn device(&self) -> String {
        let view = self.ownership.view();
        (0..).map(|number| format!("device-{number}")).find(|name| view.owner(device_hash(name)) == Owner::Me).unwrap()
    }

    fn member(&self) -> Member {
        Member::new(self.identity, self.incarnation(), Some(self.address))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn key() -> PeerKey {
    PeerKey::new(SECRET).unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
