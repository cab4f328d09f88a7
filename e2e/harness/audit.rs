//! What the apiserver says it was asked: its audit log, for counting requests.

use serde_json::Value;

/// The user that the manager is in every test.
pub const MANAGER_USER: &str = "system:serviceaccount:praetor-system:praetor-manager";

/// One finished request (a watch: when it began).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Who asked.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// The API group, empty for the core.
    pub group: String,
    /// The plural, empty for a path that is no resource.
    pub resource: String,
    /// For example `status`.
    pub subresource: String,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name; empty for lists, and for creates with a generated name.
    pub name: String,
    /// The HTTP status of the answer.
    pub code: u16,
    /// What the client calls itself.
    pub user_agent: String,
    /// The path with its query.
    pub uri: String,
    /// When the answer was complete, RFC 3339 in microseconds (sorts as text).
    pub at: String,
}

impl AuditEntry {
    /// Whether it asked for a change.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch" | "head" | "options")
    }
}

/// Entries that can be narrowed down: `cp.audit().by(MANAGER_USER).writes().count()`.
#[derive(Debug, Clone, Default)]
pub struct Audit(pub Vec<AuditEntry>);

impl Audit {
    /// Reads the log's lines. A watch counts once, when it has begun; everything else when its answer is complete.
    pub fn parse(log: &str) -> Self {
        Self(log.lines().filter_map(|line| entry(&serde_json::from_str(line).ok()?)).collect())
    }

    /// Those for which the condition holds.
    pub fn filter(mut self, keep: impl Fn(&AuditEntry) -> bool) -> Self {
        self.0.retain(|e| keep(e));
        self
    }

    /// Those of one user.
    pub fn by(self, user: &str) -> Self {
        self.filter(|e| e.user == user)
    }

    /// Those of one verb.
    pub fn verb(self, verb: &str) -> Self {
        self.filter(|e| e.verb == verb)
    }

    /// Those of one resource (plural); `deviceprocesses/status` means the subresource, without a slash the object itself.
    pub fn resource(self, resource: &str) -> Self {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        self.filter(|e| e.resource == resource && e.subresource == subresource)
    }

    /// Those of one namespace.
    pub fn namespace(self, namespace: &str) -> Self {
        self.filter(|e| e.namespace == namespace)
    }

    /// Those of one object name.
    pub fn name(self, name: &str) -> Self {
        self.filter(|e| e.name == name)
    }

    /// Those with one status.
    pub fn code(self, code: u16) -> Self {
        self.filter(|e| e.code == code)
    }

    /// Those that asked for a change, accepted or not, Leases left out.
    pub fn writes(self) -> Self {
        self.filter(|e| e.is_write() && e.resource != "leases")
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// `verb resource/subresource namespace/name code`, a line each, for messages.
    pub fn describe(&self) -> String {
        let line = |e: &AuditEntry| {
            format!(
                "{} {} {}/{} {}/{} {} by {}",
                e.at, e.verb, e.resource, e.subresource, e.namespace, e.name, e.code, e.user
            )
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn entry(line: &Value) -> Option<AuditEntry> {
    let text = |pointer: &str| line.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let verb = text("/verb");
    let counted = if verb == "watch" { "ResponseStarted" } else { "ResponseComplete" };
    (text("/stage") == counted).then(|| AuditEntry {
        user: text("/user/username"),
        group: text("/objectRef/apiGroup"),
        resource: text("/objectRef/resource"),
        subresource: text("/objectRef/subresource"),
        namespace: text("/objectRef/namespace"),
        name: text("/objectRef/name"),
        code: line
            .pointer("/responseStatus/code")
            .and_then(Value::as_u64)
            .and_then(|c| u16::try_from(c).ok())
            .unwrap_or(0),
        user_agent: text("/userAgent"),
        uri: text("/requestURI"),
        at: text("/stageTimestamp"),
        verb,
    })
}
