//! Pure: the status of a deployment: what is counted, and the conditions that follow.

use super::template::Template;
use crate::api::DeviceProcessDeploymentStatus;
use crate::api::condition::{reasons, set, types};
use crate::api::deployment::{RolloutRecord, UpdateStrategy};
use crate::desired::lean::{Deployment, Process};
use crate::desired::record::{ConditionType, Phase};
use jiff::Timestamp;
use serde::Deserialize;

/// What was counted over the matching devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// They match.
    pub desired: u64,
    /// They have a child.
    pub current: u64,
    /// Their process was started from the template.
    pub updated: u64,
    /// Updated, connected, and started and healthy, or succeeded.
    pub ready: u64,
    /// Not ready, and nothing to be done before the agent is back.
    pub absent: u64,
}

/// What keeps a deployment from going on, with its reason and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// Reason of Progressing=False.
    pub reason: &'static str,
    /// For people; always the same as long as the cause is.
    pub message: String,
}

// === impl Tally ===

impl Tally {
    /// Counts a matching device with its child, if it has one that stays.
    pub fn count(&mut self, child: Option<&Process>, template: &Template) {
        self.desired += 1;
        let Some(child) = child else { return };
        self.current += 1;
        let connected = child.status.is(ConditionType::AgentConnected);
        let updated = child.status.running == Some(template.hash);
        self.updated += u64::from(updated);
        if updated && connected == Some(true) && well(child, template.health_check) {
            self.ready += 1;
        } else if connected == Some(false) || (connected.is_none() && child.spec.hash == template.hash) {
            self.absent += 1;
        }
    }

    fn progress(&self) -> (&'static str, &'static str) {
        if self.ready == self.desired {
            (reasons::ROLLOUT_COMPLETE, "every matching device runs the template")
        } else if self.ready + self.absent == self.desired {
            (
                reasons::WAITING_FOR_DEVICES,
                "the devices that are left do not report; they get the template when they do",
            )
        } else {
            (reasons::ROLLOUT_IN_PROGRESS, "devices are being brought to the template")
        }
    }
}

/// Started and healthy, or succeeded.
fn well(child: &Process, health_check: bool) -> bool {
    let healthy = child.status.is(ConditionType::Healthy);
    let healthy = if health_check { healthy == Some(true) } else { healthy != Some(false) };
    child.status.phase == Phase::Succeeded || (child.status.is(ConditionType::ProcessStarted) == Some(true) && healthy)
}

/// The status as it was last written; what cannot be read is absent.
#[must_use]
pub fn written(deployment: &Deployment) -> DeviceProcessDeploymentStatus {
    DeviceProcessDeploymentStatus::deserialize(&deployment.status).unwrap_or_default()
}

/// The status that a deployment should have now. Equal to `before` when nothing changed.
#[must_use]
pub fn status(
    deployment: &Deployment,
    before: &DeviceProcessDeploymentStatus,
    counted: Option<(Tally, &Template)>,
    obstacle: Option<&Obstacle>,
    now: Timestamp,
) -> DeviceProcessDeploymentStatus {
    let mut status = before.clone();
    status.observed_generation = deployment.metadata.generation;
    if let Some((tally, template)) = counted {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        status.desired_number_scheduled = number(tally.desired);
        status.current_number_scheduled = number(tally.current);
        status.updated_number_scheduled = number(tally.updated);
        status.number_ready = number(tally.ready);
        status.number_available = number(tally.ready);
        status.number_unavailable = number(tally.desired - tally.ready);
        let strategy = UpdateStrategy::deserialize(&deployment.spec["updateStrategy"]).unwrap_or_default();
        let enough = tally.desired - tally.ready <= strategy.rolling_update.budget(tally.desired);
        let (reason, message) = if enough {
            (reasons::ENOUGH_AVAILABLE, "no more devices are unavailable than maxUnavailable allows")
        } else {
            (reasons::TOO_FEW_AVAILABLE, "more devices are unavailable than maxUnavailable allows")
        };
        set(&mut status.conditions, types::AVAILABLE, enough, reason, message, now);
        let (reason, message) = tally.progress();
        if obstacle.is_none() {
            set(&mut status.conditions, types::PROGRESSING, true, reason, message, now);
        }
        let hash = template.hash.to_string();
        let known = status.rollout.take().filter(|rollout| rollout.spec_hash == hash);
        // A template that no device matches is not rolled out, so it neither starts nor completes.
        status.rollout = if tally.desired == 0 {
            known
        } else {
            let complete = tally.ready == tally.desired || known.is_some_and(|known| known.complete);
            Some(RolloutRecord { spec_hash: hash, complete })
        };
    }
    if let Some(Obstacle { reason, message }) = obstacle {
        set(&mut status.conditions, types::PROGRESSING, false, reason, message, now);
    }
    status
}
