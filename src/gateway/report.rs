//! Edge: reports and connects.

use super::answer::{Answer, Refusal, json};
use super::path::Route;
use super::service::Gateway;
use crate::status::intake::{Incoming, Intake, Outcome};
use crate::status::observed::Observed;
use crate::wire::MAX_OBSERVATIONS;
use crate::wire::report::{Observation, Rejection, Report, ReportAnswer, clean};
use crate::wire::time;
use bytes::Bytes;
use http::HeaderMap;
use hyper::body::Body;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::future::Future;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

const ACK: Bytes = Bytes::from_static(br#"{"ack":true}"#);

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

impl<R: Reports> Gateway<R> {
    pub(super) async fn report<B>(&self, route: Route, device: &str, body: B) -> Answer
    where
        B: Body<Data = Bytes> + Unpin,
    {
        match self.take_in(route, device, body).await {
            Ok(rejected) if rejected.is_empty() => json(HeaderMap::new(), ACK),
            Ok(rejected) => {
                let answer = ReportAnswer { ack: true, rejected };
                json(HeaderMap::new(), serde_json::to_vec(&answer).unwrap_or_default().into())
            }
            Err(refusal) => refusal.answer(),
        }
    }

    async fn take_in<B>(&self, route: Route, device: &str, body: B) -> Result<Vec<Rejection>, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let body = self.bodies.read(body).await?;
        let report = Report::parse(&body).map_err(|error| Refusal::BadReport(error.to_string()))?;
        if report.timestamp.as_deref().is_some_and(|timestamp| time::parse(timestamp).is_none()) {
            return Err(Refusal::BadReport(
                "timestamp must be a time as RFC 3339 writes it, for example 2025-12-12T23:55:00Z".into(),
            ));
        }
        let observations = match route {
            Route::Report => report.observations.unwrap_or_default(),
            Route::Connect | Route::Desired => Vec::new(),
        };
        if observations.len() > MAX_OBSERVATIONS {
            return Err(Refusal::TooMany(observations.len()));
        }
        let fingerprint = self.fingerprint(report.agent_version.as_deref(), &observations);
        if let (Some(boot_id), Some(sequence)) = (&report.boot_id, report.sequence)
            && let Cow::Borrowed(boot_id) = clean(boot_id)
            && self.reports.is_settled(device, boot_id, sequence, fingerprint)
        {
            return Ok(Vec::new());
        }
        let mut rejected = Vec::new();
        let observations: Vec<Observed> = observations.into_iter().filter_map(|raw| read(raw, &mut rejected)).collect();
        // What is listed when it turns out that all the others are not this device's.
        let others: Vec<Rejection> = if rejected.is_empty() {
            Vec::new()
        } else {
            let not_yours = |observed: &Observed| Rejection {
                namespace: observed.namespace.clone(),
                name: observed.name.clone(),
                reason: "NotYours".into(),
            };
            observations.iter().map(not_yours).collect()
        };
        let incoming = Incoming {
            agent_version: kept(report.agent_version),
            boot_id: kept(report.boot_id),
            sequence: report.sequence,
            observations,
            // A report of which a part was refused is never settled.
            fingerprint: rejected.is_empty().then_some(fingerprint),
        };
        match self.reports.report(device, incoming).await {
            Outcome::Done { rejected: more } => rejected.extend(more),
            Outcome::AllNotYours if rejected.is_empty() => return Err(Refusal::NotYours),
            Outcome::AllNotYours => rejected.extend(others),
            Outcome::Later { retry_after_seconds } => return Err(Refusal::Later(retry_after_seconds)),
        }
        Ok(rejected)
    }

    /// A hash of what a report says, apart from when.
    fn fingerprint(&self, agent_version: Option<&str>, observations: &[&RawValue]) -> u64 {
        let mut hasher = self.fingerprints.build_hasher();
        agent_version.hash(&mut hasher);
        for observation in observations {
            observation.get().hash(&mut hasher);
        }
        hasher.finish()
    }
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
