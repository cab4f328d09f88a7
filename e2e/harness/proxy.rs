//! A TCP proxy that can misbehave, between any two programs of a test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What happens to bytes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Connections stay open and nothing moves.
    Stall,
    /// Requests reach the server, answers are thrown away.
    LoseAnswers,
    /// Connections end, new ones are closed at once.
    Cut,
}

#[derive(Debug, Clone, Copy)]
struct Weather {
    mode: Mode,
    delay: Duration,
    /// Grows when open connections are to end; a connection ends when it is no longer the one that it began with.
    generation: usize,
}

/// Listens on a loopback port and passes everything on to the target. Ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts it on the current runtime.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (weather, now) = watch::channel(Weather { mode: Mode::Pass, delay: Duration::ZERO, generation: 0 });
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                if now.borrow().mode != Mode::Cut {
                    tokio::spawn(connection(client, target, now.clone()));
                }
            }
        });
        Self { address, weather, accepted, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Ends all connections and closes every new one at once, until [`Self::resume`].
    pub fn cut(&self) {
        self.change(|w| {
            w.mode = Mode::Cut;
            w.generation += 1;
        });
    }

    /// Ends all open connections; new ones work.
    pub fn drop_connections(&self) {
        self.change(|w| w.generation += 1);
    }

    /// Holds every byte in both directions, connections stay open, until [`Self::resume`].
    pub fn stall(&self) {
        self.change(|w| w.mode = Mode::Stall);
    }

    /// Passes requests on and throws answers away, until [`Self::resume`]. What a connection lost stays lost, so end
    /// it with [`Self::drop_connections`] before going on.
    pub fn lose_answers(&self) {
        self.change(|w| w.mode = Mode::LoseAnswers);
    }

    /// Back to passing everything on.
    pub fn resume(&self) {
        self.change(|w| w.mode = Mode::Pass);
    }

    /// Holds every chunk back for this long, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.change(|w| w.delay = delay);
    }

    fn change(&self, change: impl FnOnce(&mut Weather)) {
        self.weather.send_modify(change);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        // Open connections end, too.
        self.change(|w| w.generation += 1);
    }
}

async fn connection(client: TcpStream, target: SocketAddr, mut weather: watch::Receiver<Weather>) {
    let begun = weather.borrow().generation;
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (up, down) = (weather.clone(), weather.clone());
    tokio::select! {
        // A half-closed connection is not worth keeping: HTTP and TLS do not need it.
        () = pump(from_client, to_server, up, false) => {}
        () = pump(from_server, to_client, down, true) => {}
        _ = weather.wait_for(|w| w.generation != begun) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut weather: watch::Receiver<Weather>, answers: bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let delay = weather.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let Ok(mode) = weather.wait_for(|w| w.mode != Mode::Stall).await.map(|w| w.mode) else { return };
        if answers && mode == Mode::LoseAnswers {
            continue;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
