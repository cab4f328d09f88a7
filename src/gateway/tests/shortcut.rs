//! Edge: the short way answers as the long one does, and only what may be answered so.

use super::super::server::Connections;
use super::super::shortcut::Shortcut;
use super::connections::{Device, get, post};
use super::*;
use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, duplex};

const BODY: &str = r#"{"bootId":"b","sequence":1}"#;

/// A connection's short way after a request has gone the long way.
async fn after(fixture: &Fixture, bytes: &str) -> Shortcut<Script> {
    let state = State::new();
    let session = Session::new(fixture.gateway.clone(), state.clone());
    let mut shortcut = Shortcut::new(fixture.gateway.clone(), state);
    assert!(shortcut.settle());
    assert!(shortcut.answer(bytes.as_bytes()).is_none());
    shortcut.pass(bytes.as_bytes());
    let (head, body) = bytes.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let mut request = Request::builder().method(first.next().unwrap()).uri(first.next().unwrap());
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value);
    }
    session.answer(request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap()).await.unwrap();
    shortcut.settle();
    shortcut
}

async fn etag(fixture: &Fixture) -> String {
    fixture.get(DEVICE, "", &[]).await.header("etag").to_owned()
}

#[tokio::test]
async fn the_same_again_is_recalled() {
    let fixture = Fixture::new();
    fixture.script.settled.store(true, Ordering::Relaxed);
    let poll = get(&format!("If-None-Match: {}\r\n", etag(&fixture).await));
    let mut shortcut = after(&fixture, &poll).await;
    for _ in 0..3 {
        assert!(shortcut.answer(poll.as_bytes()).is_some_and(|answer| answer.starts_with(b"HTTP/1.1 304 ")));
        assert!(shortcut.settle());
    }
    assert_eq!(fixture.metric("praetor_desired_requests_total", Some("304")), 4.0);
    // Anything else is not.
    for other in [
        poll.replace("304", ""),
        poll.replace("Host: x", "Host: y"),
        poll.replace("GET", "HEAD"),
        format!("{poll}G"),
        poll[1..].to_owned(),
        String::new(),
    ] {
        assert!(other == poll || shortcut.answer(other.as_bytes()).is_none(), "{other}");
    }
    // Nor is the same when something has changed.
    fixture.change(1, 101);
    assert!(shortcut.answer(poll.as_bytes()).is_none());

    let report = post(&format!("Content-Length: {}\r\n", BODY.len()), BODY);
    let mut shortcut = after(&fixture, &report).await;
    let next = report.replace("\"sequence\":1", "\"sequence\":2");
    assert!(shortcut.answer(next.as_bytes()).is_some_and(|answer| answer.ends_with(b"\r\n\r\n{\"ack\":true}")));
    // Read as JSON the first time, by its pattern after that: the same is asked.
    for sequence in 3..6 {
        let next = report.replace("\"sequence\":1", &format!("\"sequence\":{sequence}"));
        assert!(shortcut.answer(next.as_bytes()).is_some());
    }
    let asked = std::mem::take(&mut *fixture.script.asked.lock());
    assert_eq!(asked.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(asked.iter().all(|(_, fingerprint)| *fingerprint == asked[0].1));
    for other in [report.replace("\"b\"", "{[]"), report.replace('}', "} "), report.replace("bootId", "boatId")] {
        assert!(shortcut.answer(other.as_bytes()).is_none(), "{other}");
    }
    fixture.script.settled.store(false, Ordering::Relaxed);
    assert!(shortcut.answer(next.as_bytes()).is_none());
    fixture.script.settled.store(true, Ordering::Relaxed);
    assert!(shortcut.answer(next.as_bytes()).is_some());
    fixture.gateway.drain();
    assert!(shortcut.answer(next.as_bytes()).is_none());
}

#[tokio::test]
async fn what_must_not_be_recalled() {
    let fixture = Fixture::new();
    let poll = get(&format!("If-None-Match: {}\r\n", etag(&fixture).await));
    for once in [
        get(""),
        poll.replace("desired", "desired?waitSeconds=1"),
        poll.replacen("GET", "HEAD", 1),
        poll.replace("X-Device-Token", "X-Other"),
        format!("{}{}", poll.replacen("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n", 1), ""),
        post(&format!("Content-Length: {}\r\n", BODY.len()), BODY),
    ] {
        let mut shortcut = after(&fixture, &once).await;
        assert!(shortcut.answer(once.as_bytes()).is_none(), "{once}");
    }
}

/// What can happen on a connection.
#[derive(Debug, Clone)]
enum Step {
    /// A request, sent in so many parts.
    Send(usize, u8),
    /// Two requests in one write.
    Pair(usize, usize),
    /// The device's process changes.
    Change,
    /// Whether reports leave nothing to do.
    Settle(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_usize..11, prop_oneof![4 => Just(1_u8), 1 => 2_u8..4]).prop_map(|(request, parts)| Step::Send(request, parts)),
        1 => (0_usize..11, 0_usize..11).prop_map(|(a, b)| Step::Pair(a, b)),
        1 => Just(Step::Change),
        1 => any::<bool>().prop_map(Step::Settle),
    ]
}

/// The requests that steps choose from; `etag` is the current one of the device.
fn request(number: usize, etag: &str) -> String {
    let matching = format!("If-None-Match: {etag}\r\n");
    let length = format!("Content-Length: {}\r\n", BODY.len());
    match number {
        0 | 1 => get(&matching),
        2 => get(""),
        3 => get(&matching).replace("X-Device-Token: ", "X-Device-Token: 0"),
        4 => get(&matching).replacen("\r\n", "\nX-Odd: 1\n\n", 1).replacen("\n\n", "\n", 1),
        5 | 6 => post(&length, BODY),
        7 => post(&length, BODY).replace("report", "connect"),
        8 => post("Transfer-Encoding: chunked\r\n", &format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len())),
        9 => post("Content-Length: 2\r\n", "{]"),
        _ => get(&matching).replace(DEVICE, BARE),
    }
}

/// What an answer says, without when.
fn said(reply: &Reply) -> (u16, Vec<(String, String)>, Bytes) {
    let headers = reply.headers.iter().filter(|(name, _)| *name != "date");
    let mut headers: Vec<_> =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    headers.sort();
    (reply.status, headers, reply.body.clone())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn one_connection_says_what_many_say(steps in prop::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let result: Result<(), TestCaseError> = runtime.block_on(async {
            let fixture = Fixture::new();
            let connections = Connections::new(fixture.gateway.clone(), None, 100);
            let connect = || {
                let (near, far) = duplex(64 * 1024);
                connections.start(far, None);
                Device(near)
            };
            let mut kept = connect();
            let mut generation = 1;
            for step in steps {
                let requests = match step {
                    Step::Change => {
                        generation += 1;
                        fixture.change(generation, 100 + generation.unsigned_abs());
                        continue;
                    }
                    Step::Settle(settled) => {
                        fixture.script.settled.store(settled, Ordering::Relaxed);
                        continue;
                    }
                    Step::Send(request, _) => vec![request],
                    Step::Pair(a, b) => vec![a, b],
                };
                let tag = etag(&fixture).await;
                let requests: Vec<String> = requests.into_iter().map(|number| request(number, &tag)).collect();
                let all = requests.concat();
                let parts = if let Step::Send(_, parts) = step { usize::from(parts) } else { 1 };
                for part in all.as_bytes().chunks(all.len().div_ceil(parts)) {
                    kept.0.write_all(part).await.unwrap();
                    tokio::task::yield_now().await;
                }
                for request in requests {
                    let mut fresh = connect();
                    fresh.send(&request).await;
                    let expected = fresh.answer(true).await.unwrap();
                    let answered = kept.answer(true).await;
                    prop_assert!(answered.is_some(), "no answer to {request:?}");
                    prop_assert_eq!(said(&answered.unwrap()), said(&expected), "{:?}", request);
                }
            }
            Ok(())
        });
        result?;
    }
}
