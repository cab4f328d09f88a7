//! Pure: DeviceProcessDeployment, a process on every matching device.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::deviceprocess::ProcessSpec;
use super::rules::{annotations_schema, labels_schema};
use super::selector::LabelSelector;

/// Longest name of a DeviceProcessDeployment, bytes. Children are named `<deployment>-<device>` within 253 bytes: even
/// a shortened name keeps a part of the device's.
pub const MAX_NAME_BYTES: usize = 200;

/// Which devices run what, and how they come to a new version.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "azure.com",
    version = "v1alpha1",
    kind = "DeviceProcessDeployment",
    plural = "deviceprocessdeployments",
    shortname = "dpd",
    category = "praetor",
    namespaced,
    status = "DeviceProcessDeploymentStatus",
    derive = "PartialEq",
    doc = "A process on every NetworkSwitch that matches a selector: one DeviceProcess is kept for each.",
    validation = Rule::new("size(self.metadata.name) <= 200").message(
        "the name of a DeviceProcessDeployment may have at most 200 characters, so that <deployment>-<device> has room"),
    printcolumn(
        name = "Desired",
        type_ = "integer",
        json_path = ".status.desiredNumberScheduled",
        description = "Devices that match the selector"
    ),
    printcolumn(name = "Current", type_ = "integer", json_path = ".status.currentNumberScheduled", description = "Devices that have a DeviceProcess"),
    printcolumn(
        name = "Updated",
        type_ = "integer",
        json_path = ".status.updatedNumberScheduled",
        description = "Devices that run the current template"
    ),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.numberReady", description = "Devices that run it, connected and healthy"),
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.numberAvailable", description = "Devices on which it is available"),
    printcolumn(
        name = "Unavailable",
        type_ = "integer",
        json_path = ".status.numberUnavailable",
        description = "Devices on which it is not available"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct DeviceProcessDeploymentSpec {
    /// Which NetworkSwitches of the namespace run the process. {} selects every one.
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub selector: LabelSelector,
    /// The DeviceProcess that each of them gets.
    pub template: ProcessTemplate,
    /// How devices come to a new version of the template.
    #[serde(default)]
    pub update_strategy: UpdateStrategy,
}

/// What the DeviceProcess of each device is made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessTemplate {
    /// Labels and annotations of each DeviceProcess.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TemplateMetadata>,
    /// Spec of each DeviceProcess, without its deviceRef.
    pub spec: ProcessSpec,
}

/// Metadata of a template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateMetadata {
    /// Labels of each DeviceProcess. Those that Praetor sets itself come first: apollo.azure.com/deviceName, and the
    /// device's own labels of every key that the selector mentions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels_schema")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of each DeviceProcess.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotations_schema")]
    pub annotations: BTreeMap<String, String>,
}

/// How devices come to a new version of the template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStrategy {
    /// RollingUpdate keeps to rollingUpdate.maxUnavailable; Recreate updates all devices at once.
    #[serde(default)]
    pub r#type: UpdateStrategyType,
    /// How a rolling update proceeds.
    #[serde(default)]
    pub rolling_update: RollingUpdate,
}

/// Kinds of update strategies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum UpdateStrategyType {
    /// A few devices at a time.
    #[default]
    RollingUpdate,
    /// All devices at once.
    Recreate,
}

/// How a rolling update proceeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollingUpdate {
    /// On how many of the matching devices the process may be unavailable: a whole number of at least 1, or a
    /// percentage from 1% to 100%, rounded up.
    #[serde(default = "RollingUpdate::default_max_unavailable")]
    #[x_kube(validation = Rule::new(
        "type(self) == int ? (self >= 1 && self <= 2147483647) : self.matches('^(100|[1-9][0-9]?)%$')").message(
        "maxUnavailable must be a whole number of at least 1, such as 5, or a percentage from 1% to 100%, such as 10%"))]
    pub max_unavailable: IntOrString,
}

impl RollingUpdate {
    fn default_max_unavailable() -> IntOrString {
        IntOrString::String("10%".to_owned())
    }

    /// The budget for `devices` matching devices: at least 1; a percentage is rounded up. A value that the schema
    /// would refuse counts as 1, the most careful one.
    #[must_use]
    pub fn budget(&self, devices: u64) -> u64 {
        match &self.max_unavailable {
            IntOrString::Int(number) => u64::try_from(*number).unwrap_or(1).max(1),
            IntOrString::String(text) => {
                let percent =
                    text.strip_suffix('%').and_then(|digits| digits.parse::<u64>().ok()).unwrap_or(0).min(100);
                devices.saturating_mul(percent).div_ceil(100).max(1)
            }
        }
    }
}

impl Default for RollingUpdate {
    fn default() -> Self {
        Self { max_unavailable: Self::default_max_unavailable() }
    }
}

/// What has become of the deployment. Written by praetor-manager, at most once a second, and only when it changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceProcessDeploymentStatus {
    /// Generation of the spec that this status belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Devices that match the selector.
    #[serde(default)]
    pub desired_number_scheduled: i64,
    /// Devices that match the selector and have a DeviceProcess.
    #[serde(default)]
    pub current_number_scheduled: i64,
    /// Devices whose process was started from the current template.
    #[serde(default)]
    pub updated_number_scheduled: i64,
    /// Devices that run the current template, are connected, and whose process is started and healthy, or succeeded.
    #[serde(default)]
    pub number_ready: i64,
    /// Devices on which the process is available: those that are ready.
    #[serde(default)]
    pub number_available: i64,
    /// Devices that match the selector and on which the process is not available.
    #[serde(default)]
    pub number_unavailable: i64,
    /// The template that devices are brought to; absent until a device matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutRecord>,
    /// Available: no more devices are unavailable than maxUnavailable allows. Progressing: RolloutComplete,
    /// RolloutInProgress or WaitingForDevices; False with the reason that stopped the rollout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A rollout of one template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutRecord {
    /// Hash of the template's spec.
    #[serde(default)]
    pub spec_hash: String,
    /// Whether there was a moment at which it was available on every matching device.
    #[serde(default)]
    pub complete: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(value: IntOrString, devices: u64) -> u64 {
        RollingUpdate { max_unavailable: value }.budget(devices)
    }

    #[test]
    fn budgets() {
        let percent = |text: &str, devices| budget(IntOrString::String(text.to_owned()), devices);
        assert_eq!(percent("10%", 0), 1);
        assert_eq!(percent("10%", 10), 1);
        assert_eq!(percent("10%", 11), 2);
        assert_eq!(percent("1%", 2000), 20);
        assert_eq!(percent("100%", 7), 7);
        assert_eq!(percent("what", 700), 1);
        assert_eq!(budget(IntOrString::Int(3), 700), 3);
        assert_eq!(budget(IntOrString::Int(-3), 700), 1);
        assert_eq!(RollingUpdate::default().budget(100), 10);
    }

    #[test]
    fn defaults_are_those_of_the_schema() {
        let spec: DeviceProcessDeploymentSpec = serde_json::from_value(serde_json::json!({
            "selector": {},
            "template": { "later": 1, "spec": {
                "artifact": { "type": "file", "url": "/bin/true" },
                "execution": { "backend": "initd", "command": ["/bin/true"] },
                "healthCheck": { "exec": { "command": ["/bin/true"] } },
            }},
        }))
        .unwrap();
        let written = serde_json::to_value(&spec).unwrap();
        assert_eq!(
            written["updateStrategy"],
            serde_json::json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}})
        );
        assert_eq!(written["template"]["spec"]["restartPolicy"], "Always");
        let check = &written["template"]["spec"]["healthCheck"];
        assert_eq!(
            (&check["periodSeconds"], &check["timeoutSeconds"], &check["successThreshold"], &check["failureThreshold"]),
            (&30.into(), &5.into(), &1.into(), &3.into())
        );
    }
}
