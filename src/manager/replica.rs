//! Edge: a running replica: what it is made of, and how it starts and stops.

use super::admin::{self, Admin};
use super::arguments::RunArguments;
use super::cluster::{self, Clients};
use super::error::RunError;
use super::metrics::ManagerMetrics;
use crate::desired::directory::Directory;
use crate::desired::index::{Index, Kind, Settings};
use crate::desired::watch::{self, LastEvents};
use crate::gateway::credentials::Credentials;
use crate::gateway::metrics::GatewayMetrics;
use crate::gateway::server;
use crate::gateway::service::Gateway;
use crate::gateway::tls::Tls;
use crate::ownership::keeper::{Keeper, KeeperOptions};
use crate::ownership::metrics::OwnershipMetrics;
use crate::ownership::shared::Ownership;
use crate::peers::hub::Peers;
use crate::peers::key;
use crate::peers::metrics::PeerMetrics;
use crate::peers::signature::PeerKey;
use crate::presence::roll::Roll;
use crate::presence::sweeper::{PresenceMetrics, Sweeper};
use crate::rollout;
use crate::runtime::tasks::Tasks;
use crate::status::events::Events;
use crate::status::intake::{Intake, NoRelay, Relay};
use crate::status::metrics::StatusMetrics;
use crate::status::pace::Pace;
use crate::status::writer::Writer;
use prometheus::Registry;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long requests in flight are waited for at the end.
const STOP_SERVING: Duration = Duration::from_secs(5);
/// How long what is to be written is waited for at the end, and the last batch for peers.
const FLUSH: Duration = Duration::from_secs(4);
/// How long the Leases are waited for at the end.
const LEAVE: Duration = Duration::from_secs(10);

/// What a replica hears on.
struct Ports {
    devices: TcpListener,
    admin: TcpListener,
    /// With the key, and the address that peers are told.
    peers: Option<(TcpListener, PeerKey, SocketAddr)>,
}

/// The order of the end: others take over, devices are told to go, nothing new begins, what began is written.
#[derive(Default)]
struct Phases {
    leaving: CancellationToken,
    serving: CancellationToken,
    working: CancellationToken,
    flushing: CancellationToken,
}

/// Vital tasks by the phase that ends them.
#[derive(Default)]
struct Vital {
    servers: Tasks,
    workers: Tasks,
    writers: Tasks,
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

// === impl Signals ===

impl Signals {
    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

// === impl Ports ===

impl Ports {
    async fn open(arguments: &RunArguments) -> Result<Self, RunError> {
        let key = key::load(arguments.peer_secret_file.as_deref().filter(|path| !path.as_os_str().is_empty()))?;
        Ok(Self {
            devices: listen("--addr", arguments.addr).await?,
            admin: listen("--admin-addr", arguments.admin_addr).await?,
            peers: match key {
                None => None,
                Some(key) => {
                    let listener = listen("--peer-addr", arguments.peer_addr).await?;
                    let address = advertised(arguments, listener.local_addr()?)?;
                    Some((listener, key, address))
                }
            },
        })
    }
}

/// Runs a replica until it is told to stop, or loses a part that it cannot do without.
///
/// # Errors
/// See [`RunError`].
pub async fn run(arguments: RunArguments) -> Result<(), RunError> {
    let mut signals =
        Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    let credentials = Credentials::load(&arguments.auth)?;
    let tls = Tls::load(&arguments.tls)?;
    let ports = Ports::open(&arguments).await?;
    let clients = cluster::connect(arguments.kubeconfig.as_deref().filter(|path| !path.as_os_str().is_empty())).await?;
    let (phases, mut vital) = (Phases::default(), Vital::default());
    let drain = Duration::from_secs(u64::from(arguments.drain_seconds));
    let replica = Replica::start(arguments, credentials, tls, ports, clients, &phases, &mut vital)?;

    // The ports are open by now, so that devices hear 503 and not nothing while an apiserver is waited for.
    tokio::select! {
        checked = cluster::check(&replica.clients) => checked?,
        () = signals.received() => return Ok(()),
    }
    replica.keeper.check().await?;
    let (synced, left) = (CancellationToken::new(), CancellationToken::new());
    replica.follow(&synced, &phases, &mut vital);
    let mut keeping = tokio::spawn(replica.keeper.clone().run(synced, phases.leaving.clone(), left.clone()));

    let mut lost = tokio::select! {
        () = signals.received() => None,
        lost = vital.servers.lost(&phases.serving) => Some(RunError::Lost(lost)),
        lost = vital.workers.lost(&phases.working) => Some(RunError::Lost(lost)),
        lost = vital.writers.lost(&phases.flushing) => Some(RunError::Lost(lost)),
        kept = &mut keeping => Some(match kept {
            Ok(Ok(())) => RunError::Lost("the leases are no longer kept".into()),
            Ok(Err(error)) => error.into(),
            Err(error) => RunError::Lost(error.to_string()),
        }),
    };
    phases.leaving.cancel();
    replica.gateway.drain();
    if lost.is_none() {
        tracing::info!(?drain, "stopping: other replicas take over, and devices are told to go there");
        tokio::select! {
            () = sleep(drain) => {}
            // Whoever says it twice does not want to wait.
            () = signals.received() => {}
        }
    }
    phases.serving.cancel();
    let served = timeout(STOP_SERVING, vital.servers.join()).await.is_ok();
    phases.working.cancel();
    phases.flushing.cancel();
    let flushed = timeout(FLUSH, async {
        vital.writers.join().await;
        vital.workers.join().await;
    })
    .await
    .is_ok();
    left.cancel();
    if !keeping.is_finished()
        && let Ok(Ok(Err(error))) = timeout(LEAVE, keeping).await
    {
        lost = lost.or(Some(error.into()));
    }
    tracing::info!(served, flushed, "stopped");
    lost.map_or(Ok(()), Err)
}

/// The parts that starting and stopping touch.
struct Replica {
    clients: Clients,
    directory: Arc<Directory>,
    roll: Arc<Roll>,
    last_events: Arc<LastEvents>,
    keeper: Arc<Keeper>,
    gateway: Arc<Gateway>,
}

// === impl Replica ===

impl Replica {
    /// Starts everything that does not need the cluster to be there.
    #[allow(clippy::too_many_lines)]
    fn start(
        arguments: RunArguments,
        credentials: Arc<Credentials>,
        tls: Option<Arc<Tls>>,
        ports: Ports,
        clients: Clients,
        phases: &Phases,
        vital: &mut Vital,
    ) -> Result<Self, RunError> {
        let registry = Registry::new();
        let ownership_metrics = OwnershipMetrics::register(&registry)?;
        let peer_metrics = PeerMetrics::register(&registry)?;
        let status_metrics = StatusMetrics::register(&registry)?;
        let presence_metrics = PresenceMetrics::register(&registry)?;
        let gateway_metrics = GatewayMetrics::register(&registry)?;
        let rollout_metrics = rollout::metrics::Metrics::register(&registry)?;
        let manager_metrics = ManagerMetrics::register(&registry)?;

        let identity = arguments.identity.filter(|name| !name.is_empty()).unwrap_or_else(host_and_pid);
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            identity,
            devices = %ports.devices.local_addr()?,
            https = tls.is_some(),
            admin = %ports.admin.local_addr()?,
            peers = ports.peers.as_ref().map(|(.., address)| address.to_string()),
            "praetor-manager is up"
        );
        let ownership = Ownership::new(&identity);
        let options = KeeperOptions {
            namespace: arguments.namespace.clone(),
            address: ports.peers.as_ref().map(|(.., address)| *address),
            alone: ports.peers.is_none(),
        };
        let keeper = Keeper::new(clients.leases.clone(), options, ownership.clone(), ownership_metrics.clone());
        let heartbeat = u64::from(arguments.default_heartbeat_seconds);
        let (directory, dirty) = Directory::new(Settings {
            heartbeat_interval_seconds: heartbeat,
            allow_cross_namespace: arguments.allow_cross_namespace,
        });
        let roll = Arc::new(Roll::new(Duration::from_secs(heartbeat * u64::from(arguments.stale_multiplier))));
        let pace = Pace::new(arguments.status_writes_per_second, status_metrics.clone());
        let events = Events::new(clients.status.clone(), &identity, pace.clone(), status_metrics.clone());
        let writer = Writer::new(
            clients.status.clone(),
            directory.clone(),
            roll.clone(),
            events.clone(),
            status_metrics.clone(),
            pace,
            arguments.status_queue_capacity as usize,
        );
        let peers =
            ports.peers.map(|(listener, key, _)| (listener, Peers::new(&ownership, key, roll.clone(), peer_metrics)));
        let relay: Arc<dyn Relay> = match &peers {
            Some((_, peers)) => peers.clone(),
            None => Arc::new(NoRelay),
        };
        let intake =
            Intake::new(directory.clone(), roll.clone(), writer.clone(), ownership.clone(), relay, status_metrics);
        let last_events = LastEvents::new();
        let certificate_not_after = gateway_metrics.certificate_not_after.clone();
        let gateway =
            Gateway::new(directory.clone(), intake.clone(), credentials.clone(), gateway_metrics, arguments.access_log);

        let Phases { leaving, serving, working, flushing } = phases;
        vital.workers.spawn("credentials", credentials.watch_files(working.clone()));
        if let Some(tls) = tls.clone() {
            vital.workers.spawn("certificate", tls.watch_files(certificate_not_after, working.clone()));
        }
        let sweeper = Sweeper {
            directory: directory.clone(),
            roll: roll.clone(),
            ownership: ownership.clone(),
            writer: writer.clone(),
            events: events.clone(),
            namespace: arguments.namespace,
            metrics: presence_metrics,
            trickle: arguments.mass_disconnects_per_second as usize,
        };
        vital.workers.spawn("sweeper", sweeper.run(working.clone()));
        vital.workers.spawn(
            "rollout",
            rollout::terms::run(
                clients.watch.clone(),
                directory.clone(),
                ownership.clone(),
                dirty,
                rollout_metrics,
                leaving.clone(),
            ),
        );
        vital.workers.spawn("events", events.look_after(directory.clone(), ownership.clone(), working.clone()));
        if let Some((listener, peers)) = peers {
            vital.workers.spawn("peers", peers.clone().run(working.clone()));
            vital.workers.spawn("peer port", peers.serve(listener, intake, working.clone()));
        }
        vital.writers.spawn("writer", writer.clone().run(flushing.clone()));
        let view = Admin {
            registry,
            metrics: manager_metrics,
            ownership_metrics,
            ownership,
            directory: directory.clone(),
            last_events: last_events.clone(),
            roll: roll.clone(),
            writer,
            leaving: leaving.clone(),
        };
        let (router, stop, admin) = (admin::router(view), flushing.clone(), ports.admin);
        vital.workers.spawn("admin", async move {
            if let Err(error) = axum::serve(admin, router).with_graceful_shutdown(stop.cancelled_owned()).await {
                tracing::error!(%error, "the admin port failed");
            }
        });
        vital.servers.spawn(
            "gateway",
            server::serve(ports.devices, gateway.clone(), tls, arguments.max_connections as usize, serving.clone()),
        );
        Ok(Self { clients, directory, roll, last_events, keeper, gateway })
    }

    /// Starts the watches. The token is cancelled when the first lists of all kinds are in.
    fn follow(&self, synced: &CancellationToken, phases: &Phases, vital: &mut Vital) {
        for kind in Kind::ALL {
            vital.workers.spawn(
                "watch",
                watch::run(
                    self.clients.watch.clone(),
                    kind,
                    self.directory.clone(),
                    self.last_events.clone(),
                    phases.working.clone(),
                ),
            );
        }
        let (directory, roll, synced) = (self.directory.clone(), self.roll.clone(), synced.clone());
        tokio::spawn(async move {
            directory.listed(&Kind::SERVED).await;
            // Before this moment every device got a 503 and could not be heard.
            roll.open();
            tracing::info!(devices = directory.read(Index::device_count), "the first lists are in: serving devices");
            directory.listed(&Kind::ALL).await;
            synced.cancel();
        });
    }
}

/// Where peers are told to reach the port that is open.
fn advertised(arguments: &RunArguments, open: SocketAddr) -> Result<SocketAddr, RunError> {
    let own = Some(open.ip()).filter(|ip| !ip.is_unspecified());
    let address = arguments
        .peer_advertise_addr
        .or_else(|| arguments.pod_ip.or(own).map(|ip| SocketAddr::new(ip, open.port())))
        .ok_or(RunError::Unadvertised)?;
    if address.ip().is_unspecified() || address.port() == 0 { Err(RunError::Unadvertised) } else { Ok(address) }
}

/// All interfaces means IPv6 and IPv4, or IPv4 alone where there is no IPv6.
async fn listen(flag: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    let listener = match TcpListener::bind(address).await {
        Err(error)
            if address.ip().is_unspecified() && address.is_ipv6() && error.kind() != std::io::ErrorKind::AddrInUse =>
        {
            TcpListener::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port())).await
        }
        bound => bound,
    };
    listener.map_err(|source| RunError::Listen { flag, address, source })
}

fn host_and_pid() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}
