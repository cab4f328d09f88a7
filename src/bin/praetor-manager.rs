//! The control plane. Everything is in [`praetor::manager`].

use clap::Parser;
use praetor::manager::{arguments::Arguments, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    run::main(Arguments::parse())
}
