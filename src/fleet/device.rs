//! Pure: what one simulated device knows and says.

use super::arguments::Observe;
use crate::wire::desired::DesiredState;
use crate::wire::report::Observation;
use crate::wire::{MAX_OBSERVATIONS, time};
use serde::Serialize;
use std::collections::HashMap;
use std::time::Duration;

/// When the simulated processes were started, whatever the time: a report that changes nothing costs nothing.
const START_TIME: &str = "2025-12-12T23:54:58Z";
/// What every simulated process has as its id.
const PID: i64 = 4711;

/// One device. Kept small: there are thousands.
#[derive(Debug)]
pub struct Device {
    etag: Option<Box<str>>,
    revision: Option<u64>,
    heartbeat: Duration,
    known: bool,
    items: Box<[Item]>,
    boot_id: u64,
    sequence: u64,
}

#[derive(Debug)]
struct Item {
    uid: Box<str>,
    namespace: Box<str>,
    name: Box<str>,
    generation: i64,
    spec_hash: Box<str>,
}

/// What a good answer brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Something else to run.
    Changed,
    /// What was known.
    Same,
    /// A state from before what the device has seen; ignored.
    Old,
    /// Nothing that can be read.
    Unreadable,
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
    observations: Vec<Observation<'a>>,
}

// === impl Device ===

impl Device {
    /// A device that has just started. `boot_id` is random.
    #[must_use]
    pub fn new(boot_id: u64, heartbeat: Duration) -> Self {
        Self { etag: None, revision: None, heartbeat, known: false, items: Box::new([]), boot_id, sequence: 0 }
    }

    /// The entity tag to ask with.
    #[must_use]
    pub fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// The highest revision seen.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// The time between reports that the gateway asked for.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// Whether the device has been told what it should run.
    #[must_use]
    pub fn knows(&self) -> bool {
        self.known
    }

    /// Takes in a 304.
    pub fn unchanged(&mut self, revision: Option<u64>) -> Verdict {
        if self.is_old(revision) {
            return Verdict::Old;
        }
        self.revision = self.revision.max(revision);
        Verdict::Same
    }

    /// Takes in a 200 that was an answer to this device.
    pub fn received(&mut self, name: &str, etag: Option<&str>, revision: Option<u64>, body: &[u8]) -> Verdict {
        let Some(state) = serde_json::from_slice::<DesiredState>(body).ok().filter(|state| state.device_name == name)
        else {
            return Verdict::Unreadable;
        };
        if self.is_old(revision) {
            return Verdict::Old;
        }
        let known: HashMap<&str, i64> = self.items.iter().map(|item| (&*item.uid, item.generation)).collect();
        if state
            .items
            .iter()
            .any(|item| known.get(item.uid.as_str()).is_some_and(|generation| item.generation < *generation))
        {
            return Verdict::Old;
        }
        let same = self.known && self.etag.as_deref() == etag;
        self.revision = self.revision.max(revision);
        self.etag = etag.map(Into::into);
        self.heartbeat = Duration::from_secs(state.heartbeat_interval_seconds.clamp(1, 3600));
        self.known = true;
        let items = state.items.into_iter().map(|item| Item {
            uid: item.uid.into(),
            namespace: item.namespace.into(),
            name: item.name.into(),
            generation: item.generation,
            spec_hash: item.spec_hash.into(),
        });
        self.items = items.collect();
        if same { Verdict::Same } else { Verdict::Changed }
    }

    fn is_old(&self, revision: Option<u64>) -> bool {
        revision.zip(self.revision).is_some_and(|(now, seen)| now < seen)
    }

    /// Everything that the device has to say, in as few bodies as the contract allows.
    pub fn reports(&mut self, unix_seconds: i64, observe: Observe) -> Vec<Vec<u8>> {
        let (timestamp, boot_id) = (time::format(unix_seconds), format!("{:016x}", self.boot_id));
        let said: &[Item] = if observe == Observe::None { &[] } else { &self.items };
        let parts: Vec<&[Item]> = if said.is_empty() { vec![&[]] } else { said.chunks(MAX_OBSERVATIONS).collect() };
        let mut bodies = Vec::with_capacity(parts.len());
        for part in parts {
            self.sequence += 1;
            let report = Outgoing {
                agent_version: concat!("fleet-", env!("CARGO_PKG_VERSION")),
                timestamp: &timestamp,
                heartbeat: true,
                boot_id: &boot_id,
                sequence: self.sequence,
                observations: part.iter().map(|item| item.observation(observe)).collect(),
            };
            // Cannot fail: there are only strings, numbers and lists.
            bodies.push(serde_json::to_vec(&report).unwrap_or_default());
        }
        bodies
    }
}

// === impl Item ===

impl Item {
    fn observation(&self, observe: Observe) -> Observation<'_> {
        let running = observe == Observe::Running;
        let hash = || Some((&*self.spec_hash).into());
        Observation {
            namespace: Some((&*self.namespace).into()),
            name: Some((&*self.name).into()),
            observed_spec_hash: hash(),
            running_spec_hash: running.then(hash).flatten(),
            process_started: running.then_some(true),
            healthy: running.then_some(true),
            pid: running.then_some(PID),
            start_time: running.then_some(START_TIME.into()),
            restart_count: running.then_some(0),
            ..Observation::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::report::Report;
    use proptest::prelude::*;

    const H: Duration = Duration::from_secs(15);

    fn body(device: &str, items: &[(&str, i64)]) -> Vec<u8> {
        let items: Vec<_> = items
            .iter()
            .map(|(uid, generation)| {
                serde_json::json!({"uid": uid, "namespace": "n", "name": format!("p-{uid}"), "generation": generation, "spec": {}, "specHash": "sha256:x"})
            })
            .collect();
        serde_json::to_vec(&serde_json::json!({"deviceName": device, "heartbeatIntervalSeconds": 7, "items": items}))
            .unwrap()
    }

    #[test]
    fn never_back_in_time() {
        let mut device = Device::new(1, H);
        assert_eq!(device.received("d", Some("\"a\""), Some(10), &body("d", &[("u", 2)])), Verdict::Changed);
        assert_eq!(
            (device.etag(), device.revision(), device.heartbeat()),
            (Some("\"a\""), Some(10), Duration::from_secs(7))
        );
        assert_eq!(device.received("d", Some("\"b\""), Some(9), &body("d", &[])), Verdict::Old);
        assert_eq!(device.received("d", Some("\"b\""), Some(11), &body("d", &[("u", 1)])), Verdict::Old);
        assert_eq!(device.unchanged(Some(9)), Verdict::Old);
        assert_eq!(device.unchanged(Some(12)), Verdict::Same);
        assert_eq!(device.received("d", Some("\"a\""), Some(12), &body("d", &[("u", 2)])), Verdict::Same);
        assert_eq!(device.received("d", Some("\"c\""), Some(12), &body("e", &[])), Verdict::Unreadable);
        assert_eq!(device.received("d", Some("\"c\""), None, b"{"), Verdict::Unreadable);
        assert_eq!((device.etag(), device.revision()), (Some("\"a\""), Some(12)));
    }

    #[test]
    fn reports_say_what_they_are_asked_to() {
        let mut device = Device::new(0xab, H);
        assert_eq!(device.received("d", None, None, &body("d", &[("u", 1)])), Verdict::Changed);
        let text =
            |device: &mut Device, observe| String::from_utf8(device.reports(1_765_583_700, observe).concat()).unwrap();
        assert!(
            text(&mut device, Observe::None)
                .ends_with(r#""bootId":"00000000000000ab","sequence":1,"observations":[]}"#)
        );
        assert!(
            text(&mut device, Observe::Seen)
                .ends_with(r#""observations":[{"namespace":"n","name":"p-u","observedSpecHash":"sha256:x"}]}"#)
        );
        assert!(text(&mut device, Observe::Running).contains(r#""processStarted":true,"healthy":true,"pid":4711"#));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn every_process_is_said_once_in_readable_parts(count in 0_usize..700) {
            let uids: Vec<String> = (0..count).map(|n| format!("u{n}")).collect();
            let items: Vec<(&str, i64)> = uids.iter().map(|uid| (uid.as_str(), 1)).collect();
            let mut device = Device::new(1, H);
            device.received("d", None, None, &body("d", &items));
            let bodies = device.reports(0, Observe::Running);
            let reports: Vec<_> = bodies.iter().map(|body| Report::parse(body).unwrap()).collect();
            let said: usize = reports.iter().map(|report| report.observations.as_ref().unwrap().len()).sum();
            prop_assert_eq!(said, count);
            prop_assert!(reports.iter().zip(1_u64..).all(|(report, sequence)| report.sequence == Some(sequence)));
            prop_assert_eq!(reports.len(), count.div_ceil(MAX_OBSERVATIONS).max(1));
        }
    }
}
