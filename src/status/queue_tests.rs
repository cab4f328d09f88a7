//! Pure: tests of the queue.

use super::*;
use proptest::prelude::*;

/// Numbered pieces of work; odd ones merely count.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pieces(Vec<u32>);

impl Merge for Pieces {
    fn absorb(&mut self, mut older: Self) {
        older.0.append(&mut self.0);
        *self = older;
    }

    fn lane(&self) -> Lane {
        if self.0.iter().all(|piece| piece % 2 == 1) { Lane::Counters } else { Lane::Transitions }
    }
}

fn pieces(of: impl Into<Vec<u32>>) -> Pieces {
    Pieces(of.into())
}

fn pop(queue: &mut Queue<u8, &'static str, Pieces>, now_ms: u64) -> Option<(&'static str, Vec<u32>)> {
    queue.pop(now_ms, |_| true).map(|(key, work)| (key, work.0))
}

#[test]
fn one_slot_one_in_flight() {
    let mut queue = Queue::new(2);
    queue.push(0, "a", pieces([2]), 0, 0).unwrap();
    queue.push(0, "a", pieces([4]), 1, 1).unwrap();
    queue.push(1, "b", pieces([6]), 1, 1).unwrap();
    assert_eq!(queue.push(2, "c", pieces([8]), 1, 1), Err(Full));
    assert_eq!(pop(&mut queue, 1), Some(("a", vec![2, 4])));
    queue.push(0, "a", pieces([10]), 2, 2).unwrap();
    assert_eq!(pop(&mut queue, 2), Some(("b", vec![6])));
    assert_eq!(pop(&mut queue, 2), None);
    queue.done(&"a", 3);
    assert_eq!(pop(&mut queue, 3), Some(("a", vec![10])));
    queue.done(&"a", 4);
    queue.done(&"b", 4);
    assert!(queue.is_empty());
}

#[test]
fn later_work_waits_and_newer_work_hurries_it() {
    let mut queue = Queue::new(9);
    queue.push(0, "a", pieces([2]), 0, 60_000).unwrap();
    assert_eq!((pop(&mut queue, 59_999), queue.next_due_ms()), (None, Some(60_000)));
    queue.push(0, "a", pieces([4]), 5, 5).unwrap();
    assert_eq!(pop(&mut queue, 5), Some(("a", vec![2, 4])));
    queue.retry(&"a", pieces([2, 4]), 6, 1_000);
    assert_eq!(pop(&mut queue, 999), None);
    assert_eq!(queue.oldest_ms(500), 0);
    assert_eq!(queue.oldest_ms(1_500), 1_500);
    assert_eq!(pop(&mut queue, 1_000), Some(("a", vec![2, 4])));
}

#[test]
fn a_transition_does_not_wait_for_a_counter_of_its_object() {
    let mut queue = Queue::new(9);
    queue.push(0, "a", pieces([1]), 0, 0).unwrap();
    assert_eq!(pop(&mut queue, 0), Some(("a", vec![1])));
    queue.push(0, "a", pieces([2]), 1, 1).unwrap();
    queue.retry(&"a", pieces([1]), 2, 60_000);
    assert_eq!(pop(&mut queue, 2), Some(("a", vec![1, 2])));
}

#[test]
fn transitions_go_first_and_counters_are_not_forgotten() {
    let mut queue: Queue<u8, u32, Pieces> = Queue::new(100);
    queue.push(0, 1, pieces([1]), 0, 0).unwrap();
    for key in 2..40 {
        queue.push(0, key, pieces([2]), 0, 0).unwrap();
    }
    let order: Vec<u32> = std::iter::from_fn(|| queue.pop(0, |_| true)).map(|(key, _)| key).collect();
    assert_eq!(order.iter().position(|key| *key == 1), Some(TRANSITIONS_AHEAD as usize));
    assert_eq!(order.len(), 39);
}

#[test]
fn a_counter_that_becomes_a_transition_changes_lanes() {
    let mut queue = Queue::new(9);
    queue.push(0, "a", pieces([1]), 0, 0).unwrap();
    queue.push(1, "b", pieces([2]), 0, 0).unwrap();
    queue.push(0, "a", pieces([4]), 0, 0).unwrap();
    let only = |lane| move |other| other == lane;
    assert_eq!(queue.pop(0, only(Lane::Counters)), None);
    assert_eq!(queue.pop(0, only(Lane::Transitions)).map(|(key, _)| key), Some("b"));
    assert_eq!(queue.pop(0, only(Lane::Transitions)), Some(("a", pieces([1, 4]))));
    queue.retry(&"a", pieces([1]), 0, 500);
    assert_eq!(queue.pop(499, |_| true), None);
    assert_eq!(queue.pop(500, only(Lane::Counters)), Some(("a", pieces([1]))));
}

#[test]
fn every_device_has_its_turn() {
    let mut queue: Queue<u8, u32, Pieces> = Queue::new(1_000);
    for key in 0..100 {
        queue.push(0, key, pieces([2]), 0, 0).unwrap();
    }
    queue.push(1, 500, pieces([2]), 0, 0).unwrap();
    queue.push(2, 600, pieces([2]), 0, 0).unwrap();
    let first: Vec<u32> = std::iter::from_fn(|| queue.pop(0, |_| true)).map(|(key, _)| key).take(4).collect();
    assert_eq!(first, [0, 500, 600, 1]);
}

proptest! {
    /// Nothing is lost, nothing is done twice, order is kept within an object, at most one is in flight, and nothing
    /// goes before its time or through a lane that is closed.
    #[test]
    fn everything_is_done_once(steps in prop::collection::vec((0_u8..5, 0_u8..5, 0_u64..50), 1..200)) {
        let mut queue: Queue<u8, u8, Pieces> = Queue::new(100);
        let (mut now, mut next, mut done, mut pushed) = (0, 0, Vec::new(), Vec::new());
        let mut flying: Vec<(u8, Pieces)> = Vec::new();
        for (step, key, delay) in steps {
            now += 1;
            match step {
                0 => {
                    next += 1;
                    queue.push(key % 2, key, pieces([next]), now, now + delay).unwrap();
                    pushed.push((key, next));
                }
                1 | 4 => {
                    let open = |lane| step == 1 || lane == Lane::Counters;
                    if let Some((key, work)) = queue.pop(now, open) {
                        prop_assert!(open(work.lane()));
                        prop_assert!(flying.iter().all(|(other, _)| *other != key));
                        flying.push((key, work));
                    }
                }
                2 => if let Some((key, work)) = flying.pop() {
                    queue.done(&key, now);
                    done.extend(work.0.into_iter().map(|n| (key, n)));
                },
                _ => if let Some((key, work)) = flying.pop() { queue.retry(&key, work, now, now + delay); },
            }
        }
        while let Some((key, work)) = flying.pop() {
            queue.retry(&key, work, now, now);
        }
        now += 1_000;
        while let Some((key, work)) = queue.pop(now, |_| true) {
            queue.done(&key, now);
            done.extend(work.0.into_iter().map(|n| (key, n)));
        }
        prop_assert!(queue.is_empty());
        for key in 0..5 {
            let of = |list: &[(u8, u32)]| list.iter().filter(|(k, _)| *k == key).map(|(_, n)| *n).collect::<Vec<_>>();
            prop_assert_eq!(of(&done), of(&pushed));
        }
    }
}
