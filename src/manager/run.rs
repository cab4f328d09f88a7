//! Edge: start, supervise, stop.

use super::admin::{self, Admin};
use super::arguments::{Arguments, Command, RunArguments};
use super::cluster::{self, ClusterError};
use super::metrics::ManagerMetrics;
use crate::api;
use crate::desired::directory::Directory;
use crate::desired::index::{Index, Kind, Settings};
use crate::desired::watch::{self, LastEvents};
use crate::gateway::credentials::{AuthArguments, AuthError, Credentials};
use crate::gateway::metrics::GatewayMetrics;
use crate::gateway::server;
use crate::gateway::service::Gateway;
use crate::presence::roll::Roll;
use crate::presence::sweeper::{self, PresenceMetrics};
use crate::rollout;
use crate::runtime::{tasks::Tasks, telemetry};
use crate::status::events::Events;
use crate::status::intake::Intake;
use crate::status::metrics::StatusMetrics;
use crate::status::writer::Writer;
use crate::wire::name::is_device_name;
use prometheus::Registry;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long requests in flight are waited for at the end.
const STOP_SERVING: Duration = Duration::from_secs(5);
/// How long what is to be written is waited for at the end.
const FLUSH: Duration = Duration::from_secs(4);

/// Why the manager does not run (any more). Each is one line for the operator.
#[derive(Debug, Error)]
enum RunError {
    #[error("{0}")]
    Logs(String),
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("{flag} {address}: cannot listen: {source}")]
    Listen { flag: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    #[error("cannot register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("{0:?} is no device name: use a lower-case RFC 1123 subdomain of at most 253 bytes")]
    DeviceName(String),
    #[error("no secret or token is configured for {0}")]
    NoToken(String),
    #[error("{path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot render the CRDs: {0}")]
    Crds(#[from] api::schema::RenderError),
    #[error("a vital part was lost: {0}")]
    Lost(String),
}

/// Runs what the arguments say.
#[must_use]
pub fn main(arguments: Arguments) -> ExitCode {
    let result = match arguments.command {
        Some(Command::Token { device, auth }) => print_token(&device, &auth),
        Some(Command::Crds { output_dir }) => print_crds(output_dir.as_deref()),
        None => start(arguments.run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("praetor-manager: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_token(device: &str, auth: &AuthArguments) -> Result<(), RunError> {
    if !is_device_name(device.as_bytes()) {
        return Err(RunError::DeviceName(device.to_owned()));
    }
    let token = Credentials::load(auth)?.token_for(device).ok_or_else(|| RunError::NoToken(device.to_owned()))?;
    println!("{token}");
    Ok(())
}

fn print_crds(output_dir: Option<&Path>) -> Result<(), RunError> {
    for (file, yaml) in api::render()? {
        match output_dir {
            None => print!("---\n{yaml}"),
            Some(folder) => {
                let path = folder.join(file);
                let write = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, yaml));
                write.map_err(|source| RunError::Write { path, source })?;
            }
        }
    }
    Ok(())
}

fn start(arguments: RunArguments) -> Result<(), RunError> {
    telemetry::start(arguments.log_format, &arguments.log_level).map_err(RunError::Logs)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(run(arguments));
    // Whatever still runs has had its time.
    runtime.shutdown_background();
    result
}

#[allow(clippy::too_many_lines)]
async fn run(arguments: RunArguments) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let credentials = Credentials::load(&arguments.auth)?;
    let devices = listen("--addr", arguments.addr).await?;
    let admin = listen("--admin-addr", arguments.admin_addr).await?;
    let clients = cluster::connect(arguments.kubeconfig.as_deref().filter(|path| !path.as_os_str().is_empty())).await?;

    let registry = Registry::new();
    let status_metrics = StatusMetrics::register(&registry)?;
    let presence_metrics = PresenceMetrics::register(&registry)?;
    let gateway_metrics = GatewayMetrics::register(&registry)?;
    let rollout_metrics = rollout::metrics::Metrics::register(&registry)?;
    let manager_metrics = ManagerMetrics::register(&registry)?;

    let heartbeat = u64::from(arguments.default_heartbeat_seconds);
    let settings =
        Settings { heartbeat_interval_seconds: heartbeat, allow_cross_namespace: arguments.allow_cross_namespace };
    let (directory, mut dirty) = Directory::new(settings);
    let roll = Arc::new(Roll::new(Duration::from_secs(heartbeat * u64::from(arguments.stale_multiplier))));
    let identity = arguments.identity.filter(|name| !name.is_empty()).unwrap_or_else(host_and_pid);
    let events = Events::new(clients.status.clone(), &identity, status_metrics.clone());
    let writer = Writer::new(
        clients.status.clone(),
        directory.clone(),
        roll.clone(),
        events.clone(),
        status_metrics.clone(),
        arguments.status_queue_capacity as usize,
        arguments.status_writes_per_second,
    );
    let intake = Intake::new(directory.clone(), roll.clone(), writer.clone(), status_metrics);
    let last_events = LastEvents::new();
    let gateway = Gateway::new(directory.clone(), intake, credentials.clone(), gateway_metrics, arguments.access_log);

    // Three phases of stopping, one after the other.
    let (serving, working, flushing) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let mut servers = Tasks::default();
    let mut tasks = Tasks::default();
    let mut writers = Tasks::default();
    tasks.spawn("credentials", credentials.watch_files(working.clone()));
    let trickle = arguments.mass_disconnects_per_second as usize;
    tasks.spawn(
        "sweeper",
        sweeper::run(directory.clone(), roll.clone(), writer.clone(), presence_metrics, trickle, working.clone()),
    );
    {
        let (client, directory, working) = (clients.watch.clone(), directory.clone(), working.clone());
        tasks.spawn("rollout", async move {
            rollout::controller::run(client, directory, &mut dirty, rollout_metrics, working).await;
        });
    }
    writers.spawn("writer", writer.clone().run(flushing.clone()));
    let view = Admin {
        registry,
        metrics: manager_metrics,
        directory: directory.clone(),
        last_events: last_events.clone(),
        roll: roll.clone(),
        writer,
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        identity,
        devices = %devices.local_addr()?,
        admin = %admin.local_addr()?,
        "praetor-manager is up"
    );
    let (router, stop) = (admin::router(view), flushing.clone());
    tasks.spawn("admin", async move {
        if let Err(error) = axum::serve(admin, router).with_graceful_shutdown(stop.cancelled_owned()).await {
            tracing::error!(%error, "the admin port failed");
        }
    });
    servers.spawn("gateway", server::serve(devices, gateway, arguments.max_connections as usize, serving.clone()));
    {
        // Repairs run beside the rest and end when they are done, so they are no vital task.
        let (directory, roll) = (directory.clone(), roll.clone());
        tokio::spawn(async move {
            while !directory.read(Index::serves_devices) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            // Before this moment every device got a 503 and could not be heard.
            roll.open();
            tracing::info!(devices = directory.read(Index::device_count), "the first lists are in: serving devices");
            events.repair(&directory).await;
        });
    }

    // The ports are open by now, so that devices hear 503 and not nothing while an apiserver is waited for.
    tokio::select! {
        checked = cluster::check(&clients) => checked?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    for kind in Kind::ALL {
        tasks.spawn(
            "watch",
            watch::run(clients.watch.clone(), kind, directory.clone(), last_events.clone(), working.clone()),
        );
    }

    let lost = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        lost = servers.lost(&serving) => Some(lost),
        lost = tasks.lost(&working) => Some(lost),
        lost = writers.lost(&flushing) => Some(lost),
    };
    tracing::info!("stopping: parked polls are answered, then the queue is flushed");
    serving.cancel();
    let served = timeout(STOP_SERVING, servers.join()).await.is_ok();
    working.cancel();
    flushing.cancel();
    let flushed = timeout(FLUSH, async {
        writers.join().await;
        tasks.join().await;
    })
    .await
    .is_ok();
    tracing::info!(served, flushed, "stopped");
    lost.map_or(Ok(()), |lost| Err(RunError::Lost(lost)))
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
