//! The processes of the device: what they are, what is remembered of them, and what is done next.

pub mod identity;
pub mod spec;
