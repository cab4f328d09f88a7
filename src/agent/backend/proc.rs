//! Edge: processes as `/proc` shows them: whether one is still the one that was started, and who belongs to it.
//!
//! A process is known by its id and its start time, in ticks since boot: ids come again, the two together do not until
//! the next boot, and boots have ids of their own.

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::fs;

/// What `/proc/<pid>/stat` says that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Process id.
    pub pid: i32,
    /// One letter: `R`, `S`, `D`, `Z`, …
    pub state: char,
    /// Its parent.
    pub parent: i32,
    /// Its group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// When it was started, ticks since boot.
    pub ticks: u64,
}

/// One process and no other, until the next boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// Process id.
    pub pid: i32,
    /// When it was started, ticks since boot.
    pub ticks: u64,
}

// === impl Stat ===

impl Stat {
    /// Reads the text of `/proc/<pid>/stat`. The name in it may contain anything, also blanks and parentheses.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (pid, rest) = text.split_once(" (")?;
        let (_, rest) = rest.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let state = fields.next()?.chars().next()?;
        let mut number = || fields.next()?.parse::<i32>().ok();
        let (parent, group, session) = (number()?, number()?, number()?);
        // Field 22 of the whole; 7 to 21 lie between.
        let ticks = fields.nth(15)?.trim_end().parse().ok()?;
        Some(Self { pid: pid.parse().ok()?, state, parent, group, session, ticks })
    }

    /// Of a process that is there now, dead or alive.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// It runs, sleeps or is stopped: it is not merely waited for.
    #[must_use]
    pub fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// Which process that is.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { pid: self.pid, ticks: self.ticks }
    }
}

// === impl Mark ===

impl Mark {
    /// Of the process that asks.
    #[must_use]
    pub fn own() -> Option<Self> {
        i32::try_from(std::process::id()).ok().and_then(Stat::of).map(|stat| stat.mark())
    }

    /// What `/proc` says of it; none: it is gone, and its id perhaps another's. Only good in the boot it is from.
    #[must_use]
    pub fn stat(&self) -> Option<Stat> {
        Stat::of(self.pid).filter(|stat| stat.ticks == self.ticks)
    }

    /// It is there and lives.
    #[must_use]
    pub fn lives(&self) -> bool {
        self.stat().is_some_and(|stat| stat.lives())
    }

    /// Sends it a signal, and never another one that has got its id.
    ///
    /// # Errors
    /// Those of the system; none when it is gone.
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        let Some(pid) = Some(self.pid).filter(|pid| *pid > 1).and_then(Pid::from_raw) else { return Ok(()) };
        // Held first and looked at then, it cannot become another in between.
        let sent = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(held) if self.stat().is_some() => pidfd_send_signal(held, signal),
            Ok(_) => Ok(()),
            // Kernels before 5.3. Ids do not come again as fast as this.
            Err(Errno::NOSYS | Errno::PERM) if self.stat().is_some() => kill_process(pid, signal),
            Err(Errno::NOSYS | Errno::PERM) => Ok(()),
            Err(error) => Err(error),
        };
        if sent == Err(Errno::SRCH) { Ok(()) } else { sent }
    }

    /// When it was started, seconds since 1970, by the clock of now.
    #[must_use]
    pub fn started(&self) -> Option<i64> {
        let booted = booted_at(&fs::read_to_string("/proc/stat").ok()?)?;
        let seconds = self.ticks / rustix::param::clock_ticks_per_second().max(1);
        booted.checked_add(i64::try_from(seconds).ok()?)
    }
}

/// What is different after the next boot: the kernel's own id, and when the first process was started, since a device
/// may be a container.
#[must_use]
pub fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!("{}/{}", id.trim(), Stat::of(1).map_or(0, |first| first.ticks))
}

/// All processes that live, without this one and those that it descends from.
#[must_use]
pub fn others() -> Vec<Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let all: Vec<Stat> = pids.filter_map(Stat::of).collect();
    let mut own = BTreeSet::new();
    let mut next = i32::try_from(std::process::id()).ok();
    while let Some(pid) = next.filter(|pid| own.insert(*pid)) {
        next = all.iter().find(|stat| stat.pid == pid).map(|stat| stat.parent);
    }
    all.into_iter().filter(|stat| stat.lives() && !own.contains(&stat.pid)).collect()
}

/// Whether a process was started with a variable of the environment that has such a value.
#[must_use]
pub fn has_variable(pid: i32, name: &str, is: impl Fn(&str) -> bool) -> bool {
    let value = |entry: &'_ [u8]| {
        let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        std::str::from_utf8(value).ok().map(&is)
    };
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| value(entry) == Some(true))
}

fn booted_at(stat: &str) -> Option<i64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::backend::footprint::wait_until;
    use crate::runtime::clock::unix_seconds;
    use proptest::prelude::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::time::Duration;

    const LINE: &str = "4711 (a) b (c) S 1 4711 4700 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 99 9 0\n";

    #[test]
    fn a_name_may_contain_anything() {
        let stat = Stat::parse(LINE).unwrap();
        let expected = Stat { pid: 4711, state: 'S', parent: 1, group: 4711, session: 4700, ticks: 123_456 };
        assert_eq!(stat, expected);
        assert_eq!(Stat::parse("4711 (x) S 1 2"), None);
        assert_eq!(Stat::parse(""), None);
    }

    proptest! {
        #[test]
        fn any_name_and_any_numbers_are_read(name in "[ -~]{0,15}", pid in 1..i32::MAX, ticks in any::<u64>()) {
            let line = LINE.replace("4711 (a) b (c)", &format!("{pid} ({name})")).replace("123456", &ticks.to_string());
            let mark = Stat::parse(&line).map(|stat| stat.mark());
            prop_assert_eq!(mark, Some(Mark { pid, ticks }));
        }

        #[test]
        fn no_text_is_too_odd(text in ".{0,300}") {
            let _ = Stat::parse(&text);
            let _ = booted_at(&text);
        }
    }

    #[test]
    fn one_that_lives_is_known_and_a_dead_one_is_not() {
        let mut child = Command::new("sleep").arg("1000").env("PRAETOR_TEST", "a=b").process_group(0).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let mark = Stat::of(pid).unwrap().mark();
        // Whoever has started it may go on a moment before its new environment can be read.
        let begun = || has_variable(pid, "PRAETOR_TEST", |value| value == "a=b");
        assert!(mark.lives() && wait_until(Duration::from_secs(10), begun));
        assert!(!has_variable(pid, "RAETOR_TEST", |_| true) && !has_variable(pid, "PRAETOR", |_| true));
        assert!((mark.started().unwrap() - unix_seconds()).abs() <= 2);
        assert!(others().iter().any(|stat| stat.mark() == mark));
        assert!(!others().iter().any(|stat| u32::try_from(stat.pid) == Ok(std::process::id())));
        // Another's start time: another process.
        let other = Mark { ticks: mark.ticks + 1, ..mark };
        assert!(!other.lives());
        other.signal(Signal::KILL).unwrap();
        assert!(child.try_wait().unwrap().is_none());

        mark.signal(Signal::KILL).unwrap();
        // Dead, and not waited for.
        rustix::process::waitid(
            rustix::process::WaitId::Pid(Pid::from_raw(pid).unwrap()),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        assert!(mark.stat().is_some() && !mark.lives());
        child.wait().unwrap();
        assert_eq!(mark.stat(), None);
        mark.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn a_boot_has_an_id() {
        assert!(boot_id().len() > 37, "{}", boot_id());
        assert_eq!(boot_id(), boot_id());
        assert!(Mark::own().is_some_and(|own| own.lives()));
        for never in [0, 1, -1] {
            Mark { pid: never, ticks: 0 }.signal(Signal::KILL).unwrap();
        }
    }
}
