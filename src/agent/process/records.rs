//! Edge: the files of what is remembered of each process.

use super::identity::Identity;
use super::record::Record;
use crate::agent::durable::{replace, with_suffix};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One file per process, `<state>/processes/<identity>.json`, mode 0600.
#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
    /// The last write failed; said once.
    failing: bool,
}

// === impl Records ===

impl Records {
    /// Nothing is touched yet.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { folder: state.join("processes"), failing: false }
    }

    /// What former starts have written. A file that cannot be read as a record is set aside with a warning.
    pub fn load(&mut self) -> Vec<Record> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %self.folder.display(), %error, "cannot read what is remembered of processes");
                }
                return Vec::new();
            }
        };
        entries.flatten().filter_map(|entry| self.read(&entry.path())).collect()
    }

    fn read(&self, path: &Path) -> Option<Record> {
        let name = path.file_name()?.to_str()?.strip_suffix(".json")?;
        let bytes = fs::read(path)
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "cannot read what is remembered"))
            .ok()?;
        let record = serde_json::from_slice::<Record>(&bytes).map_err(|error| error.to_string());
        match record {
            Ok(record) if record.identity().as_str() == name => Some(record),
            other => {
                let detail = other.err().unwrap_or_else(|| "it is about another process".to_owned());
                let aside = with_suffix(path, "corrupt");
                let moved = fs::rename(path, &aside);
                tracing::warn!(path = %path.display(), detail, set_aside = moved.is_ok(), "what is remembered of a process is of no use");
                None
            }
        }
    }

    /// Writes a record, all or nothing; says whether it is written. A failure is a warning, the first time; the agent
    /// goes on from memory.
    #[must_use]
    pub fn save(&mut self, record: &Record) -> bool {
        let path = self.path(&record.identity());
        let outcome = replace(&path, |writer| Ok(serde_json::to_writer(writer, record)?));
        let written = outcome.is_ok();
        match outcome {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!(path = %self.folder.display(), "what is remembered of processes is written again");
            }
            Ok(()) => {}
            Err(error) if self.failing => {
                tracing::debug!(path = %path.display(), %error, "cannot write what is remembered")
            }
            Err(error) => {
                self.failing = true;
                tracing::warn!(path = %path.display(), %error, "cannot write what is remembered of processes; going on from memory");
            }
        }
        written
    }

    /// Removes a record.
    pub fn forget(&mut self, identity: &Identity) {
        let path = self.path(identity);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot remove what is remembered of a process");
            }
            _ => {}
        }
    }

    fn path(&self, identity: &Identity) -> PathBuf {
        self.folder.join(format!("{identity}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::backend::Exit;
    use std::os::unix::fs::PermissionsExt;

    fn record() -> Record {
        let mut record = Record::new("infra", "agent");
        record.wanted("uid");
        record.last_exit = Some(Exit { code: 137, reason: "OOMKilled".into() });
        record
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::new(folder.path());
        assert!(records.load().is_empty());
        assert!(records.save(&record()));
        assert_eq!(Records::new(folder.path()).load(), [record()]);
        let file = folder.path().join("processes/praetor-infra.agent.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        records.forget(&record().identity());
        records.forget(&record().identity());
        assert!(!file.exists() && records.load().is_empty());
    }

    #[test]
    fn what_is_of_no_use_is_set_aside_and_hurts_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::new(folder.path());
        assert!(records.save(&record()));
        let processes = folder.path().join("processes");
        let whole = fs::read(processes.join("praetor-infra.agent.json")).unwrap();
        fs::write(processes.join("praetor-infra.other.json"), &whole).unwrap();
        fs::write(processes.join("praetor-infra.cut.json"), &whole[..whole.len() / 2]).unwrap();
        fs::write(processes.join("praetor-infra.x.json.new"), "").unwrap();
        assert_eq!(records.load(), [record()]);
        for name in ["other", "cut"] {
            assert!(processes.join(format!("praetor-infra.{name}.json.corrupt")).exists());
            assert!(!processes.join(format!("praetor-infra.{name}.json")).exists());
        }
    }

    #[test]
    fn a_disk_that_refuses_is_said_once() {
        let folder = tempfile::tempdir().unwrap();
        let blocker = folder.path().join("x");
        fs::write(&blocker, "").unwrap();
        let mut records = Records::new(&blocker);
        assert!(!records.save(&record()), "it is not taken for written");
        assert!(records.failing);
        fs::remove_file(&blocker).unwrap();
        assert!(records.save(&record()));
        assert!(!records.failing && records.load() == [record()]);
    }
}
