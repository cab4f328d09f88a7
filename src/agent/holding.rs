//! Pure: what the device should run, and which answers may change that.
//!
//! Everything is held until a good answer says otherwise. An answer is *old* when
//!
//! - its revision is lower than the highest one seen, or
//! - it is a 503 with `Retry-After: 1` to a request that named a revision (how a gateway says that its watch is
//!   behind that revision), or
//! - it lists a process at a lower generation than the one that is held, or confirms such a list (304).
//!
//! Old answers take nothing away. When a cluster was restored from a backup, though, every answer is old, for
//! ever. So after ten minutes in which old answers came, without a long silence between them, and not a single current
//! one, the agent asks without naming a revision or an entity tag, and what the cluster then says is taken as it
//! is. Other errors say nothing about age: they neither bring this nearer nor prevent it.

use super::cadence::{DEFAULT_HEARTBEAT, heartbeat};
use crate::wire::desired::{DesiredItem, DesiredState};
use crate::wire::report::Observation;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long old answers alone must have come before the cluster's word is taken.
pub const DOUBT: Duration = Duration::from_secs(600);
/// Longest silence between two old answers that still counts as one doubt, unless failures back off for longer.
const DOUBT_GAP: Duration = Duration::from_secs(120);
/// How long a process that was dropped must be listed again before it is taken up.
pub const RETURN_AFTER: Duration = Duration::from_secs(60);
/// How long dropped processes are remembered, seconds of the wall clock, and how many.
const REMEMBER_SECONDS: i64 = 24 * 3600;
const REMEMBER_AT_MOST: usize = 1024;

/// A process that was dropped, known by its uid alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// `metadata.uid` of the DeviceProcess.
    pub uid: String,
    /// When it was dropped, seconds since 1970 by the device's wall clock; only for forgetting it one day.
    pub at: i64,
}

/// What survives a restart of the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record<'a> {
    /// The device that this is about.
    pub device_name: Cow<'a, str>,
    /// The entity tag for which `items` is the whole answer; absent when it would not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<Cow<'a, str>>,
    /// The highest revision seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// How often the gateway wants reports, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval_seconds: Option<u64>,
    /// What is held.
    pub items: Cow<'a, [DesiredItem]>,
    /// What was dropped lately.
    #[serde(default)]
    pub dropped: Cow<'a, [Dropped]>,
}

/// The conditions of a GET.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// Value for `If-None-Match`.
    pub etag: Option<String>,
    /// Value for `X-Praetor-Min-Revision`.
    pub min_revision: Option<u64>,
}

/// An answer to a GET that is about desired state; any other answer changes nothing and is not shown here.
#[derive(Debug, Clone)]
pub enum Answer {
    /// 200
    Desired {
        /// `ETag`
        etag: Option<String>,
        /// `X-Praetor-Revision`
        revision: Option<u64>,
        /// The body.
        state: DesiredState,
    },
    /// 304
    NotModified {
        /// `X-Praetor-Revision`
        revision: Option<u64>,
    },
    /// 503 with `Retry-After: 1`
    Behind,
}

/// What became of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was taken over and differs from what was known before.
    Changed(Vec<Change>),
    /// It is what was known before.
    Unchanged,
    /// It is from the past; nothing was taken over.
    Old,
    /// It makes no sense; nothing was taken over.
    Refused(&'static str),
}

/// One difference between an answer and what was held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What kind of difference.
    pub kind: ChangeKind,
    /// Namespace of the DeviceProcess.
    pub namespace: String,
    /// Name of the DeviceProcess.
    pub name: String,
    /// Generation in the answer, or the held one if it is gone.
    pub generation: i64,
    /// Hash of the spec of that generation.
    pub spec_hash: String,
}

/// Kinds of differences between an answer and what was held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is held from now on.
    Wanted,
    /// It is held with another spec or generation.
    Updated,
    /// It is held no more.
    Dropped,
    /// It was dropped and is listed again; it is taken up if it stays listed.
    Returning,
    /// The answer's generation is lower than the held one, which stays.
    Older,
}

/// Old answers without a current one between them.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    since: Instant,
    last: Instant,
}

/// What the device should run, as far as the agent knows.
#[derive(Debug)]
pub struct Holding {
    device: String,
    etag: Option<String>,
    revision: Option<u64>,
    heartbeat_seconds: Option<u64>,
    items: Vec<DesiredItem>,
    dropped: Vec<Dropped>,
    /// Listed again after having been dropped, and since when.
    returning: Vec<(DesiredItem, Instant)>,
    /// The entity tag stands for a list with lower generations than the held ones.
    listed_older: bool,
    doubt: Option<Doubt>,
    /// The request under way asks for the cluster's word.
    afresh: bool,
}

// === impl Holding ===

impl Holding {
    /// Holds nothing yet.
    #[must_use]
    pub fn new(device: &str) -> Self {
        Self {
            device: device.to_owned(),
            etag: None,
            revision: None,
            heartbeat_seconds: None,
            items: Vec::new(),
            dropped: Vec::new(),
            returning: Vec::new(),
            listed_older: false,
            doubt: None,
            afresh: false,
        }
    }

    /// Goes on from what a former start of the agent held.
    #[must_use]
    pub fn restore(record: Record<'_>) -> Self {
        Self {
            etag: record.etag.map(Cow::into_owned),
            revision: record.revision,
            heartbeat_seconds: record.heartbeat_interval_seconds,
            items: record.items.into_owned(),
            dropped: record.dropped.into_owned(),
            ..Self::new(&record.device_name)
        }
    }

    /// What must survive a restart.
    #[must_use]
    pub fn record(&self) -> Record<'_> {
        // A restart forgets what else the tag stands for, so then the list must come anew.
        let whole = !self.listed_older && self.returning.is_empty();
        Record {
            device_name: Cow::Borrowed(&self.device),
            etag: self.etag.as_deref().filter(|_| whole).map(Cow::Borrowed),
            revision: self.revision,
            heartbeat_interval_seconds: self.heartbeat_seconds,
            items: Cow::Borrowed(&self.items),
            dropped: Cow::Borrowed(&self.dropped),
        }
    }

    /// What is held, in the order of the last list.
    #[must_use]
    pub fn items(&self) -> &[DesiredItem] {
        &self.items
    }

    /// Uids of what was dropped lately.
    pub fn dropped(&self) -> impl Iterator<Item = &str> {
        self.dropped.iter().map(|dropped| dropped.uid.as_str())
    }

    /// The highest revision seen.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// The interval between reports.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat_seconds.map_or(DEFAULT_HEARTBEAT, heartbeat)
    }

    /// What the agent can truthfully say about every process that it holds: which spec it has seen.
    pub fn observations(&self) -> impl Iterator<Item = Observation<'_>> {
        self.items.iter().map(|item| Observation {
            namespace: Some(item.namespace.as_str().into()),
            name: Some(item.name.as_str().into()),
            observed_spec_hash: Some(item.spec_hash.as_str().into()),
            ..Observation::default()
        })
    }

    /// The conditions of the GET that is sent now; its answer goes to [`Holding::received`].
    pub fn question(&mut self, now: Instant) -> Question {
        self.afresh = self.doubt.is_some_and(|doubt| {
            doubt.last.saturating_duration_since(doubt.since) >= DOUBT
                && now.saturating_duration_since(doubt.last) <= self.doubt_gap()
        });
        if self.afresh {
            Question::default()
        } else {
            Question { etag: self.etag.clone(), min_revision: self.revision }
        }
    }

    /// Whether the request under way asks for the cluster's word, whatever was known before.
    #[must_use]
    pub fn asks_afresh(&self) -> bool {
        self.afresh
    }

    /// Judges the answer to the last [`Holding::question`] and takes over what may be taken over.
    /// `unix_seconds` is the device's wall clock.
    pub fn received(&mut self, now: Instant, unix_seconds: i64, answer: Answer) -> Verdict {
        match answer {
            Answer::Behind => {
                if !self.afresh && self.revision.is_some() {
                    self.old_answer(now);
                }
                Verdict::Old
            }
            Answer::NotModified { .. } if self.afresh || self.etag.is_none() => {
                Verdict::Refused("304 to a request without If-None-Match")
            }
            Answer::NotModified { revision } | Answer::Desired { revision, .. }
                if !self.afresh && revision.is_some_and(|r| Some(r) < self.revision) =>
            {
                self.old_answer(now);
                Verdict::Old
            }
            Answer::NotModified { revision } => {
                self.revision = revision.or(self.revision);
                if self.listed_older {
                    self.old_answer(now)
                } else {
                    self.doubt = None
                }
                let taken_up = self.take_up(now);
                if taken_up.is_empty() { Verdict::Unchanged } else { Verdict::Changed(taken_up) }
            }
            Answer::Desired { etag, revision, state } => match self.refusal(&state) {
                Some(why) => Verdict::Refused(why),
                None => self.take_over(now, unix_seconds, etag, revision, state),
            },
        }
    }

    fn refusal(&self, state: &DesiredState) -> Option<&'static str> {
        if state.device_name != self.device {
            return Some("an answer about another device");
        }
        let mut uids = HashSet::new();
        let sound = state
            .items
            .iter()
            .all(|i| !i.namespace.is_empty() && !i.name.is_empty() && !i.uid.is_empty() && uids.insert(&i.uid));
        (!sound).then_some("a list with a process twice or without a name")
    }

    fn old_answer(&mut self, now: Instant) {
        self.doubt = match self.doubt {
            Some(doubt) if now.saturating_duration_since(doubt.last) <= self.doubt_gap() => {
                Some(Doubt { last: now, ..doubt })
            }
            _ => Some(Doubt { since: now, last: now }),
        };
    }

    fn doubt_gap(&self) -> Duration {
        DOUBT_GAP.max(self.heartbeat() * 2)
    }

    fn take_over(
        &mut self,
        now: Instant,
        unix_seconds: i64,
        etag: Option<String>,
        revision: Option<u64>,
        state: DesiredState,
    ) -> Verdict {
        let mut changes = Vec::new();
        let mut held: HashMap<String, DesiredItem> = self.items.drain(..).map(|i| (i.uid.clone(), i)).collect();
        let mut returning: HashMap<String, Instant> =
            self.returning.drain(..).map(|(i, since)| (i.uid, since)).collect();
        let dropped: HashSet<&str> = self.dropped.iter().map(|d| d.uid.as_str()).collect();
        let mut listed_older = false;
        for item in state.items {
            match held.remove(&item.uid) {
                Some(mine) if item.generation < mine.generation && !self.afresh => {
                    listed_older = true;
                    changes.push(Change::of(ChangeKind::Older, &item));
                    self.items.push(mine);
                }
                Some(mine) => {
                    if (item.generation, &item.spec_hash) != (mine.generation, &mine.spec_hash) {
                        changes.push(Change::of(ChangeKind::Updated, &item));
                    }
                    self.items.push(item);
                }
                None if dropped.contains(item.uid.as_str()) => {
                    let since = returning.remove(&item.uid).unwrap_or_else(|| {
                        changes.push(Change::of(ChangeKind::Returning, &item));
                        now
                    });
                    self.returning.push((item, since));
                }
                None => {
                    changes.push(Change::of(ChangeKind::Wanted, &item));
                    self.items.push(item);
                }
            }
        }
        for (uid, item) in held {
            changes.push(Change::of(ChangeKind::Dropped, &item));
            self.dropped.push(Dropped { uid, at: unix_seconds });
        }
        self.forget_dropped(unix_seconds);
        let taken_up = self.take_up(now);
        let same =
            changes.is_empty() && taken_up.is_empty() && returning.is_empty() && self.etag == etag && etag.is_some();
        changes.extend(taken_up);
        self.etag = etag;
        self.revision = if self.afresh { revision } else { revision.or(self.revision) };
        self.listed_older = listed_older;
        self.heartbeat_seconds = Some(state.heartbeat_interval_seconds);
        self.afresh = false;
        if listed_older {
            self.old_answer(now)
        } else {
            self.doubt = None
        }
        if same { Verdict::Unchanged } else { Verdict::Changed(changes) }
    }

    /// Takes up what has stayed listed long enough. Only called on an answer that confirms the list.
    fn take_up(&mut self, now: Instant) -> Vec<Change> {
        let ripe = |since: &Instant| now.saturating_duration_since(*since) >= RETURN_AFTER;
        let (up, wait): (Vec<_>, Vec<_>) = self.returning.drain(..).partition(|(_, since)| ripe(since));
        self.returning = wait;
        let changes = up.iter().map(|(item, _)| Change::of(ChangeKind::Wanted, item)).collect();
        for (item, _) in up {
            self.dropped.retain(|d| d.uid != item.uid);
            self.items.push(item);
        }
        changes
    }

    fn forget_dropped(&mut self, unix_seconds: i64) {
        // A time in the future was written by a clock that was wrong then or is wrong now: start again.
        for dropped in &mut self.dropped {
            dropped.at = dropped.at.min(unix_seconds);
        }
        let returning: HashSet<&str> = self.returning.iter().map(|(i, _)| i.uid.as_str()).collect();
        self.dropped.retain(|d| unix_seconds - d.at <= REMEMBER_SECONDS || returning.contains(d.uid.as_str()));
        let excess = self.dropped.len().saturating_sub(REMEMBER_AT_MOST);
        self.dropped.drain(..excess);
    }
}

// === impl Change ===

impl Change {
    fn of(kind: ChangeKind, item: &DesiredItem) -> Self {
        Self {
            kind,
            namespace: item.namespace.clone(),
            name: item.name.clone(),
            generation: item.generation,
            spec_hash: item.spec_hash.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
