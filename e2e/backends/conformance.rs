//! What every backend does, whatever it is made of: the promises of [`Backend`], one rule each.
//!
//! A rule sees the backend through its trait, and the processes through `/proc`. It makes its own names, and removes
//! what it has made. All rules run one after the other; one that fails does not keep the others from running.

use super::device::{self, until};
use praetor::agent::artifact::Fetched;
use praetor::agent::backend::{Activity, Backend, BackendError, Checked, Found, Launch};
use praetor::agent::process::identity::Identity;
use praetor::agent::process::spec::{BackendKind, RestartPolicy};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};

/// What is enough for a process that obeys.
const GRACE: Duration = Duration::from_secs(10);
/// Most that nothing may run at an update beyond the process's own restart, ms; all figures are printed.
const GAP_LIMIT: i64 = 200;

/// A backend, and what a test needs to know of the place it works in.
pub trait Site {
    /// The one that is judged.
    fn backend(&self) -> &dyn Backend;

    /// Which one it should say it is.
    fn kind(&self) -> BackendKind;

    /// Whether it starts what has ended by itself; otherwise the agent does.
    fn restarts(&self) -> bool;

    /// Whether the processes see the device's own files, users and folders.
    fn on_the_device(&self) -> bool;

    /// Makes an artifact of a program for `/bin/sh`, and says what [`Launch::program`] is for it.
    fn artifact(&self, script: &str) -> (Fetched, String);

    /// Puts something there that is not ours under the backend's own name for this process.
    fn plant(&self, identity: &Identity);

    /// Whether what was planted is still as it was. Called again after the removal of it, it may say anything.
    fn intact(&self, identity: &Identity) -> bool;

    /// Removes what was planted.
    fn uproot(&self, identity: &Identity);

    /// What is still there of a process: files, units, containers. Empty when it was removed.
    fn remains(&self, identity: &Identity) -> Vec<String>;
}

/// Runs until it is told: TERM ends it well, USR1 with 3, USR2 with 0. Its own process does not look like its child.
pub const OBEDIENT: &str = "#!/bin/sh
trap 'exit 0' TERM
trap 'exit 3' USR1
trap 'exit 0' USR2
while :; do sleep 1000 & wait $!; done
";

/// Ignores TERM, and so does its child.
const STUBBORN: &str = "#!/bin/sh
trap '' TERM
sh -c 'while :; do sleep 1; done' &
while :; do sleep 1; done
";

type Rule = for<'a> fn(&'a Case<'a>) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Every rule by its name.
pub const RULES: &[(&str, Rule)] = &[
    ("the_device_has_it", |c| Box::pin(the_device_has_it(c))),
    ("a_whole_life", |c| Box::pin(a_whole_life(c))),
    ("everything_arrives_as_it_was_written", |c| Box::pin(everything_arrives_as_it_was_written(c))),
    ("it_runs_as_its_user_where_it_should", |c| Box::pin(it_runs_as_its_user_where_it_should(c))),
    ("an_update_is_one_restart", |c| Box::pin(an_update_is_one_restart(c))),
    ("killed_it_is_counted", |c| Box::pin(killed_it_is_counted(c))),
    ("a_run_that_is_over_stays_over", |c| Box::pin(a_run_that_is_over_stays_over(c))),
    ("on_failure_is_for_failures", |c| Box::pin(on_failure_is_for_failures(c))),
    ("what_cannot_be_is_refused", |c| Box::pin(what_cannot_be_is_refused(c))),
    ("stopping_stops_all_of_it", |c| Box::pin(stopping_stops_all_of_it(c))),
    ("what_is_not_ours_is_left_alone", |c| Box::pin(what_is_not_ours_is_left_alone(c))),
    ("all_of_ours_are_listed", |c| Box::pin(all_of_ours_are_listed(c))),
    ("checks_pass_and_fail", |c| Box::pin(checks_pass_and_fail(c))),
    ("calls_may_be_cut_off", |c| Box::pin(calls_may_be_cut_off(c))),
];

/// Runs all rules, or those whose names contain the word; panics with the names of those that failed.
pub fn all(site: &dyn Site, only: Option<&str>) {
    let mut failed = Vec::new();
    for (name, rule) in RULES.iter().filter(|(name, _)| only.is_none_or(|word| name.contains(word))) {
        let begun = Instant::now();
        let case = Case::new(site, name);
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| runtime().block_on(rule(&case))));
        // Also after a failure, so that the next rule and the machine are not burdened.
        runtime().block_on(case.clean());
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("{} {name} ... {word} ({} ms)", site.kind().as_str(), begun.elapsed().as_millis());
        if outcome.is_err() {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "{} rules failed: {}", failed.len(), failed.join(", "));
}

/// One rule at one backend, with names of its own.
pub struct Case<'a> {
    site: &'a dyn Site,
    name: String,
    made: std::cell::RefCell<Vec<Identity>>,
}

impl<'a> Case<'a> {
    fn new(site: &'a dyn Site, rule: &str) -> Self {
        let name = format!("{}-{}", rule.replace('_', "-"), rand::random_range(0..1_000_000));
        Self { site, name, made: Default::default() }
    }

    fn backend(&self) -> &dyn Backend {
        self.site.backend()
    }

    fn identity(&self, suffix: &str) -> Identity {
        let identity = Identity::new("conformance", &format!("{}{suffix}", self.name));
        let mut made = self.made.borrow_mut();
        if !made.contains(&identity) {
            made.push(identity.clone());
        }
        identity
    }

    /// A process of this version, from this program.
    fn launch(&self, version: u8, script: &str) -> Launch {
        let (artifact, program) = self.site.artifact(script);
        Launch {
            identity: self.identity(""),
            uid: format!("uid-{}", self.name),
            spec_hash: format!("sha256:{}", hex::encode([version; 32])),
            program,
            args: vec![],
            env: vec![],
            working_dir: None,
            user: None,
            restart_policy: RestartPolicy::Always,
            artifact,
        }
    }

    async fn install(&self, launch: &Launch) {
        self.backend().install(launch).await.unwrap();
    }

    /// Starts it, and waits until the program itself runs.
    async fn start(&self, launch: &Launch) -> i64 {
        self.backend().start(launch, GRACE).await.unwrap();
        self.running(launch).await
    }

    async fn run(&self, launch: &Launch) -> i64 {
        self.install(launch).await;
        self.start(launch).await
    }

    async fn running(&self, launch: &Launch) -> i64 {
        until("it runs", || async {
            match self.found(&launch.identity).await.activity {
                Activity::Running { pid, .. } if device::has_begun(pid, &launch.program) => Some(pid),
                _ => None,
            }
        })
        .await
    }

    async fn found(&self, identity: &Identity) -> Found {
        self.backend().find(identity).await.unwrap().unwrap()
    }

    async fn ended(&self, identity: &Identity) -> praetor::agent::backend::Exit {
        until("it has ended", || async {
            match self.found(identity).await.activity {
                Activity::Ended(exit) => Some(exit),
                _ => None,
            }
        })
        .await
    }

    async fn clean(&self) {
        for identity in self.made.take() {
            if let Err(error) = self.backend().remove(&identity, Duration::from_secs(1)).await {
                println!("{identity} could not be removed: {error}");
            }
        }
    }
}

async fn the_device_has_it(case: &Case<'_>) {
    assert_eq!(case.backend().kind(), case.site.kind());
    case.backend().probe().await.unwrap();
    assert_eq!(case.backend().find(&case.identity("")).await, Ok(None));
}

async fn a_whole_life(case: &Case<'_>) {
    let launch = case.launch(1, OBEDIENT);
    let identity = &launch.identity;
    // What is not there can be stopped and removed.
    case.backend().stop(identity, GRACE).await.unwrap();
    case.backend().remove(identity, GRACE).await.unwrap();

    case.install(&launch).await;
    case.install(&launch).await;
    let found = case.found(identity).await;
    assert_eq!(
        (found.identity, found.uid, found.installed),
        (identity.clone(), launch.uid.clone(), launch.spec_hash.clone())
    );
    assert_eq!((found.running, found.activity, found.exits, found.last_exit), (None, Activity::Stopped, 0, None));
    let before = seconds();
    let pid = case.start(&launch).await;
    let found = case.found(identity).await;
    let Activity::Running { started, .. } = found.activity else { panic!("{found:?}") };
    assert!((before - 2..=seconds() + 2).contains(&started), "started {started}, now {}", seconds());
    assert_eq!((found.running.as_ref(), found.exits), (Some(&launch.spec_hash), 0));
    let epoch = found.epoch;

    // What is installed already is not disturbed.
    case.install(&launch).await;
    assert_eq!(case.found(identity).await.activity, Activity::Running { pid, started });

    for _ in 0..2 {
        case.backend().stop(identity, GRACE).await.unwrap();
        assert!(!device::alive(pid));
        let found = case.found(identity).await;
        assert_eq!((found.activity, found.exits, found.last_exit), (Activity::Stopped, 0, None));
        assert_eq!((found.running.as_ref(), &found.epoch), (Some(&launch.spec_hash), &epoch));
    }
    // Installing it is no reason to run.
    case.install(&launch).await;
    assert_eq!(case.found(identity).await.activity, Activity::Stopped);

    let again = case.start(&launch).await;
    assert_ne!(again, pid);
    for _ in 0..2 {
        case.backend().remove(identity, GRACE).await.unwrap();
        assert!(!device::alive(again));
        assert_eq!(case.backend().find(identity).await, Ok(None));
        assert_eq!(case.site.remains(identity), Vec::<String>::new());
    }
    // It begins anew.
    case.install(&launch).await;
    let found = case.found(identity).await;
    assert_eq!((found.running, found.activity, found.exits), (None, Activity::Stopped, 0));
}

async fn everything_arrives_as_it_was_written(case: &Case<'_>) {
    let odd = [
        "",
        " ",
        "  two  blanks  ",
        "'",
        "\"",
        "\\",
        "\\\\",
        "\\n",
        "end\\",
        "$",
        "$$",
        "$HOME",
        "${HOME}",
        "$$HOME",
        "$(id)",
        "`id`",
        "%",
        "%%",
        "%n",
        "%i%H",
        ";",
        "\\;",
        "a;b",
        "#",
        "# no comment",
        "-",
        "--",
        "-x=1",
        "@",
        "+",
        "!",
        ":",
        "~",
        "*",
        "?",
        "[a]",
        "{a,b}",
        "&",
        "|",
        "<",
        ">",
        "(",
        "a=b",
        "=",
        "line\nbreak",
        "\n",
        "tab\tbed",
        "\t",
        "ünï→😀",
        "\u{a0}",
        "\u{2028}",
        "\"'\"'",
        "\\x41\\u0041",
        "A'B\"C\\D$E%F G\nH\tI;J",
        "[Service]",
        "\n[Service]\nUser=nobody\n",
    ];
    let mut launch = case.launch(1, OBEDIENT);
    launch.args = odd.iter().map(|&text| text.to_owned()).collect();
    // A program may get any byte but NUL.
    launch.args.extend(["\u{1}\u{7}\u{1b}[0m\r\u{7f}".to_owned(), "long".repeat(5000)]);
    launch.env = odd.iter().enumerate().map(|(i, text)| (format!("ODD_{i}"), (*text).to_owned())).collect();
    launch.env.push(("_long".to_owned(), "x y".repeat(5000)));
    let pid = case.run(&launch).await;

    let arguments = device::arguments(pid);
    let at = arguments.iter().position(|a| a == &launch.program).unwrap();
    assert_eq!(arguments[at + 1..], launch.args);
    let environment = device::environment(pid);
    for (name, value) in &launch.env {
        let expected = format!("{name}={value}");
        let got: Vec<_> = environment.iter().filter(|v| v.starts_with(&format!("{name}="))).collect();
        assert_eq!(got, [&expected]);
    }
    for variable in &environment {
        for foreign in ["CARGO", "PRAETOR", "RUST", "APOLLO_DEVICE_TOKEN", "APOLLO_GATEWAY"] {
            assert!(!variable.starts_with(foreign), "{variable} of the agent's environment arrived");
        }
    }
}

async fn it_runs_as_its_user_where_it_should(case: &Case<'_>) {
    let mut launch = case.launch(1, OBEDIENT);
    let pid = case.run(&launch).await;
    assert_eq!(device::user(pid), Some(0));

    launch.spec_hash = format!("sha256:{}", hex::encode([2; 32]));
    launch.user = Some("nobody".to_owned());
    launch.working_dir = Some("/usr/bin".to_owned());
    let pid = case.run(&launch).await;
    assert_eq!(device::user(pid), Some(65534));
    assert_eq!(device::working_dir(pid).as_deref(), Some(Path::new("/usr/bin")));

    launch.spec_hash = format!("sha256:{}", hex::encode([3; 32]));
    launch.user = Some("1".to_owned());
    let pid = case.run(&launch).await;
    assert_eq!(device::user(pid), Some(1));
}

async fn an_update_is_one_restart(case: &Case<'_>) {
    let mut old = case.launch(1, OBEDIENT);
    old.env.push(("MARK".to_owned(), case.name.clone()));
    let mark = format!("MARK={}", case.name);
    let mut before = case.run(&old).await;
    let mut gaps = Vec::new();
    for version in 2..7 {
        let mut new = case.launch(version, &format!("{OBEDIENT}# {version}\n"));
        new.env.clone_from(&old.env);
        new.args.push(format!("version {version}"));
        case.install(&new).await;
        let found = case.found(&new.identity).await;
        assert!(matches!(found.activity, Activity::Running { pid, .. } if pid == before), "{found:?}");
        assert_eq!((&found.installed, found.running.as_ref()), (&new.spec_hash, Some(&old.spec_hash)));

        let (started, ended) = tokio::join!(case.backend().start(&new, GRACE), device::end(before));
        started.unwrap();
        let pid = case.running(&new).await;
        let begun = device::started(pid).unwrap();
        // Both are hundredths, rounded or cut.
        assert!(begun + 2 >= ended, "the new one began at {begun}, the old one ended at {ended}");
        gaps.push((begun - ended).max(0) * 10);
        device::shows_with_variable(&mark, pid).await;
        assert_eq!(device::roots_with_variable(&mark), [pid]);
        let found = case.found(&new.identity).await;
        assert_eq!((found.running.as_ref(), found.exits, found.last_exit), (Some(&new.spec_hash), 0, None));
        (old, before) = (new, pid);
    }
    println!("{}: nothing ran at an update for {gaps:?} ms", case.site.kind().as_str());
    // The least disturbed one shows what the backend itself takes.
    assert!(gaps.iter().min().is_some_and(|gap| *gap <= GAP_LIMIT), "nothing ran for {gaps:?} ms");
}

async fn killed_it_is_counted(case: &Case<'_>) {
    let launch = case.launch(1, OBEDIENT);
    let mut pid = case.run(&launch).await;
    for round in 1..=3 {
        // What happens is noticed, without anybody asking.
        let changed = tokio::time::timeout(Duration::from_secs(20), case.backend().changed());
        let (changed, ()) = tokio::join!(changed, async {
            tokio::task::yield_now().await;
            device::signal(pid, "KILL");
        });
        assert_eq!(changed, Ok(()), "nobody was told");
        let found = until("the end is counted", || async {
            Some(case.found(&launch.identity).await).filter(|found| found.exits == round)
        })
        .await;
        assert_eq!(found.last_exit.as_ref().map(|exit| exit.code), Some(137), "{found:?}");
        assert_eq!(found.running.as_ref(), Some(&launch.spec_hash));
        if !case.site.restarts() {
            assert_eq!(case.ended(&launch.identity).await.code, 137);
            case.backend().start(&launch, GRACE).await.unwrap();
        }
        let again = until("it runs again", || async {
            match case.found(&launch.identity).await.activity {
                Activity::Running { pid: again, .. } if again != pid => Some(again),
                _ => None,
            }
        })
        .await;
        (pid, _) = (again, assert!(!device::alive(pid)));
        case.running(&launch).await;
    }
    // A new version keeps the count.
    let new = case.launch(2, OBEDIENT);
    case.run(&new).await;
    let found = case.found(&new.identity).await;
    assert_eq!((found.exits, found.last_exit.map(|exit| exit.code)), (3, Some(137)));
}

async fn a_run_that_is_over_stays_over(case: &Case<'_>) {
    for (round, (signal, code, reason)) in [("USR2", 0, "Completed"), ("USR1", 3, "Error")].into_iter().enumerate() {
        let mut launch = case.launch(round as u8, OBEDIENT);
        launch.restart_policy = RestartPolicy::Never;
        let pid = case.run(&launch).await;
        device::signal(pid, signal);
        let exit = case.ended(&launch.identity).await;
        assert_eq!((exit.code, exit.reason.as_str()), (code, reason));
        let found = case.found(&launch.identity).await;
        assert_eq!((found.exits, found.last_exit), (round as u64 + 1, Some(exit)));
        assert_eq!(found.running.as_ref(), Some(&launch.spec_hash));
        // To look again or to install again is no reason to run again.
        case.install(&launch).await;
        assert!(matches!(case.found(&launch.identity).await.activity, Activity::Ended(exit) if exit.code == code));
    }
    // One that is over before anybody looks has run all the same.
    for (version, code) in [(8, 0), (9, 7)] {
        let mut launch = case.launch(version, &format!("#!/bin/sh\nexit {code}\n"));
        launch.restart_policy = RestartPolicy::Never;
        case.install(&launch).await;
        case.backend().start(&launch, GRACE).await.unwrap();
        assert_eq!(case.ended(&launch.identity).await.code, code);
        assert_eq!(case.found(&launch.identity).await.running, Some(launch.spec_hash));
    }
}

async fn on_failure_is_for_failures(case: &Case<'_>) {
    let mut launch = case.launch(1, OBEDIENT);
    launch.restart_policy = RestartPolicy::OnFailure;
    let mut pid = case.run(&launch).await;
    for (round, (signal, code)) in [("USR1", 3), ("KILL", 137)].into_iter().enumerate() {
        device::signal(pid, signal);
        let found = until("the failure is counted", || async {
            Some(case.found(&launch.identity).await).filter(|found| found.exits == round as u64 + 1)
        })
        .await;
        assert_eq!(found.last_exit.map(|exit| exit.code), Some(code));
        if !case.site.restarts() {
            case.ended(&launch.identity).await;
            case.backend().start(&launch, GRACE).await.unwrap();
        }
        pid = until("it runs again", || async {
            match case.found(&launch.identity).await.activity {
                Activity::Running { pid: again, .. } if again != pid => Some(again),
                _ => None,
            }
        })
        .await;
        case.running(&launch).await;
    }
    device::signal(pid, "USR2");
    let exit = case.ended(&launch.identity).await;
    assert_eq!((exit.code, exit.reason.as_str()), (0, "Completed"));
    assert_eq!(case.found(&launch.identity).await.exits, 3);
}

async fn what_cannot_be_is_refused(case: &Case<'_>) {
    let good = case.launch(1, OBEDIENT);
    let mut pid = case.run(&good).await;
    type Change = fn(&mut Launch);
    let mut bad: Vec<(Change, &str)> = vec![
        (|l| l.program = format!("{}-is-not-there", l.program), "execution.command"),
        (|l| l.user = Some("nobody-at-all".to_owned()), "execution.user"),
    ];
    if case.site.on_the_device() {
        bad.push((|l| l.working_dir = Some("/no/such/folder".to_owned()), "execution.workingDir"));
        bad.push((|l| l.working_dir = Some("/etc/passwd".to_owned()), "execution.workingDir"));
    }
    for (change, field) in bad {
        let mut launch = case.launch(2, OBEDIENT);
        change(&mut launch);
        let refused = match case.backend().install(&launch).await {
            Ok(()) => case.backend().start(&launch, GRACE).await,
            // Then nothing has happened yet.
            Err(error) => {
                assert_eq!(case.found(&launch.identity).await.installed, good.spec_hash);
                assert!(device::alive(pid), "refused, and yet the old one was stopped");
                Err(error)
            }
        };
        let Err(BackendError::Refused(why)) = refused else { panic!("{field}: {refused:?}") };
        assert!(why.contains(field), "{why}");
        assert!(!why.contains('\n'), "{why}");
        println!("{}: {why}", case.site.kind().as_str());
        // It heals when the cause is gone.
        pid = case.run(&good).await;
    }
    assert_eq!(case.found(&good.identity).await.exits, 0);
}

async fn stopping_stops_all_of_it(case: &Case<'_>) {
    let launch = case.launch(1, STUBBORN);
    let pid = case.run(&launch).await;
    let family =
        until("it has a child with a child", || async { Some(device::family(pid)).filter(|f| f.len() >= 4) }).await;
    let begun = Instant::now();
    case.backend().stop(&launch.identity, Duration::from_secs(2)).await.unwrap();
    assert!((2..10).contains(&begun.elapsed().as_secs()), "stopped after {:?}", begun.elapsed());
    let left: Vec<_> = family.into_iter().filter(|&pid| device::alive(pid)).collect();
    assert_eq!(left, Vec::<i64>::new(), "still alive");
    assert_eq!(case.found(&launch.identity).await.activity, Activity::Stopped);

    // What is left of a run that has ended is stopped before the next.
    let mut launch =
        case.launch(2, &format!("#!/bin/sh\nsleep 123456 &\n{}", OBEDIENT.trim_start_matches("#!/bin/sh\n")));
    launch.restart_policy = RestartPolicy::Never;
    let pid = case.run(&launch).await;
    let family = until("it has children", || async { Some(device::family(pid)).filter(|f| f.len() >= 3) }).await;
    device::signal(pid, "USR1");
    case.ended(&launch.identity).await;
    case.start(&launch).await;
    assert!(!family.into_iter().any(device::alive), "something of the former run is left");
}

async fn what_is_not_ours_is_left_alone(case: &Case<'_>) {
    let launch = case.launch(1, OBEDIENT);
    let identity = &launch.identity;
    case.site.plant(identity);
    assert_eq!(case.backend().find(identity).await, Ok(None));
    assert!(case.backend().list().await.unwrap().iter().all(|found| &found.identity != identity));
    let refused = case.backend().install(&launch).await;
    let Err(BackendError::Refused(why)) = refused else { panic!("{refused:?}") };
    println!("{}: {why}", case.site.kind().as_str());
    assert!(why.contains(identity.as_str()), "{why}");
    assert!(case.backend().start(&launch, GRACE).await.is_err());
    assert!(case.site.intact(identity), "it was touched by an install or a start");
    // There is nothing of ours to stop or to remove.
    case.backend().stop(identity, GRACE).await.unwrap();
    case.backend().remove(identity, GRACE).await.unwrap();
    assert!(case.site.intact(identity), "it was touched by a stop or a removal");
    case.site.uproot(identity);
    case.run(&launch).await;
}

async fn all_of_ours_are_listed(case: &Case<'_>) {
    let mut launches = Vec::new();
    for suffix in ["-a", "-b", "-c"] {
        let mut launch = case.launch(1, OBEDIENT);
        launch.identity = case.identity(suffix);
        case.install(&launch).await;
        launches.push(launch);
    }
    case.start(&launches[0]).await;
    case.start(&launches[1]).await;
    case.backend().stop(&launches[1].identity, GRACE).await.unwrap();
    let list = case.backend().list().await.unwrap();
    for (launch, runs) in launches.iter().zip([true, false, false]) {
        let listed: Vec<_> = list.iter().filter(|found| found.identity == launch.identity).collect();
        assert_eq!(listed.len(), 1, "{list:?}");
        assert_eq!(matches!(listed[0].activity, Activity::Running { .. }), runs, "{:?}", listed[0]);
        assert_eq!(listed[0], &case.found(&launch.identity).await);
    }
}

async fn checks_pass_and_fail(case: &Case<'_>) {
    let mut launch = case.launch(1, OBEDIENT);
    launch.user = Some("nobody".to_owned());
    launch.env.push(("MARK".to_owned(), "seen by the check".to_owned()));
    case.run(&launch).await;
    let check = |script: &str, seconds: u64| {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        let launch = launch.clone();
        async move { case.backend().check(&launch, &command, Duration::from_secs(seconds)).await.unwrap() }
    };
    let failed = |checked: Checked| match checked {
        Checked::Failed(why) => why,
        Checked::Passed => panic!("it passed"),
    };
    assert_eq!(check("exit 0", 10).await, Checked::Passed);
    assert_eq!(check(r#"test "$(id -u)" = 65534"#, 10).await, Checked::Passed, "as whom does it run?");
    assert_eq!(check(r#"test "$MARK" = "seen by the check""#, 10).await, Checked::Passed, "in which environment?");

    let why = failed(check("echo begin; echo broken pipe of the fan >&2; exit 3", 10).await);
    assert!(why.contains('3') && why.contains("broken pipe of the fan"), "{why}");
    let why = failed(
        check("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; printf '\\377'; echo last; exit 1", 20)
            .await,
    );
    assert!(why.contains("last") && why.contains("line 2999") && !why.contains("line 100\n"), "{why}");
    assert!((500..1300).contains(&why.len()), "{} bytes", why.len());

    let nap = rand::random_range(100_000..900_000).to_string();
    let begun = Instant::now();
    let why = failed(check(&format!("echo so far; sleep {nap} & sleep {nap}"), 1).await);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(why.contains('1') && why.contains("so far"), "{why}");
    until("all of the check is gone", || async { device::with_argument(&nap).is_empty().then_some(()) }).await;

    // Who closes its output is not done, and who leaves a child with the output is.
    let why = failed(check(&format!("exec >&- 2>&-; sleep {nap}"), 1).await);
    assert!(why.contains('1'), "{why}");
    assert_eq!(check(&format!("sleep {nap} & exit 0"), 10).await, Checked::Passed);
    until("what a check has left is gone", || async { device::with_argument(&nap).is_empty().then_some(()) }).await;

    let command = ["/no/such/check".to_owned()];
    let why = match case.backend().check(&launch, &command, GRACE).await {
        Ok(checked) => failed(checked),
        Err(error) => error.to_string(),
    };
    assert!(why.contains("/no/such/check"), "{why}");
    // The process itself was not bothered.
    assert_eq!(case.found(&launch.identity).await.exits, 0);
}

async fn calls_may_be_cut_off(case: &Case<'_>) {
    let mark = format!("MARK={}", case.name);
    for round in 0..12u8 {
        let mut launch = case.launch(round, &format!("{OBEDIENT}# {round}\n"));
        launch.env.push(("MARK".to_owned(), case.name.clone()));
        let patience = Duration::from_millis(u64::from(round) * 4);
        let _ = tokio::time::timeout(patience, case.backend().install(&launch)).await;
        case.install(&launch).await;
        let _ = tokio::time::timeout(patience, case.backend().start(&launch, GRACE)).await;
        let pid = case.start(&launch).await;
        device::shows_with_variable(&mark, pid).await;
        assert_eq!(device::roots_with_variable(&mark), [pid], "round {round}");
        let found = case.found(&launch.identity).await;
        assert_eq!((found.running.as_ref(), found.exits), (Some(&launch.spec_hash), 0), "round {round}");
        if round % 4 == 3 {
            let _ = tokio::time::timeout(patience, case.backend().stop(&launch.identity, GRACE)).await;
            case.backend().stop(&launch.identity, GRACE).await.unwrap();
            assert_eq!(device::roots_with_variable(&mark), Vec::<i64>::new());
            let _ = tokio::time::timeout(patience, case.backend().remove(&launch.identity, GRACE)).await;
            case.backend().remove(&launch.identity, GRACE).await.unwrap();
            assert_eq!(case.site.remains(&launch.identity), Vec::<String>::new());
        }
    }
}

fn seconds() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}
