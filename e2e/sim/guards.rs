//! What keeps the system right, each to be switched off alone: the simulator must notice.

/// The guards; all are on in production.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Every write names the version that it replaces.
    Version,
    /// A forwarded report is not forwarded again.
    HopLimit,
    /// Who was paused judges nobody until it has listened again.
    PauseCheck,
    /// Nobody is called dead while a live member has not been heard lately.
    FreshPresence,
    /// A new incarnation is told of every device.
    WholeTable,
    /// An older report changes nothing.
    SequenceOrder,
    /// An object that the cache does not know is looked up live.
    LiveRead,
    /// Desired state is not served by a replica that is behind what the device has seen.
    MinRevision,
}

/// Which guards are on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Guards {
    off: Option<Guard>,
}

impl Guards {
    /// All but one.
    pub fn without(guard: Guard) -> Self {
        Self { off: Some(guard) }
    }

    /// Whether a guard is on.
    pub fn on(self, guard: Guard) -> bool {
        self.off != Some(guard)
    }
}
