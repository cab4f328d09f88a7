//! Pure: what replicas sign, so that a third party can neither say anything nor repeat it elsewhere.
//!
//! HMAC-SHA256 (RFC 2104, FIPS 180-4) over lines of text. Nothing that is signed can hold a line break, so no two
//! messages have the same lines. A request's lines begin otherwise than an answer's, so none stands for the other.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::fmt::{self, Write};

/// Shortest secret, bytes.
pub const MIN_SECRET_BYTES: usize = 16;

const REQUEST: &str = "praetor-peer-1";
const ANSWER: &str = "praetor-peer-1-answer";

/// What all replicas share.
#[derive(Clone)]
pub struct PeerKey {
    mac: Hmac<Sha256>,
}

/// A SHA-256 of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyHash([u8; 32]);

/// An HMAC-SHA256.
#[derive(Debug, Clone, Copy)]
pub struct Signature([u8; 32]);

/// What a request says besides its body; all of it is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Version of what is said between replicas.
    pub protocol: u32,
    /// How many replicas it has come through, the sender included: 1.
    pub hop: u32,
    /// The sender's identity in printable ASCII; for people.
    pub sender: String,
    /// The start of the sender's process; never 0.
    pub incarnation: u64,
    /// The start of the process that is meant.
    pub to: u64,
    /// The receiver's own clock as the sender last heard it, milliseconds.
    pub time_ms: u64,
    /// Grows from request to request of a process; never 0.
    pub sequence: u64,
    /// Of the body.
    pub digest: BodyHash,
}

/// What an answer says besides its body; all of it is signed, together with the signature of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The start of the process that answers.
    pub incarnation: u64,
    /// Its clock, milliseconds.
    pub time_ms: u64,
    /// Of the body.
    pub digest: BodyHash,
}

// === impl PeerKey ===

impl PeerKey {
    /// The key of a secret; none when the secret is shorter than [`MIN_SECRET_BYTES`].
    #[must_use]
    pub fn new(secret: &[u8]) -> Option<Self> {
        if secret.len() < MIN_SECRET_BYTES {
            return None;
        }
        Some(Self { mac: Hmac::new_from_slice(secret).ok()? })
    }

    /// Signs a request.
    #[must_use]
    pub fn sign(&self, method: &str, path: &str, claims: &Claims) -> Signature {
        Signature(self.request(method, path, claims).finalize().into_bytes().into())
    }

    /// Whether a request is signed so; takes the same time wherever the difference is.
    #[must_use]
    pub fn verifies(&self, method: &str, path: &str, claims: &Claims, signature: &Signature) -> bool {
        self.request(method, path, claims).verify_slice(&signature.0).is_ok()
    }

    /// Signs the answer to a request.
    #[must_use]
    pub fn sign_reply(&self, request: &Signature, reply: &Reply) -> Signature {
        Signature(self.reply(request, reply).finalize().into_bytes().into())
    }

    /// Whether the answer to a request is signed so.
    #[must_use]
    pub fn verifies_reply(&self, request: &Signature, reply: &Reply, signature: &Signature) -> bool {
        self.reply(request, reply).verify_slice(&signature.0).is_ok()
    }

    fn request(&self, method: &str, path: &str, claims: &Claims) -> Hmac<Sha256> {
        let Claims { protocol, hop, sender, incarnation, to, time_ms, sequence, digest } = claims;
        self.over(format_args!(
            "{REQUEST}\n{method}\n{path}\n{digest}\n{protocol}\n{hop}\n{sender}\n{incarnation:016x}\n{to:016x}\n{time_ms}\n{sequence}\n"
        ))
    }

    fn reply(&self, request: &Signature, reply: &Reply) -> Hmac<Sha256> {
        let Reply { status, incarnation, time_ms, digest } = reply;
        self.over(format_args!("{ANSWER}\n{request}\n{status}\n{time_ms}\n{incarnation:016x}\n{digest}\n"))
    }

    fn over(&self, lines: fmt::Arguments) -> Hmac<Sha256> {
        struct Feed(Hmac<Sha256>);
        impl Write for Feed {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.update(text.as_bytes());
                Ok(())
            }
        }
        let mut feed = Feed(self.mac.clone());
        // Neither the feed nor the values that are written ever fail.
        let _ = feed.write_fmt(lines);
        feed.0
    }
}

/// Never shows the key.
impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerKey")
    }
}

// === impl BodyHash ===

impl BodyHash {
    /// Of this body.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }

    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        digits(text).map(Self)
    }
}

impl fmt::Display for BodyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

// === impl Signature ===

impl Signature {
    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        digits(text).map(Self)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

fn digits(text: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claims() -> impl Strategy<Value = Claims> {
        (0..3_u32, 0..3_u32, "[ -~]{0,3}", 0..3_u64, 0..3_u64, 0..3_u64, 0..3_u64, "[ab]?").prop_map(
            |(protocol, hop, sender, incarnation, to, time_ms, sequence, body)| {
                let digest = BodyHash::of(body.as_bytes());
                Claims { protocol, hop, sender, incarnation, to, time_ms, sequence, digest }
            },
        )
    }

    #[test]
    fn secrets_are_long_and_never_shown() {
        assert!(PeerKey::new(b"0123456789abcde").is_none());
        let key = PeerKey::new(b"0123456789abcdef").unwrap();
        assert_eq!(format!("{key:?}"), "PeerKey");
    }

    #[test]
    fn the_form_is_fixed() {
        // Replicas of two versions of this program must understand each other: computed with `openssl dgst -hmac`.
        let key = PeerKey::new(b"0123456789abcdef").unwrap();
        let digest = BodyHash::of(b"body");
        let claims = Claims {
            protocol: 1,
            hop: 1,
            sender: "praetor-0".into(),
            incarnation: 10,
            to: 11,
            time_ms: 1_234,
            sequence: 5,
            digest,
        };
        let signature = key.sign("POST", "/v1/peer/presence", &claims);
        assert_eq!(signature.to_string(), "1964ad55a8d98e56efe925b1af0599fdf2902ffe6f2917163682a8e023088baf");
        let reply = Reply { status: 200, incarnation: 11, time_ms: 2_000, digest: BodyHash::of(b"") };
        let answer = key.sign_reply(&signature, &reply);
        assert_eq!(answer.to_string(), "8dfd1392091dc0bd71d3cdba11844f112718f00bf56fcd1d2cebb099f19e5867");
        assert!(Signature::parse(b"12").is_none() && Signature::parse(&[b'g'; 64]).is_none());
    }

    proptest! {
        #[test]
        fn everything_is_signed(a in claims(), b in claims(), paths in ("/[ab]", "/[ab]"), methods in ("GET|POST", "GET|POST")) {
            let key = PeerKey::new(&[7; 16]).unwrap();
            let signature = key.sign(&methods.0, &paths.0, &a);
            let same = a == b && paths.0 == paths.1 && methods.0 == methods.1;
            prop_assert!(key.verifies(&methods.0, &paths.0, &a, &signature));
            prop_assert_eq!(key.verifies(&methods.1, &paths.1, &b, &signature), same);
            prop_assert!(!PeerKey::new(&[8; 16]).unwrap().verifies(&methods.0, &paths.0, &a, &signature));
        }

        #[test]
        fn every_part_of_an_answer_is_signed(a in any::<(u16, u64, u64, bool, bool)>(), b in any::<(u16, u64, u64, bool, bool)>(), part in 0..6) {
            let key = PeerKey::new(&[7; 16]).unwrap();
            // Two answers that differ in one part, or in none.
            let (mut b, mut other) = (b, a);
            match part { 0 => other.0 = b.0, 1 => other.1 = b.1, 2 => other.2 = b.2, 3 => other.3 = b.3, 4 => other.4 = b.4, _ => {} }
            std::mem::swap(&mut b, &mut other);
            let reply = |(status, incarnation, time_ms, body, _): (u16, u64, u64, bool, bool)| Reply {
                status, incarnation, time_ms, digest: BodyHash::of(&[u8::from(body)]),
            };
            let request = |(.., other): (u16, u64, u64, bool, bool)| Signature([u8::from(other); 32]);
            let signature = key.sign_reply(&request(a), &reply(a));
            prop_assert_eq!(key.verifies_reply(&request(b), &reply(b), &signature), a == b);
        }
    }
}
