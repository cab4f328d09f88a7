//! Pure: what a device can do: the backends that it has, and the types of artifacts that its agent fetches.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// Longest list that is kept; of a longer one the first, in the order of the alphabet.
pub const MAX_WORDS: usize = 16;
/// Longest word that is kept, bytes; a longer one is left out.
const MAX_WORD_BYTES: usize = 32;

/// `capabilities` of a report or a connect, and of a NetworkSwitch's status. The lists are sorted and name nothing
/// twice, so that equal capabilities are equal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Backends that the device has: `systemd`, `initd`, `container`, or what a later agent knows.
    pub backends: Vec<String>,
    /// Types of artifacts that the agent fetches: `oci`, `http`, `file`, or what a later agent knows.
    pub artifact_types: Vec<String>,
}

// === impl Capabilities ===

impl Capabilities {
    /// Capabilities of these words. What is no word is left out: letters, digits, `.`, `_`, `-`, at most 32.
    pub fn new<'a>(
        backends: impl IntoIterator<Item = &'a str>,
        artifact_types: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        Self { backends: words(backends), artifact_types: words(artifact_types) }
    }

    /// Reads what a device sent, leniently: whatever is no list of words is left out, since the rest of a report is
    /// worth more. None when it is no JSON object.
    #[must_use]
    pub fn parse(raw: &RawValue) -> Option<Self> {
        serde_json::from_str(raw.get()).ok().as_ref().and_then(Self::read)
    }

    /// Reads them from a status, as leniently.
    #[must_use]
    pub fn read(value: &Value) -> Option<Self> {
        let strings = |key: &str| value[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        value.is_object().then(|| Self::new(strings("backends"), strings("artifactTypes")))
    }

    /// As JSON without blanks, the same text for the same capabilities.
    #[must_use]
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let is_word = |word: &&str| {
        (1..=MAX_WORD_BYTES).contains(&word.len())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let mut words: Vec<&str> = words.into_iter().filter(is_word).collect();
    words.sort_unstable();
    words.dedup();
    words.truncate(MAX_WORDS);
    words.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parse(value: &Value) -> Option<Capabilities> {
        Capabilities::parse(&serde_json::value::to_raw_value(value).unwrap())
    }

    #[test]
    fn equal_capabilities_have_one_text() {
        let one = parse(&json!({"backends": ["systemd", "container", "systemd"], "artifactTypes": ["oci", "file"]}));
        let other = parse(&json!({"artifactTypes": ["file", "oci"], "later": 1, "backends": ["container", "systemd"]}));
        assert_eq!(one, other);
        let text = r#"{"backends":["container","systemd"],"artifactTypes":["file","oci"]}"#;
        assert_eq!(one.unwrap().text(), text);
    }

    #[test]
    fn what_is_no_word_is_left_out() {
        let long = "x".repeat(33);
        for backends in [json!(null), json!("systemd"), json!({"a": 1}), json!([1, "", "a b", "\u{1b}", "ä", [], long])]
        {
            assert_eq!(parse(&json!({"backends": backends})), Some(Capabilities::default()), "{backends}");
        }
        assert_eq!(parse(&json!(["systemd"])), None);
        // What nobody knows here is kept.
        assert_eq!(parse(&json!({"backends": ["launch-d.v2"]})).unwrap().backends, ["launch-d.v2"]);
        let many: Vec<String> = (10..99).map(|n| format!("b{n}")).collect();
        assert_eq!(parse(&json!({"backends": many})).unwrap().backends.len(), MAX_WORDS);
    }

    proptest! {
        #[test]
        fn they_read_back_as_they_were_written(backends in prop::collection::vec(".{0,40}|[a-d]{1,2}", 0..40), types in prop::collection::vec("[a-z]{1,3}", 0..5)) {
            let read = parse(&json!({"backends": backends, "artifactTypes": types})).unwrap();
            prop_assert!(read.backends.len() <= MAX_WORDS && read.backends.is_sorted());
            prop_assert_eq!(Capabilities::read(&serde_json::from_str(&read.text()).unwrap()), Some(read));
        }
    }
}
