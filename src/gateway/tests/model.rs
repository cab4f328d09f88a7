//! Edge: whatever is sent is answered as a naive reading of the contract says.

use super::*;
use crate::wire::name::is_device_name;
use proptest::prelude::*;

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// The status as the contract's order of checks gives it, body and query apart.
fn expected(method: &str, path: &str, good_token: bool) -> Option<u16> {
    let parts: Vec<&str> = path.split('/').collect();
    let ["", "v1", "devices", device, route @ ("desired" | "report" | "connect")] = parts[..] else { return Some(404) };
    if !is_device_name(device.as_bytes()) {
        return Some(400);
    }
    let reading = method == "GET" || method == "HEAD";
    if (route == "desired") != reading || !(reading || method == "POST") {
        return Some(405);
    }
    if !good_token {
        return Some(401);
    }
    if device != DEVICE && device != BARE {
        return Some(404);
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_request(
        method in prop::sample::select(vec!["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"]),
        root in prop::sample::select(vec!["/v1/devices", "/v1/devices", "/v1/devices", "/v1", "", "/v2/devices"]),
        device in prop_oneof![Just(DEVICE.to_owned()), Just(BARE.to_owned()), "[a-zA-Z0-9._~-]{0,12}"],
        route in prop::sample::select(vec!["desired", "desired", "report", "connect", "connect/", "x", ""]),
        query in "[a-zA-Z0-9=&%+]{0,12}",
        token_of in prop::option::of(prop_oneof![Just(None), Just(Some(DEVICE.to_owned()))]),
        if_none_match in "[ -~]{0,40}",
        min in "[0-9]{0,3}",
        body in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let path = format!("{root}/{device}/{route}");
        // Either the device's own token, another device's, or none.
        let token = match &token_of { Some(None) => token(&device), Some(Some(other)) => token(other), None => String::new() };
        let good = token == super::token(&device);
        let reply = run(async {
            tokio::time::timeout(Duration::from_secs(20), Fixture::new().send(
                method, &format!("{path}?{query}"),
                &[("x-device-token", &token), ("if-none-match", &if_none_match), ("x-praetor-min-revision", if min.as_str() > "100" { "" } else { &min })], body,
            )).await.unwrap()
        });
        match expected(method, &path, good) {
            Some(status) => drop(reply.expect(status)),
            None => {
                let status = reply.status;
                prop_assert!([200, 304, 400, 503].contains(&status), "{reply:?}");
                drop(reply.expect(status));
            }
        }
    }

    #[test]
    fn any_report(body in prop_oneof![
        "\\PC{0,200}",
        r#"\{("(agentVersion|capabilities|sequence|bootId|observations|timestamp)":("x"|1|-1|null|\[\]|\[\{\}\]|\[7\]),){0,3}"heartbeat":true\}"#,
    ]) {
        let fixture = Fixture::new();
        let reply = run(fixture.post(DEVICE, "report", body.clone()));
        let readable = crate::wire::report::Report::parse(body.as_bytes()).is_ok_and(|r| r.timestamp.is_none_or(|t| crate::wire::time::parse(&t).is_some()));
        drop(reply.expect(if readable { 200 } else { 400 }));
        prop_assert_eq!(fixture.script.seen.lock().len(), usize::from(readable));
    }

    /// `If-None-Match` with tags that hold no commas or quotes, against a split at commas.
    #[test]
    fn any_if_none_match(mut tags in prop::collection::vec(("(W/)?", "[a-z0-9]{0,3}"), 0..4), own in any::<bool>(), lines in any::<bool>()) {
        let fixture = Fixture::new();
        let etag = run(fixture.get(DEVICE, "", &[])).header("etag").to_owned();
        if own { tags.push((String::new(), etag.trim_matches('"').to_owned())); }
        let tags: Vec<String> = tags.iter().map(|(weak, tag)| format!("{weak}\"{tag}\"")).collect();
        let list = tags.join(", ");
        let headers: Vec<(&str, &str)> = if lines { tags.iter().map(|tag| ("if-none-match", tag.as_str())).collect() } else { vec![("if-none-match", &list)] };
        drop(run(fixture.get(DEVICE, "", &headers)).expect(if own { 304 } else { 200 }));
    }
}
