//! Edge: the certificate of the device port: read from files, checked, and replaced while connections go on.

use super::files;
use super::validity::{Validity, validity};
use crate::runtime::clock;
use crate::wire::time;
use parking_lot::{Mutex, RwLock};
use prometheus::IntGauge;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

const CERT_FLAG: &str = "--tls-cert-file";
const KEY_FLAG: &str = "--tls-key-file";

/// What the device port proves itself with.
#[derive(Debug, clap::Args, Clone, Default)]
#[command(next_help_heading = "TLS of the device port")]
pub struct TlsArguments {
    /// Certificate in PEM, followed by those between it and its CA; with it the device port speaks HTTPS alone. Both
    /// files are reloaded within 10 s of a change
    #[arg(long, value_name = "FILE", value_parser = files::path)]
    pub tls_cert_file: Option<PathBuf>,
    /// Private key of the certificate in PEM, not encrypted
    #[arg(long, value_name = "FILE", value_parser = files::path)]
    pub tls_key_file: Option<PathBuf>,
}

/// Why there is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One flag without the other.
    #[error("--tls-cert-file and --tls-key-file go together, and {0} is missing")]
    Half(&'static str),
    /// A flag is there, but empty.
    #[error("{0} is empty")]
    Empty(&'static str),
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
    /// A file holds something else.
    #[error("{flag} {}: {reason}", .path.display())]
    Unreadable {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Each is good, but they do not belong together.
    #[error("--tls-key-file {}: the key is not the one of the certificate in {}", .key.display(), .cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// It is good, but not now, and it would take the place of one that counts.
    #[error("--tls-cert-file {}: the certificate {reason}, and the one in force counts", .path.display())]
    Untimely {
        /// The certificate's file.
        path: PathBuf,
        /// When it counts.
        reason: String,
    },
}

/// The certificate that is in force now.
pub struct Tls {
    files: Files,
    served: RwLock<Served>,
    last: Mutex<Last>,
}

#[derive(Debug, Clone)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
}

/// What new connections get. A new certificate is a new configuration: nothing of the old one's sessions lives on.
#[derive(Clone)]
struct Served {
    config: Arc<ServerConfig>,
    validity: Option<Validity>,
}

/// What was found at the last look.
struct Last {
    /// SHA-256 of both files as they are in force.
    good: [u8; 32],
    /// What was wrong, and whether that has been told.
    complaint: Option<(String, bool)>,
    /// Whether it has been told that the certificate in force has expired.
    expired: bool,
}

// === impl Tls ===

impl Tls {
    /// Reads the files; `None` when neither is named: plain HTTP.
    ///
    /// # Errors
    /// When only one is named, or what they hold is no certificate with its key.
    pub fn load(arguments: &TlsArguments) -> Result<Option<Arc<Self>>, TlsError> {
        let files = match (&arguments.tls_cert_file, &arguments.tls_key_file) {
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(TlsError::Half(KEY_FLAG)),
            (None, Some(_)) => return Err(TlsError::Half(CERT_FLAG)),
            (Some(cert), Some(key)) => Files { cert: cert.clone(), key: key.clone() },
        };
        for (flag, path) in [(CERT_FLAG, &files.cert), (KEY_FLAG, &files.key)] {
            if path.as_os_str().is_empty() {
                return Err(TlsError::Empty(flag));
            }
        }
        let read = files.read()?;
        let served = files.served(&read)?;
        let now = clock::unix_seconds();
        served.tell(&files, "the device port speaks HTTPS", now);
        Ok(Some(Arc::new(Self {
            last: Mutex::new(Last { good: read.digest(), complaint: None, expired: served.has_expired(now) }),
            served: RwLock::new(served),
            files,
        })))
    }

    /// What a new connection is to be served with.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.served.read().config.clone()
    }

    /// When the certificate that is in force counts.
    #[must_use]
    pub fn validity(&self) -> Option<Validity> {
        self.served.read().validity
    }

    /// Reloads the files within 10 s of a change and keeps the gauge at the end of the certificate that is in force,
    /// seconds since 1970. A new version that is broken, or does not count now while the old one does, is logged once
    /// and the old one stays. When the one in force expires, that is logged once, too.
    pub async fn watch_files(self: Arc<Self>, not_after: IntGauge, shutdown: CancellationToken) {
        let show = move |tls: &Self| not_after.set(tls.validity().map_or(0, |validity| validity.not_after));
        show(&self);
        files::look_again(shutdown, move || {
            self.reload();
            show(&self);
        })
        .await;
    }

    pub(super) fn reload(&self) {
        self.look(clock::unix_seconds());
    }

    /// A look at the files at this time; `true` when it tells that the certificate in force has expired.
    pub(super) fn look(&self, now: i64) -> bool {
        let mut last = self.last.lock();
        match self.refresh(&last.good, now) {
            Ok(None) => last.complaint = None,
            Ok(Some((good, served))) => {
                served.tell(&self.files, "reloaded the certificate of the device port; open connections go on", now);
                *last = Last { good, complaint: None, expired: served.has_expired(now) };
                *self.served.write() = served;
            }
            Err(error) => {
                let complaint = error.to_string();
                // Between the writing of one file and of the other they do not belong together. What is still so at
                // the next look is meant to be told.
                let (again, told) = match &last.complaint {
                    Some((before, told)) => (*before == complaint, *told),
                    None => (false, false),
                };
                if again && !told {
                    tracing::error!(error = complaint, "the last good certificate stays in force");
                }
                last.complaint = Some((complaint, again));
            }
        }
        let served = self.served.read();
        let expires = served.has_expired(now) && !last.expired;
        if expires {
            served.warn(&self.files, now);
            last.expired = true;
        }
        expires
    }

    /// After another look: whether what is wrong has been told; `None` when nothing is.
    #[cfg(test)]
    pub(super) fn told_after_reload(&self) -> Option<bool> {
        self.reload();
        self.last.lock().complaint.as_ref().map(|(_, told)| *told)
    }

    /// What is new and good.
    fn refresh(&self, good: &[u8; 32], now: i64) -> Result<Option<([u8; 32], Served)>, TlsError> {
        let read = self.files.read()?;
        let digest = read.digest();
        if digest == *good {
            return Ok(None);
        }
        let new = self.files.served(&read)?;
        match new.untimely(now) {
            // One that agents refuse is no worse than another.
            Some(reason) if self.served.read().untimely(now).is_none() => {
                Err(TlsError::Untimely { path: self.files.cert.clone(), reason })
            }
            _ => Ok(Some((digest, new))),
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).field("validity", &self.validity()).finish_non_exhaustive()
    }
}

// === impl Files ===

/// Both files as they are.
struct Read {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Read {
    fn digest(&self) -> [u8; 32] {
        let parts = [self.cert.as_slice(), self.key.as_slice()];
        parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(Sha256::digest(part))).finalize().into()
    }
}

impl Files {
    fn read(&self) -> Result<Read, TlsError> {
        let read = |flag, path: &Path| {
            std::fs::read(path).map_err(|error| TlsError::Unreachable { flag, path: path.to_owned(), error })
        };
        Ok(Read { cert: read(CERT_FLAG, &self.cert)?, key: read(KEY_FLAG, &self.key)? })
    }

    fn served(&self, Read { cert, key }: &Read) -> Result<Served, TlsError> {
        let bad_cert = |reason: String| TlsError::Unreadable { flag: CERT_FLAG, path: self.cert.clone(), reason };
        let bad_key = |reason: String| TlsError::Unreadable { flag: KEY_FLAG, path: self.key.clone(), reason };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<_, _>>()
            .map_err(|error| bad_cert(format!("it is not readable as PEM: {error}")))?;
        let Some(validity) = chain.first().map(|leaf| validity(leaf)) else {
            return Err(bad_cert("it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned()));
        };
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
            bad_key(match error {
                pem::Error::NoItemsFound => {
                    "it holds no private key in PEM (-----BEGIN PRIVATE KEY-----); an encrypted one cannot be used"
                        .to_owned()
                }
                error => format!("it is not readable as PEM: {error}"),
            })
        })?;
        let key = ring::sign::any_supported_type(&key)
            .map_err(|error| bad_key(format!("the key cannot be used (RSA, P-256, P-384 and Ed25519 can): {error}")))?;
        let certified = rustls::sign::CertifiedKey::new(chain, key);
        match certified.keys_match() {
            // Unknown would mean a kind of key that does not tell its public half; ring's do.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(TlsError::Mismatch { cert: self.cert.clone(), key: self.key.clone() });
            }
            Err(error) => return Err(bad_cert(format!("the certificate cannot be used: {error}"))),
        }
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| bad_cert(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // No resumption: connections last minutes, other replicas know nothing of this one's sessions, and a session
        // would outlive the certificate by which it was trusted.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Served { config: Arc::new(config), validity })
    }
}

// === impl Served ===

impl Served {
    fn tell(&self, files: &Files, what: &str, now: i64) {
        let file = files.cert.display();
        match self.validity {
            Some(Validity { not_after, .. }) => tracing::info!(%file, until = time::format(not_after), "{what}"),
            None => tracing::info!(%file, "{what}"),
        }
        self.warn(files, now);
    }

    /// Says so when it does not count.
    fn warn(&self, files: &Files, now: i64) {
        if let Some(reason) = self.untimely(now) {
            tracing::warn!(file = %files.cert.display(), "the certificate {reason}: agents refuse it");
        }
    }

    /// Why it does not count now; `None` as well when its dates cannot be read.
    fn untimely(&self, now: i64) -> Option<String> {
        let Validity { not_before, not_after } = self.validity.filter(|validity| !validity.counts(now))?;
        Some(if now < not_before {
            format!("does not count until {}", time::format(not_before))
        } else {
            format!("has expired at {}", time::format(not_after))
        })
    }

    fn has_expired(&self, now: i64) -> bool {
        self.validity.is_some_and(|validity| now > validity.not_after)
    }
}
