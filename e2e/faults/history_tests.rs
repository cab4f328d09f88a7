//! A checker that finds nothing proves nothing: here every rule is broken once, and each must be found, alone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::history::{Event, Rules, Story, Version, Violation, check};
use crate::harness::{Ack, Attempt, Kind, Said, Silence};

const WINDOW: u64 = 6_000;

/// Tells stories of one device `tor` with a process `ns/p` of uid `u`; times are milliseconds since the begin.
struct Teller {
    zero: Instant,
    story: Story,
}

impl Teller {
    /// A minute in which nothing is wrong: created, connected with content 1, heard every second.
    fn quiet() -> Self {
        let mut teller = Self { zero: Instant::now(), story: Story::default() };
        teller.version(0, |_| {});
        teller.version(1_000, |v| (v.connected, v.content, v.transitions) = (Some(true), Some(1), 1));
        teller.last().reasons = vec!["AgentConnected".into()];
        teller.event("AgentConnected");
        teller.heard(900..60_000);
        teller.ack(1_050, 1);
        teller
    }

    fn at(&self, ms: u64) -> Instant {
        self.zero + Duration::from_millis(ms)
    }

    fn last(&mut self) -> &mut Version {
        self.story.versions.last_mut().unwrap()
    }

    /// The next version of the process: the last one, changed.
    fn version(&mut self, ms: u64, change: impl FnOnce(&mut Version)) {
        let first = Version {
            at: self.zero,
            kind: Kind::Process,
            uid: "u".into(),
            name: "ns/p".into(),
            device: "tor".into(),
            owner: "d".into(),
            deleted: false,
            initial: false,
            connected: None,
            content: None,
            transitions: 0,
            reasons: Vec::new(),
            conditions: BTreeSet::new(),
            substance: String::new(),
        };
        let before = self.story.versions.iter().rev().find(|v| &*v.uid == "u");
        let mut version = before.cloned().unwrap_or(first);
        version.at = self.at(ms);
        change(&mut version);
        let told = (version.connected, version.content, version.deleted, &version.conditions);
        version.substance = format!("{told:?}");
        self.story.versions.push(version);
    }

    /// A change of AgentConnected as it should be, with its event.
    fn verdict(&mut self, ms: u64, connected: bool) {
        let reason = if connected { "AgentConnected" } else { "AgentDisconnected" };
        self.version(ms, |v| {
            (v.connected, v.transitions, v.reasons) = (Some(connected), v.transitions + 1, vec![reason.into()]);
        });
        self.event(reason);
    }

    fn event(&mut self, reason: &str) {
        self.story.events.push(Event { uid: "u".into(), reason: reason.into() });
    }

    /// A report every second, answered 200 after 50 ms.
    fn heard(&mut self, span: std::ops::Range<u64>) {
        for ms in span.step_by(1_000) {
            let attempt = Attempt {
                device: "tor".into(),
                gate: "a".into(),
                report: true,
                sent: self.at(ms),
                ended: self.at(ms + 50),
                status: 200,
                retry_after: None,
            };
            self.story.attempts.push(attempt);
        }
    }

    fn ack(&mut self, ms: u64, content: u64) {
        let (sent, at) = (self.at(ms - 50), self.at(ms));
        self.story.acks.push(Ack { device: "tor".into(), process: "ns/p".into(), content, sent, at });
    }

    fn silent(&mut self, from: u64, until: Option<u64>) {
        let (from, until) = (self.at(from), until.map(|ms| self.at(ms)));
        self.story.attempts.retain(|a| a.sent < from || until.is_some_and(|until| a.sent >= until));
        self.story.silences.push(Silence { device: "tor".into(), from, until });
    }

    fn check(&self) -> Vec<Violation> {
        let rules = Rules {
            window: Duration::from_millis(WINDOW),
            verdict: Duration::from_secs(10),
            lag: Duration::from_secs(1),
            ack_lag: Duration::from_secs(1),
            end: self.at(60_000),
        };
        check(&self.story, &rules)
    }

    #[track_caller]
    fn finds(&self, kind: &str) {
        let found = self.check();
        assert!(
            found.len() == 1 && found[0].to_string().starts_with(kind),
            "{kind} should be found, and it alone: {found:?}"
        );
    }
}

#[test]
fn a_good_story_is_a_good_story() {
    let mut teller = Teller::quiet();
    assert_eq!(teller.check(), []);
    // A content, an illness, a death in its window, a return.
    teller.version(5_000, |v| v.content = Some(2));
    teller.ack(5_020, 2);
    teller.silent(10_000, Some(40_000));
    teller.verdict(17_000, false);
    teller.verdict(40_500, true);
    assert_eq!(teller.check(), []);
    // A short silence, too short for a verdict; and one that is not over yet.
    teller.silent(45_000, Some(50_000));
    teller.silent(55_000, None);
    assert_eq!(teller.check(), []);
    let delays = |teller: &Teller, from, until| -> Vec<_> {
        teller.story.delays(teller.at(from), teller.at(until)).into_iter().map(|(_, delay)| delay).collect()
    };
    for (content, ms) in [(2, 4_000), (3, 59_000)] {
        let at = teller.at(ms);
        teller.story.said.push(Said { process: "ns/p".into(), content, at });
    }
    assert_eq!(delays(&teller, 0, 60_000), [Some(Duration::from_secs(1)), None]);
    assert_eq!(delays(&teller, 5_000, 58_000), []);
}

#[test]
fn a_false_verdict() {
    let mut teller = Teller::quiet();
    teller.verdict(30_000, false);
    teller.verdict(30_200, true);
    teller.finds("FalseDisconnect");
    // Also when it was heard long ago, but within the window.
    let mut teller = Teller::quiet();
    teller.silent(26_000, Some(31_500));
    teller.verdict(31_000, false);
    teller.verdict(31_600, true);
    teller.finds("FalseDisconnect");
    // Exactly then it comes back: nobody can tell which was first.
    let mut teller = Teller::quiet();
    teller.silent(24_000, Some(30_800));
    teller.verdict(31_000, false);
    teller.verdict(31_600, true);
    assert_eq!(teller.check(), []);
}

#[test]
fn a_missing_verdict() {
    let mut teller = Teller::quiet();
    teller.silent(20_000, None);
    teller.finds("NoVerdict");
    // Or one that comes too late.
    teller.verdict(40_000, false);
    teller.finds("NoVerdict");
}

#[test]
fn a_return_that_is_not_written() {
    let mut teller = Teller::quiet();
    teller.silent(20_000, Some(40_000));
    teller.verdict(27_000, false);
    teller.finds("StaysDisconnected");
    teller.verdict(50_000, true);
    teller.finds("StaysDisconnected");
}

#[test]
fn events_that_are_missing_or_come_twice() {
    let mut teller = Teller::quiet();
    teller.event("AgentConnected");
    teller.finds("EventCount");
    let mut teller = Teller::quiet();
    teller.story.events.clear();
    teller.finds("EventCount");
    let mut teller = Teller::quiet();
    teller.event("Unhealthy");
    teller.finds("EventCount");
    // A transition that was never counted.
    let mut teller = Teller::quiet();
    teller.silent(20_000, Some(40_000));
    teller.version(27_000, |v| v.connected = Some(false));
    teller.verdict(40_100, true);
    teller.finds("TransitionWithoutEvent");
    for condition in ["ProcessStarted", "SpecWarning"] {
        let mut teller = Teller::quiet();
        teller.version(20_000, |v| _ = v.conditions.insert(condition.into()));
        teller.finds("TransitionWithoutEvent");
    }
    let mut teller = Teller::quiet();
    teller.version(20_000, |v| _ = v.conditions.insert("Healthy".into()));
    assert_eq!(teller.check(), []);
    teller.version(21_000, |v| _ = v.conditions.remove("Healthy"));
    teller.finds("TransitionWithoutEvent");
    // A gap in the recording: more events than transitions were seen, never fewer.
    let mut teller = Teller::quiet();
    teller.version(20_000, |v| (v.content, v.transitions, v.reasons) = (Some(7), 4, vec!["Unhealthy".into()]));
    for reason in ["Unhealthy", "AgentDisconnected", "AgentConnected"] {
        teller.event(reason);
    }
    assert_eq!(teller.check(), []);
    teller.story.events.remove(1);
    teller.finds("EventCount");
}

#[test]
fn acknowledgements_that_were_not_true() {
    // Lost for good.
    let mut teller = Teller::quiet();
    teller.ack(20_000, 2);
    let found = teller.check();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(matches!(found[0], Violation::AckNotWritten { content: 2, .. }));
    assert!(matches!(found[1], Violation::AckLost { acked: 2, last: Some(1), .. }));
    // Written later than acknowledged.
    teller.version(22_000, |v| v.content = Some(2));
    teller.finds("AckNotWritten");
    // Something later is as good, and repeats of an acknowledgement are one fault.
    let mut teller = Teller::quiet();
    teller.version(20_500, |v| v.content = Some(3));
    teller.ack(20_000, 2);
    assert_eq!(teller.check(), []);
    teller.ack(30_000, 4);
    teller.ack(31_000, 4);
    teller.version(33_000, |v| v.content = Some(4));
    teller.finds("AckNotWritten");
    // An object that is gone has nothing to show.
    let mut teller = Teller::quiet();
    teller.version(40_000, |v| v.deleted = true);
    teller.finds("WronglyDeleted");
    teller.story.removed.push("ns/p".into());
    assert_eq!(teller.check(), []);
}

#[test]
fn a_status_that_goes_back() {
    let mut teller = Teller::quiet();
    teller.version(20_000, |v| v.content = Some(5));
    teller.version(21_000, |v| v.content = Some(4));
    teller.version(22_000, |v| v.content = Some(5));
    teller.finds("WentBack");
    let mut teller = Teller::quiet();
    teller.version(20_000, |v| v.content = None);
    teller.version(21_000, |v| v.content = Some(1));
    teller.finds("WentBack");
}

#[test]
fn children_twice_or_gone() {
    let sibling = |uid: &str, owner: &str, device: &str| {
        let mut teller = Teller::quiet();
        let mut other = teller.story.versions[0].clone();
        (other.uid, other.owner, other.device) = (uid.into(), owner.into(), device.into());
        (other.name, other.at) = ("ns/q".into(), teller.at(20_000));
        teller.story.versions.push(other);
        teller
    };
    sibling("v", "d", "tor").finds("ChildTwice");
    // Of another deployment, of none, or of another device: all is well.
    for (owner, device) in [("e", "tor"), ("", "tor"), ("d", "other")] {
        assert_eq!(sibling("v", owner, device).check(), []);
    }
    // One that is made anew after the first has gone is no second one, but nobody wanted the first away.
    let mut teller = Teller::quiet();
    teller.version(19_000, |v| v.deleted = true);
    let mut anew = teller.story.versions[0].clone();
    (anew.uid, anew.at, anew.content) = ("v".into(), teller.at(20_000), Some(1));
    teller.story.versions.push(anew);
    teller.finds("WronglyDeleted");
}

#[test]
fn a_write_that_nothing_explains() {
    let mut teller = Teller::quiet();
    teller.version(20_000, |_| {});
    teller.finds("NeedlessWrite");
}

#[test]
fn what_devices_complain_of() {
    let mut teller = Teller::quiet();
    teller.story.complaints.push("tor: desired: 404".into());
    teller.finds("Complaint");
}
