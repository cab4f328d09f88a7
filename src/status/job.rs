//! Pure: what is known of an object that is to be written, and when it is tried again.

/// Conflicts in a row before an object goes back to the queue, so that others get their turn.
pub const CONFLICTS: u32 = 5;
/// Shortest and longest pause after that, milliseconds.
const CONFLICT_PAUSE_MS: (u64, u64) = (10, 50);

/// How long to wait after [`CONFLICTS`] conflicts in a row, milliseconds. Somebody else writes the object at the same
/// time, which is no sign of overload: the pause is short however often it happens, and differs, so that two writers
/// get out of step. `chance` picks a number between two, both included.
pub fn conflict_pause_ms(chance: impl FnOnce(u64, u64) -> u64) -> u64 {
    chance(CONFLICT_PAUSE_MS.0, CONFLICT_PAUSE_MS.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Conflicts must not use up the 8 s in which a report is answered: each round of them costs a moment.
    #[test]
    fn conflicts_cost_a_moment_and_never_more() {
        assert_eq!(conflict_pause_ms(|low, _| low), 10);
        assert_eq!(conflict_pause_ms(|_, high| high), 50);
    }
}
