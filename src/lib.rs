//! Praetor: a control plane, native to Kubernetes, for processes on devices that carry no kubelet.
//!
//! ```text
//!            people, CI                                                      devices
//!                │ kubectl apply                                                │ praetor-agent
//!                ▼                           praetor-manager                    │ (HTTP, nothing else)
//!        ┌───────────────┐  watch   ┌─────────────────────────────┐   GET       │
//!        │               │ ───────► │ desired: what each device   │ ◄────────── │ what should I run?
//!        │   kube-       │          │ should run                  │ ──────────► │ a body, or 304
//!        │   apiserver   │          │      │              │       │             │
//!        │               │ ◄─────── │ rollout: children   ▼       │   POST      │
//!        │               │  create, │           presence, status ◄│──────────── │ this is what I see
//!        │               │ ◄─────── │           transitions only  │             │
//!        └───────────────┘  patch   └─────────────────────────────┘
//! ```
//!
//! An operator applies one DeviceProcessDeployment. [`rollout`] makes a DeviceProcess for every NetworkSwitch that
//! matches. [`desired`] knows from its watches what each device should run, and [`gateway`] tells the devices.
//! Their reports go through [`status`], which writes what has changed, and only that; [`presence`] notices those
//! that fall silent.
//!
//! # Rooms
//!
//! | room | what is in it | uses |
//! |---|---|---|
//! | [`wire`] | the device contract: bodies, hashes, entity tags, tokens | nothing |
//! | [`runtime`] | clocks, retries, logs, supervised tasks | nothing |
//! | [`agent`] | the binary on the device | `wire`, `runtime` |
//! | [`fleet`] | simulated devices for load and fault tests | `wire`, `runtime` |
//! | [`api`] | the custom resources and their conditions | `wire` |
//! | [`desired`] | what each device should run, from the watches | |
//! | [`ownership`] | which replica should do what: the leader, the members, who owns a device | `wire`, `runtime` |
//! | [`peers`] | how replicas talk: presence batches and forwarded reports | |
//! | [`presence`] | who is there, and when silence is a verdict | |
//! | [`status`] | what is written about devices and processes, and its events | |
//! | [`rollout`] | children of deployments | not `gateway` |
//! | [`gateway`] | HTTP for devices | not `rollout` |
//! | [`manager`] | arguments, wiring, admin port, start and stop | everything; nothing uses it |
//!
//! # Pure and edge
//!
//! Everything that decides is a synchronous function or a plain struct: it is given the time, the objects and, where
//! it needs it, chance, and returns data. Everything that does something (tasks, sockets, clocks, calls to the
//! apiserver) is a thin edge: receive, lock, ask the core, unlock, perform what it answered. The first line of a file
//! says which of the two it is, and `make purity` holds it to that, and to the arrows of the table.
//!
//! # Features
//!
//! `manager` brings everything that knows Kubernetes, `agent` the device's side, `fleet` the simulator; each binary
//! needs its own only, and `make agent-only` proves that the agent links no Kubernetes client.
#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "manager")]
pub mod api;
#[cfg(feature = "manager")]
pub mod desired;
#[cfg(feature = "fleet")]
pub mod fleet;
#[cfg(feature = "manager")]
pub mod gateway;
#[cfg(feature = "manager")]
pub mod manager;
#[cfg(feature = "manager")]
pub mod ownership;
#[cfg(feature = "manager")]
pub mod peers;
#[cfg(feature = "manager")]
pub mod presence;
#[cfg(feature = "manager")]
pub mod rollout;
pub mod runtime;
#[cfg(feature = "manager")]
pub mod status;
pub mod wire;
