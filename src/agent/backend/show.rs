//! Pure: what `systemctl show` says of a unit, and what that means for a process.
//!
//! The properties are systemd's own, the same that D-Bus has; nothing meant for people is read.

use super::journal::Journal;
use super::{Activity, Exit, Launch};

/// What is asked for. `Id` first: it is in every answer.
pub const PROPERTIES: &str = "Id,LoadState,ActiveState,SubState,FragmentPath,MainPID,NRestarts,InvocationID,Result,\
    ExecMainCode,ExecMainStatus,NeedDaemonReload";

/// systemd's word on one unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// Its name, with the suffix.
    pub id: String,
    /// `loaded`, `not-found`, `bad-setting`, `masked`, `error`.
    pub load: String,
    /// `active`, `activating`, `deactivating`, `inactive`, `failed`.
    pub active: String,
    /// The same more precisely: `running`, `auto-restart`, `stop-sigterm`, …
    pub sub: String,
    /// The file that it was loaded from; empty when there is none.
    pub file: String,
    /// The main process; 0: none.
    pub pid: i32,
    /// How often it was started again by itself, as systemd counts.
    pub restarts: u64,
    /// The run, 32 hexadecimal digits; empty when it has not run.
    pub invocation: String,
    /// Why it ended, in one word.
    pub result: String,
    /// `si_code` of the main process's end: 1 exited, 2 killed, 3 dumped, 0 not ended.
    pub code: i32,
    /// Its exit code or signal.
    pub status: i32,
    /// Files have changed since it was loaded.
    pub outdated: bool,
}

/// What the words of a unit come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// A process is there.
    Runs(i32),
    /// It will be started again after a while.
    Waits,
    /// Over in a moment: it is being started or stopped.
    Passing,
    /// Nothing happens.
    Rests,
}

// === impl Shown ===

impl Shown {
    /// Reads the answer: for each unit lines of `Key=value`, and an empty line between two.
    #[must_use]
    pub fn parse(text: &str) -> Vec<Self> {
        text.split("\n\n").filter(|block| !block.trim().is_empty()).map(Self::parse_one).collect()
    }

    fn parse_one(block: &str) -> Self {
        let mut shown = Self::default();
        for (key, value) in block.lines().filter_map(|line| line.split_once('=')) {
            let number = || value.parse().unwrap_or(0);
            let slot = match key {
                "Id" => &mut shown.id,
                "LoadState" => &mut shown.load,
                "ActiveState" => &mut shown.active,
                "SubState" => &mut shown.sub,
                "FragmentPath" => &mut shown.file,
                "InvocationID" => &mut shown.invocation,
                "Result" => &mut shown.result,
                _ => {
                    match key {
                        "MainPID" => shown.pid = number(),
                        "ExecMainCode" => shown.code = number(),
                        "ExecMainStatus" => shown.status = number(),
                        "NRestarts" => shown.restarts = value.parse().unwrap_or(0),
                        "NeedDaemonReload" => shown.outdated = value == "yes",
                        _ => {}
                    }
                    continue;
                }
            };
            value.clone_into(slot);
        }
        shown
    }

    /// What it comes to.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match (self.active.as_str(), self.sub.as_str()) {
            ("active" | "reloading" | "refreshing", _) if self.pid > 0 => Phase::Runs(self.pid),
            // Newer systemds have several words that begin so.
            ("activating", sub) if sub.starts_with("auto-restart") => Phase::Waits,
            ("inactive" | "failed" | "maintenance", _) => Phase::Rests,
            // A process that takes its time to end is there until it has.
            ("deactivating", _) if self.pid > 0 => Phase::Runs(self.pid),
            _ => Phase::Passing,
        }
    }

    /// What the process does. `stopped`: we have stopped it. `started`: of its main process, seconds since 1970.
    #[must_use]
    pub fn activity(&self, journal: &Journal, stopped: bool, started: i64) -> Activity {
        let last = journal.last_run();
        let ended = last.filter(|run| !run.asked).and_then(|run| run.exit.clone());
        match (self.phase(), ended) {
            (Phase::Runs(pid), _) => Activity::Running { pid: pid.into(), started },
            (Phase::Rests, _) if stopped => Activity::Stopped,
            (Phase::Rests, Some(exit)) => Activity::Ended(exit),
            (Phase::Rests, None) => Activity::Stopped,
            (Phase::Waits | Phase::Passing, exit) => exit
                .or_else(|| journal.last_exit())
                .or_else(|| self.exit())
                .map_or(Activity::Stopped, Activity::Restarting),
        }
    }

    /// Result and code for the journal, as its hook would have written them; none: the main process has not ended.
    #[must_use]
    pub fn end(&self) -> Option<(String, String)> {
        matches!(self.code, 1..=3).then(|| {
            let result = if self.result == "success" && self.code > 1 { "signal" } else { &self.result };
            (result.to_owned(), self.status.to_string())
        })
    }

    /// The end of the main process; none: it has not ended, or systemd has forgotten.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        let (code, reason) = match self.code {
            1 if self.status == 0 => (0, "Completed"),
            1 => (self.status, "Error"),
            2 | 3 => (128 + self.status, "Error"),
            _ => return None,
        };
        Some(Exit { code, reason: reason.to_owned() })
    }

    /// Whether the program itself has begun, although systemd calls the start a failure: so it does when a program has
    /// ended before systemd has looked. A code from 200 on is systemd's own.
    #[must_use]
    pub fn began(&self) -> bool {
        let own = self.code == 1 && (200..=245).contains(&self.status);
        matches!(self.phase(), Phase::Runs(_)) || (matches!(self.code, 1..=3) && !own)
    }

    /// Why a start failed, when it is the operator who can do something about it: the codes of systemd.exec(5) for what
    /// comes before the program itself.
    #[must_use]
    pub fn refusal(&self, launch: &Launch) -> Option<String> {
        if self.result != "exit-code" || self.code != 1 {
            return None;
        }
        let user = launch.user.as_deref().unwrap_or("root");
        let program = &launch.program;
        Some(match self.status {
            200 => format!(
                "execution.workingDir: {} is no folder that {user} may enter",
                launch
                    .working_dir
                    .as_deref()
                    .or(launch.artifact.root.as_ref().and_then(|root| root.to_str()))
                    .unwrap_or("/")
            ),
            203 => format!(
                "execution.command: {user} cannot run {program}: it is not executable, not for this machine, or its \
                 interpreter is missing"
            ),
            216 => format!("execution.user: the groups of {user} cannot be taken up"),
            217 => format!("execution.user: the device has no user {user:?}"),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::artifact::Fetched;
    use crate::agent::process::identity::Identity;
    use crate::agent::process::spec::RestartPolicy;

    const RUNNING: &str = "Id=praetor-a.b.service\nLoadState=loaded\nActiveState=active\nSubState=running\n\
        FragmentPath=/etc/systemd/system/praetor-a.b.service\nMainPID=17\nNRestarts=2\n\
        InvocationID=00000000000000000000000000000001\nResult=success\nExecMainCode=0\nExecMainStatus=0\nNeedDaemonReload=yes\n";

    fn journal(lines: &[&str]) -> Journal {
        let mut journal = Journal::default();
        for line in lines {
            journal.read(&format!("{line} 00000000000000000000000000000001"));
        }
        journal
    }

    fn shown(active: &str, sub: &str, pid: i32) -> Shown {
        Shown { active: active.to_owned(), sub: sub.to_owned(), pid, ..Shown::default() }
    }

    #[test]
    fn an_answer_is_one_block_for_each_unit() {
        let both =
            Shown::parse(&format!("{RUNNING}\nId=praetor-c.d.service\nLoadState=not-found\nMainPID=x\nFuture=1\n"));
        assert_eq!((both[0].pid, both[0].restarts, both[0].outdated), (17, 2, true));
        assert_eq!(both[0].phase(), Phase::Runs(17));
        assert_eq!((both[1].id.as_str(), both[1].load.as_str(), both[1].pid), ("praetor-c.d.service", "not-found", 0));
        assert_eq!(both.len(), 2);
        assert_eq!(Shown::parse("\n\n"), []);
    }

    #[test]
    fn a_process_does_what_its_unit_says() {
        let crashed = journal(&["start sha256:1 17", "exit exit-code 3 18"]);
        let exit = Exit { code: 3, reason: "Error".to_owned() };
        let stopped = journal(&["start sha256:1 17", "stop 18", "exit success TERM 18"]);
        let cut_off = journal(&["start sha256:1 17"]);
        for (shown, journal, marked, expected) in [
            (shown("active", "running", 5), &cut_off, false, Activity::Running { pid: 5, started: 9 }),
            (shown("deactivating", "stop-sigterm", 5), &cut_off, true, Activity::Running { pid: 5, started: 9 }),
            (shown("activating", "auto-restart", 0), &crashed, false, Activity::Restarting(exit.clone())),
            (shown("activating", "auto-restart-queued", 0), &crashed, false, Activity::Restarting(exit.clone())),
            (shown("activating", "start-pre", 0), &cut_off, false, Activity::Stopped),
            (shown("failed", "failed", 0), &crashed, false, Activity::Ended(exit.clone())),
            (shown("inactive", "dead", 0), &crashed, false, Activity::Ended(exit)),
            (shown("inactive", "dead", 0), &crashed, true, Activity::Stopped),
            (shown("inactive", "dead", 0), &stopped, false, Activity::Stopped),
            // After a loss of power.
            (shown("inactive", "dead", 0), &cut_off, false, Activity::Stopped),
            (shown("inactive", "dead", 0), &Journal::default(), false, Activity::Stopped),
        ] {
            assert_eq!(shown.activity(journal, marked, 9), expected, "{shown:?}");
        }
    }

    #[test]
    fn a_program_that_has_ended_has_begun() {
        for (code, status, began) in
            [(0, 0, false), (1, 0, true), (1, 7, true), (2, 9, true), (2, 203, true), (1, 203, false)]
        {
            assert_eq!(Shown { code, status, ..shown("failed", "failed", 0) }.began(), began, "{code} {status}");
        }
        assert!(shown("active", "running", 4).began());
    }

    #[test]
    fn codes_of_a_failed_start_name_the_field() {
        let launch = Launch {
            identity: Identity::new("a", "b"),
            uid: "u".to_owned(),
            spec_hash: "sha256:1".to_owned(),
            program: "/x/agent".to_owned(),
            args: vec![],
            env: vec![],
            working_dir: Some("/x".to_owned()),
            user: Some("fred".to_owned()),
            restart_policy: RestartPolicy::Always,
            artifact: Fetched { digest: "sha256:2".to_owned(), root: None },
        };
        for (status, expected) in [
            (200, Some("execution.workingDir: /x ")),
            (203, Some("execution.command: fred cannot run /x/agent")),
            (217, Some("execution.user: the device has no user \"fred\"")),
            (1, None),
            (219, None),
        ] {
            let shown = Shown { result: "exit-code".to_owned(), code: 1, status, ..Shown::default() };
            let refusal = shown.refusal(&launch);
            assert_eq!(refusal.is_some(), expected.is_some());
            assert!(refusal.unwrap_or_default().starts_with(expected.unwrap_or_default()), "{status}");
            assert_eq!(shown.began(), status == 1, "{status}");
        }
    }
}
