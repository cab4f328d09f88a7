//! Edge: images and other artifacts from a registry (OCI distribution specification, and Docker's registry API v2).

use super::address::Address;
use super::budget::Budget;
use super::challenge::{Challenge, choose, token_target};
use super::credentials::{Known, find};
use super::download::{Blob, Wanted, download};
use super::fault::{self, Peer};
use super::flight::Work;
use super::http::{Ask, Http, Reply};
use super::manifest::{ACCEPT, Document, Form, Layer, MAX_BYTES, ManifestError, Platform};
use super::paths::below;
use super::policy::Policy;
use super::reference::{Reference, Version, is_digest};
use super::store::{PROGRAM_MODE, Request, Store, fresh_root};
use super::tree::Tree;
use super::unpack::{Content, Rules, look, look_at_layer, remove_hidden, unpack};
use super::{FetchError, Fetched};
use ::http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;

/// Longest answer with a token, bytes.
const MAX_TOKEN_BYTES: usize = 64 << 10;
/// The header in which registries name a manifest's digest.
const DIGEST_HEADER: header::HeaderName = header::HeaderName::from_static("docker-content-digest");
const ALGORITHM: &str = "sha256:";

/// What this device runs.
const PLATFORM: Platform = Platform {
    architecture: if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else if cfg!(target_arch = "x86") {
        "386"
    } else if cfg!(target_arch = "powerpc64") {
        "ppc64le"
    } else {
        std::env::consts::ARCH
    },
    variants: if cfg!(not(target_arch = "arm")) {
        &[]
    } else if cfg!(target_feature = "v7") {
        &["v7", "v6", "v5"]
    } else {
        &["v6", "v5"]
    },
};

/// One registry, as it is asked for one artifact.
struct Registry<'a> {
    http: Http,
    policy: &'a Policy,
    reference: Reference,
    base: Address,
    /// Something was answered: it is clear whether TLS is spoken.
    met: bool,
    authorization: Option<String>,
}

/// An image that was found.
struct Found {
    /// Of its manifest.
    digest: String,
    /// Of the index that named it, if there is one.
    index: Option<String>,
    layers: Vec<Layer>,
}

/// The digest that a reference names, if it names one.
pub(super) fn digest_of(url: &str) -> Option<String> {
    match Reference::parse(url).ok()?.version {
        Version::Digest(digest) => Some(digest),
        Version::Tag(_) => None,
    }
}

/// Fetches an image and unpacks its layers over each other. It is kept by the digest of the manifest for this
/// device's platform.
///
/// # Errors
/// It cannot be had, or is not what it should be.
pub(super) async fn fetch(
    store: &Store,
    work: &Work,
    policy: &Policy,
    wanted: &Request<'_>,
    url: &str,
) -> Result<Fetched, FetchError> {
    let reference =
        Reference::parse(url).map_err(|error| FetchError::download(fault::BAD_REFERENCE, error.to_string()))?;
    let mut registry = Registry::new(policy, reference)?;
    let found = registry.find(wanted).await?;
    if let Some(fetched) = store.have(&found.digest) {
        return Ok(fetched);
    }
    let sum = found.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
    if sum > policy.limits.bytes {
        return Err(FetchError::download(
            fault::TOO_LARGE,
            format!(
                "{} is larger than the {} bytes that --max-artifact-bytes (APOLLO_AGENT_MAX_ARTIFACT_BYTES) allows",
                registry.reference, policy.limits.bytes
            ),
        ));
    }
    let mut blobs = Vec::with_capacity(found.layers.len());
    for layer in &found.layers {
        blobs.push(registry.blob(work, layer).await?);
    }
    let (policy, room, layers) = (policy.clone(), work.clone(), found.layers);
    let unpacked = fresh_root(work).await?;
    let root = unpacked.clone();
    let turn = work.turn().await;
    work.blocking(move |cancelled| {
        let rules =
            Rules { allow_setuid: policy.allow_setuid, layer: true, cancelled, room: &|bytes| room.room_for(bytes) };
        lay(&root, &layers, &blobs, Budget::new(policy.limits), rules)
    })
    .await?;
    drop(turn);
    store.publish(work, &unpacked, found.digest).await
}

/// Makes a folder of layers.
fn lay(root: &Path, layers: &[Layer], blobs: &[Blob], mut budget: Budget, rules: Rules<'_>) -> Result<(), FetchError> {
    let mut tree = Tree::create(root)?;
    for (number, (layer, blob)) in layers.iter().zip(blobs).enumerate() {
        let content = match &layer.form {
            Form::Archive => look_at_layer(&blob.path)?,
            Form::File(_) | Form::Either(_) => look(&blob.path)?,
        };
        let title = match &layer.form {
            Form::File(title) => Some(title),
            Form::Either(title) if matches!(content, Content::Zstd | Content::Other) => Some(title),
            Form::Either(_) | Form::Archive => None,
        };
        match title {
            Some(title) => {
                budget.entry(layer.size)?;
                tree.adopt(&below(title.as_bytes())?, &blob.path, PROGRAM_MODE)?;
            }
            None => {
                if number > 0 {
                    remove_hidden(&blob.path, content, &mut tree, &mut budget, rules)?;
                }
                unpack(&blob.path, content, &mut tree, &mut budget, rules)?;
                // Its space is for the next one, unless that is the same bytes.
                if !layers[number + 1..].iter().any(|other| other.digest == layer.digest) {
                    let _ = fs::remove_file(&blob.path);
                }
            }
        }
    }
    tree.sync()
}

// === impl Registry ===

impl<'a> Registry<'a> {
    fn new(policy: &'a Policy, reference: Reference) -> Result<Self, FetchError> {
        let plain = policy.allows_plain(&reference.host, reference.port);
        let url = format!("{}://{}/", if plain { "http" } else { "https" }, reference.registry());
        let base = Address::parse(&url).map_err(|_| {
            FetchError::download(fault::BAD_REFERENCE, format!("{:?} is no registry", reference.registry()))
        })?;
        let http = Http::new(Peer::Registry, policy);
        Ok(Self { http, policy, reference, base, met: false, authorization: None })
    }

    /// Finds out what a reference means for this device, and that it is what the checksum says.
    async fn find(&mut self, wanted: &Request<'_>) -> Result<Found, FetchError> {
        let version = match wanted.pinned {
            Some(digest) => Version::Digest(digest.to_owned()),
            None => self.reference.version.clone(),
        };
        let found = self.resolve(&version).await?;
        let Some(checksum) = wanted.checksum.as_ref().map(|digits| format!("{ALGORITHM}{digits}")) else {
            return Ok(found);
        };
        let only_layer = |found: &Found| matches!(found.layers.as_slice(), [only] if only.digest == checksum);
        if found.digest == checksum || found.index.as_ref() == Some(&checksum) || only_layer(&found) {
            return Ok(found);
        }
        // Who asks for a pinned manifest does not see the index that it came from.
        if wanted.pinned.is_some() {
            match self.resolve(&Version::Digest(checksum.clone())).await {
                Ok(other) if other.digest == found.digest => return Ok(found),
                Err(error) if error.reason != fault::NOT_FOUND => return Err(error),
                _ => {}
            }
        }
        Err(FetchError::verify(
            fault::CHECKSUM_MISMATCH,
            format!(
                "{} has the digest {}, not {checksum} as checksumSHA256 says; nor has its index or its only layer",
                self.reference, found.digest
            ),
        ))
    }

    async fn resolve(&mut self, version: &Version) -> Result<Found, FetchError> {
        let (digest, document) = self.manifest(version).await?;
        let chosen = match document {
            Document::Manifest(layers) => return Ok(Found { digest, index: None, layers }),
            Document::Index(all) => PLATFORM.choose(&all)?.digest.clone(),
        };
        match self.manifest(&Version::Digest(chosen)).await? {
            (manifest, Document::Manifest(layers)) => Ok(Found { digest: manifest, index: Some(digest), layers }),
            (_, Document::Index(_)) => Err(FetchError::download(
                fault::UNSUPPORTED_MEDIA_TYPE,
                format!("the index of {} names another index where a manifest should be", self.reference),
            )),
        }
    }

    /// A manifest or index, and its digest, which is that of the bytes and nothing that the registry says.
    async fn manifest(&mut self, version: &Version) -> Result<(String, Document), FetchError> {
        let what = format!("{}/{}", self.reference.repository, version.as_str());
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        let route = format!("v2/{}/manifests/{}", self.reference.repository, version.as_str());
        let reply = self.ask(&route, headers).await?;
        if reply.status != StatusCode::OK {
            return Err(reply.refusal(&what));
        }
        let said = reply.header(DIGEST_HEADER).map(str::to_owned).filter(|said| is_digest(said));
        let body = self.http.whole(reply, MAX_BYTES).await?;
        let digest = format!("{ALGORITHM}{}", hex::encode(Sha256::digest(&body)));
        let expected = match version {
            Version::Digest(asked) => Some(asked.clone()),
            Version::Tag(_) => said,
        };
        match expected {
            Some(expected) if expected != digest => Err(FetchError::verify(
                fault::CHECKSUM_MISMATCH,
                format!(
                    "the registry {} sends another manifest than it says: its digest is {digest}, not {expected}",
                    self.reference.registry()
                ),
            )),
            _ => Ok((digest, Document::parse(&body)?)),
        }
    }

    async fn blob(&mut self, work: &Work, layer: &Layer) -> Result<Blob, FetchError> {
        let digits = &layer.digest[ALGORITHM.len()..];
        let route = format!("v2/{}/blobs/{}", self.reference.repository, layer.digest);
        let what = format!("the layer {} of {}", layer.digest, self.reference);
        let most = self.policy.limits.bytes;
        let wanted = Wanted { name: digits, what: &what, digest: Some(digits), size: Some(layer.size), most };
        // `download` lends the connection back for each request; the registry's own is the one that is used.
        let mut own = std::mem::replace(&mut self.http, Http::new(Peer::Registry, self.policy));
        let blob = download(&mut own, work, &wanted, async |http: &mut Http, headers| {
            std::mem::swap(http, &mut self.http);
            let reply = self.ask(&route, headers).await;
            std::mem::swap(http, &mut self.http);
            reply
        })
        .await;
        self.http = own;
        blob
    }

    /// A request with whatever proof the registry wants to see.
    async fn ask(&mut self, route: &str, headers: HeaderMap) -> Result<Reply, FetchError> {
        let mut reply = self.send(route, &headers).await?;
        // Of the registry itself; whom it redirects to learns nothing of its credentials.
        if reply.status == StatusCode::UNAUTHORIZED && reply.from.same_origin(&self.base) {
            // None yet, or a token that has run out.
            self.authorize(&reply).await?;
            reply = self.send(route, &headers).await?;
            if reply.status == StatusCode::UNAUTHORIZED {
                return Err(self.unauthorized("refuses the credentials, or has nothing of that name for them"));
            }
        }
        Ok(reply)
    }

    async fn send(&mut self, route: &str, headers: &HeaderMap) -> Result<Reply, FetchError> {
        let ask = Ask { headers: headers.clone(), authorization: self.authorization.clone(), private: false };
        let at = Address { target: format!("/{route}"), ..self.base.clone() };
        let first = self.http.get(&at, &ask).await;
        if self.met || self.base.tls {
            return first;
        }
        self.met = true;
        // Plain HTTP was allowed, not demanded: such a registry may speak TLS after all.
        let misunderstood = match &first {
            Ok(reply) => reply.status == StatusCode::BAD_REQUEST,
            Err(error) => error.reason == fault::REGISTRY_ERROR,
        };
        if misunderstood {
            let secure = Address { tls: true, ..at };
            if let Ok(reply) = self.http.get(&secure, &ask).await {
                self.base.tls = true;
                return Ok(reply);
            }
        }
        first
    }

    /// Finds the proof that the registry asks for.
    async fn authorize(&mut self, reply: &Reply) -> Result<(), FetchError> {
        let wanted = choose(reply.headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()));
        let credentials = self.credentials()?;
        let basic = match &credentials {
            Known::Basic(basic) => Some(basic.header()),
            Known::Nothing | Known::Elsewhere(_) => None,
        };
        match wanted {
            Some(Challenge::Bearer { realm, service, scope }) => {
                let token = self.token(&realm, service.as_deref(), scope, basic).await?;
                self.authorization = Some(format!("Bearer {token}"));
                Ok(())
            }
            Some(Challenge::Basic) => {
                self.authorization = Some(basic.ok_or_else(|| match credentials {
                    Known::Elsewhere(why) => self.unauthorized(&format!("wants credentials; they are with {why}")),
                    _ => self.unauthorized(
                        "wants credentials; --registry-config (APOLLO_AGENT_REGISTRY_CONFIG) names none for it",
                    ),
                })?);
                Ok(())
            }
            None => Err(self.unauthorized("wants a kind of credentials that this agent does not know")),
        }
    }

    async fn token(
        &mut self,
        realm: &str,
        service: Option<&str>,
        scope: Option<String>,
        basic: Option<String>,
    ) -> Result<String, FetchError> {
        let bad = |why: &str| {
            let message = format!("the registry {} {why}", self.reference.registry());
            FetchError::download(fault::REGISTRY_ERROR, message)
        };
        let realm = Address::parse(realm).map_err(|_| bad("names no place where its tokens are had"))?;
        if !realm.tls && !self.policy.allows_plain(&realm.host, Some(realm.port)) {
            return Err(bad("wants tokens to be fetched over plain HTTP"));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository));
        let at = Address { target: token_target(&realm.target, service, &scope), credentials: None, ..realm };
        let ask = Ask { authorization: basic, ..Ask::default() };
        let reply = self.http.get(&at, &ask).await?;
        match reply.status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(self.unauthorized("gives no token for these credentials"));
            }
            _ => return Err(reply.refusal("a token")),
        }
        let body = self.http.whole(reply, MAX_TOKEN_BYTES).await?;
        #[derive(serde::Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let answer: Option<Answer> = serde_json::from_slice(&body).ok();
        let token = answer.and_then(|answer| answer.token.or(answer.access_token)).filter(|token| !token.is_empty());
        token.ok_or_else(|| {
            let message = format!("{} answers with no token", at.authority());
            FetchError::download(fault::REGISTRY_ERROR, message)
        })
    }

    fn credentials(&self) -> Result<Known, FetchError> {
        let Some(path) = &self.policy.registry_config else { return Ok(Known::Nothing) };
        let bad = |why: String| {
            let file = path.display();
            FetchError::download(
                fault::BAD_REGISTRY_CONFIG,
                format!("--registry-config (APOLLO_AGENT_REGISTRY_CONFIG) {file}: {why}"),
            )
        };
        let bytes = fs::read(path).map_err(|error| bad(error.to_string()))?;
        find(&bytes, &self.reference.registry()).map_err(|error| bad(error.to_string()))
    }

    fn unauthorized(&self, why: &str) -> FetchError {
        let Reference { repository, .. } = &self.reference;
        let message = format!("the registry {} {why} ({repository})", self.reference.registry());
        FetchError::download(fault::UNAUTHORIZED, message)
    }
}

impl From<ManifestError> for FetchError {
    fn from(error: ManifestError) -> Self {
        let reason = match &error {
            ManifestError::Unreadable(_) => fault::REGISTRY_ERROR,
            ManifestError::Unsupported(_) => fault::UNSUPPORTED_MEDIA_TYPE,
            ManifestError::Platform { .. } => fault::NO_MATCHING_PLATFORM,
        };
        Self::download(reason, error.to_string())
    }
}

#[cfg(test)]
mod tests;
