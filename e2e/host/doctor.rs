//! `praetor-agent doctor` on devices that lack one thing each.

use super::*;
use crate::authority::Authority;
use crate::gateway::{Answer, Asked, Gateway, closed, deaf, good};
use std::collections::BTreeMap;

/// A gateway whose answers carry a date.
fn dated(date: &'static str) -> impl Fn(&Asked) -> Answer + Send + Sync + 'static {
    let truth = good(&[]);
    move |asked| truth(asked).map(|(status, headers, body)| (status, format!("Date: {date}\r\n{headers}"), body))
}

fn doctor(url: &str, parent: &Path, token: &Path, more: &[&str]) -> Said {
    let state = parent.join("agent/state.json");
    let own = ["doctor", "--device-name", DEVICE, "--gateway-url", url, "--state-file", text(&state)];
    let said = call(&[&own[..], &["--device-token-file", text(token)], more].concat());
    assert!(!said.out.contains(TOKEN) && !said.err.contains(TOKEN), "{said:?}");
    said
}

/// Nothing fails, but that the machine of the test may lack every backend.
fn is_well(said: &Said) -> bool {
    let failed = |line: &&str| line.starts_with("FAIL");
    said.code == i32::from(said.out.lines().any(|line| failed(&line)))
        && said.out.lines().filter(failed).all(|line| line.starts_with("FAIL  backend "))
}

/// Every file below a folder, with its mode and content.
fn tree(folder: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(tree(&path));
        }
        found.insert(path.clone(), (mode(&path), fs::read(&path).unwrap_or_default()));
    }
    found
}

#[test]
fn a_device_on_which_all_is_well() {
    let gateway = Gateway::start(good(&[]));
    let (parent, token) = device();
    let before = tree(parent.path());
    let said = doctor(&gateway.url(), parent.path(), &token, &[]);
    assert!(is_well(&said), "{said:?}");
    assert_eq!(
        said.line(" gateway "),
        format!("ok    gateway   {} answers: no process yet for this device", gateway.url())
    );
    assert!(said.line(" token ").starts_with("ok") && said.line(" name ").ends_with(DEVICE), "{said:?}");
    assert!(said.line(" folder ").contains("the agent will make it"), "{said:?}");
    assert!(said.out.contains("\nwarn  agent     does not run\n"), "{said:?}");
    assert_eq!(tree(parent.path()), before, "nothing on the device has changed");
    assert!(gateway.asked().iter().all(|asked| asked.method == "GET"), "reading is no sign of life");

    // With an agent that runs there is nothing left to say.
    let mut command = command();
    command.env("APOLLO_DEVICE_NAME", DEVICE).env("APOLLO_GATEWAY_URL", gateway.url());
    command
        .env("APOLLO_DEVICE_TOKEN_FILE", &token)
        .env("APOLLO_AGENT_STATE_FILE", parent.path().join("agent/state.json"));
    let _agent = Agent::start(command);
    await_true("an agent that runs", || {
        let said = doctor(&gateway.url(), parent.path(), &token, &[]);
        is_well(&said) && said.out.contains("as process") && said.out.contains("state.json: 0 to run")
    });
}

#[test]
fn each_fault_has_its_line_and_its_advice() {
    let (parent, token) = device();
    let wrong = parent.path().join("wrong");
    write(&wrong, "wrong", 0o600);
    let open = parent.path().join("open");
    write(&open, TOKEN, 0o644);
    let absent = parent.path().join("absent");
    let gateway = Gateway::start(good(&[]));
    let unknown = Gateway::start(|_| Some((404, String::new(), r#"{"title":"Not Found","status":404}"#.into())));
    let web = Gateway::start(|_| Some((404, String::new(), "<html>".into())));
    let starting = Gateway::start(|_| Some((503, String::new(), "{}".into())));
    let behind = Gateway::start(dated("Tue, 01 Jan 2036 00:00:00 GMT"));
    let (good_url, closed_url) = (gateway.url(), closed());
    let nowhere = "http://no-such-host.invalid:8080";
    for (url, token, what, parts) in [
        (good_url.as_str(), &wrong, "gateway", ["refuses this device's token (401)", "praetor-manager token tor1-01"]),
        (&good_url, &open, "token", ["mode 0644", "chmod 0600"]),
        (&good_url, &absent, "token", ["No such file", "the output of `praetor-manager token"]),
        (&unknown.url(), &token, "gateway", ["does not know the device tor1-01", "create a NetworkSwitch"]),
        (&web.url(), &token, "gateway", ["does not know this path", "no gateway of Praetor"]),
        (&behind.url(), &token, "clock", ["behind the gateway's", "chronyd"]),
        (&closed_url, &token, "gateway", ["Connection refused", "nothing listens on that port"]),
        (nowhere, &token, "gateway", ["cannot find the address of no-such-host.invalid", "/etc/resolv.conf"]),
        ("gw:8080", &token, "gateway", ["expected http://HOST", ""]),
    ] {
        let said = doctor(url, parent.path(), token, &[]);
        assert_eq!(said.code, 1, "{said:?}");
        let failed: Vec<_> =
            said.out.lines().skip_while(|line| !line.starts_with(&format!("FAIL  {what} "))).take(2).collect();
        assert!(failed.len() == 2 && parts.iter().all(|part| failed.concat().contains(part)), "{parts:?} {said:#?}");
        assert!(said.out.ends_with(" from its work.\n"), "{said:?}");
    }
    let said = doctor(&starting.url(), parent.path(), &token, &[]);
    assert!(is_well(&said) && said.line(" gateway ").starts_with("warn"), "{said:?}");
    // Of several gateways one will do.
    let said = doctor(&format!("{closed_url},{good_url}"), parent.path(), &token, &[]);
    assert!(
        is_well(&said) && said.line(&closed_url).starts_with("warn") && said.line(&good_url).starts_with("ok"),
        "{said:?}"
    );
}

#[test]
fn whom_it_does_not_trust() {
    let (parent, token) = device();
    let (mine, other) = (Authority::new("mine"), Authority::new("other"));
    let gateway = Gateway::with_tls(&mine.local(), good(&[]));
    let ca = parent.path().join("ca.crt");
    fs::write(&ca, mine.pem()).unwrap();
    let with_ca = ["--gateway-ca-file", text(&ca)];
    let said = doctor(&gateway.url(), parent.path(), &token, &with_ca);
    assert!(is_well(&said) && said.line(" gateway ").starts_with("ok"), "{said:?}");
    fs::write(&ca, other.pem()).unwrap();
    let said = doctor(&gateway.url(), parent.path(), &token, &with_ca);
    assert!(
        said.code == 1 && said.line(" gateway ").contains("not signed by a CA that this device trusts"),
        "{said:?}"
    );
    fs::write(&ca, "nonsense").unwrap();
    let said = doctor(&gateway.url(), parent.path(), &token, &with_ca);
    assert!(said.code == 1 && said.line(" gateway ").contains("no certificate in PEM"), "{said:?}");
    // Plain HTTP where HTTPS is spoken, and the other way round.
    fs::write(&ca, mine.pem()).unwrap();
    let plain = gateway.url().replace("https", "http");
    assert_eq!(doctor(&plain, parent.path(), &token, &with_ca).code, 1);
    let gateway = Gateway::start(good(&[]));
    let said = doctor(&gateway.url().replace("http", "https"), parent.path(), &token, &with_ca);
    assert_eq!(said.code, 1, "{said:?}");
}

#[test]
fn it_takes_ten_seconds_at_most() {
    let (parent, token) = device();
    let silent = Gateway::start(|_| None);
    let (_deaf, deaf_url) = deaf();
    // The last one is where packets to nobody go.
    let urls = [silent.url(), deaf_url, "http://192.0.2.1:8080".to_owned()].join(",");
    let start = Instant::now();
    let said = doctor(&urls, parent.path(), &token, &[]);
    let took = start.elapsed();
    assert!(said.code == 1 && took < Duration::from_secs(10), "{took:?} {said:?}");
    assert_eq!(said.out.lines().filter(|line| line.starts_with("FAIL  gateway")).count(), 3, "{said:?}");
}

#[test]
fn a_state_folder_that_cannot_be_written() {
    let gateway = Gateway::start(good(&[]));
    let (parent, token) = device();
    let folder = parent.path().join("agent");
    fs::create_dir(&folder).unwrap();
    // A file system of its own, in a mount namespace of its own: root may write everywhere else.
    let mounted = format!("mount -t tmpfs -o ro none '{}' && exec \"$@\"", folder.display());
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-c", &mounted, "sh"]).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    if !matches!(Command::new("unshare").args(["--mount", "true"]).output(), Ok(output) if output.status.success()) {
        eprintln!("skipped: a read-only file system (unshare --mount is not allowed here)");
        return;
    }
    shell.args([binary(), "doctor", "--device-name", DEVICE, "--gateway-url", &gateway.url()]);
    shell.args(["--device-token-file", text(&token), "--state-file", text(&folder.join("state.json"))]);
    let said = Said::of(shell.output().unwrap());
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.line("FAIL  folder").contains("Read-only file system"), "{said:?}");
    assert!(said.line("FAIL  disk").contains("read-only file system"), "{said:?}");
}

#[test]
fn what_is_in_the_state_folder() {
    let gateway = Gateway::start(good(&[]));
    let (parent, token) = device();
    let folder = parent.path().join("agent");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    let state = folder.join("state.json");
    let said = |content: &str| {
        write(&state, content, 0o600);
        doctor(&gateway.url(), parent.path(), &token, &[])
    };
    let broken = said("{");
    assert!(is_well(&broken) && broken.line(" state ").contains("cannot be used"), "{broken:?}");
    assert!(broken.line(" folder ").contains("mode 0755"), "{broken:?}");
    let other = said(r#"{"deviceName":"x","items":[]}"#);
    assert!(other.line(" state ").contains("about the device x"), "{other:?}");
    let settings = parent.path().join("agent.env");
    write(&settings, &format!("APOLLO_DEVICE_NAME={DEVICE}\nAPOLLO_DEVICE_TOKEN={TOKEN}\n"), 0o644);
    let said = call(&[
        "doctor",
        "--settings-file",
        text(&settings),
        "--gateway-url",
        &gateway.url(),
        "--state-file",
        text(&state),
    ]);
    assert!(said.code == 1 && said.line("FAIL  settings").contains("others can read it"), "{said:?}");
    assert!(!said.out.contains(TOKEN), "{said:?}");
}
