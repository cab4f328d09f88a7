//! Pure: the bodies of reports, each small enough for the gateway.

use crate::wire::capabilities::Capabilities;
use crate::wire::report::Observation;
use crate::wire::{MAX_BODY_BYTES, MAX_OBSERVATIONS, time};
use serde::Serialize;

/// Room that a body keeps for everything but observations, bytes.
const ENVELOPE_BYTES: usize = 2048;
/// Capabilities that are known are said again after so many reports: once an hour at the usual 15 s, for a
/// NetworkSwitch that was deleted and made anew.
const CAPABILITIES_EVERY: u64 = 240;

/// What all reports of one start of the agent have in common, and their order.
#[derive(Debug)]
pub struct Reporter {
    boot_id: String,
    sequence: u64,
    capabilities: Option<Capabilities>,
    /// What was sent of them and is not acknowledged yet.
    sent: Option<Capabilities>,
    /// What was acknowledged of them.
    known: Option<Capabilities>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<&'a Capabilities>,
    observations: &'a [Observation<'a>],
}

// === impl Reporter ===

impl Reporter {
    /// `seed` is random per start of the agent.
    #[must_use]
    pub fn new(seed: [u8; 16]) -> Self {
        Self { boot_id: hex::encode(seed), sequence: 0, capabilities: None, sent: None, known: None }
    }

    /// The random name of this start of the agent.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// What the device can do, from now on. It is said until it is acknowledged, then only now and then, for a cluster
    /// that has forgotten it.
    pub fn set_capabilities(&mut self, capabilities: Capabilities) {
        self.capabilities = Some(capabilities);
    }

    /// Everything that [`Reporter::bodies`] returned last was acknowledged.
    pub fn acknowledged(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.known = Some(sent);
        }
    }

    /// Everything that is to be said, in as few bodies as the gateway's limits allow; without observations one
    /// body, which is a bare sign of life. `unix_seconds` is the device's wall clock.
    ///
    /// # Errors
    /// Only when an observation cannot be serialized, which none of these types allows.
    pub fn bodies(&mut self, unix_seconds: i64, observations: &[Observation<'_>]) -> serde_json::Result<Vec<Vec<u8>>> {
        let timestamp = time::format(unix_seconds);
        let again = self.sequence / CAPABILITIES_EVERY != (self.sequence + 1) / CAPABILITIES_EVERY;
        self.sent = self.capabilities.clone().filter(|now| again || self.known.as_ref() != Some(now));
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
                capabilities: self.sent.as_ref().filter(|_| bodies.is_empty()),
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

    /// Whether each of so many reports tells what the device can do.
    fn tells(reporter: &mut Reporter, count: usize) -> Vec<Option<String>> {
        let mut tell = || {
            let body = reporter.bodies(0, &[]).unwrap().concat();
            Report::parse(&body).unwrap().capabilities.map(|raw| raw.get().to_owned())
        };
        (0..count).map(|_| tell()).collect()
    }

    #[test]
    fn capabilities_are_said_until_they_are_acknowledged_and_once_an_hour() {
        let mut reporter = Reporter::new([1; 16]);
        assert_eq!(tells(&mut reporter, 1), [None]);
        reporter.set_capabilities(Capabilities::new(["systemd"], ["oci", "file"]));
        let said = Some(r#"{"backends":["systemd"],"artifactTypes":["file","oci"]}"#.to_owned());
        assert_eq!(tells(&mut reporter, 2), [said.clone(), said.clone()]);
        reporter.acknowledged();
        assert_eq!(tells(&mut reporter, 2), [None, None]);
        reporter.acknowledged();
        reporter.set_capabilities(Capabilities::new(["systemd"], ["file", "oci"]));
        assert_eq!(tells(&mut reporter, 1), [None], "they are what they were");
        reporter.set_capabilities(Capabilities::new(["initd", "systemd"], ["file", "oci"]));
        let changed = Some(r#"{"backends":["initd","systemd"],"artifactTypes":["file","oci"]}"#.to_owned());
        assert_eq!(tells(&mut reporter, 1), [changed]);
        // What changes on the way is not what was acknowledged.
        reporter.set_capabilities(Capabilities::new(["systemd"], ["file", "oci"]));
        reporter.acknowledged();
        assert_eq!(tells(&mut reporter, 1), [said]);
        reporter.acknowledged();
        let hours = 3;
        let again = tells(&mut reporter, 240 * hours).iter().flatten().count();
        assert_eq!(again, hours);
    }

    #[test]
    fn the_longest_capabilities_fit_beside_observations() {
        let words: Vec<String> = (10..99).map(|n| format!("{n}{}", "x".repeat(30))).collect();
        let words = || words.iter().map(String::as_str);
        let mut reporter = Reporter::new([1; 16]);
        reporter.set_capabilities(Capabilities::new(words(), words()));
        assert!(reporter.bodies(0, &[]).unwrap()[0].len() < ENVELOPE_BYTES);
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
