//! Pure: what a sender knows of one receiver.
//!
//! The receiver's clock is known from its answers only, as the last time that it told. Everything that was heard here
//! before that answer came is older, by the receiver's clock, than what it is told next; so a batch that is put
//! together afterwards shows all that was heard up to that time, wherever and however long it is under way.

/// See the module.
#[derive(Debug, Clone)]
pub struct Outbound {
    me: u64,
    to: u64,
    time_ms: Option<u64>,
    /// Up to which moment of the own clock the receiver has everything; none before it has the whole table.
    mark_ms: Option<u64>,
}

/// What goes into a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The process that is meant.
    pub to: u64,
    /// The last time that it told; 0 before any.
    pub time_ms: u64,
}

/// What the next batch must show. To be asked for *before* the table is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// For which process.
    pub to: u64,
    /// The batch will show everything up to this moment of the receiver's clock.
    pub horizon_ms: u64,
    /// What was heard since this moment of the own clock; none: the whole table.
    pub since_ms: Option<u64>,
}

/// What an answer shows about who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// Who was meant.
    Known,
    /// Another process than the one that was meant. From now on it is the one.
    Other,
    /// This very process: the address is its own.
    Myself,
}

// === impl Outbound ===

impl Outbound {
    /// From the process `me` to the process `to`.
    #[must_use]
    pub fn new(me: u64, to: u64) -> Self {
        Self { me, to, time_ms: None, mark_ms: None }
    }

    /// The process that is meant.
    #[must_use]
    pub fn to(&self) -> u64 {
        self.to
    }

    /// Whether the receiver has told its time; before that, everything is refused.
    #[must_use]
    pub fn knows_time(&self) -> bool {
        self.time_ms.is_some()
    }

    /// For the next request.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp { to: self.to, time_ms: self.time_ms.unwrap_or(0) }
    }

    /// As [`Outbound::stamp`], for a part of a planned batch; none when another process is meant by now.
    #[must_use]
    pub fn stamp_for(&self, plan: &Plan) -> Option<Stamp> {
        (self.to == plan.to).then(|| self.stamp())
    }

    /// What the next batch must show; none before the receiver has told its time.
    #[must_use]
    pub fn plan(&self) -> Option<Plan> {
        Some(Plan { to: self.to, horizon_ms: self.time_ms?, since_ms: self.mark_ms })
    }

    /// Another process than before is to be meant: it has nothing yet.
    pub fn turn_to(&mut self, incarnation: u64) {
        if self.to != incarnation {
            *self = Self::new(self.me, incarnation);
        }
    }

    /// Takes in a verified answer to a request that meant `to`.
    pub fn answered(&mut self, to: u64, incarnation: u64, time_ms: u64) -> Met {
        if incarnation == self.me {
            return Met::Myself;
        }
        let met = if incarnation == to { Met::Known } else { Met::Other };
        if met == Met::Other && self.to == to {
            self.turn_to(incarnation);
        }
        if incarnation == self.to {
            // Answers may overtake each other.
            self.time_ms = self.time_ms.max(Some(time_ms));
        }
        met
    }

    /// The receiver has everything of a plan, whose batch was taken from the table at `mark_ms` of the own clock.
    pub fn delivered(&mut self, plan: &Plan, mark_ms: u64) {
        if plan.to == self.to {
            self.mark_ms = self.mark_ms.max(Some(mark_ms));
        }
    }

    /// The process `to` asks for the whole table.
    pub fn send_whole(&mut self, to: u64) {
        if to == self.to {
            self.mark_ms = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_moves_with_what_is_delivered_only() {
        let mut outbound = Outbound::new(1, 2);
        assert_eq!((outbound.plan(), outbound.stamp()), (None, Stamp { to: 2, time_ms: 0 }));
        assert_eq!(outbound.answered(2, 2, 500), Met::Known);
        let plan = outbound.plan().unwrap();
        assert_eq!(plan, Plan { to: 2, horizon_ms: 500, since_ms: None });
        // Lost: once more the same, up to a later horizon.
        outbound.answered(2, 2, 600);
        assert_eq!(outbound.plan(), Some(Plan { horizon_ms: 600, ..plan }));
        outbound.delivered(&plan, 70);
        assert_eq!(outbound.plan(), Some(Plan { to: 2, horizon_ms: 600, since_ms: Some(70) }));
        outbound.answered(2, 2, 550);
        assert_eq!(outbound.stamp(), Stamp { to: 2, time_ms: 600 });
        outbound.send_whole(3);
        assert_eq!(outbound.plan().unwrap().since_ms, Some(70));
        outbound.send_whole(2);
        assert_eq!(outbound.plan().unwrap().since_ms, None);
    }

    #[test]
    fn a_new_process_gets_the_whole_table() {
        let mut outbound = Outbound::new(1, 2);
        outbound.answered(2, 2, 500);
        let old = outbound.plan().unwrap();
        outbound.delivered(&old, 70);
        // It restarted, its clock too.
        assert_eq!(outbound.answered(2, 3, 4), Met::Other);
        assert_eq!(outbound.plan(), Some(Plan { to: 3, horizon_ms: 4, since_ms: None }));
        // Late answers and deliveries of the old one mean nothing.
        assert_eq!(outbound.answered(2, 2, 900), Met::Known);
        outbound.delivered(&old, 80);
        assert_eq!(outbound.stamp_for(&old), None);
        assert_eq!(outbound.plan(), Some(Plan { to: 3, horizon_ms: 4, since_ms: None }));
        assert_eq!(outbound.answered(2, 4, 900), Met::Other);
        assert_eq!(outbound.to(), 3);
        assert_eq!(outbound.answered(3, 1, 900), Met::Myself);
        assert_eq!(outbound.stamp(), Stamp { to: 3, time_ms: 4 });
    }
}
