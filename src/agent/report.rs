//! Pure: the bodies of reports, each small enough for the gateway.

use crate::wire::report::Observation;
use crate::wire::{MAX_BODY_BYTES, MAX_OBSERVATIONS, time};
use serde::Serialize;

/// Room that a body keeps for everything but observations, bytes.
const ENVELOPE_BYTES: usize = 1024;

/// What all reports of one start of the agent have in common, and their order.
#[derive(Debug)]
pub struct Reporter {
    boot_id: String,
    sequence: u64,
}

/// A report as it is sent; `crate::wire::report::Report` is the same as it is received.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outgoing<'a> {
    agent_version: &'a str,
    timestamp: &'a str,
    heartbeat: bool,
    boot_id: &'a str,
    sequence: u64,
    observations: &'a [Observation<'a>],
}

// === impl Reporter ===

impl Reporter {
    /// `seed` is random per start of the agent.
    #[must_use]
    pub fn new(seed: [u8; 16]) -> Self {
        Self { boot_id: hex::encode(seed), sequence: 0 }
    }

    /// The random name of this start of the agent.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Everything that is to be said, in as few bodies as the gateway's limits allow; without observations one
    /// body, which is a bare sign of life. `unix_seconds` is the device's wall clock.
    ///
    /// # Errors
    /// Only when an observation cannot be serialized, which none of these types allows.
    pub fn bodies(&mut self, unix_seconds: i64, observations: &[Observation<'_>]) -> serde_json::Result<Vec<Vec<u8>>> {
        let timestamp = time::format(unix_seconds);
        let mut bodies = Vec::new();
        let mut rest = observations;
        loop {
            let mut bytes = ENVELOPE_BYTES;
            let mut count = 0;
            for observation in rest.iter().take(MAX_OBSERVATIONS) {
                bytes += serde_json::to_vec(observation)?.len() + 1;
                // One that is too long for any body still goes alone: the gateway says what is wrong with it.
                if bytes > MAX_BODY_BYTES && count > 0 {
                    break;
                }
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            self.sequence += 1;
            bodies.push(serde_json::to_vec(&Outgoing {
                agent_version: env!("CARGO_PKG_VERSION"),
                timestamp: &timestamp,
                heartbeat: true,
                boot_id: &self.boot_id,
                sequence: self.sequence,
                observations: now,
            })?);
            rest = later;
            if rest.is_empty() {
                return Ok(bodies);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::report::Report;
    use proptest::prelude::*;

    #[test]
    fn a_report_says_only_what_is_known() {
        let mut reporter = Reporter::new([0xab; 16]);
        let observation = Observation {
            namespace: Some("a".into()),
            name: Some("b".into()),
            observed_spec_hash: Some("sha256:x".into()),
            ..Observation::default()
        };
        let bodies = reporter.bodies(1_765_583_700, &[observation]).unwrap();
        assert_eq!(
            String::from_utf8(bodies.concat()).unwrap(),
            format!(
                r#"{{"agentVersion":"{}","timestamp":"2025-12-12T23:55:00Z","heartbeat":true,"bootId":"{}","sequence":1,"observations":[{{"namespace":"a","name":"b","observedSpecHash":"sha256:x"}}]}}"#,
                env!("CARGO_PKG_VERSION"),
                "ab".repeat(16)
            )
        );
        assert_eq!(reporter.bodies(0, &[]).unwrap().len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_observation_is_said_once_in_order_within_the_limits(lengths in prop::collection::vec(0_usize..3000, 0..700)) {
            let names: Vec<String> = lengths.iter().enumerate().map(|(i, n)| format!("{i}-{}", "x".repeat(*n))).collect();
            let observations: Vec<_> =
                names.iter().map(|n| Observation { name: Some(n.as_str().into()), ..Observation::default() }).collect();
            let mut reporter = Reporter::new([1; 16]);
            let bodies = reporter.bodies(0, &observations).unwrap();
            let mut said = Vec::new();
            for (i, body) in bodies.iter().enumerate() {
                prop_assert!(body.len() <= MAX_BODY_BYTES);
                let report = Report::parse(body).unwrap();
                prop_assert_eq!(report.sequence, Some(i as u64 + 1));
                let part = report.observations.unwrap();
                prop_assert!(part.len() <= MAX_OBSERVATIONS && (!part.is_empty() || names.is_empty()));
                said.extend(part.into_iter().map(|raw| Observation::parse(raw).unwrap().name.unwrap().into_owned()));
            }
            prop_assert_eq!(said, names);
        }
    }
}
