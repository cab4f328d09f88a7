//! The whole story in a cluster, as operators live it: install, samples and agents, Prometheus, scaling, restarts, kills
//! and evictions under load, rights, memory, uninstalling, and the mistakes on the way in. `make e2e` brings up a
//! cluster, loads the images and runs this; nothing in here knows which kind of cluster it is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "cluster/agents.rs"]
mod agents;
#[path = "cluster/astray.rs"]
mod astray;
#[path = "cluster/fleet.rs"]
mod fleet;
#[path = "cluster/forwards.rs"]
mod forwards;
mod harness;
#[path = "faults/history.rs"]
#[allow(dead_code, reason = "shared with another test, which uses the rest")]
mod history;
#[path = "cluster/install.rs"]
mod install;
#[path = "cluster/memory.rs"]
mod memory;
#[path = "cluster/play.rs"]
mod play;
#[path = "monitoring/prometheus.rs"]
#[allow(dead_code, reason = "shared with another test, which uses the rest")]
mod prometheus;
#[path = "monitoring/queries.rs"]
#[allow(dead_code, reason = "the same")]
mod queries;
#[path = "cluster/rights.rs"]
mod rights;
#[path = "cluster/upheaval.rs"]
mod upheaval;
#[path = "cluster/watching.rs"]
mod watching;

use std::sync::Arc;
use std::time::Instant;

use agents::Agents;
use fleet::Fleet;
use forwards::Forwards;
use harness::Recorder;
use play::{Play, seconds};
use upheaval::{ALL, Upheaval};
use watching::Watching;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: make e2e"]
async fn the_whole_story() {
    let play = Arc::new(Play::open().await);
    install::from_nothing(&play).await;
    let idle_since = Instant::now();
    rights::of_pods(&play).await;
    memory::idle(&play, idle_since).await;

    // Before the first device, so that nothing is missed.
    let recorder = Recorder::watching(&play.cluster.client).await;
    let forwards = Forwards::start(&play).await;
    let agents = Agents::start(&play).await;
    rights::of_the_account(&play).await;
    rights::of_devices(&play).await;
    let begun = Instant::now();
    let fleet = Fleet::start(&play, &forwards, recorder).await;
    play.agreed(ALL, Instant::now()).await;
    let watching = Watching::start(&play).await;
    watching.steady_and_edited(&play, &fleet).await;

    let upheaval = Upheaval { play: &play, forwards: &forwards, fleet: &fleet };
    let silent = fleet.silence();
    upheaval.scaled_up_and_down().await;
    let device = silent.device.clone();
    let (found, back) = fleet.found_out(silent).await;
    play.ok(format!(
        "{device} fell silent meanwhile: called disconnected after {}, connected again {} after its return",
        seconds(found),
        seconds(back)
    ));
    upheaval.replaced().await;
    watching.at_the_end(&play).await;
    agents.alone(&play);
    play.ok(format!("the whole history of objects, events and requests: {}", fleet.in_all(begun).await));
    if std::env::var_os("PRAETOR_CLUSTER_MEMORY").is_some_and(|value| value == "1") {
        memory::of_many(&play, &forwards).await;
    }
    agents.end().await;
    drop((fleet, watching, forwards));

    astray::uninstalled(&play).await;
    astray::lost(&play).await;
    play.ok(format!("all of it in {}", seconds(play.elapsed())));
}
