//! Edge: the admin port: health, metrics, debugging. No device reaches it.

use super::metrics::ManagerMetrics;
use crate::desired::directory::Directory;
use crate::desired::index::{Index, Kind};
use crate::desired::watch::LastEvents;
use crate::ownership::members::Owner;
use crate::ownership::metrics::OwnershipMetrics;
use crate::ownership::rendezvous::device_hash;
use crate::ownership::shared::Ownership;
use crate::presence::roll::Roll;
use crate::presence::staleness::AgentState;
use crate::status::writer::Writer;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus::{Registry, TextEncoder};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What the admin port looks at.
#[derive(Clone)]
pub struct Admin {
    /// Everything that is counted.
    pub registry: Registry,
    /// What is sampled at each scrape.
    pub metrics: ManagerMetrics,
    /// The watch cache.
    pub directory: Arc<Directory>,
    /// When the watches last said anything.
    pub last_events: Arc<LastEvents>,
    /// Who is there.
    pub roll: Arc<Roll>,
    /// What waits to be written.
    pub writer: Arc<Writer>,
    /// Who works for which device.
    pub ownership: Arc<Ownership>,
    /// Its metrics.
    pub ownership_metrics: OwnershipMetrics,
    /// This replica is about to stop.
    pub leaving: CancellationToken,
}

/// The routes.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/debug/device", get(device))
        .route("/debug/ownership", get(ownership))
        .with_state(admin)
}

/// Ready once the first lists are in; it stays so while the apiserver is away, since devices are served from
/// the cache. Not ready any more as soon as it is told to stop, so that devices are sent elsewhere.
async fn ready(State(admin): State<Admin>) -> Response {
    if admin.leaving.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    let waiting: Vec<&str> = admin
        .directory
        .read(|index| Kind::ALL.into_iter().filter(|kind| !index.synced(*kind)).map(Kind::as_str).collect());
    if waiting.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for the first list of {}\n", waiting.join(", "))).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    admin.writer.sample();
    admin.ownership_metrics.sample(&admin.ownership);
    admin.metrics.sample(Some(&admin.directory), Some(&admin.last_events));
    match TextEncoder::new().encode_to_string(&admin.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[derive(Deserialize)]
struct OwnershipQuery {
    device: Option<String>,
}

#[derive(Deserialize)]
struct DeviceQuery {
    name: String,
}

/// Who is there as this replica sees it, and of a device who works for it, and why.
async fn ownership(State(admin): State<Admin>, Query(query): Query<OwnershipQuery>) -> Response {
    let (view, standing) = (admin.ownership.view(), admin.ownership.standing());
    let members = view.members.iter().map(|member| {
        json!({
            "identity": &*member.identity, "incarnation": format!("{:016x}", member.incarnation),
            "address": member.address, "protocol": member.protocol,
        })
    });
    let mut answer = json!({
        "identity": &**admin.ownership.identity(),
        "leads": admin.ownership.lead().borrow().as_ref().is_some_and(|lead| lead.holds().is_ok()),
        "view": {
            "epoch": view.epoch, "fingerprint": format!("{:016x}", view.fingerprint),
            "ageSeconds": Some(admin.ownership.view_age_seconds()).filter(|age| age.is_finite()),
            "members": members.collect::<Vec<_>>(),
        },
        "standing": { "lease": standing.lease, "apiserver": standing.apiserver, "joined": standing.joined },
    });
    if let Some(device) = query.device {
        let hash = device_hash(&device);
        let weights = view.why(hash);
        let owner = match view.owner(hash) {
            Owner::Me => admin.ownership.identity().clone(),
            Owner::Peer(member) => member.identity.clone(),
        };
        answer["device"] = json!({
            "name": device, "hash": format!("{hash:016x}"), "owner": &*owner,
            "why": "the member with the greatest weight, a hash of its identity and the device's name",
            "weights": weights.iter().map(|(member, weight)| json!({"identity": &**member, "weight": format!("{weight:016x}")})).collect::<Vec<_>>(),
        });
    }
    Json(answer).into_response()
}

/// What this replica believes of one device.
async fn device(State(admin): State<Admin>, Query(query): Query<DeviceQuery>) -> Response {
    let agent = match admin.roll.judge(&query.name) {
        Ok(AgentState::Alive) => "alive".to_owned(),
        Ok(AgentState::Stale) => "silent".to_owned(),
        Ok(AgentState::Unjudged) => "not judged".to_owned(),
        Err(held) => format!("silent, but not judged yet: {}", held.as_str()),
    };
    let view = admin.directory.read(|index: &Index| {
        let device = index.device(&query.name)?;
        let cross = index.settings().allow_cross_namespace;
        let processes = device.processes.iter().map(|process| {
            json!({
                "namespace": &*process.key.namespace, "name": &*process.key.name, "specHash": process.spec.hash.to_string(),
                "counts": device.counts(&process.key.namespace, cross), "deleting": process.deleting,
                "writePending": admin.writer.is_pending(Kind::Process, &process.key), "status": process.status.write(),
            })
        });
        Some(json!({
            "device": query.name, "agent": agent,
            "etag": format!("{:?}", device.etag), "revision": device.revision, "watchRevision": index.progress(Kind::Process),
            "switches": device.switches.iter().map(|switch| format!("{}/{}", switch.key.namespace, switch.key.name)).collect::<Vec<_>>(),
            "processes": processes.collect::<Vec<_>>(),
        }))
    });
    view.map_or_else(|| (StatusCode::NOT_FOUND, "no such device\n").into_response(), |view| Json(view).into_response())
}
