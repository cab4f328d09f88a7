//! Pure: who may speak for a device.

use crate::wire::name::is_device_name;
use crate::wire::token::{derive, equal};
use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;
use std::sync::Arc;

/// Every configured way to prove to be a device. A token passes when one of them accepts it for this device.
#[derive(Default)]
pub struct Methods {
    /// No token is asked for.
    pub open: bool,
    /// Tokens that are good for every device.
    pub shared: Vec<String>,
    /// Secrets that tokens are derived from. Each verifies, the first signs.
    pub secrets: Vec<String>,
    /// Tokens by device. A device named here is judged by this alone; an empty token accepts nothing.
    pub devices: Arc<BTreeMap<String, String>>,
}

/// What is wrong with a file of tokens or secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It holds nothing.
    #[error("it is empty")]
    Empty,
    /// It is not UTF-8.
    #[error("it is not UTF-8")]
    NotText,
    /// It is not `device: token` line by line. Where is said, what is not: it may be a token.
    #[error("it is no YAML map of device: token (line {line}, column {column})")]
    NotAMap {
        /// From 1; 0 when unknown.
        line: u64,
        /// From 1; 0 when unknown.
        column: u64,
    },
    /// A key is no device name.
    #[error("{0:?} is no device name")]
    NotADevice(String),
}

// === impl Methods ===

impl Methods {
    /// Whether a token is good for a device. The time taken tells nothing about the right token.
    #[must_use]
    pub fn accepts(&self, device: &str, token: &[u8]) -> bool {
        if self.open {
            return true;
        }
        if token.is_empty() {
            return false;
        }
        if let Some(own) = self.devices.get(device) {
            return !own.is_empty() && equal(own.as_bytes(), token);
        }
        // All are compared, whichever fits.
        let shared = self.shared.iter().fold(false, |fits, shared| fits | equal(shared.as_bytes(), token));
        self.secrets
            .iter()
            .filter_map(|secret| derive(secret.as_bytes(), device))
            .fold(shared, |fits, derived| fits | equal(derived.as_bytes(), token))
    }

    /// The token that a device should present; `None` when it has none or needs none.
    #[must_use]
    pub fn token_for(&self, device: &str) -> Option<String> {
        if let Some(own) = self.devices.get(device) {
            return (!own.is_empty()).then(|| own.clone());
        }
        match self.secrets.first() {
            Some(secret) => derive(secret.as_bytes(), device),
            None => self.shared.first().cloned(),
        }
    }
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Methods")
            .field("open", &self.open)
            .field("devices", &self.devices.len())
            .finish_non_exhaustive()
    }
}

/// Whether two byte strings are equal, in a time that depends on their lengths alone; eight bytes at a time,
/// for long ones.
#[must_use]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let differ = |differ: u64, (x, y): (&[u8; 8], &[u8; 8])| {
        black_box(differ | (u64::from_ne_bytes(*x) ^ u64::from_ne_bytes(*y)))
    };
    a.len() == b.len() && (a.iter().zip(b).fold(0, differ) == 0) & equal(a_rest, b_rest)
}

/// Reads a file that holds one token.
///
/// # Errors
/// When it is empty or not text.
pub fn read_token(content: &[u8]) -> Result<String, Unreadable> {
    let text = std::str::from_utf8(content).map_err(|_| Unreadable::NotText)?.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err(Unreadable::Empty) } else { Ok(text.to_owned()) }
}

/// Reads a file that holds one secret a line; blank lines do not count.
///
/// # Errors
/// When it holds none or is not text.
pub fn read_secrets(content: &[u8]) -> Result<Vec<String>, Unreadable> {
    let text = std::str::from_utf8(content).map_err(|_| Unreadable::NotText)?;
    let secrets: Vec<String> = text.lines().filter(|line| !line.trim().is_empty()).map(ToOwned::to_owned).collect();
    if secrets.is_empty() { Err(Unreadable::Empty) } else { Ok(secrets) }
}

/// Reads a YAML map of `device: token`.
///
/// # Errors
/// When it is no such map, names a device twice, or a name is none.
pub fn read_devices(content: &[u8]) -> Result<BTreeMap<String, String>, Unreadable> {
    let text = std::str::from_utf8(content).map_err(|_| Unreadable::NotText)?;
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Err(Unreadable::Empty);
    }
    // Neither budget nor snippet: a large fleet is no attack, and a snippet would show tokens in the log.
    let options = serde_saphyr::options! { budget: None, with_snippet: false };
    let devices: BTreeMap<String, Option<String>> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let at = error.location();
            Unreadable::NotAMap { line: at.map_or(0, |at| at.line()), column: at.map_or(0, |at| at.column()) }
        })?;
    if let Some(name) = devices.keys().find(|name| !is_device_name(name.as_bytes())) {
        return Err(Unreadable::NotADevice(name.clone()));
    }
    Ok(devices.into_iter().map(|(device, token)| (device, token.unwrap_or_default())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn methods() -> Methods {
        Methods {
            open: false,
            shared: vec!["common".into()],
            secrets: vec!["new".into(), "old".into()],
            devices: Arc::new(read_devices(b"own: mine\nrevoked: \"\"\ngone:\n").unwrap()),
        }
    }

    #[test]
    fn one_method_suffices() {
        let methods = methods();
        let of = |secret: &str, device| derive(secret.as_bytes(), device).unwrap();
        for (device, token, accepted) in [
            ("a", "common".to_owned(), true),
            ("a", of("new", "a"), true),
            ("a", of("old", "a"), true),
            ("a", of("new", "b"), false),
            ("a", of("new", "a").to_uppercase(), false),
            ("a", of("other", "a"), false),
            ("a", String::new(), false),
            ("a", "new".into(), false),
            ("own", "mine".into(), true),
            ("own", "common".into(), false),
            ("own", of("new", "own"), false),
            ("a", "mine".into(), false),
            ("revoked", String::new(), false),
            ("revoked", "common".into(), false),
            ("gone", of("new", "gone"), false),
        ] {
            assert_eq!(methods.accepts(device, token.as_bytes()), accepted, "{device} {token}");
        }
        assert!(!Methods::default().accepts("a", b""));
        assert!(Methods { open: true, ..Methods::default() }.accepts("a", b""));
    }

    #[test]
    fn the_first_secret_signs() {
        let methods = methods();
        assert_eq!(methods.token_for("a"), derive(b"new", "a"));
        assert_eq!(methods.token_for("own").as_deref(), Some("mine"));
        assert_eq!(methods.token_for("revoked"), None);
        assert_eq!(Methods { shared: vec!["s".into()], ..Methods::default() }.token_for("a").as_deref(), Some("s"));
        assert_eq!(Methods::default().token_for("a"), None);
    }

    #[test]
    fn files() {
        assert_eq!(read_token(b"abc\r\n"), Ok("abc".into()));
        assert_eq!(read_token(b"\n"), Err(Unreadable::Empty));
        assert_eq!(read_token(b"\xff"), Err(Unreadable::NotText));
        assert_eq!(read_secrets(b"a\n\n b c\r\n"), Ok(vec!["a".into(), " b c".into()]));
        assert_eq!(read_secrets(b" \n"), Err(Unreadable::Empty));
        assert_eq!(read_devices(b"# nobody yet\n\n"), Err(Unreadable::Empty));
        assert_eq!(read_devices(b"{}").map(|d| d.len()), Ok(0));
        assert_eq!(read_devices(b"Tor1: x"), Err(Unreadable::NotADevice("Tor1".into())));
        assert_eq!(
            read_devices(b"a: 0123456\nb: 1e3").unwrap(),
            BTreeMap::from([("a".into(), "0123456".into()), ("b".into(), "1e3".into())])
        );
        for text in ["- a", "a: [b]", "a: hunter2\na: hunter3", "hunter2", "a: {b: hunter2}"] {
            let error = read_devices(text.as_bytes()).unwrap_err();
            assert!(matches!(error, Unreadable::NotAMap { .. }), "{text}: {error}");
            assert!(!error.to_string().contains("hunter"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn same_is_equality(a in prop::collection::vec(0_u8..2, 0..20), b in prop::collection::vec(0_u8..2, 0..20), at in 0_usize..20) {
            prop_assert_eq!(same(&a, &b), a == b);
            let mut other = a.clone();
            prop_assert!(same(&a, &other));
            if let Some(byte) = other.get_mut(at) {
                *byte ^= 0x80;
                prop_assert!(!same(&a, &other));
            }
        }

        #[test]
        fn nothing_panics_and_nothing_leaks(content in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = (read_token(&content), read_secrets(&content), read_devices(&content));
        }

        #[test]
        fn only_the_right_token_passes(token in "\\PC{0,70}", device in "[a-z]{1,8}") {
            let methods = methods();
            let right = [Some("common".to_owned()), derive(b"new", &device), derive(b"old", &device)];
            prop_assert_eq!(methods.accepts(&device, token.as_bytes()), right.contains(&Some(token)));
        }
    }
}
