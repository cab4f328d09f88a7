//! Pure: counts the ends of runs over all containers of a process.
//!
//! An engine counts for one container, and begins anew when somebody starts the container or the engine itself comes up
//! again. What it had counted before is kept here.

use super::found::Container;
use crate::agent::backend::{Activity, Exit};
use serde::{Deserialize, Serialize};

/// What is kept of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Its name: another one when counting began anew.
    pub epoch: String,
    /// Ends that no engine counts any more.
    past: u64,
    /// The container that ran last.
    container: String,
    /// Ends of it.
    count: u64,
    /// How the last run ended that nobody had stopped.
    pub last_exit: Option<Exit>,
}

// === impl Tally ===

impl Tally {
    /// Nothing has ended yet.
    #[must_use]
    pub fn new(epoch: String) -> Self {
        Self { epoch, past: 0, container: String::new(), count: 0, last_exit: None }
    }

    /// All ends that are known.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.past + self.count
    }

    /// Takes up what the container that runs, or ran last, tells now. Whether there was an end of which it tells
    /// nothing but that it was: the engine runs it again already.
    #[must_use]
    pub fn take(&mut self, live: &Container) -> bool {
        let activity = live.activity();
        // The engine counts an end when it decides to start the container again.
        let count = live.restart_count + u64::from(matches!(activity, Activity::Ended(_)));
        let same = self.container == live.id;
        let more = if same && count >= self.count { count > self.count } else { count > 0 };
        if !same || count < self.count {
            self.past += self.count;
        }
        self.container.clone_from(&live.id);
        self.count = count;
        match activity {
            Activity::Ended(exit) | Activity::Restarting(exit) => {
                self.last_exit = Some(exit);
                false
            }
            Activity::Running { .. } | Activity::Stopped => more,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::found::tests::container;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn seen(tally: &mut Tally, sequence: u64, status: &str, count: u64) -> (u64, bool) {
        let code = if status == "running" { 0 } else { 3 };
        let asked =
            tally.take(&container(sequence, "h", status, &json!({"RestartCount": count, "State": {"ExitCode": code}})));
        (tally.exits(), asked)
    }

    #[test]
    fn the_count_goes_on_over_containers_and_engines() {
        let mut tally = Tally::new("e".into());
        assert_eq!(seen(&mut tally, 1, "running", 0), (0, false));
        assert_eq!(seen(&mut tally, 1, "restarting", 1), (1, false));
        assert_eq!(tally.last_exit.as_ref().map(|exit| exit.code), Some(3));
        assert_eq!(seen(&mut tally, 1, "running", 1), (1, false), "its end is known");
        assert_eq!(seen(&mut tally, 1, "running", 3), (3, true), "two were missed");
        assert_eq!(seen(&mut tally, 1, "running", 0), (3, false), "the engine came up again");
        assert_eq!(seen(&mut tally, 1, "exited", 0), (4, false));
        assert_eq!(seen(&mut tally, 2, "running", 0), (4, false), "a new version");
        assert_eq!(seen(&mut tally, 2, "running", 1), (5, true));
        let text = serde_json::to_string(&tally).unwrap();
        assert_eq!(serde_json::from_str::<Tally>(&text).unwrap(), tally);
    }

    proptest! {
        #[test]
        fn it_never_goes_back(steps in prop::collection::vec((1..3_u64, 0..4_usize, 0..4_u64), 0..20)) {
            let mut tally = Tally::new("e".into());
            let mut last = 0;
            for (sequence, status, count) in steps {
                let status = ["running", "exited", "restarting", "paused"][status];
                let (exits, _) = seen(&mut tally, sequence, status, count);
                prop_assert!(exits >= last, "{} after {}", exits, last);
                last = exits;
                let again = seen(&mut tally, sequence, status, count);
                prop_assert_eq!(again, (exits, false), "looked at twice");
            }
        }
    }
}
