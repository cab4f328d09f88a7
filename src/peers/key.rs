//! Edge: where the secret of the replicas comes from.

use super::signature::{MIN_SECRET_BYTES, PeerKey};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The flag that names the file of the secret.
pub const SECRET_FLAG: &str = "--peer-secret-file";
/// The environment variable that holds the secret itself.
pub const SECRET_VARIABLE: &str = "APOLLO_PEER_SECRET";
/// Longest secret that is read, bytes.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Why there is no key although one is configured. Says it in one line, without the secret.
#[derive(Debug, Error)]
pub enum KeyError {
    /// Two secrets.
    #[error("{SECRET_FLAG} and {SECRET_VARIABLE} are both given: leave one out")]
    Both,
    /// The variable is not UTF-8.
    #[error("{SECRET_VARIABLE} is not UTF-8")]
    NotText,
    /// The file cannot be read.
    #[error("{SECRET_FLAG} {}: {error}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A secret that could be guessed.
    #[error("{from}: the secret has {length} bytes without the blanks around it; it needs {MIN_SECRET_BYTES} to 65536")]
    Length {
        /// Flag and file, or variable.
        from: String,
        /// What is there, bytes.
        length: usize,
    },
}

/// Reads the key from the file that the flag names, or from the variable; none when neither is there.
///
/// # Errors
/// When both are there, or what is there is not usable.
pub fn load(file: Option<&Path>) -> Result<Option<PeerKey>, KeyError> {
    // Read here, so that no help text or dump of arguments can ever show it.
    #[allow(clippy::disallowed_methods)]
    let variable = match std::env::var(SECRET_VARIABLE) {
        Ok(secret) => Some(secret),
        Err(std::env::VarError::NotPresent) => None,
        Err(std::env::VarError::NotUnicode(_)) => return Err(KeyError::NotText),
    };
    choose(file, variable)
}

fn choose(file: Option<&Path>, variable: Option<String>) -> Result<Option<PeerKey>, KeyError> {
    match (file, variable) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(KeyError::Both),
        (None, Some(secret)) => key(secret.as_bytes(), || SECRET_VARIABLE.into()).map(Some),
        (Some(path), None) => {
            let read = |path: &Path| {
                let mut secret = Vec::new();
                std::fs::File::open(path)?.take(MAX_SECRET_BYTES + 1).read_to_end(&mut secret)?;
                Ok(secret)
            };
            let secret = read(path).map_err(|error| KeyError::Unreadable { path: path.to_owned(), error })?;
            key(&secret, || format!("{SECRET_FLAG} {}", path.display())).map(Some)
        }
    }
}

fn key(secret: &[u8], from: impl FnOnce() -> String) -> Result<PeerKey, KeyError> {
    let secret = secret.trim_ascii();
    let fits = secret.len() as u64 <= MAX_SECRET_BYTES;
    let key = Some(secret).filter(|_| fits).and_then(PeerKey::new);
    key.ok_or_else(|| KeyError::Length { from: from(), length: secret.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::signature::{BodyHash, Reply, Signature};

    const SECRET: &str = "0123456789abcdef";

    fn fingerprint(key: &PeerKey) -> String {
        let reply = Reply { status: 200, incarnation: 1, time_ms: 1, digest: BodyHash::of(b"") };
        key.sign_reply(&Signature::parse(&[b'0'; 64]).unwrap(), &reply).to_string()
    }

    #[test]
    fn from_a_file_or_the_variable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, format!(" {SECRET}\n")).unwrap();
        assert!(choose(None, None).unwrap().is_none());
        let (file, variable) = (choose(Some(&path), None).unwrap(), choose(None, Some(SECRET.into())).unwrap());
        assert_eq!(fingerprint(&file.unwrap()), fingerprint(&variable.unwrap()));
        assert!(matches!(choose(Some(&path), Some(SECRET.into())), Err(KeyError::Both)));
    }

    #[test]
    fn one_line_that_names_the_flag_and_never_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let missing = choose(Some(&path), None).unwrap_err().to_string();
        std::fs::write(&path, " hunter2\n").unwrap();
        let short = choose(Some(&path), None).unwrap_err().to_string();
        std::fs::write(&path, vec![b'x'; 70_000]).unwrap();
        let long = choose(Some(&path), None).unwrap_err().to_string();
        let empty = choose(None, Some(" ".into())).unwrap_err().to_string();
        for (error, named) in
            [(missing, SECRET_FLAG), (short, SECRET_FLAG), (long, SECRET_FLAG), (empty, SECRET_VARIABLE)]
        {
            assert!(error.starts_with(named) && !error.contains('\n') && !error.contains("hunter2"), "{error}");
        }
    }
}
