//! hack/deploy.sh on a control plane of its own: there is no kubelet, so pods are made and given their states by hand.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::harness::controlplane::repository;
use super::harness::{ControlPlane, Folder, Output, scenario, unique, wait_for};
use super::others;
use super::start::OldCluster;

/// The script, with nothing of the developer's environment.
async fn script(plane: &ControlPlane, kubeconfig: &Path, verb: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(repository().join("hack/deploy.sh"));
    command.arg(verb).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
        .env("HOME", plane.folder().path())
        .env("KUBECONFIG", kubeconfig)
        .env("KUBECTL", plane.assets().join("kubectl"));
    command.envs(environment.iter().copied()).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().expect("the script starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Output { ok: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn refused(output: &Output, says: &str) {
    let last = output.stderr.lines().last().unwrap_or_default();
    assert!(!output.ok && last.contains(says), "wanted {says:?}: {output:?}");
}

#[tokio::test]
async fn bad_input_is_named() {
    let plane = ControlPlane::shared().await;
    let admin = plane.admin_kubeconfig();
    for (verb, environment, says) in [
        ("destroy", ("NAMESPACE", "a"), "say what to do: install, deploy, undeploy, uninstall or render"),
        ("render", ("NAMESPACE", "Not_A_Name"), "NAMESPACE=Not_A_Name is no name for a namespace"),
        ("render", ("IMAGE", "a b"), "IMAGE=a b is no name of an image"),
        ("render", ("COMPONENTS", "flowschema nonsense"), "COMPONENTS names nonsense, which is none: there are "),
        // Every installation has it.
        ("render", ("COMPONENTS", "namespace"), "COMPONENTS names namespace, which is none: there are "),
        ("deploy", ("TIMEOUT", "soon"), "TIMEOUT=soon is no number of seconds"),
        ("deploy", ("KUBECTL", "/nowhere/kubectl"), "kubectl is missing"),
        ("deploy", ("KUBECONFIG", "/nowhere"), "kubectl reaches no cluster: "),
    ] {
        refused(&script(plane, admin, verb, &[environment]).await, says);
    }
    let (old, folder) = (OldCluster::start("29").await, Folder::new("old"));
    let said = script(plane, &old.kubeconfig(&folder), "deploy", &[]).await;
    refused(&said, "this cluster runs Kubernetes 1.29; Praetor needs 1.30 or newer");
}

#[tokio::test]
async fn rendered_is_what_is_asked_for() {
    let plane = ControlPlane::shared().await;
    let environment =
        [("NAMESPACE", "infra"), ("IMAGE", "registry.example.com:5000/a/praetor:7"), ("COMPONENTS", "podmonitor")];
    let output = script(plane, Path::new("/nowhere"), "render", &environment).await;
    assert!(output.ok, "{output:?}");
    let documents = super::documents(&output.stdout);
    let deployment = super::pick(&documents, "Deployment", "praetor-manager");
    let image = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(image, "registry.example.com:5000/a/praetor:7");
    assert!(!output.stdout.contains("praetor-system"));
    super::pick(&documents, "PodMonitor", "praetor-manager");
    // Its head says how the Secrets are made: as the README does, in no argument.
    let head: String =
        output.stdout.lines().map_while(|line| line.strip_prefix('#')).map(|line| line.to_owned() + "\n").collect();
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let shown = |text: &str| -> Vec<String> {
        let begin = text.lines().skip_while(|line| !line.trim().starts_with("kubectl create namespace "));
        begin.take(5).map(|line| line.trim().replace("praetor-system", "infra")).collect()
    };
    assert_eq!(shown(&head), shown(&readme));
    assert!(shown(&head).concat().contains("=/dev/stdin\"done"), "{head}");
}

/// What the script left of its own in the clone.
fn overlays(namespace: &str) -> Vec<String> {
    let names =
        std::fs::read_dir(repository().join("dist")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(namespace)).collect()
}

/// Somebody else's namespace keeps its labels, its Pod Security level and itself; components go without being named again.
#[tokio::test]
async fn a_shared_namespace_stays_as_it_is() {
    const ALL: (&str, &str) = ("COMPONENTS", "flowschema podmonitor servicemonitor tls");
    let plane = ControlPlane::start().await;
    let kubectl = plane.kubectl();
    others::apply(&plane).await;
    let (namespace, elsewhere) = (unique("shared"), unique("elsewhere"));
    let deploy = async |verb: &str, more: &[(&str, &str)]| {
        let mut environment = vec![("NAMESPACE", namespace.as_str()), ("TIMEOUT", "1")];
        environment.extend(more);
        script(&plane, plane.admin_kubeconfig(), verb, &environment).await
    };
    let labels = async || kubectl.run(&["get", "namespace", &namespace, "-o", "jsonpath={.metadata.labels}"]).await;
    let names = async |kinds: &str| kubectl.run(&["-n", &namespace, "get", kinds, "-o", "name"]).await;
    let monitors = "podmonitors,servicemonitors,certificates,issuers";
    let team = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace, "labels": { "team": "network" } },
    });
    kubectl.apply(&team.to_string()).await;
    kubectl.run(&["-n", &namespace, "create", "secret", "generic", "theirs", "--from-literal=other=1"]).await;
    let before = labels().await;

    let said = deploy("deploy", &[ALL]).await;
    refused(&said, "not ready after");
    assert!(said.stderr.contains(&format!("the namespace {namespace} was there before")), "{said:?}");
    assert_eq!(labels().await, before);
    assert_eq!(names(monitors).await.lines().count(), 6);
    kubectl.run(&["get", "flowschema", "praetor-leases"]).await;

    // One installation in a cluster: another would take the rights of this one.
    for verb in ["deploy", "undeploy", "uninstall"] {
        let said = deploy(verb, &[("NAMESPACE", elsewhere.as_str()), ("CONFIRM", "yes")]).await;
        refused(
            &said,
            &format!("Praetor is in the namespace {namespace} (ClusterRoleBinding praetor-manager), not in"),
        );
        assert_eq!((said.stdout.as_str(), said.stderr.lines().count()), ("", 1), "{said:?}");
    }
    assert!(kubectl.output(&["get", "namespace", &elsewhere], None).await.stderr.contains("NotFound"));
    assert_eq!(names("deployments").await, "deployment.apps/praetor-manager\n");

    // As cert-manager does.
    kubectl.run(&["-n", &namespace, "create", "secret", "generic", "praetor-tls", "--from-literal=tls.crt=1"]).await;
    let said = deploy("undeploy", &[]).await;
    assert!(said.ok, "{said:?}");
    assert_eq!(names(&format!("{monitors},deployments,services,sa,roles,leases")).await, "");
    assert!(kubectl.output(&["get", "flowschema", "praetor-leases"], None).await.stderr.contains("NotFound"));
    assert_eq!(names("secrets").await.lines().count(), 4);

    let said = deploy("uninstall", &[("CONFIRM", "yes")]).await;
    assert!(said.ok && said.stdout.contains("the namespace stays, with all else in it"), "{said:?}");
    assert_eq!(names("secrets").await, "secret/theirs\n");
    assert_eq!(labels().await, before);
    assert_eq!(kubectl.run(&["get", "crd", "-o", "name"]).await.lines().count(), 4, "the other projects'");
    assert_eq!(overlays(&namespace), [""; 0]);
}

/// In and out again, on a control plane that nobody else uses.
#[tokio::test]
async fn in_and_out_of_a_cluster() {
    let plane = ControlPlane::start().await;
    let (kubectl, cluster) = (plane.kubectl(), plane.cluster().await);
    let admin = plane.admin_kubeconfig();
    let namespace = unique("praetor");
    let deploy = async |verb: &str, more: &[(&str, &str)]| {
        let mut environment = vec![("NAMESPACE", namespace.as_str()), ("TIMEOUT", "1")];
        environment.extend(more);
        script(&plane, admin, verb, &environment).await
    };
    let secrets = async || {
        let template = "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.metadata.resourceVersion} {.data}{'\\n'}{end}";
        kubectl.run(&["-n", &namespace, "get", "secrets", "-o", template]).await
    };

    // Nothing runs pods here, so it ends when its time is over; everything is there by then.
    let said = deploy("deploy", &[]).await;
    refused(&said, "not ready after");
    let mark = "jsonpath={.metadata.labels.app\\.kubernetes\\.io/part-of} {.metadata.labels.pod-security\\.kubernetes\\.io/enforce}";
    assert_eq!(kubectl.run(&["get", "namespace", &namespace, "-o", mark]).await, "praetor restricted");
    let made = secrets().await;
    assert_eq!(made.lines().count(), 2, "{made}");
    for name in ["praetor-device-secret", "praetor-peer-key"] {
        assert!(said.stderr.contains(&format!("made the Secret {name} with a random value")), "{said:?}");
        let key = if name == "praetor-peer-key" { "key" } else { "token-secret" };
        let template = format!("go-template={{{{index .data \"{key}\" | base64decode}}}}");
        let value = kubectl.run(&["-n", &namespace, "get", "secret", name, "-o", &template]).await;
        assert!(value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit()), "{value:?}");
        assert!(!said.stdout.contains(&value) && !said.stderr.contains(&value));
    }
    kubectl
        .run(&["-n", &namespace, "get", "deployment/praetor-manager", "service/praetor", "service/praetor-peers"])
        .await;

    // Once more changes nothing, least of all the Secrets.
    let again = deploy("deploy", &[]).await;
    assert!(again.stderr.contains("the Secret praetor-device-secret is there and stays as it is"), "{again:?}");
    assert_eq!(secrets().await, made);
    // kubectl always sends the selector of a budget again.
    let changed: Vec<_> = again.stdout.lines().filter(|line| !line.ends_with(" unchanged")).collect();
    assert_eq!(changed, ["poddisruptionbudget.policy/praetor-manager configured"], "{again:?}");

    // What pods suffer from is one line.
    suffering(&plane, &namespace, deploy).await;

    // An empty Secret is nobody's to fill.
    kubectl.run(&["-n", &namespace, "delete", "secret", "praetor-peer-key"]).await;
    kubectl.run(&["-n", &namespace, "create", "secret", "generic", "praetor-peer-key", "--from-literal=other=1"]).await;
    refused(&deploy("deploy", &[]).await, "the Secret praetor-peer-key in");

    // Out again. What people made, and what devices hold on to, stays.
    cluster.create(&scenario::switch(&namespace, "tor1-01", &[])).await;
    cluster.create(&scenario::switch(&namespace, "tor1-02", &[])).await;
    let said = deploy("undeploy", &[]).await;
    assert!(said.ok, "{said:?}");
    let left = kubectl.run(&["-n", &namespace, "get", "deployments,services,pdb,netpol,sa,roles", "-o", "name"]).await;
    assert!(!left.contains("praetor"), "{left}");
    assert_eq!(secrets().await.lines().count(), 2);
    assert!(kubectl.output(&["get", "clusterrole", "praetor-manager"], None).await.stderr.contains("NotFound"));
    assert_eq!(kubectl.run(&["-n", &namespace, "get", "nsw", "-o", "name"]).await.lines().count(), 2);

    // Everything goes only after a yes.
    let said = deploy("uninstall", &[]).await;
    refused(&said, "nothing was deleted; say CONFIRM=yes if that is meant");
    for line in
        ["2 networkswitches", "0 deviceprocesses", "2 Secrets: every device", &format!("the namespace {namespace}")]
    {
        assert!(said.stdout.contains(&format!("  {line}")), "{line}: {said:?}");
    }
    assert_eq!(kubectl.run(&["-n", &namespace, "get", "nsw", "-o", "name"]).await.lines().count(), 2);
    refused(&deploy("uninstall", &[("CONFIRM", "no")]).await, "nothing was deleted");
    let (said, ()) = tokio::join!(deploy("uninstall", &[("CONFIRM", "yes")]), end_namespace(&plane, &namespace));
    assert!(said.ok, "{said:?}");
    assert!(kubectl.run(&["get", "crd", "-o", "name"]).await.is_empty());
    assert!(kubectl.output(&["get", "namespace", &namespace], None).await.stderr.contains("NotFound"));

    // The CRDs alone.
    let said = deploy("install", &[]).await;
    assert!(said.ok && kubectl.run(&["get", "crd", "-o", "name"]).await.lines().count() == 3, "{said:?}");
}

/// Pods of two revisions, with the states that a kubelet tells.
async fn suffering<F: Future<Output = Output>>(
    plane: &ControlPlane,
    namespace: &str,
    deploy: impl Fn(&'static str, &'static [(&'static str, &'static str)]) -> F,
) {
    const WRONG: &[(&str, &str)] = &[("IMAGE", "nowhere:1"), ("TIMEOUT", "60")];
    let kubectl = plane.kubectl();
    let deployment = super::deployment(&kubectl).await;
    for (name, revision) in [("old", "9"), ("new", "10")] {
        let mut template = deployment["spec"]["template"].clone();
        template["metadata"]["labels"]["pod-template-hash"] = json!(name);
        let set = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": name, "namespace": namespace, "labels": template["metadata"]["labels"],
                "annotations": { "deployment.kubernetes.io/revision": revision },
            },
            "spec": { "selector": { "matchLabels": template["metadata"]["labels"] }, "template": template },
        });
        kubectl.apply(&set.to_string()).await;
        (template["apiVersion"], template["kind"]) = (json!("v1"), json!("Pod"));
        (template["metadata"]["name"], template["metadata"]["namespace"]) = (json!(name), json!(namespace));
        kubectl.apply(&template.to_string()).await;
    }
    let patch = async |what: &str, name: &str, status: Value| {
        let status = json!({ "status": status }).to_string();
        kubectl
            .run(&["-n", namespace, "patch", what, name, "--subresource=status", "--type=merge", "-p", &status])
            .await
    };
    let waits = async |pod: &str, reason: &str| {
        let container = json!({
            "name": "manager", "image": "i", "imageID": "", "ready": false, "restartCount": 1,
            "state": { "waiting": { "reason": reason, "message": "because" } },
            "lastState": { "terminated": { "exitCode": 1, "message": format!("first\nthe end of \"{pod}\"\n") } },
        });
        patch("pod", pod, json!({ "containerStatuses": [container] })).await
    };
    waits("old", "CrashLoopBackOff").await;
    waits("new", "ImagePullBackOff").await;
    // As long as the new revision was not looked at, nothing is said of pods.
    refused(&deploy("deploy", &[("IMAGE", "nowhere:1")]).await, "not ready after");
    let template = "jsonpath={.metadata.generation}";
    let generation = kubectl.run(&["-n", namespace, "get", "deployment", "praetor-manager", "-o", template]).await;
    patch("deployment", "praetor-manager", json!({ "observedGeneration": generation.parse::<i64>().unwrap() })).await;
    for (reason, says) in [
        ("ImagePullBackOff", "new: the image nowhere:1 cannot be had (ImagePullBackOff): load it into the cluster"),
        ("CreateContainerConfigError", "new: CreateContainerConfigError: because"),
        ("CrashLoopBackOff", "new: the end of \"new\""),
    ] {
        waits("new", reason).await;
        refused(&deploy("deploy", WRONG).await, says);
    }
    // The old revision may suffer: it is being replaced.
    waits("new", "ContainerCreating").await;
    refused(&deploy("deploy", &[("IMAGE", "nowhere:1")]).await, "not ready after");
    kubectl.run(&["-n", namespace, "delete", "pod,rs", "old", "new", "--force", "--grace-period=0"]).await;
}

/// What the namespace controller does: nothing is left in it, so it may go.
async fn end_namespace(plane: &ControlPlane, namespace: &str) {
    let kubectl = plane.kubectl();
    wait_for(Duration::from_secs(120), "the end of the namespace", async || {
        let phase = kubectl.output(&["get", "namespace", namespace, "-o", "jsonpath={.status.phase}"], None).await;
        if phase.stdout == "Terminating" { Ok(()) } else { Err(format!("{phase:?}")) }
    })
    .await;
    let finalized = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace }, "spec": {} });
    let path = format!("/api/v1/namespaces/{namespace}/finalize");
    let output = kubectl.output(&["replace", "--raw", &path, "-f", "-"], Some(&finalized.to_string())).await;
    assert!(output.ok, "{output:?}");
}
