//! What is applied to a cluster: every manifest passes a real apiserver's strict schema check, the pods the restricted
//! Pod Security level; overlays move all of it; Leases travel in their own lane; the account is refused whatever it was
//! not given; and the way in and out of a cluster says in one line what is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "manifests/deploy.rs"]
mod deploy;
mod harness;
#[path = "manifests/others.rs"]
mod others;
#[path = "manifests/start.rs"]
mod start;

use harness::controlplane::{client_of, repository};
use harness::{ControlPlane, Kubectl, Output, unique};
use serde_json::{Value, json};

const NAMESPACE: &str = "praetor-system";

/// What `kubectl kustomize` makes of a folder.
async fn render(kubectl: &Kubectl, folder: &std::path::Path) -> String {
    kubectl.run(&["kustomize", &folder.to_string_lossy()]).await
}

/// The documents of a YAML text.
fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).expect("YAML")
}

/// An overlay in a folder of its own: kustomize takes relative paths only.
async fn overlay(kubectl: &Kubectl, kustomization: &str) -> String {
    let root = repository();
    std::fs::create_dir_all(root.join("dist")).unwrap();
    let folder = root.join("dist").join(unique("test-overlay"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("kustomization.yaml"), kustomization).unwrap();
    let output = kubectl.output(&["kustomize", &folder.to_string_lossy()], None).await;
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(output.ok, "{}", output.stderr);
    output.stdout
}

async fn strict(kubectl: &Kubectl, manifests: &str) -> Output {
    kubectl.output(&["apply", "--dry-run=server", "--validate=strict", "-f", "-"], Some(manifests)).await
}

/// Passes, each document for itself.
async fn passes(kubectl: &Kubectl, what: &str, manifests: &str) {
    let (count, output) = (documents(manifests).len(), strict(kubectl, manifests).await);
    assert!(output.ok, "{what}: {}", output.stderr);
    let passed = output.stdout.lines().filter(|line| line.ends_with("(server dry run)")).count();
    assert!(count > 0 && passed == count, "{what}: {passed} of {count} documents passed:\n{}", output.stdout);
    assert!(!output.stderr.contains("Warning"), "{what}: {}", output.stderr);
}

/// The one document of this kind and name.
fn pick<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = documents.iter().filter(|d| d["kind"] == kind && d["metadata"]["name"] == name);
    let document = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
    assert!(found.next().is_none(), "{kind} {name} twice");
    document
}

async fn deployment(kubectl: &Kubectl) -> Value {
    let documents = documents(&render(kubectl, &repository().join("config/default")).await);
    pick(&documents, "Deployment", "praetor-manager").clone()
}

#[tokio::test]
async fn every_manifest_passes_a_strict_dry_run() {
    let plane = ControlPlane::shared().await;
    let kubectl = plane.kubectl();
    others::install(plane).await;
    for folder in ["crd", "config/crd", "config/rbac", "config/manager", "config/default"] {
        passes(&kubectl, folder, &render(&kubectl, &repository().join(folder)).await).await;
    }
    let components: Vec<_> = std::fs::read_dir(repository().join("config/components")).unwrap().collect();
    assert!(components.len() >= 4, "{components:?}");
    for component in components {
        let name = component.unwrap().file_name().into_string().unwrap();
        let kustomization =
            format!("resources: [../../config/default]\ncomponents: [../../config/components/{name}]\n");
        passes(&kubectl, &name, &overlay(&kubectl, &kustomization).await).await;
    }
}

#[tokio::test]
async fn the_dry_run_refuses_what_is_wrong() {
    let plane = ControlPlane::shared().await;
    let kubectl = plane.kubectl();
    others::install(plane).await;
    let all = render(&kubectl, &repository().join("config/default")).await;
    let everything = "components: [../../config/components/flowschema, ../../config/components/podmonitor, \
                      ../../config/components/servicemonitor, ../../config/components/tls]\n";
    let more = overlay(&kubectl, &format!("resources: [../../config/default]\n{everything}")).await;
    for (text, from, to, says) in [
        (&all, "readinessProbe:", "readynessProbe:", "unknown field"),
        (&all, "replicas: 3", "replicas: three", "cannot be handled"),
        (&all, "maxUnavailable: 1", "maxUnavailble: 1", "unknown field"),
        (&all, "publishNotReadyAddresses: true", "publishNotReadyAddresses: 7", "cannot be handled"),
        (&all, "policyTypes:\n  - Ingress", "policyTypes:\n  - Entry", "Unsupported value"),
        (&more, "matchingPrecedence: 900", "matchingPrecedence: 90000", "must not be greater"),
        (&more, "podMetricsEndpoints:", "podMetricEndpoints:", "unknown field"),
        (&more, "endpoints:\n  - interval", "endpoint:\n  - interval", "unknown field"),
        (&more, "dnsNames:", "dnsName:", "unknown field"),
    ] {
        let broken = text.replacen(from, to, 1);
        assert_ne!(&broken, text, "{from} is not there");
        let output = strict(&kubectl, &broken).await;
        assert!(!output.ok && output.stderr.contains(says), "{to}: {output:?}");
    }
}

/// What is broken, and how, in the spec of a pod.
type Break<'a> = (&'a str, &'a dyn Fn(&mut Value));

#[tokio::test]
async fn pods_pass_the_restricted_level() {
    let plane = ControlPlane::shared().await;
    let kubectl = plane.kubectl();
    plane.service_account_kubeconfig().await;
    let enforced = "jsonpath={.metadata.labels.pod-security\\.kubernetes\\.io/enforce}";
    assert_eq!(kubectl.run(&["get", "namespace", NAMESPACE, "-o", enforced]).await, "restricted");

    let template = deployment(&kubectl).await["spec"]["template"].clone();
    let attempt = async |change: &dyn Fn(&mut Value)| {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
            "metadata": { "name": unique("manager"), "namespace": NAMESPACE, "labels": template["metadata"]["labels"] },
        });
        change(&mut pod["spec"]);
        strict(&kubectl, &pod.to_string()).await
    };
    let output = attempt(&|_| {}).await;
    assert!(output.ok && !output.stderr.contains("Warning"), "{output:?}");
    let breaks: [Break<'_>; 6] = [
        ("runAsNonRoot", &|spec| spec["securityContext"]["runAsNonRoot"] = json!(false)),
        ("seccompProfile", &|spec| drop(spec["securityContext"].as_object_mut().unwrap().remove("seccompProfile"))),
        ("allowPrivilegeEscalation", &|spec| {
            spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
        }),
        ("capabilities", &|spec| {
            spec["containers"][0]["securityContext"].as_object_mut().unwrap().remove("capabilities");
        }),
        ("hostNetwork", &|spec| spec["hostNetwork"] = json!(true)),
        ("hostPath", &|spec| {
            spec["volumes"].as_array_mut().unwrap().push(json!({ "name": "host", "hostPath": { "path": "/" } }));
        }),
    ];
    for (what, change) in breaks {
        let output = attempt(change).await;
        assert!(
            !output.ok && output.stderr.contains("violates PodSecurity \"restricted") && output.stderr.contains(what),
            "{what}: {output:?}"
        );
    }
}

/// What no schema asks for.
#[tokio::test]
async fn the_deployment_keeps_its_promises() {
    let plane = ControlPlane::shared().await;
    let documents = documents(&render(&plane.kubectl(), &repository().join("config/default")).await);
    let deployment = pick(&documents, "Deployment", "praetor-manager");
    let spec = &deployment["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"], json!({ "maxSurge": 1, "maxUnavailable": 0 }));
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(spec["containers"].as_array().unwrap().len(), 1);
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], "admin", "{probe}");
    }
    let (dockerfile, user) =
        (std::fs::read_to_string(repository().join("Dockerfile")).unwrap(), &spec["securityContext"]);
    let user = format!("USER {}:{}", user["runAsUser"], user["runAsGroup"]);
    assert_eq!(dockerfile.lines().filter(|line| *line == user).count(), 2, "{user} in both images");

    // What ends it, added up, fits into the time that it gets.
    let drain = container["args"].as_array().unwrap().iter().find_map(|a| a.as_str()?.strip_prefix("--drain-seconds="));
    let drain: u64 = drain.expect("a drain").parse().unwrap();
    assert!(drain >= 5 && drain + 5 + 4 + 10 < spec["terminationGracePeriodSeconds"].as_u64().unwrap());

    // Services, budgets and policies mean these pods, and ports that they have.
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let ports: Vec<_> = container["ports"].as_array().unwrap().iter().map(|port| &port["name"]).collect();
    let mut checked = 0;
    for document in &documents {
        let spec = &document["spec"];
        let (selector, named) = match document["kind"].as_str().unwrap() {
            "Service" => {
                (&spec["selector"], spec["ports"].as_array().unwrap().iter().map(|p| &p["targetPort"]).collect())
            }
            "PodDisruptionBudget" => (&spec["selector"]["matchLabels"], vec![]),
            "NetworkPolicy" => {
                let ports =
                    spec["ingress"].as_array().unwrap().iter().flat_map(|rule| rule["ports"].as_array().unwrap());
                (&spec["podSelector"]["matchLabels"], ports.map(|port| &port["port"]).collect::<Vec<_>>())
            }
            _ => continue,
        };
        assert_eq!(selector, labels, "{}", document["metadata"]["name"]);
        assert!(named.iter().all(|port| ports.contains(port)), "{}: {named:?}", document["metadata"]["name"]);
        checked += 1;
    }
    assert_eq!(checked, 6, "two Services, a budget, three policies");
    let from = |policy: &str| pick(&documents, "NetworkPolicy", policy)["spec"]["ingress"][0]["from"].clone();
    assert_eq!(from("praetor-devices"), Value::Null);
    assert_eq!(from("praetor-peers"), json!([{ "podSelector": { "matchLabels": labels } }]));
    assert!(from("praetor-admin").as_array().unwrap().iter().all(|from| from["namespaceSelector"].is_object()));
}

#[tokio::test]
async fn an_overlay_moves_everything() {
    let plane = ControlPlane::shared().await;
    let kubectl = plane.kubectl();
    others::install(plane).await;
    let namespace = unique("elsewhere");
    let everything = overlay(
        &kubectl,
        &format!(
            "namespace: {namespace}\nimages: [{{name: praetor-manager, newName: registry.example.com/p, newTag: '7'}}]\n\
             resources: [../../config/default]\ncomponents: [../../config/components/flowschema, \
             ../../config/components/podmonitor, ../../config/components/servicemonitor, ../../config/components/tls]\n"
        ),
    )
    .await;
    assert!(!everything.contains(NAMESPACE), "{everything}");
    assert!(everything.contains("image: registry.example.com/p:7"));
    // Its rights arrive there, and are not in the other namespace. The cluster-wide binding has only one subject, so it
    // is not applied: other tests use it.
    let moved: Vec<_> = documents(&everything)
        .into_iter()
        .filter(|d| ["Namespace", "ServiceAccount", "Role", "RoleBinding"].iter().any(|kind| d["kind"] == *kind))
        .collect();
    assert_eq!(moved.len(), 4);
    kubectl.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": moved }).to_string()).await;
    let account = format!("--as=system:serviceaccount:{namespace}:praetor-manager");
    for (place, says) in [(namespace.as_str(), "yes\n"), (NAMESPACE, "no\n")] {
        let may = kubectl.output(&["auth", "can-i", "create", "leases", "-n", place, &account], None).await;
        assert_eq!(may.stdout, says, "{place}");
    }
}

#[tokio::test]
async fn leases_travel_in_their_own_lane() {
    let plane = ControlPlane::shared().await;
    let kubectl = plane.kubectl();
    let account = client_of(plane.service_account_kubeconfig().await).await.unwrap();
    let lane = async |path: &str| {
        let request = http::Request::get(path).body(kube::client::Body::empty()).unwrap();
        let answer = account.send(request).await.unwrap();
        let header = answer.headers().get("x-kubernetes-pf-prioritylevel-uid").expect("priority and fairness is on");
        header.to_str().unwrap().to_owned()
    };
    let uid = async |level: &str| {
        kubectl.run(&["get", "prioritylevelconfiguration", level, "-o", "jsonpath={.metadata.uid}"]).await
    };
    let (leases, others) = (
        format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"),
        "/apis/azure.com/v1alpha1/deviceprocesses?limit=1",
    );
    let (elections, rest) = (uid("leader-election").await, uid("workload-low").await);
    assert_eq!(lane(&leases).await, rest, "without the component");
    let component = repository().join("config/components/flowschema/flowschema.yaml");
    kubectl.apply_path(&component).await;
    harness::wait_for(std::time::Duration::from_secs(30), "the lane of elections", async || {
        let lane = lane(&leases).await;
        if lane == elections { Ok(()) } else { Err(lane) }
    })
    .await;
    assert_eq!(lane(others).await, rest, "everything else stays where it is");
    kubectl.run(&["delete", "-f", &component.to_string_lossy()]).await;
}

/// Not what a review says, but what the apiserver does with the account's own requests.
#[tokio::test]
async fn requests_beyond_the_rights_are_refused() {
    let plane = ControlPlane::shared().await;
    let account = client_of(plane.service_account_kubeconfig().await).await.unwrap();
    let elsewhere = plane.cluster().await.namespace("elsewhere").await;
    let (azure, core, own) = ("/apis/azure.com/v1alpha1", "/api/v1", NAMESPACE);
    const ALL: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    let rows: &[(&str, &str, &str, &str, &str)] = &[
        (azure, &elsewhere, "networkswitches", "", "get list watch"),
        (azure, &elsewhere, "deviceprocessdeployments", "", "get list watch"),
        (azure, &elsewhere, "deviceprocesses", "", "get list watch create patch delete"),
        (azure, &elsewhere, "networkswitches", "/status", "patch"),
        (azure, &elsewhere, "deviceprocessdeployments", "/status", "patch"),
        (azure, &elsewhere, "deviceprocesses", "/status", "patch"),
        ("/apis/events.k8s.io/v1", &elsewhere, "events", "", "get create"),
        ("/apis/coordination.k8s.io/v1", own, "leases", "", "get list create update delete"),
        ("/apis/coordination.k8s.io/v1", &elsewhere, "leases", "", ""),
        (core, own, "pods", "", "get"),
        (core, &elsewhere, "pods", "", ""),
        (core, own, "pods", "/exec", ""),
        (core, own, "secrets", "", ""),
        (core, own, "configmaps", "", ""),
        (core, own, "events", "", ""),
        (core, own, "serviceaccounts", "", ""),
        (core, own, "serviceaccounts", "/token", ""),
        ("/apis/apps/v1", own, "deployments", "", ""),
        ("/apis/rbac.authorization.k8s.io/v1", own, "rolebindings", "", ""),
        ("/apis/rbac.authorization.k8s.io/v1", "", "clusterrolebindings", "", ""),
        ("/apis/apiextensions.k8s.io/v1", "", "customresourcedefinitions", "", ""),
        (core, "", "namespaces", "", ""),
        (core, "", "nodes", "", ""),
    ];
    let mut refused = 0;
    for (group, namespace, resource, subresource, allowed) in rows {
        let within = if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") };
        let (all, one) =
            (format!("{group}{within}/{resource}"), format!("{group}{within}/{resource}/nobody{subresource}"));
        for verb in ALL {
            let collection = matches!(verb, "list" | "watch" | "create" | "deletecollection");
            if collection && !subresource.is_empty() && verb != "create" {
                continue;
            }
            let (method, path) = match verb {
                "list" => ("GET", format!("{all}?limit=1")),
                "watch" => ("GET", format!("{all}?watch=1&timeoutSeconds=1")),
                "get" => ("GET", one.clone()),
                "create" if subresource.is_empty() => ("POST", all.clone()),
                "create" => ("POST", one.clone()),
                "update" => ("PUT", one.clone()),
                "patch" => ("PATCH", one.clone()),
                "delete" => ("DELETE", one.clone()),
                _ => ("DELETE", all.clone()),
            };
            let request = http::Request::builder()
                .method(method)
                .uri(&path)
                .header(
                    "content-type",
                    if verb == "patch" { "application/merge-patch+json" } else { "application/json" },
                )
                .body(kube::client::Body::from(if method == "GET" { Vec::new() } else { b"{}".to_vec() }))
                .unwrap();
            let code = account.send(request).await.unwrap().status().as_u16();
            let may = allowed.split(' ').any(|allowed| allowed == verb);
            // What is allowed fails for other reasons: there is no such object, and {} is none.
            assert_eq!(code == 403, !may, "{verb} {path}: {code}");
            assert_ne!(code, 401);
            refused += usize::from(code == 403);
        }
    }
    assert!(refused > 100, "{refused}");
}
