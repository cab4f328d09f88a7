//! The real binaries: praetor-manager under its ServiceAccount, praetor-agent without any Kubernetes credential.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;

use super::controlplane::ControlPlane;
use super::device::{Answer, Device, derived_token, request};
use super::process::{Exit, Folder, Launch, Process, free_port, unique};

/// The HMAC secret of a manager that was given no authentication flag.
pub const SECRET: &str = "praetor-e2e-secret";

/// The secret that the replicas of a test share.
pub const PEER_SECRET: &str = "praetor-e2e-peer-secret";

/// How long a manager may take until it is ready; two busy cores are slow.
const READY: Duration = Duration::from_secs(60);

/// A binary of this package: `$PRAETOR_BIN_DIR`, else what cargo built for this test, else beside this program.
pub fn binary(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("PRAETOR_BIN_DIR") {
        return PathBuf::from(folder).join(name);
    }
    let built = match name {
        "praetor-manager" => option_env!("CARGO_BIN_EXE_praetor-manager"),
        "praetor-agent" => option_env!("CARGO_BIN_EXE_praetor-agent"),
        "praetor-fleet" => option_env!("CARGO_BIN_EXE_praetor-fleet"),
        _ => None,
    };
    let beside = || {
        std::env::current_exe()
            .ok()?
            .ancestors()
            .skip(1)
            .take(2)
            .map(|folder| folder.join(name))
            .find(|path| path.exists())
    };
    built
        .map(PathBuf::from)
        .or_else(beside)
        .unwrap_or_else(|| panic!("no binary {name}: build it, or set PRAETOR_BIN_DIR"))
}

/// Values of a `/metrics` page by `name{label="value",…}` as it is printed.
#[derive(Debug, Clone, Default)]
pub struct Metrics(pub BTreeMap<String, f64>);

impl Metrics {
    /// Reads the Prometheus text format.
    pub fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// One series, 0 when it is absent.
    pub fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// The sum over all label sets of one name.
    pub fn sum(&self, name: &str) -> f64 {
        self.0.iter().filter(|(series, _)| series.split('{').next() == Some(name)).map(|(_, value)| value).sum()
    }

    /// The series that are not 0 and begin with one of these words, a line each, for messages.
    pub fn starting(&self, words: &str) -> String {
        let wanted = self.0.iter().filter(|(series, value)| {
            **value != 0.0 && words.split(' ').any(|word| series.starts_with(word)) && !series.contains("bucket")
        });
        wanted.map(|(series, value)| format!("{series} {value}")).collect::<Vec<_>>().join("\n")
    }

    /// Whether any series has the name.
    pub fn has(&self, name: &str) -> bool {
        self.0.keys().any(|series| series.split('{').next() == Some(name))
    }
}

/// What a manager is started with.
#[derive(Debug, Clone)]
pub struct ManagerBuilder {
    kubeconfig: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    secret: Option<String>,
    identity: String,
    ports: (u16, u16),
}

impl ManagerBuilder {
    /// Another identity than one of its own: its name in Leases and events.
    pub fn identity(mut self, identity: &str) -> Self {
        self.identity = identity.into();
        self
    }

    /// One of several replicas: where it listens to the others, and where they find it.
    pub fn peers(self, port: u16, advertised: SocketAddr) -> Self {
        self.env("APOLLO_PEER_SECRET", PEER_SECRET)
            .args(&[&format!("--peer-addr=127.0.0.1:{port}"), &format!("--peer-advertise-addr={advertised}")])
    }

    /// Adds arguments.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Sets a variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Another kubeconfig than the ServiceAccount's, for example one through a [`super::Proxy`].
    pub fn kubeconfig(mut self, path: impl Into<PathBuf>) -> Self {
        self.kubeconfig = path.into();
        self
    }

    /// Another HMAC secret than [`SECRET`].
    pub fn secret(mut self, secret: &str) -> Self {
        self.secret = Some(secret.into());
        self
    }

    /// No authentication set here: the test brings its own by flag or variable.
    pub fn no_secret(mut self) -> Self {
        self.secret = None;
        self
    }

    /// These ports instead of free ones, for a second manager in a first one's place.
    pub fn ports(mut self, device: u16, admin: u16) -> Self {
        self.ports = (device, admin);
        self
    }

    fn launch(&self, folder: &Folder) -> Launch {
        let mut launch =
            Launch::new(binary("praetor-manager")).env("HOME", folder.path()).arg("--kubeconfig").arg(&self.kubeconfig);
        let (device, admin) = self.ports;
        launch = launch
            .args([format!("--addr=127.0.0.1:{device}"), format!("--admin-addr=127.0.0.1:{admin}")])
            .args([format!("--identity={}", self.identity)])
            .args(self.args.iter().cloned());
        if !self.args.iter().any(|arg| arg.starts_with("--drain-seconds")) {
            // No load balancer has to learn of a stop.
            launch = launch.arg("--drain-seconds=0");
        }
        if let Some(secret) = &self.secret {
            launch = launch.env("APOLLO_GATEWAY_TOKEN_SECRET", secret);
        }
        self.env.iter().fold(launch, |launch, (key, value)| launch.env(key, value))
    }

    /// Starts it without waiting for anything: for runs that are meant to fail, see [`Manager::wait_exit`].
    pub fn spawn(self) -> Manager {
        let folder = Folder::new("manager");
        let launch = self.launch(&folder);
        let process = Process::spawn("praetor-manager", &launch, &folder.join("manager.log"));
        Manager { process, launch, builder: self, folder }
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Manager {
        let mut manager = self.spawn();
        manager.wait_ready().await;
        manager
    }
}

/// A running praetor-manager.
#[derive(Debug)]
pub struct Manager {
    /// The process, for signals, memory, connections.
    pub process: Process,
    launch: Launch,
    builder: ManagerBuilder,
    folder: Folder,
}

impl Manager {
    /// A manager of this control plane, alone, with the ServiceAccount's rights, the HMAC secret [`SECRET`], free ports
    /// and an identity that lasts over restarts: the next process under it takes over at once.
    pub async fn builder(plane: &ControlPlane) -> ManagerBuilder {
        ManagerBuilder {
            kubeconfig: plane.service_account_kubeconfig().await.into(),
            args: Vec::new(),
            env: Vec::new(),
            secret: Some(SECRET.into()),
            identity: unique("manager"),
            ports: (free_port(), free_port()),
        }
    }

    /// Its name in Leases and events.
    pub fn identity(&self) -> &str {
        &self.builder.identity
    }

    /// The device port.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.builder.ports.0).into()
    }

    /// By how many seconds its wall clock is off, by what it logged first; as much as that is ago less.
    pub fn wall_clock_off(&self) -> i64 {
        let log = self.log();
        let first = log.split_whitespace().next().unwrap_or_default();
        let first: jiff::Timestamp = first.parse().unwrap_or_else(|e| panic!("{first:?} in the log: {e}"));
        first.as_second() - jiff::Timestamp::now().as_second()
    }

    /// The admin port.
    pub fn admin_address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.builder.ports.1).into()
    }

    /// `http://127.0.0.1:PORT`, as agents want it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The token that this manager's secret gives a device; empty without a secret.
    pub fn token(&self, device: &str) -> String {
        self.builder.secret.as_deref().map(|secret| derived_token(secret, device)).unwrap_or_default()
    }

    /// A device with the right token.
    pub fn device(&self, name: &str) -> Device {
        Device { address: self.address(), name: name.into(), token: self.token(name) }
    }

    /// Waits until `/readyz` is 200; panics with the log when the process ends first.
    pub async fn wait_ready(&mut self) {
        let begun = std::time::Instant::now();
        loop {
            let answer = request(self.admin_address(), Method::GET, "/readyz", &[], "").await;
            if answer.as_ref().is_ok_and(|a| a.status == 200) {
                return;
            }
            let exit = self.process.exited();
            assert!(
                exit.is_none() && begun.elapsed() < READY,
                "praetor-manager is not ready: {answer:?}, exit {exit:?}; {}",
                self.process.log_tail()
            );
            tokio::time::sleep(super::wait::POLL).await;
        }
    }

    /// GET on the admin port.
    pub async fn admin(&self, path: &str) -> Answer {
        request(self.admin_address(), Method::GET, path, &[], "")
            .await
            .unwrap_or_else(|e| panic!("GET {path} on the admin port: {e}; {}", self.process.log_tail()))
    }

    /// What `/metrics` says now.
    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.admin("/metrics").await.expect(200).text())
    }

    /// Everything it logged, over all its runs.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// SIGKILL; gone when this returns.
    pub fn kill9(&mut self) -> Exit {
        self.process.kill9()
    }

    /// SIGTERM, without waiting.
    pub fn sigterm(&mut self) {
        self.process.signal("TERM");
    }

    /// Waits for its end.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Exit {
        self.process.wait_exit(deadline).await
    }

    /// Starts it again on the same ports with the same arguments (after a kill -9 when it still runs) and waits until it is ready.
    pub async fn restart(&mut self) {
        self.process.kill9();
        self.process = Process::spawn("praetor-manager", &self.launch, &self.folder.join("manager.log"));
        self.wait_ready().await;
    }

    /// An agent for one device, pointed at this manager with the right token.
    pub fn agent(&self, device: &str) -> AgentBuilder {
        Agent::builder(device, &self.url()).token(&self.token(device))
    }
}

/// What an agent is started with.
#[derive(Debug, Clone)]
pub struct AgentBuilder {
    args: Vec<String>,
    env: BTreeMap<String, String>,
}

impl AgentBuilder {
    /// `APOLLO_DEVICE_TOKEN`; empty: none.
    pub fn token(self, token: &str) -> Self {
        self.env("APOLLO_DEVICE_TOKEN", token)
    }

    /// Sets a variable; an empty value removes it.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.remove(key);
        if !value.is_empty() {
            self.env.insert(key.into(), value.into());
        }
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Starts it. Its state file is in a folder of its own, unless the variable says otherwise.
    pub fn start(self) -> Agent {
        let folder = Folder::new("agent");
        let state = self.env.get("APOLLO_AGENT_STATE_FILE").map_or_else(|| folder.join("state.json"), PathBuf::from);
        let mut launch = Launch::new(binary("praetor-agent")).env("APOLLO_AGENT_STATE_FILE", &state).args(self.args);
        launch = self.env.iter().fold(launch, |launch, (key, value)| launch.env(key, value));
        let process = Process::spawn("praetor-agent", &launch, &folder.join("agent.log"));
        Agent { process, launch, state, folder }
    }
}

/// A running praetor-agent. Its environment holds `PATH` and `APOLLO_*` and nothing else, its folder no kubeconfig.
#[derive(Debug)]
pub struct Agent {
    /// The process, for signals, memory, connections.
    pub process: Process,
    launch: Launch,
    state: PathBuf,
    folder: Folder,
}

impl Agent {
    /// An agent for one device; `url` may hold several, comma-separated.
    pub fn builder(device: &str, url: &str) -> AgentBuilder {
        AgentBuilder { args: Vec::new(), env: BTreeMap::new() }
            .env("APOLLO_DEVICE_NAME", device)
            .env("APOLLO_GATEWAY_URL", url)
            // Not the containers of the machine on which this runs.
            .env("APOLLO_AGENT_CONTAINER_SOCKET", "/nonexistent/docker.sock")
    }

    /// Its state file.
    pub fn state_file(&self) -> &Path {
        &self.state
    }

    /// Everything it logged, over all its runs.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// SIGKILL; gone when this returns.
    pub fn kill9(&mut self) -> Exit {
        self.process.kill9()
    }

    /// SIGTERM, without waiting.
    pub fn sigterm(&mut self) {
        self.process.signal("TERM");
    }

    /// Waits for its end.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Exit {
        self.process.wait_exit(deadline).await
    }

    /// Starts it again with the same state file (after a kill -9 when it still runs).
    pub fn restart(&mut self) {
        self.process.kill9();
        self.process = Process::spawn("praetor-agent", &self.launch, &self.folder.join("agent.log"));
    }
}
