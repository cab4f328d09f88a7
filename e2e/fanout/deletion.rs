//! What goes away, and what must not.

use super::*;

#[tokio::test]
async fn deletion_takes_the_children_along() {
    let stage = Stage::new("deletion").await;
    let recorder = Recorder::start(stage.plane).await;
    for device in 0..15 {
        stage.switch(&format!("s{device:02}"), &[]).await;
    }
    let devices: Vec<String> = (0..15).map(|device| format!("s{device:02}")).collect();
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    let first = stage.deployment("d", &json!({})).await;
    let other = stage.deployment("e", &json!({})).await;
    stage.wait_devices(&first, &devices).await;
    stage.wait_devices(&other, &devices).await;
    // Gone and at once back under the same name: the old children go, new ones come.
    stage.cluster.delete(Kind::Deployment, &stage.namespace, "d").await;
    let second = stage.deployment("d", &json!({})).await;
    stage.wait_devices(&first, &[]).await;
    stage.wait_devices(&second, &devices).await;
    stage.cluster.delete(Kind::Deployment, &stage.namespace, "d").await;
    stage.wait_devices(&second, &[]).await;
    stage.wait_devices(&other, &devices).await;
    let counted = |reason: &str| -> u64 {
        let events = recorder.events(reason, "d").into_iter().filter(|event| event.namespace == stage.namespace);
        events
            .map(|event| event.note.split(' ').next().unwrap().parse::<u64>().expect("notes begin with the count"))
            .sum()
    };
    for reason in ["CreatedDeviceProcess", "DeletedDeviceProcess"] {
        wait_for(SOON, format!("{reason} of 30 children"), async || {
            if counted(reason) == 30 { Ok(()) } else { Err(counted(reason).to_string()) }
        })
        .await;
        let told = recorder.events(reason, "d").into_iter().filter(|event| event.namespace == stage.namespace);
        for event in told {
            assert_eq!(event.raw["reportingInstance"], stage.manager.identity());
        }
    }
}

#[tokio::test]
async fn a_deployment_that_is_being_deleted_creates_nothing() {
    let stage = Stage::new("leaving").await;
    stage.switch("a", &[]).await;
    let mut manifest = deployment(&stage.namespace, "d", &[], process_spec("1.0.0"));
    manifest["metadata"]["finalizers"] = json!(["example.com/wait"]);
    let owner = stage.cluster.create(&manifest).await;
    stage.wait_devices(&owner, &["a"]).await;
    stage.cluster.delete(Kind::Deployment, &stage.namespace, "d").await;
    // A deployment that came later is known: so the end of the other one is, too, before there is another switch.
    let later = stage.deployment("later", &json!({})).await;
    stage.wait_devices(&later, &["a"]).await;
    stage.switch("b", &[]).await;
    // The later one has handled the switch: so the other one had its chance, too.
    stage.wait_devices(&later, &["a", "b"]).await;
    stage.wait_devices(&owner, &["a"]).await;
    stage.edit("d", &json!({"metadata": {"finalizers": null}})).await;
    stage.wait_devices(&owner, &[]).await;
}

#[tokio::test]
async fn too_many_deletions_are_held() {
    let stage = Stage::new("brake").await;
    let devices: Vec<String> = (0..30).map(|device| format!("s{device:02}")).collect();
    let manifests = devices.iter().map(|device| switch(&stage.namespace, &stage.device(device), &[("role", "tor")]));
    stage.cluster.create_all(manifests, 16).await;
    let owner = stage.deployment("d", &json!({"matchLabels": {"role": "tor"}})).await;
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    stage.wait_devices(&owner, &devices).await;
    stage.edit("d", &json!({"spec": {"selector": {"matchLabels": {"role": "spine"}}}})).await;
    let held = stage.wait_progressing("d", "False", "MassDeletionHeld").await;
    let message = condition(&held, "Progressing").unwrap()["message"].as_str().unwrap();
    let command = message.split("kubectl ").nth(1).expect("a command to paste").to_owned();
    holds_for(Duration::from_secs(1), "every child stays", async || stage.children(&owner).await.len() == 30).await;
    assert!(command.contains(ALLOW_MASS_DELETION_ANNOTATION));
    stage.plane.kubectl().run(&command.split_whitespace().collect::<Vec<_>>()).await;
    stage.wait_devices(&owner, &[]).await;
    stage.wait_progressing("d", "True", "RolloutComplete").await;
}
