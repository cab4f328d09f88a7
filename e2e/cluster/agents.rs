//! The devices of `config/samples`, each with a real praetor-agent: a container made by Docker Compose where Docker
//! runs, a process where not. They reach the manager through a forwarded port, and nothing else.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;

use crate::forwards::ServiceForward;
use crate::harness::controlplane::repository;
use crate::harness::device::derived_token;
use crate::harness::process::connections;
use crate::harness::programs::{SECRET, binary};
use crate::harness::{Kind, Launch, Process, condition_status, free_port};
use crate::play::{Play, seconds};

/// The switches of `config/samples`.
pub const DEVICES: [&str; 3] = ["spine1-01", "tor1-01", "tor1-02"];
/// The processes that the samples put on them.
const PROCESSES: [&str; 3] = ["collect-diagnostics-tor1-01", "switch-agent-tor1-01", "switch-agent-tor1-02"];
/// Their namespace.
const SAMPLES: &str = "infra-system";
/// Who an agent may be connected with is looked at so often.
const LOOK: Duration = Duration::from_millis(50);

/// The agents; they end when it is dropped.
pub struct Agents {
    pids: Vec<u32>,
    port: u16,
    met: Arc<Mutex<BTreeSet<SocketAddr>>>,
    watcher: JoinHandle<()>,
    running: Running,
}

/// How they run.
enum Running {
    Processes { _agents: Vec<Process>, forward: ServiceForward },
    Containers { agents: Compose },
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Agents {
    /// Applies the samples and starts an agent for each of their switches; returns when kubectl shows all of them
    /// connected, and their processes as seen.
    pub async fn start(play: &Arc<Play>) -> Self {
        let samples = repository().join("config/samples");
        play.kubectl.apply_kustomization(&samples).await;
        let (compose, begun) = (text_of("PRAETOR_CLUSTER_COMPOSE"), Instant::now());
        let (running, pids, port, how) = if compose.is_empty() {
            let forward = ServiceForward::start(play).await;
            let port = forward.address.port();
            let agents: Vec<_> = DEVICES.iter().map(|device| agent(play, device, forward.address)).collect();
            let pids = agents.iter().map(Process::pid).collect();
            (Running::Processes { _agents: agents, forward }, pids, port, "processes".to_owned())
        } else {
            let (compose, pids) = Compose::up(play, &compose).await;
            let (port, how) = (compose.port, format!("containers by {}", compose.command));
            (Running::Containers { agents: compose }, pids, port, how)
        };
        let met = Arc::<Mutex<BTreeSet<SocketAddr>>>::default();
        let watcher = tokio::spawn(watch(pids.clone(), met.clone()));
        let agents = Self { pids, port, met, watcher, running };
        let soon = Duration::from_secs(20);
        for device in DEVICES {
            let connected = |object: &Value| condition_status(object, "AgentConnected") == "True";
            play.cluster.wait_object(Kind::Switch, SAMPLES, device, soon, "connected", connected).await;
        }
        for process in PROCESSES {
            let seen = |object: &Value| {
                ["AgentConnected", "SpecObserved"].iter().all(|kind| condition_status(object, kind) == "True")
                    && object["status"]["observedGeneration"] == object["metadata"]["generation"]
            };
            play.cluster.wait_object(Kind::Process, SAMPLES, process, soon, "seen by its agent", seen).await;
        }
        let took = begun.elapsed();
        let columns = play.run(&format!("get deviceprocesses -n {SAMPLES}")).await;
        let wanted = |line: &&str| PROCESSES.iter().any(|name| line.starts_with(name));
        let shown: Vec<_> = columns.lines().filter(wanted).collect();
        assert!(shown.len() == PROCESSES.len() && shown.iter().all(|line| line.contains(" True ")), "{columns}");
        play.ok(format!(
            "samples applied: {} agents as {how}, {} DeviceProcesses connected and observed in kubectl after {}",
            DEVICES.len(),
            PROCESSES.len(),
            seconds(took)
        ));
        agents
    }

    /// Ends them.
    pub async fn end(mut self) {
        if let Running::Containers { agents } = &mut self.running {
            agents.forward.signal("TERM");
            agents.forward.wait_exit(Duration::from_secs(5)).await;
        }
    }

    /// Nothing of Kubernetes is in an agent's environment, and all this time it was connected with nothing but the
    /// forwarded port.
    pub fn alone(&self, play: &Play) {
        let (server, _) = play.apiserver();
        let server = server.trim_start_matches("https://").to_owned();
        for pid in &self.pids {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("a running agent");
            let text = String::from_utf8_lossy(&environment).into_owned();
            let names: Vec<&str> = text.split('\0').filter_map(|pair| Some(pair.split_once('=')?.0)).collect();
            // The latter two are Docker's.
            let known = |name: &&str| name.starts_with("APOLLO_") || ["PATH", "HOME", "HOSTNAME"].contains(name);
            assert!(names.len() >= 4 && names.iter().all(known), "environment: {names:?}");
            let apiserver = |pair: &str| pair.contains(&server) || pair.to_lowercase().contains("kube");
            let of_apiserver = text.split('\0').filter(|pair| !pair.starts_with("PATH=")).any(apiserver);
            assert!(!of_apiserver, "an apiserver in {names:?}");
        }
        let met = self.met.lock().unwrap().clone();
        assert!(!met.is_empty() && met.iter().all(|it| it.port() == self.port), "whom the agents talked to: {met:?}");
        let made = match &self.running {
            Running::Processes { forward, .. } => format!(", which was made {} times", forward.made()),
            Running::Containers { .. } => String::new(),
        };
        play.ok(format!(
            "agents know no apiserver: only PATH and APOLLO_* in their environment; connected with nothing but the \
             forwarded port{made} (looked at every {} ms)",
            LOOK.as_millis()
        ));
    }
}

/// An agent that says what it has seen and starts nothing on this machine.
fn agent(play: &Play, device: &str, gateway: SocketAddr) -> Process {
    let folder: PathBuf = play.folder.join("agents").join(device);
    std::fs::create_dir_all(&folder).expect("a folder");
    let launch = Launch::new(binary("praetor-agent"))
        .arg("--observe-only")
        .env("APOLLO_DEVICE_NAME", device)
        .env("APOLLO_GATEWAY_URL", format!("http://{gateway}"))
        .env("APOLLO_DEVICE_TOKEN", derived_token(SECRET, device))
        .env("APOLLO_AGENT_STATE_FILE", folder.join("state.json"));
    Process::spawn("praetor-agent", &launch, &folder.join("agent.log"))
}

async fn watch(pids: Vec<u32>, met: Arc<Mutex<BTreeSet<SocketAddr>>>) {
    loop {
        let remote = pids.iter().flat_map(|pid| connections(*pid)).map(|(_, remote)| remote);
        met.lock().unwrap().extend(remote);
        tokio::time::sleep(LOOK).await;
    }
}

/// Agents in containers, by what `hack/compose` offers to everybody.
struct Compose {
    command: String,
    port: u16,
    environment: Vec<(String, String)>,
    folder: PathBuf,
    forward: Process,
}

impl Compose {
    /// Starts the forward, makes the tokens, starts the containers; returns their processes, too.
    async fn up(play: &Play, command: &str) -> (Self, Vec<u32>) {
        // A copy, which goes with all else: the tokens that are made beside it are of this cluster only.
        let (folder, port) = (play.folder.join("compose"), free_port());
        std::fs::create_dir_all(&folder).expect("a folder");
        for name in ["agents.sh", "forward.sh", "docker-compose.yaml"] {
            std::fs::copy(repository().join("hack/compose").join(name), folder.join(name)).expect("copied");
        }
        let mut launch = play.kubectl_launch("").env("PATH", path_with(&play.kubectl.program));
        if let Some(host) = std::env::var_os("DOCKER_HOST") {
            launch = launch.env("DOCKER_HOST", host);
        }
        launch.program = folder.join("forward.sh");
        launch.args = vec![port.to_string().into()];
        let forward = Process::spawn("forward.sh", &launch, &play.folder.join("forward-compose.log"));
        let environment = vec![
            ("PATH".into(), path_with(&play.kubectl.program)),
            ("GATEWAY_URL".into(), format!("http://host.docker.internal:{port}")),
            // As hack/e2e.sh calls it, too.
            ("COMPOSE_PROJECT_NAME".into(), "praetor-e2e".into()),
        ];
        let compose = Self { command: command.into(), port, environment, folder, forward };
        let pairs: Vec<_> = compose.environment.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let said = play.script(&compose.folder.join("agents.sh").to_string_lossy(), &[], &pairs).await;
        assert!(said.ok, "agents.sh: {said:?}");
        compose.say("up -d").expect("up");
        let ids = compose.say("ps -q").expect("ps");
        let inspect = Command::new("docker").args(["inspect", "-f", "{{.State.Pid}}"]).args(ids.lines()).output();
        let pids = String::from_utf8(inspect.expect("docker").stdout).expect("UTF-8");
        (compose, pids.lines().map(|pid| pid.parse().expect("a pid")).collect())
    }

    fn say(&self, what: &str) -> Result<String, String> {
        let words: Vec<_> = self.command.split(' ').chain(["-f", "docker-compose.yaml"]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(what.split(' ')).current_dir(&self.folder).stdin(Stdio::null());
        let said = command.envs(self.environment.iter().cloned()).output().map_err(|e| e.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if said.status.success() {
            Ok(text(&said.stdout))
        } else {
            Err(format!("{} {what}: {}", self.command, text(&said.stderr)))
        }
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        // Whatever fails here fails once more at the end of hack/e2e.sh.
        let logs = self.say("logs").unwrap_or_else(|error| error);
        let _ = std::fs::write(self.folder.join("agents.log"), logs);
        let _ = self.say("down --timeout 1");
        // It ends the kubectl that it has started; when it is killed first, the cluster's end does that.
        self.forward.signal("TERM");
    }
}

/// The kubectl that the scripts are to find first.
fn path_with(kubectl: &Path) -> String {
    let folder = kubectl.parent().expect("a folder").display();
    format!("{folder}:{}", text_of("PATH"))
}

/// A variable of the environment; empty when there is none.
fn text_of(variable: &str) -> String {
    std::env::var_os(variable).map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
}
