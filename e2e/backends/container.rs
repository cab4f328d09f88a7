//! Containers of a Docker engine.

use super::conformance::Site;
use super::engine::Engine;
use praetor::agent::artifact::Fetched;
use praetor::agent::backend::container::{Containers, Options};
use praetor::agent::backend::{Backend, Folders};
use praetor::agent::process::identity::Identity;
use praetor::agent::process::spec::{Artifact, ArtifactType, BackendKind};
use std::path::PathBuf;

/// Where the program of a test lies in its image.
pub const PROGRAM: &str = "/usr/local/bin/program";

/// An engine, and the agent's backend for it.
pub struct Docker {
    containers: Containers,
    state: tempfile::TempDir,
    pub engine: Engine,
}

/// An image as a spec names it.
pub fn image(url: &str, checksum: Option<&str>) -> Artifact {
    Artifact { r#type: ArtifactType::Oci, url: url.to_owned(), checksum_sha256: checksum.map(str::to_owned) }
}

// === impl Docker ===

impl Docker {
    /// Starts the engine; an error is the reason why it cannot be had here.
    pub fn new() -> Result<Self, String> {
        let engine = Engine::start()?;
        let state = tempfile::tempdir().unwrap();
        let containers = backend(state.path().into(), &engine, None);
        Ok(Self { containers, state, engine })
    }

    /// The agent after it was started again, with a docker config file or without.
    pub fn another(&self, registry_config: Option<PathBuf>) -> Containers {
        backend(self.state.path().into(), &self.engine, registry_config)
    }

    /// The backend.
    pub fn containers(&self) -> &Containers {
        &self.containers
    }

    /// An image with this program, fetched.
    pub fn fetched(&self, script: &str) -> Fetched {
        let name = format!("test/program:{:x}", script.len());
        let digest = self.engine.image(&name, script);
        let url = format!("{}/{name}@{digest}", self.engine.registry());
        let options = Options { socket: self.engine.socket(), network: "host".to_owned(), registry_config: None };
        let folders = Folders { state: self.state.path().into(), device: String::new() };
        // Whoever asks may be in a runtime already.
        let fetching = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let containers = Containers::new(&folders, options);
            runtime.block_on(containers.fetch(&image(&url, None), None).unwrap()).unwrap()
        });
        fetching.join().unwrap()
    }
}

fn backend(state: PathBuf, engine: &Engine, registry_config: Option<PathBuf>) -> Containers {
    let options = Options { socket: engine.socket(), network: "host".to_owned(), registry_config };
    Containers::new(&Folders { state, device: String::new() }, options)
}

impl Site for Docker {
    fn backend(&self) -> &dyn Backend {
        &self.containers
    }

    fn kind(&self) -> BackendKind {
        BackendKind::Container
    }

    fn restarts(&self) -> bool {
        true
    }

    fn on_the_device(&self) -> bool {
        false
    }

    fn artifact(&self, script: &str) -> (Fetched, String) {
        (self.fetched(script), PROGRAM.to_owned())
    }

    fn plant(&self, identity: &Identity) {
        self.fetched("#!/bin/sh\n");
        let image = self.engine.docker(&["images", "--quiet", "praetor.local/artifact"]);
        let image = image.lines().next().unwrap().to_owned();
        self.engine.docker(&["create", "--name", identity.as_str(), "--network", "none", &image, "/bin/sleep", "1000"]);
        self.engine.docker(&["start", identity.as_str()]);
    }

    fn intact(&self, identity: &Identity) -> bool {
        self.engine.docker(&["ps", "--quiet", "--filter", &format!("name=^/{identity}$")]).lines().count() == 1
    }

    fn uproot(&self, identity: &Identity) {
        self.engine.docker(&["rm", "--force", identity.as_str()]);
    }

    fn remains(&self, identity: &Identity) -> Vec<String> {
        let named =
            self.engine.docker(&["ps", "--all", "--format", "{{.Names}}", "--filter", &format!("name={identity}")]);
        let mut remains: Vec<String> = named.lines().map(str::to_owned).collect();
        let files = std::fs::read_dir(self.state.path().join("containers"));
        let files = files.into_iter().flatten().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        remains.extend(files.filter(|name| name.contains(identity.as_str())));
        remains
    }
}
