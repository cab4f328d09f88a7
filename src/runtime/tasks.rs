//! Edge: tasks whose loss ends the process: half a manager is worse than none.

use std::future::Future;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Vital tasks by name.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<&'static str>,
}

// === impl Tasks ===

impl Tasks {
    /// Starts a vital task.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until a task ends, or for ever when there is none. A task that ends before the shutdown, or
    /// panics, is a loss: its name, or what the runtime says of it.
    pub async fn lost(&mut self, shutdown: &CancellationToken) -> String {
        loop {
            match self.set.join_next().await {
                Some(Ok(_)) if shutdown.is_cancelled() => {}
                Some(Ok(name)) => return format!("task {name} ended"),
                Some(Err(error)) => return error.to_string(),
                None => std::future::pending().await,
            }
        }
    }

    /// Waits until every task has ended.
    pub async fn join(&mut self) {
        while self.set.join_next().await.is_some() {}
    }
}
