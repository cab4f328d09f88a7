//! Pure: what a device may be called.

/// Longest device name, bytes.
pub const MAX_DEVICE_NAME_BYTES: usize = 253;

/// Whether a name is a lower-case RFC 1123 subdomain of at most 253 bytes. As in Kubernetes, a label of it may
/// be longer than 63 bytes.
#[must_use]
pub fn is_device_name(name: &[u8]) -> bool {
    if name.is_empty() || name.len() > MAX_DEVICE_NAME_BYTES {
        return false;
    }
    // Every label starts and ends with a letter or digit: no `-` or `.` may touch a `.` or an end.
    let mut edge = true;
    for byte in name {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => edge = false,
            b'-' if !edge => {}
            b'.' if !edge => edge = true,
            _ => return false,
        }
    }
    !edge && !name.ends_with(b"-") && !name.windows(2).any(|pair| pair == b"-.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_1123_subdomains() {
        let long_label = "a".repeat(253);
        for name in ["a", "0", "tor1-01", "a.b-c.d0", "a--b", long_label.as_str()] {
            assert!(is_device_name(name.as_bytes()), "{name}");
        }
        let too_long = "a".repeat(254);
        for name in [
            "",
            "A",
            "-a",
            "a-",
            ".a",
            "a.",
            "a..b",
            "a.-b",
            "a-.b",
            "a_b",
            "a b",
            "é",
            "a/b",
            "..",
            "a\0",
            too_long.as_str(),
        ] {
            assert!(!is_device_name(name.as_bytes()), "{name}");
        }
    }
}
