//! Pure: which replicas are alive, from what successive lists of their Leases show.
//!
//! A member is alive when its Lease changed within the last 15 seconds *of this replica's clock*; what others wrote
//! as a time is never looked at. A list that failed says nothing about others: time without lists does not count
//! against them.

use super::rendezvous::{choose, member_hash, weight};
use core::net::SocketAddr;
use siphasher::sip::SipHasher24;
use std::collections::HashMap;
use std::sync::Arc;

/// The version of what replicas say to each other and of how they share the devices out.
pub const PROTOCOL: u32 = 1;
/// A member whose Lease does not change for so long, on the clock of whoever looks, is dead.
pub const DEAD_AFTER_MS: u64 = 15_000;
/// How often members are listed.
pub const LIST_EVERY_MS: u64 = 1_500;
/// Lists that are further apart than this leave a gap in which nobody was watched.
const GAP_MS: u64 = 3 * LIST_EVERY_MS;
/// A Lease that does not change for so long is litter.
const LITTER_AFTER_MS: u64 = 300_000;

/// One replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name, unique among live replicas.
    pub identity: Arc<str>,
    /// Random at each start of its process; never 0.
    pub incarnation: u64,
    /// Where it hears its peers; none when it talks to nobody.
    pub address: Option<SocketAddr>,
    /// [`member_hash`] of its identity.
    pub hash: u64,
    /// Its [`PROTOCOL`].
    pub protocol: u32,
}

/// Who is there, as one replica sees it. Never changes; a new one takes its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Grows with each view of this process.
    pub epoch: u64,
    /// Live members, sorted by identity.
    pub members: Arc<[Member]>,
    /// The position of this replica; none when it has not joined (yet, or any more).
    pub me: Option<usize>,
    /// Equal wherever the same incarnations of the same members are seen.
    pub fingerprint: u64,
}

/// Who works for a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner<'a> {
    /// This replica.
    Me,
    /// Another one.
    Peer(&'a Member),
}

/// A member's Lease in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The name of the Lease.
    pub name: Arc<str>,
    /// Its uid.
    pub uid: Arc<str>,
    /// Its resourceVersion.
    pub version: u64,
    /// Who it stands for.
    pub member: Member,
}

#[derive(Debug)]
struct Seen {
    sighting: Sighting,
    /// Since when this version is known, less the gaps between lists.
    since_ms: u64,
    /// Whether it changed after it was first seen: only somebody who lives does that.
    moved: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Members {
    me: Member,
    seen: HashMap<Arc<str>, Seen>,
    listed_ms: Option<u64>,
    /// When the last write of the own Lease that succeeded was sent; none before joining and after leaving.
    renewed_ms: Option<u64>,
    /// Lists in a row that lacked the own Lease; one may have been answered before it was written.
    missing: u32,
    view: Arc<View>,
}

// === impl Member ===

impl Member {
    /// A member of today's protocol.
    #[must_use]
    pub fn new(identity: &str, incarnation: u64, address: Option<SocketAddr>) -> Self {
        Self { identity: identity.into(), incarnation, address, hash: member_hash(identity), protocol: PROTOCOL }
    }
}

// === impl View ===

impl View {
    /// A view of some members, in any order; `me` is who looks.
    #[must_use]
    pub fn new(epoch: u64, mut members: Vec<Member>, me: &str) -> Self {
        members.sort_unstable_by(|a, b| a.identity.cmp(&b.identity));
        members.dedup_by(|a, b| a.identity == b.identity);
        let mut said = Vec::new();
        for member in &members {
            said.extend_from_slice(member.identity.as_bytes());
            said.push(0);
            said.extend_from_slice(&member.incarnation.to_le_bytes());
        }
        let fingerprint = SipHasher24::new_with_key(b"praetor-view-001").hash(&said);
        let me = members.binary_search_by(|member| (*member.identity).cmp(me)).ok();
        Self { epoch, members: members.into(), me, fingerprint }
    }

    /// A view in which there is nobody else, ever.
    #[must_use]
    pub fn alone(identity: &str) -> Self {
        Self::new(1, vec![Member::new(identity, 1, None)], identity)
    }

    /// Who works for a device, by its [`super::rendezvous::device_hash`]. When nobody is there it is this replica;
    /// when others are and this one is not, it is one of them.
    #[must_use]
    pub fn owner(&self, device: u64) -> Owner<'_> {
        match choose(&self.members, device) {
            Some(position) if self.me != Some(position) => Owner::Peer(&self.members[position]),
            _ => Owner::Me,
        }
    }

    /// Whether this replica works for a device.
    #[must_use]
    pub fn is_mine(&self, device: u64) -> bool {
        self.owner(device) == Owner::Me
    }

    /// The members other than this replica.
    pub fn peers(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().enumerate().filter(|(position, _)| self.me != Some(*position)).map(|(_, member)| member)
    }

    /// The member of a name.
    #[must_use]
    pub fn member(&self, identity: &str) -> Option<&Member> {
        let position = self.members.binary_search_by(|member| (*member.identity).cmp(identity)).ok()?;
        self.members.get(position)
    }

    /// All members with their weights for a device, the owner first.
    #[must_use]
    pub fn why(&self, device: u64) -> Vec<(Arc<str>, u64)> {
        let mut weights: Vec<_> =
            self.members.iter().map(|member| (member.identity.clone(), weight(member.hash, device))).collect();
        // Stable: the order of members decides between equals.
        weights.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
        weights
    }
}

// === impl Members ===

impl Members {
    /// Nobody is known yet, and this replica, `me`, has not joined.
    #[must_use]
    pub fn new(me: Member) -> Self {
        let view = Arc::new(View::new(0, Vec::new(), &me.identity));
        Self { me, seen: HashMap::new(), listed_ms: None, renewed_ms: None, missing: 0, view }
    }

    /// Takes in a complete list of member Leases.
    pub fn listed(&mut self, leases: impl IntoIterator<Item = Sighting>, now_ms: u64) {
        let gap = self.listed_ms.map_or(0, |before| now_ms.saturating_sub(before));
        let unwatched = if gap > GAP_MS { gap - LIST_EVERY_MS } else { 0 };
        self.listed_ms = Some(now_ms);
        let mut before = std::mem::take(&mut self.seen);
        self.missing = self.missing.saturating_add(1);
        for sighting in leases {
            if sighting.member.identity == self.me.identity {
                if sighting.member.incarnation == self.me.incarnation {
                    self.missing = 0;
                }
                continue;
            }
            let (since_ms, moved) = match before.remove(&sighting.name) {
                None => (now_ms, false),
                Some(seen) if seen.sighting.uid == sighting.uid && seen.sighting.version == sighting.version => {
                    ((seen.since_ms + unwatched).min(now_ms), seen.moved)
                }
                Some(_) => (now_ms, true),
            };
            self.seen.insert(sighting.name.clone(), Seen { sighting, since_ms, moved });
        }
    }

    /// The own Lease was written; the request was sent at `sent_ms`.
    pub fn renewed(&mut self, sent_ms: u64) {
        self.renewed_ms = Some(self.renewed_ms.map_or(sent_ms, |before| before.max(sent_ms)));
        self.missing = 0;
    }

    /// The own Lease is gone, or soon will be.
    pub fn gone(&mut self) {
        self.renewed_ms = None;
    }

    /// Who is there now: the view that was, or one of the next epoch. Of epoch 0, and empty, before the first list.
    pub fn view(&mut self, now_ms: u64) -> Arc<View> {
        if self.listed_ms.is_none() {
            return self.view.clone();
        }
        let mut members: Vec<Member> =
            self.seen.values().filter(|seen| self.alive(seen)).map(|seen| seen.sighting.member.clone()).collect();
        if self.missing < 2 && self.renewed_within(DEAD_AFTER_MS, now_ms) {
            members.push(self.me.clone());
        }
        let view = View::new(self.view.epoch + 1, members, &self.me.identity);
        if view.members != self.view.members || view.me != self.view.me || view.epoch == 1 {
            self.view = Arc::new(view);
        }
        self.view.clone()
    }

    /// Whether the own Lease was written with a request that was sent so recently.
    #[must_use]
    pub fn renewed_within(&self, span_ms: u64, now_ms: u64) -> bool {
        self.renewed_ms.is_some_and(|sent| now_ms.saturating_sub(sent) < span_ms)
    }

    /// When the last complete list came.
    #[must_use]
    pub fn listed_ms(&self) -> Option<u64> {
        self.listed_ms
    }

    /// Whether there are Leases of others, alive or not.
    #[must_use]
    pub fn knows_others(&self) -> bool {
        !self.seen.is_empty()
    }

    /// Another replica that certainly lives: its Lease was seen to change.
    #[must_use]
    pub fn certainly_live(&self) -> Option<&Member> {
        let live = self.seen.values().filter(|seen| seen.moved && self.alive(seen)).map(|seen| &seen.sighting.member);
        live.min_by(|a, b| a.identity.cmp(&b.identity))
    }

    /// Leases that nobody has renewed for five minutes of watching.
    #[must_use]
    pub fn litter(&self) -> Vec<Sighting> {
        let left = |seen: &&Seen| self.unchanged_ms(seen) >= LITTER_AFTER_MS;
        self.seen.values().filter(left).map(|seen| seen.sighting.clone()).collect()
    }

    fn alive(&self, seen: &Seen) -> bool {
        self.unchanged_ms(seen) < DEAD_AFTER_MS
    }

    /// Up to the last list and not to now: later nobody has looked.
    fn unchanged_ms(&self, seen: &Seen) -> u64 {
        self.listed_ms.unwrap_or(0).saturating_sub(seen.since_ms)
    }
}

#[cfg(test)]
#[path = "members_tests.rs"]
mod tests;
