//! Pure: many devices that fall silent at once are more likely a fault on the way to them than so many deaths. They are
//! called dead all the same, but at a trickle.

/// A sweep that would call dead more than this share of the live devices, and more than [`FLOOR`], is a mass.
const SHARE: f64 = 0.2;
/// So few verdicts at once are never a mass.
const FLOOR: usize = 10;
/// An episode is over when nothing was held back for so long, milliseconds.
const CALM_MS: u64 = 60_000;

/// How many of the devices that would be called dead now may be: all of them, or a trickle when they are too
/// large a share of the live ones.
#[must_use]
pub fn allowance(would_die: usize, connected: usize, trickle: usize) -> usize {
    #[allow(clippy::cast_precision_loss)]
    let mass = would_die > FLOOR && would_die as f64 > SHARE * connected as f64;
    if mass { trickle.max(1).min(would_die) } else { would_die }
}

/// Tells the beginning and the end of a mass silence from its ups and downs.
#[derive(Debug, Default)]
pub struct Episode {
    /// When something was last held back; none outside of an episode.
    last_ms: Option<u64>,
}

/// What has just happened to an [`Episode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It began.
    Begun,
    /// It is over.
    Over,
}

// === impl Episode ===

impl Episode {
    /// Notes how many verdicts a sweep held back.
    pub fn note(&mut self, held: usize, now_ms: u64) -> Option<Turn> {
        if held > 0 {
            return self.last_ms.replace(now_ms).is_none().then_some(Turn::Begun);
        }
        let over = self.last_ms.is_some_and(|last_ms| now_ms.saturating_sub(last_ms) >= CALM_MS);
        over.then(|| {
            self.last_ms = None;
            Turn::Over
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masses_trickle() {
        assert_eq!(allowance(10, 10, 3), 10);
        assert_eq!(allowance(1_000, 1_000, 20), 20);
        assert_eq!(allowance(11, 10_000, 20), 11);
        assert_eq!(allowance(11, 11, 0), 1);
        assert_eq!(allowance(0, 0, 5), 0);
    }

    #[test]
    fn an_episode_begins_once_and_ends_once() {
        let mut episode = Episode::default();
        let turns: Vec<_> =
            [(0, 0), (5, 1), (3, 2), (0, 3), (4, 30_000), (0, 89_999), (0, 90_000), (0, 90_001), (1, 90_002)]
                .into_iter()
                .filter_map(|(held, now)| Some((now, episode.note(held, now)?)))
                .collect();
        assert_eq!(turns, [(1, Turn::Begun), (90_000, Turn::Over), (90_002, Turn::Begun)]);
    }
}
