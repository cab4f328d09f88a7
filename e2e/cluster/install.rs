//! From an empty cluster to ready replicas, with the commands that the head of `dist/install.yaml` names.

use std::time::{Duration, Instant};

use crate::harness::programs::{PEER_SECRET, SECRET};
use crate::play::{NAMESPACE, Play, install_yaml, seconds};

/// From `kubectl apply` to three ready replicas, at most.
const READY: Duration = Duration::from_secs(20);

/// Secrets, then everything in one file, then once more: `make deploy` finds all of it done.
pub async fn from_nothing(play: &Play) {
    let file = install_yaml();
    play.run(&format!("create namespace {NAMESPACE}")).await;
    secrets(play, NAMESPACE).await;
    let begun = Instant::now();
    play.kubectl.apply_path(&file).await;
    let took = play.ready(3, begun, Duration::from_secs(90)).await;
    let agreed = play.agreed(0, begun).await;
    assert!(took <= READY, "3 replicas were ready after {}, more than {}", seconds(took), seconds(READY));
    play.ok(format!(
        "kubectl apply -f dist/install.yaml: 3 replicas ready after {} (at most {}), agreed after {}",
        seconds(took),
        seconds(READY),
        seconds(agreed)
    ));
    let secrets = format!("-n {NAMESPACE} get secrets -o jsonpath={{.items[*].metadata.resourceVersion}}");
    let before = (play.living().await, play.run(&secrets).await);
    let said = play.script("hack/deploy.sh", &["deploy"], &[]).await;
    assert!(said.ok, "{said:?}");
    assert_eq!((play.living().await, play.run(&secrets).await), before, "make deploy has changed what was there");
    let checked = play.run(&format!("apply --dry-run=server -f {}", file.display())).await;
    play.ok(format!(
        "make deploy over it: Secrets and replicas stay as they are; all {} objects pass the apiserver's own check",
        checked.lines().count()
    ));
}

/// The two Secrets that only an operator can make.
pub async fn secrets(play: &Play, namespace: &str) {
    for (secret, key, value) in
        [("praetor-device-secret", "token-secret", SECRET), ("praetor-peer-key", "key", PEER_SECRET)]
    {
        play.run(&format!("-n {namespace} create secret generic {secret} --from-literal={key}={value}")).await;
    }
}
