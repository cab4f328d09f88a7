//! Pure: which paths, links and modes of an archive are taken, so that nothing of it ever leads out of its folder.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// Longest path, bytes: half of what Linux takes, since the folder's own path stands before it.
const MAX_PATH_BYTES: usize = 2048;
/// Most folders within each other: whoever removes them holds each one open.
const MAX_DEPTH: usize = 128;
/// Longest name of a file, bytes.
const MAX_NAME_BYTES: usize = 255;
/// How much of a path is told: somebody else has chosen it.
const MAX_TOLD_CHARS: usize = 128;
/// What names begin with that remove something of a lower layer.
const WHITEOUT: &[u8] = b".wh.";
/// The name that empties a folder of lower layers.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names that storage drivers keep for themselves begin with it.
const WHITEOUT_META: &[u8] = b".wh..wh.";

/// Why a path is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It starts with a slash.
    #[error("the archive holds the absolute path {0}")]
    Absolute(String),
    /// It goes up.
    #[error("the archive holds the path {0}, which leads out of it or up and down again")]
    Up(String),
    /// Too long, or with a NUL character.
    #[error("the archive holds a path that no file can have: {0}")]
    Impossible(String),
    /// A link to somewhere else.
    #[error("the archive holds a link that leads out of it: {0} to {1}")]
    Leaves(String, String),
}

/// What an entry of a layer does to lower layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whiteout {
    /// Removes this.
    Remove(PathBuf),
    /// Removes everything in this.
    Empty(PathBuf),
    /// Nothing, and it is no file either.
    Meta,
}

/// The path of an entry below the archive's folder: names only; empty: the folder itself.
///
/// # Errors
/// It is absolute, goes up, or is none that a file can have.
pub fn below(raw: &[u8]) -> Result<PathBuf, PathFault> {
    let told = || printable(raw);
    if raw.len() > MAX_PATH_BYTES || raw.contains(&0) || raw.is_empty() {
        return Err(PathFault::Impossible(told()));
    }
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(raw)).components() {
        match component {
            Component::Normal(name) if name.len() > MAX_NAME_BYTES => return Err(PathFault::Impossible(told())),
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err(PathFault::Up(told())),
            Component::RootDir | Component::Prefix(_) => return Err(PathFault::Absolute(told())),
        }
    }
    if path.components().count() > MAX_DEPTH {
        return Err(PathFault::Impossible(told()));
    }
    Ok(path)
}

/// What a symbolic link at `at` may point to, so that following it never leaves the folder, whatever the names on the
/// way are links to: any number of `..` that `at` is deep, then names. An absolute target, which means the image's own
/// root, becomes a relative one.
///
/// # Errors
/// The target is outside.
pub fn confine(at: &Path, target: &[u8]) -> Result<OsString, PathFault> {
    let told = || PathFault::Leaves(printable(at.as_os_str().as_bytes()), printable(target));
    if target.is_empty() || target.len() > MAX_PATH_BYTES || target.contains(&0) {
        return Err(PathFault::Impossible(printable(target)));
    }
    let depth = at.components().count().saturating_sub(1);
    let target = Path::new(OsStr::from_bytes(target));
    // How far up, and the names below that.
    let (mut up, mut names) = (if target.is_absolute() { depth } else { 0 }, Vec::new());
    for component in target.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => {
                if names.pop().is_none() {
                    up += 1;
                }
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
        if up > depth {
            return Err(told());
        }
    }
    let mut bytes: Vec<&[u8]> = vec![b"..".as_slice(); up];
    bytes.extend(names.iter().map(|name| name.as_bytes()));
    Ok(OsString::from_vec(if bytes.is_empty() { b".".to_vec() } else { bytes.join(&b'/') }))
}

/// What an entry of an image's layer says about lower layers, if it is no entry like others.
#[must_use]
pub fn whiteout(path: &Path) -> Option<Whiteout> {
    let name = path.file_name()?.as_bytes();
    let folder = path.parent().unwrap_or(Path::new(""));
    if name == OPAQUE {
        return Some(Whiteout::Empty(folder.to_owned()));
    }
    if name.starts_with(WHITEOUT_META) {
        return Some(Whiteout::Meta);
    }
    match name.strip_prefix(WHITEOUT)? {
        // It would remove the folder itself, or what is above it.
        b"" | b"." | b".." => Some(Whiteout::Meta),
        hidden => Some(Whiteout::Remove(folder.join(OsStr::from_bytes(hidden)))),
    }
}

/// A file's permission bits: nobody but the owner may write; the owner may read.
#[must_use]
pub fn file_mode(mode: u32, allow_setuid: bool) -> u32 {
    (mode & if allow_setuid { 0o6755 } else { 0o755 }) | 0o400
}

/// A folder's: the owner may do everything, nobody else may write.
#[must_use]
pub fn folder_mode(mode: u32) -> u32 {
    (mode & 0o755) | 0o700
}

/// As it is told in a message: short, without control characters.
#[must_use]
pub fn printable(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut short: String = text.chars().take(MAX_TOLD_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_TOLD_CHARS).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_of_entries() {
        for (raw, path) in [
            ("a", "a"),
            ("./a//b/", "a/b"),
            ("./", ""),
            (".", ""),
            ("a/./b", "a/b"),
            ("a/.wh.b", "a/.wh.b"),
            ("...", "..."),
        ] {
            assert_eq!(below(raw.as_bytes()).unwrap(), Path::new(path), "{raw}");
        }
        assert!(matches!(below(b"/etc/passwd"), Err(PathFault::Absolute(_))));
        assert!(matches!(below(b"../x"), Err(PathFault::Up(_))));
        assert!(matches!(below(b"a/../b"), Err(PathFault::Up(_))));
        for impossible in [b"".to_vec(), b"a\0b".to_vec(), vec![b'a'; 256], b"a/".repeat(1100), b"a/".repeat(129)] {
            assert!(matches!(below(&impossible), Err(PathFault::Impossible(_))));
        }
        let message = below(b"../\x1b[2J\n\xff").unwrap_err().to_string();
        assert!(!message.chars().any(char::is_control), "{message:?}");
    }

    #[test]
    fn links() {
        for (at, target, written) in [
            ("bin", "usr/bin", "usr/bin"),
            ("a/b/c", "../../x", "../../x"),
            ("a/b/c", "/usr/x", "../../usr/x"),
            ("c", "/usr/../x", "x"),
            ("c", "/", "."),
            ("a/c", "/", ".."),
            ("a/c", "x/../y", "y"),
            ("a/c", "./x/.", "x"),
            ("a/c", "x/../../y", "../y"),
        ] {
            assert_eq!(confine(Path::new(at), target.as_bytes()).unwrap(), written, "{at} -> {target}");
        }
        for (at, target) in
            [("a", ".."), ("a", "../x"), ("a/b", "../../x"), ("a/b", "x/../../.."), ("a", "/.."), ("a/b", "/../x")]
        {
            assert!(
                matches!(confine(Path::new(at), target.as_bytes()), Err(PathFault::Leaves(..))),
                "{at} -> {target}"
            );
        }
        assert!(confine(Path::new("a"), b"").is_err() && confine(Path::new("a"), b"a\0").is_err());
    }

    #[test]
    fn whiteouts() {
        for (path, says) in [
            ("a/.wh.b", Some(Whiteout::Remove("a/b".into()))),
            (".wh.b", Some(Whiteout::Remove("b".into()))),
            ("a/.wh..wh..opq", Some(Whiteout::Empty("a".into()))),
            (".wh..wh..opq", Some(Whiteout::Empty("".into()))),
            ("a/.wh..wh.plnk", Some(Whiteout::Meta)),
            ("a/.wh.", Some(Whiteout::Meta)),
            ("a/.wh...", Some(Whiteout::Meta)),
            (".wh...", Some(Whiteout::Meta)),
            (".wh..b", Some(Whiteout::Remove(".b".into()))),
            ("a/b.wh.", None),
        ] {
            assert_eq!(whiteout(Path::new(path)), says, "{path}");
        }
    }

    #[test]
    fn modes() {
        assert_eq!((file_mode(0o7777, false), file_mode(0o7777, true), file_mode(0, false)), (0o755, 0o6755, 0o400));
        assert_eq!((folder_mode(0o1777), folder_mode(0o555), folder_mode(0)), (0o755, 0o755, 0o700));
    }

    /// Follows a path by hand through links of which each was confined, as the kernel would; `None` when it leaves.
    fn follow(links: &[(PathBuf, OsString)], from: &Path, target: &OsStr, steps: &mut u32) -> Option<PathBuf> {
        let mut here = from.to_owned();
        for component in Path::new(target).components() {
            *steps = steps.checked_sub(1)?;
            match component {
                Component::ParentDir => {
                    if !here.pop() {
                        return None;
                    }
                }
                Component::Normal(name) => {
                    let next = here.join(name);
                    match links.iter().find(|(at, _)| *at == next) {
                        Some((_, target)) => here = follow(links, &here, target, steps)?,
                        None => here = next,
                    }
                }
                Component::CurDir => {}
                Component::RootDir | Component::Prefix(_) => return None,
            }
        }
        Some(here)
    }

    proptest! {
        #[test]
        fn a_path_is_names_only(raw in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), any::<u8>()], 0..40)) {
            if let Ok(path) = below(&raw) {
                prop_assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
                if let Some(Whiteout::Remove(path) | Whiteout::Empty(path)) = whiteout(&path) {
                    prop_assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
                }
            }
        }

        /// Links at any depth, to anywhere, also through each other.
        #[test]
        fn no_chain_of_links_leaves(links in proptest::collection::vec(("[ab](/[ab]){0,2}", "(/|\\.\\./|[ab]/|\\./){0,5}[ab.]{1,2}"), 1..6)) {
            let mut confined: Vec<(PathBuf, OsString)> = Vec::new();
            for (at, target) in &links {
                let at = PathBuf::from(at);
                // A link's own folder is a real one: nothing is ever written through a link.
                let real = at.ancestors().skip(1).all(|above| !confined.iter().any(|(other, _)| other == above))
                    && !confined.iter().any(|(other, _)| other.starts_with(&at));
                if let (true, Ok(target)) = (real, confine(&at, target.as_bytes())) {
                    confined.push((at, target));
                }
            }
            for (at, target) in &confined {
                // A loop of links is an error of the kernel's, and leads nowhere.
                let mut steps = 200;
                let end = follow(&confined, at.parent().unwrap(), target, &mut steps);
                prop_assert!(end.is_some() || steps == 0, "{at:?} -> {target:?} in {confined:?}");
            }
        }
    }
}
