//! The manager as the Deployment starts it, and its one line when something that it needs is not there.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::harness::{ControlPlane, Folder, Manager};
use super::{NAMESPACE, deployment};

const SOON: Duration = Duration::from_secs(30);
/// At least 16 bytes.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// The Deployment's arguments, with the mounted folders in a folder of the test. Its Secrets are mounted as `mounted` says.
async fn arguments(plane: &ControlPlane, folder: &Folder, mounted: &[(&str, &str)]) -> Vec<String> {
    let deployment = deployment(&plane.kubectl()).await;
    let spec = &deployment["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    for mount in container["volumeMounts"].as_array().unwrap() {
        let volume = spec["volumes"].as_array().unwrap().iter().find(|v| v["name"] == mount["name"]).unwrap();
        let (path, secret) = (mount["mountPath"].as_str().unwrap(), volume["secret"]["secretName"].as_str().unwrap());
        // The manager tells the Secret's name from the folder's.
        assert_eq!(Path::new(path).file_name().unwrap(), secret);
        assert_eq!(volume["secret"]["optional"], true, "the manager's own line needs a pod that starts");
        let place = folder.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(&place).unwrap();
        for (_, key) in mounted.iter().filter(|(name, _)| *name == secret) {
            std::fs::write(place.join(key), SECRET).unwrap();
        }
    }
    let here = format!("={}/etc/praetor/", folder.path().display());
    let arguments = container["args"].as_array().unwrap().iter().map(Value::as_str);
    arguments.map(|argument| argument.unwrap().replace("=/etc/praetor/", &here)).collect()
}

async fn start(plane: &ControlPlane, arguments: &[String]) -> Manager {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let builder = Manager::builder(plane).await.no_secret().args(&arguments).args(&["--peer-addr=127.0.0.1:0"]);
    let builder = builder.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("POD_IP", "127.0.0.1");
    builder.env("POD_NAMESPACE", NAMESPACE).spawn()
}

/// The line with which it ended.
async fn last_line(mut manager: Manager) -> String {
    assert_eq!(manager.wait_exit(SOON).await.code, Some(1), "{}", manager.log());
    let log = manager.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("praetor-manager: ")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert_eq!(log.lines().last(), Some(lines[0]), "{log}");
    lines[0].to_owned()
}

#[tokio::test]
async fn the_arguments_of_the_deployment_start_a_manager() {
    let plane = ControlPlane::shared().await;
    let folder = Folder::new("mounts");
    let mounted = [("praetor-device-secret", "token-secret"), ("praetor-peer-key", "key")];
    let mut manager = start(plane, &arguments(plane, &folder, &mounted).await).await;
    manager.wait_ready().await;
    manager.sigterm();
    assert_eq!(manager.wait_exit(SOON).await.code, Some(0), "{}", manager.log());
}

#[tokio::test]
async fn a_missing_secret_is_named_with_the_command_that_makes_it() {
    let plane = ControlPlane::shared().await;
    for (mounted, secret, key) in [
        (&[][..], "praetor-device-secret", "token-secret"),
        (&[("praetor-device-secret", "another-key")][..], "praetor-device-secret", "token-secret"),
        (&[("praetor-device-secret", "token-secret")][..], "praetor-peer-key", "key"),
    ] {
        let folder = Folder::new("mounts");
        let line = last_line(start(plane, &arguments(plane, &folder, mounted).await).await).await;
        assert!(line.contains(&format!("the Secret {secret} is missing in {NAMESPACE}, or has no {key}")), "{line}");
        let command = format!("| kubectl -n {NAMESPACE} create secret generic {secret} --from-file={key}=/dev/stdin");
        assert!(line.contains(&command) && !line.contains(SECRET), "{line}");
    }
}

#[tokio::test]
async fn an_old_cluster_is_refused() {
    let plane = ControlPlane::shared().await;
    let old = OldCluster::start("28").await;
    let folder = Folder::new("old");
    let manager = Manager::builder(plane).await.kubeconfig(old.kubeconfig(&folder)).spawn();
    assert_eq!(
        last_line(manager).await,
        "praetor-manager: the apiserver is Kubernetes v1.28.9: 1.30 or newer is needed"
    );
}

/// An apiserver that answers one question only: which version it is.
pub struct OldCluster {
    port: u16,
    server: tokio::task::JoinHandle<()>,
}

impl OldCluster {
    /// Of Kubernetes 1.`minor`.9
    pub async fn start(minor: &str) -> Self {
        let version = json!({
            "major": "1", "minor": minor, "gitVersion": format!("v1.{minor}.9"), "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "", "goVersion": "", "compiler": "gc", "platform": "linux/amd64",
        });
        let router =
            axum::Router::new().route("/version", axum::routing::get(async move || axum::Json(version.clone())));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { port, server: tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }) }
    }

    /// How to reach it.
    pub fn kubeconfig(&self, folder: &Folder) -> std::path::PathBuf {
        let port = self.port;
        folder.write(
            "old.kubeconfig",
            format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: old\n\
                 clusters: [{{name: old, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n\
                 contexts: [{{name: old, context: {{cluster: old, user: old}}}}]\nusers: [{{name: old, user: {{}}}}]\n"
            ),
        )
    }
}

impl Drop for OldCluster {
    fn drop(&mut self) {
        self.server.abort();
    }
}
