//! Runs on a device: asks the gateway what the device should run, fetches it, runs it, and reports what it has seen.

use praetor::agent::backend::launcher;
use praetor::agent::host::commands;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: it is called by init scripts, must be small and reads no settings.
    launcher::called(std::env::args_os()).unwrap_or_else(|| commands::main(std::env::args_os()))
}
