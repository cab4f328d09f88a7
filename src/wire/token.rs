//! Pure: per-device tokens derived from one secret, so that a device never holds anything but its own.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The token of a device: lower-case hex of HMAC-SHA256(secret, device name) (RFC 2104).
///
/// `None` only when the secret is empty.
#[must_use]
pub fn derive(secret: &[u8], device: &str) -> Option<String> {
    if secret.is_empty() {
        return None;
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
    mac.update(device.as_bytes());
    Some(hex::encode(mac.finalize().into_bytes()))
}

/// Whether two tokens are equal, in a time that depends on their lengths alone.
#[must_use]
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0_u8, |differ, (x, y)| std::hint::black_box(differ | (x ^ y))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_4231_case_2() {
        assert_eq!(
            derive(b"Jefe", "what do ya want for nothing?").unwrap(),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(derive(b"", "tor1-01"), None);
    }

    #[test]
    fn equality() {
        assert!(equal(b"abc", b"abc"));
        assert!(!equal(b"abc", b"abd"));
        assert!(!equal(b"abc", b"ab"));
        assert!(equal(b"", b""));
    }
}
