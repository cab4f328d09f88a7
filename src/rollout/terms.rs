//! Edge: works while this replica leads, and while it does not lets nothing pile up.

use super::controller;
use super::leader::Leader;
use super::metrics::Metrics;
use crate::desired::directory::Directory;
use crate::desired::lean::Key;
use crate::ownership::shared::Ownership;
use kube::Client;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

/// How often is looked whether a lead holds that did not.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Runs [`controller::run`] for each term of this replica as the leader, until the token is cancelled. When a term
/// ends nothing new begins, and what is under way is waited for; only then does the Lease go to others, since this
/// counts as work under the lead. The client must not retry by itself.
pub async fn run(
    client: Client,
    directory: Arc<Directory>,
    ownership: Arc<Ownership>,
    mut dirty: UnboundedReceiver<Key>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let mut leads = ownership.lead();
    while !shutdown.is_cancelled() && !dirty.is_closed() {
        let lead = leads.borrow_and_update().clone();
        let Some(lead) = lead.filter(|lead| lead.holds().is_ok()) else {
            tokio::select! {
                () = shutdown.cancelled() => {}
                changed = leads.changed() => if changed.is_err() { return },
                () = idle(&mut dirty) => {}
                // A lead that had run out may hold again, by an answer that came late.
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
            continue;
        };
        // From here on the Lease is not given away, unless it was before: then the lead has ended, too.
        let working = ownership.work();
        let term = shutdown.child_token();
        let leader = Leader::new(client.clone(), lead.clone(), ownership.identity().clone());
        tracing::info!(term = lead.term(), "this replica leads");
        let work = controller::run(leader, directory.clone(), &mut dirty, metrics.clone(), term.clone());
        let mut work = std::pin::pin!(work);
        let ended = tokio::select! {
            () = &mut work => true,
            _ = leads.wait_for(|now| now.as_ref() != Some(&lead)) => false,
        };
        if !ended {
            term.cancel();
            work.await;
        }
        tracing::info!(term = lead.term(), "this replica leads no more, and nothing is under way");
        drop(working);
    }
}

/// Takes what changes and forgets it, since a term begins with a look at everything. Returns when nothing can come
/// any more.
pub async fn idle(dirty: &mut UnboundedReceiver<Key>) {
    let mut changed = Vec::new();
    while dirty.recv_many(&mut changed, 4096).await > 0 {
        changed.clear();
    }
}

#[cfg(test)]
#[path = "terms_tests.rs"]
mod tests;
