//! HTTP for devices, as the device contract says.
//!
//! - [`path`]: which route and which device a request means
//! - [`auth`], [`credentials`]: who may speak for a device; files of tokens, reloaded
//! - [`tls`], `handshake`, [`validity`]: the port's certificate, reloaded, and how a connection begins with it
//! - [`files`]: files that are looked at again and again
//! - [`answer`]: answers and error bodies
//! - [`service`]: the order of checks; the 304 that most requests end in
//! - [`desired`]: answers that wait: long-polls, and replicas that are behind
//! - [`report`]: reports and connects
//! - [`body`]: request bodies, bounded in size, time and number
//! - `shortcut`, [`pattern`]: the same request again, answered without HTTP and JSON
//! - [`limits`]: when a connection has to end
//! - [`connection`], [`server`]: one connection, and all of them
//! - [`metrics`], [`access_log`]: what is counted and written down
pub mod access_log;
pub mod answer;
pub mod auth;
pub mod body;
pub mod connection;
pub mod credentials;
pub mod desired;
pub mod files;
mod handshake;
pub mod limits;
pub mod metrics;
pub mod path;
pub mod pattern;
pub mod report;
pub mod server;
pub mod service;
mod shortcut;
pub mod tls;
pub mod validity;

#[cfg(test)]
mod tests;
