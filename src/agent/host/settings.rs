//! Pure: the settings file: one variable a line, as units of systemd and shells can read it, too.

use std::collections::BTreeMap;

/// Where it is unless somebody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/apollo/agent.env";
/// First line of what `praetor-agent install` writes; by it, it knows its own files.
pub const MARK: &str = "# Written by praetor-agent install";

/// Variables by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingsFile(BTreeMap<String, String>);

/// Why a line is none, or a value cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Line and what is wrong; the line itself may hold a token.
    #[error("line {0}: {1}")]
    Line(usize, &'static str),
    /// The value would end its own quotes, or the line.
    #[error("{0} cannot be kept in a settings file: its value has a quote or a control character")]
    Value(String),
}

// === impl SettingsFile ===

impl SettingsFile {
    /// Reads lines `NAME=value`, the value as it is or within one pair of quotes; empty lines and those that begin
    /// with `#` or `;` are passed over. Nothing is expanded.
    ///
    /// # Errors
    /// The first line that is none of these.
    pub fn parse(text: &str) -> Result<Self, SettingError> {
        let mut all = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            let (name, value) = line.split_once('=').ok_or(SettingError::Line(number, "expected NAME=value"))?;
            let sound = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            if name.is_empty() || !name.chars().all(sound) {
                return Err(SettingError::Line(
                    number,
                    "the name of a variable has upper-case letters, digits and _ alone",
                ));
            }
            let value =
                unquoted(value).ok_or(SettingError::Line(number, "the quotes around the value do not match"))?;
            if value.chars().any(char::is_control) {
                return Err(SettingError::Line(number, "the value has a control character"));
            }
            all.insert(name.to_owned(), value.to_owned());
        }
        Ok(Self(all))
    }

    /// Takes a setting up, or replaces it; an empty value removes it.
    ///
    /// # Errors
    /// When the value cannot stand in the file.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SettingError> {
        if value.contains(['\'', '"']) || value.chars().any(char::is_control) {
            return Err(SettingError::Value(name.to_owned()));
        }
        if value.is_empty() {
            self.0.remove(name);
        } else {
            self.0.insert(name.to_owned(), value.to_owned());
        }
        Ok(())
    }

    /// The value of a variable; an empty one counts as absent.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The names of all variables, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The whole file.
    #[must_use]
    pub fn render(&self) -> String {
        let lines = self.0.iter().map(|(name, value)| format!("{name}='{value}'\n"));
        format!(
            "{MARK}, which keeps what stands here. Every flag of praetor-agent\n# has a variable: praetor-agent --help. Restart the agent after a change; no process ends by that.\n{}",
            lines.collect::<String>()
        )
    }
}

fn unquoted(value: &str) -> Option<&str> {
    let value = value.trim();
    for quote in ['\'', '"'] {
        if let Some(rest) = value.strip_prefix(quote) {
            return rest.strip_suffix(quote).filter(|inner| !inner.contains(quote));
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines() {
        let file = SettingsFile::parse("# a\n; b\n\nA=1\n B_2 = 'x y' \nC=\"$z\"\nD=\n").unwrap_err();
        assert_eq!(file.to_string(), "line 5: the name of a variable has upper-case letters, digits and _ alone");
        let file = SettingsFile::parse("# a\n; b\n\nA=1\nB_2= 'x y' \nC=\"$z\"\nD=\n").unwrap();
        assert_eq!((file.get("A"), file.get("B_2"), file.get("C")), (Some("1"), Some("x y"), Some("$z")));
        assert_eq!((file.get("D"), file.get("E")), (None, None));
        for (text, part) in
            [("A", "line 1: expected"), ("A=1\nB='x", "line 2: the quotes"), ("=x", "line 1"), ("A='a'b'", "line 1")]
        {
            let line = SettingsFile::parse(text).unwrap_err().to_string();
            assert!(line.contains(part), "{line}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(values in prop::collection::btree_map("[A-Z][A-Z0-9_]{0,8}", "[^'\"\\p{Cc}]{1,20}", 0..8)) {
            let mut file = SettingsFile::default();
            for (name, value) in &values {
                file.set(name, value).unwrap();
            }
            let text = file.render();
            prop_assert!(text.starts_with(MARK));
            prop_assert_eq!(SettingsFile::parse(&text).unwrap(), file);
        }

        #[test]
        fn nothing_that_it_cannot_hold_is_taken(value in "\\PC*['\"\n\r\u{0}]\\PC*") {
            prop_assert!(SettingsFile::default().set("A", &value).is_err());
        }
    }
}
