//! Pure: entity tags of desired state, and `If-None-Match` as RFC 9110 §13.1.2 reads it.

use sha2::{Digest, Sha256};

/// Length of an entity tag with its quotes, bytes.
pub const ETAG_BYTES: usize = 34;

/// A strong entity tag, `"<32 hex digits>"`, quotes included.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ETag([u8; ETAG_BYTES]);

/// Feeds what an entity tag is derived from, in order.
pub struct ETagBuilder(Sha256);

// === impl ETagBuilder ===

impl ETagBuilder {
    /// Starts with what all items share.
    #[must_use]
    pub fn new(heartbeat_interval_seconds: u64) -> Self {
        let mut digest = Sha256::new();
        digest.update(heartbeat_interval_seconds.to_be_bytes());
        Self(digest)
    }

    /// Adds one item; the order of calls matters.
    pub fn item(&mut self, uid: &str, namespace: &str, name: &str, generation: i64, spec_hash: &[u8; 32]) {
        for text in [uid, namespace, name] {
            self.0.update((text.len() as u64).to_be_bytes());
            self.0.update(text.as_bytes());
        }
        self.0.update(generation.to_be_bytes());
        self.0.update(spec_hash);
    }

    /// The finished tag.
    #[must_use]
    pub fn finish(self) -> ETag {
        let digest = self.0.finalize();
        let mut text = [b'"'; ETAG_BYTES];
        // Cannot fail: 16 bytes always make 32 digits.
        let _ = hex::encode_to_slice(&digest[..16], &mut text[1..ETAG_BYTES - 1]);
        ETag(text)
    }
}

// === impl ETag ===

impl ETag {
    /// The tag with its quotes, ASCII.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether an `If-None-Match` field value matches: `*`, or a list of strong or weak tags that holds this
    /// one. A tag without quotes never matches.
    #[must_use]
    pub fn matches(&self, if_none_match: &[u8]) -> bool {
        if if_none_match == self.0 {
            return true;
        }
        let mut rest = if_none_match.trim_ascii();
        if rest == b"*" {
            return true;
        }
        // A tag may hold a comma, so the list is read tag by tag.
        while !rest.is_empty() {
            rest = rest.trim_ascii_start();
            if let Some(after) = rest.strip_prefix(b",") {
                rest = after;
                continue;
            }
            let tag = rest.strip_prefix(b"W/").unwrap_or(rest);
            if let Some(opened) = tag.strip_prefix(b"\"") {
                let Some(end) = opened.iter().position(|b| *b == b'"') else { return false };
                if opened[..end] == self.0[1..ETAG_BYTES - 1] {
                    return true;
                }
                rest = &opened[end + 1..];
            } else {
                let Some(comma) = rest.iter().position(|b| *b == b',') else { return false };
                rest = &rest[comma..];
            }
        }
        false
    }
}

impl std::fmt::Debug for ETag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(generation: i64) -> ETag {
        let mut builder = ETagBuilder::new(15);
        builder.item("u", "ns", "n", generation, &[7; 32]);
        builder.finish()
    }

    #[test]
    fn golden() {
        assert_eq!(
            std::str::from_utf8(ETagBuilder::new(15).finish().as_bytes()).unwrap(),
            "\"e66c57014a6156061ae669809ec5d735\""
        );
        assert_ne!(tag(1), tag(2));
        assert_ne!(ETagBuilder::new(15).finish(), ETagBuilder::new(16).finish());
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let mut one = ETagBuilder::new(15);
        one.item("u", "a", "bc", 1, &[0; 32]);
        let mut other = ETagBuilder::new(15);
        other.item("u", "ab", "c", 1, &[0; 32]);
        assert_ne!(one.finish(), other.finish());
    }

    #[test]
    fn if_none_match_as_rfc_9110_says() {
        let tag = tag(1);
        let text = String::from_utf8(tag.as_bytes().to_vec()).unwrap();
        let bare = text.trim_matches('"');
        for (field, matches) in [
            (text.clone(), true),
            (format!("W/{text}"), true),
            (format!("\"x\", {text}"), true),
            (format!("\"a,b\" ,W/\"c\",,\t{text}  "), true),
            ("*".into(), true),
            (" * ".into(), true),
            (bare.to_owned(), false),
            (format!("{bare}, \"x\""), false),
            (format!("oops, {text}"), true),
            (format!("\"{bare}"), false),
            ("\"x\"".into(), false),
            (format!("w/{text}"), false),
            (String::new(), false),
            ("\"*\"".into(), false),
        ] {
            assert_eq!(tag.matches(field.as_bytes()), matches, "{field}");
        }
    }
}
