//! Pure: DeviceProcess, one process on one device.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

// Never re-serialized into what a device gets: devices are served, and hashes computed, from the raw spec.
/// The process that the device should run.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "azure.com",
    version = "v1alpha1",
    kind = "DeviceProcess",
    plural = "deviceprocesses",
    shortname = "dp",
    category = "praetor",
    namespaced,
    status = "DeviceProcessStatus",
    derive = "PartialEq",
    selectable = ".spec.deviceRef.name",
    doc = "One process on one device. The agent on the device fetches it, runs it and reports; the status shows what it reported.",
    printcolumn(
        name = "Device",
        type_ = "string",
        json_path = ".spec.deviceRef.name",
        description = "Name of the device"
    ),
    printcolumn(
        name = "Kind",
        type_ = "string",
        json_path = ".spec.deviceRef.kind",
        description = "Kind of the device"
    ),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "Where the process is in its life"
    ),
    printcolumn(
        name = "Connected",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"AgentConnected\")].status",
        description = "Whether the agent on the device is reporting"
    ),
    printcolumn(
        name = "Healthy",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Healthy\")].status",
        description = "Result of the health check"
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.artifactVersion",
        description = "Tag or digest of the artifact"
    ),
    printcolumn(
        name = "Restarts",
        type_ = "integer",
        json_path = ".status.restartCount",
        description = "How often the process was restarted"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Hash",
        type_ = "string",
        json_path = ".status.observedSpecHash",
        priority = 1,
        description = "Hash of the spec that the agent has seen"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.status==\"False\")].message",
        priority = 1,
        description = "Message of the first condition that is False"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct DeviceProcessSpec {
    /// The device that runs the process. It cannot be changed.
    #[x_kube(validation = Rule::new("self == oldSelf").message(
        "deviceRef cannot be changed: delete this DeviceProcess and create one for the other device"), merge_strategy = MapMerge::Atomic)]
    pub device_ref: DeviceRef,
    /// The process itself.
    #[serde(flatten)]
    pub process: ProcessSpec,
}

/// What a process is, whichever device it runs on: the spec of a DeviceProcess without its deviceRef.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessSpec {
    /// What to run: the artifact that the agent fetches and verifies.
    pub artifact: Artifact,
    /// How to run it.
    pub execution: Execution,
    /// When the agent starts the process again after it ended: Always after any exit, OnFailure after a non-zero one,
    /// Never not at all.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// How the agent finds out whether the process is healthy. Without it a process counts as healthy once it has run for
    /// 5 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

/// A reference to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRef {
    /// Kind of the device: Server, NetworkSwitch, SOC or BMC.
    pub kind: DeviceKind,
    /// Name of the device: the name under which its agent reports, unique in the cluster.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message(
        "deviceRef.name must be a lower-case RFC 1123 subdomain: letters, digits, '-' and '.', each part beginning and ending with a letter or digit, such as tor1-01"))]
    pub name: String,
    /// Namespace of the object that describes the device, when it is not the one of this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(
        "deviceRef.namespace must be the name of a namespace: lower-case letters, digits and '-', such as infra-system"))]
    pub namespace: Option<String>,
}

/// Kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DeviceKind {
    /// A server.
    Server,
    /// A network switch.
    NetworkSwitch,
    /// A system on a chip, such as a DPU.
    #[serde(rename = "SOC")]
    Soc,
    /// A baseboard management controller.
    #[serde(rename = "BMC")]
    Bmc,
}

/// Where the artifact comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.type != 'file' || self.url.matches('^/[^[:cntrl:]]+$')").field_path(".url").message(
        "the url of an artifact of type file is an absolute path on the device, such as /usr/local/bin/agent"),
    validation = Rule::new("self.type != 'http' || self.url.matches('^https?://[^/?#[:space:][:cntrl:]]+([/?#][^[:space:][:cntrl:]]*)?$')").field_path(".url").message(
        "the url of an artifact of type http begins with http:// or https:// and a host, such as https://artifacts.example.com/agent-1.2.0"),
    validation = Rule::new("self.type != 'oci' || self.url.matches('^(oci://)?(([[][0-9A-Fa-f:]+[]]|[A-Za-z0-9.-]+)(:[0-9]+)?/)?[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*(:[A-Za-z0-9_][A-Za-z0-9._-]*)?(@sha256:[0-9a-f]{64})?$')").field_path(".url").message(
        "the url of an artifact of type oci is an image reference, without a scheme or with oci://, such as registry.example.com/switch-agent:1.2.0 or one that ends in @sha256: and 64 hexadecimal digits")
)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// How the artifact is fetched: oci from a registry, http by a download, file from the device's own disk.
    pub r#type: ArtifactType,
    /// Where it is. oci: an image reference; http: an http:// or https:// URL; file: an absolute path on the device.
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,
    /// SHA-256 of the artifact, 64 hexadecimal digits. The agent runs nothing that does not match it.
    #[serde(default, rename = "checksumSHA256", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-fA-F]{64}$')").message(
        "checksumSHA256 must be the 64 hexadecimal digits of the artifact's SHA-256, as sha256sum prints them"))]
    pub checksum_sha256: Option<String>,
}

/// Ways to fetch an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactType {
    /// From an OCI registry.
    Oci,
    /// By HTTP or HTTPS.
    Http,
    /// A file that is on the device already.
    File,
}

/// How a process is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Execution {
    /// What runs the process on the device: systemd, initd or container.
    pub backend: Backend,
    /// The program and its first arguments, at least one element. No shell is involved.
    #[schemars(length(min = 1, max = 256), inner(length(max = 4096)))]
    #[x_kube(
        validation = Rule::new("self.size() == 0 || self[0] != ''").message(
            "the first element of command is the program and must not be empty, such as /usr/bin/agent"),
        validation = Rule::new("self.all(a, !a.contains('\\u0000'))").message(
            "elements of command must be free of NUL characters")
    )]
    pub command: Vec<String>,
    /// Further arguments, appended to the command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 4096)))]
    #[x_kube(validation = Rule::new("self.all(a, !a.contains('\\u0000'))").message(
        "elements of args must be free of NUL characters"))]
    pub args: Vec<String>,
    /// Environment of the process. In values the agent expands ${APOLLO_DEVICE_NAME}, and nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvVar>,
    /// Working directory of the process: an absolute path on the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    #[x_kube(validation = Rule::new("self.matches('^/[^[:cntrl:]]*$')").message(
        "workingDir must be an absolute path on the device, such as /var/lib/agent"))]
    pub working_dir: Option<String>,
    /// User that the process runs as: a name or a number of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_][A-Za-z0-9_.-]*[$]?$')").message(
        "user must be the name or number of a user of the device, such as nobody or 1000"))]
    pub user: Option<String>,
}

/// What runs a process on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A systemd unit.
    Systemd,
    /// An init script, for devices without systemd.
    Initd,
    /// A container.
    Container,
}

/// A variable of the process's environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Name of the variable.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z_][A-Za-z0-9_]*$')").message(
        "names of env consist of letters, digits and '_' and do not begin with a digit, such as LOG_LEVEL"))]
    pub name: String,
    /// Value of the variable. ${APOLLO_DEVICE_NAME} stands for the name of the device.
    #[schemars(length(max = 32768))]
    #[x_kube(validation = Rule::new("!self.contains('\\u0000')").message("values of env must be free of NUL characters"))]
    pub value: String,
}

/// When a process that ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RestartPolicy {
    /// After any exit.
    #[default]
    Always,
    /// After a non-zero exit.
    OnFailure,
    /// Not at all.
    Never,
}

/// A periodic check of a running process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// The check: a command that exits 0 when the process is healthy.
    pub exec: ExecAction,
    /// Seconds between the starts of two checks.
    #[serde(default = "HealthCheck::default_period")]
    #[schemars(range(min = 1, max = 86400))]
    pub period_seconds: i32,
    /// Seconds after which a check counts as failed.
    #[serde(default = "HealthCheck::default_timeout")]
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: i32,
    /// Successes in a row after which an unhealthy process counts as healthy.
    #[serde(default = "HealthCheck::default_success")]
    #[schemars(range(min = 1, max = 1000))]
    pub success_threshold: i32,
    /// Failures in a row after which a healthy process counts as unhealthy.
    #[serde(default = "HealthCheck::default_failure")]
    #[schemars(range(min = 1, max = 1000))]
    pub failure_threshold: i32,
}

impl HealthCheck {
    fn default_period() -> i32 {
        30
    }
    fn default_timeout() -> i32 {
        5
    }
    fn default_success() -> i32 {
        1
    }
    fn default_failure() -> i32 {
        3
    }
}

/// A command that is run on the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecAction {
    /// The program and its arguments, at least one element. No shell is involved.
    #[schemars(length(min = 1, max = 256), inner(length(max = 4096)))]
    #[x_kube(
        validation = Rule::new("self.size() == 0 || self[0] != ''").message(
            "the first element of command is the program and must not be empty, such as /usr/bin/agent-health"),
        validation = Rule::new("self.all(a, !a.contains('\\u0000'))").message(
            "elements of command must be free of NUL characters")
    )]
    pub command: Vec<String>,
}

/// What the agent on the device reported. Written by praetor-manager, and only when it changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceProcessStatus {
    /// Where the process is in its life: Pending, Running, Succeeded or Failed. Unknown is reserved. Losing the agent
    /// does not change it: see the condition AgentConnected.
    #[serde(default)]
    pub phase: Phase,
    /// AgentConnected, SpecObserved, SpecWarning, ArtifactDownloaded, ArtifactVerified, ProcessStarted and Healthy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Hash of the spec that the agent has seen: "sha256:" and 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_spec_hash: Option<String>,
    /// Hash of the spec that the live process was started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_spec_hash: Option<String>,
    /// Generation of the spec that observedSpecHash belongs to. Less than metadata.generation: the agent has not seen
    /// the current spec yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many writes of this status announced an event. It names the events, so that each appears once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub transitions: u64,
    /// The last report that changed this status. An older one of the same agent changes nothing any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_report: Option<LastReport>,
    /// The events of the write that counted last in transitions: what another manager writes when this one died
    /// between the status and its events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_events: Option<LastEvents>,
    /// How instances of the process relate to devices: DaemonSet, one on each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_semantics: Option<String>,
    /// Tag or digest in the url of the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_version: Option<String>,
    /// Digest of the artifact that the agent fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_digest: Option<String>,
    /// How often the agent tried to fetch the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_download_attempts: Option<i64>,
    /// When the agent last tried to fetch the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_artifact_attempt_time: Option<Time>,
    /// Why the last attempt to fetch the artifact failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_last_error: Option<String>,
    /// Process id on the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i64>,
    /// When the process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// Exit code of the last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// When the phase last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
    /// How often the process was restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_count: Option<i64>,
    /// Why the last run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_termination_reason: Option<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Not started, as far as is known.
    #[default]
    Pending,
    /// Started.
    Running,
    /// Exited with 0 and not to be restarted.
    Succeeded,
    /// Ended otherwise and not to be restarted, or in error.
    Failed,
    /// Reserved; also what a phase of a later version reads as.
    #[serde(other)]
    Unknown,
}

impl Phase {
    /// The phase as it stands in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Unknown => "Unknown",
        }
    }
}

/// The events that one write of a status announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastEvents {
    /// When the status was written.
    pub time: Time,
    /// The reasons of the events.
    pub reasons: Vec<String>,
}

/// Which report a status was last changed by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastReport {
    /// The start of the agent process that sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Its number within that start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}
