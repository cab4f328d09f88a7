//! Edge: what each command does.

use super::advice;
use super::arguments::{Arguments, Command, RunArguments};
use super::error::RunError;
use super::replica;
use crate::api;
use crate::gateway::credentials::{AuthArguments, Credentials};
use crate::runtime::telemetry;
use crate::wire::name::is_device_name;
use std::path::Path;
use std::process::ExitCode;

/// Runs what the arguments say.
#[must_use]
pub fn main(arguments: Arguments) -> ExitCode {
    let namespace = arguments.run.namespace.clone();
    let result = match arguments.command {
        Some(Command::Token { device, auth }) => print_token(&device, &auth),
        Some(Command::Crds { output_dir }) => print_crds(output_dir.as_deref()),
        None => start(arguments.run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, in a pod's log too.
            match advice::in_a_pod(&error, &namespace).filter(|_| in_a_pod()) {
                Some(advice) => eprintln!("praetor-manager: {error}; {advice}"),
                None => eprintln!("praetor-manager: {error}"),
            }
            ExitCode::FAILURE
        }
    }
}

/// Kubernetes tells every container where the apiserver is.
#[allow(clippy::disallowed_methods)]
fn in_a_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

fn print_token(device: &str, auth: &AuthArguments) -> Result<(), RunError> {
    if !is_device_name(device.as_bytes()) {
        return Err(RunError::DeviceName(device.to_owned()));
    }
    let token = Credentials::load(auth)?.token_for(device).ok_or_else(|| RunError::NoToken(device.to_owned()))?;
    println!("{token}");
    Ok(())
}

fn print_crds(output_dir: Option<&Path>) -> Result<(), RunError> {
    for (file, yaml) in api::render()? {
        match output_dir {
            None => print!("---\n{yaml}"),
            Some(folder) => {
                let path = folder.join(file);
                let write = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, yaml));
                write.map_err(|source| RunError::Write { path, source })?;
            }
        }
    }
    Ok(())
}

fn start(arguments: RunArguments) -> Result<(), RunError> {
    telemetry::start(arguments.log_format, &arguments.log_level).map_err(RunError::Logs)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(replica::run(arguments));
    // Whatever still runs has had its time.
    runtime.shutdown_background();
    result
}
