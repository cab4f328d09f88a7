//! Pure: images: what a spec calls them, who may have them, and why they cannot be had.

use crate::agent::artifact::reference::is_digest;
use crate::agent::artifact::{FetchError, Stage};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;

/// The registry of names that name none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// By what name Docker keeps the credentials of that registry.
const DEFAULT_REGISTRY_ALIAS: &str = "index.docker.io";

/// An image as a spec names it: `[oci://]REPOSITORY[:TAG][@DIGEST]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Without tag and digest, with the registry if there is one.
    pub repository: String,
    /// `latest` if it has none.
    pub tag: String,
    /// `sha256:` and 64 hexadecimal digits: then the tag means nothing.
    pub digest: Option<String>,
}

/// Of the answer to `GET /images/{name}/json`, and of the lists.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Image {
    /// `sha256:…`, of its configuration or manifest.
    pub id: String,
    /// `REPOSITORY:TAG`
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    /// `REPOSITORY@sha256:…`
    #[serde(default)]
    pub repo_digests: Option<Vec<String>>,
}

/// A line of the answer to a pull.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Why it has failed.
    #[serde(default)]
    pub error: Option<String>,
    /// For people, but for the line `Digest: sha256:…`.
    #[serde(default)]
    pub status: Option<String>,
}

/// A docker config file, what is read of it.
#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Login>,
}

#[derive(Deserialize)]
struct Login {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

// === impl Reference ===

impl Reference {
    /// Reads the `url` of an artifact of type oci.
    ///
    /// # Errors
    /// Reason and a sentence for the operator.
    pub fn parse(url: &str) -> Result<Self, FetchError> {
        let bad = |why: &str| failed(Stage::Download, "BadReference", format!("artifact.url: {why}"));
        let text = url.strip_prefix("oci://").unwrap_or(url);
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) if is_digest(digest) => (name, Some(digest.to_owned())),
            Some(_) => return Err(bad("after '@' there must be sha256: and 64 lower-case hexadecimal digits")),
            None => (text, None),
        };
        let path = name.rfind('/').map_or(0, |slash| slash + 1);
        let (repository, tag) = match name[path..].find(':') {
            Some(colon) => (&name[..path + colon], &name[path + colon + 1..]),
            None => (name, "latest"),
        };
        let sound = |text: &str, more: &[u8]| text.bytes().all(|c| c.is_ascii_alphanumeric() || more.contains(&c));
        let reference = Self { repository: repository.to_owned(), tag: tag.to_owned(), digest };
        // A registry's name may hold an IPv6 address.
        if repository.is_empty() || !sound(repository, b"._-/:[]") || repository.split('/').any(str::is_empty) {
            return Err(bad("this is no name of an image"));
        }
        if reference.path().bytes().any(|c| c.is_ascii_uppercase() || matches!(c, b':' | b'[' | b']')) {
            return Err(bad("the name of an image is in lower case"));
        }
        if tag.is_empty() || tag.len() > 128 || !sound(tag, b"._-") {
            return Err(bad("after ':' there must be a tag"));
        }
        Ok(reference)
    }

    /// Host and port of the registry.
    #[must_use]
    pub fn registry(&self) -> &str {
        match self.repository.split_once('/') {
            Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
            _ => DEFAULT_REGISTRY,
        }
    }

    /// The repository without the registry.
    #[must_use]
    pub fn path(&self) -> &str {
        self.repository
            .strip_prefix(self.registry())
            .and_then(|path| path.strip_prefix('/'))
            .unwrap_or(&self.repository)
    }

    /// The image with a digest, by its name.
    #[must_use]
    pub fn by_digest(&self, digest: &str) -> String {
        format!("{}@{digest}", self.repository)
    }
}

// === impl Image ===

impl Image {
    /// Whether a registry has given it with this digest.
    #[must_use]
    pub fn has_digest(&self, digest: &str) -> bool {
        self.digests().any(|known| known == digest)
    }

    /// The digests that registries have given it with.
    pub fn digests(&self) -> impl Iterator<Item = &str> {
        self.repo_digests.iter().flatten().filter_map(|name| name.split_once('@')).map(|(_, digest)| digest)
    }

    /// Its tags.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.repo_tags.iter().flatten().map(String::as_str)
    }
}

// === impl Progress ===

impl Progress {
    /// The digest that a pulled tag was resolved to.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.status.as_deref()?.strip_prefix("Digest: ").filter(|digest| is_digest(digest))
    }
}

/// The header `X-Registry-Auth` for a registry, from a docker config file; none: it names no credentials for it.
///
/// # Errors
/// When the file cannot be read, or keeps the credentials in a program.
pub fn registry_auth(config: &[u8], registry: &str) -> Result<Option<String>, FetchError> {
    let bad = |why: &str| failed(Stage::Download, "BadRegistryConfig", format!("--registry-config: {why}"));
    let config: DockerConfig =
        serde_json::from_slice(config).map_err(|_| bad("the file is no docker config in JSON"))?;
    let host = |key: &str| {
        let key = key.split_once("://").map_or(key, |(_, rest)| rest);
        let host = key.split_once('/').map_or(key, |(host, _)| host).to_owned();
        if host == DEFAULT_REGISTRY_ALIAS { DEFAULT_REGISTRY.to_owned() } else { host }
    };
    let Some((key, login)) = config.auths.iter().find(|(key, _)| host(key) == registry) else { return Ok(None) };
    let auth = if !login.identitytoken.is_empty() {
        json!({"identitytoken": login.identitytoken, "serveraddress": key})
    } else if login.auth.is_empty() {
        if login.username.is_empty() {
            return Ok(None);
        }
        json!({"username": login.username, "password": login.password, "serveraddress": key})
    } else {
        let unreadable = || bad(&format!("the credentials for {registry} are not base64 of NAME:PASSWORD"));
        let auth = login.auth.trim();
        let bytes = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).map_err(|_| unreadable())?;
        let text = String::from_utf8(bytes).map_err(|_| unreadable())?;
        let (name, password) = text.split_once(':').ok_or_else(unreadable)?;
        json!({"username": name, "password": password.trim_end_matches('\0'), "serveraddress": key})
    };
    Ok(Some(URL_SAFE.encode(auth.to_string())))
}

/// Why an engine could not fetch an image, from its words. These name addresses, ports and paths that differ each time:
/// so they are sorted here, and said again in words that do not.
#[must_use]
pub fn why_not(words: &str, reference: &Reference) -> FetchError {
    let lower = words.to_lowercase();
    let says = |any: &[&str]| any.iter().any(|part| lower.contains(part));
    let (registry, repository) = (reference.registry(), reference.path());
    let (reason, message) = if says(&["no space left", "disk quota exceeded"]) {
        ("DiskFull", "the disk of the container engine is full".to_owned())
    } else if says(&["read-only file system"]) {
        ("ReadOnlyFileSystem", "the container engine cannot write: read-only file system".to_owned())
    } else if says(&["toomanyrequests", "too many requests", "rate limit"]) {
        ("RegistryError", format!("the registry {registry} says that there are too many requests"))
    } else if says(&[
        "unauthorized",
        "authentication required",
        "no basic auth",
        "access denied",
        "denied:",
        "forbidden",
    ]) {
        ("Unauthorized", format!("the registry {registry} does not let this device have {repository}"))
    } else if says(&[
        "no matching manifest",
        "no match for platform",
        "no image found in manifest list",
        "no image found in image index",
    ]) {
        ("NoMatchingPlatform", format!("{repository} has no image for this device's processor"))
    } else if says(&["manifest unknown", "name unknown", "not found", "no such image", "does not exist"]) {
        let what =
            reference.digest.as_ref().map_or_else(|| format!(":{}", reference.tag), |digest| format!("@{digest}"));
        ("NotFound", format!("the registry {registry} does not have {repository}{what}"))
    } else if says(&["x509:", "certificate", "tls:", "http response to https client"]) {
        ("Untrusted", format!("the container engine does not trust the registry {registry}: {}", trust(&lower)))
    } else if says(&[
        "dial tcp",
        "no such host",
        "connection refused",
        "connection reset",
        "timeout",
        "timed out",
        "unreachable",
        "eof",
        "500 internal",
        "502 bad",
        "503 service",
        "504 gateway",
        "deadline exceeded",
        "request canceled",
    ]) {
        ("RegistryUnreachable", format!("the container engine cannot reach the registry {registry}: {}", reach(&lower)))
    } else if says(&["digest", "checksum", "unexpected commit", "verification failed"]) {
        ("ChecksumMismatch", format!("the registry {registry} sends something else than it promised"))
    } else {
        ("EngineError", format!("the container engine cannot fetch {repository} from {registry}"))
    };
    failed(Stage::Download, reason, message)
}

fn reach(words: &str) -> &'static str {
    let kinds = [
        ("no such host", "its name has no address"),
        ("server misbehaving", "its name cannot be looked up"),
        ("connection refused", "connection refused"),
        ("connection reset", "the connection was reset"),
        ("unreachable", "no route to it"),
        ("timeout", "no answer in time"),
        ("timed out", "no answer in time"),
        ("deadline exceeded", "no answer in time"),
        ("request canceled", "no answer in time"),
        ("500 internal", "it answers 500"),
        ("502 bad", "it answers 502"),
        ("503 service", "it answers 503"),
        ("504 gateway", "it answers 504"),
    ];
    kinds.iter().find(|(part, _)| words.contains(part)).map_or("the connection broke", |(_, said)| said)
}

fn trust(words: &str) -> &'static str {
    let kinds = [
        (
            "http response to https",
            "it speaks plain HTTP, which the engine must be told to allow (insecure-registries)",
        ),
        ("unknown authority", "its certificate is of an authority that the engine does not know"),
        ("expired or is not yet valid", "its certificate is expired or not yet valid, by the device's clock"),
        ("valid for", "its certificate is for another name"),
    ];
    kinds.iter().find(|(part, _)| words.contains(part)).map_or("its TLS is not good", |(_, said)| said)
}

/// A failed fetch.
#[must_use]
pub fn failed(stage: Stage, reason: &'static str, message: String) -> FetchError {
    FetchError { stage, reason, message, retry_after: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(url: &str) -> Reference {
        Reference::parse(url).unwrap()
    }

    #[test]
    fn names_are_taken_apart() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (url, repository, tag, registry) in [
            (
                "oci://registry.example.com:5000/team/agent:1.2",
                "registry.example.com:5000/team/agent",
                "1.2",
                "registry.example.com:5000",
            ),
            ("localhost/agent", "localhost/agent", "latest", "localhost"),
            ("nginx:1.25", "nginx", "1.25", "docker.io"),
            ("team/agent", "team/agent", "latest", "docker.io"),
            ("[::1]:5000/a/b:c", "[::1]:5000/a/b", "c", "[::1]:5000"),
        ] {
            let read = reference(url);
            assert_eq!((read.repository.as_str(), read.tag.as_str(), read.registry()), (repository, tag, registry));
            assert_eq!(read.digest, None);
            assert_eq!(reference(&format!("{url}@{digest}")), Reference { digest: Some(digest.clone()), ..read });
        }
        assert_eq!(reference("a.b/c:1").by_digest(&digest), format!("a.b/c@{digest}"));
    }

    #[test]
    fn what_is_no_name_is_said() {
        for url in
            ["", "oci://", "a:", "a b", "a//b", "/a", "a@sha256:12", "a@md5:12", "a?x=y", "a:b/c:", "https://a/b"]
        {
            let error = Reference::parse(url).unwrap_err();
            assert!(error.message.starts_with("artifact.url: ") && error.reason == "BadReference", "{url}: {error}");
        }
    }

    #[test]
    fn credentials_are_those_of_the_registry() {
        let config = json!({"auths": {
            "https://registry.example.com/v2/": {"auth": STANDARD.encode("me:pass:word")},
            "https://index.docker.io/v1/": {"identitytoken": "T"},
            "plain": {"username": "u", "password": "p"},
            "broken": {"auth": "%"}, "empty": {}}, "credsStore": "desktop"})
        .to_string();
        let read = |registry| {
            let auth = registry_auth(config.as_bytes(), registry)?;
            Ok::<_, FetchError>(auth.map(|auth| serde_json::from_slice(&URL_SAFE.decode(auth).unwrap()).unwrap()))
        };
        let known: serde_json::Value = read("registry.example.com").unwrap().unwrap();
        assert_eq!((&known["username"], &known["password"]), (&json!("me"), &json!("pass:word")));
        assert_eq!(read("docker.io").unwrap().unwrap()["identitytoken"], "T");
        assert_eq!(read("plain").unwrap().unwrap()["username"], "u");
        assert_eq!((read("empty").unwrap(), read("other.example.com").unwrap()), (None, None));
        let error = read("broken").unwrap_err();
        assert!(error.message.contains("broken") && !error.message.contains('%'), "{error}");
        assert!(registry_auth(b"{", "a").is_err());
    }

    /// As Docker 20.10 says it.
    #[test]
    fn causes_are_told_apart_and_equal_when_they_are() {
        let it = reference("registry.example.com/team/agent:2");
        for (words, reason, part) in [
            (
                "manifest for registry.example.com/team/agent:2 not found: manifest unknown: manifest unknown",
                "NotFound",
                "team/agent:2",
            ),
            (
                "pull access denied for team/agent, repository does not exist or may require 'docker login': denied",
                "Unauthorized",
                "team/agent",
            ),
            (
                "Head \"https://registry.example.com/v2/team/agent/manifests/2\": no basic auth credentials",
                "Unauthorized",
                "registry.example.com",
            ),
            (
                "Get \"http://127.0.0.1:5099/v2/\": dial tcp 127.0.0.1:5099: connect: connection refused",
                "RegistryUnreachable",
                "connection refused",
            ),
            (
                "Get \"https://x/v2/\": dial tcp: lookup x on 10.0.0.1:53: no such host",
                "RegistryUnreachable",
                "no address",
            ),
            ("read tcp 10.0.0.2:53412->10.0.0.1:443: i/o timeout", "RegistryUnreachable", "in time"),
            (
                "Get \"https://x/v2/\": net/http: request canceled while waiting for connection",
                "RegistryUnreachable",
                "in time",
            ),
            ("write /var/lib/docker/tmp/GetImageBlob123: no space left on device", "DiskFull", "full"),
            ("toomanyrequests: You have reached your pull rate limit.", "RegistryError", "too many"),
            ("no matching manifest for linux/arm64/v8 in the manifest list entries", "NoMatchingPlatform", "processor"),
            ("Get \"https://x/v2/\": x509: certificate signed by unknown authority", "Untrusted", "authority"),
            (
                "Get \"https://x/v2/\": http: server gave HTTP response to HTTPS client",
                "Untrusted",
                "insecure-registries",
            ),
            ("filesystem layer verification failed for digest sha256:12", "ChecksumMismatch", "something else"),
            ("something new", "EngineError", "team/agent"),
        ] {
            let error = why_not(words, &it);
            assert!(error.reason == reason && error.message.contains(part), "{words}: {} {error}", error.reason);
            assert!(!error.message.contains("53412") && !error.message.contains("GetImageBlob"), "{error}");
        }
    }

    #[test]
    fn the_engine_says_what_a_tag_is() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let line = |status: &str| Progress { status: Some(status.to_owned()), error: None };
        assert_eq!(line(&format!("Digest: {digest}")).digest(), Some(digest.as_str()));
        assert_eq!(line("Digest: sha256:12").digest(), None);
        assert_eq!(Progress::default().digest(), None);
    }
}
