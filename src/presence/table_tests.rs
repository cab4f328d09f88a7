//! Pure: tests of the module of this name.

use super::*;
use crate::presence::order::fingerprint;
use proptest::prelude::*;

const START: u64 = 1 << 33;

fn at(from_ms: u64, until_ms: u64) -> Taken {
    Taken { from_ms: START + from_ms, until_ms: START + until_ms }
}

fn heard(device: u64, age_ms: u32, boot: &str, sequence: u64) -> Heard {
    Heard { device, age_ms, boot: fingerprint(boot), sequence, said: 0 }
}

fn order(table: &mut Table, boot: &str, sequence: u64, now_ms: u64) -> Freshness {
    table.order(7, fingerprint(boot), Some(sequence), 0, None, START + now_ms).0
}

#[test]
fn a_contact_has_an_earliest_and_a_latest_moment() {
    let mut table = Table::default();
    assert_eq!(table.contact(7), None);
    table.merge(&heard(7, 5_000, "a", 1), at(10_000, 12_000));
    let told = Contact { heard_ms: START + 7_000, sure_ms: START + 5_000, direct: false };
    assert_eq!(table.contact(7), Some(told));
    // Older news change nothing, and the same news later only make it later.
    table.merge(&heard(7, 9_000, "a", 1), at(10_000, 12_000));
    assert_eq!(table.contact(7), Some(told));
    table.heard(7, START + 13_000);
    let here = Contact { heard_ms: START + 13_000, sure_ms: START + 13_000, direct: true };
    assert_eq!(table.contact(7), Some(here));
}

#[test]
fn what_others_had_orders_what_comes_here() {
    let mut table = Table::default();
    table.merge(&heard(7, 0, "a", 9), at(1_000, 1_000));
    assert_eq!(order(&mut table, "a", 8, 2_000), Freshness::Old);
    assert_eq!(order(&mut table, "a", 9, 3_000), Freshness::Repeat);
    assert_eq!(order(&mut table, "a", 10, 4_000), Freshness::New);
    // A new start of the agent, certainly after that; then something of the old one that was under way for long.
    table.merge(&heard(7, 0, "b", 1), at(5_000, 6_000));
    assert_eq!(order(&mut table, "a", 11, 30_000), Freshness::Old);
    assert_eq!(order(&mut table, "b", 2, 31_000), Freshness::New);
    // An older start that only another replica had heard.
    table.merge(&heard(7, 28_000, "z", 50), at(30_000, 31_500));
    assert_eq!(order(&mut table, "z", 51, 32_000), Freshness::Old);
    // The times do not say which came first: nothing is replaced.
    table.merge(&heard(7, 0, "c", 1), at(30_500, 33_000));
    assert_eq!(order(&mut table, "b", 3, 34_000), Freshness::New);
    assert_eq!(order(&mut table, "c", 2, 35_000), Freshness::New);
    assert_eq!(order(&mut table, "b", 4, 36_000), Freshness::Old);
}

#[test]
fn the_status_seeds_an_order_once_and_what_others_had_wins() {
    let seed = |boot: &str, sequence| Some(Order::seeded(fingerprint(boot), sequence));
    let mut table = Table::default();
    table.heard(7, START);
    assert!(!table.is_seeded(7));
    let boot = fingerprint("a");
    assert_eq!(table.order(7, boot, Some(5), 0, seed("a", 6), START).0, Freshness::Old);
    assert!(table.is_seeded(7));
    assert_eq!(table.order(7, boot, Some(7), 0, seed("a", 99), START).0, Freshness::New);
    let mut table = Table::default();
    table.merge(&heard(7, 0, "a", 3), at(0, 0));
    assert_eq!(table.order(7, boot, Some(5), 0, seed("a", 6), START + 1).0, Freshness::Old);
    let mut table = Table::default();
    table.merge(&heard(7, 0, "b", 3), at(0, 0));
    assert_eq!(table.order(7, fingerprint("b"), Some(4), 0, seed("a", 6), START + 1).0, Freshness::New);
}

#[test]
fn a_replica_tells_what_it_heard_itself_and_once_everything() {
    let tell = |table: &Table, mark: Option<u64>, now: u64| {
        let mut told = Vec::new();
        match mark {
            Some(mark) => table.since(START + mark, START + now, &mut told),
            None => table.whole(START + now, &mut told),
        }
        told.sort_unstable_by_key(|heard| heard.device);
        told
    };
    let mut table = Table::default();
    order(&mut table, "a", 3, 1_000);
    table.heard(8, START + 2_000);
    table.merge(&heard(9, 500, "b", 4), at(2_500, 2_500));
    let (seven, eight) = (heard(7, 2_000, "a", 3), Heard { boot: 0, ..heard(8, 1_000, "", 0) });
    let nine = heard(9, 1_000, "b", 4);
    assert_eq!(tell(&table, Some(0), 3_000), [seven, eight]);
    assert_eq!(tell(&table, Some(2_000), 3_000), [eight], "the mark itself is inside");
    assert_eq!(tell(&table, Some(2_001), 3_000), []);
    assert_eq!(tell(&table, None, 3_000), [seven, eight, nine]);
    // Heard by another replica with another boot: the own contact is not told with a boot that it did not have.
    table.merge(&heard(7, 0, "b", 1), at(4_000, 4_000));
    assert_eq!(tell(&table, Some(0), 5_000)[0], Heard { boot: 0, sequence: 0, ..heard(7, 4_000, "", 0) });
    assert_eq!(tell(&table, None, 5_000)[0], heard(7, 1_000, "b", 1));
}

#[test]
fn a_device_that_asks_after_its_report_was_heard_with_both() {
    let (boot, mut table) = (fingerprint("a"), Table::default());
    let told = |table: &Table, mark: Option<u64>| {
        let mut told = Vec::new();
        match mark {
            Some(mark) => table.since(START + mark, START + 5_000, &mut told),
            None => table.whole(START + 5_000, &mut told),
        }
        told
    };
    order(&mut table, "a", 3, 1_000);
    table.heard(7, START + 2_000);
    let (asked, reported) = (Heard { boot: 0, ..heard(7, 3_000, "", 0) }, heard(7, 4_000, "a", 3));
    assert_eq!(told(&table, Some(1_000)), [asked, reported]);
    assert_eq!(told(&table, Some(1_500)), [asked], "the report is no news");
    assert_eq!(told(&table, None), [asked, reported]);
    // The acknowledgement comes after the question.
    table.acknowledged(7, boot, 3, 9, None, START + 4_000);
    assert_eq!(told(&table, Some(3_000)), [Heard { said: 9, ..reported }]);
    // Whoever is told has the same footing as who was there.
    let mut other = Table::default();
    told(&table, None).iter().for_each(|heard| other.merge(heard, at(5_000, 5_000)));
    assert_eq!(other.contact(7).unwrap().heard_ms, START + 2_000);
    assert_eq!(other.order(7, boot, Some(4), 9, None, START + 6_000), (Freshness::New, Footing::Same));
}

proptest! {
    /// Messages in any order, and any of them again: the same table.
    #[test]
    fn merging_is_free_of_order_and_repeats(
        // Reports in the order in which a device sent them: after how long, and whether it had restarted.
        reports in prop::collection::vec((1_u64..20_000, prop::bool::weighted(0.2)), 1..25),
        // Each was heard by some replica, which told it with some delay of the message.
        told in prop::collection::vec((0_u64..500, 0_u64..9_000), 25),
        (first, second) in prop::collection::vec(0_usize..25, 0..60).prop_flat_map(|again| {
            let orders: Vec<usize> = (0..25).chain(again).collect();
            (Just(orders.clone()).prop_shuffle(), Just(orders).prop_shuffle())
        }),
    ) {
        let (mut now, mut boot, mut sequence) = (10_000, 1_u64, 0);
        let mut messages = Vec::new();
        for ((after, restart), (lag, age)) in reports.iter().zip(&told) {
            now += if *restart { after + 10_000 } else { *after };
            (boot, sequence) = if *restart { (boot + 1, 1) } else { (boot, sequence + 1) };
            let heard = Heard { device: 7, age_ms: u32::try_from(*age).unwrap(), boot, sequence, said: sequence };
            messages.push((heard, at(now + age - lag / 2, now + age + lag)));
        }
        let merged = |order: &[usize]| {
            let mut table = Table::default();
            for place in order {
                if let Some((heard, taken)) = messages.get(*place) {
                    table.merge(heard, *taken);
                }
            }
            let entry = table.devices.remove(&7).unwrap();
            (entry.heard_ms, entry.sure_ms, entry.boot_heard_ms, entry.order.boot(), entry.order.sequence(), entry.said.acked)
        };
        let last = messages.last().unwrap().0;
        let outcome = merged(&first);
        prop_assert_eq!(outcome, merged(&second));
        prop_assert_eq!((outcome.3, outcome.4), (last.boot, last.sequence));
    }
}
