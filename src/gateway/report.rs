//! Edge: reports and connects.

use super::answer::{ACK, Answer, Refusal, json};
use super::path::Route;
use super::service::Gateway;
use crate::status::intake::{Incoming, Intake, NotTaken, Outcome};
use crate::status::observed::Observed;
use crate::status::projection::Introduction;
use crate::wire::MAX_OBSERVATIONS;
use crate::wire::capabilities::Capabilities;
use crate::wire::report::{Observation, Rejection, Report, ReportAnswer, clean};
use crate::wire::time;
use bytes::Bytes;
use http::HeaderMap;
use hyper::body::Body;
use serde_json::value::RawValue;
use siphasher::sip::SipHasher13;
use std::borrow::Cow;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use thiserror::Error;

/// Replicas tell each other what was said by this hash; another one would only make them forward more. Whoever finds
/// two reports of one hash deceives nobody but about his own device.
const SAID_KEY: &[u8; 16] = b"praetor-report-1";

/// Where reports go.
pub trait Reports: Send + Sync + 'static {
    /// Whether the same report left nothing to do before; then the sign of life is noted.
    fn is_settled(&self, device: &str, boot_id: &str, sequence: u64, fingerprint: u64) -> bool;

    /// Takes in a report of a known device.
    fn report(&self, device: &str, incoming: Incoming) -> impl Future<Output = Outcome> + Send;
}

impl Reports for Intake {
    fn is_settled(&self, device: &str, boot_id: &str, sequence: u64, fingerprint: u64) -> bool {
        Self::is_settled(self, device, boot_id, sequence, fingerprint)
    }

    async fn report(&self, device: &str, incoming: Incoming) -> Outcome {
        Self::report(self, device, incoming).await
    }
}

/// Why a report that another replica passed on is not answered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotAnswered {
    /// This replica is not the one to see to it.
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    /// It is no report.
    #[error("{0}")]
    Bad(String),
}

/// Takes in a report that another replica passed on as the device sent it. That replica reads it as well and says
/// what could not be read, so this is left out of the outcome.
///
/// # Errors
/// When it is not taken in.
pub async fn forwarded(intake: &Intake, device: &str, connect: bool, body: Bytes) -> Result<Outcome, NotAnswered> {
    let (incoming, _) = decode(connect, body).map_err(|refusal| NotAnswered::Bad(refusal.detail().into_owned()))?;
    Ok(intake.forwarded(device, incoming).await?)
}

/// Reads a report, and which of its observations could not be read.
fn decode(connect: bool, body: Bytes) -> Result<(Incoming, Vec<Rejection>), Refusal> {
    let route = if connect { Route::Connect } else { Route::Report };
    let report = Readable::parse(route, &body)?;
    let fingerprint = report.fingerprint();
    Ok(report.take(connect, body.clone(), fingerprint))
}

/// The report in a body that is one.
#[cfg(test)]
pub(crate) fn decode_for_tests(body: Bytes) -> Incoming {
    decode(false, body).unwrap().0
}

/// A report that could be read as a whole; its observations are still unread.
struct Readable<'a> {
    agent_version: Option<Cow<'a, str>>,
    capabilities: Option<&'a RawValue>,
    boot_id: Option<Cow<'a, str>>,
    sequence: Option<u64>,
    observations: Vec<&'a RawValue>,
}

// === impl Readable ===

impl<'a> Readable<'a> {
    fn parse(route: Route, body: &'a [u8]) -> Result<Self, Refusal> {
        let report = Report::parse(body).map_err(|error| Refusal::BadReport(error.to_string()))?;
        if report.timestamp.as_deref().is_some_and(|timestamp| time::parse(timestamp).is_none()) {
            let what = "timestamp must be a time as RFC 3339 writes it, for example 2025-12-12T23:55:00Z";
            return Err(Refusal::BadReport(what.into()));
        }
        let observations = match route {
            Route::Report => report.observations.unwrap_or_default(),
            Route::Connect | Route::Desired => Vec::new(),
        };
        if observations.len() > MAX_OBSERVATIONS {
            return Err(Refusal::TooMany(observations.len()));
        }
        let Report { agent_version, capabilities, boot_id, sequence, .. } = report;
        Ok(Self { agent_version, capabilities, boot_id, sequence, observations })
    }

    /// A hash of what it says, apart from when: the same at every replica, never 0.
    fn fingerprint(&self) -> u64 {
        let mut hasher = SipHasher13::new_with_key(SAID_KEY);
        self.agent_version.hash(&mut hasher);
        // Nothing at all when there are none, as replicas of the version before count.
        if let Some(capabilities) = self.capabilities {
            ("capabilities", capabilities.get()).hash(&mut hasher);
        }
        for observation in &self.observations {
            observation.get().hash(&mut hasher);
        }
        hasher.finish().max(1)
    }

    /// Reads the observations; returns those that could not be read, too.
    fn take(self, connect: bool, body: Bytes, fingerprint: u64) -> (Incoming, Vec<Rejection>) {
        let mut rejected = Vec::new();
        let observations: Vec<Observed> =
            self.observations.into_iter().filter_map(|raw| read(raw, &mut rejected)).collect();
        let incoming = Incoming {
            introduction: Introduction {
                version: kept(self.agent_version),
                capabilities: self.capabilities.and_then(Capabilities::parse).map(|known| known.text().into()),
            },
            boot_id: kept(self.boot_id),
            sequence: self.sequence,
            observations,
            // A report of which a part was refused is never settled.
            fingerprint: rejected.is_empty().then_some(fingerprint),
            connect,
            body,
        };
        (incoming, rejected)
    }
}

impl<R: Reports> Gateway<R> {
    /// The answer to a report, and whether there was nothing to do.
    pub(super) async fn report<B>(&self, route: Route, device: &str, body: B) -> (Answer, bool)
    where
        B: Body<Data = Bytes> + Unpin,
    {
        match self.take_in(route, device, body).await {
            Ok(None) => (ack(), true),
            Ok(Some(rejected)) if rejected.is_empty() => (ack(), false),
            Ok(Some(rejected)) => {
                let answer = ReportAnswer { ack: true, rejected };
                (json(HeaderMap::new(), serde_json::to_vec(&answer).unwrap_or_default().into()), false)
            }
            Err(refusal) => (refusal.answer(), false),
        }
    }

    /// Whether a body is a report that leaves nothing to do; then the sign of life is noted, and what the same
    /// report has in common the next time is returned.
    pub(super) fn settle(&self, route: Route, device: &str, body: &[u8]) -> Option<(Box<str>, u64)> {
        let report = Readable::parse(route, body).ok()?;
        let (settled, fingerprint) = self.settles(device, &report);
        settled.then(|| (report.boot_id.as_deref().map(clean).unwrap_or_default().into(), fingerprint))
    }

    /// Whether the same report left nothing to do before, and its fingerprint.
    fn settles(&self, device: &str, report: &Readable) -> (bool, u64) {
        let fingerprint = report.fingerprint();
        let settled = report.boot_id.as_deref().map(clean).zip(report.sequence).is_some_and(|(boot_id, sequence)| {
            !boot_id.is_empty() && self.reports.is_settled(device, &boot_id, sequence, fingerprint)
        });
        (settled, fingerprint)
    }

    /// What is rejected; `None` when there was nothing to do.
    async fn take_in<B>(&self, route: Route, device: &str, body: B) -> Result<Option<Vec<Rejection>>, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let body = self.bodies.read(body).await?;
        let report = Readable::parse(route, &body)?;
        let (settled, fingerprint) = self.settles(device, &report);
        if settled {
            return Ok(None);
        }
        let (incoming, mut rejected) = report.take(route == Route::Connect, body.clone(), fingerprint);
        // What is listed when it turns out that all the others are not this device's.
        let others: Vec<Rejection> = if rejected.is_empty() {
            Vec::new()
        } else {
            let not_yours = |observed: &Observed| Rejection {
                namespace: observed.namespace.clone(),
                name: observed.name.clone(),
                reason: "NotYours".into(),
            };
            incoming.observations.iter().map(not_yours).collect()
        };
        match self.reports.report(device, incoming).await {
            Outcome::Done { rejected: more } => rejected.extend(more),
            Outcome::AllNotYours if rejected.is_empty() => return Err(Refusal::NotYours),
            Outcome::AllNotYours => rejected.extend(others),
            Outcome::Later { retry_after_seconds } => return Err(Refusal::Later(retry_after_seconds)),
        }
        Ok(Some(rejected))
    }
}

fn ack() -> Answer {
    json(HeaderMap::new(), Bytes::from_static(ACK.as_bytes()))
}

/// Reads an observation, or says which one could not be read.
fn read(raw: &RawValue, rejected: &mut Vec<Rejection>) -> Option<Observed> {
    let parsed = Observation::parse(raw).ok();
    if let Some(observed) = parsed.as_ref().and_then(|observation| Observed::read(observation).ok()) {
        return Some(observed);
    }
    let (namespace, name) =
        parsed.map_or_else(|| named(raw), |observation| (text(observation.namespace), text(observation.name)));
    rejected.push(Rejection { namespace, name, reason: "Invalid".into() });
    None
}

/// Namespace and name of an observation that has a wrong type somewhere else.
fn named(raw: &RawValue) -> (String, String) {
    #[derive(serde::Deserialize)]
    struct Named<'a> {
        #[serde(borrow, default)]
        namespace: Option<&'a RawValue>,
        #[serde(borrow, default)]
        name: Option<&'a RawValue>,
    }
    let string = |raw: Option<&RawValue>| {
        let value = raw.and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
        value.map(|value| clean(&value).into_owned()).unwrap_or_default()
    };
    let object = raw.get().starts_with('{').then(|| serde_json::from_str::<Named>(raw.get()).ok()).flatten();
    object.map(|named| (string(named.namespace), string(named.name))).unwrap_or_default()
}

fn text(value: Option<Cow<str>>) -> String {
    value.map(|value| clean(&value).into_owned()).unwrap_or_default()
}

/// A string as it is kept; one of control characters alone is absent.
fn kept(value: Option<Cow<str>>) -> Option<Arc<str>> {
    value.as_deref().map(clean).filter(|value| !value.is_empty()).map(|value| value.as_ref().into())
}
