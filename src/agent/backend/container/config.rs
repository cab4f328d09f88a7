//! Pure: what a container of ours is called, how it is marked and how it is configured.

use crate::agent::backend::{BackendError, Launch};
use crate::agent::process::identity::Identity;
use crate::agent::process::spec::RestartPolicy;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// The marks: labels of every container that is ours. What lacks [`IDENTITY`] is never touched.
pub const IDENTITY: &str = "praetor.azure.com/identity";
/// `metadata.uid` of the DeviceProcess.
pub const UID: &str = "praetor.azure.com/uid";
/// Hash of the spec.
pub const SPEC_HASH: &str = "praetor.azure.com/spec-hash";
/// The device that it runs for; absent: any.
pub const DEVICE: &str = "praetor.azure.com/device";
/// Digest of the image, as the registry knows it.
pub const ARTIFACT: &str = "praetor.azure.com/artifact";
/// Counts the containers of one identity: a higher one was made later, whatever the clock says.
pub const SEQUENCE: &str = "praetor.azure.com/sequence";

/// Repository of the tags that we give to images: `praetor.local/artifact:<64 hexadecimal digits>`. An image that has one
/// was fetched by us, and no pruning of untagged images removes it.
pub const FETCHED_REPOSITORY: &str = "praetor.local/artifact";
/// The same for images that were there before us: our tag goes one day, the image stays.
pub const FOUND_REPOSITORY: &str = "praetor.local/found";

/// Between the identity and the start of the run that was stopped, nanoseconds since 1970.
const STOPPED: &str = "_stopped_";
/// Processes and threads in a container: enough for any, an end to a fork bomb.
const PIDS_LIMIT: i64 = 4096;
/// The log that the engine keeps of a container's output: so many files, each so long.
const LOG_FILES: &str = "3";
const LOG_FILE_SIZE: &str = "10m";
/// The engine's restart policy that starts nothing.
pub const NO_RESTART: &str = "no";
/// Digits of the hash in a container's name.
const NAME_DIGITS: usize = 8;

/// What an engine does differently, or the device's owner wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site<'a> {
    /// `host`, `bridge`, `none` or the name of a network of the engine.
    pub network: &'a str,
    /// The device that it runs for; empty: no mark is made.
    pub device: &'a str,
    /// Put the engine's init process into containers.
    pub init: bool,
}

/// The name of the container with a number until it runs, `<identity>_<8 hexadecimal digits>`: another one for every uid,
/// spec, image and number. The one that runs is called by the identity alone, in which there is no underscore.
#[must_use]
pub fn name(launch: &Launch, sequence: u64) -> String {
    let marks = format!("{}\n{}\n{}\n{sequence}", launch.uid, launch.spec_hash, launch.artifact.digest);
    let hash = hex::encode(Sha256::digest(marks));
    format!("{}_{}", launch.identity, &hash[..NAME_DIGITS])
}

/// The name that a container is given before it is stopped. It says which run was stopped: once it has been started
/// again, whoever did it, the name means nothing any more.
#[must_use]
pub fn stopped_name(identity: &Identity, started_nanos: i64) -> String {
    format!("{identity}{STOPPED}{started_nanos}")
}

/// Whether a container's name says that the run that began then was stopped.
#[must_use]
pub fn is_stopped(name: &str, started_nanos: i64) -> bool {
    name.split_once(STOPPED).is_some_and(|(_, run)| run.parse() == Ok(started_nanos))
}

/// The tag of an image with a digest, `sha256:` and hexadecimal digits.
#[must_use]
pub fn image_tag(repository: &str, digest: &str) -> String {
    format!("{repository}:{}", digest.trim_start_matches("sha256:"))
}

/// The digest that one of our tags stands for.
#[must_use]
pub fn tagged_digest<'a>(repository: &str, reference: &'a str) -> Option<String> {
    let hex: &'a str = reference.strip_prefix(repository)?.strip_prefix(':')?;
    let good = hex.len() == 64 && hex.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
    good.then(|| format!("sha256:{hex}"))
}

/// The request that creates a container from `image`, an id that the engine knows.
///
/// What no field of a spec speaks of is set to what is safe: nothing of the device is mounted, no privileges, no new
/// ones by setuid files, the engine's own confinement (seccomp, AppArmor, SELinux), a bounded log and a bounded number of
/// processes. The network is the device's own unless its owner says otherwise: a process on a switch listens on the
/// switch's addresses, and does so with every other backend.
///
/// # Errors
/// [`BackendError::Refused`] for an environment that no process can have.
pub fn create(launch: &Launch, image: &str, sequence: u64, site: Site<'_>) -> Result<Value, BackendError> {
    if launch.env.iter().any(|(name, _)| name.is_empty() || name.contains('=')) {
        return Err(BackendError::Refused("execution.env: a name is empty or contains '='".to_owned()));
    }
    let environment: Vec<String> = launch.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut body = Map::new();
    let mut set = |key: &str, value: Value| body.insert(key.to_owned(), value);
    set("Image", json!(image));
    // With an entrypoint of our own the image's command is no argument of it.
    set("Entrypoint", json!([launch.program]));
    set("Cmd", json!(launch.args));
    set("Env", json!(environment));
    if let Some(folder) = &launch.working_dir {
        set("WorkingDir", json!(folder));
    }
    if let Some(user) = &launch.user {
        set("User", json!(user));
    }
    let mut labels = json!({
        IDENTITY: launch.identity.as_str(),
        UID: launch.uid,
        SPEC_HASH: launch.spec_hash,
        ARTIFACT: launch.artifact.digest,
        SEQUENCE: sequence.to_string(),
    });
    if !site.device.is_empty() {
        labels[DEVICE] = json!(site.device);
    }
    set("Labels", labels);
    set(
        "HostConfig",
        json!({
            "Init": site.init,
            "RestartPolicy": {"Name": restart_policy(launch.restart_policy)},
            "NetworkMode": site.network,
            "Privileged": false,
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": PIDS_LIMIT,
            "LogConfig": {"Type": "json-file", "Config": {"max-size": LOG_FILE_SIZE, "max-file": LOG_FILES}},
        }),
    );
    Ok(Value::Object(body))
}

/// `always` and not `unless-stopped`: an engine that was killed stops what has survived it, and takes that for an order.
fn restart_policy(policy: RestartPolicy) -> &'static str {
    match policy {
        RestartPolicy::Always => "always",
        RestartPolicy::OnFailure => "on-failure",
        RestartPolicy::Never => NO_RESTART,
    }
}

/// The update of a container that is about to be stopped: it is not started when the engine or the device comes up again.
#[must_use]
pub fn no_restart() -> Value {
    json!({"RestartPolicy": {"Name": NO_RESTART}})
}

/// A value for a query: everything but letters, digits and four signs is escaped.
#[must_use]
pub fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
        escaped
    })
}

/// `filters=…` of lists and events, from JSON.
#[must_use]
pub fn filters(filters: &Value) -> String {
    format!("filters={}", escape(&filters.to_string()))
}

#[cfg(test)]
pub mod tests {
    //! Also what other tests begin with.
    use super::*;
    use crate::agent::artifact::Fetched;

    /// Something to run.
    pub fn launch() -> Launch {
        Launch {
            identity: Identity::new("infra", "agent-tor1-01"),
            uid: "u-1".into(),
            spec_hash: "sha256:aa".into(),
            program: "/bin/agent".into(),
            args: vec!["--a b".into(), "$HOME".into()],
            env: vec![("A".into(), "x=y z".into())],
            working_dir: None,
            user: None,
            restart_policy: RestartPolicy::Always,
            artifact: Fetched { digest: format!("sha256:{}", "ab".repeat(32)), root: None },
        }
    }

    const SITE: Site<'_> = Site { network: "host", device: "", init: true };

    #[test]
    fn nothing_is_privileged_mounted_or_unbounded() {
        let body = create(&launch(), "sha256:image", 3, SITE).unwrap();
        assert_eq!(body["Entrypoint"], json!(["/bin/agent"]));
        assert_eq!(body["Cmd"], json!(["--a b", "$HOME"]));
        assert_eq!(body["Env"], json!(["A=x=y z"]));
        assert_eq!((body.get("User"), body.get("WorkingDir")), (None, None), "the image's own");
        assert_eq!(body["Labels"][SEQUENCE], "3");
        let host = &body["HostConfig"];
        assert_eq!(
            (&host["Privileged"], &host["Init"], &host["NetworkMode"]),
            (&false.into(), &true.into(), &"host".into())
        );
        assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
        assert_eq!(host["LogConfig"]["Config"], json!({"max-size": "10m", "max-file": "3"}));
        assert!(host["PidsLimit"].as_i64().unwrap() > 0);
        for absent in ["Binds", "Mounts", "Devices", "CapAdd", "VolumesFrom", "PidMode", "PortBindings"] {
            assert_eq!(host.get(absent), None, "{absent}");
        }
    }

    #[test]
    fn the_engine_restarts_as_the_spec_says() {
        for (policy, name) in
            [(RestartPolicy::Always, "always"), (RestartPolicy::OnFailure, "on-failure"), (RestartPolicy::Never, "no")]
        {
            let body = create(&Launch { restart_policy: policy, ..launch() }, "i", 1, SITE).unwrap();
            assert_eq!(body["HostConfig"]["RestartPolicy"], json!({"Name": name}));
        }
    }

    #[test]
    fn what_the_spec_says_wins() {
        let with = Launch { user: Some("app:app".into()), working_dir: Some("/x".into()), ..launch() };
        let body = create(&with, "i", 1, Site { network: "mgmt", device: "tor1-01", init: false }).unwrap();
        assert_eq!((&body["User"], &body["WorkingDir"]), (&"app:app".into(), &"/x".into()));
        assert_eq!((&body["HostConfig"]["NetworkMode"], &body["HostConfig"]["Init"]), (&"mgmt".into(), &false.into()));
        assert_eq!(body["Labels"][DEVICE], "tor1-01");
    }

    #[test]
    fn an_impossible_environment_is_refused() {
        for name in ["", "A=B"] {
            let env = vec![(name.to_owned(), String::new())];
            let error = create(&Launch { env, ..launch() }, "i", 1, SITE).unwrap_err();
            assert!(matches!(&error, BackendError::Refused(why) if why.contains("execution.env")), "{error}");
        }
    }

    #[test]
    fn every_container_has_a_name_of_its_own() {
        let first = name(&launch(), 1);
        assert!(first.starts_with("praetor-infra.agent-tor1-01_") && first.len() == 27 + 1 + 8, "{first}");
        let other = |launch: &Launch, sequence| assert_ne!(name(launch, sequence), first);
        other(&launch(), 2);
        other(&Launch { uid: "u-2".into(), ..launch() }, 1);
        other(&Launch { spec_hash: "sha256:ab".into(), ..launch() }, 1);
        assert_eq!(name(&launch(), 1), first);
    }

    #[test]
    fn a_stopped_run_is_known_by_its_start() {
        let identity = Identity::new("a", "b");
        let stopped = stopped_name(&identity, 17);
        assert_eq!(stopped, "praetor-a.b_stopped_17");
        assert!(is_stopped(&stopped, 17) && !is_stopped(&stopped, 18) && !is_stopped(identity.as_str(), 17));
    }

    #[test]
    fn tags_stand_for_digests() {
        let digest = launch().artifact.digest;
        let tag = image_tag(FETCHED_REPOSITORY, &digest);
        assert_eq!(tagged_digest(FETCHED_REPOSITORY, &tag), Some(digest));
        for foreign in ["praetor.local/found:ab", "praetor.local/artifact:ab", "praetor.local/artifact", "nginx:1"] {
            assert_eq!(tagged_digest(FETCHED_REPOSITORY, foreign), None);
        }
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(filters(&json!({"label": ["a/b=c d"]})), "filters=%7B%22label%22%3A%5B%22a%2Fb%3Dc%20d%22%5D%7D");
    }
}
