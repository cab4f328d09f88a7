//! Edge: images are artifacts that the engine fetches, unpacks and keeps.
//!
//! A tag is resolved once and everything after goes by digest. Images that are ours carry a tag of ours: so they are
//! found again, are not pruned by others, and can be removed when nobody needs them any more.

use super::backend::Containers;
use super::config::{self, FETCHED_REPOSITORY, FOUND_REPOSITORY, image_tag};
use super::engine::{EngineError, Question, Stream};
use super::image::{Image, Progress, Reference, failed, registry_auth, why_not};
use crate::agent::artifact::reference::is_digest;
use crate::agent::artifact::{FetchError, Fetched, Stage};
use crate::agent::process::spec::{Artifact, ArtifactType};
use crate::wire::BACKEND_UNAVAILABLE;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;
use tokio::time::timeout;
use tracing::{debug, info};

/// What the operator is told who wants something else in a container.
pub(super) const ONLY_IMAGES: &str = "artifact.type: the container backend runs images, so it must be oci";
/// Longest silence during a pull: engines tell of their progress all the time, but not while they unpack a large file.
const SILENCE: Duration = Duration::from_secs(180);
/// Longest time for asking a registry about a tag.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest docker config file, bytes.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// What a tag stands for at its registry.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Distribution {
    descriptor: Descriptor,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

impl Containers {
    /// The image of an artifact, in the engine's store and with our tag.
    pub(super) async fn fetch_image(&self, artifact: &Artifact, pinned: Option<&str>) -> Result<Fetched, FetchError> {
        if artifact.r#type != ArtifactType::Oci {
            return Err(failed(Stage::Download, "UnsupportedArtifact", ONLY_IMAGES.to_owned()));
        }
        let reference = Reference::parse(&artifact.url)?;
        let expected = artifact.checksum_sha256.as_deref().filter(|sum| !sum.is_empty());
        let check = |digest: &str| check(digest, expected, &reference);
        let known = pinned.or(reference.digest.as_deref());
        if let Some(digest) = known {
            check(digest)?;
            if self.is_there(&reference, digest).await? {
                return Ok(fetched(digest));
            }
        }
        let auth = self.credentials(reference.registry()).await?;
        let auth = auth.as_deref();
        let resolved = match known {
            Some(digest) => Some(digest.to_owned()),
            None => self.resolve(&reference, auth).await?,
        };
        let digest = match resolved {
            Some(digest) => {
                check(&digest)?;
                if known.is_none() && self.is_there(&reference, &digest).await? {
                    return Ok(fetched(&digest));
                }
                self.pull(&reference, &reference.by_digest(&digest), auth).await?;
                digest
            }
            // An engine that cannot look up a tag resolves it with the pull.
            None => {
                let name = format!("{}:{}", reference.repository, reference.tag);
                let digest = match self.pull(&reference, &name, auth).await? {
                    Some(digest) => digest,
                    None => self.only_digest(&reference, &name).await?,
                };
                check(&digest)?;
                digest
            }
        };
        let image = self.image(&reference.by_digest(&digest)).await.map_err(away)?;
        let image = image.filter(|image| image.has_digest(&digest)).ok_or_else(|| nameless(&reference))?;
        self.tag(&image, FETCHED_REPOSITORY, &digest).await.map_err(away)?;
        info!(image = reference.repository, digest, "image fetched");
        Ok(fetched(&digest))
    }

    /// The image with a digest that carries a tag of ours.
    pub(super) async fn tagged(&self, digest: &str) -> Result<Option<Image>, EngineError> {
        for repository in [FETCHED_REPOSITORY, FOUND_REPOSITORY] {
            let image = self.image(&image_tag(repository, digest)).await?;
            if let Some(image) = image.filter(|image| image.has_digest(digest)) {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    async fn image(&self, name: &str) -> Result<Option<Image>, EngineError> {
        EngineError::or_none(self.engine.ask(Question::new(Method::GET, &format!("/images/{name}/json"))).await)
    }

    /// Whether the engine has the image. One that somebody else has fetched gets a tag of ours, too.
    async fn is_there(&self, reference: &Reference, digest: &str) -> Result<bool, FetchError> {
        if self.tagged(digest).await.map_err(away)?.is_some() {
            return Ok(true);
        }
        let image = self.image(&reference.by_digest(digest)).await.map_err(away)?;
        let Some(image) = image.filter(|image| image.has_digest(digest)) else { return Ok(false) };
        self.tag(&image, FOUND_REPOSITORY, digest).await.map_err(away)?;
        Ok(true)
    }

    async fn tag(&self, image: &Image, repository: &str, digest: &str) -> Result<(), EngineError> {
        let tag = digest.trim_start_matches("sha256:");
        let path = format!("/images/{}/tag?repo={}&tag={tag}", image.id, config::escape(repository));
        self.engine.ask::<Value>(Question::new(Method::POST, &path)).await.map(|_| ())
    }

    /// The digest that a tag stands for now; none: the engine cannot look it up.
    async fn resolve(&self, reference: &Reference, auth: Option<&str>) -> Result<Option<String>, FetchError> {
        let path = format!("/distribution/{}:{}/json", reference.repository, reference.tag);
        let question = Question::new(Method::GET, &path).authorized(auth).within(LOOK_UP_TIMEOUT);
        match self.engine.ask::<Distribution>(question).await {
            Ok(answer) if is_digest(&answer.descriptor.digest) => Ok(Some(answer.descriptor.digest)),
            Ok(_) => Err(nameless(reference)),
            // The route itself, which Podman does not have.
            Err(error) if error.status() == Some(404) && is_no_route(&error) => Ok(None),
            Err(EngineError::Refused { message, .. }) => Err(why_not(&message, reference)),
            Err(error) => Err(away(error)),
        }
    }

    /// Pulls an image; the digest that the engine names.
    async fn pull(&self, reference: &Reference, name: &str, auth: Option<&str>) -> Result<Option<String>, FetchError> {
        let path = format!("/images/create?fromImage={}", config::escape(name));
        let question = Question::new(Method::POST, &path).authorized(auth).within(SILENCE);
        let mut progress: Stream = self.engine.open(question).await.map_err(|error| match error {
            EngineError::Refused { message, .. } => why_not(&message, reference),
            error => away(error),
        })?;
        let mut digest = None;
        loop {
            // Dropped with the stream, the engine gives up the pull.
            let line = timeout(SILENCE, progress.line::<Progress>()).await;
            let line = line.map_err(|_| why_not("timeout", reference))?.map_err(away)?;
            let Some(line) = line else { return Ok(digest) };
            if let Some(error) = &line.error {
                debug!(error, "pull failed");
                return Err(why_not(error, reference));
            }
            if let Some(named) = line.digest() {
                digest = Some(named.to_owned());
            }
        }
    }

    /// The digest of an image of which the engine knows a single one.
    async fn only_digest(&self, reference: &Reference, name: &str) -> Result<String, FetchError> {
        let image = self.image(name).await.map_err(away)?.ok_or_else(|| nameless(reference))?;
        let digests: BTreeSet<&str> = image.digests().collect();
        match digests.first() {
            Some(digest) if digests.len() == 1 => Ok((*digest).to_owned()),
            _ => Err(nameless(reference)),
        }
    }

    async fn credentials(&self, registry: &str) -> Result<Option<String>, FetchError> {
        let Some(path) = &self.options.registry_config else { return Ok(None) };
        let bad = |why: String| {
            failed(Stage::Download, "BadRegistryConfig", format!("--registry-config {}: {why}", path.display()))
        };
        let size = tokio::fs::metadata(path).await.map_err(|error| bad(error.kind().to_string()))?.len();
        if size > MAX_CONFIG_BYTES {
            return Err(bad("the file is too long".to_owned()));
        }
        let config = tokio::fs::read(path).await.map_err(|error| bad(error.kind().to_string()))?;
        registry_auth(&config, registry)
    }

    /// Takes our tags from images that are not in `keep` (digests), and removes those that we have fetched and nobody
    /// else has named. What a container is made of stays.
    pub(super) async fn collect_images(&self, keep: &HashSet<String>) -> Result<(), EngineError> {
        for repository in [FETCHED_REPOSITORY, FOUND_REPOSITORY] {
            let path = format!("/images/json?{}", config::filters(&json!({"reference": [repository]})));
            let images: Vec<Image> = self.engine.ask(Question::new(Method::GET, &path)).await?;
            for image in images {
                let ours: Vec<(&str, String)> =
                    image.tags().filter_map(|tag| Some((tag, config::tagged_digest(repository, tag)?))).collect();
                for (tag, digest) in ours.iter().filter(|(_, digest)| !keep.contains(digest)) {
                    if !self.in_use(&image).await? {
                        self.untag(repository, &image, tag, digest).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn in_use(&self, image: &Image) -> Result<bool, EngineError> {
        let wanted = config::filters(&json!({"ancestor": [image.id]}));
        let users: Vec<Value> =
            self.engine.ask(Question::new(Method::GET, &format!("/containers/json?all=1&{wanted}"))).await?;
        Ok(!users.is_empty())
    }

    async fn untag(&self, repository: &str, image: &Image, tag: &str, digest: &str) -> Result<(), EngineError> {
        let nobody_elses = repository == FETCHED_REPOSITORY && image.tags().all(|known| known == tag);
        let by_digest = image.repo_digests.iter().flatten().filter(|name| {
            nobody_elses && name.split_once('@').is_some_and(|(name, known)| known == digest && name != repository)
        });
        // Our tag last: cut off before, it is found again.
        for name in by_digest.map(String::as_str).chain([tag]) {
            let path = format!("/images/{name}");
            match self.engine.ask::<Value>(Question::new(Method::DELETE, &path).within(SILENCE)).await {
                Ok(_) => debug!(image = name, "image removed"),
                Err(error) if matches!(error.status(), Some(404 | 409)) => debug!(image = name, %error, "image stays"),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn fetched(digest: &str) -> Fetched {
    Fetched { digest: digest.to_owned(), root: None }
}

fn check(digest: &str, expected: Option<&str>, reference: &Reference) -> Result<(), FetchError> {
    match expected {
        Some(sum) if !digest.trim_start_matches("sha256:").eq_ignore_ascii_case(sum) => Err(failed(
            Stage::Verify,
            "ChecksumMismatch",
            format!("{} is {digest}, artifact.checksumSHA256 says {}", reference.repository, sum.to_lowercase()),
        )),
        _ => Ok(()),
    }
}

fn is_no_route(error: &EngineError) -> bool {
    let words = error.to_string().to_lowercase();
    words.contains("page not found") || words.trim() == "not found" || words.contains("404 not found")
}

fn nameless(reference: &Reference) -> FetchError {
    let message = format!("the container engine does not say which digest {} has", reference.repository);
    failed(Stage::Verify, "EngineError", message)
}

fn away(error: EngineError) -> FetchError {
    let reason = match error {
        EngineError::Refused { .. } => "EngineError",
        EngineError::Away(..) | EngineError::Strange(..) => BACKEND_UNAVAILABLE,
    };
    failed(Stage::Download, reason, error.to_string())
}
