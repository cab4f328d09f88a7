//! Edge: files and downloads, from servers that behave and others.

use super::*;
use crate::agent::artifact::Stage;
use crate::agent::artifact::misbehaving::{Act, Put, Server, Shop, answer, artifact, cut, gzip, ok, part, sha, tar};
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

const BODY: &[u8] = b"#!/bin/sh\necho hello\n";
const ETAG: &str = "ETag: \"one\"\r\n";

fn read(fetched: &Fetched, name: &str) -> Vec<u8> {
    fs::read(fetched.root.as_ref().unwrap().join(name)).unwrap()
}

async fn fails(shop: &Shop, url: &str, checksum: Option<&str>, reason: &str) -> FetchError {
    let error = shop.get(ArtifactType::Http, url, checksum).await.unwrap_err();
    assert_eq!(error.reason, reason, "{error}");
    assert!(!error.message.contains("secret") && !error.message.contains('\n'), "{error}");
    assert_eq!(shop.listed().0, Vec::<String>::new(), "nothing is visible after {error}");
    // The same cause has the same words.
    assert_eq!(shop.get(ArtifactType::Http, url, checksum).await.unwrap_err().message, error.message);
    error
}

#[tokio::test]
async fn a_program_is_downloaded_once() {
    let server = Server::start(|_, _| ok(BODY)).await;
    let shop = Shop::new(|_| {});
    let url = server.url("x/agent?version=1");
    let fetched = shop.get(ArtifactType::Http, &url, Some(&sha(BODY).to_uppercase())).await.unwrap();
    assert_eq!((fetched.digest.as_str(), read(&fetched, "agent")), (&*format!("sha256:{}", sha(BODY)), BODY.to_vec()));
    let mode = fs::metadata(fetched.root.as_ref().unwrap().join("agent")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    assert_eq!(shop.listed(), (vec![sha(BODY)], vec![]));
    assert_eq!(shop.get(ArtifactType::Http, &url, Some(&sha(BODY))).await.unwrap(), fetched);
    assert_eq!(server.seen().len(), 1);
    assert_eq!(shop.store.have(&fetched.digest), Some(fetched.clone()));
    assert_eq!(shop.store.have("sha256:../../etc"), None);
    // The same bytes under another name, from somewhere that is not even there.
    let other = shop.get(ArtifactType::Http, "http://127.0.0.1:1/other", Some(&sha(BODY))).await.unwrap();
    assert_eq!((read(&other, "other"), read(&other, "agent")), (BODY.to_vec(), BODY.to_vec()));
}

#[tokio::test]
async fn archives_are_unpacked_and_anything_else_is_a_file() {
    let inner = tar(&[Put::Folder("./bin/", 0o777), Put::File("./bin/agent", BODY, 0o4777)]);
    for (body, unpacked) in
        [(inner.clone(), true), (gzip(&inner), true), (gzip(BODY), false), (vec![0; 2048], false), (vec![], false)]
    {
        let served = body.clone();
        let server = Server::start(move |_, _| ok(&served)).await;
        let shop = Shop::new(|_| {});
        let fetched = shop.get(ArtifactType::Http, &server.url("a.tgz"), Some(&sha(&body))).await.unwrap();
        if unpacked {
            assert_eq!(read(&fetched, "bin/agent"), BODY);
            let mode = |name| fs::metadata(fetched.root.as_ref().unwrap().join(name)).unwrap().permissions().mode();
            assert_eq!((mode("bin/agent") & 0o7777, mode("bin") & 0o7777, mode("") & 0o7777), (0o755, 0o755, 0o755));
        } else {
            assert_eq!(read(&fetched, "a.tgz"), body);
        }
        assert_eq!(shop.listed().1, Vec::<String>::new());
    }
}

#[tokio::test]
async fn what_broke_off_is_gone_on_with() {
    for headers in [ETAG, "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n", ""] {
        let server = Server::start(move |request, number| match number {
            0 => cut(headers, BODY, 7),
            _ => part(request, headers, BODY),
        })
        .await;
        let shop = Shop::new(|_| {});
        let error = shop.get(ArtifactType::Http, &server.url("a"), Some(&sha(BODY))).await.unwrap_err();
        assert_eq!((error.reason, error.stage), (fault::INTERRUPTED, Stage::Download));
        assert!(shop.listed().0.is_empty());
        let fetched = shop.get(ArtifactType::Http, &server.url("a"), Some(&sha(BODY))).await.unwrap();
        assert_eq!(read(&fetched, "a"), BODY);
        let second = &server.seen()[1];
        assert_eq!(second.header("range"), Some("bytes=7-"));
        let validator = headers.split_once(": ").map(|(_, value)| value.trim());
        assert_eq!(second.header("if-range"), validator);
    }
}

#[tokio::test]
async fn without_checksum_and_validator_it_begins_anew() {
    let server = Server::start(|_, number| if number == 0 { cut("", BODY, 7) } else { ok(BODY) }).await;
    let shop = Shop::new(|policy| policy.allow_missing_checksum = true);
    assert!(shop.get(ArtifactType::Http, &server.url("a"), None).await.is_err());
    let fetched = shop.get(ArtifactType::Http, &server.url("a"), None).await.unwrap();
    assert_eq!((server.seen()[1].header("range"), read(&fetched, "a")), (None, BODY.to_vec()));
}

/// Whatever a server makes of the request for a part: in the end the right bytes are there, or none.
#[tokio::test]
async fn lies_about_parts_do_no_harm() {
    let changed = b"CHANGED and not the same".as_slice();
    type Lie = fn() -> Vec<Act>;
    let lies: [Lie; 6] = [
        || answer("206 Partial Content", "Content-Range: bytes 7-20/21\r\n", b"wrong bytes!!!"),
        || answer("206 Partial Content", "Content-Range: bytes 0-20/21\r\n", BODY),
        || answer("206 Partial Content", "", &BODY[7..]),
        || answer("206 Partial Content", "Content-Range: bytes 7-9/21\r\n", &BODY[7..10]),
        || answer("416 Range Not Satisfiable", "Content-Range: bytes */3\r\n", b""),
        || ok(BODY),
    ];
    for lie in lies {
        let server = Server::start(move |_, number| match number {
            0 => cut(ETAG, BODY, 7),
            1 => lie(),
            _ => ok(BODY),
        })
        .await;
        let shop = Shop::new(|_| {});
        assert!(shop.get(ArtifactType::Http, &server.url("a"), Some(&sha(BODY))).await.is_err());
        let fetched = shop.get(ArtifactType::Http, &server.url("a"), Some(&sha(BODY))).await.unwrap();
        assert_eq!(read(&fetched, "a"), BODY);
    }
    // It has changed since: the part goes, the new one is judged by itself.
    let server = Server::start(move |_, n| if n == 0 { cut(ETAG, BODY, 7) } else { ok(changed) }).await;
    let shop = Shop::new(|_| {});
    assert!(shop.get(ArtifactType::Http, &server.url("a"), Some(&sha(BODY))).await.is_err());
    let error = fails(&shop, &server.url("a"), Some(&sha(BODY)), fault::CHECKSUM_MISMATCH).await;
    assert_eq!(error.stage, Stage::Verify);
    assert!(error.message.contains(&sha(changed)) && error.message.contains(&sha(BODY)), "{error}");
    assert_eq!(shop.listed().1, Vec::<String>::new(), "what is wrong takes no space");
}

#[tokio::test]
async fn each_refusal_has_its_reason() {
    for (status, headers, reason, says, after) in [
        ("404 Not Found", "", fault::NOT_FOUND, "does not have http://127.0.0.1", None),
        ("410 Gone", "", fault::NOT_FOUND, "does not have", None),
        ("401 Unauthorized", "", fault::UNAUTHORIZED, "wants credentials", None),
        ("403 Forbidden", "", fault::UNAUTHORIZED, "refuses", None),
        ("500 Oops", "", fault::SERVER_ERROR, "answers 500", None),
        ("503 Busy", "Retry-After: 7\r\n", fault::SERVER_ERROR, "answers 503", Some(7)),
        ("429 Slow", "Retry-After: 999999\r\n", fault::SERVER_ERROR, "too often", Some(3600)),
        ("206 Partial", "Content-Range: bytes 0-1/2\r\n", fault::SERVER_ERROR, "answers 206", None),
        ("302 Found", "", fault::BAD_REDIRECT, "names no place", None),
        ("302 Found", "Location: ftp://a/b\r\n", fault::BAD_REDIRECT, "redirects to where nothing", None),
        ("302 Found", "Location: /again\r\n", fault::BAD_REDIRECT, "more than 10 times", None),
    ] {
        let server = Server::start(move |_, _| answer(status, headers, b"no")).await;
        let shop = Shop::new(|_| {});
        let url = server.url("a?token=secret").replace("http://", "http://me:secret@");
        let error = fails(&shop, &url, Some(&sha(BODY)), reason).await;
        assert!(error.message.contains(says), "{error}");
        assert_eq!((error.retry_after.map(|d| d.as_secs()), error.stage), (after, Stage::Download));
    }
}

#[tokio::test]
async fn servers_that_are_none() {
    let server = Server::start(|_, _| vec![Act::Send(b"220 smtp ready\r\n\r\n".to_vec()), Act::Close]).await;
    let shop = Shop::new(|_| {});
    let error = fails(&shop, &server.url("a"), Some(&sha(BODY)), fault::SERVER_ERROR).await;
    assert!(error.message.contains("does not speak HTTP"), "{error}");
    let error = fails(&shop, "http://127.0.0.1:1/a", Some(&sha(BODY)), fault::SERVER_UNREACHABLE).await;
    assert!(error.message.contains("cannot connect to 127.0.0.1:1"), "{error}");
    let error = fails(&shop, "http://nowhere.invalid/a", Some(&sha(BODY)), fault::SERVER_UNREACHABLE).await;
    assert!(error.message.contains("address of nowhere.invalid"), "{error}");
    for url in ["", "agent", "ftp://a/b", "/etc/passwd"] {
        fails(&shop, url, Some(&sha(BODY)), fault::BAD_REFERENCE).await;
    }
    for checksum in ["abc", &"g".repeat(64), "sha256:1"] {
        fails(&shop, "http://a/b", Some(checksum), fault::BAD_CHECKSUM).await;
    }
}

#[tokio::test]
async fn silence_is_not_waited_for() {
    let shop = Shop::new(|policy| policy.stall = Duration::from_millis(150));
    let server = Server::start(|_, number| match number {
        0 | 1 => vec![Act::Hang],
        2 => {
            let mut acts = cut(ETAG, BODY, 7);
            acts[1] = Act::Hang;
            acts
        }
        _ => vec![Act::Hang],
    })
    .await;
    let start = Instant::now();
    let error = fails(&shop, &server.url("a"), Some(&sha(BODY)), fault::STALLED).await;
    assert!(error.message.contains("does not answer"), "{error}");
    let error = shop.get(ArtifactType::Http, &server.url("a"), Some(&sha(BODY))).await.unwrap_err();
    assert!(error.reason == fault::STALLED && error.message.contains("stopped sending"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    // What had come is kept.
    let _ = shop.get(ArtifactType::Http, &server.url("a"), Some(&sha(BODY))).await;
    assert_eq!(server.seen()[3].header("range"), Some("bytes=7-"));
}

#[tokio::test]
async fn too_much_is_not_taken() {
    let shop = Shop::new(|policy| policy.limits.bytes = 1 << 20);
    let server =
        Server::start(|_, _| vec![Act::Send(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()), Act::Endless(vec![7; 65536])]).await;
    let error = fails(&shop, &server.url("a"), Some(&sha(BODY)), fault::TOO_LARGE).await;
    assert!(error.message.contains("--max-artifact-bytes"), "{error}");
    let server = Server::start(|_, _| {
        vec![Act::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".to_vec()), Act::Hang]
    })
    .await;
    fails(&shop, &server.url("a"), Some(&sha(BODY)), fault::TOO_LARGE).await;
    assert_eq!(shop.listed().1, Vec::<String>::new(), "it takes no space");
    // More than any disk has.
    let shop = Shop::new(|policy| policy.limits.bytes = u64::MAX);
    let server = Server::start(|_, _| {
        vec![Act::Send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1_u64 << 60).into_bytes()), Act::Hang]
    })
    .await;
    fails(&shop, &server.url("a"), Some(&sha(BODY)), fault::DISK_FULL).await;
}

#[tokio::test]
async fn credentials_stay_with_their_server() {
    let other = Server::start(|_, _| ok(BODY)).await;
    let location = format!("Location: {}\r\n", other.url("b"));
    let server = Server::start(move |_, n| {
        if n == 0 { answer("307 Moved", "Location: /second\r\n", b"") } else { answer("302 Found", &location, b"go") }
    })
    .await;
    let shop = Shop::new(|_| {});
    let url = server.url("a").replace("http://", "http://me:secret@");
    let fetched = shop.get(ArtifactType::Http, &url, Some(&sha(BODY))).await.unwrap();
    // The name is the spec's.
    assert_eq!(read(&fetched, "a"), BODY);
    let sent: Vec<_> = server.seen().iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [Some("Basic bWU6c2VjcmV0".to_owned()), Some("Basic bWU6c2VjcmV0".to_owned())]);
    assert_eq!(other.seen()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_checksum_may_be_missing_only_where_nobody_listens_in() {
    let server = Server::start(|_, _| ok(BODY)).await;
    let strict = Shop::new(|_| {});
    let error = fails(&strict, &server.url("a"), None, fault::CHECKSUM_MISSING).await;
    assert!(error.message.contains("--allow-missing-checksum"), "{error}");
    let shop = Shop::new(|policy| policy.allow_missing_checksum = true);
    let away = Server::start(|_, _| answer("302 Found", "Location: http://192.0.2.1/a\r\n", b"")).await;
    for url in ["http://192.0.2.1/a", &away.url("a")] {
        let error = fails(&shop, url, None, fault::CHECKSUM_MISSING).await;
        assert!(error.message.contains("plain HTTP"), "{error}");
    }
    assert!(server.seen().is_empty());
    let first = shop.get(ArtifactType::Http, &server.url("a"), None).await.unwrap();
    // What an earlier fetch came to is not asked for again.
    let again = shop.store.fetch(&artifact(ArtifactType::Http, &server.url("a"), None), Some(&first.digest)).await;
    assert_eq!((again.unwrap(), server.seen().len()), (first, 1));
}

#[tokio::test]
async fn two_who_want_the_same_share_one_download() {
    let server = Server::start(|_, _| ok(BODY)).await;
    let shop = Shop::new(|policy| policy.allow_missing_checksum = true);
    for checksum in [None, Some(sha(BODY))] {
        let url = server.url(if checksum.is_some() { "b" } else { "a" });
        let get = || shop.get(ArtifactType::Http, &url, checksum.as_deref());
        let (one, two, three) = tokio::join!(get(), get(), get());
        assert!(one.is_ok() && one == two && two == three, "{one:?} {two:?}");
    }
    assert_eq!(server.seen().len(), 1);
    // An error is shared as well.
    let broken = Server::start(|_, _| answer("500 No", "", b"")).await;
    let url = broken.url("a");
    let checksum = sha(b"other");
    let get = || shop.get(ArtifactType::Http, &url, Some(&checksum));
    let (one, two) = tokio::join!(get(), get());
    assert!(one.is_err() && one == two && broken.seen().len() == 1);
}

#[tokio::test]
async fn a_fetch_that_is_given_up_is_gone_on_with() {
    let body: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let served = body.clone();
    let server = Server::start(move |request, number| match number {
        0 => {
            let mut acts = cut(ETAG, &served, 1_500_000);
            acts[1] = Act::Hang;
            acts
        }
        _ => part(request, ETAG, &served),
    })
    .await;
    let shop = Shop::new(|_| {});
    let (url, checksum) = (server.url("a"), sha(&body));
    let get = || shop.get(ArtifactType::Http, &url, Some(&checksum));
    let parts = || {
        let incoming = fs::read_dir(shop.folder.path().join("artifacts/incoming")).into_iter().flatten().flatten();
        incoming
            .filter_map(|entry| fs::metadata(entry.path().join("http.part")).ok())
            .map(|data| data.len())
            .sum::<u64>()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    tokio::select! {
        outcome = get() => panic!("{outcome:?}"),
        () = async { while parts() < 1_000_000 && Instant::now() < deadline { tokio::task::yield_now().await } } => {}
    }
    let there = parts();
    assert!(there >= 1_000_000);
    let fetched = get().await.unwrap();
    assert_eq!(read(&fetched, "a"), body);
    let range = server.seen()[1].header("range").unwrap().to_owned();
    let from: u64 = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    assert!(from >= there, "{range} after {there}");
    assert_eq!(shop.listed().1, Vec::<String>::new());
}

#[tokio::test]
async fn bad_archives_leave_nothing() {
    let bomb = gzip(&tar(&[Put::File("zeros", &vec![0; 40 << 20], 0o644)]));
    let mut broken = gzip(&tar(&[Put::File("a", BODY, 0o644)]));
    let length = broken.len();
    broken.truncate(length / 2 + 60);
    let short = tar(&[Put::File("a", &[1; 5000], 0o644)])[..2048].to_vec();
    let many: Vec<_> = (0..50).map(|_| Put::Folder("d", 0o755)).collect();
    for (body, reason, says) in [
        (tar(&[Put::File("../evil", BODY, 0o644)]), fault::BAD_ARCHIVE, "the path ../evil"),
        (tar(&[Put::File("/evil", BODY, 0o644)]), fault::BAD_ARCHIVE, "absolute path /evil"),
        (
            tar(&[Put::Link("l", "../.."), Put::File("l/evil", BODY, 0o644)]),
            fault::BAD_ARCHIVE,
            "a link that leads out",
        ),
        (tar(&[Put::Link("l", "/"), Put::File("l/evil", BODY, 0o644)]), fault::BAD_ARCHIVE, "writes through a link"),
        (tar(&[Put::Hard("h", "../../../../etc/passwd")]), fault::BAD_ARCHIVE, "the path ../../"),
        (tar(&[Put::Hard("h", "nothing")]), fault::BAD_ARCHIVE, "second name of nothing"),
        (
            tar(&[Put::Folder("a", 0o755), Put::Link("a/l", "../x"), Put::Hard("h", "a/l")]),
            fault::BAD_ARCHIVE,
            "second name",
        ),
        (tar(&[Put::Device("null")]), fault::BAD_ARCHIVE, "null, which is a device"),
        (
            tar(&[Put::File("a", b"", 0o644), Put::File("a/b", BODY, 0o644)]),
            fault::BAD_ARCHIVE,
            "through a link or a file",
        ),
        (short, fault::BAD_ARCHIVE, "breaks off"),
        (bomb, fault::TOO_LARGE, "200:1"),
        (tar(&many), fault::TOO_LARGE, "more than 40 files"),
    ] {
        let served = body.clone();
        let server = Server::start(move |_, _| ok(&served)).await;
        let shop = Shop::new(|policy| policy.limits.files = 40);
        let error = fails(&shop, &server.url("a"), Some(&sha(&body)), reason).await;
        assert!(error.message.contains(says), "{error}");
        assert_eq!(error.stage, Stage::Verify);
        assert_eq!(shop.listed().1, Vec::<String>::new(), "{error}");
        let names: Vec<_> =
            fs::read_dir(shop.folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["artifacts"]);
    }
    assert!(!Path::new("/evil").exists());
}

#[tokio::test]
async fn files_of_the_device() {
    let shop = Shop::new(|_| {});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    let url = path.to_str().unwrap();
    async fn shop_get(shop: &Shop, url: &str, checksum: Option<String>) -> Result<Fetched, FetchError> {
        shop.get(ArtifactType::File, url, checksum.as_deref()).await
    }
    let get = |checksum: Option<String>| shop_get(&shop, url, checksum);
    assert_eq!(get(None).await.unwrap_err().reason, fault::NOT_FOUND);
    fs::write(&path, BODY).unwrap();
    let first = get(None).await.unwrap();
    assert_eq!((first.digest.clone(), read(&first, "agent")), (format!("sha256:{}", sha(BODY)), BODY.to_vec()));
    assert_eq!(get(Some(sha(BODY))).await.unwrap(), first);
    let error = get(Some(sha(b"x"))).await.unwrap_err();
    assert_eq!((error.reason, error.stage), (fault::CHECKSUM_MISMATCH, Stage::Verify));
    // A copy: what happens to the file afterwards changes nothing.
    fs::write(&path, gzip(&tar(&[Put::File("bin/x", BODY, 0o755)]))).unwrap();
    assert_eq!(read(&first, "agent"), BODY);
    let second = get(None).await.unwrap();
    assert_eq!(read(&second, "bin/x"), BODY);
    let pinned = shop.store.fetch(&artifact(ArtifactType::File, url, None), Some(&first.digest)).await.unwrap();
    assert_eq!(pinned, first);
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    for (url, reason) in [
        ("relative", fault::BAD_REFERENCE),
        (folder.path().to_str().unwrap(), fault::BAD_REFERENCE),
        (pipe.to_str().unwrap(), fault::BAD_REFERENCE),
        ("/dev/zero", fault::BAD_REFERENCE),
        ("/proc/nothing", fault::NOT_FOUND),
    ] {
        assert_eq!(shop_get(&shop, url, None).await.unwrap_err().reason, reason, "{url}");
    }
    let small = Shop::new(|policy| policy.limits.bytes = 5);
    assert_eq!(shop_get(&small, url, None).await.unwrap_err().reason, fault::TOO_LARGE);
    assert_eq!(small.listed().1.len(), 0);
}

#[tokio::test]
async fn what_nobody_needs_is_collected_and_crashes_are_cleaned_up() {
    let server = Server::start(|request, _| match request.target.as_str() {
        "/cut" => cut(ETAG, BODY, 7),
        target => ok(target.as_bytes()),
    })
    .await;
    let shop = Shop::new(|_| {});
    let mut digests = Vec::new();
    for path in ["/a", "/b", "/c"] {
        let url = server.url(&path[1..]);
        digests.push(shop.get(ArtifactType::Http, &url, Some(&sha(path.as_bytes()))).await.unwrap().digest);
    }
    assert!(shop.get(ArtifactType::Http, &server.url("cut"), Some(&sha(BODY))).await.is_err());
    let artifacts = shop.folder.path().join("artifacts");
    fs::create_dir(artifacts.join("not-ours")).unwrap();
    let freed = shop.store.collect(&HashSet::from([digests[1].clone()])).unwrap();
    assert!(freed > 0);
    assert!(shop.store.have(&digests[1]).is_some() && shop.store.have(&digests[0]).is_none());
    assert_eq!(shop.listed().0, [sha(b"/b"), "not-ours".to_owned()]);
    assert_eq!(shop.listed().1.len(), 1, "a part that is young stays");
    assert_eq!(shop.store.collect(&HashSet::from([digests[1].clone()])).unwrap(), 0);
    // What a crash leaves: something unpacked by half, something half removed, a folder of nothing.
    let incoming = artifacts.join("incoming");
    let part = incoming.join(&shop.listed().1[0]);
    fs::create_dir_all(part.join("root/bin")).unwrap();
    fs::create_dir_all(incoming.join("trash-x/y")).unwrap();
    fs::create_dir_all(incoming.join("nothing")).unwrap();
    let again = Store::open(artifacts.clone(), Policy::default());
    assert!(part.join("http.part").exists() && !part.join("root").exists());
    assert_eq!(shop.listed().1.len(), 1);
    assert!(again.have(&digests[1]).is_some());
    // What somebody works on is left alone, however old it is.
    let lock = try_lock(&part).unwrap().unwrap();
    assert_eq!(again.inner.clean(Duration::ZERO).unwrap(), 0);
    drop(lock);
    assert!(again.inner.clean(Duration::ZERO).unwrap() > 0 && shop.listed().1.is_empty());
    // Nothing there yet is no trouble.
    assert_eq!(Store::open("/nowhere/artifacts".into(), Policy::default()).collect(&HashSet::new()).unwrap(), 0);
}

#[tokio::test]
async fn a_folder_that_cannot_be_is_said_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let blocker = folder.path().join("state");
    fs::write(&blocker, "").unwrap();
    let store = Store::open(blocker.join("artifacts"), Policy::default());
    let file = folder.path().join("x");
    fs::write(&file, BODY).unwrap();
    let wanted = artifact(ArtifactType::File, file.to_str().unwrap(), None);
    let error = store.fetch(&wanted, None).await.unwrap_err();
    assert_eq!(error.reason, fault::DISK_ERROR, "{error}");
    fs::remove_file(&blocker).unwrap();
    assert!(store.fetch(&wanted, None).await.is_ok());
}

#[tokio::test]
async fn another_process_is_waited_for() {
    let server = Server::start(|_, _| ok(BODY)).await;
    let shop = Shop::new(|_| {});
    let wanted = artifact(ArtifactType::Http, &server.url("a"), Some(&sha(BODY)));
    let key = Request::new(&wanted, None).unwrap().key(&wanted);
    let folder = shop.folder.path().join("artifacts/incoming").join(key);
    fs::create_dir_all(&folder).unwrap();
    let lock = try_lock(&folder).unwrap().unwrap();
    let wait = Duration::from_millis(600);
    assert!(tokio::time::timeout(wait, shop.store.fetch(&wanted, None)).await.is_err());
    // It has ended, and taken its folder with it: one that waited must not go on in a folder that nobody sees.
    let (fetched, ()) = tokio::join!(shop.store.fetch(&wanted, None), async {
        tokio::task::yield_now().await;
        fs::remove_dir_all(&folder).unwrap();
        drop(lock);
    });
    assert_eq!(read(&fetched.unwrap(), "a"), BODY);
    assert_eq!(server.seen().len(), 1);
}
