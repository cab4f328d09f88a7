//! Pure: what a receiver knows of those who send to it, and which of their requests it takes.

use super::envelope::{MAX_AGE_MS, Refusal};
use super::replay::Window;
use super::signature::Claims;
use std::collections::HashMap;

/// Who has not sent for so long is forgotten, milliseconds. Everything of it that could be sent again is too old by then.
const FORGET_MS: u64 = 4 * MAX_AGE_MS;

#[derive(Debug, Default)]
struct Sender {
    window: Window,
    /// Its whole table has come.
    whole: bool,
    horizon_ms: Option<u64>,
    used_ms: u64,
}

/// See the module. Senders are told apart by the start of their process.
#[derive(Debug)]
pub struct Inbound {
    me: u64,
    senders: HashMap<u64, Sender>,
    swept_ms: u64,
}

// === impl Inbound ===

impl Inbound {
    /// Of the process with this incarnation.
    #[must_use]
    pub fn new(me: u64) -> Self {
        Self { me, senders: HashMap::new(), swept_ms: 0 }
    }

    /// Takes in a verified request, each one once: it is meant for this process, was sent after something that this
    /// process said lately, and was not here before.
    ///
    /// # Errors
    /// When one of these is not so; then nothing has changed.
    pub fn admit(&mut self, claims: &Claims, now_ms: u64) -> Result<(), Refusal> {
        if claims.to != self.me || claims.incarnation == self.me {
            return Err(Refusal::Receiver);
        }
        if claims.incarnation == 0 || claims.sequence == 0 {
            return Err(Refusal::Malformed);
        }
        if claims.time_ms > now_ms || now_ms - claims.time_ms > MAX_AGE_MS {
            return Err(Refusal::Time);
        }
        let sender = self.senders.entry(claims.incarnation).or_default();
        if !sender.window.admit(claims.sequence) {
            return Err(Refusal::Replayed);
        }
        sender.used_ms = now_ms;
        if now_ms.saturating_sub(self.swept_ms) > MAX_AGE_MS {
            self.swept_ms = now_ms;
            self.senders.retain(|_, sender| now_ms.saturating_sub(sender.used_ms) <= FORGET_MS);
        }
        Ok(())
    }

    /// Takes in what an admitted batch says of itself. The horizon, when with it all is in that its sender heard up
    /// to then.
    ///
    /// # Errors
    /// When the whole table of the sender must come first, or the horizon is one that it cannot know. What the batch
    /// says of devices is not to be used then.
    pub fn take(&mut self, claims: &Claims, whole: bool, last: bool, horizon_ms: u64) -> Result<Option<u64>, Refusal> {
        if horizon_ms > claims.time_ms {
            return Err(Refusal::Malformed);
        }
        let Some(sender) = self.senders.get_mut(&claims.incarnation) else { return Err(Refusal::Whole) };
        if !whole && !sender.whole {
            return Err(Refusal::Whole);
        }
        if !last {
            return Ok(None);
        }
        sender.whole = true;
        sender.horizon_ms = sender.horizon_ms.max(Some(horizon_ms));
        Ok(Some(horizon_ms))
    }

    /// Up to which moment of the own clock everything is known that this sender heard; none before its whole table
    /// has come.
    #[must_use]
    pub fn horizon_ms(&self, incarnation: u64) -> Option<u64> {
        self.senders.get(&incarnation)?.horizon_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::signature::BodyHash;
    use proptest::prelude::*;

    const ME: u64 = 9;

    fn claims(sequence: u64, time_ms: u64) -> Claims {
        let digest = BodyHash::of(b"");
        Claims { protocol: 1, hop: 1, sender: "a".into(), incarnation: 1, to: ME, time_ms, sequence, digest }
    }

    #[test]
    fn what_is_refused() {
        let mut inbound = Inbound::new(ME);
        assert_eq!(inbound.admit(&Claims { to: 8, ..claims(1, 0) }, 0), Err(Refusal::Receiver));
        assert_eq!(inbound.admit(&Claims { incarnation: ME, ..claims(1, 0) }, 0), Err(Refusal::Receiver));
        assert_eq!(inbound.admit(&Claims { incarnation: 0, ..claims(1, 0) }, 0), Err(Refusal::Malformed));
        assert_eq!(inbound.admit(&claims(0, 0), 0), Err(Refusal::Malformed));
        assert_eq!(inbound.admit(&claims(1, 11), 10), Err(Refusal::Time), "never told");
        assert_eq!(inbound.admit(&claims(1, 10), 10 + MAX_AGE_MS + 1), Err(Refusal::Time), "too old");
        assert_eq!(inbound.admit(&claims(1, 10), 10 + MAX_AGE_MS), Ok(()));
        assert_eq!(inbound.admit(&claims(1, 10), 10 + MAX_AGE_MS), Err(Refusal::Replayed));
        assert_eq!(inbound.admit(&Claims { incarnation: 2, ..claims(1, 10) }, 10), Ok(()));
    }

    #[test]
    fn the_whole_table_comes_first() {
        let mut inbound = Inbound::new(ME);
        inbound.admit(&claims(1, 5), 9).unwrap();
        assert_eq!(inbound.take(&claims(1, 5), false, true, 5), Err(Refusal::Whole));
        assert_eq!(inbound.take(&claims(1, 5), true, false, 5), Ok(None));
        assert_eq!((inbound.horizon_ms(1), inbound.take(&claims(1, 5), false, true, 5)), (None, Err(Refusal::Whole)));
        assert_eq!(inbound.take(&claims(1, 5), true, true, 4), Ok(Some(4)));
        assert_eq!(inbound.take(&claims(1, 5), false, true, 6), Err(Refusal::Malformed));
        assert_eq!(inbound.take(&claims(1, 5), false, true, 5), Ok(Some(5)));
        // One that was overtaken on the way.
        assert_eq!(inbound.take(&claims(1, 5), false, true, 3), Ok(Some(3)));
        assert_eq!(inbound.horizon_ms(1), Some(5));
    }

    proptest! {
        /// However requests are delayed and repeated, across any forgetting, none is taken in twice.
        #[test]
        fn never_twice(steps in prop::collection::vec((1..6_u64, 1..4_u64, 0..2 * FORGET_MS), 1..80)) {
            let (mut inbound, mut now, mut sent, mut taken) = (Inbound::new(ME), 0, HashMap::new(), Vec::new());
            for (sequence, incarnation, pause) in steps {
                now += pause;
                let first_said = *sent.entry((incarnation, sequence)).or_insert(now);
                let claims = Claims { incarnation, ..claims(sequence, first_said) };
                if inbound.admit(&claims, now).is_ok() {
                    prop_assert!(!taken.contains(&(incarnation, sequence)));
                    taken.push((incarnation, sequence));
                }
            }
        }
    }
}
