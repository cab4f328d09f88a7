//! The library under the end-to-end tests, the benchmarks and the demo: a real kube-apiserver and etcd, the real
//! binaries as processes, a device's HTTP client, a recorder of everything the cluster saw, and faults.
//!
//! A test target says `mod harness;` (with `#[path]` where needed) and uses what it needs. One control plane per test
//! binary is enough ([`ControlPlane::shared`]); tests keep apart by namespace and by device name ([`unique`]).
//! Everything here panics with a message that names what was awaited and what was seen last: it is test code.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod audit;
pub mod clock;
pub mod cluster;
pub mod controlplane;
pub mod crowd;
pub mod device;
pub mod kubectl;
pub mod ledger;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod recorder;
pub mod replicas;
pub mod scenario;
pub mod stage;
pub mod wait;

pub use audit::{Audit, AuditEntry, MANAGER_USER};
pub use cluster::{Cluster, Kind, condition, condition_status};
pub use controlplane::{ControlPlane, Part};
pub use crowd::{Crowd, Pace};
pub use device::{Answer, Connection, Device};
pub use kubectl::{Kubectl, Output};
pub use ledger::{Ack, Attempt, Ledger, Said, Silence, Turn};
pub use process::{Exit, Folder, Launch, Process, free_port, unique};
pub use programs::{Agent, AgentBuilder, Manager, ManagerBuilder, Metrics};
pub use proxy::Proxy;
pub use recorder::{EventSeen, Recorder, Seen};
pub use replicas::{Gates, Replica, Replicas};
pub use stage::{Heart, Stage};
pub use wait::{Outcome, holds_for, wait_for};
