//! Edge: takes reports in, sees to them here or at the owner of the device, and answers them.
//!
//! An ack means: written to Kubernetes, or nothing to write; counters, and what an object has no budget for now (see
//! [`super::budget`]), count as nothing. What the watch has not shown is judged by a live
//! read, never by its absence from a cache.
//!
//! A report that reaches a replica which does not own the device is answered there when there is certainly nothing to
//! do (see [`crate::presence::said`]); otherwise the owner sees to it, and its answer is passed on. Where the owner
//! cannot be reached the report is applied right here: the version that goes along with every write keeps two writers
//! from undoing each other's work, and whoever comes second finds nothing left to write. So an answer that was lost on
//! the way costs at most a conflict. An owner that is merely busy gets no help: conflicts would be all that it got.

use super::assess::{Assessment, Course, Jobs, Place, remembered};
pub use super::assess::{Incoming, Outcome};
use super::limiter::TokenBucket;
use super::metrics::StatusMetrics;
use super::projection::{Introduction, Reported};
use super::writer::{Job, Writer};
use crate::desired::directory::Directory;
use crate::desired::index::Kind;
use crate::desired::lean::{Key, Text};
use crate::ownership::members::{Member, Owner, View};
use crate::ownership::rendezvous::device_hash;
use crate::ownership::shared::Ownership;
use crate::presence::order::Freshness;
use crate::presence::roll::Roll;
use crate::presence::said::Footing;
use crate::runtime::clock;
use bytes::Bytes;
use futures::future::BoxFuture;
use moka::sync::Cache;
use parking_lot::Mutex;
use rand::Rng;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A report is answered within this time.
const DEADLINE: Duration = Duration::from_secs(8);
/// One that another replica passed on, and that may have spent some of its time on the way.
const FORWARDED_DEADLINE: Duration = Duration::from_secs(3);
/// The owner is waited for no longer, whatever the link does.
const FORWARD_DEADLINE: Duration = Duration::from_millis(7_500);
/// A live read that is to confirm the cache must not use up the time of the answer.
const VERIFY_DEADLINE: Duration = Duration::from_millis(1_500);
/// An object that a live read did not find is not looked for again for this time.
const MISS_TTL: Duration = Duration::from_secs(2);
/// Misses that are remembered.
const MISSES: u64 = 4_096;
/// Live reads a second of objects that the watch has not shown.
const LIVE_READS: u32 = 20;
/// Live reads a second that confirm the cache, and at once: when a replica's devices were heard by others only, all of
/// them may have news at the same moment.
const VERIFYING_READS: u32 = 300;

/// How a report gets to the owner of its device.
pub trait Relay: Send + Sync + 'static {
    /// Passes a report on as the device sent it, and its answer back. The owner answers within 3 s.
    ///
    /// # Errors
    /// When it has not been answered; it may have been taken in all the same.
    fn forward<'a>(
        &'a self,
        to: &'a Member,
        device: &'a str,
        connect: bool,
        body: Bytes,
    ) -> BoxFuture<'a, Result<Outcome, Unanswered>>;

    /// Whether there never is another replica.
    fn is_alone(&self) -> bool {
        false
    }
}

/// Why the owner of a device did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unanswered {
    /// It does not take itself for the owner, or does not know the device.
    #[error("it is not the owner")]
    NotOwner,
    /// There is no way to it.
    #[error("it cannot be reached")]
    Unreachable,
    /// It is heard, but so many reports are under way to it that this one was not sent.
    #[error("it is busy")]
    Busy,
    /// It was heard meanwhile, but took too long.
    #[error("it did not answer in time")]
    Timeout,
    /// It does not take anything from this replica, or not this.
    #[error("it refused")]
    Refused,
}

/// The way to nobody, of a replica that works alone.
#[derive(Debug, Clone, Copy)]
pub struct NoRelay;

/// Why a report that another replica passed on is not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotTaken {
    /// Another replica owns the device, as far as is known here.
    #[error("this replica does not own the device")]
    NotOwner,
    /// Nothing is known of the device here (yet).
    #[error("this replica does not know the device")]
    Unknown,
}

/// See the module.
pub struct Intake {
    directory: Arc<Directory>,
    roll: Arc<Roll>,
    writer: Arc<Writer>,
    ownership: Arc<Ownership>,
    relay: Arc<dyn Relay>,
    metrics: StatusMetrics,
    misses: Cache<Key, ()>,
    live_reads: Mutex<TokenBucket>,
    verifying_reads: Mutex<TokenBucket>,
    start: Instant,
}

/// A report that is being seen to.
struct Case<'a> {
    device: &'a str,
    reported: Vec<Arc<Reported>>,
    introduction: Introduction,
    /// bootId and sequence, unless a newer report is known.
    order: Option<(Text, u64)>,
    fingerprint: Option<u64>,
    /// State of the index before it was looked at.
    version: Option<u64>,
    /// Objects that a live read did not find.
    gone: HashSet<Key>,
    /// When it has to be answered.
    deadline: Instant,
}

// === impl Unanswered ===

impl Unanswered {
    /// Label value of the metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotOwner => "not_owner",
            Self::Unreachable => "unreachable",
            Self::Busy => "busy",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
        }
    }

    /// Whether the owner is at work all the same, so that the device has to come again.
    #[must_use]
    pub fn is_at_work(self) -> bool {
        matches!(self, Self::Busy | Self::Timeout)
    }
}

// === impl NoRelay ===

impl Relay for NoRelay {
    fn forward<'a>(
        &'a self,
        _: &'a Member,
        _: &'a str,
        _: bool,
        _: Bytes,
    ) -> BoxFuture<'a, Result<Outcome, Unanswered>> {
        Box::pin(async { Err(Unanswered::Unreachable) })
    }

    fn is_alone(&self) -> bool {
        true
    }
}

// === impl Intake ===

impl Intake {
    /// An intake that hands what is to be written to a writer, and what is another replica's to a relay.
    #[must_use]
    pub fn new(
        directory: Arc<Directory>,
        roll: Arc<Roll>,
        writer: Arc<Writer>,
        ownership: Arc<Ownership>,
        relay: Arc<dyn Relay>,
        metrics: StatusMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            directory,
            roll,
            writer,
            ownership,
            relay,
            metrics,
            misses: Cache::builder().max_capacity(MISSES).time_to_live(MISS_TTL).build(),
            live_reads: Mutex::new(TokenBucket::new(LIVE_READS)),
            verifying_reads: Mutex::new(TokenBucket::new(VERIFYING_READS)),
            start: Instant::now(),
        })
    }

    /// The short way for the report that every device sends all day, whoever owns the device: notes the sign of life;
    /// true when the same report left nothing to do right before, and nothing has changed since. Otherwise nothing is
    /// noted.
    #[must_use]
    pub fn is_settled(&self, device: &str, boot_id: &str, sequence: u64, fingerprint: u64) -> bool {
        let version = self.directory.read(|index| index.device(device).map(|device| device.version));
        version
            .filter(|_| !self.roll.is_isolated())
            .is_some_and(|version| self.roll.heard_the_same(device, boot_id, sequence, fingerprint, version))
    }

    /// Takes in a report of a known device. The sign of life counts at once, whatever becomes of the rest.
    pub async fn report(&self, device: &str, incoming: Incoming) -> Outcome {
        if self.roll.is_isolated() {
            // An ack would keep the device here, and the others would take it for dead.
            self.roll.heard(device);
            return self.later();
        }
        let view = self.ownership.view();
        let place = match view.owner(device_hash(device)) {
            Owner::Me if self.relay.is_alone() => Place::Alone,
            Owner::Me => Place::Owner,
            Owner::Peer(_) => Place::Other,
        };
        self.see_to(device, incoming, &view, place, Instant::now() + DEADLINE).await
    }

    /// Takes in a report that another replica passed on. It goes no further. The sign of life counts here, too.
    ///
    /// # Errors
    /// When this replica is not the one to see to it.
    pub async fn forwarded(&self, device: &str, incoming: Incoming) -> Result<Outcome, NotTaken> {
        let view = self.ownership.view();
        if !view.is_mine(device_hash(device)) {
            return Err(NotTaken::NotOwner);
        }
        if !self.directory.read(|index| index.serves_devices() && index.device(device).is_some()) {
            return Err(NotTaken::Unknown);
        }
        Ok(self.see_to(device, incoming, &view, Place::Owner, Instant::now() + FORWARDED_DEADLINE).await)
    }

    async fn see_to(
        &self,
        device: &str,
        mut incoming: Incoming,
        view: &View,
        mut place: Place,
        deadline: Instant,
    ) -> Outcome {
        self.roll.heard(device);
        let said = incoming.fingerprint.unwrap_or(0);
        let (boot_id, sequence) = (incoming.boot_id.as_deref(), incoming.sequence);
        let seed = || self.directory.read(|index| remembered(index, device));
        let (freshness, footing) = self.roll.order(device, boot_id, sequence, said, seed);
        let footing = match (freshness, footing) {
            (Freshness::Old, _) => {
                incoming.outdate();
                Footing::Unknown
            }
            // Another replica, or the next process, can read what became of it.
            (_, Footing::Lost) => return self.later(),
            (_, footing) => footing,
        };
        let apiserver = || self.ownership.standing().apiserver;
        place = place.in_touch(footing, view.peers().count(), || self.roll.hearing(), apiserver);
        let bare = incoming.is_bare();
        let mut case = Case {
            device,
            reported: incoming.reported(),
            order: incoming.boot_id.clone().zip(incoming.sequence),
            fingerprint: incoming.fingerprint,
            introduction: incoming.introduction,
            version: self.directory.read(|index| index.device(device).map(|device| device.version)),
            gone: HashSet::new(),
            deadline,
        };
        let mut assessment = self.assess(&case);
        let mut course = assessment.course(footing, bare, place);
        if course == Course::Forward {
            if let Some(outcome) = self.forward(&case, view, incoming.connect, incoming.body).await {
                return outcome;
            }
            // Meanwhile the owner may have written after all.
            place = Place::Fallback;
            assessment = self.assess(&case);
            course = assessment.course(footing, bare, place);
        }
        if course == Course::Verify {
            if !self.verify(&assessment.agreed, deadline).await {
                return self.later();
            }
            assessment = self.assess(&case);
        }
        let unread = self.look_up(&mut case, &mut assessment).await;
        let doubts = place.doubts(footing);
        self.apply(&case, assessment, unread, place.takes_in(footing), doubts).await
    }

    fn assess(&self, case: &Case) -> Assessment {
        self.directory.read(|index| {
            Assessment::new(
                index,
                case.device,
                &case.introduction,
                &case.reported,
                |kind, key| self.writer.is_pending(kind, key),
                |key| case.gone.contains(key),
                clock::unix_seconds(),
            )
        })
    }

    /// What is to be answered; none when it is to be seen to here.
    async fn forward(&self, case: &Case<'_>, view: &View, connect: bool, body: Bytes) -> Option<Outcome> {
        let Owner::Peer(owner) = view.owner(device_hash(case.device)) else { return None };
        let answer = timeout(FORWARD_DEADLINE, self.relay.forward(owner, case.device, connect, body)).await;
        match answer.unwrap_or(Err(Unanswered::Timeout)) {
            Ok(outcome) => {
                self.metrics.forwards.with_label_values(&["ok"]).inc();
                if matches!(outcome, Outcome::Done { .. }) {
                    self.acknowledge(case, false);
                }
                Some(outcome)
            }
            Err(error) => {
                self.metrics.forwards.with_label_values(&[error.as_str()]).inc();
                tracing::debug!(device = case.device, owner = &*owner.identity, %error, "the owner does not answer");
                error.is_at_work().then(|| self.later())
            }
        }
    }

    /// Writes what differs and waits for what the acknowledgement waits for.
    async fn apply(&self, case: &Case<'_>, assessment: Assessment, unread: bool, take: bool, doubts: bool) -> Outcome {
        let all_rejected = assessment.is_all_not_yours(case.reported.len());
        let Assessment { jobs, rejected, .. } = assessment;
        let settled = jobs.is_empty() && rejected.is_empty() && case.gone.is_empty() && !unread;
        if all_rejected && jobs.is_empty() {
            return Outcome::AllNotYours;
        }
        // While this one was forwarded or looked up a newer one may have been taken in, and must keep the last word.
        let overtaken = |(boot_id, sequence): &(Text, u64)| self.roll.is_overtaken(case.device, boot_id, *sequence);
        if case.order.as_ref().is_some_and(overtaken) {
            return self.later();
        }
        let Ok(waits) = self.submit(jobs, doubts) else { return self.later() };
        if let Some((boot_id, sequence)) = case.order.as_ref().filter(|_| take && !unread) {
            self.roll.took(case.device, boot_id, *sequence);
        }
        for wait in waits {
            let left = case.deadline.saturating_duration_since(Instant::now());
            if !matches!(timeout(left, wait).await, Ok(Ok(()))) {
                return self.later();
            }
        }
        // What was not in the queue when this one was compared may have been given up right before.
        if unread || self.roll.is_lost(case.device) {
            return self.later();
        }
        self.acknowledge(case, settled);
        if all_rejected { Outcome::AllNotYours } else { Outcome::Done { rejected } }
    }

    /// Queues what is to be written; returns what the acknowledgement has to wait for: what must be written now, or read
    /// before it may wait.
    fn submit(&self, jobs: Jobs, doubts: bool) -> Result<Vec<oneshot::Receiver<()>>, super::queue::Full> {
        let mut waits = Vec::new();
        for ((kind, key), wanted) in jobs {
            let mut job = Job::wanted(wanted.reported, wanted.introduction, !wanted.urgent);
            job.unsure = doubts;
            if wanted.urgent || doubts {
                let (written, wait) = oneshot::channel();
                job.waiting.push(written);
                waits.push(wait);
            }
            self.writer.submit(kind, key, job)?;
        }
        Ok(waits)
    }

    fn acknowledge(&self, case: &Case, settled: bool) {
        if let (Some((boot_id, sequence)), Some(fingerprint)) = (&case.order, case.fingerprint) {
            let version = case.version.filter(|_| settled);
            self.roll.acknowledged(case.device, boot_id, *sequence, fingerprint, version);
        }
    }

    /// Looks for objects that the index does not know; true when that could not be done for all of them.
    async fn look_up(&self, case: &mut Case<'_>, assessment: &mut Assessment) -> bool {
        let mut unread = false;
        let mut found = false;
        for key in std::mem::take(&mut assessment.unknown) {
            match self.find(case.device, &key, case.deadline).await {
                Some(true) => found = true,
                Some(false) => {
                    case.gone.insert(key);
                }
                None => unread = true,
            }
        }
        if found {
            *assessment = self.assess(case);
            // Found live but shown to be gone by the watch meanwhile.
            case.gone.extend(std::mem::take(&mut assessment.unknown));
        }
        unread
    }

    /// Whether an object exists; `None` when that cannot be said now.
    async fn find(&self, device: &str, key: &Key, deadline: Instant) -> Option<bool> {
        if self.misses.contains_key(key) {
            return Some(false);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let count = |result: &str| self.metrics.live_reads.with_label_values(&[result]).inc();
        if self.live_reads.lock().take(self.now_ms()).is_err() {
            count("limited");
            return None;
        }
        let read = timeout(left, self.writer.read_live(Kind::Process, key)).await;
        match read.unwrap_or_else(|_| Err("no answer in time".into())) {
            Ok(true) => {
                count("found");
                Some(true)
            }
            Ok(false) => {
                count("gone");
                self.misses.insert(key.clone(), ());
                Some(false)
            }
            Err(error) => {
                count("error");
                tracing::debug!(device, error, "live read failed");
                None
            }
        }
    }

    /// Waits for leave to read; false when it would come too late.
    async fn may_verify(&self, until: Instant) -> bool {
        loop {
            let Err(wait) = self.verifying_reads.lock().take(self.now_ms()) else { return true };
            let wait = Duration::from_millis(wait);
            if Instant::now() + wait >= until {
                return false;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Reads objects live, so that the index is no older than this; false when that could not be done.
    async fn verify(&self, keys: &[Key], deadline: Instant) -> bool {
        let count = |result: &str| self.metrics.verifying_reads.with_label_values(&[result]).inc();
        let until = deadline.min(Instant::now() + VERIFY_DEADLINE);
        for key in keys {
            if !self.may_verify(until).await {
                count("limited");
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            if !matches!(timeout(left, self.writer.read_live(Kind::Process, key)).await, Ok(Ok(_))) {
                count("error");
                return false;
            }
            count("ok");
        }
        true
    }

    fn later(&self) -> Outcome {
        Outcome::Later { retry_after_seconds: rand::rng().random_range(2..=self.writer.patience_seconds()) }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
