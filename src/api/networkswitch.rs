//! Pure: NetworkSwitch, an inventory entry.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the owner of the inventory records about the switch. Praetor reads none of it: any field may stand here.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "azure.com",
    version = "v1alpha1",
    kind = "NetworkSwitch",
    plural = "networkswitches",
    shortname = "nsw",
    category = "praetor",
    namespaced,
    status = "NetworkSwitchStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A switch of the inventory. Its name is the device name under which the agent on it reports; its labels decide which DeviceProcessDeployments reach it.",
    printcolumn(
        name = "Connected",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"AgentConnected\")].status",
        description = "Whether the agent on the switch is reporting"
    ),
    printcolumn(
        name = "Agent",
        type_ = "string",
        json_path = ".status.agentVersion",
        description = "Version of the agent on the switch"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Backends",
        type_ = "string",
        json_path = ".status.capabilities.backends",
        priority = 1,
        description = "What the switch can run processes with"
    )
)]
pub struct NetworkSwitchSpec {
    /// The owner's fields.
    #[serde(flatten)]
    pub fields: BTreeMap<String, Value>,
}

/// What is known of the agent on the switch. Written by praetor-manager, and only when it changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSwitchStatus {
    /// Version that the agent gave of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// What the agent can do on this switch, as it said itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<AgentCapabilities>,
    /// AgentConnected: True while the agent reports, False after it has been silent for the staleness window, absent
    /// when it was never seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// What an agent can do on its device. Words that this version does not know are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentCapabilities {
    /// Backends that the device has, such as `systemd`, `initd`, `container`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<String>,
    /// Types of artifacts that the agent fetches, such as `oci`, `http`, `file`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifact_types: Vec<String>,
}
