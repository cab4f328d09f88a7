//! Edge: tells when requests begin to fail and when they work again, without a line per request.

use super::endpoint::Endpoint;
use std::collections::HashMap;
use std::time::Instant;
use tracing::{debug, info, warn};

/// What is wrong with the requests of one loop.
#[derive(Debug)]
pub struct Trouble {
    route: &'static str,
    /// The last problem of each gateway that has failed since the last success.
    problems: HashMap<String, String>,
    since: Option<Instant>,
    ever_worked: bool,
}

// === impl Trouble ===

impl Trouble {
    /// Nothing was sent yet. `route` tells the loops apart.
    #[must_use]
    pub fn new(route: &'static str) -> Self {
        Self { route, problems: HashMap::new(), since: None, ever_worked: false }
    }

    /// Notes how a request ended: a warning when a gateway fails in a new way, a line when all is well again.
    pub fn note(&mut self, now: Instant, gateway: &Endpoint, problem: Option<String>, held: usize) {
        let gateway = gateway.to_string();
        let Some(problem) = problem else {
            if let Some(since) = self.since.take() {
                let seconds = now.saturating_duration_since(since).as_secs();
                info!(route = self.route, gateway, after_seconds = seconds, "the gateway answers again");
            } else if !self.ever_worked {
                info!(route = self.route, gateway, "the gateway answers");
            }
            self.ever_worked = true;
            self.problems.clear();
            return;
        };
        self.since.get_or_insert(now);
        if self.problems.get(&gateway) == Some(&problem) {
            debug!(route = self.route, gateway, problem, "still failing");
        } else {
            warn!(route = self.route, gateway, problem, held, "request failed; holding what is held");
            self.problems.insert(gateway, problem);
        }
    }
}
