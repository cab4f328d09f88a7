//! Edge: the leader's way to the apiserver: every write shows the lead right before it is sent.

use super::call::{CallError, call};
use super::events::{Happening, Subject};
use crate::ownership::lease::Lead;
use jiff::Timestamp;
use kube::Client;
use kube::api::{PostParams, Request};
use serde::de::{DeserializeOwned, IgnoredAny};
use std::fmt;
use std::sync::Arc;

/// One term as the leader.
#[derive(Clone)]
pub struct Leader {
    client: Client,
    lead: Lead,
    instance: Arc<str>,
}

// === impl Leader ===

impl Leader {
    /// A term under a lead. `instance` is this replica's name, for events; the client must not retry by itself.
    #[must_use]
    pub fn new(client: Client, lead: Lead, instance: Arc<str>) -> Self {
        Self { client, lead, instance }
    }

    /// Whether the lead is held.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.lead.holds().is_ok()
    }

    /// The client, for reads.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Asks for something; anybody may.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn read<T: DeserializeOwned>(&self, request: http::Request<Vec<u8>>) -> Result<T, CallError> {
        call(self.client.request(request)).await
    }

    /// Changes something.
    ///
    /// # Errors
    /// [`CallError::Lost`] when the lead is not held; then nothing was sent. Else see [`CallError`].
    pub async fn write<T: DeserializeOwned>(&self, request: http::Request<Vec<u8>>) -> Result<T, CallError> {
        self.lead.holds()?;
        call(self.client.request(request)).await
    }

    /// Deletes something; what is left of it, if it is still there.
    ///
    /// # Errors
    /// As [`Leader::write`].
    pub async fn delete<T: DeserializeOwned + Clone + fmt::Debug>(
        &self,
        request: http::Request<Vec<u8>>,
    ) -> Result<Option<T>, CallError> {
        self.lead.holds()?;
        Ok(call(self.client.request_status::<T>(request)).await?.left())
    }

    /// Writes an event about what is going to happen; that it is there already is success.
    ///
    /// # Errors
    /// As [`Leader::write`].
    pub async fn announce(&self, subject: &Subject, happening: &Happening) -> Result<(), CallError> {
        self.lead.holds()?;
        self.tell(subject, happening).await
    }

    /// Writes an event about what was done. That stays true when the lead has ended meanwhile, and nobody else can
    /// tell it; so no lead is asked for.
    ///
    /// # Errors
    /// When the apiserver did not take it.
    pub async fn tell(&self, subject: &Subject, happening: &Happening) -> Result<(), CallError> {
        let event = happening.event(subject, &self.instance, Timestamp::now());
        let body = serde_json::to_vec(&event).map_err(|error| CallError::Request(error.to_string()))?;
        let requests = Request::new(format!("/apis/events.k8s.io/v1/namespaces/{}/events", subject.namespace));
        let request = requests.create(&PostParams::default(), body);
        let request = request.map_err(|error| CallError::Request(error.to_string()))?;
        match call(self.client.request::<IgnoredAny>(request)).await {
            Ok(_) | Err(CallError::Exists) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl fmt::Debug for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leader").field("lead", &self.lead).finish_non_exhaustive()
    }
}
