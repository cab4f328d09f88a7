//! What operators and clusters do to replicas, while things happen to devices all the time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, EvictParams};
use serde_json::Value;

use crate::agents;
use crate::fleet::{DEVICES, Fleet};
use crate::forwards::Forwards;
use crate::harness::wait_for;
use crate::play::{MANAGER, NAMESPACE, PODS, Play, seconds};

/// Devices of all kinds that the replicas share.
pub const ALL: usize = DEVICES + agents::DEVICES.len();
/// Until all replicas of a change are ready: three starts and three ends.
const CHANGED: Duration = Duration::from_secs(120);

/// Those who take part.
pub struct Upheaval<'a> {
    /// The cluster.
    pub play: &'a Arc<Play>,
    /// The way of the devices.
    pub forwards: &'a Forwards,
    /// The devices.
    pub fleet: &'a Fleet,
}

impl Upheaval<'_> {
    /// From three replicas to three.
    pub async fn scaled_up_and_down(&self) {
        let _load = self.fleet.load();
        for (from, to) in [(3, 1), (1, 3), (3, 5), (5, 2), (2, 3)] {
            self.scaled(from, to).await;
        }
    }

    /// In every way in which a replica is replaced by another.
    pub async fn replaced(&self) {
        let _load = self.fleet.load();
        self.restarted().await;
        self.killed().await;
        self.evicted().await;
        self.upgraded_and_back().await;
        self.wrongly_upgraded().await;
    }

    /// All replicas are there and agree, and the Service leads to them.
    async fn settled(&self, since: Instant) -> Duration {
        let agreed = self.play.agreed(ALL, since).await;
        self.forwards.lead_to(self.play.living().await).await;
        agreed
    }

    async fn scaled(&self, from: usize, to: usize) {
        let (play, begun) = (self.play, Instant::now());
        play.run(&format!("-n {NAMESPACE} scale deployment/{MANAGER} --current-replicas={from} --replicas={to}")).await;
        let ready = play.ready(to, begun, CHANGED).await;
        let agreed = self.settled(begun).await;
        let calm = self.fleet.calm(begun, &format!("scaling from {from} to {to}")).await;
        play.ok(format!(
            "scaled {from} → {to}: ready after {}, agreed after {}; {calm}",
            seconds(ready),
            seconds(agreed)
        ));
    }

    async fn restarted(&self) {
        let what = format!("rollout restart deployment/{MANAGER}");
        self.rolled_over(&what, "rolling restart").await;
    }

    /// To another image and back.
    async fn upgraded_and_back(&self) {
        let next = format!("set image deployment/{MANAGER} manager=praetor-manager:next");
        self.rolled_over(&next, "upgrade to praetor-manager:next").await;
        let images = self.play.run(&format!("-n {NAMESPACE} get pods -l {PODS} -o jsonpath={{..image}}")).await;
        assert!(images.contains("praetor-manager:next"), "{images}");
        self.rolled_over(&format!("rollout undo deployment/{MANAGER}"), "rollout undo").await;
    }

    /// All replicas are replaced, one after the other.
    async fn rolled_over(&self, command: &str, what: &str) {
        let (play, begun) = (self.play, Instant::now());
        let before = play.living().await;
        play.run(&format!("-n {NAMESPACE} {command}")).await;
        play.run(&format!("-n {NAMESPACE} rollout status deployment/{MANAGER} --timeout=120s")).await;
        let ready = play.ready(3, begun, CHANGED).await;
        let agreed = self.settled(begun).await;
        assert!(play.living().await.is_disjoint(&before), "not all replicas are new");
        let fewest = self.forwards.fewest(begun);
        assert!(fewest >= 3, "the Service led to {fewest} replicas only");
        let calm = self.fleet.calm(begun, what).await;
        play.ok(format!(
            "{what}: 3 new replicas ready after {}, agreed after {}, never fewer than {fewest} endpoints; {calm}",
            seconds(ready),
            seconds(agreed)
        ));
    }

    async fn killed(&self) {
        let (play, begun) = (self.play, Instant::now());
        let victim = play.living().await.pop_first().expect("three");
        play.run(&format!("-n {NAMESPACE} delete pod {victim} --grace-period=0 --force --wait=false")).await;
        wait_for(Duration::from_secs(20), "the Service to lead elsewhere", async || {
            !self.forwards.ready().contains(&victim)
        })
        .await;
        let left = begun.elapsed();
        let ready = play.ready(3, begun, CHANGED).await;
        let agreed = self.settled(begun).await;
        let calm = self.fleet.calm(begun, "a pod was deleted with grace 0").await;
        play.ok(format!(
            "pod deleted with grace 0: no endpoint after {}, replaced after {}, agreed after {}; {calm}",
            seconds(left),
            seconds(ready),
            seconds(agreed)
        ));
    }

    async fn evicted(&self) {
        let (play, begun) = (self.play, Instant::now());
        let pods: Api<Pod> = Api::namespaced(play.cluster.client.clone(), NAMESPACE);
        let names: Vec<_> = play.living().await.into_iter().collect();
        let parameters = EvictParams { delete_options: Some(DeleteParams::default()), ..EvictParams::default() };
        // The budget's own count follows the pods with a delay.
        wait_for(Duration::from_secs(20), "the budget to allow one", async || {
            let budget = play.run(&format!("-n {NAMESPACE} get poddisruptionbudget {MANAGER} -o json")).await;
            let status: Value = serde_json::from_str(&budget).unwrap();
            let allowed = status["status"]["disruptionsAllowed"].as_u64();
            if allowed == Some(1) { Ok(()) } else { Err(format!("{allowed:?} are allowed")) }
        })
        .await;
        pods.evict(&names[0], &parameters).await.expect("the first eviction");
        let second = pods.evict(&names[1], &parameters).await;
        match &second {
            Err(kube::Error::Api(status)) if status.code == 429 && status.message.contains("disruption budget") => {}
            other => panic!("the second eviction should be refused with 429: {other:?}"),
        }
        let ready = play.ready(3, begun, CHANGED).await;
        let agreed = self.settled(begun).await;
        assert!(play.living().await.contains(&names[1]), "the second is still there");
        let fewest = self.forwards.fewest(begun);
        assert!(fewest >= 2, "the Service led to {fewest} replicas only");
        let calm = self.fleet.calm(begun, "an eviction").await;
        play.ok(format!(
            "eviction: one allowed, the next refused (429), replaced after {}, agreed after {}, never fewer than \
             {fewest} endpoints; {calm}",
            seconds(ready),
            seconds(agreed)
        ));
    }

    /// An image that cannot be had, and back.
    async fn wrongly_upgraded(&self) {
        let (play, begun) = (self.play, Instant::now());
        let before = play.living().await;
        play.run(&format!("-n {NAMESPACE} set image deployment/{MANAGER} manager=praetor-manager:no-such-image")).await;
        let reason = wait_for(Duration::from_secs(60), "a pod that lacks its image", async || {
            let pods = play.pods().await;
            let waiting = pods.iter().find_map(|pod| {
                let state = pod.status.as_ref()?.container_statuses.as_ref()?.first()?.state.as_ref()?;
                state.waiting.as_ref()?.reason.clone().filter(|reason| reason.contains("Image"))
            });
            waiting.ok_or("none")
        })
        .await;
        play.run(&format!("-n {NAMESPACE} rollout undo deployment/{MANAGER}")).await;
        let ready = play.ready(3, begun, CHANGED).await;
        self.settled(begun).await;
        assert_eq!(play.living().await, before, "a replica was replaced");
        let fewest = self.forwards.fewest(begun);
        assert!(fewest >= 3, "the Service led to {fewest} replicas only");
        let calm = self.fleet.calm(begun, "a wrong image").await;
        play.ok(format!(
            "upgrade to an image that does not exist ({reason}) and rollout undo: over after {}, no replica touched; \
             {calm}",
            seconds(ready)
        ));
    }
}
