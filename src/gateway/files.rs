//! Edge: files that are looked at again and again: tokens, secrets, certificates.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often files are looked at; a change that is only believed at the second look counts within 10 s, too.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// Looks every 5 s, on a thread that may block, until the shutdown.
pub async fn look_again(shutdown: CancellationToken, look: impl Fn() + Clone + Send + 'static) {
    while shutdown.run_until_cancelled(tokio::time::sleep(RELOAD_INTERVAL)).await.is_some() {
        // Fails only when the look panicked, and then the next round tries again.
        let _ = tokio::task::spawn_blocking(look.clone()).await;
    }
}

/// For flags that name a file: also takes nothing, which clap's own parser of paths refuses in words of its own.
///
/// # Errors
/// Never.
pub fn path(text: &str) -> Result<PathBuf, Infallible> {
    Ok(text.into())
}
