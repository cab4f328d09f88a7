//! Edge: the device's token: given as it is, or kept in a file that is nobody else's business.

use http::HeaderValue;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Permission bits: others may read or write; the group may read or write.
const OTHERS: u32 = 0o006;
const GROUP: u32 = 0o060;
/// Longest file that is read, bytes: far more than any header can carry.
const MAX_BYTES: u64 = 16 * 1024;

/// How the device proves who it is.
#[derive(Debug)]
pub struct Token {
    /// The header's value, marked sensitive; none: no header is sent.
    pub value: Option<HeaderValue>,
    file: Option<PathBuf>,
    concern: Option<String>,
}

/// Why there is no token. One line that says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not a header's value.
    #[error("the device token has characters that no HTTP header can carry")]
    NoHeader,
    /// The file cannot be read, or holds no token.
    #[error("--device-token-file (APOLLO_DEVICE_TOKEN_FILE) {0}: {1}")]
    File(PathBuf, String),
    /// Others than the agent can read the file, or replace what it says.
    #[error("--device-token-file (APOLLO_DEVICE_TOKEN_FILE) {0}")]
    Exposed(Exposure),
}

/// Who else can read or change a token's file, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exposure {
    /// Everybody.
    #[error("{0}: every user of this device can read or change it (mode {1:04o}); run: chmod 0600 {0}")]
    Everybody(PathBuf, u32),
    /// A user who is neither root nor the agent's.
    #[error("{0}: it belongs to user {1}, who is neither root nor the agent's own user ({2}); run: chown {2} {0}")]
    Stranger(PathBuf, u32, u32),
    /// The file's group.
    #[error("{0}: group {1} can read or change it, too (mode {2:04o}); if that is not meant, run: chmod 0600 {0}")]
    Group(PathBuf, u32, u32),
}

// === impl Token ===

impl Token {
    /// No token: requests carry no header.
    #[must_use]
    pub fn none() -> Self {
        Self { value: None, file: None, concern: None }
    }

    /// The token itself.
    ///
    /// # Errors
    /// When no header can carry it.
    pub fn given(text: &str) -> Result<Self, TokenError> {
        Ok(Self { value: Some(header(text.trim())?), ..Self::none() })
    }

    /// Reads the file for the first time.
    ///
    /// # Errors
    /// When it cannot be read, is empty, or can be read or changed by everybody or by a user who is neither root nor
    /// the agent's.
    pub fn read(path: PathBuf) -> Result<Self, TokenError> {
        match read(path)? {
            (_, Some(exposure @ (Exposure::Everybody(..) | Exposure::Stranger(..)))) => {
                Err(TokenError::Exposed(exposure))
            }
            (token, _) => Ok(token),
        }
    }

    /// Reads the token's file again, if there is one; `true` when it holds another token now. A file that others can
    /// read by now is a concern and still taken: a device should not be cut off by the way in which its token was
    /// renewed.
    ///
    /// # Errors
    /// When the file cannot be read; the token that is known stays.
    pub fn reload(&mut self) -> Result<bool, TokenError> {
        let Some(path) = self.file.clone() else { return Ok(false) };
        let (new, _) = read(path)?;
        let differs = new.value != self.value;
        *self = new;
        Ok(differs)
    }

    /// What should be changed about the file although the token is in use.
    #[must_use]
    pub fn concern(&self) -> Option<&str> {
        self.concern.as_deref()
    }
}

/// Where it comes from, never what it is.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, &self.value) {
            (Some(path), _) => write!(f, "{}", path.display()),
            (None, Some(_)) => f.write_str("given at the start"),
            (None, None) => f.write_str("none"),
        }
    }
}

fn read(path: PathBuf) -> Result<(Token, Option<Exposure>), TokenError> {
    let failed = |error: io::Error| TokenError::File(path.clone(), error.to_string());
    let file = File::open(&path).map_err(failed)?;
    // Of the very file that is read, wherever the name leads a moment later.
    let exposure = exposure(&path, &file.metadata().map_err(failed)?, rustix::process::geteuid().as_raw());
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    let text = text.trim();
    if text.is_empty() {
        return Err(TokenError::File(path, "the file is empty".to_owned()));
    }
    let value = Some(header(text)?);
    Ok((Token { value, file: Some(path), concern: exposure.as_ref().map(ToString::to_string) }, exposure))
}

/// The worst of what is wrong with a token's file; `me` is the user id of the agent.
#[must_use]
pub fn exposure(path: &Path, file: &Metadata, me: u32) -> Option<Exposure> {
    judge(path, file.mode() & 0o7777, (file.uid(), file.gid()), me)
}

fn judge(path: &Path, mode: u32, (owner, group): (u32, u32), me: u32) -> Option<Exposure> {
    let path = || path.to_owned();
    match () {
        () if mode & OTHERS != 0 => Some(Exposure::Everybody(path(), mode)),
        () if owner != 0 && owner != me => Some(Exposure::Stranger(path(), owner, me)),
        () if mode & GROUP != 0 => Some(Exposure::Group(path(), group, mode)),
        () => None,
    }
}

fn header(token: &str) -> Result<HeaderValue, TokenError> {
    let mut value = HeaderValue::from_str(token).map_err(|_| TokenError::NoHeader)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_tokens_file_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        assert!(Token::read(path.clone()).unwrap_err().to_string().contains("empty"));
        fs::write(&path, "one\n").unwrap();
        let mut token = Token::read(path.clone()).unwrap();
        assert_eq!((token.value.as_ref().unwrap().to_str().unwrap(), token.concern()), ("one", None));
        assert!(!token.reload().unwrap());
        fs::write(&path, "two").unwrap();
        assert!(token.reload().unwrap());
        fs::write(&path, "").unwrap();
        assert!(token.reload().is_err());
        assert_eq!(token.value.as_ref().unwrap(), "two");
        // Renewed carelessly: it counts all the same, but not at the next start.
        fs::write(&path, "three").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(token.reload().unwrap() && token.concern().unwrap().contains("mode 0644"));
        let line = Token::read(path.clone()).unwrap_err().to_string();
        assert!(line.ends_with(&format!("run: chmod 0600 {}", path.display())) && !line.contains("three"), "{line}");
    }

    #[test]
    fn who_else_can_read_it() {
        let path = Path::new("/t");
        let said = |mode, owner, me| judge(path, mode, (owner, 7), me).map(|e| e.to_string()).unwrap_or_default();
        for (mode, owner, me) in [(0o600, 0, 0), (0o400, 0, 5), (0o700, 5, 5), (0o611, 0, 0)] {
            assert_eq!(said(mode, owner, me), "");
        }
        for mode in [0o644, 0o604, 0o602, 0o666] {
            assert!(
                said(mode, 0, 0)
                    .starts_with(&format!("/t: every user of this device can read or change it (mode 0{mode:o})"))
            );
        }
        assert!(said(0o600, 5, 0).contains("belongs to user 5"), "{}", said(0o600, 5, 0));
        assert!(said(0o640, 0, 0).contains("group 7 can"), "{}", said(0o640, 0, 0));
    }

    #[test]
    fn no_token_is_shown() {
        assert!(!format!("{:?}", Token::given("secret").unwrap()).contains("secret"));
        assert!(matches!(Token::given("sec\nret"), Err(TokenError::NoHeader)));
    }
}
