//! Pure: conditions: their names, reasons and messages, and how one changes.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Types of conditions.
pub mod types {
    /// The agent on the device is reporting. Absent: never seen.
    pub const AGENT_CONNECTED: &str = "AgentConnected";
    /// The agent has seen the spec whose hash is in the message.
    pub const SPEC_OBSERVED: &str = "SpecObserved";
    /// Something about the spec needs the operator.
    pub const SPEC_WARNING: &str = "SpecWarning";
    /// The artifact is on the device.
    pub const ARTIFACT_DOWNLOADED: &str = "ArtifactDownloaded";
    /// The artifact has the digest that it should have.
    pub const ARTIFACT_VERIFIED: &str = "ArtifactVerified";
    /// The process runs.
    pub const PROCESS_STARTED: &str = "ProcessStarted";
    /// The health check succeeds.
    pub const HEALTHY: &str = "Healthy";
    /// No more devices of a deployment are unavailable than it allows.
    pub const AVAILABLE: &str = "Available";
    /// The deployment moves towards its template, or has reached it.
    pub const PROGRESSING: &str = "Progressing";
}

/// Reasons of conditions.
pub mod reasons {
    /// AgentConnected=True.
    pub const AGENT_CONNECTED: &str = "AgentConnected";
    /// AgentConnected=False.
    pub const HEARTBEAT_MISSED: &str = "HeartbeatMissed";
    /// SpecObserved=True.
    pub const SPEC_OBSERVED: &str = "SpecObserved";
    /// SpecWarning=True: a NetworkSwitch of the device's name exists, but in another namespace only.
    pub const DEVICE_NOT_IN_NAMESPACE: &str = "DeviceNotInNamespace";
    /// SpecWarning=True: the device lacks the backend.
    pub const BACKEND_UNAVAILABLE: &str = crate::wire::BACKEND_UNAVAILABLE;
    /// SpecWarning=True: the agent says so.
    pub const AGENT_WARNING: &str = "AgentWarning";
    /// Of the artifact's conditions, when the agent gives no reason: True.
    pub const SUCCEEDED: &str = "Succeeded";
    /// Of the artifact's conditions, when the agent gives no reason: False after an error.
    pub const FAILED: &str = "Failed";
    /// Of the artifact's conditions, when the agent gives no reason: False, not done yet.
    pub const PENDING: &str = "Pending";
    /// ProcessStarted=True.
    pub const STARTED: &str = "Started";
    /// ProcessStarted=False: it never ran.
    pub const NOT_STARTED: &str = "NotStarted";
    /// ProcessStarted=False: it ran and ended.
    pub const EXITED: &str = "Exited";
    /// Healthy=True.
    pub const HEALTHY: &str = "Healthy";
    /// Healthy=False.
    pub const UNHEALTHY: &str = "Unhealthy";
    /// Progressing=True: every device runs the template.
    pub const ROLLOUT_COMPLETE: &str = "RolloutComplete";
    /// Progressing=True: some devices do not yet.
    pub const ROLLOUT_IN_PROGRESS: &str = "RolloutInProgress";
    /// Progressing=True: only devices that are absent are left.
    pub const WAITING_FOR_DEVICES: &str = "WaitingForDevices";
    /// Progressing=False: the selector means nothing.
    pub const INVALID_SELECTOR: &str = "InvalidSelector";
    /// Progressing=False: the template cannot be read.
    pub const INVALID_TEMPLATE: &str = "InvalidTemplate";
    /// Progressing=False: suspiciously many children would be deleted.
    pub const MASS_DELETION_HELD: &str = "MassDeletionHeld";
    /// Progressing=False: the API server does not accept a child.
    pub const DEVICE_PROCESS_REFUSED: &str = "DeviceProcessRefused";
    /// Available=True.
    pub const ENOUGH_AVAILABLE: &str = "EnoughAvailable";
    /// Available=False.
    pub const TOO_FEW_AVAILABLE: &str = "TooFewAvailable";
}

/// Messages of conditions that are always the same.
pub mod messages {
    /// AgentConnected=True.
    pub const AGENT_CONNECTED: &str = "agent is reporting";
    /// AgentConnected=False.
    pub const HEARTBEAT_MISSED: &str = "no report within the staleness window";

    /// SpecObserved=True: `hash` is `sha256:` and 64 hexadecimal digits.
    #[must_use]
    pub fn spec_observed(hash: &str) -> String {
        format!("observed {hash}")
    }
}

/// Value of a condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// It is not known.
    Unknown,
}

impl Status {
    /// The status as it stands in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Status {
    fn from(so: bool) -> Self {
        if so { Self::True } else { Self::False }
    }
}

/// The condition of a type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of a type is there and has this status.
#[must_use]
pub fn is(conditions: &[Condition], type_: &str, status: Status) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == status.as_str())
}

/// Sets the condition of a type and says whether anything changed. `lastTransitionTime` moves only when the status
/// does; an existing condition keeps its place, a new one goes to the end.
pub fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: impl Into<Status>,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let status = status.into().as_str();
    let Some(old) = conditions.iter_mut().find(|condition| condition.type_ == type_) else {
        conditions.push(Condition {
            last_transition_time: Time(whole_seconds(now)),
            message: message.to_owned(),
            observed_generation: None,
            reason: reason.to_owned(),
            status: status.to_owned(),
            type_: type_.to_owned(),
        });
        return true;
    };
    if old.status == status && old.reason == reason && old.message == message {
        return false;
    }
    if old.status != status {
        status.clone_into(&mut old.status);
        old.last_transition_time = Time(whole_seconds(now));
    }
    reason.clone_into(&mut old.reason);
    message.clone_into(&mut old.message);
    true
}

/// Removes the condition of a type and says whether it was there.
pub fn remove(conditions: &mut Vec<Condition>, type_: &str) -> bool {
    let before = conditions.len();
    conditions.retain(|condition| condition.type_ != type_);
    conditions.len() != before
}

/// Whether two lists say the same, their times and their order aside.
#[must_use]
pub fn same(left: &[Condition], right: &[Condition]) -> bool {
    left.len() == right.len()
        && left.iter().all(|one| {
            find(right, &one.type_).is_some_and(|other| {
                (&one.status, &one.reason, &one.message) == (&other.status, &other.reason, &other.message)
            })
        })
}

/// The time as the API keeps it: whole seconds, rounded down. What is written then equals what is read back.
#[must_use]
pub fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn time_moves_with_the_status_alone() {
        let mut list = Vec::new();
        assert!(set(&mut list, types::HEALTHY, true, "a", "m", at(1)));
        assert!(!set(&mut list, types::HEALTHY, true, "a", "m", at(2)));
        assert!(set(&mut list, types::HEALTHY, true, "b", "m", at(3)));
        assert!(set(&mut list, types::HEALTHY, Status::True, "b", "n", at(4)));
        assert_eq!(list[0].last_transition_time.0, at(1));
        assert!(set(&mut list, types::HEALTHY, false, "b", "n", at(5)));
        assert_eq!(list[0].last_transition_time.0, at(5));
        assert!(is(&list, types::HEALTHY, Status::False) && !is(&list, types::AVAILABLE, Status::False));
    }

    #[test]
    fn order_is_kept() {
        let mut list = Vec::new();
        for type_ in ["B", "A", "C"] {
            set(&mut list, type_, true, "r", "", at(1));
        }
        set(&mut list, "A", Status::Unknown, "r", "", at(2));
        let order: Vec<_> = list.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(order, ["B", "A", "C"]);
        assert!(remove(&mut list, "B") && !remove(&mut list, "B"));
        assert_eq!(find(&list, "A").map(|found| found.status.as_str()), Some("Unknown"));
        assert!(find(&list, "B").is_none());
    }

    #[test]
    fn same_looks_at_neither_times_nor_order() {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        set(&mut left, "A", true, "r", "m", at(1));
        set(&mut left, "B", true, "r", "m", at(1));
        set(&mut right, "B", true, "r", "m", at(7));
        assert!(!same(&left, &right));
        set(&mut right, "A", true, "r", "m", at(7));
        assert!(same(&left, &right));
        set(&mut right, "A", true, "r", "other", at(7));
        assert!(!same(&left, &right));
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let mut list = Vec::new();
        set(&mut list, "A", true, "r", "m", Timestamp::from_millisecond(1_700_000_000_999).unwrap());
        let read: Vec<Condition> = serde_json::from_value(serde_json::to_value(&list).unwrap()).unwrap();
        assert_eq!(read, list);
    }
}
