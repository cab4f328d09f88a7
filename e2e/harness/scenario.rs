//! Manifests in a line each, and fleets of them.

use serde_json::{Map, Value, json};

use super::cluster::Cluster;

/// Creates in flight at a time: more does not make one apiserver on two cores faster.
const IN_FLIGHT: usize = 32;

/// The label that samples and tests select by.
pub const ROLE: &str = "apollo.azure.com/role";

fn labels(pairs: &[(&str, &str)]) -> Value {
    Value::Object(pairs.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect::<Map<_, _>>())
}

/// A NetworkSwitch.
pub fn switch(namespace: &str, name: &str, with: &[(&str, &str)]) -> Value {
    json!({
        "apiVersion": "azure.com/v1alpha1", "kind": "NetworkSwitch",
        "metadata": { "namespace": namespace, "name": name, "labels": labels(with) },
        "spec": {},
    })
}

/// A template's spec (a DeviceProcessSpec without deviceRef): an agent of one version, run by systemd.
pub fn process_spec(version: &str) -> Value {
    json!({
        "artifact": { "type": "oci", "url": format!("registry.example.com/infra/switch-agent:{version}") },
        "execution": { "backend": "systemd", "command": ["/usr/bin/switch-agent"], "args": ["--verbose"] },
        "restartPolicy": "Always",
    })
}

/// A DeviceProcessDeployment that selects by labels (none: every switch of the namespace).
pub fn deployment(namespace: &str, name: &str, select: &[(&str, &str)], template_spec: Value) -> Value {
    let selector = if select.is_empty() { json!({}) } else { json!({ "matchLabels": labels(select) }) };
    json!({
        "apiVersion": "azure.com/v1alpha1", "kind": "DeviceProcessDeployment",
        "metadata": { "namespace": namespace, "name": name },
        "spec": { "selector": selector, "template": { "metadata": { "labels": { "app": name } }, "spec": template_spec } },
    })
}

/// A DeviceProcess of nobody's, for one NetworkSwitch.
pub fn device_process(namespace: &str, name: &str, device: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["deviceRef"] = json!({ "kind": "NetworkSwitch", "name": device });
    json!({
        "apiVersion": "azure.com/v1alpha1", "kind": "DeviceProcess",
        "metadata": { "namespace": namespace, "name": name },
        "spec": spec,
    })
}

/// The names of a fleet: `<prefix>-00000` and on.
pub fn fleet(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n:05}")).collect()
}

/// Creates a switch of each name with the same labels, many at a time.
pub async fn create_switches(cluster: &Cluster, namespace: &str, names: &[String], with: &[(&str, &str)]) {
    let created = cluster.create_all(names.iter().map(|name| switch(namespace, name, with)), IN_FLIGHT).await;
    assert_eq!(created, names.len());
}

/// A report with one observation: the device runs this spec and is well.
pub fn report_running(sequence: u64, boot_id: &str, namespace: &str, process: &str, hash: &str) -> Value {
    json!({
        "agentVersion": "0.1.0", "heartbeat": true, "bootId": boot_id, "sequence": sequence,
        "observations": [{
            "namespace": namespace, "name": process, "observedSpecHash": hash, "runningSpecHash": hash,
            "processStarted": true, "healthy": true, "pid": 4711, "startTime": "2025-12-12T23:54:58Z", "restartCount": 0,
        }],
    })
}

/// A report with one observation: the device has seen this spec and says nothing about processes.
pub fn report_observed(sequence: u64, boot_id: &str, namespace: &str, process: &str, hash: &str) -> Value {
    json!({
        "agentVersion": "0.1.0", "heartbeat": true, "bootId": boot_id, "sequence": sequence,
        "observations": [{ "namespace": namespace, "name": process, "observedSpecHash": hash }],
    })
}

/// A report without observations.
pub fn heartbeat(sequence: u64, boot_id: &str) -> Value {
    json!({ "agentVersion": "0.1.0", "heartbeat": true, "bootId": boot_id, "sequence": sequence })
}
