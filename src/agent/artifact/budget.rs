//! Pure: how much of an archive is taken before it counts as a bomb, and how slow a server may be.

use super::entries::MAX_RECORD_BYTES;
use super::policy::Limits;
use std::time::{Duration, Instant};

/// Bytes of an archive beside its content, for each entry: its header, its record's header and the record as tools
/// write it, each filled up to a block.
const OVERHEAD_PER_FILE: u64 = 2560;
/// How many intervals of silence are looked at together.
const PACE_INTERVALS: u32 = 2;
/// Bytes that must come in that time. No line that a device can be managed over is as slow.
const PACE_BYTES: u64 = 4096;

/// What is left of the limits while archives are unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    limits: Limits,
    files: u64,
    content: u64,
    raw: u64,
    /// Of former archives of the same artifact.
    raw_before: u64,
}

/// Which limit is reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BudgetFault {
    /// Bytes.
    #[error(
        "unpacked, the artifact is larger than the {0} bytes that --max-artifact-bytes (APOLLO_AGENT_MAX_ARTIFACT_BYTES) allows"
    )]
    Bytes(u64),
    /// Files.
    #[error("the artifact holds more than {0} files")]
    Files(u64),
    /// One byte becomes too many.
    #[error("the artifact is compressed more than {0}:1, as only a bomb is")]
    Ratio(u64),
}

// === impl Budget ===

impl Budget {
    /// Nothing is used yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, files: 0, content: 0, raw: 0, raw_before: 0 }
    }

    /// The next archive of the same artifact begins.
    pub fn next_archive(&mut self) {
        self.raw_before = self.raw;
    }

    /// An entry with so many bytes of content begins.
    ///
    /// # Errors
    /// It is one too many.
    pub fn entry(&mut self, size: u64) -> Result<(), BudgetFault> {
        self.files += 1;
        self.content = self.content.saturating_add(size);
        if self.files > self.limits.files {
            return Err(BudgetFault::Files(self.limits.files));
        }
        if self.content > self.limits.bytes { Err(BudgetFault::Bytes(self.limits.bytes)) } else { Ok(()) }
    }

    /// So many more bytes of the archive were read, whatever they are; `packed` are those that they came from, since
    /// the archive's beginning.
    ///
    /// # Errors
    /// They are too many, or came from too few.
    pub fn read(&mut self, bytes: u64, packed: u64) -> Result<(), BudgetFault> {
        self.raw = self.raw.saturating_add(bytes);
        let overhead = self.limits.files.saturating_mul(OVERHEAD_PER_FILE).saturating_add(MAX_RECORD_BYTES);
        if self.raw > self.limits.bytes.saturating_add(overhead) {
            return Err(BudgetFault::Bytes(self.limits.bytes));
        }
        let this = self.raw - self.raw_before;
        if this > self.limits.ratio_from && this / self.limits.ratio.max(1) > packed {
            return Err(BudgetFault::Ratio(self.limits.ratio));
        }
        Ok(())
    }
}

/// Whether a server sends fast enough to be waited for.
#[derive(Debug)]
pub struct Pace {
    window: Duration,
    since: Instant,
    bytes: u64,
}

// === impl Pace ===

impl Pace {
    /// `stall`: how long nothing may come.
    #[must_use]
    pub fn new(now: Instant, stall: Duration) -> Self {
        Self { window: stall * PACE_INTERVALS, since: now, bytes: 0 }
    }

    /// So many bytes came; `false` when it is a trickle that would go on for ever.
    pub fn came(&mut self, now: Instant, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if now.saturating_duration_since(self.since) < self.window {
            return true;
        }
        let enough = self.bytes >= PACE_BYTES;
        (self.since, self.bytes) = (now, 0);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { bytes: 1000, files: 3, ratio: 10, ratio_from: 100 };

    #[test]
    fn each_limit_holds() {
        let mut budget = Budget::new(LIMITS);
        assert!(budget.entry(400).is_ok() && budget.entry(600).is_ok() && budget.entry(0).is_ok());
        assert_eq!(budget.entry(0), Err(BudgetFault::Files(3)));
        let mut budget = Budget::new(LIMITS);
        assert_eq!(budget.entry(1001), Err(BudgetFault::Bytes(1000)));
        assert_eq!(Budget::new(LIMITS).entry(u64::MAX), Err(BudgetFault::Bytes(1000)));
        // Bytes that belong to no file are counted, too.
        let mut budget = Budget::new(LIMITS);
        let all = 1000 + 3 * OVERHEAD_PER_FILE + MAX_RECORD_BYTES;
        assert!(budget.read(all, u64::MAX).is_ok());
        assert_eq!(budget.read(1, u64::MAX), Err(BudgetFault::Bytes(1000)));
    }

    #[test]
    fn the_ratio_is_of_each_archive() {
        let mut budget = Budget::new(LIMITS);
        assert!(budget.read(100, 0).is_ok());
        assert!(budget.read(10, 11).is_ok());
        assert_eq!(budget.read(10, 11), Err(BudgetFault::Ratio(10)));
        budget.next_archive();
        assert!(budget.read(100, 0).is_ok());
        assert_eq!(budget.read(10, 1), Err(BudgetFault::Ratio(10)));
    }

    #[test]
    fn a_trickle_is_no_progress() {
        let start = Instant::now();
        let mut pace = Pace::new(start, Duration::from_secs(30));
        assert!(pace.came(start + Duration::from_secs(59), 1));
        assert!(!pace.came(start + Duration::from_secs(60), 1));
        assert!(pace.came(start + Duration::from_secs(61), 4096));
        assert!(pace.came(start + Duration::from_secs(120), 0));
    }
}
