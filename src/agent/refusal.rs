//! Pure: what a gateway's 400 says, in words for whoever looks after the device.

use crate::wire::problem::Problem;

/// How much is told of what the gateway says: somebody else has chosen it.
const MAX_DETAIL_CHARS: usize = 200;

/// What 400 with this body means. `https` is what the gateway's URL begins with: a port that speaks HTTPS answers so
/// to plain HTTP.
#[must_use]
pub fn bad_request(https: bool, body: &[u8]) -> String {
    let mut text = "400: the gateway does not accept the request".to_owned();
    if let Some(detail) = detail(body) {
        text.push_str(": ");
        text.push_str(&detail);
    }
    if !https {
        text.push_str("; if it speaks HTTPS, its URL begins with https://");
    }
    text
}

/// The problem's `detail` on one line, cut; `None` when there is none.
fn detail(body: &[u8]) -> Option<String> {
    let detail = serde_json::from_slice::<Problem>(body).ok()?.detail;
    let mut plain = detail.chars().filter(|c| !c.is_control());
    let mut text: String = plain.by_ref().take(MAX_DETAIL_CHARS).collect();
    if plain.next().is_some() {
        text.push('…');
    }
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn problem(detail: &str) -> Vec<u8> {
        let (kind, title) = ("about:blank".to_owned(), "Bad Request".to_owned());
        serde_json::to_vec(&Problem { kind, title, status: 400, detail: detail.to_owned() }).unwrap()
    }

    #[test]
    fn quotes_the_gateway_and_hints_at_https_only_where_that_can_help() {
        const START: &str = "400: the gateway does not accept the request";
        const HINT: &str = "; if it speaks HTTPS, its URL begins with https://";
        let bad = problem("waitSeconds is\n\u{1b}[31m no number");
        assert_eq!(bad_request(true, &bad), format!("{START}: waitSeconds is[31m no number"));
        assert_eq!(bad_request(false, &bad), format!("{START}: waitSeconds is[31m no number{HINT}"));
        for nothing in [&b""[..], b"<html>", &problem(" \n")] {
            assert_eq!(bad_request(true, nothing), START);
            assert_eq!(bad_request(false, nothing), format!("{START}{HINT}"));
        }
    }

    proptest! {
        #[test]
        fn is_short_and_one_line(text in any::<String>(), times in 1_usize..40) {
            let told = bad_request(true, &problem(&text.repeat(times)));
            prop_assert!(told.chars().count() <= 50 + MAX_DETAIL_CHARS && !told.chars().any(char::is_control));
        }
    }
}
