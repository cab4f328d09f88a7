//! Kinds of other projects that optional components use: just the fields that these components set, as the projects
//! document them (Prometheus operator v1, cert-manager v1), so that a slip of the pen is an unknown field.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::harness::{ControlPlane, wait_for};

fn text() -> Value {
    json!({ "type": "string" })
}

fn texts() -> Value {
    json!({ "type": "array", "items": text() })
}

fn object(properties: Value) -> Value {
    json!({ "type": "object", "properties": properties })
}

fn duration() -> Value {
    json!({ "type": "string", "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$" })
}

fn definition(group: &str, kind: &str, plural: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group, "scope": "Namespaced", "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase() },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object", "required": ["spec"], "properties": { "spec": spec } } },
            }],
        },
    })
}

/// Installs them, once a test binary.
pub async fn install(plane: &ControlPlane) {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    INSTALLED.get_or_init(async || apply(plane).await).await;
}

/// Installs them on a control plane of the test's own.
pub async fn apply(plane: &ControlPlane) {
    let kubectl = plane.kubectl();
    let labels = json!({ "type": "object", "additionalProperties": text() });
    let endpoint = object(
        json!({ "port": text(), "path": text(), "scheme": text(), "interval": duration(), "scrapeTimeout": duration() }),
    );
    let monitor = |endpoints: &str| {
        object(json!({
            "selector": object(json!({ "matchLabels": labels })),
            endpoints: { "type": "array", "items": endpoint },
        }))
    };
    let certificate = object(json!({
        "isCA": { "type": "boolean" }, "commonName": text(), "secretName": text(),
        "duration": duration(), "renewBefore": duration(),
        "privateKey": object(json!({
            "algorithm": { "type": "string", "enum": ["RSA", "ECDSA", "Ed25519"] }, "size": { "type": "integer" },
            "rotationPolicy": { "type": "string", "enum": ["Never", "Always"] },
        })),
        "usages": { "type": "array", "items": { "type": "string", "enum": ["digital signature", "key encipherment", "server auth"] } },
        "dnsNames": texts(), "ipAddresses": texts(),
        "issuerRef": object(json!({ "group": text(), "kind": text(), "name": text() })),
    }));
    let issuer = object(json!({ "selfSigned": object(json!({})), "ca": object(json!({ "secretName": text() })) }));
    let kinds = [
        ("monitoring.coreos.com", "PodMonitor", "podmonitors", monitor("podMetricsEndpoints")),
        ("monitoring.coreos.com", "ServiceMonitor", "servicemonitors", monitor("endpoints")),
        ("cert-manager.io", "Certificate", "certificates", certificate),
        ("cert-manager.io", "Issuer", "issuers", issuer),
    ];
    for (group, kind, plural, spec) in &kinds {
        kubectl.apply(&definition(group, kind, plural, spec).to_string()).await;
    }
    for (group, kind, plural, _) in &kinds {
        let crd = format!("crd/{plural}.{group}");
        kubectl.run(&["wait", "--for=condition=Established", "--timeout=60s", &crd]).await;
        // Strict validation goes by the published schema, which comes a moment later.
        wait_for(Duration::from_secs(60), *kind, async || {
            let said = kubectl.output(&["explain", &format!("{plural}.{group}.spec")], None).await;
            if said.ok { Ok(()) } else { Err(said.stderr) }
        })
        .await;
    }
}
