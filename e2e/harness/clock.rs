//! Wall clocks that are wrong, by libfaketime. Monotonic clocks and the system's own time stay as they are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Variables with which the wall clock of a process is off by so many seconds: none for 0, nor where libfaketime cannot
/// be had, which is said once.
pub fn off_by(seconds: i64) -> Vec<(&'static str, String)> {
    let library = if seconds == 0 { None } else { library() };
    let Some(library) = library else { return Vec::new() };
    vec![
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", format!("{seconds:+}")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("NO_FAKE_STAT", "1".into()),
    ]
}

/// Whether [`off_by`] does anything here.
pub fn can_be_wrong() -> bool {
    library().is_some()
}

fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY.get_or_init(find).as_deref()
}

fn find() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/faketime.sh");
    let said = Command::new(script).output().expect("bash");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match said.status.code() {
        Some(0) => Some(PathBuf::from(text(&said.stdout))),
        Some(3) => {
            eprintln!("SKIPPED: all clocks are right, there is no libfaketime on this machine. {}", text(&said.stderr));
            None
        }
        _ => panic!("hack/faketime.sh: {}", text(&said.stderr)),
    }
}
