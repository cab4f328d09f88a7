//! The custom resources: group `azure.com`, version `v1alpha1`, all namespaced.
//!
//! - [`networkswitch`]: NetworkSwitch, an inventory entry
//! - [`deviceprocess`]: DeviceProcess, one process on one device
//! - [`deployment`]: DeviceProcessDeployment, a process on every matching device
//! - [`condition`]: the conditions of all three: names, reasons, messages, and how one changes
//! - [`selector`]: label selectors, as Kubernetes matches them
//! - [`marks`]: names and labels of children, annotation keys
//! - [`schema`]: the CustomResourceDefinitions and their YAML
//!
//! The types read leniently: a field that they do not know is ignored. What the API server refuses, it
//! refuses by the schema and the CEL rules that are derived from these types.

// Columns of one kind repeat `type_ = "string"`, which clippy takes for a mistake.
#![allow(clippy::duplicated_attributes)]

pub mod condition;
pub mod deployment;
pub mod deviceprocess;
pub mod marks;
pub mod networkswitch;
mod rules;
pub mod schema;
pub mod selector;

pub use deployment::{DeviceProcessDeployment, DeviceProcessDeploymentSpec, DeviceProcessDeploymentStatus};
pub use deviceprocess::{DeviceProcess, DeviceProcessSpec, DeviceProcessStatus, Phase};
pub use networkswitch::{NetworkSwitch, NetworkSwitchSpec, NetworkSwitchStatus};
pub use schema::{crds, render};

/// API group of all kinds.
pub const GROUP: &str = "azure.com";
/// API version of all kinds.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of all kinds.
pub const API_VERSION: &str = "azure.com/v1alpha1";
