//! A Docker engine and registries of the test's own, by `hack/engine.sh`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// It ends, and all that it has made is removed, when this is dropped.
pub struct Engine {
    process: Child,
    orders: Option<ChildStdin>,
    answers: RefCell<BufReader<ChildStdout>>,
    facts: HashMap<String, String>,
    images: RefCell<HashMap<String, String>>,
}

// === impl Engine ===

impl Engine {
    /// Starts it; an error is the reason why it cannot be had here.
    pub fn start() -> Result<Self, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hack/engine.sh");
        let mut process = Command::new(script)
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        if line.is_empty() {
            let output = process.wait_with_output().unwrap();
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        let facts = line.split_whitespace().filter_map(|fact| fact.split_once('='));
        let facts = facts.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let orders = process.stdin.take();
        Ok(Self { process, orders, answers: RefCell::new(answers), facts, images: RefCell::default() })
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.facts["socket"].clone().into()
    }

    /// Host and port of the registry that is open for all.
    pub fn registry(&self) -> &str {
        &self.facts["registry"]
    }

    /// Host and port of the one that wants a password.
    pub fn locked(&self) -> &str {
        &self.facts["locked"]
    }

    /// A docker config file with the password.
    pub fn config(&self) -> PathBuf {
        self.facts["config"].clone().into()
    }

    /// A folder that goes with the engine.
    pub fn folder(&self) -> PathBuf {
        self.facts["folder"].clone().into()
    }

    /// Ends the daemon (`halt`, `kill`) or starts it again (`start`).
    pub fn order(&self, order: &str) -> String {
        let mut orders = self.orders.as_ref().unwrap();
        writeln!(orders, "{order}").unwrap();
        let mut line = String::new();
        self.answers.borrow_mut().read_line(&mut line).unwrap();
        let done = line.trim().strip_prefix("done").unwrap_or_else(|| panic!("{order}: {line}"));
        done.trim().to_owned()
    }

    /// Pushes an image that has a shell and this program as `/usr/local/bin/program`; its digest.
    pub fn image(&self, name: &str, script: &str) -> String {
        let key = format!("{name}\n{script}");
        if let Some(digest) = self.images.borrow().get(&key) {
            return digest.clone();
        }
        let file = self.folder().join("program");
        fs::write(&file, script).unwrap();
        let digest = self.order(&format!("image {name} {}", file.display()));
        self.images.borrow_mut().insert(key, digest.clone());
        digest
    }

    /// Runs the engine's own client; what it writes.
    pub fn docker(&self, arguments: &[&str]) -> String {
        let output = Command::new("docker")
            .args(["--host", &format!("unix://{}", self.socket().display())])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.process.wait();
    }
}
