//! How replicas talk to each other: on a port of their own, over HTTP/1.1, signed with a key that all share.
//!
//! Each second every replica tells every other one whom it heard ([`batch`]), so that all of them know every device's
//! last sign of life and nothing has to be handed over; and a report that changes something is sent on, once, to the
//! replica that writes for its device. No wall clock is looked at: the only time in a message is the receiver's own,
//! as the sender last heard it.
//!
//! - [`signature`], [`envelope`]: what is signed, and what is refused
//! - [`replay`], [`inbound`]: what a receiver knows of those who send to it
//! - [`outbound`]: what a sender knows of a receiver
//! - [`batch`]: presence as bytes
//! - [`key`]: where the secret comes from
//! - [`client`], [`link`]: requests, and all that goes to one peer
//! - [`hub`], [`server`]: links to all peers of the view, and the port on which they are heard
//! - [`metrics`]
pub mod batch;
pub mod client;
pub mod envelope;
pub mod hub;
pub mod inbound;
pub mod key;
pub mod link;
pub mod metrics;
pub mod outbound;
pub mod replay;
pub mod server;
pub mod signature;

#[cfg(test)]
mod tests;
