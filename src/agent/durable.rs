//! Edge: files that are written all or nothing.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Puts `write`'s bytes in place of the file, which only root can read then. A crash at any point leaves either the old
/// file or the new one: the new one has reached the disk before it takes the name, and so has its name before this
/// returns. The folder is made if it is missing.
///
/// # Errors
/// The old file is as it was.
pub fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let new = with_suffix(path, "new");
    let mut writer = BufWriter::new(create(&new)?);
    write(&mut writer)?;
    writer.write_all(b"\n")?;
    writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

/// Gives a file this content and this mode, whatever the umask is, all or nothing as [`replace`] does. Its folder must be
/// there, and may be one that others read names from: until it is whole it has one that begins with a dot.
///
/// # Errors
/// The old file is as it was.
pub fn place(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    // systemd reads no file whose name begins with a dot, nor do tools that look through the folder of init.
    let new = folder.join(format!(".{}.new", name.to_string_lossy()));
    let whole = create(&new).and_then(|mut file| {
        file.write_all(content)?;
        // Not before: what is not for all must not be read by all.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    });
    whole.and_then(|()| fs::rename(&new, path)).inspect_err(|_| drop(fs::remove_file(&new)))?;
    File::open(folder)?.sync_all()
}

/// A file that nobody else has open and only root can read.
fn create(new: &Path) -> io::Result<File> {
    // Left by a crash, perhaps with another mode or as a link to somewhere else.
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)
}

/// The same path with a dot and a suffix.
#[must_use]
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}
