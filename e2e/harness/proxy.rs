//! A TCP proxy that can misbehave, between any two programs of a test. Told of a header that says who is calling, it
//! can misbehave towards some callers only: one wire of many, and that in one direction.

use std::collections::BTreeMap;
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

#[derive(Debug, Clone)]
struct Weather {
    mode: Mode,
    /// For one caller something else than for all others.
    callers: BTreeMap<String, Mode>,
    delay: Duration,
    /// Grows when open connections are to end; a connection ends when it is no longer the one that it began with.
    generation: usize,
}

impl Weather {
    fn towards(&self, caller: &str) -> Mode {
        self.callers.get(caller).copied().unwrap_or(self.mode)
    }
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
        Self::telling_apart(target, "").await
    }

    /// Starts one for plain HTTP that knows callers apart by this header of a connection's first request.
    pub async fn telling_apart(target: SocketAddr, header: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let clear = Weather { mode: Mode::Pass, callers: BTreeMap::new(), delay: Duration::ZERO, generation: 0 };
        let (weather, now) = watch::channel(clear);
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                if now.borrow().mode != Mode::Cut {
                    tokio::spawn(connection(client, target, header, now.clone()));
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

    /// Back to passing everything on, whoever calls.
    pub fn resume(&self) {
        self.change(|w| {
            w.mode = Mode::Pass;
            w.callers.clear();
        });
    }

    /// [`Self::cut`] for one caller.
    pub fn cut_from(&self, caller: &str) {
        self.change(|w| {
            w.callers.insert(caller.into(), Mode::Cut);
        });
    }

    /// [`Self::stall`] for one caller: what it sends goes nowhere, and nobody tells it.
    pub fn stall_from(&self, caller: &str) {
        self.change(|w| {
            w.callers.insert(caller.into(), Mode::Stall);
        });
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

async fn connection(
    mut client: TcpStream,
    target: SocketAddr,
    header: &'static str,
    mut weather: watch::Receiver<Weather>,
) {
    let begun = weather.borrow().generation;
    let Some((first, caller)) = introduction(&mut client, header).await else { return };
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let through = {
        let (mut weather, caller) = (weather.clone(), &caller);
        async move {
            let open = weather.wait_for(|w| w.towards(caller) != Mode::Stall).await.is_ok();
            if !open || server.write_all(&first).await.is_err() {
                return;
            }
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            let (up, down) = (weather.clone(), weather);
            tokio::select! {
                // A half-closed connection is not worth keeping: HTTP and TLS do not need it.
                () = pump(from_client, to_server, up, begun, caller, false) => {}
                () = pump(from_server, to_client, down, begun, caller, true) => {}
            }
        }
    };
    tokio::select! {
        () = through => {}
        _ = weather.wait_for(|w| w.generation != begun || w.towards(&caller) == Mode::Cut) => {}
    }
}

/// The head of the first request and who sent it; nothing and nobody when callers are not told apart.
async fn introduction(client: &mut TcpStream, header: &str) -> Option<(Vec<u8>, String)> {
    let mut head = Vec::new();
    if header.is_empty() {
        return Some((head, String::new()));
    }
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < 64 * 1024 {
        let read = client.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        head.extend_from_slice(&buffer[..read]);
    }
    let text = String::from_utf8_lossy(&head);
    let named = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(header).then(|| value.trim().to_owned())
    };
    let caller = text.lines().skip(1).take_while(|line| !line.is_empty()).find_map(named).unwrap_or_default();
    Some((head, caller))
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    begun: usize,
    caller: &str,
    answers: bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let delay = weather.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let over = |w: &Weather| w.generation != begun;
        let open = weather.wait_for(|w| over(w) || w.towards(caller) != Mode::Stall).await;
        // What was held back when the connection was ended is lost, also when others go on in the same moment.
        let Ok(mode) = open.map(|w| (!over(&w)).then(|| w.towards(caller))) else { return };
        let Some(mode) = mode else { return };
        if answers && mode == Mode::LoseAnswers {
            continue;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
