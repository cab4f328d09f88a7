//! A kube-apiserver and an etcd of the test's own: own folder, own ports, RBAC on, every request in an audit log.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rand::Rng as _;
use tokio::sync::OnceCell;

use super::audit::{Audit, MANAGER_USER};
use super::cluster::Cluster;
use super::device::request;
use super::kubectl::Kubectl;
use super::process::{Folder, Launch, Process, free_port};
use super::wait::{POLL, wait_for};

/// How long a server may take until it is ready; two busy cores are slow.
const READY: Duration = Duration::from_secs(90);

/// Where managers keep their Leases.
pub const MANAGER_NAMESPACE: &str = "praetor-system";

/// One of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// kube-apiserver
    Apiserver,
    /// etcd
    Etcd,
}

/// A running control plane. Its processes end with it, or with the test's process.
pub struct ControlPlane {
    // Dropped in this order: first the servers, then their folder.
    apiserver: Server,
    etcd: Server,
    assets: PathBuf,
    admin: PathBuf,
    manager: OnceCell<PathBuf>,
    crds: OnceCell<()>,
    folder: Folder,
}

struct Server {
    launch: Launch,
    log: PathBuf,
    port: u16,
    process: Mutex<Option<Process>>,
}

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder with kube-apiserver, etcd and kubectl; builds them when they are nowhere (minutes, once per machine).
pub fn assets() -> PathBuf {
    let script = repository().join("hack/controlplane.sh");
    // Standard error is inherited: the build shows its progress there.
    let output = Command::new(&script).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.unwrap_or_else(|e| panic!("cannot run {}: {e}", script.display()));
    assert!(output.status.success(), "{} found no control plane; what it says is above", script.display());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    PathBuf::from(text.lines().last().expect("a folder on the last line"))
}

impl ControlPlane {
    /// The control plane that all tests of this binary share, with the CRDs installed and the manager's account made.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async {
                let plane = Self::start().await;
                plane.install_crds().await;
                plane.service_account_kubeconfig().await;
                plane
            })
            .await
    }

    /// Starts one and waits until it is ready (about 4 s).
    pub async fn start() -> Self {
        let assets = tokio::task::spawn_blocking(assets).await.expect("the script's thread");
        for attempt in 1..=3 {
            let plane = Self::launch(assets.clone());
            match plane.ready().await {
                Ok(()) => return plane,
                // Another process took one of the ports between the look and the start.
                Err(state) if attempt < 3 && state.contains("address already in use") => {}
                Err(state) => panic!("the control plane did not start: {state}"),
            }
        }
        unreachable!("the last attempt returns or panics")
    }

    fn launch(assets: PathBuf) -> Self {
        let folder = Folder::new("e2e");
        let (etcd_port, peer_port, port) = (free_port(), free_port(), free_port());
        let token: [u8; 16] = rand::rng().random();
        let token = hex::encode(token);
        let home = folder.path().to_string_lossy().into_owned();
        let tokens = folder.write("tokens.csv", format!("{token},admin,admin,\"system:masters\"\n"));
        let signer = folder.write("service-account.pem", new_signing_key());
        let policy = folder.write("audit-policy.yaml", AUDIT_POLICY);
        let certificates = folder.join("certificates");
        let (etcd_url, peer_url) = (format!("http://127.0.0.1:{etcd_port}"), format!("http://127.0.0.1:{peer_port}"));
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());

        let etcd =
            Launch::new(assets.join("etcd")).env("HOME", &home).arg(flag("data-dir", &folder.join("etcd"))).args([
                format!("--listen-client-urls={etcd_url}"),
                format!("--advertise-client-urls={etcd_url}"),
                format!("--listen-peer-urls={peer_url}"),
                format!("--initial-advertise-peer-urls={peer_url}"),
                format!("--initial-cluster=default={peer_url}"),
                // A kill -9 loses nothing (the page cache stays), and the tests do not wait for the disk.
                "--unsafe-no-fsync".into(),
                "--log-level=warn".into(),
            ]);
        let apiserver = Launch::new(assets.join("kube-apiserver")).env("HOME", &home).args([
            format!("--etcd-servers={etcd_url}"),
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={port}"),
            flag("cert-dir", &certificates),
            flag("token-auth-file", &tokens),
            flag("service-account-key-file", &signer),
            flag("service-account-signing-key-file", &signer),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--authorization-mode=RBAC".into(),
            flag("audit-policy-file", &policy),
            flag("audit-log-path", &folder.join("audit.log")),
            // One file for the whole run: a rotation would lose what a test still wants to count.
            "--audit-log-maxsize=100000".into(),
            // Nothing here serves Endpoints, and nobody profiles it.
            "--endpoint-reconciler-type=none".into(),
            "--profiling=false".into(),
        ]);
        let server = |name: &str, launch: Launch, port: u16| {
            let log = folder.join(&format!("{name}.log"));
            let process = Process::spawn(name, &launch, &log);
            Server { launch, log, port, process: Mutex::new(Some(process)) }
        };
        let etcd = server("etcd", etcd, etcd_port);
        let apiserver = server("kube-apiserver", apiserver, port);
        let admin =
            folder.write("admin.kubeconfig", kubeconfig(port, &certificates.join("apiserver.crt"), "admin", &token));
        Self { apiserver, etcd, assets, admin, manager: OnceCell::new(), crds: OnceCell::new(), folder }
    }

    /// Waits for `/readyz`, and for what it does not cover: the `default` namespace.
    async fn ready(&self) -> Result<(), String> {
        let begun = Instant::now();
        let mut last = String::from("nothing asked yet");
        while begun.elapsed() < READY {
            for part in [Part::Etcd, Part::Apiserver] {
                if let Some(process) = self.server(part).process.lock().unwrap().as_mut()
                    && let Some(exit) = process.exited()
                {
                    return Err(format!("{part:?} ended with {exit:?}; {}", process.log_tail()));
                }
            }
            match tokio::time::timeout(Duration::from_secs(5), self.look()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(state)) => last = state,
                Err(_) => last = "no answer in 5 s".into(),
            }
            tokio::time::sleep(POLL).await;
        }
        Err(format!("not ready after {} s: {last}", READY.as_secs()))
    }

    async fn look(&self) -> Result<(), String> {
        let client = client_of(&self.admin).await?;
        for path in
            ["/readyz", "/api/v1/namespaces/default", "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin"]
        {
            let request = http::Request::get(path).body(Vec::new()).expect("a request");
            client.request_text(request).await.map_err(|e| format!("{path}: {e}"))?;
        }
        Ok(())
    }

    /// The kubeconfig of a cluster admin. For tests; the manager gets [`Self::service_account_kubeconfig`].
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// `https://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.apiserver.port)
    }

    /// The apiserver's address, for a [`super::Proxy`] in front of it.
    pub fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.apiserver.port).into()
    }

    /// The folder of this run.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The folder with kube-apiserver, etcd and kubectl.
    pub fn assets(&self) -> &Path {
        &self.assets
    }

    /// A copy of a kubeconfig that reaches the apiserver through another loopback port.
    pub fn kubeconfig_via(&self, kubeconfig: &Path, port: u16) -> PathBuf {
        let text = std::fs::read_to_string(kubeconfig).expect("a kubeconfig");
        self.folder
            .write(&format!("via-{port}.kubeconfig"), text.replace(&self.url(), &format!("https://127.0.0.1:{port}")))
    }

    /// A client as admin, on the current runtime.
    pub async fn client(&self) -> Client {
        client_of(&self.admin).await.expect("a client")
    }

    /// [`Self::client`] with the calls that tests make.
    pub async fn cluster(&self) -> Cluster {
        Cluster { client: self.client().await }
    }

    /// kubectl as admin.
    pub fn kubectl(&self) -> Kubectl {
        self.kubectl_as(&self.admin)
    }

    /// kubectl as someone else.
    pub fn kubectl_as(&self, kubeconfig: &Path) -> Kubectl {
        Kubectl { program: self.assets.join("kubectl"), kubeconfig: kubeconfig.into(), home: self.folder.path().into() }
    }

    /// Applies `crd/` and waits until all of it is established and served. Once, however often it is called.
    pub async fn install_crds(&self) {
        self.crds
            .get_or_init(|| async {
                let kubectl = self.kubectl();
                kubectl.apply_kustomization(&repository().join("crd")).await;
                let crds = ["networkswitches", "deviceprocesses", "deviceprocessdeployments"];
                let names: Vec<String> = crds.iter().map(|plural| format!("crd/{plural}.azure.com")).collect();
                let mut wait = vec!["wait", "--for=condition=Established", "--timeout=60s"];
                wait.extend(names.iter().map(String::as_str));
                kubectl.run(&wait).await;
                // Established comes a moment before the new paths are served.
                let client = self.client().await;
                for plural in crds {
                    wait_for(Duration::from_secs(30), plural, async || {
                        let request = http::Request::get(format!("/apis/azure.com/v1alpha1/{plural}?limit=1"))
                            .body(Vec::new())
                            .expect("a request");
                        client.request_text(request).await
                    })
                    .await;
                }
            })
            .await;
    }

    /// Applies `config/rbac` (into the namespace `praetor-system`, made when missing) and returns the kubeconfig of the
    /// manager's ServiceAccount, good for 8 hours. Once, however often it is called.
    pub async fn service_account_kubeconfig(&self) -> &Path {
        let made = self.manager.get_or_init(|| async {
            let kubectl = self.kubectl();
            kubectl
                .apply(
                    "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"praetor-system\"}}",
                )
                .await;
            kubectl.apply_kustomization(&repository().join("config/rbac")).await;
            // The apiserver judges by what its own watches have shown it of these rules.
            // Kinds of its own, since there may be no CRDs.
            for rule in [["create", "events.events.k8s.io"], ["create", "leases.coordination.k8s.io"]] {
                let ask = ["auth", "can-i", rule[0], rule[1], "--as", MANAGER_USER, "-n", MANAGER_NAMESPACE];
                wait_for(Duration::from_secs(30), format!("the manager to be allowed to {rule:?}"), async || {
                    let said = kubectl.output(&ask, None).await;
                    if said.stdout.trim() == "yes" { Ok(()) } else { Err(format!("{said:?}")) }
                })
                .await;
            }
            let token =
                kubectl.run(&["-n", "praetor-system", "create", "token", "praetor-manager", "--duration=8h"]).await;
            let certificate = self.folder.join("certificates/apiserver.crt");
            self.folder.write(
                "manager.kubeconfig",
                kubeconfig(self.apiserver.port, &certificate, "praetor-manager", token.trim()),
            )
        });
        made.await
    }

    /// Removes the Leases of managers that were killed, so that the next one neither waits for them nor shares with them.
    pub async fn forget_managers(&self) {
        self.kubectl().run(&["-n", MANAGER_NAMESPACE, "delete", "leases", "--all", "--wait=false"]).await;
    }

    /// Every request that was answered so far.
    pub fn audit(&self) -> Audit {
        self.audit_since(0)
    }

    /// A place in the audit log, for [`Self::audit_since`].
    pub fn audit_mark(&self) -> usize {
        std::fs::metadata(self.folder.join("audit.log")).map_or(0, |m| usize::try_from(m.len()).expect("fits"))
    }

    /// The requests that were answered after the mark.
    pub fn audit_since(&self, mark: usize) -> Audit {
        let log = std::fs::read(self.folder.join("audit.log")).unwrap_or_default();
        Audit::parse(&String::from_utf8_lossy(log.get(mark..).unwrap_or_default()))
    }

    fn server(&self, part: Part) -> &Server {
        match part {
            Part::Apiserver => &self.apiserver,
            Part::Etcd => &self.etcd,
        }
    }

    /// `kill -9`, gone when this returns.
    pub fn kill(&self, part: Part) {
        if let Some(mut process) = self.server(part).process.lock().unwrap().take() {
            process.kill9();
        }
    }

    /// SIGSTOP: it holds its connections and answers nothing.
    pub fn freeze(&self, part: Part) {
        self.signal(part, "STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self, part: Part) {
        self.signal(part, "CONT");
    }

    fn signal(&self, part: Part, signal: &str) {
        let mut process = self.server(part).process.lock().unwrap();
        process.as_mut().unwrap_or_else(|| panic!("{part:?} was killed")).signal(signal);
    }

    /// Starts it again (after a kill -9 when it still runs) on its old port and data, without waiting for it.
    pub fn start_again(&self, part: Part) {
        self.kill(part);
        let server = self.server(part);
        *server.process.lock().unwrap() = Some(Process::spawn(&format!("{part:?}"), &server.launch, &server.log));
    }

    /// Starts it again and waits until the apiserver is ready.
    pub async fn restart(&self, part: Part) {
        self.start_again(part);
        self.wait_ready().await;
    }

    /// Waits until the apiserver is ready.
    pub async fn wait_ready(&self) {
        self.ready().await.unwrap_or_else(|state| panic!("{state}"));
    }

    /// Lets etcd forget everything but the latest version of each object.
    pub async fn compact(&self) {
        let ask = async |path: &str, body: String| {
            let etcd = ([127, 0, 0, 1], self.etcd.port).into();
            let answer = request(etcd, http::Method::POST, path, &[("content-type", "application/json")], body).await;
            answer.unwrap_or_else(|e| panic!("etcd {path}: {e}")).expect(200).json()
        };
        let status = ask("/v3/maintenance/status", "{}".into()).await;
        let revision = status["header"]["revision"].as_str().expect("a revision").to_owned();
        ask("/v3/kv/compaction", format!("{{\"revision\": \"{revision}\"}}")).await;
    }

    /// A server's log.
    pub fn log(&self, part: Part) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.server(part).log).unwrap_or_default()).into_owned()
    }

    /// Asks something of a server's process (memory, connections); `None` after a kill.
    pub fn process<T>(&self, part: Part, ask: impl FnOnce(&Process) -> T) -> Option<T> {
        self.server(part).process.lock().unwrap().as_ref().map(ask)
    }
}

/// A client of one kubeconfig, on the current runtime. Its own retries are off: a test sees every answer.
pub async fn client_of(path: &Path) -> Result<Client, String> {
    let kubeconfig = Kubeconfig::read_from(path).map_err(|e| e.to_string())?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(|e| e.to_string())?;
    config.default_retry = false;
    Client::try_from(config).map_err(|e| e.to_string())
}

fn kubeconfig(port: u16, certificate: &Path, user: &str, token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority: '{}'}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: '{user}'}}}}]\n\
         users: [{{name: '{user}', user: {{token: '{token}'}}}}]\n",
        certificate.display()
    )
}

/// A new P-256 key for signing ServiceAccount tokens, as PEM. The optional public half is left out (RFC 5915): the
/// apiserver computes it, so no key tool is needed here.
fn new_signing_key() -> String {
    let mut secret: [u8; 32] = rand::rng().random();
    // Between 1 and the order of the curve.
    secret[0] = (secret[0] & 0x7f) | 1;
    let mut der = vec![0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20];
    der.extend_from_slice(&secret);
    der.extend_from_slice(&[0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]);
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|c| std::str::from_utf8(c).expect("base64")).collect();
    format!("-----BEGIN EC PRIVATE KEY-----\n{}\n-----END EC PRIVATE KEY-----\n", lines.join("\n"))
}

/// Every request of every client, without bodies; the apiserver's own and mere probes left out.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: None
    users: ['system:apiserver']
  - level: None
    nonResourceURLs: ['/readyz*', '/livez*', '/healthz*', '/openapi*', '/version*']
  - level: Metadata
";
