//! Pure: when a connection has to end. A sweeper looks at every connection once a second, so that requests
//! read no clock and set no timer.

/// Longest time for the head of a request, seconds; also for anything from somebody who has not yet shown a
/// good token.
pub const HEAD_SECONDS: u32 = 10;
/// Longest time without a request, seconds: many heartbeats.
pub const IDLE_SECONDS: u32 = 150;
/// Longest time that an answer waits for a client to read on, seconds.
pub const STALLED_SECONDS: u32 = 30;
/// Longest time for what the client still sends after it was refused, seconds.
pub const LINGER_SECONDS: u32 = 2;
/// Longest time that a connection lives on after its lifetime, seconds: the longest long-poll, twice.
pub const GRACE_SECONDS: u32 = 120;
/// Shortest and longest lifetime of a connection, seconds.
pub const LIFETIME_SECONDS: std::ops::RangeInclusive<u32> = 300..=600;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Between two requests.
    Idle = 0,
    /// A part of a request's head is there.
    Head = 1,
    /// A request is being answered.
    Busy = 2,
    /// The last answer is sent; what still comes is thrown away.
    Linger = 3,
}

/// What the sweeper sees of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What it is doing.
    pub phase: Phase,
    /// Requests so far.
    pub requests: u32,
    /// Whether a good token has been shown.
    pub trusted: bool,
    /// Whether the client does not read what it is sent.
    pub stalled: bool,
    /// Moves whenever a client that did not read has read on.
    pub progress: u32,
}

/// What to do with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// Its lifetime is over: the next answer says so.
    Aged,
    /// End it between two requests.
    Retire,
    /// End it now.
    Cut,
}

/// What is remembered of a connection between two looks.
#[derive(Debug)]
pub struct Watched {
    last: Option<Seen>,
    same_seconds: u32,
    age_seconds: u32,
    lifetime_seconds: u32,
}

// === impl Watched ===

impl Watched {
    /// A new connection with a lifetime in seconds.
    #[must_use]
    pub fn new(lifetime_seconds: u32) -> Self {
        Self { last: None, same_seconds: 0, age_seconds: 0, lifetime_seconds }
    }

    /// The look of one second.
    pub fn look(&mut self, seen: Seen) -> Verdict {
        self.age_seconds = self.age_seconds.saturating_add(1);
        if self.last == Some(seen) {
            self.same_seconds = self.same_seconds.saturating_add(1);
        } else {
            self.last = Some(seen);
            self.same_seconds = 0;
        }
        let same = self.same_seconds;
        if self.age_seconds > self.lifetime_seconds.saturating_add(GRACE_SECONDS)
            || (seen.stalled && same >= STALLED_SECONDS)
        {
            return Verdict::Cut;
        }
        match seen.phase {
            Phase::Head if same >= HEAD_SECONDS => Verdict::Cut,
            Phase::Linger if same >= LINGER_SECONDS => Verdict::Cut,
            Phase::Idle if same >= if seen.trusted { IDLE_SECONDS } else { HEAD_SECONDS } => Verdict::Retire,
            _ if self.age_seconds >= self.lifetime_seconds => Verdict::Aged,
            _ => Verdict::Keep,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Seen = Seen { phase: Phase::Idle, requests: 1, trusted: true, stalled: false, progress: 0 };

    /// Seconds until the verdict is no longer Keep, and the verdict.
    fn first(lifetime: u32, mut seen: impl FnMut(u32) -> Seen) -> (u32, Verdict) {
        let mut watched = Watched::new(lifetime);
        (0..2_000)
            .map(|second| (second, watched.look(seen(second))))
            .find(|(_, verdict)| *verdict != Verdict::Keep)
            .unwrap()
    }

    #[test]
    fn limits_of_time() {
        let never = 1_000_000;
        assert_eq!(first(never, |_| IDLE), (IDLE_SECONDS, Verdict::Retire));
        assert_eq!(first(never, |_| Seen { trusted: false, ..IDLE }), (HEAD_SECONDS, Verdict::Retire));
        assert_eq!(first(never, |_| Seen { phase: Phase::Head, ..IDLE }), (HEAD_SECONDS, Verdict::Cut));
        assert_eq!(first(never, |_| Seen { phase: Phase::Linger, ..IDLE }), (LINGER_SECONDS, Verdict::Cut));
        assert_eq!(
            first(never, |_| Seen { phase: Phase::Busy, stalled: true, ..IDLE }),
            (STALLED_SECONDS, Verdict::Cut)
        );
    }

    #[test]
    fn a_device_with_a_heartbeat_lives_as_long_as_its_connection() {
        assert_eq!(first(400, |second| Seen { requests: second / 15, ..IDLE }), (399, Verdict::Aged));
        assert_eq!(
            first(400, |second| Seen { phase: Phase::Busy, requests: second / 60, ..IDLE }),
            (399, Verdict::Aged)
        );
        assert_eq!(
            first(400, |second| Seen { stalled: true, phase: Phase::Busy, progress: second / 20, ..IDLE }),
            (399, Verdict::Aged)
        );
    }

    #[test]
    fn nothing_outlives_the_grace() {
        let mut watched = Watched::new(300);
        let ended = (0..).find(|second| watched.look(Seen { requests: *second, ..IDLE }) == Verdict::Cut);
        assert_eq!(ended, Some(300 + GRACE_SECONDS));
    }
}
