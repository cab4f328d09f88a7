//! Processes as containers of Docker or another engine with its API.
//!
//! - [`backend`]: what is done with containers
//! - [`arguments`]: flags and environment
//! - [`fetch`], [`check`], [`events`]: images; health checks; what happens meanwhile
//! - [`engine`]: the client of the API
//! - [`config`]: names, marks and settings of containers
//! - [`found`]: what the engine says about them
//! - [`tally`], [`tallies`]: counts of ends, over all containers of a process
//! - [`image`]: references, credentials, causes of failed pulls
//! - [`refusals`]: why a container cannot be made or started
//! - [`frames`]: lines and outputs in streams

pub mod arguments;
pub mod backend;
pub mod check;
pub mod config;
pub mod engine;
pub mod events;
pub mod fetch;
pub mod found;
pub mod frames;
pub mod image;
pub mod refusals;
pub mod tallies;
pub mod tally;

pub use backend::{Containers, Options};
