//! Edge: the state file, which lets a device go on after a reboot without the gateway.

use super::durable::{replace, with_suffix};
use super::holding::{Holding, Record};
use std::fs;
use std::io;
use std::path::PathBuf;

/// Writes what is held to a file, and reads it again at the start.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// The last write failed; said once.
    failing: bool,
    /// Something that is not ours to replace stands at the path.
    hands_off: bool,
    /// There was a file, and it was read.
    loaded: bool,
}

// === impl StateFile ===

impl StateFile {
    /// Nothing is touched yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, failing: false, hands_off: false, loaded: false }
    }

    /// What a former start held for this device. A file that cannot be read as such is set aside with a warning
    /// and the device starts with nothing.
    pub fn load(&mut self, device: &str) -> Holding {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Holding::new(device),
            Err(error) => {
                // A permission or a directory is no corruption: leave it where it is.
                self.hands_off = true;
                tracing::warn!(path = %self.path.display(), %error, "cannot read the state file; running from memory");
                return Holding::new(device);
            }
        };
        match serde_json::from_slice::<Record<'_>>(&bytes) {
            Ok(record) if record.device_name == device => {
                self.loaded = true;
                Holding::restore(record)
            }
            Ok(record) => {
                self.set_aside("other-device", &format!("it is about the device {}", record.device_name));
                Holding::new(device)
            }
            Err(error) => {
                self.set_aside("corrupt", &error.to_string());
                Holding::new(device)
            }
        }
    }

    /// Whether a former start's word was read: otherwise that nothing is held says nothing.
    #[must_use]
    pub fn loaded(&self) -> bool {
        self.loaded
    }

    /// Whether the file lacks what was to be written last: a device that boots from it would know too little.
    #[must_use]
    pub fn owes(&self) -> bool {
        self.failing
    }

    fn set_aside(&mut self, why: &str, detail: &str) {
        let aside = with_suffix(&self.path, why);
        match fs::rename(&self.path, &aside) {
            Ok(()) => {
                tracing::warn!(path = %self.path.display(), kept_as = %aside.display(), detail, "the state file is of no use; set aside")
            }
            Err(error) => {
                self.hands_off = true;
                tracing::warn!(path = %self.path.display(), detail, %error, "the state file is of no use and cannot be set aside; running from memory");
            }
        }
    }

    /// Writes what is held, all or nothing. A failure is a warning, the first time; see [`StateFile::owes`].
    pub fn save(&mut self, record: &Record<'_>) {
        if self.hands_off {
            return;
        }
        match self.write(record) {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!(path = %self.path.display(), "the state file is written again");
            }
            Ok(()) => {}
            Err(error) if self.failing => {
                tracing::debug!(path = %self.path.display(), %error, "cannot write the state file")
            }
            Err(error) => {
                self.failing = true;
                tracing::warn!(path = %self.path.display(), %error, "cannot write the state file; running from memory");
            }
        }
    }

    fn write(&self, record: &Record<'_>) -> io::Result<()> {
        replace(&self.path, |writer| Ok(serde_json::to_writer(writer, record)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::holding::Answer;
    use crate::wire::desired::{DesiredItem, DesiredState};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::Instant;

    fn holding() -> Holding {
        let item = DesiredItem {
            uid: "u".into(),
            namespace: "ns".into(),
            name: "n".into(),
            generation: 3,
            spec: serde_json::value::RawValue::from_string(r#"{"a": 1.0}"#.into()).unwrap(),
            spec_hash: "sha256:x".into(),
        };
        let mut holding = Holding::new("tor1-01");
        let state = DesiredState { device_name: "tor1-01".into(), heartbeat_interval_seconds: 7, items: vec![item] };
        holding.received(Instant::now(), 0, Answer::Desired { etag: Some("\"e\"".into()), revision: Some(9), state });
        holding
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/state.json");
        let mut file = StateFile::new(path.clone());
        assert!(file.load("tor1-01").items().is_empty());
        file.save(&holding().record());
        file.save(&holding().record());
        let mut holding = StateFile::new(path.clone()).load("tor1-01");
        assert_eq!(holding.items()[0].spec.get(), r#"{"a": 1.0}"#, "the spec is kept byte for byte");
        assert_eq!(holding.question(Instant::now()).etag.as_deref(), Some("\"e\""));
        assert_eq!((holding.revision(), holding.heartbeat().as_secs()), (Some(9), 7));
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn a_crash_in_the_middle_of_a_write_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let mut file = StateFile::new(path.clone());
        file.save(&holding().record());
        let whole = fs::read(&path).unwrap();
        let new = folder.path().join("state.json.new");
        for cut in 0..whole.len() {
            fs::write(&new, &whole[..cut]).unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).unwrap();
            assert_eq!(StateFile::new(path.clone()).load("tor1-01").items().len(), 1);
        }
        file.save(&holding().record());
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (whole, 0o600));
        assert!(!new.exists());
    }

    #[test]
    fn what_cannot_be_used_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let mut file = StateFile::new(path.clone());
        file.save(&holding().record());
        let whole = fs::read(&path).unwrap();
        for cut in [0, 1, whole.len() / 2, whole.len() - 2] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(file.load("tor1-01").items().is_empty());
            assert_eq!(fs::read(folder.path().join("state.json.corrupt")).unwrap(), &whole[..cut]);
            assert!(!path.exists());
        }
        fs::write(&path, &whole).unwrap();
        assert!(file.load("tor1-02").items().is_empty());
        assert_eq!(fs::read(folder.path().join("state.json.other-device")).unwrap(), whole);
        file.save(&holding().record());
        assert!(path.exists());
    }

    #[test]
    fn without_a_file_the_agent_runs_from_memory() {
        let folder = tempfile::tempdir().unwrap();
        // A folder where the file should be is left alone.
        let mut file = StateFile::new(folder.path().to_owned());
        assert!(file.load("tor1-01").items().is_empty());
        file.save(&holding().record());
        assert!(file.hands_off && folder.path().is_dir());
        // No folder can be made below a file; once it can, the file is written.
        let blocker = folder.path().join("x");
        fs::write(&blocker, "").unwrap();
        let mut file = StateFile::new(blocker.join("state.json"));
        assert!(!file.owes());
        file.save(&holding().record());
        assert!(file.owes());
        fs::remove_file(&blocker).unwrap();
        file.save(&holding().record());
        assert!(!file.owes() && blocker.join("state.json").exists());
    }
}
