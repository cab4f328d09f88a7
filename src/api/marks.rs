//! Pure: names and labels of children, and the keys of labels and annotations.

use sha2::{Digest, Sha256};

/// Label of every DeviceProcess that a deployment made: the device, as [`device_label`] writes it.
pub const DEVICE_NAME_LABEL: &str = "apollo.azure.com/deviceName";
/// Annotation of a child: whether it was available when it got its current spec.
pub const UPDATED_FROM_ANNOTATION: &str = "apollo.azure.com/updated-from";
/// Annotation of a child: the keys of labels and annotations that its deployment has put there, so that they go when
/// they leave the template and others stay.
pub const MANAGED_MARKS_ANNOTATION: &str = "apollo.azure.com/managed-marks";
/// Annotation of a deployment: the generation for which more children than usual may be deleted at once.
pub const ALLOW_MASS_DELETION_ANNOTATION: &str = "apollo.azure.com/allow-mass-deletion";
/// Longest name of an object, bytes (RFC 1123 subdomain).
pub const MAX_NAME_BYTES: usize = 253;
/// Longest label value, bytes.
pub const MAX_LABEL_BYTES: usize = 63;

/// How much of a long device name its label keeps, bytes.
const LABEL_PREFIX_BYTES: usize = 46;
/// Hexadecimal digits of a hash in a name or label.
const HASH_DIGITS: usize = 16;

/// Name of a deployment's child on a device: `<deployment>-<device>`. When that is longer than 253 bytes, its
/// beginning, `-`, and a hash of both names.
#[must_use]
pub fn child_name(deployment: &str, device: &str) -> String {
    let plain = format!("{deployment}-{device}");
    if plain.len() <= MAX_NAME_BYTES {
        return plain;
    }
    with_hash(&plain, MAX_NAME_BYTES - HASH_DIGITS - 1, &hash(&[deployment, device]))
}

/// Name of a deployment's child when [`child_name`] belongs to something else: its beginning, `-`, and a hash of the
/// deployment's uid and the device.
#[must_use]
pub fn child_name_with_hash(deployment: &str, deployment_uid: &str, device: &str) -> String {
    with_hash(&format!("{deployment}-{device}"), MAX_NAME_BYTES - HASH_DIGITS - 1, &hash(&[deployment_uid, device]))
}

/// Value of [`DEVICE_NAME_LABEL`]: the device's name; when it is longer than 63 bytes its first 46, cut to an
/// alphanumeric end, `-`, and 16 hexadecimal digits of its SHA-256.
#[must_use]
pub fn device_label(device: &str) -> String {
    if device.len() <= MAX_LABEL_BYTES {
        return device.to_owned();
    }
    with_hash(device, LABEL_PREFIX_BYTES, &hash(&[device]))
}

/// At most `keep` bytes of a text, cut to an alphanumeric end, then `-` and the hash.
fn with_hash(text: &str, keep: usize, hash: &str) -> String {
    let kept = text.get(..keep.min(text.len())).unwrap_or_default();
    let kept = kept.trim_end_matches(|last: char| !last.is_ascii_alphanumeric());
    format!("{kept}-{hash}")
}

/// The first 16 hexadecimal digits of the SHA-256 of some texts. A zero byte, which no name holds, parts them.
fn hash(texts: &[&str]) -> String {
    let digest = Sha256::digest(texts.join("\0").as_bytes());
    let mut digits = hex::encode(digest);
    digits.truncate(HASH_DIGITS);
    digits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::name::is_device_name;

    fn is_label_value(value: &str) -> bool {
        let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
        let bytes = value.as_bytes();
        bytes.len() <= 63 && bytes.iter().all(inner) && edge(bytes.first()) && edge(bytes.last())
    }

    /// RFC 1123 subdomains up to `max` bytes, long ones often.
    fn names(max: usize) -> impl Strategy<Value = String> {
        let label = "[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?";
        let short = "[a-z0-9]([-a-z0-9]{0,6}[a-z0-9])?".prop_map(|name: String| name);
        let long = proptest::collection::vec(label, 1..8).prop_map(move |labels| {
            let mut name = labels.join(".");
            name.truncate(max);
            name.trim_end_matches(['-', '.']).to_owned()
        });
        prop_oneof![short, long]
    }

    #[test]
    fn golden() {
        assert_eq!(child_name("switch-agent", "tor1-01"), "switch-agent-tor1-01");
        assert_eq!(device_label("tor1-01"), "tor1-01");
        let full = "a".repeat(63);
        assert_eq!(device_label(&full), full);
        // `printf %064d 0 | tr 0 a | sha256sum`
        let long = "a".repeat(64);
        assert_eq!(device_label(&long), format!("{}-ffe054fe7ae0cb6d", "a".repeat(46)));
        let dotted = format!("{}..", "a".repeat(45));
        assert!(device_label(&format!("{dotted}{full}")).starts_with(&format!("{}-", "a".repeat(45))));
        // 200 + 1 + 52 = 253 still fits; one byte more does not.
        assert_eq!(child_name(&"d".repeat(200), &"e".repeat(52)).len(), 253);
        let cut = child_name(&"d".repeat(200), &"e".repeat(53));
        assert_eq!(cut.len(), 253);
        assert!(cut.starts_with(&format!("{}-{}-", "d".repeat(200), "e".repeat(35))), "{cut}");
    }

    #[test]
    fn long_names_that_look_alike_are_told_apart() {
        let (device, other) = ("x".repeat(250), format!("{}y", "x".repeat(249)));
        assert_ne!(child_name("d", &format!("{device}abc")), child_name("d", &format!("{other}abc")));
        assert_ne!(device_label(&device), device_label(&other));
        // The hash knows where the deployment's name ends.
        let tail = "z".repeat(250);
        assert_ne!(child_name("a-b", &tail), child_name("a", &format!("b-{tail}")));
    }

    proptest! {
        #[test]
        fn labels_are_valid_and_distinct(device in names(253), other in names(253)) {
            prop_assert!(is_label_value(&device_label(&device)), "{}", device_label(&device));
            prop_assert_eq!(device_label(&device), device_label(&device.clone()));
            prop_assert_eq!(device == other, device_label(&device) == device_label(&other));
        }

        #[test]
        fn names_are_valid_and_distinct(deployment in names(200), device in names(253), other in names(253), uid in "[0-9a-f]{8}", uid2 in "[0-9a-f]{8}") {
            let plain = child_name(&deployment, &device);
            let hashed = child_name_with_hash(&deployment, &uid, &device);
            prop_assert!(is_device_name(plain.as_bytes()), "{}", plain);
            prop_assert!(is_device_name(hashed.as_bytes()), "{}", hashed);
            prop_assert_ne!(&plain, &hashed);
            prop_assert_eq!(device == other, plain == child_name(&deployment, &other));
            prop_assert_eq!(device == other, hashed == child_name_with_hash(&deployment, &uid, &other));
            prop_assert_eq!(uid == uid2, hashed == child_name_with_hash(&deployment, &uid2, &device));
        }
    }
}
