//! What the manager's ServiceAccount may do, tried with its own token, and what it must not; and which pods its
//! namespace admits.

use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::agents;
use crate::harness::controlplane::client_of;
use crate::harness::{Cluster, Kind};
use crate::play::{MANAGER, NAMESPACE, Play};

/// What the manager does itself, as far as a person can type it; nothing is changed.
const ALLOWED: [&str; 9] = [
    "get networkswitches -A",
    "get deviceprocesses -A",
    "get deviceprocessdeployments -A",
    "-n infra-system get networkswitch tor1-01",
    "-n praetor-system get leases",
    "-n praetor-system get pod POD",
    "-n infra-system label deviceprocess switch-agent-tor1-01 tried=yes --dry-run=server",
    "-n infra-system delete deviceprocess switch-agent-tor1-01 --dry-run=server",
    "-n praetor-system delete lease praetor-leader --dry-run=server",
];

/// Whose status it writes; kubectl would read it first, which the manager does not.
const STATUSES: [(Kind, &str); 3] =
    [(Kind::Switch, "tor1-01"), (Kind::Process, "switch-agent-tor1-01"), (Kind::Deployment, "switch-agent")];

/// What nobody gave it.
const REFUSED: [&str; 25] = [
    "-n praetor-system get secrets",
    "-n praetor-system get secret praetor-device-secret",
    "get secrets -A",
    "-n praetor-system get pods",
    "-n infra-system get pods",
    "-n praetor-system delete pod POD",
    "-n praetor-system exec POD -- /praetor-manager --version",
    "-n praetor-system get configmaps",
    "-n praetor-system get deployment praetor-manager",
    "-n praetor-system delete deployment praetor-manager",
    "-n praetor-system scale deployment praetor-manager --replicas=1",
    "-n default get leases",
    "-n kube-system delete lease anything",
    "-n infra-system label networkswitch tor1-01 tried=yes",
    "-n infra-system patch networkswitch tor1-01 --type=merge -p {\"spec\":{\"tried\":true}}",
    "-n infra-system delete networkswitch tor1-01",
    "-n infra-system patch deviceprocessdeployment switch-agent --type=merge -p {\"spec\":{\"paused\":true}}",
    "-n infra-system delete deviceprocessdeployment switch-agent",
    "get nodes",
    "get namespaces",
    "get events -A",
    "get customresourcedefinitions",
    "delete clusterrole praetor-manager",
    "-n praetor-system create token default",
    "get --raw=/api/v1/namespaces/praetor-system/secrets --as=system:admin",
];

/// With the token that the manager has.
pub async fn of_the_account(play: &Play) {
    let token = play.run(&format!("-n {NAMESPACE} create token {MANAGER} --duration=10m")).await;
    let kubectl = play.kubectl_with(MANAGER, &token);
    let pod = play.living().await.pop_first().expect("a replica");
    let say = async |line: &str| {
        let line = line.replace("POD", &pod);
        kubectl.output(&line.split(' ').collect::<Vec<_>>(), None).await
    };
    for line in ALLOWED {
        let said = say(line).await;
        assert!(said.ok, "the ServiceAccount needs this: kubectl {line}: {}", said.stderr);
    }
    let account = Cluster { client: client_of(&kubectl.kubeconfig).await.expect("a client") };
    let nothing = Patch::Merge(json!({ "status": {} }));
    for (kind, name) in STATUSES {
        let patched =
            account.api(kind, "infra-system").patch_status(name, &PatchParams::default().dry_run(), &nothing).await;
        assert!(patched.is_ok(), "the ServiceAccount writes the status of {kind:?} {name}: {patched:?}");
    }
    for line in REFUSED {
        let said = say(line).await;
        let refused = !said.ok && said.stderr.to_lowercase().contains("forbidden");
        assert!(refused, "the ServiceAccount must not: kubectl {line}: {said:?}");
    }
    play.ok(format!(
        "the ServiceAccount's own token: {} things it needs work, {} others are refused (Secrets, pods, Deployments, \
         Leases elsewhere, specs of switches, …)",
        ALLOWED.len() + STATUSES.len(),
        REFUSED.len()
    ));
}

/// The namespace holds its pods to the restricted level: ours are in, one that asks for nothing special is not.
pub async fn of_pods(play: &Play) {
    let labels = play.run(&format!("get namespace {NAMESPACE} -o jsonpath={{.metadata.labels}}")).await;
    assert!(labels.contains("\"pod-security.kubernetes.io/enforce\":\"restricted\""), "{labels}");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "careless", "namespace": NAMESPACE },
        "spec": { "containers": [{ "name": "it", "image": "praetor-manager:dev" }] },
    });
    let said = play.kubectl.try_apply(&pod.to_string()).await;
    assert!(!said.ok && said.stderr.contains("violates PodSecurity \"restricted"), "{said:?}");
    play.ok("Pod Security restricted is enforced: the replicas are admitted, a careless pod is not");
}

/// A device's token opens the device port, and nothing at the apiserver.
pub async fn of_devices(play: &Play) {
    let token = crate::harness::device::derived_token(crate::harness::programs::SECRET, agents::DEVICES[0]);
    let kubectl = play.kubectl_with("device", &token);
    let said = kubectl.output(&["get", "networkswitches", "-A"], None).await;
    assert!(!said.ok && said.stderr.contains("must be logged in"), "{said:?}");
    play.ok("a device's token is worth nothing at the apiserver (401)");
}
