//! Edge: the artifacts that are on the device. Each has a folder of the name of its SHA-256, which appears by a rename
//! after everything was checked and has reached the disk; what is under way is elsewhere.

use super::address::Address;
use super::budget::Budget;
use super::download::Blob;
use super::fault;
use super::flight::{Flights, Turn, UNPACKED, Work, try_lock};
use super::policy::Policy;
use super::reference::is_digest;
use super::tree::Tree;
use super::unpack::{Content, Rules, look, unpack};
use super::{FetchError, Fetched, copy, registry, web};
use crate::agent::process::spec::{Artifact, ArtifactType};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Mutex as AsyncMutex;

/// Where everything is that is not whole yet.
const INCOMING: &str = "incoming";
/// What begins the name of something that is about to be removed.
const TRASH: &str = "trash-";
/// Mode of a file that is an artifact by itself.
pub(super) const PROGRAM_MODE: u32 = 0o755;
/// Parts of downloads that nobody has gone on with for so long are removed.
const KEEP_PARTS: Duration = Duration::from_secs(24 * 3600);
/// What every digest begins with.
const ALGORITHM: &str = "sha256:";

/// The artifacts of this device. Clones are of the same store.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    policy: Policy,
    flights: Flights,
    heavy: Arc<AsyncMutex<()>>,
}

// === impl Store ===

impl Store {
    /// The store in this folder, which is made when it is needed. What a crash has left is removed, but for downloads
    /// that can be gone on with. A disk that refuses is a warning here, and an error of each fetch until it is well.
    #[must_use]
    pub fn open(folder: PathBuf, policy: Policy) -> Self {
        let inner = Inner { folder, policy, flights: Flights::default(), heavy: Arc::default() };
        match inner.clean(KEEP_PARTS) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(folder = %inner.folder.display(), %error, "cannot clean up among the artifacts");
            }
            _ => {}
        }
        Self { inner: Arc::new(inner) }
    }

    /// The artifact of this digest, `sha256:…`, if it is on the device.
    #[must_use]
    pub fn have(&self, digest: &str) -> Option<Fetched> {
        let root = self.inner.place(digest)?;
        let there = fs::symlink_metadata(&root).is_ok_and(|data| data.is_dir());
        there.then(|| Fetched { digest: digest.to_owned(), root: Some(root) })
    }

    /// Puts an artifact on the device, whole and checked, if it is not there yet. `pinned`: the digest that an earlier
    /// fetch of this very artifact came to. If that is on the device nothing is asked for; of an image it is what is
    /// asked for, whatever its tag means by now.
    ///
    /// The future may be dropped at any point: the next call goes on from there. Two calls for one artifact are one
    /// download, also by two processes.
    ///
    /// # Errors
    /// It cannot be had, or is not what it should be. Nothing of it is to be seen then.
    pub async fn fetch(&self, artifact: &Artifact, pinned: Option<&str>) -> Result<Fetched, FetchError> {
        let wanted = Request::new(artifact, pinned)?;
        if let Some(fetched) = self.here(&wanted).await? {
            return Ok(fetched);
        }
        let key = wanted.key(artifact);
        let turn: Turn = match self.inner.flights.turn(&key).await {
            Ok(turn) => turn,
            Err(outcome) => return outcome,
        };
        let outcome = self.arrive(&key, artifact, &wanted).await;
        turn.done(&outcome);
        outcome
    }

    /// What is on the device already, without asking anybody.
    async fn here(&self, wanted: &Request<'_>) -> Result<Option<Fetched>, FetchError> {
        let Some(fetched) = wanted.known.iter().find_map(|digest| self.have(digest)) else { return Ok(None) };
        if let (Some(name), Some(root)) = (&wanted.name, fetched.root.clone()) {
            let (name, digest) = (name.clone(), fetched.digest.clone());
            let named = tokio::task::spawn_blocking(move || also_named(&root, &name, &digest)).await;
            named.unwrap_or(Ok(())).map_err(|error| FetchError::disk("name a file of the artifact", &error))?;
        }
        Ok(Some(fetched))
    }

    async fn arrive(&self, key: &str, artifact: &Artifact, wanted: &Request<'_>) -> Result<Fetched, FetchError> {
        let inner = &self.inner;
        inner.prepare().map_err(|error| FetchError::disk("make the folder of the artifacts", &error))?;
        let work = Work::begin(&inner.incoming(), key, Arc::clone(&inner.heavy)).await?;
        // Another process of this device may have been faster.
        if let Some(fetched) = self.here(wanted).await? {
            work.end(true);
            return Ok(fetched);
        }
        let mut outcome = self.bring(&work, artifact, wanted).await;
        let full = outcome.as_ref().is_err_and(|error| error.reason == fault::DISK_FULL);
        if full && inner.clean(Duration::ZERO).is_ok_and(|freed| freed > 0) {
            // Parts of other downloads have made way.
            outcome = self.bring(&work, artifact, wanted).await;
        }
        let over = outcome.as_ref().map_or_else(FetchError::spoils_the_rest, |_| true);
        let _ = tokio::task::spawn_blocking(move || work.end(over)).await;
        outcome
    }

    async fn bring(&self, work: &Work, artifact: &Artifact, wanted: &Request<'_>) -> Result<Fetched, FetchError> {
        let policy = &self.inner.policy;
        let checksum = wanted.checksum.as_deref();
        let blob = match (artifact.r#type, &wanted.address) {
            (ArtifactType::Oci, _) => return registry::fetch(self, work, policy, wanted, &artifact.url).await,
            (ArtifactType::Http, Some(address)) => web::fetch(work, policy, address, checksum).await?,
            (ArtifactType::Http | ArtifactType::File, _) => {
                copy::fetch(work, &artifact.url, checksum, policy.limits.bytes).await?
            }
        };
        let digest = format!("{ALGORITHM}{}", blob.digest);
        if let Some(fetched) = self.here(&Request { known: vec![digest.clone()], ..wanted.clone() }).await? {
            return Ok(fetched);
        }
        let name = wanted.name.clone().unwrap_or_default();
        let (policy, room) = (policy.clone(), work.clone());
        let unpacked = fresh_root(work).await?;
        let root = unpacked.clone();
        let turn = work.turn().await;
        work.blocking(move |cancelled| {
            let rules = Rules {
                allow_setuid: policy.allow_setuid,
                layer: false,
                cancelled,
                room: &|bytes| room.room_for(bytes),
            };
            settle(&blob, &name, &root, Budget::new(policy.limits), rules)
        })
        .await?;
        drop(turn);
        self.publish(work, &unpacked, digest).await
    }

    /// Lets an artifact appear, all of it at once.
    pub(super) async fn publish(&self, work: &Work, unpacked: &Path, digest: String) -> Result<Fetched, FetchError> {
        let Some(place) = self.inner.place(&digest) else {
            return Err(FetchError::verify(fault::CHECKSUM_MISMATCH, format!("{digest:?} is no digest")));
        };
        let (from, to, folder) = (unpacked.to_owned(), place.clone(), self.inner.folder.clone());
        work.blocking(move |cancelled| {
            let failed = |error: io::Error| FetchError::disk("put the artifact in its place", &error);
            if cancelled() {
                return Err(FetchError::download(fault::INTERRUPTED, "nobody wants the artifact any more"));
            }
            match fs::rename(&from, &to) {
                // Somebody was faster with the same bytes.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {}
                other => other.map_err(failed)?,
            }
            File::open(&folder).and_then(|folder| folder.sync_all()).map_err(failed)
        })
        .await?;
        Ok(Fetched { digest, root: Some(place) })
    }

    /// Removes every artifact but those whose digests, `sha256:…`, are given, and parts of downloads that nobody goes
    /// on with. Returns how many bytes that were. What is under way is left alone. It blocks.
    ///
    /// # Errors
    /// The first thing that cannot be removed; the rest is.
    pub fn collect(&self, keep: &HashSet<String>) -> io::Result<u64> {
        let inner = &self.inner;
        let mut failed = None;
        let mut freed = 0;
        let entries = match fs::read_dir(&inner.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let Some(digest) = name.to_str().map(|name| format!("{ALGORITHM}{name}")).filter(|d| is_digest(d)) else {
                continue;
            };
            if keep.contains(&digest) {
                continue;
            }
            // First it is no artifact any more, then it goes: half of one is never seen.
            let trash = inner.incoming().join(format!("{TRASH}{}", name.display()));
            let moved = inner.prepare().and_then(|()| fs::rename(inner.folder.join(&name), &trash));
            match moved.and_then(|()| remove_counted(&trash)) {
                Ok(bytes) => freed += bytes,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match inner.clean(KEEP_PARTS) {
            Ok(bytes) => freed += bytes,
            Err(error) => failed = failed.or(Some(error)),
        }
        failed.map_or(Ok(freed), Err)
    }
}

// === impl Inner ===

impl Inner {
    fn incoming(&self) -> PathBuf {
        self.folder.join(INCOMING)
    }

    fn place(&self, digest: &str) -> Option<PathBuf> {
        is_digest(digest).then(|| self.folder.join(&digest[ALGORITHM.len()..]))
    }

    fn prepare(&self) -> io::Result<()> {
        // Processes of other users run from here; they have no business in what is not checked yet.
        for (folder, mode) in [(&self.folder, 0o711), (&self.incoming(), 0o700)] {
            if !folder.is_dir() {
                DirBuilder::new().recursive(true).mode(mode).create(folder)?;
                // Whatever the umask is.
                fs::set_permissions(folder, fs::Permissions::from_mode(mode))?;
            }
        }
        Ok(())
    }

    /// Removes from what is under way everything that nobody works on, but for parts younger than `age`. Returns how
    /// many bytes that were.
    fn clean(&self, age: Duration) -> io::Result<u64> {
        let mut freed = 0;
        for entry in fs::read_dir(self.incoming())? {
            let path = entry?.path();
            let trash = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(TRASH.as_bytes()));
            if trash || !path.is_dir() {
                freed += remove_counted(&path)?;
                continue;
            }
            let Some(_lock) = try_lock(&path)? else { continue };
            let whole = fs::read_dir(&path)?.next().is_none() || is_older(&path, age);
            freed += if whole { remove_counted(&path)? } else { remove_counted(&path.join(UNPACKED))? };
        }
        Ok(freed)
    }
}

/// What is asked for, read.
#[derive(Debug, Clone)]
pub(super) struct Request<'a> {
    /// The checksum in lower-case digits.
    pub checksum: Option<String>,
    /// What an earlier fetch came to.
    pub pinned: Option<&'a str>,
    /// Digests of which any will do.
    known: Vec<String>,
    /// Of type http.
    address: Option<Address>,
    /// What the file is called if it is no archive.
    name: Option<String>,
}

impl<'a> Request<'a> {
    fn new(artifact: &Artifact, pinned: Option<&'a str>) -> Result<Self, FetchError> {
        let checksum = artifact.checksum_sha256.as_deref().map(str::trim).filter(|text| !text.is_empty());
        let checksum = checksum.map(str::to_ascii_lowercase);
        let digest = checksum.as_ref().map(|digits| format!("{ALGORITHM}{digits}"));
        if digest.as_ref().is_some_and(|digest| !is_digest(digest)) {
            return Err(FetchError::download(
                fault::BAD_CHECKSUM,
                "checksumSHA256 is not the 64 hexadecimal digits of a SHA-256",
            ));
        }
        let pinned = pinned.filter(|digest| is_digest(digest));
        let (mut address, mut name) = (None, None);
        // Of a file a checksum says what it is, whatever an earlier fetch came to.
        let mut known = digest.clone().or(pinned.map(str::to_owned)).into_iter().collect::<Vec<_>>();
        match artifact.r#type {
            // Here a checksum may be that of an index or of a layer, by which nothing is kept.
            ArtifactType::Oci => {
                known = pinned.map(str::to_owned).into_iter().chain(registry::digest_of(&artifact.url)).collect();
            }
            ArtifactType::Http => {
                let read = Address::parse(&artifact.url).map_err(|error| {
                    FetchError::download(fault::BAD_REFERENCE, format!("the artifact's url is of no use: {error}"))
                })?;
                name = Some(read.file_name());
                address = Some(read);
            }
            ArtifactType::File => {
                name = Path::new(&artifact.url).file_name().and_then(|name| name.to_str()).map(str::to_owned);
            }
        }
        Ok(Self { checksum, pinned, known, address, name })
    }

    /// What tells fetches apart; safe as a file's name.
    fn key(&self, artifact: &Artifact) -> String {
        let kind = format!("{:?}", artifact.r#type);
        let parts = [kind.as_str(), &artifact.url, self.checksum.as_deref().unwrap_or(""), self.pinned.unwrap_or("")];
        let hash = parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part).chain_update([0]));
        hex::encode(&hash.finalize()[..16])
    }
}

/// Removes what an earlier try has unpacked; where to unpack now.
pub(super) async fn fresh_root(work: &Work) -> Result<PathBuf, FetchError> {
    let root = work.folder().join(UNPACKED);
    let old = root.clone();
    work.blocking(move |_| match fs::remove_dir_all(&old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FetchError::disk("remove what an earlier try has left", &error))
        }
        _ => Ok(()),
    })
    .await?;
    Ok(root)
}

/// Makes a folder of one file: unpacked if it is an archive, otherwise under its name.
fn settle(blob: &Blob, name: &str, root: &Path, mut budget: Budget, rules: Rules<'_>) -> Result<(), FetchError> {
    let mut tree = Tree::create(root)?;
    match look(&blob.path)? {
        content @ (Content::Tar | Content::TarGzip) => {
            unpack(&blob.path, content, &mut tree, &mut budget, rules)?;
            tree.sync()
        }
        // What is compressed otherwise is for the program to handle.
        Content::Zstd | Content::Other => {
            tree.adopt(Path::new(name), &blob.path, PROGRAM_MODE)?;
            tree.sync_names()
        }
    }
}

/// The same bytes can come from two places with two names. If the artifact is one file, it has the other name, too.
fn also_named(root: &Path, name: &str, digest: &str) -> io::Result<()> {
    if fs::symlink_metadata(root.join(name)).is_ok() {
        return Ok(());
    }
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_file() && format!("{ALGORITHM}{}", hash_file(&entry.path())?) == digest {
            match fs::hard_link(entry.path(), root.join(name)) {
                // Two ask at the same time.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
            return File::open(root)?.sync_all();
        }
    }
    Ok(())
}

fn hash_file(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hex::encode(hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

fn is_older(folder: &Path, age: Duration) -> bool {
    let newest = fs::read_dir(folder).into_iter().flatten().flatten();
    let newest = newest.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max();
    // A clock that has jumped makes no part old.
    newest.is_none_or(|newest| SystemTime::now().duration_since(newest).unwrap_or_default() >= age)
}

/// Removes whatever is there; how many bytes of the disk that were.
fn remove_counted(path: &Path) -> io::Result<u64> {
    let bytes = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
        Ok(data) if !data.is_dir() => {
            fs::remove_file(path)?;
            return Ok(data.blocks() * 512);
        }
        Ok(data) => data.blocks() * 512,
    };
    let mut sum = bytes;
    for entry in fs::read_dir(path)? {
        sum += remove_counted(&entry?.path())?;
    }
    fs::remove_dir(path)?;
    Ok(sum)
}

#[cfg(test)]
mod tests;
