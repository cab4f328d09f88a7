//! Pure: which sequence numbers of a sender have been seen.

/// How far behind the newest number one may come. Requests that are under way together overtake each other, and those
/// to other receivers are numbered as well.
const WIDTH: u64 = 16_384;
const WORDS: usize = (WIDTH / 64) as usize;

/// A sliding window over the numbers of one sender, like the one of RFC 4303 §3.4.3.
#[derive(Debug, Clone)]
pub struct Window {
    newest: u64,
    /// Bit `n % WIDTH` says whether `n` was seen, for the last WIDTH numbers.
    seen: Box<[u64; WORDS]>,
}

// === impl Window ===

impl Window {
    /// Takes in a number: true exactly once for each, never for 0 nor for one that is too far behind.
    #[must_use]
    pub fn admit(&mut self, number: u64) -> bool {
        if number == 0 || self.newest.saturating_sub(number) >= WIDTH {
            return false;
        }
        if number > self.newest {
            // The places between the two stood for older numbers.
            if number - self.newest >= WIDTH {
                self.seen.fill(0);
            } else {
                (self.newest + 1..=number).for_each(|skipped| self.seen[word(skipped)] &= !bit(skipped));
            }
            self.newest = number;
        }
        let fresh = self.seen[word(number)] & bit(number) == 0;
        self.seen[word(number)] |= bit(number);
        fresh
    }
}

impl Default for Window {
    fn default() -> Self {
        Self { newest: 0, seen: Box::new([0; WORDS]) }
    }
}

fn word(number: u64) -> usize {
    usize::try_from(number % WIDTH / 64).unwrap_or(0)
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn ends_of_the_window() {
        let mut window = Window::default();
        assert!(!window.admit(0));
        assert!(window.admit(1) && !window.admit(1));
        assert!(window.admit(1 + WIDTH));
        assert!(!window.admit(1), "too far behind");
        assert!(window.admit(2) && !window.admit(2));
        assert!(window.admit(u64::MAX) && !window.admit(u64::MAX));
        assert!(window.admit(u64::MAX - WIDTH + 1) && !window.admit(u64::MAX - WIDTH));
    }

    proptest! {
        /// As a set that remembers everything, but for what is too far behind.
        #[test]
        fn like_a_set(steps in prop::collection::vec((0..3_u8, 0_u64..2 * WIDTH), 1..200)) {
            let (mut window, mut set, mut newest) = (Window::default(), HashSet::new(), 0_u64);
            for (kind, offset) in steps {
                let number = match kind {
                    0 => newest + 1,
                    1 => newest.saturating_sub(offset),
                    _ => newest + offset,
                };
                let expected = number != 0 && number + WIDTH > newest && set.insert(number);
                newest = newest.max(if expected { number } else { 0 });
                prop_assert_eq!(window.admit(number), expected, "{}", number);
            }
        }
    }
}
