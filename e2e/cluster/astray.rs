//! The end: everything is uninstalled. And what goes wrong on the way in ends in one clear line each.

use std::time::Duration;

use serde_json::Value;

use crate::harness::wait_for;
use crate::install::secrets;
use crate::play::{MANAGER, NAMESPACE, PODS, Play, install_yaml, last_line};

/// Another namespace than anybody's.
const ASTRAY: &str = "astray";

/// `make uninstall`: it wants a yes, says how much there is, and leaves nothing.
pub async fn uninstalled(play: &Play) {
    let said = play.script("hack/deploy.sh", &["uninstall"], &[]).await;
    assert!(!said.ok && said.stderr.contains("nothing was deleted"), "{said:?}");
    let said = play.script("hack/deploy.sh", &["uninstall"], &[("CONFIRM", "yes")]).await;
    assert!(said.ok, "{said:?}");
    let told = said.stdout.lines().find(|line| line.contains("deviceprocesses")).unwrap_or_default().trim().to_owned();
    for kind in ["customresourcedefinitions", "clusterroles", "clusterrolebindings", "namespaces"] {
        let left = play.run(&format!("get {kind} -o name")).await;
        let ours: Vec<_> = left.lines().filter(|line| line.contains("praetor") || line.contains("azure.com")).collect();
        assert!(ours.is_empty(), "uninstall has left {ours:?}");
    }
    play.ok(format!("uninstalled after a yes, nothing of it is left (it said: {told})"));
}

/// Without a Secret, without the CRDs, with a wrong image.
pub async fn lost(play: &Play) {
    let install = std::fs::read_to_string(install_yaml()).expect("dist/install.yaml of make dist");
    let documents: Vec<_> = install.replace(NAMESPACE, ASTRAY).split("\n---\n").map(str::to_owned).collect();
    // One replica says it as well as three.
    let without_crds: Vec<_> = documents
        .iter()
        .filter(|document| !document.contains("kind: CustomResourceDefinition"))
        .map(|document| document.replace("replicas: 3", "replicas: 1"))
        .collect();
    play.kubectl.apply(&without_crds.join("\n---\n")).await;
    let line = ends_with(play, "praetor-device-secret").await;
    play.ok(format!("without the Secrets a replica ends with: {line}"));

    secrets(play, ASTRAY).await;
    play.run(&format!("-n {ASTRAY} delete pods --all --grace-period=1")).await;
    let line = ends_with(play, "CRD").await;
    play.ok(format!("without the CRDs a replica ends with: {line}"));

    let environment = [("NAMESPACE", ASTRAY), ("IMAGE", "praetor-manager:no-such-image"), ("TIMEOUT", "60")];
    let said = play.script("hack/deploy.sh", &["deploy"], &environment).await;
    let line = last_line(&said.stderr).to_owned();
    assert!(!said.ok && line.contains("praetor-manager:no-such-image cannot be had"), "{said:?}");
    play.ok(format!("with a wrong image make deploy ends with: {line}"));
    play.run(&format!("delete namespace {ASTRAY} --wait=false")).await;
}

/// Waits until a replica has ended by itself, and returns the last line of its log, which names what it misses.
async fn ends_with(play: &Play, thing: &str) -> String {
    wait_for(Duration::from_secs(60), format!("a replica that misses the {thing}"), async || {
        let query = format!("-n {ASTRAY} get pods -l {PODS} -o json");
        let pods: Value = serde_json::from_str(&play.run(&query).await).map_err(|e| e.to_string())?;
        let living = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        let pod = pods["items"].as_array().into_iter().flatten().find(living).ok_or("no pod")?;
        let status = &pod["status"]["containerStatuses"][0];
        if status["lastState"]["terminated"]["exitCode"] != 1 {
            return Err(status.to_string());
        }
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let log = play.output(&format!("-n {ASTRAY} logs --previous {name}")).await;
        let line = last_line(&log.stdout).to_owned();
        if line.starts_with(MANAGER) && line.contains(thing) { Ok(line) } else { Err(format!("{log:?}")) }
    })
    .await
}
