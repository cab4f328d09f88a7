//! Runs on a device: asks the gateway what the device should run, and reports what it has seen.

use clap::Parser;
use praetor::agent::backend::launcher;
use praetor::agent::{arguments::Arguments, run::run};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: it is called by init scripts, must be small and reads no settings.
    if let Some(code) = launcher::called(std::env::args_os()) {
        return code;
    }
    let result = Arguments::parse()
        .settle()
        .map_err(|e| e.to_string())
        .and_then(|settings| run(settings).map_err(|e| e.to_string()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("praetor-agent: {line}");
            ExitCode::FAILURE
        }
    }
}
