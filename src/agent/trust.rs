//! Edge: which CAs a gateway's certificate is checked against: a file of them, or the system's; those of servers that
//! artifacts come from: the system's, and a file of further ones.

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsConnector;

/// CAs, read when they are needed first and again when a gateway is not trusted.
pub struct Trust {
    file: Option<PathBuf>,
    whose: Whose,
    known: RefCell<Option<Known>>,
}

/// Whom the CAs vouch for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Gateways: the file's CAs and no others, or the system's if there is no file.
    Gateways,
    /// Servers of artifacts, which are anybody's: the system's CAs and the file's.
    Artifacts,
}

/// CAs as they were when they were read.
#[derive(Clone)]
pub struct Known {
    /// Makes TLS of a connection, and checks whom it leads to.
    pub connector: TlsConnector,
    /// SHA-256 of all certificates.
    digest: [u8; 32],
}

/// Why there are no CAs.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read.
    #[error("{0} {1}: {2}")]
    Unreachable(Whose, PathBuf, std::io::Error),
    /// The file holds something else.
    #[error("{0} {1}: {2}")]
    Unreadable(Whose, PathBuf, String),
    /// The system has none.
    #[error("this device has no CA certificates of its own, so nobody can be trusted: set {0}")]
    NoSystemRoots(Whose),
    /// The library refuses.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

// === impl Trust ===

impl Trust {
    /// The CAs in a file, which is read at once; without one the system's, which are read when a gateway wants them.
    ///
    /// # Errors
    /// When the file cannot be read, or holds anything but certificates that can be a CA's.
    pub fn new(file: Option<PathBuf>) -> Result<Self, TrustError> {
        let known = file.as_deref().map(|path| Known::read(Whose::Gateways, path)).transpose()?;
        Ok(Self { file, whose: Whose::Gateways, known: RefCell::new(known) })
    }

    /// The system's CAs and those in a file, all read when a server wants them.
    #[must_use]
    pub fn of_artifacts(file: Option<PathBuf>) -> Self {
        Self { file, whose: Whose::Artifacts, known: RefCell::new(None) }
    }

    /// Whether the file, if there is one, can be read.
    ///
    /// # Errors
    /// It cannot, or holds anything but certificates that can be a CA's.
    pub fn check(&self) -> Result<(), TrustError> {
        let read = self.file.as_deref().map(|path| add(self.whose, path, &mut RootCertStore::empty()));
        read.transpose().map(|_| ())
    }

    /// The CAs that count now.
    ///
    /// # Errors
    /// When the system's CAs are needed and there are none.
    pub fn known(&self) -> Result<Known, TrustError> {
        if let Some(known) = &*self.known.borrow() {
            return Ok(known.clone());
        }
        let known = self.read()?;
        *self.known.borrow_mut() = Some(known.clone());
        Ok(known)
    }

    /// Reads the CAs again, since with `failed` a gateway was not trusted; `true` when they are others than those now,
    /// be it that somebody else has read them again in the meantime.
    ///
    /// # Errors
    /// When there are none, or they cannot be read, and `failed` are those that are known; these stay.
    pub fn reload(&self, failed: &Known) -> Result<bool, TrustError> {
        let new = self.read();
        let mut known = self.known.borrow_mut();
        let differ = |known: &Option<Known>| known.as_ref().is_some_and(|known| known.digest != failed.digest);
        match new {
            // The connector is kept while the CAs are the same.
            Ok(new) if known.as_ref().is_none_or(|known| known.digest != new.digest) => *known = Some(new),
            Err(error) if !differ(&known) => return Err(error),
            Ok(_) | Err(_) => {}
        }
        Ok(differ(&known))
    }

    fn read(&self) -> Result<Known, TrustError> {
        match (&self.file, self.whose) {
            (Some(path), Whose::Gateways) => Known::read(self.whose, path),
            (file, whose) => Known::system(whose, file.as_deref()),
        }
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.whose) {
            (Some(path), Whose::Gateways) => write!(f, "{}", path.display()),
            (Some(path), Whose::Artifacts) => write!(f, "the system's CA certificates and {}", path.display()),
            (None, _) => f.write_str("the system's CA certificates"),
        }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateways => "--gateway-ca-file (APOLLO_GATEWAY_CA_FILE)",
            Self::Artifacts => "--artifact-ca-file (APOLLO_AGENT_ARTIFACT_CA_FILE)",
        })
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("file", &self.file).finish_non_exhaustive()
    }
}

// === impl Known ===

impl Known {
    fn read(whose: Whose, path: &Path) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        let certificates = add(whose, path, &mut roots)?;
        Self::new(&certificates, roots)
    }

    fn system(whose: Whose, file: Option<&Path>) -> Result<Self, TrustError> {
        let mut certificates = rustls_native_certs::load_native_certs().certs;
        let mut roots = RootCertStore::empty();
        // Distributions ship oddities among theirs.
        roots.add_parsable_certificates(certificates.iter().cloned());
        if let Some(path) = file {
            certificates.extend(add(whose, path, &mut roots)?);
        }
        if roots.is_empty() {
            return Err(TrustError::NoSystemRoots(whose));
        }
        Self::new(&certificates, roots)
    }

    fn new(certificates: &[CertificateDer<'_>], roots: RootCertStore) -> Result<Self, TrustError> {
        let digest = certificates.iter().fold(Sha256::new(), |hash, one| hash.chain_update(Sha256::digest(one)));
        Ok(Self { digest: digest.finalize().into(), connector: TlsConnector::from(Arc::new(config(roots)?)) })
    }
}

/// Adds the CAs of a file, all or none of them.
fn add(whose: Whose, path: &Path, roots: &mut RootCertStore) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let bad = |reason: String| TrustError::Unreadable(whose, path.to_owned(), reason);
    let bytes = std::fs::read(path).map_err(|error| TrustError::Unreachable(whose, path.to_owned(), error))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(format!("it is not readable as PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(bad("it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned()));
    }
    for (number, certificate) in (1..).zip(&certificates) {
        // What somebody wrote down should be right as a whole.
        roots.add(certificate.clone()).map_err(|error| bad(format!("certificate {number} cannot be used: {error}")))?;
    }
    Ok(certificates)
}

fn config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Each connection checks the certificate anew, so that a change of it, or of the CAs, counts from the next one on.
    config.resumption = Resumption::disabled();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    fn ca() -> String {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn a_file_of_several_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (old, new) = (ca(), ca());
        std::fs::write(&file, format!("a comment\n{old}")).unwrap();
        let trust = Trust::new(Some(file.path().to_owned())).unwrap();
        let reload = || trust.reload(&trust.known().unwrap());
        assert!(!reload().unwrap());
        std::fs::write(&file, format!("{new}{old}")).unwrap();
        assert!(reload().unwrap() && !reload().unwrap());
        std::fs::write(&file, "").unwrap();
        assert!(reload().unwrap_err().to_string().contains("no certificate"));
        std::fs::remove_file(&file).unwrap();
        assert!(reload().is_err() && trust.known().is_ok());
    }

    #[test]
    fn both_of_two_that_failed_with_the_old_ones_try_the_new_ones() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, ca()).unwrap();
        let trust = Trust::new(Some(file.path().to_owned())).unwrap();
        let (one, other) = (trust.known().unwrap(), trust.known().unwrap());
        std::fs::write(&file, ca()).unwrap();
        assert!(trust.reload(&one).unwrap());
        assert!(trust.reload(&other).unwrap());
        // Nor does it matter that the file is gone again.
        std::fs::remove_file(&file).unwrap();
        assert!(trust.reload(&other).unwrap());
        assert!(trust.reload(&trust.known().unwrap()).is_err());
    }

    #[test]
    fn what_is_wrong_with_the_file_is_said_in_one_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for (content, says) in [
            (String::new(), "no certificate in PEM"),
            ("nonsense".to_owned(), "no certificate in PEM"),
            (key.to_owned(), "no certificate in PEM"),
            ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n".to_owned(), "not readable as PEM"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n".to_owned(), "not readable as PEM"),
            (
                format!("{}-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", ca()),
                "certificate 2 cannot be used",
            ),
        ] {
            std::fs::write(&file, content).unwrap();
            let line = Trust::new(Some(file.path().to_owned())).unwrap_err().to_string();
            assert!(line.contains(says) && line.contains("--gateway-ca-file") && !line.contains('\n'), "{line}");
        }
        let line = Trust::new(Some("/nowhere/ca".into())).unwrap_err().to_string();
        assert!(line.contains("/nowhere/ca: No such file"), "{line}");
    }
}
