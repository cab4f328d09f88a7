//! Edge: images, from registries that behave and others.

use super::*;
use crate::agent::artifact::Stage;
use crate::agent::artifact::misbehaving::{
    Act, Put, Seen, Server, Shelf, Shop, answer, artifact, gzip, ok, part, sha, tar,
};
use crate::agent::process::spec::ArtifactType;
use serde_json::json;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

async fn get(shop: &Shop, url: &str) -> Result<Fetched, FetchError> {
    shop.get(ArtifactType::Oci, url, None).await
}

async fn fails(shop: &Shop, url: &str, checksum: Option<&str>, reason: &str, says: &str) -> FetchError {
    let error = shop.get(ArtifactType::Oci, url, checksum).await.unwrap_err();
    assert_eq!(error.reason, reason, "{error}");
    assert!(error.message.contains(says) && !error.message.contains("secret"), "{error}");
    assert_eq!(shop.listed().0, Vec::<String>::new(), "nothing is visible after {error}");
    error
}

fn root(fetched: &Fetched) -> PathBuf {
    fetched.root.clone().unwrap()
}

fn text(fetched: &Fetched, name: &str) -> String {
    fs::read_to_string(root(fetched).join(name)).unwrap()
}

fn image() -> (Shelf, String) {
    let mut shelf = Shelf::default();
    let digest = shelf.image("1", &[tar(&[Put::File("bin/agent", b"one", 0o755)])]);
    (shelf, digest)
}

#[tokio::test]
async fn layers_lie_over_each_other() {
    let mut shelf = Shelf::default();
    let digest = shelf.image(
        "1.0",
        &[
            tar(&[
                Put::Folder("usr/", 0o755),
                Put::File("usr/bin/agent", b"old", 0o755),
                Put::File("usr/lib/gone/a", b"a", 0o644),
                Put::File("usr/lib/emptied/old", b"old", 0o644),
                Put::File("usr/lib/replaced/x", b"x", 0o644),
                Put::File("secret", b"s", 0o600),
                Put::Link("bin", "usr/bin"),
                Put::Link("sbin", "/usr/bin"),
                Put::Hard("agent2", "usr/bin/agent"),
            ]),
            tar(&[
                // Its own files come before what says that others go, and stay.
                Put::File("usr/lib/emptied/new", b"new", 0o644),
                Put::File("usr/lib/emptied/.wh..wh..opq", b"", 0),
                Put::File("usr/lib/gone/b", b"b", 0o644),
                Put::File("usr/lib/.wh.gone", b"", 0),
                Put::File("usr/lib/.wh.never", b"", 0),
                Put::File("usr/bin/agent", b"new", 0o755),
                Put::File("usr/lib/replaced", b"a file", 0o644),
                Put::File(".wh.secret", b"", 0),
                Put::Folder("bin", 0o755),
            ]),
        ],
    );
    let server = shelf.serve().await;
    let shop = Shop::new(|_| {});
    let fetched = get(&shop, &format!("{}/r:1.0", server.host)).await.unwrap();
    assert_eq!(fetched.digest, digest);
    assert_eq!((text(&fetched, "usr/bin/agent"), text(&fetched, "agent2")), ("new".into(), "old".into()));
    assert_eq!(text(&fetched, "sbin/agent"), "new");
    assert_eq!(fs::read_link(root(&fetched).join("sbin")).unwrap(), Path::new("usr/bin"));
    assert!(fs::symlink_metadata(root(&fetched).join("bin")).unwrap().is_dir());
    let names = |path: &str| {
        let mut names: Vec<_> = fs::read_dir(root(&fetched).join(path))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("usr/lib/emptied"), ["new"]);
    assert_eq!(names("usr/lib/gone"), ["b"]);
    assert_eq!(names("usr/lib"), ["emptied", "gone", "replaced"]);
    assert_eq!(names(""), ["agent2", "bin", "sbin", "usr"]);
    assert_eq!(shop.listed(), (vec![digest["sha256:".len()..].to_owned()], vec![]));
    // A tag is asked for again, and that is all.
    let before = server.seen().len();
    assert_eq!(get(&shop, &format!("oci://{}/r:1.0", server.host)).await.unwrap(), fetched);
    assert_eq!(server.seen().len(), before + 1);
    // A digest is not even that.
    assert_eq!(get(&shop, &format!("{}/r@{digest}", server.host)).await.unwrap(), fetched);
    assert_eq!(server.seen().len(), before + 1);
}

#[tokio::test]
async fn a_pinned_image_is_asked_for_by_its_digest() {
    let (mut shelf, old) = image();
    let new = shelf.image("1", &[tar(&[Put::File("bin/agent", b"two", 0o755)])]);
    let server = shelf.serve().await;
    let shop = Shop::new(|_| {});
    let wanted = artifact(ArtifactType::Oci, &format!("{}/r:1", server.host), None);
    let fetched = shop.store.fetch(&wanted, Some(&old)).await.unwrap();
    assert_eq!((fetched.digest.as_str(), text(&fetched, "bin/agent")), (old.as_str(), "one".into()));
    assert_eq!(server.seen()[0].target, format!("/v2/r/manifests/{old}"));
    assert_eq!(shop.store.fetch(&wanted, None).await.unwrap().digest, new);
    // Pinned and there: without the registry.
    drop(server);
    assert_eq!(shop.store.fetch(&wanted, Some(&old)).await.unwrap(), fetched);
}

#[tokio::test]
async fn an_index_leads_to_this_platform_and_checksums_may_be_of_each() {
    let (mut shelf, manifest) = image();
    let layer = sha(&gzip(&tar(&[Put::File("bin/agent", b"one", 0o755)])));
    let size = shelf.items[&format!("/v2/r/manifests/{manifest}")].len();
    let entry = |architecture: &str, digest: &str| json!({"mediaType": "m", "digest": digest, "size": size, "platform": {"os": "linux", "architecture": architecture}});
    let none = format!("sha256:{}", "0".repeat(64));
    let own = entry(PLATFORM.architecture, &manifest);
    let index = shelf.manifest(Some("multi"), &json!({"schemaVersion": 2, "manifests": [entry("s390x", &none), own]}));
    shelf.manifest(
        Some("other"),
        &json!({"schemaVersion": 2, "manifests": [entry("s390x", &none), entry("mips", &none)]}),
    );
    let nested = shelf.manifest(None, &json!({"schemaVersion": 2, "manifests": []}));
    shelf.manifest(Some("nested"), &json!({"schemaVersion": 2, "manifests": [entry(PLATFORM.architecture, &nested)]}));
    let server = shelf.serve().await;
    let url = format!("{}/r:multi", server.host);
    for checksum in [&index[7..], &manifest[7..], &layer] {
        for pinned in [None, Some(manifest.as_str())] {
            let shop = Shop::new(|_| {});
            let fetched = shop.store.fetch(&artifact(ArtifactType::Oci, &url, Some(checksum)), pinned).await.unwrap();
            assert_eq!(fetched.digest, manifest);
        }
    }
    let shop = Shop::new(|_| {});
    for pinned in [None, Some(manifest.as_str())] {
        let wrong = artifact(ArtifactType::Oci, &url, Some(&none[7..]));
        let error = shop.store.fetch(&wrong, pinned).await.unwrap_err();
        assert_eq!((error.reason, error.stage), (fault::CHECKSUM_MISMATCH, Stage::Verify), "{error}");
        assert!(error.message.contains(&manifest), "{error}");
    }
    let platforms = "it is for linux/s390x, linux/mips";
    fails(&shop, &format!("{}/r:other", server.host), None, fault::NO_MATCHING_PLATFORM, platforms).await;
    fails(&shop, &format!("{}/r:nested", server.host), None, fault::UNSUPPORTED_MEDIA_TYPE, "another index").await;
}

fn titled_in(shelf: &mut Shelf, title: &str, bytes: &[u8]) -> serde_json::Value {
    let mut layer = shelf.blob("application/x", bytes);
    layer["annotations"] = json!({"org.opencontainers.image.title": title});
    layer
}

#[tokio::test]
async fn artifacts_that_are_no_images_become_files() {
    let mut shelf = Shelf::default();
    let mut titled = |kind: &str, title: &str, bytes: &[u8]| {
        let mut layer = titled_in(&mut shelf, title, bytes);
        layer["mediaType"] = json!(kind);
        layer
    };
    let program = titled("application/vnd.acme.agent", "agent", b"program");
    // What ORAS calls any file.
    let plain = titled(TAR, "etc/agent.conf", b"conf");
    let archive = titled(GZIP, "data.tgz", &gzip(&tar(&[Put::File("data/x", b"x", 0o644)])));
    let evil = titled("application/x", "../evil", b"evil");
    let through = titled("application/x", "link/evil", b"evil");
    let linked = shelf.blob(TAR, &tar(&[Put::Link("link", "/")]));
    let zstd = shelf.blob("application/vnd.oci.image.layer.v1.tar+zstd", b"zstd");
    let hidden = shelf.blob(TAR, &[0x28, 0xb5, 0x2f, 0xfd, 0, 0]);
    let nameless = shelf.blob("application/x-thing", b"x");
    let nothing = shelf.blob(GZIP, b"this is no archive");
    let same = ["one", "sub/two"].map(|title| titled_in(&mut shelf, title, b"")).to_vec();
    // What docker writes for a step that changes no file.
    let zeros = vec![shelf.blob(GZIP, &gzip(&[0; 1024])), shelf.blob(TAR, &[0; 10240]), shelf.blob(TAR, b"")];
    for (tag, layers) in [
        ("files", vec![program, plain, archive]),
        ("evil", vec![evil]),
        ("through", vec![linked, through]),
        ("zstd", vec![zstd]),
        ("hidden", vec![hidden]),
        ("nameless", vec![nameless]),
        ("nothing", vec![nothing]),
        ("empty", vec![]),
        ("same", same),
        ("zeros", zeros),
    ] {
        shelf.manifest(Some(tag), &json!({"schemaVersion": 2, "artifactType": "application/x", "layers": layers}));
    }
    shelf.items.insert("/v2/r/manifests/html".into(), b"<html>".to_vec());
    let server = shelf.serve().await;
    let url = |tag: &str| format!("{}/r:{tag}", server.host);
    let shop = Shop::new(|_| {});
    for (tag, reason, says) in [
        ("evil", fault::BAD_ARCHIVE, "../evil"),
        ("through", fault::BAD_ARCHIVE, "through a link"),
        ("zstd", fault::UNSUPPORTED_MEDIA_TYPE, "zstd"),
        ("hidden", fault::UNSUPPORTED_MEDIA_TYPE, "zstd"),
        ("nameless", fault::UNSUPPORTED_MEDIA_TYPE, "application/x-thing"),
        ("nothing", fault::BAD_ARCHIVE, "no tar archive"),
        ("html", fault::REGISTRY_ERROR, "cannot be read"),
        ("unknown", fault::NOT_FOUND, "does not have r/unknown"),
    ] {
        fails(&shop, &url(tag), None, reason, says).await;
    }
    fails(&shop, "not a reference", None, fault::BAD_REFERENCE, "no name of a repository").await;
    assert!(!Path::new("/evil").exists() && shop.listed().1.is_empty());
    let fetched = get(&shop, &url("files")).await.unwrap();
    assert_eq!(text(&fetched, "agent") + &text(&fetched, "etc/agent.conf") + &text(&fetched, "data/x"), "programconfx");
    let same = get(&shop, &url("same")).await.unwrap();
    assert_eq!(text(&same, "one") + &text(&same, "sub/two"), "");
    assert!(fs::read_dir(root(&get(&shop, &url("zeros")).await.unwrap())).unwrap().next().is_none());
    assert!(fs::read_dir(root(&get(&shop, &url("empty")).await.unwrap())).unwrap().next().is_none());
}

#[tokio::test]
async fn tokens_are_fetched_with_the_credentials_and_go_nowhere_else() {
    let (shelf, digest) = image();
    let elsewhere = {
        let shelf = shelf.clone();
        // As storage behind a registry: it refuses what carries a token of somebody else.
        Server::start(move |request, _| match request.header("authorization") {
            Some(_) => answer("400 Bad Request", "", b""),
            None => {
                shelf.answer(&Seen { target: request.target.trim_start_matches("/storage").into(), ..request.clone() })
            }
        })
        .await
    };
    let storage = elsewhere.url("storage");
    let host = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let own = std::sync::Arc::clone(&host);
    let server = Server::start(move |request, number| {
        let realm = format!(
            "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"registry\",scope=\"repository:r:pull\"\r\n",
            own.get().unwrap()
        );
        if request.target.starts_with("/token") {
            let good = request.header("authorization") == Some("Basic bWU6c2VjcmV0");
            let body = format!("{{\"token\": \"secret-{number}\"}}");
            return if good { ok(body.as_bytes()) } else { answer("401 Unauthorized", "", b"{}") };
        }
        match request.header("authorization") {
            Some(token) if token.starts_with("Bearer secret-") => {}
            _ => return answer("401 Unauthorized", &realm, b"{}"),
        }
        if request.target.contains("/blobs/") {
            return answer("307 Temporary Redirect", &format!("Location: {storage}{}\r\n", request.target), b"");
        }
        shelf.answer(request)
    })
    .await;
    host.set(server.host.clone()).unwrap();
    let url = format!("{}/r:1", server.host);
    let config = tempfile::NamedTempFile::new().unwrap();
    let with = |content: String| {
        fs::write(&config, content).unwrap();
        Shop::new(|policy| policy.registry_config = Some(config.path().to_owned()))
    };
    fails(&Shop::new(|_| {}), &url, None, fault::UNAUTHORIZED, "gives no token").await;
    fails(&with("nonsense secret".into()), &url, None, fault::BAD_REGISTRY_CONFIG, "--registry-config").await;
    let wrong = with(json!({"auths": {server.host.clone(): {"auth": "bWU6eHNlY3JldA=="}}}).to_string());
    fails(&wrong, &url, None, fault::UNAUTHORIZED, "gives no token for these credentials").await;
    let shop = with(json!({"auths": {server.host.clone(): {"auth": "bWU6c2VjcmV0"}}}).to_string());
    assert_eq!(get(&shop, &url).await.unwrap().digest, digest);
    let asked = server.seen();
    let token = asked.iter().rev().find(|seen| seen.target.starts_with("/token")).unwrap();
    assert_eq!(token.target, "/token?service=registry&scope=repository:r:pull");
    assert!(elsewhere.seen().iter().all(|seen| seen.header("authorization").is_none()));
    // The file is read each time.
    fs::remove_file(&config).unwrap();
    fails(
        &Shop::new(|p| p.registry_config = Some("/nowhere".into())),
        &url,
        None,
        fault::BAD_REGISTRY_CONFIG,
        "/nowhere",
    )
    .await;
}

#[tokio::test]
async fn basic_credentials() {
    let (shelf, digest) = image();
    let server = Server::start(move |request, _| match request.header("authorization") {
        Some("Basic bWU6c2VjcmV0") => shelf.answer(request),
        _ => answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", b"{}"),
    })
    .await;
    let url = format!("{}/r:1", server.host);
    let config = tempfile::NamedTempFile::new().unwrap();
    let shop = Shop::new(|policy| policy.registry_config = Some(config.path().to_owned()));
    for (content, says) in [
        (json!({}), "--registry-config"),
        (json!({"auths": {server.host.clone(): {"auth": "bWU6d3JvbmdzZWNyZXQ="}}}), "refuses the credentials"),
        (json!({"credsStore": "pass"}), "credential helper"),
    ] {
        fs::write(&config, content.to_string()).unwrap();
        fails(&shop, &url, None, fault::UNAUTHORIZED, says).await;
    }
    fs::write(&config, json!({"auths": {server.host.clone(): {"username": "me", "password": "secret"}}}).to_string())
        .unwrap();
    assert_eq!(get(&shop, &url).await.unwrap().digest, digest);
    let odd = Server::start(|_, _| answer("401 Unauthorized", "WWW-Authenticate: Negotiate\r\n", b"")).await;
    fails(&Shop::new(|_| {}), &format!("{}/r:1", odd.host), None, fault::UNAUTHORIZED, "a kind of credentials").await;
}

/// Storage behind a registry wants credentials of its own: it does not get the registry's.
#[tokio::test]
async fn who_is_redirected_to_cannot_ask_for_credentials() {
    let (shelf, _) = image();
    let thief = Server::start(|request, _| {
        let host = request.header("host").unwrap();
        let realm = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\"\r\n");
        if request.target.starts_with("/token") {
            ok(b"{\"token\": \"x\"}")
        } else {
            answer("401 Unauthorized", &realm, b"")
        }
    })
    .await;
    let location = format!("Location: {}\r\n", thief.url("blob"));
    let server = Server::start(move |request, _| {
        if request.target.contains("/blobs/") { answer("307 Go", &location, b"") } else { shelf.answer(request) }
    })
    .await;
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(&config, json!({"auths": {server.host.clone(): {"auth": "bWU6c2VjcmV0"}}}).to_string()).unwrap();
    let shop = Shop::new(|policy| policy.registry_config = Some(config.path().to_owned()));
    fails(&shop, &format!("{}/r:1", server.host), None, fault::UNAUTHORIZED, "wants credentials").await;
    assert!(thief.seen().iter().all(|seen| seen.header("authorization").is_none() && seen.target == "/blob"));
}

/// Each lie is named, and nothing of what it brought is ever visible.
#[tokio::test]
async fn a_lying_registry() {
    let (shelf, digest) = image();
    let blob = shelf.items.keys().find(|path| path.contains("/blobs/")).unwrap().clone();
    let bytes = shelf.items[&blob].clone();
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    type Lie = Box<dyn Fn(&Seen) -> Option<Vec<Act>> + Send + Sync>;
    let manifest_is = |body: &'static [u8]| -> Lie {
        Box::new(move |seen: &Seen| seen.target.contains("/manifests/").then(|| ok(body)))
    };
    let blob_is = |acts: fn(&[u8]) -> Vec<Act>, body: Vec<u8>| -> Lie {
        Box::new(move |seen: &Seen| seen.target.contains("/blobs/").then(|| acts(&body)))
    };
    let mut longer = bytes.clone();
    longer.push(0);
    let endless: Lie = Box::new(|seen| {
        seen.target
            .contains("/manifests/")
            .then(|| vec![Act::Send(b"HTTP/1.1 200 OK\r\n\r\n{".to_vec()), Act::Endless(vec![b' '; 65536])])
    });
    let lies: Vec<(Lie, &str, &str, &str)> = vec![
        (
            manifest_is(b"{\"schemaVersion\": 2, \"layers\": []}"),
            "",
            fault::CHECKSUM_MISMATCH,
            "another manifest than it says",
        ),
        (endless, ":1", fault::REGISTRY_ERROR, "longer than"),
        (blob_is(ok, other), ":1", fault::CHECKSUM_MISMATCH, "the SHA-256 of the layer"),
        (blob_is(ok, longer.clone()), ":1", fault::CHECKSUM_MISMATCH, "another length"),
        (blob_is(ok, bytes[1..].to_vec()), ":1", fault::CHECKSUM_MISMATCH, "another length"),
        (
            // Without a length, and then more than was said.
            blob_is(|_| vec![Act::Send(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()), Act::Endless(vec![0; 65536])], Vec::new()),
            ":1",
            fault::CHECKSUM_MISMATCH,
            "another length",
        ),
        (
            blob_is(
                |body| {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    vec![Act::Send([head.as_bytes(), &body[..5]].concat()), Act::Close]
                },
                bytes.clone(),
            ),
            ":1",
            fault::INTERRUPTED,
            "broke off",
        ),
        (blob_is(|_| answer("500 Oops", "", b""), Vec::new()), ":1", fault::REGISTRY_ERROR, "answers 500"),
        (blob_is(|_| answer("404 Not Found", "", b""), Vec::new()), ":1", fault::NOT_FOUND, "does not have the layer"),
        (
            Box::new(|_: &Seen| Some(answer("503 Busy", "Retry-After: 9\r\n", b""))),
            ":1",
            fault::REGISTRY_ERROR,
            "answers 503",
        ),
    ];
    for (lie, version, reason, says) in lies {
        let shelf = shelf.clone();
        let server = Server::start(move |request, _| lie(request).unwrap_or_else(|| shelf.answer(request))).await;
        let shop = Shop::new(|_| {});
        let version = if version.is_empty() { format!("@{digest}") } else { version.to_owned() };
        let error = fails(&shop, &format!("{}/r{version}", server.host), None, reason, says).await;
        assert_eq!(error.retry_after.is_some(), error.message.contains("503"));
        if error.reason == fault::CHECKSUM_MISMATCH {
            assert!(shop.listed().1.is_empty(), "{error}");
        }
    }
    // It says one digest in the header and sends another manifest.
    let served = shelf.clone();
    let server = Server::start(move |request, _| match served.items.get(&request.target) {
        Some(body) => answer("200 OK", &format!("Docker-Content-Digest: sha256:{}\r\n", "a".repeat(64)), body),
        None => answer("404 Not Found", "", b""),
    })
    .await;
    fails(&Shop::new(|_| {}), &format!("{}/r:1", server.host), None, fault::CHECKSUM_MISMATCH, "than it says").await;
    let shop = Shop::new(|policy| policy.limits.bytes = 10);
    let server = shelf.serve().await;
    fails(&shop, &format!("{}/r:1", server.host), None, fault::TOO_LARGE, "--max-artifact-bytes").await;
}

#[tokio::test]
async fn a_layer_that_broke_off_is_gone_on_with() {
    let mut shelf = Shelf::default();
    let first = tar(&[Put::File("a", &[b'a'; 3000], 0o644)]);
    let second = tar(&[Put::File("b", &(0..60_000_u32).map(|i| (i * 7 % 256) as u8).collect::<Vec<_>>(), 0o644)]);
    let layers: Vec<_> = [&first, &second].iter().map(|layer| shelf.blob(TAR, layer)).collect();
    shelf.manifest(Some("1"), &json!({"schemaVersion": 2, "layers": layers}));
    let broken = format!("/v2/r/blobs/sha256:{}", sha(&second));
    let server = Server::start(move |request, _| match shelf.items.get(&request.target) {
        Some(body) if request.target == broken && request.header("range").is_none() => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            vec![Act::Send([head.as_bytes(), &body[..40_000]].concat()), Act::Close]
        }
        Some(body) => part(request, "", body),
        None => answer("404 Not Found", "", b""),
    })
    .await;
    let shop = Shop::new(|_| {});
    let url = format!("{}/r:1", server.host);
    assert_eq!(get(&shop, &url).await.unwrap_err().reason, fault::INTERRUPTED);
    let fetched = get(&shop, &url).await.unwrap();
    assert_eq!(fs::read(root(&fetched).join("b")).unwrap().len(), 60_000);
    let blobs: Vec<_> = server.seen().into_iter().filter(|seen| seen.target.contains("/blobs/")).collect();
    let ranges: Vec<_> = blobs.iter().map(|seen| seen.header("range")).collect();
    assert_eq!(ranges, [None, None, Some("bytes=40000-")], "the first layer is not fetched twice");
}

#[tokio::test]
async fn plain_http_is_for_loopback_and_the_list() {
    let (shelf, digest) = image();
    let server = shelf.serve().await;
    // Another name of loopback that does not look like it.
    let port = server.host.rsplit(':').next().unwrap();
    let name = format!("0.0.0.0:{port}");
    let refusing = Shop::new(|_| {});
    let error = fails(&refusing, &format!("{name}/r:1"), None, fault::INSECURE_REGISTRY, "--insecure-registry").await;
    assert!(error.message.contains(&name), "{error}");
    let listed = crate::agent::artifact::policy::InsecureRegistry::parse(&name).unwrap();
    let shop = Shop::new(|policy| policy.insecure_registries = vec![listed]);
    assert_eq!(get(&shop, &format!("{name}/r:1")).await.unwrap().digest, digest);
    let gone = "127.0.0.1:1/r:1";
    fails(&refusing, gone, None, fault::REGISTRY_UNREACHABLE, "cannot connect to 127.0.0.1:1").await;
}

#[tokio::test]
async fn links_that_are_there_already_are_not_followed() {
    // Whoever could write to the folder has won anyway; a leftover of a crash must do no harm.
    let (shelf, _) = image();
    let server = shelf.serve().await;
    let shop = Shop::new(|_| {});
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir_all(shop.folder.path().join("artifacts/incoming")).unwrap();
    let wanted = artifact(ArtifactType::Oci, &format!("{}/r:1", server.host), None);
    assert!(shop.store.fetch(&wanted, None).await.is_ok());
    symlink(outside.path(), shop.folder.path().join("artifacts/incoming/trash-link")).unwrap();
    fs::write(outside.path().join("kept"), "").unwrap();
    shop.store.collect(&std::collections::HashSet::new()).unwrap();
    assert!(outside.path().join("kept").exists());
    assert_eq!(shop.listed(), (vec![], vec![]));
}
