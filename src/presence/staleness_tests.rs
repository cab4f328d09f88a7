//! Pure: tests of the module of this name.

use super::*;
use crate::presence::table::{Heard, Table, Taken};
use proptest::prelude::*;

const WINDOW: u64 = 45_000;
const START: u64 = 1 << 33;
const A: u64 = 0xa;
const B: u64 = 0xb;

fn with(peers: &[u64]) -> Doubt {
    Doubt { peers: peers.to_vec(), ..Doubt::default() }
}

/// Attentive from the start on, with others that send each second what they had heard a second before.
fn ticking(peers: &[u64], until_ms: u64) -> Observer {
    let mut observer = Observer::new(WINDOW, START);
    go_on(&mut observer, peers, 0, until_ms);
    observer
}

fn go_on(observer: &mut Observer, peers: &[u64], from_ms: u64, until_ms: u64) {
    for now in (START + from_ms..=START + until_ms).step_by(1_000) {
        for peer in peers {
            observer.witness(*peer, now - 1_000, now, None);
        }
        observer.observe(&with(peers), now);
        assert_eq!(observer.tick(now, Some(now + 5), 1_000), None);
    }
}

fn judge(observer: &Observer, contact: Option<Contact>, now_ms: u64) -> Result<AgentState, Held> {
    observer.outlook(START + now_ms, None).judge(contact)
}

fn direct(at_ms: u64) -> Option<Contact> {
    Some(Contact { heard_ms: START + at_ms, sure_ms: START + at_ms, direct: true })
}

fn told(sure_ms: u64, heard_ms: u64) -> Option<Contact> {
    Some(Contact { heard_ms: START + heard_ms, sure_ms: START + sure_ms, direct: false })
}

#[test]
fn not_before_the_window_and_at_once_after_it() {
    let observer = ticking(&[], 100_000);
    assert_eq!(judge(&observer, direct(60_000), 100_000), Ok(AgentState::Alive));
    assert_eq!(judge(&observer, direct(55_001), 100_000), Ok(AgentState::Alive));
    assert_eq!(judge(&observer, direct(55_000), 100_000), Ok(AgentState::Stale));
}

#[test]
fn with_others_silence_is_measured_to_the_oldest_horizon() {
    let mut observer = ticking(&[A, B], 100_000);
    // Both horizons are at 99 s.
    assert_eq!(judge(&observer, direct(55_000), 100_000), Err(Held::Peers));
    assert_eq!(judge(&observer, direct(54_000), 100_000), Ok(AgentState::Stale));
    // Only one of them goes on.
    for second in 101..=104 {
        observer.witness(A, START + second * 1_000, START + second * 1_000, None);
        observer.observe(&with(&[A, B]), START + second * 1_000);
        observer.tick(START + second * 1_000, None, 1_000);
    }
    assert_eq!(judge(&observer, direct(55_000), 104_000), Err(Held::Peers));
    assert_eq!(judge(&observer, direct(54_000), 104_000), Ok(AgentState::Stale));
    assert_eq!(judge(&observer, direct(54_000), 104_001), Err(Held::Peers), "older than 5 s");
    assert_eq!(judge(&observer, direct(59_001), 104_000), Ok(AgentState::Alive));
    assert_eq!(observer.hearing(START + 104_001, None), Hearing { peers: 2, heard: 1, oldest_ms: 5_001 });
    // It is heard again.
    observer.witness(B, START + 104_000, START + 104_500, None);
    assert_eq!(judge(&observer, direct(58_000), 104_500), Ok(AgentState::Stale));
    // What comes late or twice moves nothing back.
    observer.witness(B, START + 90_000, START + 104_500, None);
    assert_eq!(judge(&observer, direct(58_000), 104_500), Ok(AgentState::Stale));
}

#[test]
fn whoever_heard_all_others_within_three_seconds_is_in_touch() {
    let hearing = Hearing { peers: 2, heard: 2, oldest_ms: 3_000 };
    assert!(hearing.is_in_touch(2) && hearing.is_in_touch(1));
    assert!(!hearing.is_in_touch(3), "one that the view has and the observer does not know yet");
    assert!(!Hearing { heard: 1, ..hearing }.is_in_touch(1));
    assert!(!Hearing { oldest_ms: 3_001, ..hearing }.is_in_touch(2));
}

/// The monotonic clock stands still meanwhile, so what was heard right before seems to be new.
#[test]
fn whoever_has_slept_is_in_touch_with_nobody() {
    let (now, boot) = (START + 100_000, 7_000_000);
    let mut observer = ticking(&[A], 100_000);
    observer.witness(A, now - 500, now, Some(boot));
    let touch = |observer: &Observer, later: u64, slept: u64| {
        observer.hearing(now + later, Some(boot + later + slept)).is_in_touch(1)
    };
    assert!(touch(&observer, 100, 0) && !touch(&observer, 100, 17_000) && !touch(&observer, 3_000, 0));
    // Not even a doze for which nobody is held back, and no longer than until it is heard again.
    assert!(touch(&observer, 100, 2_400) && !touch(&observer, 100, 2_401));
    observer.witness(A, now + 200, now + 300, Some(boot + 300 + 17_000));
    assert!(touch(&observer, 400, 17_000));
    assert!(!observer.hearing(now + 400, None).is_in_touch(1), "the clock cannot be read for once");
}

/// Jobs that were judged before a sleep are judged again right after it, perhaps before the next tick.
#[test]
fn whoever_wakes_up_judges_nobody_before_the_tick_that_sees_it() {
    let (now, boot) = (START + 100_000, 7_000_000);
    let mut observer = ticking(&[], 100_000);
    let judge =
        |observer: &Observer, slept: u64| observer.outlook(now + 500, Some(boot + 500 + slept)).judge(direct(40_000));
    observer.tick(now, Some(boot), 1_000);
    assert_eq!(judge(&observer, 0), Ok(AgentState::Stale));
    assert_eq!(judge(&observer, 3_600_000), Err(Held::Pause));
}

#[test]
fn life_is_judged_by_the_earliest_moment_and_death_by_the_latest() {
    let observer = ticking(&[A], 100_000);
    assert_eq!(judge(&observer, told(55_001, 56_000), 100_000), Ok(AgentState::Alive));
    assert_eq!(judge(&observer, told(53_000, 54_001), 100_000), Err(Held::Peers));
    assert_eq!(judge(&observer, told(53_000, 54_000), 100_000), Ok(AgentState::Stale));
}

#[test]
fn who_is_back_is_certain() {
    let observer = ticking(&[], 100_000);
    let is_back = |sure_ms, heard_ms| observer.outlook(START + 100_000, None).is_back(told(sure_ms, heard_ms).unwrap());
    assert!(is_back(99_000, 99_900) && is_back(78_000, 80_000));
    assert!(!is_back(99_001, 99_900), "its report is at work");
    assert!(!is_back(77_000, 99_900) && !is_back(56_000, 60_000));
}

#[test]
fn nobody_is_judged_for_one_window_after_the_start_unless_others_knew() {
    assert_eq!(judge(&ticking(&[], 44_000), None, 44_999), Err(Held::Start));
    assert_eq!(judge(&ticking(&[], 45_000), None, 45_000), Ok(AgentState::Stale));
    let observer = ticking(&[A], 3_000);
    assert_eq!(judge(&observer, None, 3_000), Err(Held::Start));
    assert_eq!(judge(&observer, direct(0), 3_000), Ok(AgentState::Alive));
    // Heard 44 s before the start, by somebody else.
    let long_ago = Some(Contact { heard_ms: START - 44_000, sure_ms: START - 45_000, direct: false });
    assert_eq!(judge(&observer, long_ago, 3_000), Ok(AgentState::Stale));
    assert_eq!(judge(&ticking(&[A, B], 0), long_ago, 2_000), Err(Held::Peers), "horizons from before the start");
}

#[test]
fn doubts_about_the_own_standing_hold_every_verdict_and_end_with_it() {
    let mut observer = Observer::new(WINDOW, START);
    assert_eq!(judge(&observer, None, 500), Err(Held::Start));
    go_on(&mut observer, &[], 0, 100_000);
    let now = START + 100_000;
    for (doubt, held) in [
        (Doubt { lease: true, ..Doubt::default() }, Held::Lease),
        (Doubt { apiserver: true, ..Doubt::default() }, Held::Apiserver),
        (Doubt { lease: true, apiserver: true, ..with(&[A]) }, Held::Lease),
        (with(&[A]), Held::Peers),
    ] {
        observer.observe(&doubt, now);
        assert_eq!(judge(&observer, direct(10_000), 100_000), Err(held));
        assert_eq!(judge(&observer, direct(60_000), 100_000), Ok(AgentState::Alive));
    }
    observer.witness(A, now, now, None);
    assert_eq!(judge(&observer, direct(10_000), 100_000), Ok(AgentState::Stale));
}

#[test]
fn after_a_pause_all_clocks_start_again() {
    let mut observer = ticking(&[], 100_000);
    // Stopped for a minute: whoever asks before the next tick gets no verdict either.
    assert_eq!(judge(&observer, direct(99_000), 160_000), Err(Held::Pause));
    assert_eq!(observer.tick(START + 160_000, Some(START + 160_005), 1_000), Some(59_000));
    assert_eq!(judge(&observer, direct(99_000), 160_500), Err(Held::Pause));
    // Asleep: the monotonic clock stood still, the boot clock did not.
    let mut observer = ticking(&[], 100_000);
    assert_eq!(observer.tick(START + 101_000, Some(START + 700_000), 1_000), Some(598_995));
}

#[test]
fn after_a_pause_others_who_listened_make_ages_right_again() {
    let mut observer = ticking(&[A], 100_000);
    assert!(observer.tick(START + 160_000, Some(START + 160_005), 1_000).is_some());
    // What came before the pause, and was only taken in after it, is no news.
    observer.witness(A, START + 101_000, START + 160_000, None);
    assert_eq!(judge(&observer, told(50_000, 51_000), 160_500), Err(Held::Pause));
    observer.witness(A, START + 160_400, START + 160_600, None);
    assert_eq!(judge(&observer, told(50_000, 51_000), 160_600), Ok(AgentState::Stale));
    assert_eq!(judge(&observer, told(118_000, 119_000), 160_600), Ok(AgentState::Alive));
    // A device that is used to talk to this replica could not.
    assert_eq!(judge(&observer, direct(99_000), 160_600), Err(Held::Pause));
    go_on(&mut observer, &[A], 161_000, 206_000);
    assert_eq!(judge(&observer, direct(99_000), 206_000), Ok(AgentState::Stale));
    // One that came after the pause cannot have listened.
    let mut observer = ticking(&[], 100_000);
    assert!(observer.tick(START + 160_000, Some(START + 160_005), 1_000).is_some());
    go_on(&mut observer, &[A], 161_000, 163_000);
    assert_eq!(judge(&observer, told(50_000, 51_000), 163_000), Err(Held::Pause));
}

#[test]
fn a_replica_that_is_killed_takes_its_knowledge_with_it() {
    let mut observer = ticking(&[A, B], 100_000);
    for now in (START + 101_000..=START + 116_000).step_by(1_000) {
        observer.witness(B, now, now, None);
        observer.observe(&with(&[A, B]), now);
        observer.tick(now, None, 1_000);
    }
    assert_eq!(judge(&observer, told(20_000, 21_000), 116_000), Err(Held::Peers));
    // It left the view at 117 s, so it was dead at 108 s.
    go_on(&mut observer, &[B], 117_000, 152_000);
    assert_eq!(judge(&observer, told(20_000, 21_000), 152_000), Err(Held::Peers));
    go_on(&mut observer, &[B], 153_000, 154_000);
    assert_eq!(judge(&observer, told(20_000, 21_000), 154_000), Ok(AgentState::Stale));

    // One that was heard until it left may have heard devices until then.
    let mut observer = ticking(&[A, B], 100_000);
    go_on(&mut observer, &[B], 101_000, 145_000);
    assert_eq!(judge(&observer, told(20_000, 21_000), 145_000), Err(Held::Peers));
    go_on(&mut observer, &[B], 146_000, 147_000);
    assert_eq!(judge(&observer, told(20_000, 21_000), 147_000), Ok(AgentState::Stale));
}

#[test]
fn isolated_is_who_reaches_nobody() {
    let blind = |peers: &[u64]| Doubt { lease: true, apiserver: true, peers: peers.to_vec() };
    let mut observer = ticking(&[A], 100_000);
    observer.told(START + 100_000);
    observer.observe(&blind(&[A]), START + 101_000);
    assert!(!observer.is_isolated(START + 101_000), "A was told just now");
    // Who has left A's view is not talked to any more, but heard.
    observer.told(START + 120_000);
    assert!(!observer.is_isolated(START + 121_000));
    assert!(observer.is_isolated(START + 126_000));
    observer.witness(A, START + 126_000, START + 126_500, None);
    assert!(observer.is_isolated(START + 126_500), "to hear A is no use to the devices");
    observer.observe(&with(&[A]), START + 140_000);
    assert!(!observer.is_isolated(START + 140_000), "cut from its peers only");
    observer.observe(&blind(&[]), START + 141_000);
    assert!(!observer.is_isolated(START + 141_000), "there is nobody else to talk to");
}

#[test]
fn a_replica_that_tells_all_before_it_goes_delays_nothing() {
    let mut observer = ticking(&[A], 100_000);
    go_on(&mut observer, &[], 101_000, 101_000);
    assert_eq!(judge(&observer, direct(50_000), 101_000), Err(Held::Peers));
    // Its last message shows what it heard until it was missed.
    observer.witness(A, START + 101_000, START + 102_000, None);
    assert_eq!(judge(&observer, direct(50_000), 102_000), Ok(AgentState::Stale));
    go_on(&mut observer, &[], 102_000, 103_000);
    assert_eq!(judge(&observer, direct(50_000), 103_000), Ok(AgentState::Stale));
}

#[test]
fn one_that_was_dead_at_the_start_does_not_count_and_one_that_came_later_does() {
    let silent = |observer: &mut Observer, peers: &[u64], from: u64, until: u64| {
        for now in (START + from..=START + until).step_by(1_000) {
            observer.observe(&with(peers), now);
            observer.tick(now, None, 1_000);
        }
    };
    let mut observer = Observer::new(WINDOW, START);
    silent(&mut observer, &[A], 0, 16_000);
    silent(&mut observer, &[], 17_000, 45_000);
    assert_eq!(judge(&observer, None, 45_000), Ok(AgentState::Stale));
    let mut observer = Observer::new(WINDOW, START);
    silent(&mut observer, &[], 0, 5_000);
    silent(&mut observer, &[A], 6_000, 16_000);
    silent(&mut observer, &[], 17_000, 52_000);
    assert_eq!(judge(&observer, None, 52_000), Err(Held::Peers));
    silent(&mut observer, &[], 53_000, 53_000);
    assert_eq!(judge(&observer, None, 53_000), Ok(AgentState::Stale));
}

#[test]
fn after_a_long_outage_of_the_apiserver_silence_counts_from_its_end() {
    let mut observer = ticking(&[A], 100_000);
    // Nobody can be listed: the view runs empty, and the other one goes on to hear devices for five minutes.
    for now in (START + 101_000..=START + 400_000).step_by(1_000) {
        observer.observe(&Doubt { lease: true, apiserver: true, peers: Vec::new() }, now);
        observer.tick(now, None, 1_000);
    }
    // The apiserver is back before the other's Lease is renewed.
    go_on(&mut observer, &[], 401_000, 402_000);
    assert!(judge(&observer, told(99_000, 99_500), 402_000).is_err());
    // Back in the view it has told everything; but a third one may have come and gone.
    go_on(&mut observer, &[A], 403_000, 445_000);
    assert_eq!(judge(&observer, told(99_000, 99_500), 445_000), Err(Held::Apiserver));
    assert_eq!(judge(&observer, told(401_000, 401_500), 445_000), Ok(AgentState::Alive));
    go_on(&mut observer, &[A], 446_000, 447_000);
    assert_eq!(judge(&observer, told(99_000, 99_500), 447_000), Ok(AgentState::Stale));
    // A short one hides nobody.
    observer.observe(&Doubt { apiserver: true, ..Doubt::default() }, START + 448_000);
    go_on(&mut observer, &[A], 450_000, 450_000);
    assert_eq!(judge(&observer, told(99_000, 99_500), 450_000), Ok(AgentState::Stale));
}

#[test]
fn short_windows_stay_possible() {
    for window in [2_000, 3_000, 6_000, 15_000] {
        let mut observer = Observer::new(window, START);
        // The usual lag: horizons are up to 2 s old, and ticks a little late.
        let mut late = 0;
        for now in (START..START + 60_000).step_by(1_300) {
            observer.witness(A, (now - 2_000).max(START), now, None);
            observer.observe(&with(&[A]), now);
            assert_eq!(observer.tick(now, None, 1_000), None);
            if observer.outlook(now, None).judge(direct(20_000)) == Ok(AgentState::Stale) {
                assert!(now >= START + 20_000 + window);
                late = late.max(if late == 0 { now - START - 20_000 - window } else { 0 });
            }
        }
        assert!((1..4_000).contains(&late), "{window}: {late}");
        // And no verdict is about what was longer ago than a window.
        let now = START + 60_000;
        observer.witness(A, now, now, None);
        observer.tick(now, None, 1_000);
        observer.tick(now + 1_200, None, 1_000);
        observer.tick(now + 2_400, None, 1_000);
        assert_eq!(observer.outlook(now + 2_400, None).judge(direct(20_000)), Ok(AgentState::Stale));
        for step in 3..=5 {
            observer.tick(now + step * 1_200, None, 1_000);
        }
        assert_eq!(observer.outlook(now + 5_001, None).judge(direct(20_000)), Err(Held::Peers));
    }
}

/// What happens in a step of a random history.
#[derive(Debug, Clone)]
enum Happens {
    /// The device reports to a replica; 0 is the observer's.
    Report(usize),
    /// A replica sends what it has heard; it arrives after so many steps.
    Send(usize, usize),
    /// The answer to what was sent is lost, and so is what was sent with the second one.
    Lose(usize, bool),
    /// A replica leaves the view, and another takes its place some steps later.
    Leave(usize),
    Join(usize),
    /// The observer is stopped.
    Pause(u64),
    /// The apiserver does not answer for some steps.
    Outage(u64),
    Nothing,
}

fn history() -> impl Strategy<Value = Vec<Happens>> {
    prop::collection::vec(
        prop_oneof![
            2 => (0_usize..4).prop_map(Happens::Report),
            12 => (1_usize..4, prop_oneof![9 => 0_usize..3, 1 => 3_usize..120]).prop_map(|(by, delay)| Happens::Send(by, delay)),
            1 => (1_usize..4, any::<bool>()).prop_map(|(by, all)| Happens::Lose(by, all)),
            1 => (1_usize..4).prop_map(Happens::Leave),
            2 => (1_usize..4).prop_map(Happens::Join),
            1 => (1_u64..90_000).prop_map(Happens::Pause),
            1 => (1_u64..90).prop_map(Happens::Outage),
            8 => Just(Happens::Nothing),
        ],
        1..400,
    )
}

/// Another replica, and what it knows.
#[derive(Debug, Clone)]
struct Other {
    incarnation: u64,
    in_view: bool,
    /// When the device reported to it last.
    heard_ms: Option<u64>,
    /// What it knows of the observer's clock.
    echo_ms: u64,
    ever_arrived: bool,
    joined_ms: u64,
    first: bool,
}

struct Message {
    by: usize,
    incarnation: u64,
    heard: Option<Heard>,
    horizon_ms: u64,
    arrives: usize,
}

proptest! {
    /// The promise: whatever is lost, delayed, stopped or killed, a device that reported to a live replica within the
    /// window before the horizon is not called dead, and the horizon is never old.
    #[test]
    fn whoever_reported_to_a_live_replica_is_not_called_dead(history in history(), step_ms in 300_u64..1_200, window in 3_000_u64..50_000) {
        let mut now = START;
        let mut observer = Observer::new(window, now);
        let mut table = Table::default();
        let mut others: Vec<Other> = (1..4).map(|incarnation| Other {
            incarnation, in_view: true, heard_ms: None, echo_ms: START, ever_arrived: false, joined_ms: now, first: true,
        }).collect();
        let mut incarnations = 10;
        let mut under_way: Vec<Message> = Vec::new();
        // All reports to replicas that were live then, by (replica's incarnation, time); 0 is the observer's own.
        let mut reports: Vec<(u64, u64)> = Vec::new();
        let mut outage_until = 0;
        observer.observe(&Doubt { peers: vec![1, 2, 3], ..Doubt::default() }, now);
        for (step, happens) in history.into_iter().enumerate() {
            now += step_ms;
            match happens {
                Happens::Report(0) => {
                    table.heard(7, now);
                    reports.push((0, now));
                }
                Happens::Report(by) => {
                    let other = &mut others[by - 1];
                    other.heard_ms = Some(now);
                    if other.in_view {
                        reports.push((other.incarnation, now));
                    }
                }
                Happens::Send(by, delay) => {
                    let other = &others[by - 1];
                    let heard = other.heard_ms.map(|heard_ms| Heard {
                        device: 7, age_ms: u32::try_from(now - heard_ms).unwrap(), boot: 0, sequence: 0, said: 0,
                    });
                    under_way.push(Message { by, incarnation: other.incarnation, heard, horizon_ms: other.echo_ms, arrives: step + delay });
                }
                Happens::Lose(by, all) => {
                    if let Some(place) = under_way.iter().position(|message| message.by == by) {
                        under_way.remove(place);
                        if all { under_way.retain(|message| message.by != by); }
                    }
                }
                Happens::Leave(by) => {
                    let other = &mut others[by - 1];
                    if !other.first && now - other.joined_ms < 15_000 {
                        // Its Lease runs out later.
                        continue;
                    }
                    other.in_view = false;
                    if other.first && !other.ever_arrived && now - other.joined_ms <= INHERITED_MS {
                        reports.retain(|(replica, _)| *replica != other.incarnation);
                    }
                }
                Happens::Join(by) => {
                    let other = &mut others[by - 1];
                    if !other.in_view {
                        incarnations += 1;
                        *other = Other {
                            incarnation: incarnations, in_view: true, heard_ms: None, echo_ms: START, ever_arrived: false,
                            joined_ms: now, first: false,
                        };
                    }
                }
                Happens::Pause(pause_ms) => now += pause_ms,
                Happens::Outage(steps) => outage_until = now + steps * step_ms,
                Happens::Nothing => {}
            }
            under_way.retain(|message| {
                if message.arrives > step {
                    return true;
                }
                if let Some(heard) = &message.heard {
                    table.merge(heard, Taken { from_ms: message.horizon_ms, until_ms: now });
                }
                observer.witness(message.incarnation, message.horizon_ms, now, None);
                let other = &mut others[message.by - 1];
                if other.incarnation == message.incarnation {
                    other.ever_arrived = true;
                    other.echo_ms = now;
                }
                false
            });
            let outage = now < outage_until;
            observer.observe(&Doubt {
                lease: outage, apiserver: outage,
                // The view runs empty while nobody can be listed.
                peers: others.iter().filter(|other| other.in_view && !outage).map(|other| other.incarnation).collect(),
            }, now);
            observer.tick(now, Some(now), step_ms);
            let outlook = observer.outlook(now, None);
            if outlook.judge(table.contact(7)) == Ok(AgentState::Stale) {
                prop_assert!(outlook.horizon_ms + FRESH_MS >= now);
                let horizon = outlook.horizon_ms;
                for (replica, at) in reports.iter().filter(|(_, at)| *at <= horizon) {
                    prop_assert!(at + window <= horizon, "reported to {replica} {} ms before the horizon", horizon - at);
                }
            }
        }
    }

    /// No live device is ever called dead: whatever the pauses, Stale needs a whole window of silence
    /// during which the observer was there all the time.
    #[test]
    fn stale_needs_a_window_of_attentive_silence(
        gaps in prop::collection::vec(prop_oneof![4 => Just(1_000_u64), 1 => 1_000_u64..120_000], 1..150),
        heard_at in prop::collection::vec(any::<bool>(), 150),
    ) {
        let mut observer = Observer::new(WINDOW, START);
        let (mut now, mut heard, mut attentive_since) = (0, None, 0);
        for (gap, reports) in gaps.into_iter().zip(heard_at) {
            now += gap;
            if gap > 1_000 + PAUSE_MS { attentive_since = now; }
            observer.observe(&Doubt::default(), START + now);
            observer.tick(START + now, None, 1_000);
            if reports { heard = Some(now); }
            if judge(&observer, heard.and_then(direct), now) == Ok(AgentState::Stale) {
                prop_assert!(now - heard.unwrap_or(0).max(attentive_since) >= WINDOW);
            }
        }
    }

    /// And never suppressed for ever: when the trouble is over, silence ends in a verdict within a window and a second
    /// or two, as long as everybody who is there is heard.
    #[test]
    fn silence_ends_in_a_verdict(
        start in 0_u64..10_000_000, pause in 0_u64..1_000_000, peers in 0_u64..4, left in 0_u64..3, known in any::<bool>(),
        window in 2_000_u64..60_000,
    ) {
        let mut now = START + start;
        let mut observer = Observer::new(window, now);
        let there: Vec<u64> = (0..peers).collect();
        let before: Vec<u64> = (0..peers + left).collect();
        observer.observe(&with(&before), now);
        for peer in before { observer.witness(peer, now, now, None); }
        let contact = known.then_some(Contact { heard_ms: now, sure_ms: now, direct: true });
        now += pause;
        observer.observe(&Doubt { lease: true, apiserver: true, peers: there.clone() }, now);
        observer.tick(now, None, 1_000);
        let until = now + window + 4_000;
        while now < until {
            now += 1_000;
            for peer in &there { observer.witness(*peer, now - 1_500, now, None); }
            observer.observe(&with(&there), now);
            observer.tick(now, None, 1_000);
        }
        prop_assert_eq!(observer.outlook(now, None).judge(contact), Ok(AgentState::Stale));
    }
}
