//! Who is there: when each device last reported, and whether its silence means anything.
//!
//! - [`order`]: which of two reports of a device is the newer one
//! - [`staleness`]: when silence becomes a verdict
//! - [`roll`]: the table of last signs of life
//! - [`sweeper`]: compares every device with its status, each second
pub mod order;
pub mod roll;
pub mod staleness;
pub mod sweeper;
