//! Pure: why an artifact cannot be had: the reasons that conditions show, and what the system's errors mean.

use super::{FetchError, Stage};
use std::io;
use std::time::Duration;

/// The spec's url is none, or of another kind than its type says.
pub const BAD_REFERENCE: &str = "BadReference";
/// checksumSHA256 is no checksum.
pub const BAD_CHECKSUM: &str = "BadChecksum";
/// A download without a checksum, which this agent does not run.
pub const CHECKSUM_MISSING: &str = "ChecksumMissing";
/// The bytes are others than those asked for.
pub const CHECKSUM_MISMATCH: &str = "ChecksumMismatch";
/// There is no such file, image, tag or blob.
pub const NOT_FOUND: &str = "NotFound";
/// Credentials are missing or refused.
pub const UNAUTHORIZED: &str = "Unauthorized";
/// The file of credentials is of no use.
pub const BAD_REGISTRY_CONFIG: &str = "BadRegistryConfig";
/// No connection to the registry.
pub const REGISTRY_UNREACHABLE: &str = "RegistryUnreachable";
/// No connection to the server.
pub const SERVER_UNREACHABLE: &str = "ServerUnreachable";
/// The registry answers with an error of its own, or with nonsense.
pub const REGISTRY_ERROR: &str = "RegistryError";
/// The server answers with an error of its own, or with nonsense.
pub const SERVER_ERROR: &str = "ServerError";
/// The other side has not proved who it is; also with a clock that is wrong.
pub const UNTRUSTED: &str = "Untrusted";
/// More redirects than are followed, or one to where none may lead.
pub const BAD_REDIRECT: &str = "BadRedirect";
/// The connection stands, and nothing comes.
pub const STALLED: &str = "Stalled";
/// The connection ended early.
pub const INTERRUPTED: &str = "Interrupted";
/// Plain HTTP to a registry that is not on the list.
pub const INSECURE_REGISTRY: &str = "InsecureRegistry";
/// No image for this device's processor.
pub const NO_MATCHING_PLATFORM: &str = "NoMatchingPlatform";
/// A kind of manifest, layer or compression that this agent does not know.
pub const UNSUPPORTED_MEDIA_TYPE: &str = "UnsupportedMediaType";
/// An archive that is damaged, or holds what none may hold.
pub const BAD_ARCHIVE: &str = "BadArchive";
/// More bytes or files than this agent takes.
pub const TOO_LARGE: &str = "TooLarge";
/// No space left, or no quota.
pub const DISK_FULL: &str = "DiskFull";
/// Nothing can be written.
pub const READ_ONLY_FILE_SYSTEM: &str = "ReadOnlyFileSystem";
/// Any other trouble with the device's own disk.
pub const DISK_ERROR: &str = "DiskError";

/// Which kind of server is spoken to: it decides which reason and which words its faults have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Of type http.
    Server,
    /// Of type oci.
    Registry,
}

// === impl Peer ===

impl Peer {
    /// In a sentence.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Registry => "registry",
        }
    }

    /// There is no connection.
    #[must_use]
    pub fn unreachable(self) -> &'static str {
        match self {
            Self::Server => SERVER_UNREACHABLE,
            Self::Registry => REGISTRY_UNREACHABLE,
        }
    }

    /// It answers, and the answer is of no use.
    #[must_use]
    pub fn error(self) -> &'static str {
        match self {
            Self::Server => SERVER_ERROR,
            Self::Registry => REGISTRY_ERROR,
        }
    }
}

// === impl FetchError ===

impl FetchError {
    /// The artifact is not on the device.
    #[must_use]
    pub fn download(reason: &'static str, message: impl Into<String>) -> Self {
        Self { stage: Stage::Download, reason, message: message.into(), retry_after: None }
    }

    /// The artifact is there and not what it should be.
    #[must_use]
    pub fn verify(reason: &'static str, message: impl Into<String>) -> Self {
        Self { stage: Stage::Verify, reason, message: message.into(), retry_after: None }
    }

    /// The same, and when to come again.
    #[must_use]
    pub fn again_after(self, retry_after: Option<Duration>) -> Self {
        Self { retry_after, ..self }
    }

    /// What the system's refusal means. `doing` completes "cannot …".
    #[must_use]
    pub fn disk(doing: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::disk_full(),
            io::ErrorKind::ReadOnlyFilesystem => Self::download(
                READ_ONLY_FILE_SYSTEM,
                "the file system that holds the agent's state is read-only: no artifact can be stored",
            ),
            _ => Self::download(DISK_ERROR, format!("cannot {doing}: {error}")),
        }
    }

    /// There is no space for it.
    #[must_use]
    pub fn disk_full() -> Self {
        Self::download(
            DISK_FULL,
            "the disk that holds the agent's state is full, or its quota is used up: there is no space for the artifact",
        )
    }

    /// Whether what has come so far is worth nothing, or must go to give its space back.
    #[must_use]
    pub fn spoils_the_rest(&self) -> bool {
        matches!(self.reason, DISK_FULL | TOO_LARGE | BAD_ARCHIVE | CHECKSUM_MISMATCH | UNSUPPORTED_MEDIA_TYPE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_errors_have_names() {
        // ENOSPC, EDQUOT, EROFS, EIO.
        for (number, reason) in [(28, DISK_FULL), (122, DISK_FULL), (30, READ_ONLY_FILE_SYSTEM), (5, DISK_ERROR)] {
            let error = FetchError::disk("write the artifact", &io::Error::from_raw_os_error(number));
            assert_eq!((error.reason, error.stage), (reason, Stage::Download));
            assert_eq!(error.spoils_the_rest(), reason == DISK_FULL);
        }
    }
}
