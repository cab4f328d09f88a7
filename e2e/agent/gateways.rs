//! With several gateways: who is asked next.

use super::*;

#[test]
fn the_next_gateway_is_asked_after_one_failure() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = Gateway::start(desired(1, 10, &[("a", 1)]));
    let (_folder, state) = folder();
    let start = Instant::now();
    let agent = Agent::start(&format!("http://{closed}, {}/", gateway.url()), &state, None);
    let told = gateway.await_report(start, &["a@sha256:1"]);
    assert!(told.at - start < Duration::from_secs(3), "{:?}", told.at - start);
    assert!(gateway.all().iter().all(|s| s.header("x-device-token").is_none()));
    await_true("more reports at the gateway that works", || gateway.reports().len() > 3);
    let (_, _, log) = agent.end("-INT");
    assert_eq!(log.lines().filter(|l| l.contains("no device token")).count(), 1, "{log}");
    assert_eq!(log.lines().filter(|l| l.contains("Connection refused")).count(), 2, "once for each loop: {log}");
}

#[test]
fn when_a_gateway_dies_another_is_asked_within_a_second() {
    let gateways = [0, 1, 2].map(|_| Gateway::start(desired(1, 10, &[("a", 1)])));
    let (_folder, state) = folder();
    let urls = gateways.each_ref().map(Gateway::url).join(",");
    let agent = Agent::start(&urls, &state, Some(TOKEN));
    for (i, dying) in gateways.iter().take(2).enumerate() {
        // Parked for a second already: there is at most one GET in that time.
        let second = Duration::from_secs(1);
        await_true("a poll", || dying.gets().last().is_some_and(|g| g.wait_seconds() > 0 && g.at.elapsed() > second));
        let [died, others @ ..] = &gateways[i..] else { unreachable!() };
        assert!(others.iter().all(|other| other.all().is_empty()), "one that works is kept");
        let broken = Instant::now();
        died.play(|_| Reply::HangUp);
        let get = await_some("a GET elsewhere", || others[0].gets().first().cloned());
        assert!(get.at - broken < second, "{:?}", get.at - broken);
        // It neither forgets nor waits, and where it stands the other one must be, too.
        assert_eq!((get.header("if-none-match"), get.wait_seconds()), (Some("\"1-a1\""), 0));
        assert_eq!(get.header("x-praetor-min-revision"), Some("10"));
        // Of a report it learns when it sends one.
        let report = others[0].await_report(broken, &["a@sha256:1"]);
        let tried = died.reports().into_iter().find(|report| report.at > broken).unwrap();
        assert!(report.at - tried.at < second, "{:?}", report.at - tried.at);
    }
    // With nobody left it tries them in turn, and in peace.
    gateways.iter().for_each(|gateway| gateway.play(|_| Reply::HangUp));
    let alone = Instant::now();
    let tries = |gateway: &Gateway| gateway.reports().iter().filter(|report| report.at > alone).count();
    await_true("three rounds", || gateways.iter().all(|gateway| tries(gateway) >= 3));
    assert!(alone.elapsed() > Duration::from_secs(1) && gateways.iter().all(|gateway| tries(gateway) <= 12));
    gateways[2].play(desired(1, 10, &[("a", 1)]));
    gateways[2].await_report(Instant::now(), &["a@sha256:1"]);
    agent.end("-TERM");
}

#[test]
fn one_gateway_that_asks_for_time_is_left_alone_while_another_is_asked() {
    let busy = Gateway::start(|_| answer(503, "Retry-After: 5\r\n", "{}"));
    let able = Gateway::start(desired(1, 10, &[("a", 1)]));
    let (_folder, state) = folder();
    let start = Instant::now();
    let _agent = Agent::start(&format!("{},{}", busy.url(), able.url()), &state, None);
    let told = able.await_report(start, &["a@sha256:1"]);
    let refused = busy.all()[0].at;
    assert!(told.at - refused >= Duration::from_secs(1) && told.at - refused < Duration::from_secs(4));
    able.play(|_| Reply::HangUp);
    await_true("both again", || busy.gets().len() > 1 && busy.reports().len() > 1);
    for seen in [busy.gets(), busy.reports()] {
        assert!(seen[1].at - seen[0].at >= Duration::from_secs(5), "{:?}", seen[1].at - seen[0].at);
    }
}
