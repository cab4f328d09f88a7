//! The custom resources on a real API server: what it refuses and what it says then, defaults, columns, names, field
//! selectors, descriptions, and samples.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use std::path::Path;
use std::time::Duration;

use harness::{Cluster, ControlPlane, Kind, unique, wait_for};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use praetor::api::{self, DeviceProcess, DeviceProcessDeployment, NetworkSwitch};
use serde_json::{Value, json};

const NAMESPACE: &str = "default";
const SOON: Duration = Duration::from_secs(30);

fn process(name: &str) -> Value {
    json!({
        "apiVersion": api::API_VERSION, "kind": "DeviceProcess", "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "deviceRef": { "kind": "NetworkSwitch", "name": "tor1-01" },
            "artifact": { "type": "oci", "url": "registry.example.com/agent:1" },
            "execution": { "backend": "systemd", "command": ["/bin/agent"] },
        },
    })
}

fn deployment(name: &str) -> Value {
    let mut spec = process(name)["spec"].clone();
    spec.as_object_mut().unwrap().remove("deviceRef");
    json!({
        "apiVersion": api::API_VERSION, "kind": "DeviceProcessDeployment", "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": { "selector": { "matchLabels": { "role": "tor" } }, "template": { "spec": spec } },
    })
}

/// The object with one member (a path of names and indices) set, or removed by null.
fn with(mut object: Value, path: &str, value: Value) -> Value {
    let mut at = &mut object;
    let (parents, last) = path.rsplit_once('.').unwrap_or(("", path));
    for part in parents.split('.').filter(|part| !part.is_empty()) {
        at = match part.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[part],
        };
    }
    match (value, last.parse::<usize>()) {
        (Value::Null, _) => drop(at.as_object_mut().unwrap().remove(last)),
        (value, Ok(index)) => at[index] = value,
        (value, Err(_)) => at[last] = value,
    }
    object
}

/// Creates the object as a dry run; `Err` is what the API server says.
async fn attempt(cluster: &Cluster, object: &Value) -> Result<Value, String> {
    let post = PostParams { dry_run: true, ..PostParams::default() };
    let typed: DynamicObject = serde_json::from_value(object.clone()).unwrap();
    match cluster.api(Kind::of(object), NAMESPACE).create(&post, &typed).await {
        Ok(created) => Ok(serde_json::to_value(created).unwrap()),
        Err(kube::Error::Api(status)) => Err(status.message),
        Err(other) => panic!("{other}"),
    }
}

/// Every row: a path below `at`, a value, and what the refusal must say; an empty text means that it is accepted.
async fn judge(base: fn(&str) -> Value, at: &str, rows: &[(&str, Value, &str)]) {
    let cluster = ControlPlane::shared().await.cluster().await;
    let mut faults = Vec::new();
    for (path, value, refusal) in rows {
        let object = with(base("judged"), &format!("{at}.{path}"), value.clone());
        match (attempt(&cluster, &object).await, refusal.is_empty()) {
            (Ok(_), true) => {}
            (Err(message), false) if message.contains(refusal) => {}
            (Ok(_), false) => faults.push(format!("{path} = {value}: accepted, expected: {refusal}")),
            (Err(message), _) => faults.push(format!("{path} = {value}: expected {refusal:?}, got: {message}")),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test]
async fn device_references() {
    let name = "deviceRef.name must be a lower-case RFC 1123 subdomain";
    judge(
        process,
        "spec",
        &[
            ("deviceRef", Value::Null, "spec.deviceRef: Required value"),
            ("deviceRef.name", Value::Null, "spec.deviceRef.name: Required value"),
            ("deviceRef.name", json!("Tor1"), name),
            ("deviceRef.name", json!("tor1_01"), name),
            ("deviceRef.name", json!("tor1."), name),
            ("deviceRef.name", json!("a..b"), name),
            ("deviceRef.name", json!("-a"), name),
            ("deviceRef.name", json!("a/b"), name),
            ("deviceRef.name", json!("a\n"), name),
            ("deviceRef.name", json!(""), "should be at least 1 chars long"),
            ("deviceRef.name", json!("a".repeat(254)), "may not be more than 253 bytes"),
            ("deviceRef.name", json!("a".repeat(253)), ""),
            ("deviceRef.name", json!("tor1-01.ams1.example"), ""),
            ("deviceRef.kind", json!("Router"), r#"supported values: "Server", "NetworkSwitch", "SOC", "BMC""#),
            ("deviceRef.kind", json!("SOC"), ""),
            ("deviceRef.namespace", json!("infra-system"), ""),
            ("deviceRef.namespace", json!("infra.system"), "deviceRef.namespace must be the name of a namespace"),
        ],
    )
    .await;
}

#[tokio::test]
async fn artifacts() {
    let artifact = |kind: &str, url: &str| json!({ "type": kind, "url": url });
    let file = "artifact.url: Invalid value: \"object\": the url of an artifact of type file is an absolute path on the device";
    let http = "the url of an artifact of type http begins with http:// or https:// and a host";
    let oci = "the url of an artifact of type oci is an image reference, without a scheme or with oci://";
    let digest = format!("registry.example.com/agent@sha256:{}", "ab".repeat(32));
    let hexadecimal = "checksumSHA256 must be the 64 hexadecimal digits";
    let mut rows = vec![
        ("artifact", Value::Null, "spec.artifact: Required value"),
        ("artifact.url", Value::Null, "spec.artifact.url: Required value"),
        ("artifact.type", json!("git"), r#"supported values: "oci", "http", "file""#),
        ("artifact.url", json!("x".repeat(2049)), "may not be more than 2048 bytes"),
        ("artifact.checksumSHA256", json!("abc"), hexadecimal),
        ("artifact.checksumSHA256", json!(""), hexadecimal),
        ("artifact.checksumSHA256", json!("g".repeat(64)), hexadecimal),
        ("artifact.checksumSHA256", json!(format!("sha256:{}", "a".repeat(64))), hexadecimal),
        ("artifact.checksumSHA256", json!("a".repeat(64)), ""),
        ("artifact.checksumSHA256", json!("AB".repeat(32)), ""),
    ];
    for url in ["usr/bin/agent", "file:///usr/bin/agent", "/", "./agent", "/a\nb", "registry.example.com/agent:1"] {
        rows.push(("artifact", artifact("file", url), file));
    }
    for url in ["/usr/bin/agent", "/opt/an agent/bin"] {
        rows.push(("artifact", artifact("file", url), ""));
    }
    for url in
        ["/usr/bin/agent", "ftp://example.com/a", "http://", "https:///a", "example.com/a", "http://example.com/a b"]
    {
        rows.push(("artifact", artifact("http", url), http));
    }
    for url in ["http://example.com", "https://user@[::1]:8080/a?b=c#d", "https://example.com/a%20b"] {
        rows.push(("artifact", artifact("http", url), ""));
    }
    for url in [
        "https://registry.example.com/agent:1",
        "docker://agent",
        "/agent",
        "a b",
        "agent:",
        "agent:1:2",
        "agent@sha256:12",
        "oci://",
    ] {
        rows.push(("artifact", artifact("oci", url), oci));
    }
    for url in [
        "agent",
        "agent:1.2.0",
        "oci://registry.example.com:5000/net/agent:v1",
        "localhost:5000/a/b_c:x",
        "[::1]:5000/agent",
        digest.as_str(),
    ] {
        rows.push(("artifact", artifact("oci", url), ""));
    }
    judge(process, "spec", &rows).await;
    judge(deployment, "spec.template.spec", &rows).await;
}

#[tokio::test]
async fn executions() {
    let environment = |name: &str| json!([{ "name": name, "value": "x" }]);
    let names = "names of env consist of letters, digits and '_'";
    let many: Vec<_> = (0..257).map(|n| json!({"name": format!("N{n}"), "value": ""})).collect();
    judge(
        process,
        "spec",
        &[
            ("execution", Value::Null, "spec.execution: Required value"),
            ("execution.backend", Value::Null, "spec.execution.backend: Required value"),
            ("execution.backend", json!("upstart"), r#"supported values: "systemd", "initd", "container""#),
            ("execution.command", Value::Null, "spec.execution.command: Required value"),
            ("execution.command", json!([]), "should have at least 1 items"),
            (
                "execution.command",
                json!([""]),
                "the first element of command is the program and must not be empty, such as /usr/bin/agent",
            ),
            ("execution.command", json!(["/bin/a", ""]), ""),
            ("execution.command", json!(["/bin/a\u{0}b"]), "elements of command must be free of NUL characters"),
            ("execution.command", json!("/bin/a"), "spec.execution.command in body must be of type array"),
            ("execution.args", json!(["\u{0}"]), "elements of args must be free of NUL characters"),
            ("execution.args", json!(["line\nline", ""]), ""),
            ("execution.args", json!(vec!["x"; 257]), "must have at most 256 items"),
            ("execution.env", environment("LOG_LEVEL"), ""),
            ("execution.env", environment("1A"), names),
            ("execution.env", environment("A=B"), names),
            ("execution.env", environment("A-B"), names),
            ("execution.env", environment(""), "should be at least 1 chars long"),
            ("execution.env", json!([{"name": "A"}]), "spec.execution.env[0].value: Required value"),
            ("execution.env", json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]), "Duplicate value"),
            ("execution.env", json!([{"name": "A", "value": "\u{0}"}]), "values of env must be free of NUL characters"),
            ("execution.env", json!(many), "must have at most 256 items"),
            (
                "execution.workingDir",
                json!("var/lib"),
                "workingDir must be an absolute path on the device, such as /var/lib/agent",
            ),
            ("execution.workingDir", json!("/var/lib"), ""),
            ("execution.user", json!("a b"), "user must be the name or number of a user of the device"),
            ("execution.user", json!("1000"), ""),
            ("restartPolicy", json!("Sometimes"), r#"supported values: "Always", "OnFailure", "Never""#),
            ("healthCheck", json!({}), "spec.healthCheck.exec: Required value"),
            ("healthCheck", json!({"exec": {"command": []}}), "should have at least 1 items"),
            ("healthCheck", json!({"exec": {"command": [""]}}), "the first element of command is the program"),
            (
                "healthCheck",
                json!({"exec": {"command": ["/h"]}, "periodSeconds": 0}),
                "spec.healthCheck.periodSeconds in body should be greater than or equal to 1",
            ),
            (
                "healthCheck",
                json!({"exec": {"command": ["/h"]}, "timeoutSeconds": -1}),
                "should be greater than or equal to 1",
            ),
            (
                "healthCheck",
                json!({"exec": {"command": ["/h"]}, "successThreshold": 0}),
                "should be greater than or equal to 1",
            ),
            (
                "healthCheck",
                json!({"exec": {"command": ["/h"]}, "failureThreshold": 0}),
                "should be greater than or equal to 1",
            ),
            (
                "healthCheck",
                json!({"exec": {"command": ["/h"]}, "periodSeconds": 86401}),
                "should be less than or equal to 86400",
            ),
            ("healthCheck", json!({"exec": {"command": ["/h"]}, "periodSeconds": 1.5}), "must be of type integer"),
        ],
    )
    .await;
}

#[tokio::test]
async fn deployments() {
    let percent =
        "maxUnavailable must be a whole number of at least 1, such as 5, or a percentage from 1% to 100%, such as 10%";
    let values = "values must have at least one element for the operators In and NotIn, and must be left out for Exists and DoesNotExist";
    let keys = "keys must be an optional lower-case DNS prefix and '/', then at most 63 letters";
    let label = "values must be empty or at most 63 letters";
    let expression = |key: &str, operator: &str, values: Value| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
    let budget = |value: Value| json!({"rollingUpdate": {"maxUnavailable": value}});
    let mut rows = vec![
        ("selector", Value::Null, "spec.selector: Required value"),
        ("selector", json!({}), ""),
        ("selector", json!({"matchLabels": {"example.com/role": "tor", "empty": ""}}), ""),
        ("selector", json!({"matchLabels": {"ro le": "tor"}}), keys),
        ("selector", json!({"matchLabels": {"Example.com/role": "tor"}}), keys),
        ("selector", json!({"matchLabels": {"role": "t or"}}), label),
        ("selector", json!({"matchLabels": {"role": "x".repeat(64)}}), "may not be more than 63 bytes"),
        (
            "selector",
            expression("role", "Gt", json!(["1"])),
            r#"supported values: "In", "NotIn", "Exists", "DoesNotExist""#,
        ),
        ("selector", expression("role", "In", json!([])), values),
        ("selector", expression("role", "NotIn", json!([])), values),
        ("selector", json!({"matchExpressions": [{"key": "role", "operator": "In"}]}), values),
        ("selector", expression("role", "Exists", json!(["a"])), values),
        ("selector", expression("role", "DoesNotExist", json!(["a"])), values),
        ("selector", expression("role", "NotIn", json!(["a", "b"])), ""),
        ("selector", expression("role", "In", json!(["a b"])), label),
        ("selector", expression("ro le", "Exists", json!([])), keys),
        ("selector", expression("role", "Exists", json!([])), ""),
        ("template", Value::Null, "spec.template: Required value"),
        ("template.spec", Value::Null, "spec.template.spec: Required value"),
        ("template.metadata", json!({"labels": {"app": "agent", "example.com/team": ""}}), ""),
        ("template.metadata", json!({"labels": {"app": "an agent"}}), label),
        ("template.metadata", json!({"labels": {"-app": "agent"}}), keys),
        ("template.metadata", json!({"annotations": {"example.com/note": "any text, even\nthis"}}), ""),
        ("template.metadata", json!({"annotations": {"no te": "x"}}), keys),
        ("updateStrategy", json!({"type": "Recreate"}), ""),
        ("updateStrategy", json!({"type": "BlueGreen"}), r#"supported values: "RollingUpdate", "Recreate""#),
    ];
    for right in [json!(1), json!(500), json!("1%"), json!("99%"), json!("100%")] {
        rows.push(("updateStrategy", budget(right), ""));
    }
    for wrong in [
        json!(0),
        json!(-1),
        json!(2_147_483_648_i64),
        json!("0%"),
        json!("101%"),
        json!("5"),
        json!("ten"),
        json!("010%"),
        json!("5 %"),
        json!(""),
    ] {
        rows.push(("updateStrategy", budget(wrong), percent));
    }
    judge(deployment, "spec", &rows).await;
    let room =
        "the name of a DeviceProcessDeployment may have at most 200 characters, so that <deployment>-<device> has room";
    judge(deployment, "metadata", &[("name", json!("d".repeat(200)), ""), ("name", json!("d".repeat(201)), room)])
        .await;
}

#[tokio::test]
async fn device_reference_is_immutable() {
    let plane = ControlPlane::shared().await;
    let name = unique("immutable");
    let kubectl = plane.kubectl();
    kubectl.apply(&process(&name).to_string()).await;
    for change in [json!({"name": "tor1-02"}), json!({"kind": "BMC"}), json!({"namespace": "other"})] {
        let patch = json!({ "spec": { "deviceRef": change } }).to_string();
        let output = kubectl.output(&["patch", "dp", &name, "--type=merge", "-p", &patch], None).await;
        assert!(!output.ok, "{patch} was accepted");
        let said = "deviceRef cannot be changed: delete this DeviceProcess and create one for the other device";
        assert!(output.stderr.contains(said), "{}", output.stderr);
    }
    // Everything else may change, and an explicit null counts as absent.
    kubectl
        .run(&[
            "patch",
            "dp",
            &name,
            "--type=merge",
            "-p",
            r#"{"spec":{"restartPolicy":"Never","execution":{"command":["/bin/b"]}}}"#,
        ])
        .await;
    let patch = r#"[{"op":"add","path":"/spec/execution/user","value":null}]"#;
    let spec =
        kubectl.run(&["patch", "dp", &name, "--type=json", "-p", patch, "-o", "jsonpath={.spec.execution}"]).await;
    assert_eq!(serde_json::from_str::<Value>(&spec).unwrap(), json!({"backend": "systemd", "command": ["/bin/b"]}));
}

#[tokio::test]
async fn defaults() {
    let cluster = ControlPlane::shared().await.cluster().await;
    let checked = with(process("d"), "spec.healthCheck", json!({"exec": {"command": ["/h"]}}));
    let created = attempt(&cluster, &checked).await.unwrap();
    assert_eq!(created["status"], json!({"phase": "Pending"}));
    assert_eq!(created["spec"]["restartPolicy"], "Always");
    let check = json!({"exec": {"command": ["/h"]}, "periodSeconds": 30, "timeoutSeconds": 5, "successThreshold": 1, "failureThreshold": 3});
    assert_eq!(created["spec"]["healthCheck"], check);
    assert!(created["spec"]["execution"]["args"].is_null() && created["spec"]["execution"]["env"].is_null());

    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}});
    for given in [Value::Null, json!({}), json!({"type": "RollingUpdate"}), json!({"rollingUpdate": {}})] {
        let created = attempt(&cluster, &with(deployment("d"), "spec.updateStrategy", given)).await.unwrap();
        assert_eq!(created["spec"]["updateStrategy"], strategy);
        assert_eq!(created["spec"]["template"]["spec"]["restartPolicy"], "Always");
        assert!(created["status"].is_null());
    }

    // A switch is its name; its spec is the owner's.
    let switch = json!({"apiVersion": api::API_VERSION, "kind": "NetworkSwitch", "metadata": {"name": "s"}});
    assert_eq!(attempt(&cluster, &switch).await.unwrap()["spec"], json!({}));
    let owned = json!({"rack": {"row": 3, "units": [1, 2.5, null]}, "empty": {}, "note": null});
    assert_eq!(attempt(&cluster, &with(switch, "spec", owned.clone())).await.unwrap()["spec"], owned);
}

#[tokio::test]
async fn what_is_created_reads_as_its_type() {
    let cluster = ControlPlane::shared().await.cluster().await;
    let full = with(process("d"), "spec.healthCheck", json!({"exec": {"command": ["/h"]}}));
    let read: DeviceProcess = serde_json::from_value(attempt(&cluster, &full).await.unwrap()).unwrap();
    assert_eq!(read.spec.process.health_check.unwrap().period_seconds, 30);
    assert_eq!(read.status.unwrap().phase, api::Phase::Pending);
    let read: DeviceProcessDeployment =
        serde_json::from_value(attempt(&cluster, &deployment("d")).await.unwrap()).unwrap();
    assert_eq!(read.spec.update_strategy.rolling_update.budget(11), 2);
    let switch =
        json!({"apiVersion": api::API_VERSION, "kind": "NetworkSwitch", "metadata": {"name": "s"}, "spec": {"a": [1]}});
    let read: NetworkSwitch = serde_json::from_value(attempt(&cluster, &switch).await.unwrap()).unwrap();
    assert_eq!(read.spec.fields["a"], json!([1]));
}

#[tokio::test]
async fn the_server_keeps_the_definitions_as_they_are() {
    let client = ControlPlane::shared().await.client().await;
    let api: Api<CustomResourceDefinition> = Api::all(client);
    for ours in api::crds() {
        let served = api.get(ours.metadata.name.as_deref().unwrap()).await.unwrap();
        assert_eq!(
            serde_json::to_value(&served.spec.versions).unwrap(),
            serde_json::to_value(&ours.spec.versions).unwrap()
        );
        for condition in served.status.unwrap().conditions.unwrap_or_default() {
            assert!(condition.type_ != "NonStructuralSchema", "{}", condition.message.unwrap_or_default());
        }
    }
}

fn header(table: &str) -> Vec<&str> {
    table.lines().next().unwrap_or_default().split_whitespace().collect()
}

#[tokio::test]
async fn columns_short_names_and_field_selectors() {
    let plane = ControlPlane::shared().await;
    let (kubectl, cluster) = (plane.kubectl(), plane.cluster().await);
    let namespace = cluster.namespace("columns").await;
    let here = |object: Value| with(object, "metadata.namespace", json!(namespace));
    cluster.create(&here(process("one"))).await;
    cluster.create(&with(here(process("two")), "spec.deviceRef.name", json!("tor1-02"))).await;
    cluster.create(&here(deployment("all"))).await;
    cluster
        .create(&here(
            json!({"apiVersion": api::API_VERSION, "kind": "NetworkSwitch", "metadata": {"name": "tor1-01"}}),
        ))
        .await;

    // A new process shows its phase before anyone has written it.
    let get = async |arguments: &[&str]| kubectl.run(&[&["-n", namespace.as_str(), "get"], arguments].concat()).await;
    let table = get(&["dp", "one"]).await;
    assert_eq!(
        header(&table),
        ["NAME", "DEVICE", "KIND", "PHASE", "CONNECTED", "HEALTHY", "VERSION", "RESTARTS", "AGE"]
    );
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["one", "tor1-01", "NetworkSwitch", "Pending"]);

    let condition = |type_: &str, status: &str, message: &str| json!({"type": type_, "status": status, "reason": "R", "message": message, "lastTransitionTime": "2025-12-12T23:55:00Z"});
    let status = json!({
        "phase": "Running", "observedSpecHash": "sha256:abc", "artifactVersion": "1.2.0", "restartCount": 4, "pid": 4711, "transitions": 7,
        "lastReport": {"bootId": "b", "sequence": 9_007_199_254_740_993_u64},
        "conditions": [condition("AgentConnected", "True", "agent is reporting"), condition("Healthy", "False", "exit code 3")],
    });
    cluster.merge_status(Kind::Process, &namespace, "one", &status).await;
    let table = get(&["dp", "one", "-o", "wide"]).await;
    assert_eq!(header(&table)[8..], ["AGE", "HASH", "MESSAGE"]);
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[3..8], ["Running", "True", "False", "1.2.0", "4"]);
    assert!(table.contains("sha256:abc") && table.contains("exit code 3"), "{table}");
    // All that was written is kept, exactly.
    let kept = cluster.get(Kind::Process, &namespace, "one").await.unwrap();
    assert_eq!(kept["status"], status);
    assert_eq!(kept["metadata"]["generation"], 1);
    // A status is no part of the object itself.
    cluster.merge(Kind::Process, &namespace, "one", &json!({"status": {"phase": "Failed"}})).await;
    assert_eq!(cluster.get(Kind::Process, &namespace, "one").await.unwrap()["status"]["phase"], "Running");

    assert_eq!(
        header(&get(&["dpd"]).await),
        ["NAME", "DESIRED", "CURRENT", "UPDATED", "READY", "AVAILABLE", "UNAVAILABLE", "AGE"]
    );
    cluster
        .merge_status(
            Kind::Deployment,
            &namespace,
            "all",
            &json!({"desiredNumberScheduled": 2, "currentNumberScheduled": 0}),
        )
        .await;
    let row = get(&["dpd", "--no-headers"]).await;
    assert_eq!(row.split_whitespace().take(3).collect::<Vec<_>>(), ["all", "2", "0"]);
    assert_eq!(header(&get(&["nsw"]).await), ["NAME", "CONNECTED", "AGENT", "AGE"]);
    cluster
        .merge_status(
            Kind::Switch,
            &namespace,
            "tor1-01",
            &json!({"agentVersion": "0.1.0", "conditions": [condition("AgentConnected", "True", "")],
                "capabilities": {"backends": ["container", "systemd"], "artifactTypes": ["file", "oci"]}}),
        )
        .await;
    let row = get(&["nsw", "--no-headers"]).await;
    assert_eq!(row.split_whitespace().take(3).collect::<Vec<_>>(), ["tor1-01", "True", "0.1.0"]);
    let wide = get(&["nsw", "-o", "wide"]).await;
    assert_eq!(header(&wide), ["NAME", "CONNECTED", "AGENT", "AGE", "BACKENDS"]);
    assert!(wide.contains(r#"["container","systemd"]"#), "{wide}");

    assert_eq!(
        get(&["dp", "--field-selector", "spec.deviceRef.name=tor1-02", "-o", "name"]).await.trim(),
        "deviceprocess.azure.com/two"
    );
    let all = get(&["praetor", "-o", "name"]).await;
    assert_eq!(all.lines().count(), 4, "{all}");
}

#[tokio::test]
async fn kubectl_explains_every_field() {
    let kubectl = ControlPlane::shared().await.kubectl();
    for (kind, expected) in [
        ("networkswitches", "A switch of the inventory."),
        ("deviceprocesses", "One process on one device."),
        ("deviceprocessdeployments", "A process on every NetworkSwitch that matches a selector"),
    ] {
        // What is explained is published a moment after it is served.
        let text = wait_for(SOON, format!("an explanation of {kind}"), async || {
            let output = kubectl.output(&["explain", kind, "--api-version=azure.com/v1alpha1"], None).await;
            if output.ok { Ok(output.stdout) } else { Err(output.stderr) }
        })
        .await;
        assert!(text.contains(expected), "{text}");
        let text = kubectl.run(&["explain", &format!("{kind}.status"), "--recursive"]).await;
        assert!(text.contains("conditions"), "{text}");
    }
    let text = kubectl.run(&["explain", "dp.spec.artifact"]).await;
    assert!(
        text.contains("enum: oci, http, file") && text.contains("-required-") && text.contains("64 hexadecimal"),
        "{text}"
    );
    let text = kubectl.run(&["explain", "dpd.spec.updateStrategy.rollingUpdate.maxUnavailable"]).await;
    assert!(text.contains("rounded up"), "{text}");
    let text = kubectl.run(&["explain", "dp.spec.execution.env.value"]).await;
    assert!(text.contains("${APOLLO_DEVICE_NAME}"), "{text}");
}

#[tokio::test]
async fn samples_apply() {
    let plane = ControlPlane::shared().await;
    let (kubectl, samples) = (plane.kubectl(), Path::new(env!("CARGO_MANIFEST_DIR")).join("config/samples"));
    let folder = samples.to_str().unwrap();
    // The namespace first: a dry run makes none.
    kubectl.run(&["apply", "--server-side", "-f", samples.join("namespace.yaml").to_str().unwrap()]).await;
    kubectl.run(&["apply", "--server-side", "--dry-run=server", "-k", folder]).await;
    let applied = kubectl.output(&["apply", "--server-side", "-k", folder], None).await;
    assert!(applied.ok && !applied.stderr.contains("Warning"), "{}", applied.stderr);
    for (kind, names) in [("nsw", 3), ("dpd", 1), ("dp", 1)] {
        let listed = kubectl.run(&["-n", "infra-system", "get", kind, "-o", "name"]).await;
        assert_eq!(listed.lines().count(), names, "{listed}");
    }
    let diff = kubectl.output(&["diff", "--server-side", "-k", folder], None).await;
    assert!(diff.ok, "applied samples differ from their files:\n{}{}", diff.stdout, diff.stderr);
}
