//! Simulates devices for load and fault tests. Everything is in [`praetor::fleet`].

use clap::Parser;
use praetor::fleet::{arguments::Arguments, run::run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let summary = Arguments::parse()
        .settle()
        .map_err(|error| error.to_string())
        .and_then(|settings| run(settings).map_err(|error| error.to_string()));
    match summary.map(|summary| serde_json::to_string_pretty(&summary)) {
        Ok(Ok(json)) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => fail(&error.to_string()),
        Err(error) => fail(&error),
    }
}

fn fail(line: &str) -> ExitCode {
    eprintln!("praetor-fleet: {line}");
    ExitCode::FAILURE
}
