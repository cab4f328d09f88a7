//! Pure: why the engine does not make or start a container, in words about the spec.
//!
//! Engines say it in sentences for people; there is no code for it. What is not known here is passed on, without what
//! differs from one time to the next.

use crate::agent::backend::{BackendError, Launch};

/// Shortest run of hexadecimal digits that is taken for the id of a container, which is another one each time.
const ID_DIGITS: usize = 12;
/// Bits of a mode as Go has them: a folder, a symbolic link.
const GO_MODE_FOLDER: u32 = 1 << 31;
const GO_MODE_LINK: u32 = 1 << 27;
/// Somebody may execute it.
const MODE_EXECUTABLE: u32 = 0o111;

/// What the engine knows about a path in a container.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathStat {
    /// As Go has it.
    #[serde(default)]
    pub mode: u32,
    /// Where a symbolic link leads, an absolute path in the container.
    #[serde(default)]
    pub link_target: String,
}

/// What an engine's refusal to create or start a container means.
#[must_use]
pub fn explain(words: &str, launch: &Launch, network: &str) -> BackendError {
    let lower = words.to_lowercase();
    let says = |any: &[&str]| any.iter().any(|part| lower.contains(part));
    let user = launch.user.as_deref().unwrap_or("the image's user");
    let program = &launch.program;
    let why = if says(&[
        "unable to find user",
        "entries in passwd file",
        "unable to find group",
        "entries in group file",
        "no such user",
    ]) {
        no_user(user)
    } else if says(&["chdir to cwd", "working directory", "mkdir"])
        && says(&["invalid", "not a directory", "absolute", "chdir"])
    {
        let folder = launch.working_dir.as_deref().unwrap_or("the image's working directory");
        format!("execution.workingDir: {folder} cannot be the working directory in the image")
    } else if says(&["exec format error"]) {
        format!("execution.command: {program} is no program for this device's processor")
    } else if says(&["executable file not found", "no such file or directory"])
        && says(&["exec", "stat ", "start container process"])
    {
        no_program(program)
    } else if says(&["permission denied"]) && says(&["exec:", "start container process", "starting container process"])
    {
        format!("execution.command: {program} may not be executed in the image")
    } else if says(&["invalid environment variable"]) {
        "execution.env: the engine refuses a variable".to_owned()
    } else if says(&["network"]) && says(&["not found", "unable to find network"]) {
        return BackendError::Failed(format!("the container engine has no network {network} (--container-network)"));
    } else if says(&["no space left"]) {
        return BackendError::Failed("the disk of the container engine is full".to_owned());
    } else {
        return BackendError::Failed(format!("the container engine: {}", without_ids(words)));
    };
    BackendError::Refused(why)
}

/// No such program in the image.
#[must_use]
pub fn no_program(program: &str) -> String {
    format!("execution.command: {program} is not in the image")
}

/// No such user in the image.
#[must_use]
pub fn no_user(user: &str) -> String {
    format!("execution.user: {user} is not in the image")
}

/// An engine's words without the ids of containers.
#[must_use]
pub fn without_ids(words: &str) -> String {
    let mut text = String::new();
    let mut run = String::new();
    for c in words.chars().chain([' ']) {
        if c.is_ascii_alphanumeric() {
            run.push(c);
            continue;
        }
        let is_id = run.len() >= ID_DIGITS && run.bytes().all(|c| c.is_ascii_hexdigit());
        text.push_str(if is_id { "\u{2026}" } else { &run });
        run.clear();
        text.push(c);
    }
    text.pop();
    text
}

/// Where a program may be: an absolute path is one, one with a slash is below the working directory, a mere name is in
/// one of the folders of `PATH`.
#[must_use]
pub fn candidates(program: &str, env: &[String], working_dir: &str) -> Vec<String> {
    let below = |folder: &str| format!("{}/{program}", folder.trim_end_matches('/'));
    if program.starts_with('/') {
        return vec![program.to_owned()];
    }
    if program.contains('/') {
        return vec![below(working_dir)];
    }
    let path = env.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
    // What engines set when neither the image nor the spec does.
    let path = path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path.split(':').filter(|folder| folder.starts_with('/')).map(below).collect()
}

/// Why a file cannot be a program; none: it can.
#[must_use]
pub fn no_executable(program: &str, mode: u32) -> Option<String> {
    if mode & GO_MODE_FOLDER != 0 {
        return Some(format!("execution.command: {program} is a folder in the image"));
    }
    (mode & MODE_EXECUTABLE == 0).then(|| format!("execution.command: {program} is not executable in the image"))
}

/// Whether it is a symbolic link.
#[must_use]
pub fn is_link(mode: u32) -> bool {
    mode & GO_MODE_LINK != 0
}

/// Whether `/etc/passwd` or `/etc/group` knows a name or number.
#[must_use]
pub fn has_entry(file: &str, name: &str) -> bool {
    file.lines().any(|line| line.split(':').next() == Some(name))
}

/// The content of the first file of a tar archive; none: the archive has no file first.
#[must_use]
pub fn only_file(archive: &[u8]) -> Option<&[u8]> {
    const BLOCK: usize = 512;
    let header = archive.get(..BLOCK)?;
    if !matches!(header[156], 0 | b'0') {
        return None;
    }
    let digits = std::str::from_utf8(&header[124..136]).ok()?.trim_matches(['\0', ' ']);
    let size = usize::from_str_radix(digits, 8).ok()?;
    archive.get(BLOCK..BLOCK.checked_add(size)?)
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::launch;
    use super::*;

    #[test]
    fn the_field_is_named() {
        let user = Launch { user: Some("nosuch".into()), working_dir: Some("/etc/passwd".into()), ..launch() };
        for (words, part) in [
            ("unable to find user nosuch: no matching entries in passwd file", "execution.user: nosuch is not in"),
            (
                "OCI runtime create failed: container_linux.go:380: starting container process caused: exec: \"agent\": executable file not found in $PATH: unknown",
                "execution.command: /bin/agent is not in",
            ),
            (
                "failed to create shim: OCI runtime create failed: runc create failed: unable to start container process: exec: \"/bin/agent\": stat /bin/agent: no such file or directory: unknown",
                "execution.command: /bin/agent is not in",
            ),
            (
                "OCI runtime create failed: runc create failed: unable to start container process: exec: \"/bin/agent\": permission denied: unknown",
                "execution.command: /bin/agent may not",
            ),
            ("OCI runtime create failed: exec /bin/agent: exec format error", "processor"),
            (
                "OCI runtime create failed: runc create failed: unable to start container process: chdir to cwd (\"/etc/passwd\") set in config.json failed: not a directory",
                "execution.workingDir: /etc/passwd",
            ),
            ("the working directory 'x' is invalid, it needs to be an absolute path", "execution.workingDir"),
        ] {
            let error = explain(words, &user, "host");
            assert!(matches!(&error, BackendError::Refused(why) if why.contains(part)), "{words}: {error:?}");
        }
        let error = explain("network mgmt not found", &user, "mgmt");
        assert_eq!(
            error,
            BackendError::Failed("the container engine has no network mgmt (--container-network)".into())
        );
    }

    #[test]
    fn equal_causes_have_equal_words() {
        let words = |id: &str| format!("Conflict: \"/x\" is in use by container \"{id}\", deadbeef");
        let [one, two] = ["0123456789abcdef".repeat(4), "fedcba987654".to_owned()].map(|id| without_ids(&words(&id)));
        assert_eq!(one, two);
        assert_eq!(one, "Conflict: \"/x\" is in use by container \"\u{2026}\", deadbeef");
        assert_eq!(without_ids("as it is."), "as it is.");
    }

    #[test]
    fn programs_are_looked_for_as_the_engine_does() {
        let env = ["PATH=/a:/b/:".to_owned(), "X=y".to_owned()];
        assert_eq!(candidates("/x/y", &env, "/w"), ["/x/y"]);
        assert_eq!(candidates("./x", &env, "/w/"), ["/w/./x"]);
        assert_eq!(candidates("x/y", &env, ""), ["/x/y"]);
        assert_eq!(candidates("x", &env, "/w"), ["/a/x", "/b/x"]);
        assert!(candidates("x", &[], "/").contains(&"/usr/bin/x".to_owned()));
        assert_eq!(no_executable("x", 0o755), None);
        assert!(no_executable("x", 0o644).unwrap().contains("not executable"));
        assert!(no_executable("x", GO_MODE_FOLDER | 0o755).unwrap().contains("folder"));
    }

    #[test]
    fn a_file_is_taken_out_of_its_archive() {
        let mut archive = vec![0; 512];
        archive[124..136].copy_from_slice(b"00000000013\0");
        archive[156] = b'0';
        archive.extend_from_slice(b"app:x:1000:");
        let file = only_file(&archive).unwrap();
        assert_eq!(file, b"app:x:1000:");
        assert!(has_entry("root:x:0\napp:x:1", "app") && !has_entry("application:x:1", "app"));
        archive[156] = b'2';
        assert_eq!(only_file(&archive), None);
        archive[156] = b'0';
        archive[124..136].copy_from_slice(b"77777777777\0");
        assert_eq!(only_file(&archive), None);
        assert_eq!(only_file(b"short"), None);
    }
}
