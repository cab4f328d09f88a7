//! Edge: a folder that is written to by paths of which none leads out of it: each folder on the way is opened by its
//! own name, and no link is ever followed.

use super::FetchError;
use super::fault;
use super::paths::printable;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, fchmod, futimens, linkat, mkdirat, open, openat,
    statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What folders get that no archive describes.
const FOLDER_MODE: u32 = 0o755;

/// A folder on the disk. Paths are below it and consist of names only.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    root: OwnedFd,
    /// The folder that was used last: most entries follow others of the same folder.
    last: Option<(PathBuf, OwnedFd)>,
}

// === impl Tree ===

impl Tree {
    /// Makes the folder, if it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(path: &Path) -> Result<Self, FetchError> {
        let failed = |error: Errno| trouble("make the artifact's folder", error);
        make(CWD, path.as_os_str(), FOLDER_MODE).map_err(failed)?;
        let root = open(path, folder_flags(), Mode::empty()).map_err(failed)?;
        Ok(Self { path: path.to_owned(), root, last: None })
    }

    /// A folder; one that is there already gets this mode, anything else gives way.
    ///
    /// # Errors
    /// The path leads through what is no folder, or the disk refuses.
    pub fn folder(&mut self, path: &Path, mode: u32) -> Result<(), FetchError> {
        let Some(name) = path.file_name() else { return Ok(()) };
        if self.kind(path)?.is_some_and(|kind| kind != FileType::Directory) {
            self.remove(path)?;
        }
        let parent = self.parent(path)?;
        let failed = |error| trouble("make a folder of the artifact", error);
        make(parent, name, mode).map_err(failed)
    }

    /// A new, empty file; what was there gives way. Its mode comes with [`finish`].
    ///
    /// # Errors
    /// As of [`Tree::folder`].
    pub fn file(&mut self, path: &Path) -> Result<File, FetchError> {
        let name = name_of(path)?;
        self.remove(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(self.parent(path)?, name, flags, Mode::from_raw_mode(0o600));
        file.map(File::from).map_err(|error| trouble("make a file of the artifact", error))
    }

    /// A symbolic link with a target that [`super::paths::confine`] has written.
    ///
    /// # Errors
    /// As of [`Tree::folder`].
    pub fn symlink(&mut self, path: &Path, target: &OsStr) -> Result<(), FetchError> {
        let name = name_of(path)?;
        self.remove(path)?;
        symlinkat(target, self.parent(path)?, name).map_err(|error| trouble("make a link of the artifact", error))
    }

    /// Another name of a regular file that is there. A link's other name could lead out of the folder from another
    /// depth.
    ///
    /// # Errors
    /// There is no such file; as of [`Tree::folder`].
    pub fn hard_link(&mut self, path: &Path, of: &Path) -> Result<(), FetchError> {
        let name = name_of(path)?;
        if path == of {
            return Ok(());
        }
        if self.kind(of)? != Some(FileType::RegularFile) {
            let told = printable(of.as_os_str().as_bytes());
            return Err(FetchError::verify(
                fault::BAD_ARCHIVE,
                format!("the archive holds a second name of {told}, which is no file of it"),
            ));
        }
        self.remove(path)?;
        let failed = |error| trouble("make a link of the artifact", error);
        let from = self.parent(of)?.try_clone_to_owned();
        let from = from.map_err(|error| FetchError::disk("make a link of the artifact", &error))?;
        let to = self.parent(path)?;
        linkat(from, name_of(of)?, to, name, AtFlags::empty()).map_err(failed)
    }

    /// Takes in a file from elsewhere on the same disk, which keeps its name there: another layer may be the same bytes.
    ///
    /// # Errors
    /// As of [`Tree::folder`].
    pub fn adopt(&mut self, path: &Path, file: &Path, mode: u32) -> Result<(), FetchError> {
        let name = name_of(path)?;
        let failed = |error| trouble("name a file of the artifact", error);
        let opened = File::open(file).map_err(|error| FetchError::disk("open a file of the artifact", &error))?;
        fchmod(&opened, Mode::from_raw_mode(mode)).map_err(failed)?;
        self.remove(path)?;
        linkat(CWD, file, self.parent(path)?, name, AtFlags::empty()).map_err(failed)?;
        // Few of these come in one artifact.
        opened.sync_all().map_err(|error| FetchError::disk("write the artifact to the disk", &error))
    }

    /// Removes whatever is there, with all that is in it; nothing is no fault.
    ///
    /// # Errors
    /// As of [`Tree::folder`].
    pub fn remove(&mut self, path: &Path) -> Result<(), FetchError> {
        let removed = match self.kind(path)? {
            None => return Ok(()),
            Some(FileType::Directory) => {
                self.last = None;
                // Each folder on the way is a real one, as was just seen, and nobody else writes here.
                fs::remove_dir_all(self.path.join(path))
            }
            Some(_) => unlinkat(self.parent(path)?, name_of(path)?, AtFlags::empty()).map_err(Into::into),
        };
        removed.map_err(|error| FetchError::disk("remove a file of a lower layer", &error))
    }

    /// Removes all that is in a folder, if there is one.
    ///
    /// # Errors
    /// As of [`Tree::folder`].
    pub fn empty(&mut self, path: &Path) -> Result<(), FetchError> {
        if path.file_name().is_some() && self.kind(path)? != Some(FileType::Directory) {
            return Ok(());
        }
        let failed = |error| FetchError::disk("empty a folder of a lower layer", &error);
        for entry in fs::read_dir(self.path.join(path)).map_err(failed)? {
            self.remove(&path.join(entry.map_err(failed)?.file_name()))?;
        }
        Ok(())
    }

    /// Writes everything to the disk.
    ///
    /// # Errors
    /// It refuses.
    pub fn sync(&self) -> Result<(), FetchError> {
        // One call for all files: of these there may be a hundred thousand.
        let folder = File::open(&self.path).map_err(|error| FetchError::disk("open the artifact's folder", &error))?;
        rustix::fs::syncfs(&folder).map_err(|error| trouble("write the artifact to the disk", error))
    }

    /// Writes the names at the top to the disk; enough if all that is there was adopted there.
    ///
    /// # Errors
    /// It refuses.
    pub fn sync_names(&self) -> Result<(), FetchError> {
        let synced = File::open(&self.path).and_then(|folder| folder.sync_all());
        synced.map_err(|error| FetchError::disk("write the artifact to the disk", &error))
    }

    /// What is there; a link is a link.
    fn kind(&mut self, path: &Path) -> Result<Option<FileType>, FetchError> {
        let name = name_of(path)?;
        match statat(self.parent(path)?, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(trouble("look at a file of the artifact", error)),
        }
    }

    /// The folder that a path is in; those that are missing are made.
    fn parent(&mut self, path: &Path) -> Result<rustix::fd::BorrowedFd<'_>, FetchError> {
        let wanted = path.parent().unwrap_or(Path::new(""));
        if wanted.as_os_str().is_empty() {
            return Ok(self.root.as_fd());
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != wanted) {
            let opened = self.walk(wanted)?;
            self.last = Some((wanted.to_owned(), opened));
        }
        Ok(self.last.as_ref().map_or(self.root.as_fd(), |(_, folder)| folder.as_fd()))
    }

    fn walk(&self, path: &Path) -> Result<OwnedFd, FetchError> {
        let failed = |error| trouble("open a folder of the artifact", error);
        let mut here = rustix::io::fcntl_dupfd_cloexec(&self.root, 0).map_err(failed)?;
        for name in path {
            let mut next = openat(&here, name, folder_flags(), Mode::empty());
            if matches!(next, Err(Errno::NOENT)) {
                make(&here, name, FOLDER_MODE).map_err(failed)?;
                next = openat(&here, name, folder_flags(), Mode::empty());
            }
            here = match next {
                Ok(next) => next,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let told = printable(path.as_os_str().as_bytes());
                    return Err(FetchError::verify(
                        fault::BAD_ARCHIVE,
                        format!("the archive writes through a link or a file as if it were a folder: {told}"),
                    ));
                }
                Err(error) => return Err(failed(error)),
            };
        }
        Ok(here)
    }
}

/// Gives a file its mode and its time, when all is written: writing takes setuid away.
///
/// # Errors
/// The disk refuses.
pub fn finish(file: &File, mode: u32, modified: u64) -> Result<(), FetchError> {
    let seconds = Timespec { tv_sec: i64::try_from(modified).unwrap_or(0), tv_nsec: 0 };
    fchmod(file, Mode::from_raw_mode(mode))
        .map_err(|error| trouble("set the mode of a file of the artifact", error))?;
    // Nothing depends on it, and some file systems know few years.
    let _ = futimens(file, &Timestamps { last_access: seconds, last_modification: seconds });
    Ok(())
}

/// A folder that is there then, with this mode whatever the umask is.
fn make(parent: impl AsFd, name: &OsStr, mode: u32) -> Result<(), Errno> {
    match mkdirat(&parent, name, Mode::from_raw_mode(FOLDER_MODE)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fchmod(openat(&parent, name, flags, Mode::empty())?, Mode::from_raw_mode(mode))
}

fn folder_flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn name_of(path: &Path) -> Result<&OsStr, FetchError> {
    path.file_name().ok_or_else(|| {
        FetchError::verify(fault::BAD_ARCHIVE, "the archive holds an entry that would replace its own folder")
    })
}

fn trouble(doing: &str, error: Errno) -> FetchError {
    FetchError::disk(doing, &error.into())
}
