//! What operators see in Prometheus: a real one on this machine, with the shipped rules and alerts, that scrapes each of
//! the replicas. It is told of them by a file, since not every build of Prometheus can ask a cluster (Debian's cannot).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::fleet::Fleet;
use crate::harness::controlplane::repository;
use crate::harness::{Folder, wait_for};
use crate::play::{NAMESPACE, Play, seconds};
use crate::prometheus::Prometheus;
use crate::upheaval::ALL;

const SOON: Duration = Duration::from_secs(60);
/// Between scrapes, seconds. Shipped are 15.
const EVERY: u64 = 2;
/// So long nothing changes before it is looked at, seconds.
const STEADY: u64 = 40;
/// The way to the replicas where this machine has none into the pods' network; the kubelet's way to a probe is the same.
const PROXY: &str = "through the apiserver's proxy (no route from here into the pod network)";
const DIRECT: &str = "through the pod network";

/// A Prometheus that sees all replicas.
pub struct Watching {
    prometheus: Prometheus,
    targets: JoinHandle<()>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.targets.abort();
    }
}

impl Watching {
    /// Starts it, and returns when it has seen three replicas.
    pub async fn start(play: &Arc<Play>) -> Self {
        still(play).await;
        let shipped = std::fs::read_to_string(repository().join("config/monitoring/prometheus-files.yaml")).unwrap();
        let mut config = shipped.replace("_interval: 15s", &format!("_interval: {EVERY}s"));
        assert_eq!(config.matches(&format!("_interval: {EVERY}s")).count(), 2, "both intervals of\n{shipped}");
        let folder = Folder::new("prometheus");
        let pods = play.pods().await;
        let address = pods.iter().find_map(|pod| pod.status.as_ref()?.pod_ip.clone()).expect("a pod with an address");
        let connect = tokio::net::TcpStream::connect((address.as_str(), 8081));
        let direct = matches!(tokio::time::timeout(Duration::from_secs(2), connect).await, Ok(Ok(_)))
            && std::env::var_os("PRAETOR_CLUSTER_SCRAPE_BY_PROXY").is_none();
        if !direct {
            config = by_proxy(play, &folder, &config).await;
        }
        let targets = tokio::spawn(tell(play.clone(), folder.path().to_owned()));
        let prometheus = Prometheus::configured(folder, &config).await;
        let watching = Self { prometheus, targets };
        let begun = Instant::now();
        watching.until("count(up{job=\"praetor\"} == 1)", 3.0).await;
        play.ok(format!(
            "Prometheus scrapes 3 replicas {}, {} after its start",
            if direct { DIRECT } else { PROXY },
            seconds(begun.elapsed())
        ));
        watching
    }

    /// Waits for a value.
    async fn until(&self, query: &str, wanted: f64) {
        wait_for(SOON, format!("{query} to be {wanted}"), async || {
            let value = self.prometheus.value(query).await?;
            if (value - wanted).abs() < 1e-9 { Ok(()) } else { Err(value.to_string()) }
        })
        .await;
    }

    async fn value(&self, query: &str) -> f64 {
        self.prometheus.value(query).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Sums over the replicas are right.
    async fn sums(&self, replicas: usize) {
        for (query, wanted) in [
            ("count(up{job=\"praetor\"} == 1)", replicas),
            ("sum(praetor_leader)", 1),
            ("min(praetor_members)", replicas),
            ("min(praetor_peers_heard)", replicas - 1),
            ("sum(praetor_owned_devices)", ALL),
        ] {
            self.until(query, wanted as f64).await;
        }
    }

    /// Nobody changes anything: polls find nothing new, nothing is written, and Prometheus says so; then an edit.
    pub async fn steady_and_edited(&self, play: &Play, fleet: &Fleet) {
        let patches = format!("sum(increase(praetor_status_patches_total[{STEADY}s]))");
        wait_for(Duration::from_secs(150), format!("{STEADY} s without a status patch"), async || {
            let scrapes = self.prometheus.value(&format!("min(count_over_time(praetor_leader[{STEADY}s]))")).await?;
            let value = self.prometheus.value(&patches).await?;
            let enough = (STEADY / EVERY - 2) as f64;
            if value == 0.0 && scrapes >= enough { Ok(()) } else { Err(format!("{value} patches, {scrapes} scrapes")) }
        })
        .await;
        self.sums(3).await;
        let found = self.value("sum(rate(praetor_desired_requests_total{code=\"304\"}[40s])) / sum(rate(praetor_desired_requests_total[40s]))").await;
        assert!(found > 0.9, "304 ratio {found}");
        let recorded = self.value("praetor:desired_304:ratio_5m").await;
        assert!(recorded > 0.9, "the recorded 304 ratio is {recorded}");
        assert_eq!(self.value("praetor:status_patches:rate_5m").await, 0.0, "the recorded patch rate");
        play.ok(format!(
            "steady state by PromQL: 304 ratio {found:.3} (recorded {recorded:.3}), 0 status patches in {STEADY} s, \
             owned devices {ALL}, one leader, members 3"
        ));
        let took = fleet.edit("2").await;
        wait_for(SOON, "the patches in Prometheus", async || {
            let rate = self.prometheus.value("praetor:status_patches:rate_5m").await?;
            if rate > 0.0 { Ok(()) } else { Err(format!("rate {rate}")) }
        })
        .await;
        let rate = self.value("sum(rate(praetor_status_patches_total[30s]))").await;
        play.ok(format!(
            "a new version for {} devices, rolled out in {}: {rate:.1} status patches a second by PromQL",
            fleet.names.len(),
            seconds(took)
        ));
    }

    /// After all of it: sums are right and no alert fires.
    pub async fn at_the_end(&self, play: &Play) {
        self.sums(3).await;
        let firing = self.prometheus.ask("ALERTS{alertstate=\"firing\"}").await;
        assert_eq!(firing, Ok(Vec::new()), "alerts fire");
        let ever = self.prometheus.ask("count_over_time(ALERTS{alertstate=\"firing\"}[15m])").await;
        assert_eq!(ever, Ok(Vec::new()), "alerts have fired");
        let rules = self.prometheus.rules().await.expect("the rules");
        let sick: Vec<_> = rules.iter().filter(|rule| rule.health != "ok").collect();
        assert!(rules.len() >= 15 && sick.is_empty(), "{sick:?}");
        let errors = self
            .value("sum(praetor_desired_requests_total{code=~\"5..\"}) + sum(praetor_reports_total{code=~\"5..\"})")
            .await;
        let all = self.value("sum(praetor_desired_requests_total) + sum(praetor_reports_total)").await;
        play.ok(format!(
            "Prometheus at the end: sums over 3 replicas right, {} rules healthy, no alert fires or has fired; {errors} \
             of {all} requests of devices answered with 5xx by those that are left",
            rules.len()
        ));
    }
}

/// Waits until nothing has been written for 3 s: as far as Prometheus will ever see, nothing was.
async fn still(play: &Play) {
    wait_for(SOON, "3 s without a status patch", async || {
        let patches = async || {
            let mut sum = 0.0;
            for pod in play.living().await {
                sum += play.metrics(&pod).await?.sum("praetor_status_patches_total");
            }
            Ok::<_, String>(sum)
        };
        let before = patches().await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = patches().await?;
        if before == after { Ok(()) } else { Err(format!("{before}, then {after}")) }
    })
    .await;
}

/// Keeps the file of targets: all pods that have an address and are not over.
async fn tell(play: Arc<Play>, folder: PathBuf) {
    let mut told = String::new();
    loop {
        let pods = play.pods().await;
        let target = |pod: &Pod| {
            let status = pod.status.as_ref()?;
            let over = ["Succeeded", "Failed"].contains(&status.phase.as_deref().unwrap_or_default());
            let address = status.pod_ip.as_ref().filter(|_| !over && pod.metadata.deletion_timestamp.is_none())?;
            let labels = json!({ "namespace": NAMESPACE, "pod": pod.metadata.name });
            Some(json!({ "targets": [format!("{address}:8081")], "labels": labels }))
        };
        let text = Value::from(pods.iter().filter_map(target).collect::<Vec<_>>()).to_string();
        if text != told {
            std::fs::write(folder.join("targets.new"), &text).expect("written");
            std::fs::rename(folder.join("targets.new"), folder.join("targets.yaml")).expect("renamed");
            told = text;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The same configuration with scrapes that go through the apiserver, as somebody who may do that and nothing else;
/// `instance` stays the pod's own address.
async fn by_proxy(play: &Play, folder: &Folder, config: &str) -> String {
    let meta = |name: &str, namespace: &str| json!({ "name": name, "namespace": namespace });
    let rbac = "rbac.authorization.k8s.io/v1";
    let objects = json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "monitoring" } },
        { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("prometheus", "monitoring") },
        { "apiVersion": rbac, "kind": "Role", "metadata": meta("prometheus", NAMESPACE),
          "rules": [{ "apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["get"] }] },
        { "apiVersion": rbac, "kind": "RoleBinding", "metadata": meta("prometheus", NAMESPACE),
          "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "prometheus" },
          "subjects": [{ "kind": "ServiceAccount", "name": "prometheus", "namespace": "monitoring" }] },
    ] });
    play.kubectl.apply(&objects.to_string()).await;
    let token = play.run("-n monitoring create token prometheus --duration=2h").await;
    let (server, authority) = play.apiserver();
    let authority = base64::engine::general_purpose::STANDARD.decode(authority).expect("Base64");
    let (authority, token) = (folder.write("ca.crt", authority), folder.write("token", token.trim()));
    let job = "  - job_name: praetor\n";
    assert!(config.contains(job), "another layout:\n{config}");
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/$1:8081/proxy/metrics");
    let more = json!({
        "scheme": "https", "tls_config": { "ca_file": authority }, "authorization": { "credentials_file": token },
        "relabel_configs": [
            { "source_labels": ["__address__"], "target_label": "instance" },
            { "source_labels": ["pod"], "target_label": "__metrics_path__", "replacement": path },
            { "target_label": "__address__", "replacement": server.trim_start_matches("https://") },
        ],
    });
    let more = more.as_object().expect("a map").iter().map(|(key, value)| format!("    {key}: {value}\n"));
    config.replace(job, &format!("{job}{}", more.collect::<String>()))
}
