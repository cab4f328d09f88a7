//! Edge: archives made by chance and with ill will, and what they leave on the disk.

use super::*;
use crate::agent::artifact::misbehaving::{Put, gzip, tar};
use crate::agent::artifact::policy::Limits;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Unpacks archives over each other in `outer/root`, between things that must stay as they are.
fn lay(outer: &Path, layers: &[Vec<u8>], allow_setuid: bool) -> Result<PathBuf, FetchError> {
    fs::write(outer.join("sentinel"), "untouched").unwrap();
    fs::create_dir(outer.join("beside")).unwrap();
    let root = outer.join("root");
    let mut tree = Tree::create(&root)?;
    let mut budget = Budget::new(Limits { files: 1000, ..Limits::default() });
    let rules = Rules { allow_setuid, layer: true, cancelled: &|| false, room: &|_| Ok(()) };
    for (number, layer) in layers.iter().enumerate() {
        let path = outer.join("blob");
        fs::write(&path, layer).unwrap();
        let content = look(&path)?;
        if number > 0 {
            remove_hidden(&path, content, &mut tree, &mut budget, rules)?;
        }
        unpack(&path, content, &mut tree, &mut budget, rules)?;
    }
    Ok(root)
}

/// Nothing but what was there, and nothing that leads out.
fn is_contained(outer: &Path) {
    let mut names: Vec<_> = fs::read_dir(outer).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.retain(|name| name != "blob" && name != "root");
    names.sort();
    assert_eq!(names, ["beside", "sentinel"]);
    assert_eq!(fs::read_to_string(outer.join("sentinel")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(outer.join("beside")).unwrap().count(), 0);
    let root = outer.join("root");
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let data = fs::symlink_metadata(&path).unwrap();
            assert!(data.is_dir() || data.is_file() || data.is_symlink(), "{path:?}");
            if data.is_symlink() {
                // A link may lead nowhere, but never out.
                if let Ok(real) = fs::canonicalize(&path) {
                    assert!(real.starts_with(&root), "{path:?} leads to {real:?}");
                }
            } else {
                assert_eq!(data.permissions().mode() & 0o7022, 0, "{path:?}");
            }
            if data.is_dir() {
                folders.push(path);
            }
        }
    }
}

#[test]
fn setuid_is_kept_only_when_it_is_allowed() {
    let archive = tar(&[Put::File("su", b"x", 0o6755)]);
    for (allowed, mode) in [(false, 0o755), (true, 0o6755)] {
        let outer = tempfile::tempdir().unwrap();
        let root = lay(outer.path(), std::slice::from_ref(&archive), allowed).unwrap();
        assert_eq!(fs::metadata(root.join("su")).unwrap().permissions().mode() & 0o7777, mode);
    }
}

#[test]
fn several_members_of_gzip_are_one_archive() {
    let archive = tar(&[Put::File("a", &[b'a'; 5000], 0o644), Put::File("b", b"b", 0o644)]);
    let (one, two) = archive.split_at(3000);
    let outer = tempfile::tempdir().unwrap();
    let root = lay(outer.path(), &[[gzip(one), gzip(two)].concat()], false).unwrap();
    assert_eq!((fs::read(root.join("a")).unwrap().len(), fs::read(root.join("b")).unwrap()), (5000, b"b".to_vec()));
}

#[test]
fn a_time_is_kept() {
    let outer = tempfile::tempdir().unwrap();
    let root = lay(outer.path(), &[tar(&[Put::File("a", b"a", 0o644)])], false).unwrap();
    let modified = fs::metadata(root.join("a")).unwrap().modified().unwrap();
    assert_eq!(modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(), 1_000_000_000);
}

#[test]
fn whoever_gives_up_is_heard() {
    let outer = tempfile::tempdir().unwrap();
    let path = outer.path().join("blob");
    fs::write(&path, tar(&[Put::File("a", &vec![1; 9 << 20], 0o644)])).unwrap();
    let mut tree = Tree::create(&outer.path().join("root")).unwrap();
    let rules = Rules { allow_setuid: false, layer: false, cancelled: &|| true, room: &|_| Ok(()) };
    let mut budget = Budget::new(Limits::default());
    assert_eq!(unpack(&path, Content::Tar, &mut tree, &mut budget, rules).unwrap_err().reason, fault::INTERRUPTED);
    let full = Rules { cancelled: &|| false, room: &|_| Err(FetchError::disk_full()), ..rules };
    assert_eq!(unpack(&path, Content::Tar, &mut tree, &mut budget, full).unwrap_err().reason, fault::DISK_FULL);
}

fn some_path() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[ab]{1,1}(/[abc]{1,1}){0,3}/?",
        1 => "(\\./|\\.\\./|/){0,3}[ab](/\\.\\.){0,2}(/[ab])?",
        1 => "(a/)?\\.wh\\.(\\.wh\\.\\.opq|[ab]|\\.\\.|\\.)?",
        1 => Just("../sentinel".to_owned()),
        1 => Just("a/../../sentinel".to_owned()),
    ]
}

fn some_target() -> impl Strategy<Value = String> {
    prop_oneof![
        "(\\.\\./){0,4}[ab]?(/[ab])?",
        "(/|\\./)?[abc](/\\.\\.){0,3}(/[ab])?",
        Just("../../beside".to_owned()),
        Just("/".to_owned())
    ]
}

#[derive(Debug, Clone)]
struct Chance(u8, String, String);

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_ever_written_outside(entries in proptest::collection::vec((0_u8..8, some_path(), some_target()).prop_map(|(k, p, t)| Chance(k, p, t)), 1..12), cut in 0_usize..4) {
        // Each entry alone is a layer of its own in part of the cases: so later ones meet what earlier ones have left.
        let puts: Vec<_> = entries.iter().map(|Chance(kind, path, target)| match kind {
            0..=2 => Put::File(path, b"content", 0o7777),
            3 => Put::Folder(path, 0o1777),
            4 | 5 => Put::Link(path, target),
            6 => Put::Hard(path, target),
            _ => Put::File(path, b"", 0),
        }).collect();
        let layers: Vec<_> = if cut == 0 { vec![tar(&puts)] } else { puts.chunks(cut).map(tar).collect() };
        let outer = tempfile::tempdir().unwrap();
        // Also without the entries that stop it: these are met one by one.
        let _ = lay(outer.path(), &layers, false);
        is_contained(outer.path());
    }

    #[test]
    fn no_damage_breaks_it(at in 0_usize..4000, with in any::<u8>(), packed in any::<bool>()) {
        let archive = tar(&[Put::Folder("a", 0o755), Put::File("a/b", &[7; 600], 0o644), Put::Link("l", "a/b"), Put::Hard("h", "a/b")]);
        let mut bytes = if packed { gzip(&archive) } else { archive };
        let at = at % bytes.len();
        bytes[at] = with;
        let outer = tempfile::tempdir().unwrap();
        let _ = lay(outer.path(), &[bytes], false);
        is_contained(outer.path());
    }
}
