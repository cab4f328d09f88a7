//! Pure: manifests and indexes of images: which one is for this device, and what is to be made of each layer.

use super::reference::is_digest;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Kinds of manifests that are asked for, and indexes.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Longest manifest, bytes: what registries accept.
pub const MAX_BYTES: usize = 4 << 20;
/// Most layers; docker's own bound is 127.
const MAX_LAYERS: usize = 256;
/// Most platforms that are told of an image that has none for this device.
const MAX_TOLD: usize = 8;
/// What a file is called that is an artifact's layer.
const TITLE: &str = "org.opencontainers.image.title";

/// What a registry answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Vec<Layer>),
    /// One image for each of several platforms.
    Index(Vec<Descriptor>),
}

/// Points to bytes by their digest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the bytes are.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// How many bytes.
    pub size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<DescribedPlatform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct DescribedPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
}

/// The bytes of a layer, and what they become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// How many bytes.
    pub size: u64,
    /// What they become.
    pub form: Form,
}

/// What a layer becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// It is unpacked.
    Archive,
    /// It is a file of this name.
    File(String),
    /// It is unpacked if it is an archive, otherwise it is a file of this name: tools name any file's layer a tar.
    Either(String),
}

/// What images this device can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// As in images: `amd64`, `arm64`, `arm`, …
    pub architecture: &'static str,
    /// The best one first; none: an image's variant is not looked at, and one without is preferred.
    pub variants: &'static [&'static str],
}

/// Why there is nothing to fetch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or fields are missing.
    #[error("the manifest cannot be read: {0}")]
    Unreadable(String),
    /// Another kind.
    #[error("{0}")]
    Unsupported(String),
    /// For other devices.
    #[error("the image is not for this device's linux/{wanted}; it is for {found}")]
    Platform {
        /// This device's architecture.
        wanted: String,
        /// Those that there are.
        found: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u64,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

// === impl Document ===

impl Document {
    /// Reads what a registry sent; its shape counts, not what the registry calls it.
    ///
    /// # Errors
    /// It is of no use, and why.
    pub fn parse(body: &[u8]) -> Result<Self, ManifestError> {
        let unreadable = |why: &str| ManifestError::Unreadable(why.to_owned());
        let raw: Raw = serde_json::from_slice(body).map_err(|error| ManifestError::Unreadable(error.to_string()))?;
        if raw.schema_version == 1 {
            return Err(ManifestError::Unsupported(
                "the image has a manifest of schema 1, which nobody makes any more: push it anew".to_owned(),
            ));
        }
        let all = raw.manifests.iter().chain(&raw.layers).flatten();
        if let Some(bad) = all.map(|d| &d.digest).find(|digest| !is_digest(digest)) {
            return Err(unreadable(&format!("{:?} is no sha256 digest", shorten(bad))));
        }
        match (raw.manifests, raw.layers) {
            // One that is both would be one thing here and another elsewhere.
            (Some(_), Some(_)) => Err(unreadable("it has both manifests and layers")),
            (Some(manifests), None) => Ok(Self::Index(manifests)),
            (None, Some(layers)) if layers.len() > MAX_LAYERS => {
                Err(unreadable(&format!("it has more than {MAX_LAYERS} layers")))
            }
            (None, Some(layers)) => layers.iter().map(layer).collect::<Result<_, _>>().map(Self::Manifest),
            (None, None) => Err(unreadable("it has neither manifests nor layers")),
        }
    }
}

fn layer(described: &Descriptor) -> Result<Layer, ManifestError> {
    let kind = described.media_type.as_str();
    let title = described.annotations.as_ref().and_then(|all| all.get(TITLE)).filter(|title| !title.is_empty());
    if kind.ends_with("tar+zstd") || kind.ends_with("tar.zstd") {
        return Err(ManifestError::Unsupported(
            "a layer is compressed with zstd, which this agent cannot unpack: build the image with gzip".to_owned(),
        ));
    }
    let archive = ["tar", "tar+gzip", "tar.gzip"]
        .iter()
        .any(|end| kind.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with(['.', '/'])));
    let form = match (archive, title) {
        (true, None) => Form::Archive,
        (true, Some(title)) => Form::Either(title.clone()),
        (false, Some(title)) => Form::File(title.clone()),
        (false, None) => {
            return Err(ManifestError::Unsupported(format!(
                "a layer is neither an archive nor a file with a name: {:?}",
                shorten(kind)
            )));
        }
    };
    Ok(Layer { digest: described.digest.clone(), size: described.size, form })
}

fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

// === impl Platform ===

impl Platform {
    /// The one of an index's entries that this device runs best.
    ///
    /// # Errors
    /// There is none, and what there is.
    pub fn choose<'a>(&self, index: &'a [Descriptor]) -> Result<&'a Descriptor, ManifestError> {
        // An index of one that says nothing of platforms, as tools make them for what is no image.
        if let [only] = index
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let fits = |d: &&Descriptor| {
            d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == self.architecture)
        };
        let rank = |d: &Descriptor| {
            let variant = d.platform.as_ref().and_then(|p| p.variant.as_deref()).filter(|v| !v.is_empty());
            match (variant, self.variants.is_empty()) {
                (None, _) => Some(if self.variants.is_empty() { 0 } else { self.variants.len() }),
                (Some(_), true) => Some(1),
                (Some(variant), false) => self.variants.iter().position(|v| *v == variant),
            }
        };
        let ranked = index.iter().filter(fits).filter_map(|d| rank(d).map(|rank| (rank, d)));
        ranked
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, d)| d)
            .ok_or_else(|| ManifestError::Platform { wanted: self.name(), found: told(index) })
    }

    fn name(&self) -> String {
        self.variants.first().map_or(self.architecture.to_owned(), |best| format!("{}/{best}", self.architecture))
    }
}

fn told(index: &[Descriptor]) -> String {
    let platforms = index.iter().filter_map(|d| d.platform.as_ref()).filter(|p| p.os != "unknown");
    let mut names: Vec<_> = platforms
        .map(|p| {
            let variant = p.variant.as_ref().map(|v| format!("/{v}")).unwrap_or_default();
            shorten(&format!("{}/{}{variant}", p.os, p.architecture))
        })
        .collect();
    names.truncate(MAX_TOLD);
    if names.is_empty() { "no platform at all".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> String {
        format!("sha256:{}", format!("{n:02x}").repeat(32))
    }

    fn index(platforms: &[(&str, &str, Option<&str>)]) -> Vec<Descriptor> {
        let entries: Vec<_> = (0..)
            .zip(platforms)
            .map(|(n, (os, architecture, variant))| {
                serde_json::json!({"mediaType": "m", "digest": digest(n), "size": 1,
                    "platform": {"os": os, "architecture": architecture, "variant": variant}})
            })
            .collect();
        let body = serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string();
        match Document::parse(body.as_bytes()).unwrap() {
            Document::Index(index) => index,
            Document::Manifest(_) => panic!("an index"),
        }
    }

    #[test]
    fn the_best_platform_is_chosen() {
        let all = index(&[
            ("windows", "amd64", None),
            ("linux", "arm", Some("v5")),
            ("linux", "arm", Some("v7")),
            ("linux", "arm64", Some("v8")),
            ("linux", "amd64", Some("v3")),
            ("linux", "amd64", None),
            ("unknown", "unknown", None),
        ]);
        let v7: &[_] = &["v7", "v6", "v5"];
        for (architecture, variants, chosen) in
            [("arm", v7, 2), ("arm", &["v6", "v5"], 1), ("arm64", &[], 3), ("amd64", &[], 5)]
        {
            let platform = Platform { architecture, variants };
            assert_eq!(platform.choose(&all).unwrap().digest, digest(chosen), "{platform:?}");
        }
        let error = Platform { architecture: "riscv64", variants: &[] }.choose(&all).unwrap_err().to_string();
        assert!(error.contains("linux/riscv64") && error.contains("linux/arm/v5, linux/arm/v7"), "{error}");
        let error = Platform { architecture: "arm", variants: &["v6"] }.choose(&all).unwrap_err();
        assert!(matches!(error, ManifestError::Platform { .. }));
        assert!(Platform { architecture: "arm", variants: v7 }.choose(&[]).is_err());
    }

    #[test]
    fn an_index_of_one_without_platform_is_that_one() {
        let mut one = index(&[("x", "y", None)]);
        one[0].platform = None;
        assert_eq!(Platform { architecture: "arm64", variants: &[] }.choose(&one).unwrap().digest, digest(0));
    }

    #[test]
    fn layers_are_archives_or_files() {
        let parse = |kind: &str, title: Option<&str>| {
            let annotations = title.map(|title| BTreeMap::from([(TITLE, title)]));
            let layer =
                serde_json::json!({"mediaType": kind, "digest": digest(1), "size": 7, "annotations": annotations});
            Document::parse(serde_json::json!({"schemaVersion": 2, "layers": [layer]}).to_string().as_bytes())
        };
        let form = |kind: &str, title: Option<&str>| match parse(kind, title).unwrap() {
            Document::Manifest(layers) => layers[0].form.clone(),
            Document::Index(_) => panic!("a manifest"),
        };
        for kind in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
            "application/tar",
        ] {
            assert_eq!(form(kind, None), Form::Archive, "{kind}");
            assert_eq!(form(kind, Some("a")), Form::Either("a".into()));
        }
        assert_eq!(form("application/vnd.acme.firmware", Some("fw.bin")), Form::File("fw.bin".into()));
        let unsupported = |kind: &str| parse(kind, None).unwrap_err().to_string();
        assert!(unsupported("application/vnd.oci.image.layer.v1.tar+zstd").contains("zstd"));
        assert!(unsupported("application/vnd.acme.firmware").contains("vnd.acme.firmware"));
        assert!(unsupported("application/nottar").contains("neither"));
    }

    #[test]
    fn what_is_no_manifest_is_said() {
        for (body, says) in [
            ("<html>", "cannot be read"),
            ("{}", "schemaVersion"),
            (r#"{"schemaVersion": 1, "fsLayers": []}"#, "schema 1"),
            (r#"{"schemaVersion": 2}"#, "neither"),
            (r#"{"schemaVersion": 2, "layers": [], "manifests": []}"#, "both"),
            (r#"{"schemaVersion": 2, "layers": [{"digest": "sha256:../x", "size": 1}]}"#, "no sha256 digest"),
            (r#"{"schemaVersion": 2, "layers": [{"digest": "sha512:aa", "size": 1}]}"#, "no sha256 digest"),
            (r#"{"schemaVersion": 2, "layers": [{"digest": "sha256:1", "size": -1}]}"#, "cannot be read"),
        ] {
            let error = Document::parse(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{body}: {error}");
        }
        let many: Vec<_> =
            (0..300).map(|_| serde_json::json!({"mediaType": "a/tar", "digest": digest(1), "size": 1})).collect();
        let body = serde_json::json!({"schemaVersion": 2, "layers": many}).to_string();
        assert!(Document::parse(body.as_bytes()).unwrap_err().to_string().contains("more than 256 layers"));
    }
}
