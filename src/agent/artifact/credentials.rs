//! Pure: credentials of registries, from a docker `config.json`.

use super::reference::HUB_HOST;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt;

/// What Docker Hub's entry is called.
const HUB_KEY: &str = "index.docker.io";

/// What a file says of one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Nothing: ask without credentials.
    Nothing,
    /// User and password.
    Basic(Basic),
    /// They are with a helper program, or a kind of token, that this agent does not use.
    Elsewhere(&'static str),
}

/// User and password. Not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Basic {
    /// `user:password` in base64, as the header has it (RFC 7617).
    encoded: String,
}

/// The file is of no use. Nothing of it is quoted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Not JSON of that kind.
    #[error("it is no docker config.json (line {0})")]
    Unreadable(usize),
    /// `auth` is not what it should be.
    #[error("auth of {0} is not base64 of USER:PASSWORD")]
    Auth(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    identitytoken: Option<String>,
}

// === impl Basic ===

impl Basic {
    /// From `user:password`.
    #[must_use]
    pub fn new(user_and_password: &str) -> Self {
        Self { encoded: STANDARD.encode(user_and_password) }
    }

    /// Value of the `Authorization` header.
    #[must_use]
    pub fn header(&self) -> String {
        format!("Basic {}", self.encoded)
    }
}

impl fmt::Debug for Basic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Basic")
    }
}

/// What `config` says of `registry`, which is `HOST[:PORT]`. Keys may be URLs, as docker has written them.
///
/// # Errors
/// The file as a whole, or this registry's entry, cannot be read.
pub fn find(config: &[u8], registry: &str) -> Result<Known, CredentialsError> {
    let config: Config = serde_json::from_slice(config).map_err(|error| CredentialsError::Unreadable(error.line()))?;
    let wanted = if registry == HUB_HOST { HUB_KEY } else { registry };
    let entry = config.auths.iter().find(|(key, _)| place(key).eq_ignore_ascii_case(wanted)).map(|(_, entry)| entry);
    let helper = || {
        let by_name = config.cred_helpers.keys().any(|key| place(key).eq_ignore_ascii_case(wanted));
        by_name || config.creds_store.as_ref().is_some_and(|store| !store.is_empty())
    };
    let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    if let Some(entry) = entry {
        if let Some(auth) = text(&entry.auth) {
            let decoded = STANDARD.decode(auth.trim()).ok().filter(|plain| plain.contains(&b':'));
            let encoded = decoded.map(|plain| STANDARD.encode(plain));
            return encoded
                .map(|encoded| Known::Basic(Basic { encoded }))
                .ok_or_else(|| CredentialsError::Auth(registry.to_owned()));
        }
        if let (Some(user), Some(password)) = (text(&entry.username), text(&entry.password)) {
            return Ok(Known::Basic(Basic::new(&format!("{user}:{password}"))));
        }
        if text(&entry.identitytoken).is_some() {
            return Ok(Known::Elsewhere("an identity token, which this agent does not use: log in with a password"));
        }
    }
    Ok(if helper() {
        Known::Elsewhere("a credential helper, which this agent does not run: write them into auths")
    } else {
        Known::Nothing
    })
}

/// Host and port of a key such as `https://index.docker.io/v1/`.
fn place(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"auths": {
        "registry.example:5000": {"auth": "bWU6c2VjcmV0"},
        "https://index.docker.io/v1/": {"username": "hub", "password": "secret"},
        "http://old.example/v2/": {"auth": "bWU6OmE="},
        "broken.example": {"auth": "bWU="},
        "token.example": {"auth": "", "identitytoken": "secret"},
        "helped.example": {}},
        "credHelpers": {"helped.example": "ecr-login"}}"#;

    #[test]
    fn each_registry_has_its_own() {
        let header = |registry: &str| match find(CONFIG.as_bytes(), registry).unwrap() {
            Known::Basic(basic) => basic.header(),
            other => panic!("{other:?}"),
        };
        assert_eq!(header("registry.example:5000"), "Basic bWU6c2VjcmV0");
        assert_eq!(header("Registry.Example:5000"), "Basic bWU6c2VjcmV0");
        assert_eq!(header(HUB_HOST), Basic::new("hub:secret").header());
        assert_eq!(header("old.example"), Basic::new("me::a").header());
        for none in ["registry.example", "registry.example:5001", "example", ""] {
            assert_eq!(find(CONFIG.as_bytes(), none), Ok(Known::Nothing), "{none}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_said_without_its_secrets() {
        for (registry, says) in [("token.example", "identity token"), ("helped.example", "credential helper")] {
            assert!(matches!(find(CONFIG.as_bytes(), registry), Ok(Known::Elsewhere(why)) if why.contains(says)));
        }
        let store = br#"{"credsStore": "pass"}"#;
        assert!(matches!(find(store, "a"), Ok(Known::Elsewhere(_))));
        let broken = find(CONFIG.as_bytes(), "broken.example").unwrap_err().to_string();
        assert!(broken.contains("auth of broken.example") && !broken.contains("bWU"), "{broken}");
        assert_eq!(find(b"{\n\"auths\": secret}", "a"), Err(CredentialsError::Unreadable(2)));
        assert!(!format!("{:?}", Basic::new("me:secret")).contains("c2"));
    }
}
