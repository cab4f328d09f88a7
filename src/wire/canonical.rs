//! Pure: RFC 8785 canonical JSON and the hash of a spec.

use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};
use std::fmt;

/// SHA-256 of a canonical spec; shown as `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpecHash(pub [u8; 32]);

// === impl SpecHash ===

impl SpecHash {
    /// Hashes a spec as the apiserver returned it: without its top-level `deviceRef`, and without members that
    /// are `null`, `[]` or `{}` at any depth (innermost first), as RFC 8785 canonical JSON.
    #[must_use]
    pub fn of_spec(spec: &Value) -> Self {
        let mut out = Vec::with_capacity(512);
        match spec {
            Value::Object(members) => write_object(members, Some("deviceRef"), &mut out),
            other => write_value(other, &mut out),
        }
        Self(Sha256::digest(&out).into())
    }

    /// Reads `sha256:<64 lower-case hex digits>`; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?;
        if digits.len() != 64 || digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl fmt::Display for SpecHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for SpecHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Serializes a value as RFC 8785 canonical JSON, leaving out empty members as [`SpecHash::of_spec`] says.
#[must_use]
pub fn canonical_without_empty(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_value(value, &mut out);
    out
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.values().all(is_empty),
        _ => false,
    }
}

fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => write_number(number, out),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_value(item, out);
            }
            out.push(b']');
        }
        Value::Object(members) => write_object(members, None, out),
    }
}

fn write_object(members: &Map<String, Value>, skip: Option<&str>, out: &mut Vec<u8>) {
    let mut kept: Vec<(&String, &Value)> =
        members.iter().filter(|(key, value)| Some(key.as_str()) != skip && !is_empty(value)).collect();
    // RFC 8785 §3.2.3 sorts by UTF-16 code units, which differs from UTF-8 order above the BMP.
    kept.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    out.push(b'{');
    for (i, (key, value)) in kept.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_string(key, out);
        out.push(b':');
        write_value(value, out);
    }
    out.push(b'}');
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            '\r' => out.extend_from_slice(b"\\r"),
            c if c < ' ' => out.extend_from_slice(format!("\\u{:04x}", c as u32).as_bytes()),
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

/// ECMAScript's `Number::toString` (RFC 8785 §3.2.2.3): every number is an IEEE double.
fn write_number(number: &Number, out: &mut Vec<u8>) {
    let Some(double) = number.as_f64() else {
        // Not reached: without arbitrary precision every serde_json number is a u64, an i64 or a double.
        out.extend_from_slice(number.to_string().as_bytes());
        return;
    };
    if double == 0.0 {
        out.push(b'0');
        return;
    }
    if double < 0.0 {
        out.push(b'-');
    }
    // Rust prints the shortest digits that read back as the same double, as ECMAScript demands: d.ddde±x.
    let scientific = format!("{:e}", double.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let point = exponent.parse::<i32>().unwrap_or(0) + 1; // the position of the decimal point
    let text = if count <= point && point <= 21 {
        format!("{digits}{}", "0".repeat(usize::try_from(point - count).unwrap_or(0)))
    } else if 0 < point && point <= 21 {
        let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or(0));
        format!("{whole}.{fraction}")
    } else if -6 < point && point <= 0 {
        format!("0.{}{digits}", "0".repeat(usize::try_from(-point).unwrap_or(0)))
    } else {
        let sign = if point > 0 { '+' } else { '-' };
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        format!("{first}{dot}{rest}e{sign}{}", (point - 1).abs())
    };
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn canonical(value: &Value) -> String {
        String::from_utf8(canonical_without_empty(value)).unwrap()
    }

    #[test]
    fn numbers_as_in_rfc_8785_appendix_b() {
        for (bits, text) in [
            (0x0000_0000_0000_0000_u64, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0xc340_0000_0000_0000, "-9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x444b_1ae4_d6e2_ef4f, "999999999999999900000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
            (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
        ] {
            assert_eq!(canonical(&json!(f64::from_bits(bits))), text, "{bits:016x}");
        }
    }

    #[test]
    fn keys_sort_by_utf16_and_strings_escape_minimally() {
        let value = json!({"\u{20ac}": 1, "\r": 2, "\u{fb33}": 3, "1": 4, "\u{1f600}": 5, "\u{80}": 6, "\u{f6}": 7});
        assert_eq!(
            canonical(&value),
            "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"\u{f6}\":7,\"\u{20ac}\":1,\"\u{1f600}\":5,\"\u{fb33}\":3}"
        );
        assert_eq!(canonical(&json!("\u{f}/\"\\\u{7f}\n")), "\"\\u000f/\\\"\\\\\u{7f}\\n\"");
    }

    #[test]
    fn empty_members_vanish_innermost_first_but_elements_stay() {
        assert_eq!(
            canonical(&json!({"a": {"b": {"c": null}}, "d": [], "e": [null, {}, {"f": []}], "g": ""})),
            r#"{"e":[null,{},{}],"g":""}"#
        );
    }

    /// Golden vectors: a change here would roll out to every device of every fleet at an upgrade.
    #[test]
    fn spec_hash_golden_vectors() {
        let spec = json!({
            "deviceRef": {"kind": "NetworkSwitch", "name": "tor1-01"},
            "artifact": {"type": "oci", "url": "ghcr.io/example/switch-agent:1.0.0"},
            "execution": {"backend": "systemd", "command": ["/usr/bin/switch-agent"], "args": [], "env": null},
            "restartPolicy": "Always", "healthCheck": {}
        });
        assert_eq!(
            SpecHash::of_spec(&spec).to_string(),
            "sha256:7debdc9848b03e465f4733b34f6095791631ad13704dd15012f396f4bf7957d0"
        );
        assert_eq!(
            SpecHash::of_spec(&json!({})).to_string(),
            "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        );
    }

    #[test]
    fn only_the_exact_form_is_a_hash() {
        let hash = SpecHash::of_spec(&json!({"a": 1}));
        assert_eq!(SpecHash::parse(&hash.to_string()), Some(hash));
        for text in ["", "sha256:", "sha256:00", &hash.to_string().to_uppercase(), &hash.to_string()[7..]] {
            assert_eq!(SpecHash::parse(text), None, "{text}");
        }
    }

    fn arbitrary_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(".{0,6}", inner, 0..5).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn canonical_json_is_a_fixpoint(value in arbitrary_json()) {
            let once = canonical_without_empty(&value);
            let read: Value = serde_json::from_slice(&once).unwrap();
            prop_assert_eq!(canonical_without_empty(&read), once);
        }

        #[test]
        fn the_device_and_empty_members_do_not_count(value in arbitrary_json(), device in ".{0,9}") {
            let bare = json!({"x": value});
            let mut dressed = bare.clone();
            dressed["deviceRef"] = json!({"name": device});
            dressed["later"] = json!({"empty": [], "deeper": {"none": null}});
            prop_assert_eq!(SpecHash::of_spec(&bare), SpecHash::of_spec(&dressed));
        }
    }
}
