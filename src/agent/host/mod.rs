//! The agent as a guest of its device: how it is installed, what it believes, and what keeps it from its work.
//!
//! - [`commands`]: the command line, with and without a subcommand
//! - [`settings`]: the settings file, which holds variables
//! - [`service`]: the unit and the init script
//! - [`plan`], [`install`], [`uninstall`]: what installing means; doing it and undoing it
//! - [`lock`]: one agent for each state folder
//! - [`live`], [`answer`]: what a running agent says of itself, and how it is asked
//! - [`memory`]: what can be said of a process without the agent
//! - [`screen`], [`status`]: `praetor-agent status`
//! - [`findings`], [`doctor`]: `praetor-agent doctor`

pub mod answer;
pub mod commands;
pub mod doctor;
pub mod findings;
pub mod install;
pub mod live;
pub mod lock;
pub mod memory;
pub mod plan;
pub mod screen;
pub mod service;
pub mod settings;
pub mod status;
pub mod uninstall;
