//! Pure: whether a process that lives is well.
//!
//! Successes and failures are counted in a row; the thresholds make them a verdict. Before the first one there is none.
//! A process that was started anew is judged anew. Without a check it is well when it has run for five seconds.

use super::spec::HealthCheck;
use crate::agent::backend::Checked;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How long a process without a check must have run.
const SETTLED: Duration = Duration::from_secs(5);
/// How long after the start the first check is made.
const FIRST_CHECK: Duration = Duration::from_secs(1);

/// One run of a process: its process id and when it was started, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its process id on the device.
    pub pid: i64,
    /// Its start time as the backend says it.
    pub started: i64,
}

/// What was found out about a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which run it is about.
    pub run: Run,
    /// Whether it is well.
    pub healthy: bool,
    /// What the check said when it turned bad; it stays as long as the verdict, so that a check that prints the time
    /// costs no write each period.
    pub message: Option<String>,
}

/// Judges the run that lives now.
#[derive(Debug, Clone, Default)]
pub struct Health {
    run: Option<Run>,
    since: Option<Instant>,
    verdict: Option<Verdict>,
    passed: u32,
    failed: u32,
    next: Option<Instant>,
}

// === impl Health ===

impl Health {
    /// Goes on from what a former start of the agent found out.
    #[must_use]
    pub fn restore(verdict: Option<Verdict>) -> Self {
        Self { verdict, ..Self::default() }
    }

    /// What lives now, if anything does. Another run is judged anew.
    pub fn lives(&mut self, now: Instant, run: Option<Run>) {
        if self.run == run {
            return;
        }
        let verdict = self.verdict.take().filter(|verdict| Some(verdict.run) == run);
        *self = Self { run, verdict, since: run.map(|_| now), next: run.map(|_| now + FIRST_CHECK), ..Self::default() };
    }

    /// When a check is to be started, or a verdict can be given without one; none: nothing is to be done.
    #[must_use]
    pub fn due(&self, check: Option<&HealthCheck>) -> Option<Instant> {
        match check {
            Some(_) => self.next,
            None if self.verdict.as_ref().is_some_and(|verdict| verdict.healthy) => None,
            None => self.since.map(|since| since + SETTLED),
        }
    }

    /// A check is started now.
    pub fn begin(&mut self, now: Instant, check: &HealthCheck) {
        self.next = Some(now + check.period());
    }

    /// Without a check: whether it has run for long enough by now. True when there is a new verdict.
    pub fn settle(&mut self, now: Instant) -> bool {
        let Some((run, since)) = self.run.zip(self.since) else { return false };
        let settled = now.saturating_duration_since(since) >= SETTLED;
        let known = self.verdict.as_ref().is_some_and(|verdict| verdict.healthy);
        if settled && !known {
            self.verdict = Some(Verdict { run, healthy: true, message: None });
        }
        settled && !known
    }

    /// How a check of `run` came out. True when there is a new verdict. One of a run that is over says nothing.
    pub fn checked(&mut self, run: Run, outcome: Checked, check: &HealthCheck) -> bool {
        if self.run != Some(run) {
            return false;
        }
        let (healthy, message) = match outcome {
            Checked::Passed => {
                (self.passed, self.failed) = (self.passed.saturating_add(1), 0);
                (true, None)
            }
            Checked::Failed(message) => {
                (self.passed, self.failed) = (0, self.failed.saturating_add(1));
                (false, Some(message))
            }
        };
        let enough = self.passed >= check.success_threshold.max(1) || self.failed >= check.failure_threshold.max(1);
        if !enough || self.verdict.as_ref().is_some_and(|verdict| verdict.healthy == healthy) {
            return false;
        }
        self.verdict = Some(Verdict { run, healthy, message });
        true
    }

    /// The verdict on what lives now.
    #[must_use]
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref().filter(|verdict| Some(verdict.run) == self.run)
    }

    /// What lives now.
    #[must_use]
    pub fn run(&self) -> Option<Run> {
        self.run
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::Exec;
    use super::*;
    use proptest::prelude::*;

    const RUN: Run = Run { pid: 7, started: 100 };

    fn check(success_threshold: u32, failure_threshold: u32) -> HealthCheck {
        let exec = Exec { command: vec!["true".into()] };
        HealthCheck { exec, period_seconds: 30, timeout_seconds: 5, success_threshold, failure_threshold }
    }

    fn bad(text: &str) -> Checked {
        Checked::Failed(text.into())
    }

    #[test]
    fn without_a_check_it_is_well_after_five_seconds() {
        let start = Instant::now();
        let mut health = Health::default();
        assert_eq!((health.due(None), health.settle(start)), (None, false));
        health.lives(start, Some(RUN));
        let due = health.due(None).unwrap();
        assert_eq!(due, start + SETTLED);
        assert!(!health.settle(due - Duration::from_millis(1)) && health.verdict().is_none());
        assert!(health.settle(due) && health.verdict().unwrap().healthy);
        assert!(!health.settle(due) && health.due(None).is_none(), "once is enough");
        health.lives(due, Some(Run { pid: 8, ..RUN }));
        assert!(health.verdict().is_none(), "another run is judged anew");
    }

    #[test]
    fn a_verdict_outlives_the_agent_but_not_the_run() {
        let verdict = Verdict { run: RUN, healthy: false, message: Some("exit code 1".into()) };
        let mut health = Health::restore(Some(verdict.clone()));
        assert_eq!(health.verdict(), None);
        health.lives(Instant::now(), Some(RUN));
        assert_eq!(health.verdict(), Some(&verdict));
        let mut health = Health::restore(Some(verdict));
        health.lives(Instant::now(), Some(Run { started: 101, ..RUN }));
        assert_eq!(health.verdict(), None);
    }

    #[test]
    fn the_message_is_the_one_that_turned_it() {
        let mut health = Health::default();
        health.lives(Instant::now(), Some(RUN));
        let check = check(1, 2);
        assert!(!health.checked(RUN, bad("1"), &check));
        assert!(health.checked(RUN, bad("2"), &check));
        assert!(!health.checked(RUN, bad("3"), &check));
        assert_eq!(health.verdict().unwrap().message.as_deref(), Some("2"));
        assert!(!health.checked(Run { pid: 1, ..RUN }, Checked::Passed, &check), "another run's");
        assert!(health.checked(RUN, Checked::Passed, &check));
        assert_eq!(health.verdict().unwrap().message, None);
    }

    proptest! {
        #[test]
        fn thresholds_are_counted_in_a_row(outcomes in prop::collection::vec(any::<bool>(), 0..40), up in 1_u32..4, down in 1_u32..4) {
            let check = check(up, down);
            let mut health = Health::default();
            health.lives(Instant::now(), Some(RUN));
            let mut expected = None;
            for i in 0..outcomes.len() {
                let outcome = if outcomes[i] { Checked::Passed } else { bad("x") };
                let before = expected;
                let row = outcomes[..=i].iter().rev().take_while(|o| **o == outcomes[i]).count();
                if row >= if outcomes[i] { up } else { down } as usize {
                    expected = Some(outcomes[i]);
                }
                prop_assert_eq!(health.checked(RUN, outcome, &check), expected != before);
                prop_assert_eq!(health.verdict().map(|v| v.healthy), expected);
            }
        }
    }
}
