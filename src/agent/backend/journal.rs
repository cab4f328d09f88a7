//! Pure: the journal of a process: one line for each start, each stop that was asked for and each end.
//!
//! Whoever starts a process writes it: the hooks of a systemd unit, the launcher of an init script. So the count of
//! the ends, the last exit and the hash of what really runs are true although the agent was dead at the time.
//!
//! ```text
//! start <spec hash> <unix seconds> <invocation>
//! stop <unix seconds> <invocation>
//! exit <result> <code> <unix seconds> <invocation>
//! ```
//!
//! An invocation is 32 lower-case hexadecimal digits, another one for each run (systemd's `$INVOCATION_ID`). It comes
//! last, so that a line that was cut off is never taken for a whole one. A writer that begins with a newline also keeps
//! its line apart from one that was cut off before it. `result` is systemd's `$SERVICE_RESULT` or one of [`EXITED`],
//! [`SIGNAL`], [`UNKNOWN`]; `code` is systemd's `$EXIT_STATUS`: an exit code, the name of a signal or nothing.
//!
//! The order of the lines counts, never their times: the clock may be wrong, and may be set at any moment.

use super::Exit;
use std::collections::VecDeque;
use std::fmt;

/// Result of a run that has exited by itself.
pub const EXITED: &str = "exited";
/// Result of a run that a signal has ended.
pub const SIGNAL: &str = "signal";
/// Result of a run whose end nobody has seen.
pub const UNKNOWN: &str = "unknown";
/// Code and reason of an end that nobody has seen.
const UNKNOWN_EXIT: (i32, &str) = (255, "Unknown");

/// Length of an invocation.
const INVOCATION_DIGITS: usize = 32;
/// Runs whose particulars are kept. Two overlap at most, when one ends while the next starts.
const RUNS: usize = 8;
/// Stands for what is not there.
const NONE: &str = "-";

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A run begins.
    Start {
        /// Hash of the spec that it is started from.
        spec_hash: String,
        /// Seconds since 1970, for people.
        at: i64,
        /// Which run.
        invocation: String,
    },
    /// A run is about to be stopped because somebody asked for it.
    Stop {
        /// Seconds since 1970, for people.
        at: i64,
        /// Which run.
        invocation: String,
    },
    /// A run has ended.
    Exit {
        /// How, in one word.
        result: String,
        /// Exit code, name or number of a signal; may be empty.
        code: String,
        /// Seconds since 1970, for people.
        at: i64,
        /// Which run.
        invocation: String,
    },
    /// What earlier lines came to that are no longer there: the first line of a compacted journal.
    Base {
        /// The last of the numbered files that are contained in it.
        generation: u64,
        /// Ends that nobody asked for, without those of the lines that follow.
        exits: u64,
        /// Result and code of the last of them.
        last: Option<(String, String)>,
        /// The journal's name.
        epoch: String,
    },
}

/// One run of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Which one.
    pub invocation: String,
    /// Hash of the spec that it was started from.
    pub spec_hash: String,
    /// When it was started, seconds since 1970 by the clock of then.
    pub at: i64,
    /// Somebody asked for its end, before it came.
    pub asked: bool,
    /// How it ended; none: it has not, or nobody has said so.
    pub exit: Option<Exit>,
}

/// What a journal comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Journal {
    epoch: String,
    generation: u64,
    exits: u64,
    last: Option<(String, String)>,
    runs: VecDeque<(Run, Option<Line>)>,
}

// === impl Line ===

impl Line {
    /// Reads one line, without its newline; none: it was cut off, or is not ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.split(' ').collect();
        let (&invocation, fields) = fields.split_last()?;
        let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if invocation.len() != INVOCATION_DIGITS || !invocation.bytes().all(digit) {
            return None;
        }
        let invocation = invocation.to_owned();
        let present = |word: &str| (!word.is_empty()).then(|| word.to_owned());
        match *fields {
            ["start", spec_hash, at] => {
                Some(Self::Start { spec_hash: present(spec_hash)?, at: at.parse().ok()?, invocation })
            }
            ["stop", at] => Some(Self::Stop { at: at.parse().ok()?, invocation }),
            ["exit", result, code, at] => {
                let code = code.to_owned();
                Some(Self::Exit { result: present(result)?, code, at: at.parse().ok()?, invocation })
            }
            ["base", generation, exits, result, code] => Some(Self::Base {
                generation: generation.parse().ok()?,
                exits: exits.parse().ok()?,
                last: present(result).filter(|result| result != NONE).map(|result| (result, code.to_owned())),
                epoch: invocation,
            }),
            _ => None,
        }
    }
}

impl fmt::Display for Line {
    /// The line without a newline. What must not be in a field (blanks, control characters) is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |text: &str| -> String { text.chars().filter(|c| c.is_ascii_graphic()).collect() };
        match self {
            Self::Start { spec_hash, at, invocation } => write!(f, "start {} {at} {invocation}", word(spec_hash)),
            Self::Stop { at, invocation } => write!(f, "stop {at} {invocation}"),
            Self::Exit { result, code, at, invocation } => {
                write!(f, "exit {} {} {at} {invocation}", word(result), word(code))
            }
            Self::Base { generation, exits, last, epoch } => {
                let (result, code) = last.as_ref().map_or((NONE, NONE), |(result, code)| (result, code));
                write!(f, "base {generation} {exits} {} {} {epoch}", word(result), word(code))
            }
        }
    }
}

// === impl Journal ===

impl Journal {
    /// Takes up further text of the journal. What is no line of ours is passed over.
    pub fn read(&mut self, text: &str) {
        text.split('\n').filter_map(|line| Line::parse(line.trim_end_matches('\r'))).for_each(|line| self.take(line));
    }

    /// Takes up one line.
    pub fn take(&mut self, line: Line) {
        let (Line::Start { invocation, .. } | Line::Stop { invocation, .. } | Line::Exit { invocation, .. }) = &line
        else {
            return self.take_base(line);
        };
        if self.epoch.is_empty() {
            self.epoch.clone_from(invocation);
        }
        let known = self.runs.iter_mut().find(|(run, _)| run.invocation == *invocation);
        match (&line, known) {
            (Line::Start { spec_hash, at, invocation }, None) => {
                let (invocation, spec_hash) = (invocation.clone(), spec_hash.clone());
                let run = Run { invocation, spec_hash, at: *at, asked: false, exit: None };
                self.runs.push_back((run, None));
                if self.runs.len() > RUNS {
                    self.runs.pop_front();
                }
            }
            (Line::Stop { .. }, Some((run, _))) if run.exit.is_none() => run.asked = true,
            (Line::Exit { result, code, .. }, Some((run, end))) if run.exit.is_none() => {
                run.exit = Some(exit(result, code));
                if !run.asked {
                    self.exits += 1;
                    self.last = Some((result.clone(), code.clone()));
                }
                *end = Some(line);
            }
            // A repetition, or of a run whose start is not known.
            _ => {}
        }
    }

    fn take_base(&mut self, line: Line) {
        if let Line::Base { generation, exits, last, epoch } = line {
            *self = Self { epoch, generation, exits, last, runs: VecDeque::new() };
        }
    }

    /// Ends of runs that nobody asked for.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.exits
    }

    /// Another one when the count of the ends begins anew; empty: nothing has ever been started.
    #[must_use]
    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    /// The last of the numbered files that the compacted part contains.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How the last run ended that nobody had stopped.
    #[must_use]
    pub fn last_exit(&self) -> Option<Exit> {
        self.last.as_ref().map(|(result, code)| exit(result, code))
    }

    /// The run that was started last.
    #[must_use]
    pub fn last_run(&self) -> Option<&Run> {
        self.runs.back().map(|(run, _)| run)
    }

    /// One of the last runs.
    #[must_use]
    pub fn run(&self, invocation: &str) -> Option<&Run> {
        self.runs.iter().map(|(run, _)| run).find(|run| run.invocation == invocation)
    }

    /// A short text that comes to the same: the base, and the lines of the last runs.
    #[must_use]
    pub fn compact(&self, generation: u64) -> String {
        let counted = |(run, _): &&(Run, Option<Line>)| run.exit.is_some() && !run.asked;
        let exits = self.exits - self.runs.iter().filter(counted).count() as u64;
        let base = Line::Base { generation, exits, last: self.last.clone(), epoch: self.epoch.clone() };
        let mut text = format!("{base}\n");
        for (run, end) in &self.runs {
            let Run { invocation, spec_hash, at, .. } = run.clone();
            let stop = run.asked.then(|| Line::Stop { at, invocation: invocation.clone() });
            let start = Line::Start { spec_hash, at, invocation };
            for line in [Some(start), stop, end.clone()].into_iter().flatten() {
                text.push_str(&format!("{line}\n"));
            }
        }
        text
    }
}

/// An end that nobody has seen.
#[must_use]
pub fn unknown_exit() -> Exit {
    Exit { code: UNKNOWN_EXIT.0, reason: UNKNOWN_EXIT.1.to_owned() }
}

/// What the words of an exit line mean.
fn exit(result: &str, code: &str) -> Exit {
    let number: Option<i32> = code.parse().ok();
    let signal = match number {
        // systemd writes a signal's number for those without a name.
        Some(number) if matches!(result, SIGNAL | "core-dump" | "watchdog") => Some(number),
        Some(_) => None,
        None => signal_number(code),
    };
    let (code, reason) = match (result, signal, number) {
        ("oom-kill", ..) => (128 + 9, "OOMKilled".to_owned()),
        (_, Some(signal), _) => (128 + signal, format!("Signal {}", signal_name(signal))),
        (UNKNOWN, ..) | (_, None, None) => (UNKNOWN_EXIT.0, UNKNOWN_EXIT.1.to_owned()),
        (_, None, Some(0)) => (0, "Completed".to_owned()),
        (_, None, Some(code)) => (code, "Error".to_owned()),
    };
    Exit { code, reason }
}

/// Linux's names on all machines but Alpha, MIPS, PA-RISC and SPARC, from number 1 on.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// The first real-time signal that programs may use.
const RTMIN: i32 = 34;

fn signal_number(name: &str) -> Option<i32> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let above: i32 = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse().ok()? };
        return (0..=30).contains(&above).then_some(RTMIN + above);
    }
    SIGNALS.iter().zip(1..).find(|(known, _)| **known == name).map(|(_, number)| number)
}

fn signal_name(number: i32) -> String {
    match usize::try_from(number - 1).ok().and_then(|index| SIGNALS.get(index)) {
        Some(name) => format!("SIG{name}"),
        None if number > RTMIN => format!("SIGRTMIN+{}", number - RTMIN),
        None if number == RTMIN => "SIGRTMIN".to_owned(),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn invocation(n: u8) -> String {
        format!("{n:032x}")
    }
    fn start(n: u8) -> String {
        format!("start sha256:{n} 17 {}", invocation(n))
    }
    fn stop(n: u8) -> String {
        format!("stop 18 {}", invocation(n))
    }
    fn ended(n: u8, how: &str) -> String {
        format!("exit {how} 19 {}", invocation(n))
    }
    fn journal(lines: &[String]) -> Journal {
        let mut journal = Journal::default();
        journal.read(&lines.join("\n"));
        journal
    }

    #[test]
    fn ends_that_nobody_asked_for_are_counted_once() {
        let one = journal(&[start(1), ended(1, "exited 3"), ended(1, "exited 3"), start(2)]);
        assert_eq!((one.exits(), one.epoch()), (1, invocation(1).as_str()));
        assert_eq!(one.last_exit(), Some(Exit { code: 3, reason: "Error".to_owned() }));
        assert_eq!(one.last_run().map(|run| (run.spec_hash.as_str(), run.exit.is_none())), Some(("sha256:2", true)));
        assert_eq!(one.run(&invocation(1)).and_then(|run| run.exit.clone()).map(|exit| exit.code), Some(3));

        let asked = journal(&[start(1), stop(1), ended(1, "success TERM")]);
        assert_eq!((asked.exits(), asked.last_exit()), (0, None));
        assert!(asked.last_run().is_some_and(|run| run.asked && run.exit.is_some()));
        let late = journal(&[start(1), ended(1, "exited 0"), stop(1)]);
        assert_eq!((late.exits(), late.last_run().map(|run| run.asked)), (1, Some(false)));
        assert_eq!(journal(&[ended(9, "exited 1")]).exits(), 0);
    }

    #[test]
    fn words_of_systemd_and_of_the_launcher_mean_an_exit() {
        for (words, code, reason) in [
            ("success 0", 0, "Completed"),
            ("exited 0", 0, "Completed"),
            ("exit-code 203", 203, "Error"),
            ("success TERM", 143, "Signal SIGTERM"),
            ("signal KILL", 137, "Signal SIGKILL"),
            ("signal 9", 137, "Signal SIGKILL"),
            ("core-dump SIGSEGV", 139, "Signal SIGSEGV"),
            ("signal RTMIN+2", 164, "Signal SIGRTMIN+2"),
            ("signal 34", 162, "Signal SIGRTMIN"),
            ("oom-kill KILL", 137, "OOMKilled"),
            ("start-limit-hit ", 255, "Unknown"),
            ("unknown -", 255, "Unknown"),
        ] {
            let exit = journal(&[start(1), ended(1, words)]).last_exit();
            assert_eq!(exit, Some(Exit { code, reason: reason.to_owned() }), "{words}");
        }
    }

    #[test]
    fn what_is_torn_or_foreign_is_passed_over() {
        let whole = ended(1, "exited 1");
        for cut in 0..whole.len() {
            let torn = journal(&[start(1), whole[..cut].to_owned()]);
            assert_eq!(torn.exits(), 0, "{}", &whole[..cut]);
            // Whoever begins with a newline loses nothing by it.
            assert_eq!(journal(&[start(1), whole[..cut].to_owned(), whole.clone()]).exits(), 1);
        }
        let id = invocation(1);
        for foreign in [
            String::new(),
            "hello".to_owned(),
            id.clone(),
            format!("start a b 1 {id}"),
            format!("start  1 {id}"),
            format!("start a x {id}"),
            format!("exit exited 0 1 {}", id.replace('0', "G")),
            format!("exit exited 0 1 {id} "),
        ] {
            assert_eq!(Line::parse(&foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn a_field_cannot_break_its_line() {
        let line = Line::Start { spec_hash: "a b\nstop 1 x".to_owned(), at: -5, invocation: invocation(1) };
        let text = line.to_string();
        assert_eq!(text, format!("start abstop1x -5 {}", invocation(1)));
        assert!(Line::parse(&text).is_some());
    }

    /// What may happen to a process: runs one after the other, each asked to stop or not, each end written or lost.
    fn history() -> impl Strategy<Value = Vec<String>> {
        let run = (any::<bool>(), 0..4u8, any::<bool>(), 0..60usize);
        proptest::collection::vec(run, 0..40).prop_map(|runs| {
            let mut lines = Vec::new();
            for (n, (asked, end, twice, cut)) in (1..).zip(runs) {
                lines.push(start(n));
                if asked {
                    lines.push(stop(n));
                }
                let line = ended(n, ["exited 0", "signal SEGV", "unknown -"][usize::from(end).min(2)]);
                if cut < line.len() {
                    lines.push(line[..cut].to_owned());
                }
                if end < 3 {
                    lines.push(line.clone());
                }
                if end < 3 && twice {
                    lines.push(line);
                }
            }
            lines
        })
    }

    proptest! {
        #[test]
        fn compaction_at_any_point_keeps_everything(lines in history(), at in proptest::collection::vec(0..200usize, 0..5)) {
            let whole = journal(&lines);
            let mut text = String::new();
            for (number, line) in lines.iter().enumerate() {
                if at.contains(&number) {
                    let mut so_far = Journal::default();
                    so_far.read(&text);
                    text = so_far.compact(3);
                    prop_assert!(text.len() < 3000, "{}", text);
                }
                text.push_str(&format!("{line}\n"));
            }
            let mut again = Journal::default();
            again.read(&text);
            prop_assert_eq!(again.exits(), whole.exits());
            prop_assert_eq!(again.last_exit(), whole.last_exit());
            prop_assert_eq!(again.epoch(), whole.epoch());
            prop_assert_eq!(again.last_run().map(|run| (&run.invocation, &run.spec_hash, run.asked, &run.exit)),
                whole.last_run().map(|run| (&run.invocation, &run.spec_hash, run.asked, &run.exit)));
        }

        #[test]
        fn the_count_only_grows(lines in history()) {
            let mut journal = Journal::default();
            let mut seen = (0, String::new());
            for line in lines {
                journal.read(&line);
                prop_assert!(journal.exits() >= seen.0);
                prop_assert!(seen.1.is_empty() || seen.1 == journal.epoch());
                seen = (journal.exits(), journal.epoch().to_owned());
            }
        }

        #[test]
        fn a_wrong_clock_changes_nothing(lines in history(), at in any::<i64>()) {
            let other: Vec<_> = lines.iter().map(|line| line.replace(" 17 ", &format!(" {at} "))).collect();
            let (one, two) = (journal(&lines), journal(&other));
            prop_assert_eq!((one.exits(), one.last_exit()), (two.exits(), two.last_exit()));
        }

        #[test]
        fn lines_are_read_as_they_are_written(hash in "[a-z0-9:]{1,80}", code in "[A-Z0-9+-]{0,8}", at in any::<i64>(), n in any::<u8>()) {
            let invocation = invocation(n);
            let last = (!code.is_empty()).then(|| (hash.clone(), code.clone()));
            for line in [
                Line::Start { spec_hash: hash.clone(), at, invocation: invocation.clone() },
                Line::Stop { at, invocation: invocation.clone() },
                Line::Exit { result: hash.clone(), code: code.clone(), at, invocation: invocation.clone() },
                Line::Base { generation: 7, exits: 12, last, epoch: invocation },
            ] {
                prop_assert_eq!(Line::parse(&line.to_string()), Some(line));
            }
        }

        #[test]
        fn no_text_is_too_odd(text in ".{0,200}") {
            let mut journal = Journal::default();
            journal.read(&text);
        }
    }
}
