//! Who is there: when each device last reported, anywhere, and whether its silence means anything.
//!
//! - [`order`]: which of two reports of a device is the newer one
//! - [`said`]: whether a report that seems to say nothing new can be believed to
//! - [`table`]: who was heard when, by this replica and by the others
//! - [`staleness`]: when silence becomes a verdict
//! - [`mass`]: when many fall silent at once
//! - [`roll`]: the table and the observer, shared by all tasks
//! - [`sweeper`]: compares every device with its status, each second
pub mod mass;
pub mod order;
pub mod roll;
pub mod said;
pub mod staleness;
pub mod sweeper;
pub mod table;
