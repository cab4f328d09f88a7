//! A CA of the test's own.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// Signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, both PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// The certificate as it goes over the wire.
    pub der: Vec<u8>,
}

/// From 2024 to 2049.
pub const GOOD: (i32, i32) = (2024, 2049);
/// Until the end of 2020.
pub const EXPIRED: (i32, i32) = (2019, 2021);
/// As seen by a device whose clock stands at 1970.
pub const FUTURE: (i32, i32) = (2048, 2049);

impl Authority {
    /// A new CA. Two of one name have different keys.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its own certificate, PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Its own certificate and key, as some mistake it for a server's.
    pub fn itself(&self) -> Identity {
        Identity { cert: self.0.pem(), key: self.0.key().serialize_pem(), der: self.0.der().to_vec() }
    }

    /// A certificate for names or addresses, from the first day of a year to that of another.
    pub fn issue(&self, names: &[&str], (from, to): (i32, i32)) -> Identity {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "a gateway");
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        Identity { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().to_vec() }
    }

    /// A good one for this machine.
    pub fn local(&self) -> Identity {
        self.issue(&["127.0.0.1", "localhost"], GOOD)
    }
}
