//! The real kubectl, as a person would type it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a command said.
#[derive(Debug, Clone)]
pub struct Output {
    /// Whether it exited with 0.
    pub ok: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// kubectl with one kubeconfig.
#[derive(Debug, Clone)]
pub struct Kubectl {
    /// The program.
    pub program: PathBuf,
    /// Who it is.
    pub kubeconfig: PathBuf,
    /// Its home and cache, so that the developer's own stay untouched.
    pub home: PathBuf,
}

impl Kubectl {
    /// Runs it and returns what it said, whatever the exit code.
    pub async fn output(&self, args: &[&str], stdin: Option<&str>) -> Output {
        let (kubectl, args, stdin) =
            (self.clone(), args.iter().map(ToString::to_string).collect::<Vec<_>>(), stdin.map(str::to_owned));
        tokio::task::spawn_blocking(move || kubectl.run_blocking(&args, stdin.as_deref()))
            .await
            .expect("kubectl's thread")
    }

    /// Runs it and returns its standard output; panics with its standard error when it fails.
    pub async fn run(&self, args: &[&str]) -> String {
        let output = self.output(args, None).await;
        assert!(output.ok, "kubectl {}: {}", args.join(" "), output.stderr);
        output.stdout
    }

    /// `kubectl apply -f -` of manifests in YAML or JSON.
    pub async fn apply(&self, manifests: &str) -> String {
        let output = self.try_apply(manifests).await;
        assert!(output.ok, "kubectl apply: {}\n{manifests}", output.stderr);
        output.stdout
    }

    /// The same for manifests that may be refused.
    pub async fn try_apply(&self, manifests: &str) -> Output {
        self.output(&["apply", "-f", "-"], Some(manifests)).await
    }

    /// `kubectl apply -f` of a file or folder.
    pub async fn apply_path(&self, path: &Path) -> String {
        self.run(&["apply", "-f", &path.to_string_lossy()]).await
    }

    /// `kubectl apply -k` of a kustomization.
    pub async fn apply_kustomization(&self, folder: &Path) -> String {
        self.run(&["apply", "-k", &folder.to_string_lossy()]).await
    }

    fn run_blocking(&self, args: &[String], stdin: Option<&str>) -> Output {
        let mut command = Command::new(&self.program);
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {}: {e}", self.program.display()));
        if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
            // It reads everything before it answers; a refusal of its own shows in its exit code.
            let _ = pipe.write_all(text.as_bytes());
        }
        let output = child.wait_with_output().expect("kubectl ends");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Output { ok: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}
