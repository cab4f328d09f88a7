//! Pure: what to do about a start that failed for want of a Secret.

use super::error::RunError;
use crate::gateway::credentials::AuthError;
use crate::peers::key::KeyError;
use std::io::ErrorKind;
use std::path::Path;

/// Where config/manager mounts its Secrets, in folders of their names: how the paths end, whatever root they are below.
const SHIPPED: [&str; 2] = ["etc/praetor/praetor-device-secret/token-secret", "etc/praetor/praetor-peer-key/key"];

/// What an operator should do, for a manager that runs in a pod of `namespace`. Says something only when a file of
/// secrets is not there: the pod sees an empty folder where a Secret should be. Elsewhere than where it is mounted as
/// shipped, the path does not tell the Secret's name.
#[must_use]
pub fn in_a_pod(error: &RunError, namespace: &str) -> Option<String> {
    let path = match error {
        RunError::Auth(AuthError::Unreachable { flag: "--device-token-secret-file", path, error })
            if error.kind() == ErrorKind::NotFound =>
        {
            path
        }
        RunError::PeerKey(KeyError::Unreadable { path, error }) if error.kind() == ErrorKind::NotFound => path,
        _ => return None,
    };
    if !SHIPPED.iter().any(|shipped| path.ends_with(shipped)) {
        let path = path.display();
        return Some(format!(
            "if {path} is mounted from a Secret, that one is missing in {namespace}, or has no such key"
        ));
    }
    let text = |part: Option<&std::ffi::OsStr>| part.and_then(|part| part.to_str()).map(str::to_owned);
    let (secret, key) = (text(path.parent().and_then(Path::file_name))?, text(path.file_name())?);
    Some(format!(
        "the Secret {secret} is missing in {namespace}, or has no {key}; make deploy creates it, or: head -c 32 \
         /dev/urandom | od -An -v -tx1 | tr -d ' \\n' | kubectl -n {namespace} create secret generic {secret} \
         --from-file={key}=/dev/stdin"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn auth(flag: &'static str, kind: ErrorKind) -> RunError {
        let path = "/etc/praetor/praetor-device-secret/token-secret".into();
        RunError::Auth(AuthError::Unreachable { flag, path, error: io::Error::from(kind) })
    }

    #[test]
    fn names_the_secret_and_the_command() {
        let advice = in_a_pod(&auth("--device-token-secret-file", ErrorKind::NotFound), "infra").unwrap();
        assert_eq!(
            advice,
            "the Secret praetor-device-secret is missing in infra, or has no token-secret; make deploy creates it, or: \
             head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n' | kubectl -n infra create secret generic \
             praetor-device-secret --from-file=token-secret=/dev/stdin"
        );
        let path = "/etc/praetor/praetor-peer-key/key".into();
        let error = RunError::PeerKey(KeyError::Unreadable { path, error: io::Error::from(ErrorKind::NotFound) });
        let advice = in_a_pod(&error, "infra").unwrap();
        assert!(advice.starts_with("the Secret praetor-peer-key is missing in infra, or has no key; "), "{advice}");
        assert!(!advice.contains('\n'));
    }

    #[test]
    fn names_no_secret_for_another_place() {
        // Of the same names as what is shipped, and of others.
        for path in ["/run/secrets/praetor-peer-key/key", "/etc/praetor/keys/peer", "key"] {
            let error = io::Error::from(ErrorKind::NotFound);
            let error = RunError::PeerKey(KeyError::Unreadable { path: path.into(), error });
            let expected =
                format!("if {path} is mounted from a Secret, that one is missing in infra, or has no such key");
            assert_eq!(in_a_pod(&error, "infra"), Some(expected));
        }
    }

    #[test]
    fn what_is_shipped_is_where_the_deployment_mounts_it() {
        let deployment = include_str!("../../config/manager/deployment.yaml");
        for path in SHIPPED {
            assert!(deployment.contains(&format!("-file=/{path}\n")), "{path}");
        }
    }

    #[test]
    fn says_nothing_about_other_faults() {
        assert_eq!(in_a_pod(&auth("--device-token-secret-file", ErrorKind::PermissionDenied), "infra"), None);
        assert_eq!(in_a_pod(&auth("--device-tokens-file", ErrorKind::NotFound), "infra"), None);
        assert_eq!(in_a_pod(&RunError::Unadvertised, "infra"), None);
    }
}
