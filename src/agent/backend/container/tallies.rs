//! Edge: the counts of ends on the disk, a file for each process.

use super::tally::Tally;
use crate::agent::process::identity::Identity;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use tracing::warn;

/// The counts of all processes, read when they are asked for.
#[derive(Debug)]
pub struct Tallies {
    folder: PathBuf,
    known: RefCell<HashMap<Identity, Tally>>,
    unwritable: RefCell<bool>,
}

// === impl Tallies ===

impl Tallies {
    /// Below the folder of the agent's state.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, known: RefCell::default(), unwritable: RefCell::default() }
    }

    /// What is known of one; a new one begins to count.
    #[must_use]
    pub fn get(&self, identity: &Identity) -> Tally {
        if let Some(tally) = self.known.borrow().get(identity) {
            return tally.clone();
        }
        let read = fs::read(self.file(identity)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let tally: Tally = read.unwrap_or_else(|| Tally::new(format!("{:016x}", rand::random::<u64>())));
        self.known.borrow_mut().insert(identity.clone(), tally.clone());
        tally
    }

    /// Keeps it. Where nothing can be written it is known until the agent ends.
    pub fn set(&self, identity: &Identity, tally: &Tally) {
        let old = self.known.borrow_mut().insert(identity.clone(), tally.clone());
        if old.as_ref() == Some(tally) {
            return;
        }
        let written = self.write(identity, tally);
        let mut unwritable = self.unwritable.borrow_mut();
        if let Err(error) = &written
            && !*unwritable
        {
            warn!(folder = %self.folder.display(), %error, "counts of restarts cannot be kept");
        }
        *unwritable = written.is_err();
    }

    /// Forgets it.
    pub fn remove(&self, identity: &Identity) {
        self.known.borrow_mut().remove(identity);
        if let Err(error) = fs::remove_file(self.file(identity))
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(folder = %self.folder.display(), %error, "a count of restarts cannot be removed");
        }
    }

    fn write(&self, identity: &Identity, tally: &Tally) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        // Half a file would be no file.
        let new = self.folder.join(format!(".{identity}.new"));
        fs::write(&new, serde_json::to_vec(tally)?)?;
        fs::rename(&new, self.file(identity))
    }

    fn file(&self, identity: &Identity) -> PathBuf {
        self.folder.join(format!("{identity}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::found::tests::container;
    use super::*;
    use serde_json::json;

    #[test]
    fn counts_survive_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("containers");
        let identity = Identity::new("a", "b");
        let tallies = Tallies::new(place.clone());
        let mut tally = tallies.get(&identity);
        assert!(tally.take(&container(1, "h", "running", &json!({"RestartCount": 4}))));
        tallies.set(&identity, &tally);
        let again = Tallies::new(place.clone()).get(&identity);
        assert_eq!((again.exits(), &again.epoch), (4, &tally.epoch));
        fs::write(place.join("praetor-a.b.json"), "{").unwrap();
        let torn = Tallies::new(place.clone()).get(&identity);
        assert!(torn.exits() == 0 && torn.epoch != tally.epoch, "it begins anew, and says so");
        tallies.remove(&identity);
        tallies.remove(&identity);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
        assert_eq!(tallies.get(&identity).exits(), 0);
    }

    #[test]
    fn without_a_disk_counts_last_as_long_as_the_agent() {
        let tallies = Tallies::new("/proc/nowhere".into());
        let identity = Identity::new("a", "b");
        let tally = tallies.get(&identity);
        tallies.set(&identity, &tally);
        assert_eq!(tallies.get(&identity).epoch, tally.epoch);
    }
}
