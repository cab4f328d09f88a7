//! Pure: how a registry wants to be told who asks (RFC 9110 §11.6.1, and the distribution project's token flow).

use std::collections::BTreeMap;

/// What a `WWW-Authenticate` header asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from somewhere else.
    Bearer {
        /// Where tokens are had.
        realm: String,
        /// For whom, as the registry calls itself.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

/// The challenge that can be met best: a token before a password. `None`: neither is asked for.
#[must_use]
pub fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let all: Vec<_> = headers.flat_map(parse).collect();
    let bearer = all.iter().filter(|(scheme, _)| scheme == "bearer").find_map(|(_, parameters)| {
        let value = |name: &str| parameters.get(name).cloned();
        Some(Challenge::Bearer { realm: value("realm")?, service: value("service"), scope: value("scope") })
    });
    bearer.or_else(|| all.iter().any(|(scheme, _)| scheme == "basic").then_some(Challenge::Basic))
}

/// Schemes and parameters, names in lower case. What follows something unreadable is passed over.
fn parse(header: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut all: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut rest = header.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        let after = after.trim_start();
        if let (Some(value), Some((_, parameters))) = (after.strip_prefix('='), all.last_mut()) {
            let Some((value, after)) = value_of(value.trim_start()) else { break };
            parameters.insert(word.to_ascii_lowercase(), value);
            rest = after;
        } else {
            all.push((word.to_ascii_lowercase(), BTreeMap::new()));
            rest = after;
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    all
}

fn token(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))).unwrap_or(text.len());
    text.split_at(end)
}

/// A token or a quoted string, and what follows.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (word, after) = token(text);
        return (!word.is_empty()).then(|| (word.to_owned(), after));
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((value, &quoted[at + 1..])),
            c => value.push(c),
        }
    }
    None
}

/// Path and query of a request for a token: `target` is that of the realm.
#[must_use]
pub fn token_target(target: &str, service: Option<&str>, scope: &str) -> String {
    let mut target = target.to_owned();
    for (name, value) in [("service", service), ("scope", Some(scope))] {
        if let Some(value) = value {
            target.push(if target.contains('?') { '&' } else { '?' });
            target.push_str(name);
            target.push('=');
            target.push_str(&encode(value));
        }
    }
    target
}

fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b':' | b'/');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull""#;
        let Some(Challenge::Bearer { realm, service, scope }) = choose([hub].into_iter()) else { panic!() };
        assert_eq!(
            (realm.as_str(), service.as_deref(), scope.as_deref()),
            ("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:library/a:pull"))
        );
        assert_eq!(choose([r#"Basic realm="Registry""#].into_iter()), Some(Challenge::Basic));
        assert_eq!(choose(["basic"].into_iter()), Some(Challenge::Basic));
        for both in
            [r#"Basic realm="a, b", BEARER Realm = "x\"y" , service=s"#, r#"Bearer realm="x\"y",service=s, Basic"#]
        {
            let expected = Challenge::Bearer { realm: "x\"y".into(), service: Some("s".into()), scope: None };
            assert_eq!(choose([both].into_iter()), Some(expected), "{both}");
        }
        for none in ["", "Negotiate", "Bearer", "Bearer realm=", "Bearer realm=\"x", "=,\"", "Bearer service=x"] {
            assert_eq!(choose([none].into_iter()), None, "{none}");
        }
    }

    #[test]
    fn tokens_are_asked_for_with_what_was_named() {
        assert_eq!(
            token_target("/token", Some("a b&c"), "repository:a/b:pull"),
            "/token?service=a%20b%26c&scope=repository:a/b:pull"
        );
        assert_eq!(token_target("/t?x=1", None, "s"), "/t?x=1&scope=s");
    }

    proptest! {
        #[test]
        fn no_header_breaks_it(header in "[Bbearic =,\"\\\\a-zé]{0,60}") {
            let _ = choose([header.as_str()].into_iter());
        }
    }
}
