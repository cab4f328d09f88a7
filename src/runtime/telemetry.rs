//! Edge: where log lines go.

use tracing_subscriber::EnvFilter;

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

const KUBE_CALLS: &str = "kube_client::client::builder=off";

/// Sends log lines to standard error. `level` is a level (`info`) or a list of directives
/// (`info,praetor::rollout=debug`).
///
/// # Errors
/// Says what is wrong with `level`.
pub fn start(format: LogFormat, level: &str) -> Result<(), String> {
    let mut filter =
        EnvFilter::try_new(level).map_err(|error| format!("--log-level {level:?}: {error}; try info or debug"))?;
    // The Kubernetes client calls every failed call an error; whoever made the call says it, once, and how bad it is.
    if let Some(quiet) =
        Some(KUBE_CALLS).filter(|_| !level.contains("kube_client")).and_then(|directive| directive.parse().ok())
    {
        filter = filter.add_directive(quiet);
    }
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}
