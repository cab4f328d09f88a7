//! What every step works with: a given cluster, the manager in it as an operator sees it, and a folder in which
//! everything is left that explains a failure.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::config::Kubeconfig;
use serde_json::json;

use crate::harness::controlplane::{client_of, repository};
use crate::harness::{Cluster, Kubectl, Launch, Metrics, Output, wait_for};

/// Where the manager is.
pub const NAMESPACE: &str = "praetor-system";
/// Its Deployment, its container and its ServiceAccount.
pub const MANAGER: &str = "praetor-manager";
/// Its replicas.
pub const PODS: &str = "app.kubernetes.io/name=praetor,app.kubernetes.io/component=manager";
/// Until the replicas that are there agree on who is there.
pub const AGREED: Duration = Duration::from_secs(30);

/// A cluster that somebody else has brought up, and will take down.
pub struct Play {
    /// As its administrator.
    pub kubectl: Kubectl,
    /// The same.
    pub cluster: Cluster,
    /// Logs and other things that explain a failure; made and removed by `hack/e2e.sh`.
    pub folder: PathBuf,
    begun: Instant,
}

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).map(PathBuf::from).unwrap_or_else(|| panic!("{name} is not set: run this with make e2e"))
}

impl Play {
    /// What the environment says (see `hack/e2e.sh`).
    pub async fn open() -> Self {
        // The test's name stands on this line.
        println!();
        let folder = variable("PRAETOR_CLUSTER_FOLDER");
        let kubeconfig = variable("PRAETOR_CLUSTER_KUBECONFIG");
        for name in ["home", "logs"] {
            std::fs::create_dir_all(folder.join(name)).expect("a folder");
        }
        let cluster = Cluster { client: client_of(&kubeconfig).await.expect("a client") };
        let kubectl = Kubectl { program: variable("PRAETOR_CLUSTER_KUBECTL"), kubeconfig, home: folder.join("home") };
        Self { kubectl, cluster, folder, begun: Instant::now() }
    }

    /// A step that went well, with what was seen.
    pub fn ok(&self, what: impl Display) {
        println!("ok   {what}");
    }

    /// How long all of this has taken.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// kubectl with these words; panics with what it says when it fails.
    pub async fn run(&self, line: &str) -> String {
        self.kubectl.run(&line.split(' ').collect::<Vec<_>>()).await
    }

    /// The same for what may fail.
    pub async fn output(&self, line: &str) -> Output {
        self.kubectl.output(&line.split(' ').collect::<Vec<_>>(), None).await
    }

    /// kubectl as a process that goes on, with its output in a file of the folder.
    pub fn kubectl_launch(&self, line: &str) -> Launch {
        Launch::new(&self.kubectl.program)
            .env("KUBECONFIG", &self.kubectl.kubeconfig)
            .env("HOME", &self.kubectl.home)
            .args(line.split(' '))
    }

    /// kubectl with a bearer token instead of the administrator's credentials.
    pub fn kubectl_with(&self, name: &str, token: &str) -> Kubectl {
        Kubectl { kubeconfig: self.kubeconfig_with(name, token), ..self.kubectl.clone() }
    }

    /// A kubeconfig with a bearer token.
    pub fn kubeconfig_with(&self, name: &str, token: &str) -> PathBuf {
        let (server, authority) = self.apiserver();
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": { "server": server, "certificate-authority-data": authority } }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
            "users": [{ "name": "it", "user": { "token": token.trim() } }],
        });
        let path = self.folder.join("home").join(format!("{name}.kubeconfig"));
        std::fs::write(&path, text.to_string()).expect("a kubeconfig");
        path
    }

    /// The apiserver's URL and its certificate authority, in Base64.
    pub fn apiserver(&self) -> (String, String) {
        let kubeconfig = Kubeconfig::read_from(&self.kubectl.kubeconfig).expect("a kubeconfig");
        let cluster = kubeconfig.clusters[0].cluster.clone().expect("a cluster");
        (cluster.server.expect("a server"), cluster.certificate_authority_data.expect("an authority"))
    }

    /// A script of the repository as somebody at this cluster would run it, with its environment beside PATH and HOME.
    pub async fn script(&self, name: &str, args: &[&str], env: &[(&str, &str)]) -> Output {
        let mut command = Command::new(repository().join(name));
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", &self.kubectl.home).env("KUBECONFIG", &self.kubectl.kubeconfig);
        command.env("KUBECTL", &self.kubectl.program).envs(env.iter().copied()).stdin(Stdio::null());
        let said = tokio::task::spawn_blocking(move || command.output()).await.expect("a thread").expect("bash");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Output { ok: said.status.success(), stdout: text(said.stdout), stderr: text(said.stderr) }
    }

    /// The manager's pods, also those that are ending.
    pub async fn pods(&self) -> Vec<Pod> {
        let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), NAMESPACE);
        api.list(&ListParams::default().labels(PODS)).await.expect("the pods").items
    }

    /// Names of those that are not ending.
    pub async fn living(&self) -> BTreeSet<String> {
        let pods = self.pods().await.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        pods.filter_map(|pod| pod.metadata.name).collect()
    }

    /// What a replica says of itself, through the apiserver's proxy: that reaches pods wherever this runs.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self, pod: &str) -> Result<Metrics, String> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8081/proxy/metrics");
        let request = http::Request::get(path).body(Vec::new()).expect("a request");
        let page = self.cluster.client.request_text(request).await.map_err(|e| format!("{pod}: {e}"))?;
        Ok(Metrics::parse(&page))
    }

    /// Waits until the Deployment has so many replicas, all of the newest template and ready, and no other one counts;
    /// returns the time since `since`.
    #[track_caller]
    pub fn ready(&self, count: usize, since: Instant, deadline: Duration) -> impl Future<Output = Duration> {
        let api: Api<Deployment> = Api::namespaced(self.cluster.client.clone(), NAMESPACE);
        wait_for(deadline, format!("{count} replicas to be ready"), async move || {
            let deployment = api.get(MANAGER).await.map_err(|e| e.to_string())?;
            let status = deployment.status.unwrap_or_default();
            let count = i32::try_from(count).expect("few");
            let numbers = [status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas];
            let settled = status.observed_generation == deployment.metadata.generation
                && numbers.iter().all(|number| number.unwrap_or(0) == count);
            if settled { Ok(since.elapsed()) } else { Err(format!("replicas, updated, ready, available: {numbers:?}")) }
        })
    }

    /// Waits until all replicas see and hear each other and nobody else, and own these devices among them; returns the
    /// time since `since`.
    #[track_caller]
    pub fn agreed(&self, devices: usize, since: Instant) -> impl Future<Output = Duration> {
        wait_for(AGREED, "the replicas to agree", async move || {
            let pods = self.living().await;
            let (count, mut owned) = (pods.len() as f64, 0.0);
            for pod in &pods {
                let page = self.metrics(pod).await?;
                let seen = ["praetor_members", "praetor_peers", "praetor_peers_heard"].map(|name| page.sum(name));
                if seen != [count, count - 1.0, count - 1.0] {
                    return Err(format!("{pod} of {count}: members, peers, heard peers: {seen:?}"));
                }
                owned += page.sum("praetor_owned_devices");
            }
            if owned == devices as f64 { Ok(since.elapsed()) } else { Err(format!("{owned} of {devices} are owned")) }
        })
    }
}

/// The last line of what was said, for a look at it.
pub fn last_line(text: &str) -> &str {
    text.trim_end().lines().last().unwrap_or_default()
}

/// Seconds, as they are printed.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// `dist/install.yaml` of `make dist`.
pub fn install_yaml() -> PathBuf {
    Path::new(repository()).join("dist/install.yaml")
}
