//! Edge: where tokens and secrets come from: flags, environment, and files that are reloaded.

use super::auth::{Methods, Unreadable, read_devices, read_secrets, read_token};
use super::files;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_util::sync::CancellationToken;

/// Environment variable of `--device-token-secret`: one secret, or several with commas between.
pub const SECRET_VARIABLE: &str = "APOLLO_GATEWAY_TOKEN_SECRET";
/// Files up to this size are read each time, bytes; longer ones only when their metadata moved.
const SMALL_FILE_BYTES: u64 = 64 * 1024;

/// How devices prove who they are.
#[derive(clap::Args, Clone, Default)]
#[command(next_help_heading = "Authentication of devices")]
pub struct AuthArguments {
    /// One token for all devices, for development
    #[arg(long, value_name = "TOKEN", env = "APOLLO_GATEWAY_TOKEN", hide_env_values = true)]
    pub device_token: Option<String>,
    /// File that holds the token for all devices
    #[arg(long, value_name = "FILE")]
    pub device_token_file: Option<PathBuf>,
    /// Secret that device tokens are derived from; repeat it to rotate: each verifies, the first signs [env: APOLLO_GATEWAY_TOKEN_SECRET, with commas]
    #[arg(long, value_name = "SECRET")]
    pub device_token_secret: Vec<String>,
    /// File of such secrets, one a line
    #[arg(long, value_name = "FILE")]
    pub device_token_secret_file: Option<PathBuf>,
    /// YAML map of device: token; a device named there is judged by it alone, an empty token revokes
    #[arg(long, value_name = "FILE")]
    pub device_tokens_file: Option<PathBuf>,
    /// Let every device in without a token
    #[arg(long)]
    pub insecure_no_auth: bool,
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Nothing is configured.
    #[error(
        "no way for devices to authenticate: give --device-token-secret (or a file of it), --device-tokens-file, --device-token, or for a laptop --insecure-no-auth"
    )]
    Nothing,
    /// A flag or variable is there, but empty.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// Open and closed at once.
    #[error("--insecure-no-auth cannot be combined with {0}")]
    OpenAndClosed(&'static str),
    /// The variable is not UTF-8.
    #[error("{0} is not UTF-8")]
    NotText(&'static str),
    /// A file cannot be read.
    #[error("{flag} {}: {error}", .path.display())]
    Unreachable {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file makes no sense.
    #[error("{flag} {}: {error}", .path.display())]
    Unreadable {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: Unreadable,
    },
}

/// The methods that are in force now.
pub struct Credentials {
    methods: RwLock<Arc<Methods>>,
    /// Moves after the methods, so that whoever sees a generation sees its methods.
    generation: AtomicU64,
    /// What does not come from a file.
    tokens: Vec<String>,
    secrets: Vec<String>,
    open: bool,
    sources: Mutex<Vec<Source>>,
}

#[derive(Clone, Copy)]
enum Form {
    Token,
    Secrets,
    Devices,
}

enum Content {
    Token(String),
    Secrets(Vec<String>),
    Devices(Arc<BTreeMap<String, String>>),
}

/// A file, with its last good content.
struct Source {
    form: Form,
    flag: &'static str,
    path: PathBuf,
    good: Content,
    bytes: Vec<u8>,
    stamp: Stamp,
    complaint: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    inode: u64,
    length: u64,
}

// === impl Credentials ===

impl Credentials {
    /// Reads what flags, environment and files say.
    ///
    /// # Errors
    /// When nothing is configured, something is empty, or a file cannot be read.
    pub fn load(arguments: &AuthArguments) -> Result<Arc<Self>, AuthError> {
        // Read here, because clap would split the flag's values at commas as well.
        #[allow(clippy::disallowed_methods)]
        let variable = match std::env::var(SECRET_VARIABLE) {
            Ok(value) => Some(value),
            Err(std::env::VarError::NotPresent) => None,
            Err(std::env::VarError::NotUnicode(_)) => return Err(AuthError::NotText(SECRET_VARIABLE)),
        };
        Self::load_with(arguments, variable.as_deref())
    }

    fn load_with(arguments: &AuthArguments, secret_variable: Option<&str>) -> Result<Arc<Self>, AuthError> {
        let tokens: Vec<String> = arguments.device_token.iter().cloned().collect();
        if tokens.iter().any(String::is_empty) {
            return Err(AuthError::Empty("--device-token (or APOLLO_GATEWAY_TOKEN)"));
        }
        // As everywhere, a flag replaces its variable.
        let (secrets, origin) = if arguments.device_token_secret.is_empty() {
            let secrets =
                secret_variable.into_iter().flat_map(|value| value.split(',')).map(ToOwned::to_owned).collect();
            (secrets, SECRET_VARIABLE)
        } else {
            (arguments.device_token_secret.clone(), "--device-token-secret")
        };
        if secrets.iter().any(|secret: &String| secret.trim().is_empty()) {
            return Err(AuthError::Empty(origin));
        }
        let files = [
            (Form::Token, "--device-token-file", &arguments.device_token_file),
            (Form::Secrets, "--device-token-secret-file", &arguments.device_token_secret_file),
            (Form::Devices, "--device-tokens-file", &arguments.device_tokens_file),
        ];
        let mut sources = Vec::new();
        for (form, flag, path) in files {
            let Some(path) = path else { continue };
            if path.as_os_str().is_empty() {
                return Err(AuthError::Empty(flag));
            }
            if arguments.insecure_no_auth {
                return Err(AuthError::OpenAndClosed(flag));
            }
            sources.push(Source::open(form, flag, path)?);
        }
        if arguments.insecure_no_auth {
            match (tokens.is_empty(), secrets.is_empty()) {
                (true, true) => {
                    tracing::warn!("--insecure-no-auth: whoever reaches the device port can speak for any device")
                }
                (false, _) => return Err(AuthError::OpenAndClosed("--device-token (or APOLLO_GATEWAY_TOKEN)")),
                (_, false) => return Err(AuthError::OpenAndClosed(origin)),
            }
        } else if tokens.is_empty() && secrets.is_empty() && sources.is_empty() {
            return Err(AuthError::Nothing);
        }
        let credentials = Self {
            methods: RwLock::default(),
            generation: AtomicU64::new(1),
            tokens,
            secrets,
            open: arguments.insecure_no_auth,
            sources: Mutex::new(sources),
        };
        credentials.publish(&credentials.sources.lock());
        Ok(Arc::new(credentials))
    }

    /// Whether a token is good for a device.
    #[must_use]
    pub fn accepts(&self, device: &str, token: &[u8]) -> bool {
        let methods = self.methods.read().clone();
        methods.accepts(device, token)
    }

    /// The token that a device should present; `None` when it has none or needs none.
    #[must_use]
    pub fn token_for(&self, device: &str) -> Option<String> {
        self.methods.read().token_for(device)
    }

    /// Whether no token is asked for.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Moves whenever an earlier verdict may no longer hold.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reloads files within 10 s of a change. A broken new version is logged once and the old one stays.
    pub async fn watch_files(self: Arc<Self>, shutdown: CancellationToken) {
        if self.sources.lock().is_empty() {
            return shutdown.cancelled().await;
        }
        files::look_again(shutdown, move || self.reload()).await;
    }

    fn reload(&self) {
        let mut sources = self.sources.lock();
        let mut changed = false;
        for source in sources.iter_mut() {
            match source.refresh() {
                Ok(false) => {}
                Ok(true) => {
                    changed = true;
                    tracing::info!(flag = source.flag, file = %source.path.display(), "reloaded");
                }
                Err(error) => {
                    let complaint = error.to_string();
                    if source.complaint.as_deref() != Some(&complaint) {
                        tracing::error!(error = complaint, "the file's last good version stays in force");
                        source.complaint = Some(complaint);
                    }
                }
            }
        }
        if changed {
            self.publish(&sources);
        }
    }

    fn publish(&self, sources: &[Source]) {
        let mut methods = Methods {
            open: self.open,
            shared: self.tokens.clone(),
            secrets: self.secrets.clone(),
            ..Methods::default()
        };
        for source in sources {
            match &source.good {
                Content::Token(token) => methods.shared.push(token.clone()),
                Content::Secrets(secrets) => methods.secrets.extend_from_slice(secrets),
                Content::Devices(devices) => methods.devices = devices.clone(),
            }
        }
        *self.methods.write() = Arc::new(methods);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

// === impl Source ===

impl Source {
    fn open(form: Form, flag: &'static str, path: &Path) -> Result<Self, AuthError> {
        let (stamp, bytes) =
            read(path).map_err(|error| AuthError::Unreachable { flag, path: path.to_owned(), error })?;
        let good = Content::parse(form, &bytes).map_err(|error| AuthError::Unreadable {
            flag,
            path: path.to_owned(),
            error,
        })?;
        Ok(Self { form, flag, path: path.to_owned(), good, bytes, stamp, complaint: None })
    }

    /// Whether there is new content.
    fn refresh(&mut self) -> Result<bool, AuthError> {
        let unreachable = |error| AuthError::Unreachable { flag: self.flag, path: self.path.clone(), error };
        let stamp = Stamp::of(&std::fs::metadata(&self.path).map_err(unreachable)?);
        if self.complaint.is_none() && stamp == self.stamp && stamp.length > SMALL_FILE_BYTES {
            return Ok(false);
        }
        let (stamp, bytes) = read(&self.path).map_err(unreachable)?;
        if bytes == self.bytes {
            (self.stamp, self.complaint) = (stamp, None);
            return Ok(false);
        }
        self.good = Content::parse(self.form, &bytes).map_err(|error| AuthError::Unreadable {
            flag: self.flag,
            path: self.path.clone(),
            error,
        })?;
        (self.stamp, self.bytes, self.complaint) = (stamp, bytes, None);
        Ok(true)
    }
}

fn read(path: &Path) -> std::io::Result<(Stamp, Vec<u8>)> {
    // The stamp first: what changes in between is seen next time.
    let stamp = Stamp::of(&std::fs::metadata(path)?);
    Ok((stamp, std::fs::read(path)?))
}

// === impl Content ===

impl Content {
    fn parse(form: Form, bytes: &[u8]) -> Result<Self, Unreadable> {
        Ok(match form {
            Form::Token => Self::Token(read_token(bytes)?),
            Form::Secrets => Self::Secrets(read_secrets(bytes)?),
            Form::Devices => Self::Devices(Arc::new(read_devices(bytes)?)),
        })
    }
}

// === impl Stamp ===

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self { modified: (metadata.mtime(), metadata.mtime_nsec()), inode: metadata.ino(), length: metadata.len() }
    }
}

impl fmt::Debug for AuthArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthArguments")
            .field("device_token", &self.device_token.is_some())
            .field("device_token_secrets", &self.device_token_secret.len())
            .field("insecure_no_auth", &self.insecure_no_auth)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::token::derive;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        auth: AuthArguments,
    }

    fn load(flags: &[&str], variable: Option<&str>) -> Result<Arc<Credentials>, AuthError> {
        let command = Command::try_parse_from([&["test"], flags].concat()).unwrap();
        Credentials::load_with(&command.auth, variable)
    }

    #[test]
    fn nothing_or_empty_is_refused_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        std::fs::write(&empty, "\n").unwrap();
        let empty = empty.to_str().unwrap();
        let missing = folder.path().join("missing");
        let missing = missing.to_str().unwrap();
        for (flags, variable, says) in [
            (vec![], None, "no way for devices to authenticate"),
            (vec!["--device-token="], None, "--device-token (or APOLLO_GATEWAY_TOKEN) is empty"),
            (vec!["--device-token-secret="], None, "--device-token-secret is empty"),
            (vec!["--device-token-secret=a", "--device-token-secret="], None, "--device-token-secret is empty"),
            (vec![], Some(""), "APOLLO_GATEWAY_TOKEN_SECRET is empty"),
            (vec![], Some("a,,b"), "APOLLO_GATEWAY_TOKEN_SECRET is empty"),
            (vec!["--device-token-file", empty], None, "it is empty"),
            (vec!["--device-token-secret-file", empty], None, "it is empty"),
            (vec!["--device-tokens-file", empty], None, "it is empty"),
            (vec!["--device-tokens-file", missing], None, "No such file"),
            (
                vec!["--insecure-no-auth", "--device-token=x"],
                None,
                "--insecure-no-auth cannot be combined with --device-token",
            ),
            (vec!["--insecure-no-auth"], Some("x"), "cannot be combined with APOLLO_GATEWAY_TOKEN_SECRET"),
            (
                vec!["--insecure-no-auth", "--device-tokens-file", empty],
                None,
                "cannot be combined with --device-tokens-file",
            ),
        ] {
            let error = load(&flags, variable).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('\n'), "{flags:?}: {error}");
        }
        assert!(load(&["--insecure-no-auth"], None).unwrap().accepts("a", b""));
    }

    #[test]
    fn secrets_rotate() {
        let both =
            load(&["--device-token-secret=new,with comma", "--device-token-secret=old"], Some("variable")).unwrap();
        assert_eq!(both.token_for("a"), derive(b"new,with comma", "a"));
        assert!(both.accepts("a", derive(b"old", "a").unwrap().as_bytes()));
        assert!(!both.accepts("a", derive(b"variable", "a").unwrap().as_bytes()));
        let variable = load(&[], Some("new,old")).unwrap();
        assert_eq!(variable.token_for("a"), derive(b"new", "a"));
        assert!(variable.accepts("a", derive(b"old", "a").unwrap().as_bytes()));
        assert!(!format!("{variable:?}").contains("old"));
    }

    #[test]
    fn files_are_reloaded_and_broken_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (secrets, devices) = (folder.path().join("secrets"), folder.path().join("devices"));
        std::fs::write(&secrets, "one\n").unwrap();
        std::fs::write(&devices, "a: mine\n").unwrap();
        let flags = [
            "--device-token-secret-file",
            secrets.to_str().unwrap(),
            "--device-tokens-file",
            devices.to_str().unwrap(),
        ];
        let credentials = load(&flags, None).unwrap();
        let one = derive(b"one", "b").unwrap();
        assert!(credentials.accepts("b", one.as_bytes()) && credentials.accepts("a", b"mine"));

        let generation = credentials.generation();
        credentials.reload();
        assert_eq!(credentials.generation(), generation);

        // One file is replaced while the other breaks: the one counts, the other stays as it was.
        std::fs::write(&secrets, "two\none\n").unwrap();
        std::fs::write(&devices, "a: [").unwrap();
        credentials.reload();
        assert!(credentials.generation() > generation);
        assert_eq!(credentials.token_for("b"), derive(b"two", "b"));
        assert!(credentials.accepts("b", one.as_bytes()) && credentials.accepts("a", b"mine"));
        assert!(credentials.sources.lock()[1].complaint.is_some());

        std::fs::remove_file(&secrets).unwrap();
        std::fs::write(&devices, "a: \"\"\n").unwrap();
        credentials.reload();
        assert!(credentials.accepts("b", one.as_bytes()) && !credentials.accepts("a", b"mine"));

        // Back to what it was before it vanished: not a new version, no complaint any more.
        std::fs::write(&secrets, "two\none\n").unwrap();
        credentials.reload();
        assert!(credentials.sources.lock().iter().all(|source| source.complaint.is_none()));
    }
}
