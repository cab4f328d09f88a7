//! What each device should run: everything the watches have shown, in the form that answers devices fast.
//!
//! - [`object`]: objects as the apiserver sends them, read so leniently that none is ever lost
//! - [`lean`]: the small, shared form in which the index keeps them
//! - [`record`]: their statuses in that form
//! - [`index`]: by device, by namespace and by owner; entity tags and revisions
//! - [`directory`]: the index behind its lock, with bodies, parked polls and the watch's progress
//! - [`watch`]: list and watch, one per kind
pub mod directory;
pub mod index;
pub mod lean;
pub mod object;
pub mod record;
pub mod watch;
