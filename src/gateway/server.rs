//! Edge: accepts connections, looks after them once a second, and ends them in order.

use super::connection::{self, State};
use super::handshake;
use super::limits::{LIFETIME_SECONDS, Verdict, Watched};
use super::metrics::{Handshake, Held};
use super::report::Reports;
use super::service::Gateway;
use super::tls::Tls;
use parking_lot::Mutex;
use rand::Rng;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Default of the limit of connections.
pub const DEFAULT_MAX_CONNECTIONS: usize = 16_384;
/// Longest time that requests have to end at a shutdown; a report takes up to 8 s.
const CLOSE_TIME: Duration = Duration::from_secs(8);
/// Shortest time between two warnings that there are as many connections as allowed.
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// Delays after a failed accept.
const ACCEPT_DELAYS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// All open connections.
pub struct Connections<R> {
    gateway: Arc<Gateway<R>>,
    tls: Option<Arc<Tls>>,
    open: Arc<Mutex<HashMap<u64, Entry>>>,
    next: AtomicU64,
    slots: Arc<Semaphore>,
    most: u32,
}

struct Entry {
    state: Arc<State>,
    watched: Watched,
}

/// Takes a connection off the list when its task ends, however it ends.
struct Listed {
    open: Arc<Mutex<HashMap<u64, Entry>>>,
    id: u64,
    _held: Held,
}

/// Serves devices until the shutdown, over HTTPS if there is a certificate; then answers parked polls at once,
/// finishes requests, and ends what is still there after 8 s.
pub async fn serve<R: Reports>(
    listener: TcpListener,
    gateway: Arc<Gateway<R>>,
    tls: Option<Arc<Tls>>,
    max_connections: usize,
    shutdown: CancellationToken,
) {
    if let Ok(address) = listener.local_addr()
        && !address.ip().is_loopback()
        && !gateway.credentials.is_open()
        && tls.is_none()
    {
        tracing::warn!(%address, "devices' tokens come over plain HTTP; --tls-cert-file and --tls-key-file change that");
    }
    let connections = Connections::new(gateway, tls, max_connections);
    let served = async {
        connections.accept(listener, &shutdown).await;
        connections.close().await;
    };
    tokio::select! {
        () = served => {}
        () = connections.sweep() => {}
    }
}

// === impl Connections ===

impl<R: Reports> Connections<R> {
    /// None open; at most `max_connections`.
    #[must_use]
    pub fn new(gateway: Arc<Gateway<R>>, tls: Option<Arc<Tls>>, max_connections: usize) -> Self {
        let most = u32::try_from(max_connections.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Self {
            gateway,
            tls,
            open: Arc::default(),
            next: AtomicU64::new(0),
            slots: Arc::new(Semaphore::new(most as usize)),
            most,
        }
    }

    async fn accept(&self, listener: TcpListener, shutdown: &CancellationToken) {
        let (mut delay, mut warned) = (ACCEPT_DELAYS.0, None);
        while let Some(slot) = shutdown.run_until_cancelled(self.slot(&mut warned)).await {
            let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await else { return };
            match accepted {
                Ok((stream, _)) => {
                    delay = ACCEPT_DELAYS.0;
                    // An answer is one small write; without the option it could wait for an acknowledgement.
                    let _ = stream.set_nodelay(true);
                    match self.tls.clone() {
                        None => self.start(stream, slot),
                        Some(tls) => self.start_tls(stream, tls, slot),
                    }
                }
                // The client went away before it was accepted.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    // Out of file descriptors, most likely: trying at once would only spin.
                    tracing::warn!(%error, ?delay, "cannot accept connections");
                    if shutdown.run_until_cancelled(sleep(delay)).await.is_none() {
                        return;
                    }
                    delay = (delay * 2).min(ACCEPT_DELAYS.1);
                }
            }
        }
    }

    /// A place for one more connection. While there is none, nothing is accepted: who waits is served when
    /// somebody else ends, which limits of time make sure of.
    async fn slot(&self, warned: &mut Option<Instant>) -> Option<OwnedSemaphorePermit> {
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            return Some(slot);
        }
        self.gateway.metrics.connections_full.inc();
        if warned.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
            tracing::warn!(limit = self.most, "as many connections as allowed; further ones wait");
            *warned = Some(Instant::now());
        }
        // The semaphore is never closed.
        self.slots.clone().acquire_owned().await.ok()
    }

    /// Serves a stream in a task of its own.
    pub(super) fn start<T>(&self, stream: T, slot: Option<OwnedSemaphorePermit>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ((state, listed), gateway) = (self.enlist(), self.gateway.clone());
        tokio::spawn(async move {
            let _keep = (slot, listed);
            connection::run(stream, gateway, state).await;
        });
    }

    /// The same, after a handshake. All limits hold from the first moment.
    fn start_tls(&self, stream: TcpStream, tls: Arc<Tls>, slot: Option<OwnedSemaphorePermit>) {
        let ((state, listed), gateway) = (self.enlist(), self.gateway.clone());
        tokio::spawn(async move {
            let _keep = (slot, listed);
            let peer = stream.peer_addr().ok();
            match handshake::shake(stream, &tls, &state).await {
                Ok(stream) => {
                    gateway.metrics.shaken(Handshake::Ok);
                    connection::run(stream, gateway, state).await;
                }
                Err(error) => {
                    gateway.metrics.shaken(error.counted(&state));
                    tracing::debug!(?peer, %error, "no TLS handshake");
                }
            }
        });
    }

    /// Puts a connection on the list.
    fn enlist(&self) -> (Arc<State>, Listed) {
        let (state, id) = (State::new(), self.next.fetch_add(1, Ordering::Relaxed));
        let lifetime = rand::rng().random_range(LIFETIME_SECONDS);
        self.open.lock().insert(id, Entry { state: state.clone(), watched: Watched::new(lifetime) });
        let held = Held::one(&self.gateway.metrics.connections);
        (state, Listed { open: self.open.clone(), id, _held: held })
    }

    /// Looks at every connection once a second; never returns.
    pub(super) async fn sweep(&self) {
        let mut seconds = interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            seconds.tick().await;
            self.gateway.tick();
            for Entry { state, watched } in self.open.lock().values_mut() {
                match watched.look(state.seen()) {
                    Verdict::Keep => {}
                    Verdict::Aged => state.age(),
                    Verdict::Retire => state.retire(),
                    Verdict::Cut => {
                        self.gateway.metrics.connections_cut.inc();
                        state.cut();
                    }
                }
            }
        }
    }

    /// Ends every connection: first in order, then by force.
    pub(super) async fn close(&self) {
        self.gateway.drain();
        self.open.lock().values().for_each(|entry| entry.state.retire());
        if timeout(CLOSE_TIME, self.slots.acquire_many(self.most)).await.is_err() {
            let open = self.open.lock();
            tracing::warn!(connections = open.len(), "connections are cut off at the shutdown");
            open.values().for_each(|entry| entry.state.cut());
        }
    }
}

// === impl Listed ===

impl Drop for Listed {
    fn drop(&mut self) {
        self.open.lock().remove(&self.id);
    }
}
