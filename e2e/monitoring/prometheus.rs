//! A real Prometheus with the shipped configuration and rules, and what it answers.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use serde_json::Value;

use super::harness::controlplane::repository;
use super::harness::device::request;
use super::harness::{Folder, Launch, Process, free_port, wait_for};
use super::queries::selectors;

/// A running Prometheus; it ends when this is dropped.
pub struct Prometheus {
    process: Process,
    address: SocketAddr,
    _folder: Folder,
}

/// One rule, as Prometheus understood it.
#[derive(Debug)]
pub struct Rule {
    /// Of the recorded series, or of the alert.
    pub name: String,
    /// The expression.
    pub query: String,
    /// Whether it is an alert.
    pub alert: bool,
    /// `ok`, `err` or `unknown` (not yet evaluated).
    pub health: String,
    /// What was wrong with the last evaluation.
    pub error: String,
}

/// The folder of prometheus and promtool; panics with what to install when there are none.
fn programs() -> PathBuf {
    let said = Command::new(repository().join("hack/prometheus.sh")).output().expect("bash");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    assert!(said.status.success(), "this test needs Prometheus.\n{}", text(&said.stderr));
    PathBuf::from(text(&said.stdout))
}

impl Prometheus {
    /// Starts it with `config/monitoring/prometheus-files.yaml` and the rules, everything once a second, on these
    /// admin ports.
    pub async fn start(targets: &[SocketAddr]) -> Self {
        let (folder, shipped) = (Folder::new("prometheus"), repository().join("config/monitoring"));
        let read = |name: &str| fs::read_to_string(shipped.join(name)).unwrap();
        let config = read("prometheus-files.yaml");
        let often = config.replace("_interval: 15s", "_interval: 1s");
        assert_eq!(often.matches("_interval: 1s").count(), 2, "both intervals of\n{config}");
        folder.write("targets.yaml", serde_json::json!([{ "targets": targets }]).to_string());
        Self::configured(folder, &often).await
    }

    /// Starts it with a configuration and the shipped rules; what else the configuration asks for is in the folder.
    pub async fn configured(folder: Folder, config: &str) -> Self {
        let config = folder.write("prometheus.yaml", config);
        let rules = repository().join("config/monitoring/rules.yaml");
        folder.write("rules.yaml", fs::read_to_string(rules).unwrap());
        let address: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let launch = Launch::new(programs().join("prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"));
        let process = Process::spawn("prometheus", &launch, &folder.join("prometheus.log"));
        let mut prometheus = Self { process, address, _folder: folder };
        wait_for(Duration::from_secs(20), "Prometheus to be ready", async || {
            assert!(prometheus.process.exited().is_none(), "{}", prometheus.process.log_tail());
            let answer = request(address, Method::GET, "/-/ready", &[], "").await?;
            if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
        })
        .await;
        prometheus
    }

    /// An instant query: labels and value of each series.
    ///
    /// # Errors
    /// What Prometheus says of the expression.
    pub async fn ask(&self, query: &str) -> Result<Vec<(Value, f64)>, String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric();
        let encoded: String =
            query.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect();
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let answer = request(self.address, Method::POST, "/api/v1/query", &form, format!("query={encoded}")).await?;
        let body = answer.json();
        if body["status"] != "success" {
            return Err(format!("{query}: {}", answer.text()));
        }
        let number = |value: &Value| value.as_str().and_then(|text| text.parse::<f64>().ok());
        let results = match body["data"]["resultType"].as_str() {
            Some("vector") => body["data"]["result"].as_array().cloned().unwrap_or_default(),
            _ => return Err(format!("{query}: no vector but {}", body["data"])),
        };
        let series = |result: &Value| Some((result["metric"].clone(), number(&result["value"][1])?));
        results.iter().map(|result| series(result).ok_or_else(|| format!("{query}: {result}"))).collect()
    }

    /// The value of a query that has one series.
    ///
    /// # Errors
    /// When it has none or several.
    pub async fn value(&self, query: &str) -> Result<f64, String> {
        match self.ask(query).await?.as_slice() {
            [(_, value)] => Ok(*value),
            other => Err(format!("{query}: one series wanted, got {other:?}")),
        }
    }

    /// Returns when every replica has been scraped since the call, and the records, of which this is the last, have been
    /// made from that.
    pub async fn catch_up(&self) {
        for query in ["min(timestamp(up{job=\"praetor\"}))", "min(timestamp(praetor:report_seconds:p99_5m))"] {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
            wait_for(Duration::from_secs(20), format!("{query} to be {now} or later"), async || {
                let at = self.value(query).await?;
                if at >= now { Ok(()) } else { Err(at.to_string()) }
            })
            .await;
        }
    }

    /// What is wrong with a query: each of its selectors must find series, and it must answer with numbers.
    ///
    /// # Errors
    /// The first fault.
    pub async fn answers(&self, query: &str) -> Result<(), String> {
        self.selects(query).await?;
        let series = self.ask(query).await?;
        if series.is_empty() {
            return Err(format!("no result: {query}"));
        }
        match series.iter().find(|(_, value)| !value.is_finite()) {
            Some((labels, value)) => Err(format!("{value} for {labels}: {query}")),
            None => Ok(()),
        }
    }

    /// Whether each selector of a query finds series; the result itself may be empty, as an alert's should be.
    ///
    /// # Errors
    /// The first that finds none.
    pub async fn selects(&self, query: &str) -> Result<(), String> {
        let selectors = selectors(query);
        if selectors.is_empty() {
            return Err(format!("asks for no series at all: {query}"));
        }
        for selector in selectors {
            if self.ask(&format!("count({selector})")).await?.is_empty() {
                return Err(format!("there is no {selector}, in: {query}"));
            }
        }
        Ok(())
    }

    /// All rules.
    pub async fn rules(&self) -> Result<Vec<Rule>, String> {
        let answer = request(self.address, Method::GET, "/api/v1/rules", &[], "").await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let body = answer.json();
        let rules = body["data"]["groups"].as_array().into_iter().flatten().flat_map(|group| {
            let rules = group["rules"].as_array().cloned().unwrap_or_default();
            rules.into_iter().map(move |rule| Rule {
                name: text(&rule["name"]),
                query: text(&rule["query"]),
                alert: rule["type"] == "alerting",
                health: text(&rule["health"]),
                error: text(&rule["lastError"]),
            })
        });
        Ok(rules.collect())
    }
}
