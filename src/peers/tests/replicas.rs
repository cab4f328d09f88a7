//! Edge: replicas that get along.

use super::*;

#[tokio::test]
async fn everybody_hears_of_everything() {
    let all = Replica::several(["a", "b", "c"]).await;
    let until_then = CancellationToken::new();
    for (at, replica) in all.iter().enumerate() {
        replica.notes.hear(100 + at as u64);
    }
    let running: Vec<_> = all.iter().map(|replica| replica.run(&until_then)).collect();
    for replica in &all {
        until("both others are heard again and again", || {
            let witnessed = replica.notes.witnessed.lock();
            let times = |incarnation| witnessed.iter().filter(|(from, _)| *from == incarnation).count();
            all.iter()
                .filter(|other| other.incarnation() != replica.incarnation())
                .all(|other| times(other.incarnation()) >= 2)
        })
        .await;
        until("metrics say so", || replica.metrics.heard.get() == 2).await;
        assert_eq!(replica.metrics.peers.get(), 2);
        assert!(replica.metrics.oldest_batch.get() < 20.0);
        let mut devices = replica.notes.devices();
        devices.sort_unstable();
        // Usually each comes once; what was lost comes again.
        devices.dedup();
        let others = (100..103).filter(|device| *device != 99 + replica.incarnation());
        assert_eq!(devices, others.collect::<Vec<_>>());
        let now_ms = replica.notes.now_ms();
        assert!(
            replica.notes.horizons().iter().all(|horizon_ms| *horizon_ms <= now_ms && now_ms - horizon_ms < 20_000)
        );
        assert_eq!(Refusal::ALL.iter().map(|refusal| replica.metrics.refusals(*refusal)).sum::<u64>(), 0);
    }
    // The last batch still goes out.
    all[0].notes.hear(200);
    until_then.cancel();
    for running in running {
        running.await.unwrap();
    }
    for other in &all[1..] {
        assert!(other.notes.devices().contains(&200));
    }
}

#[tokio::test]
async fn whoever_starts_gets_the_whole_table_in_parts() {
    let [a, b] = Replica::several(["a", "b"]).await;
    let count = 2 * MAX_ENTRIES as u64 + 5;
    (0..count).for_each(|device| a.notes.hear(device));
    let link = a.link(&b, b.address);
    link.exchange().await.unwrap();
    let sizes = |replica: &Replica| replica.notes.merged.lock().iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(sizes(&b), [MAX_ENTRIES, MAX_ENTRIES, 5]);
    assert_eq!(b.notes.witnessed.lock().len(), 1, "heard with the last part only");
    a.notes.hear(count);
    link.exchange().await.unwrap();
    assert_eq!((b.notes.merged.lock().last().unwrap().len(), b.notes.witnessed.lock().len()), (1, 2));

    // It restarts at the same address; the view does not know yet.
    b.stop.cancel();
    let listener = rebind(b.address).await;
    let members = vec![a.member(), Member::new("b", 9, Some(b.address))];
    let again = Replica::new("b", b.address, View::new(1, members, "b"), 7 * HOUR_MS);
    again.serve(listener);
    a.notes.hear(count + 1);
    link.exchange().await.unwrap();
    assert_eq!(sizes(&again), [MAX_ENTRIES, MAX_ENTRIES, 7]);
    let witnessed = again.notes.witnessed.lock().clone();
    assert!(matches!(witnessed[..], [(1, horizon_ms)] if horizon_ms >= 7 * HOUR_MS), "{witnessed:?}");
}

#[tokio::test]
async fn who_forgot_us_asks_for_the_whole_table() {
    let [a, b, c] = Replica::several(["a", "b", "c"]).await;
    let link = a.link(&b, b.address);
    a.notes.hear(1);
    link.exchange().await.unwrap();
    // A long silence, and then another one speaks first.
    b.notes.advance(HOUR_MS);
    c.link(&b, b.address).exchange().await.unwrap();
    a.notes.hear(2);
    link.exchange().await.unwrap();
    assert_eq!(b.notes.devices(), [1, 1, 2]);
    assert_eq!((b.metrics.refusals(Refusal::Time), b.metrics.refusals(Refusal::Whole)), (1, 1));
}

#[tokio::test]
async fn reports_are_sent_on_to_the_owner() {
    let [a, b, c] = Replica::several(["a", "b", "c"]).await;
    let shutdown = CancellationToken::new();
    let _running = a.run(&shutdown);
    until("there are links", || b.notes.witnessed.lock().len() + c.notes.witnessed.lock().len() >= 2).await;
    let forward = async |to: &Replica, device: &str, body: &'static str| {
        Relay::forward(&*a.peers, &to.member(), device, true, Bytes::from_static(body.as_bytes())).await
    };
    assert_eq!(forward(&b, &b.device(), "{}").await, Ok(Outcome::Done { rejected: Vec::new() }));
    assert_eq!(*b.taken.reports.lock(), [(b.device(), true, Bytes::from_static(b"{}"))]);
    assert_eq!(forward(&b, &c.device(), "{}").await, Err(Unanswered::NotOwner));
    assert_eq!(forward(&b, &b.device(), "bad").await, Err(Unanswered::Refused));
    let nobody = Replica::new("z", b.address, View::alone("z"), 0);
    assert_eq!(forward(&nobody, "x", "{}").await, Err(Unanswered::Unreachable));
    assert_eq!(b.taken.reports.lock().len(), 1);

    // It left: there is no way to it any more.
    a.ownership.show(Arc::new(View::new(2, vec![a.member(), c.member()], "a")));
    until("the link ends", || a.metrics.peers.get() == 1).await;
    assert_eq!(forward(&b, &b.device(), "{}").await, Err(Unanswered::Unreachable));
    // It is back, the same process: nothing that is sent on the new link is taken for a repetition.
    let before = b.notes.witnessed.lock().len();
    a.ownership.show(Arc::new(View::new(3, vec![a.member(), b.member(), c.member()], "a")));
    until("it is heard again", || b.notes.witnessed.lock().len() >= before + 2).await;
    assert_eq!(b.metrics.refusals(Refusal::Replayed), 0);
    shutdown.cancel();
}

#[tokio::test]
async fn an_owner_that_cannot_write_is_done_without_where_that_helps() {
    let [a, b] = Replica::several(["a", "b"]).await;
    let a_address = a.address;
    let later = async |from: &Replica, to: &Replica| {
        let (shutdown, before) = (CancellationToken::new(), to.notes.witnessed.lock().len());
        let running = from.run(&shutdown);
        until("there is a link", || to.notes.witnessed.lock().len() > before).await;
        let answer =
            Relay::forward(&*from.peers, &to.member(), &to.device(), false, Bytes::from_static(b"later")).await;
        shutdown.cancel();
        running.await.unwrap();
        answer
    };
    // It has too much to do: so has the device to wait.
    assert_eq!(later(&a, &b).await, Ok(LATER));
    // It is cut from the apiserver: the others may not be.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let members = |a: u64| vec![Member::new("a", a, Some(a_address)), Member::new("b", 2, Some(address))];
    let cut = Replica::with(Ownership::cut_off("b", View::new(2, members(1), "b")), "b", address, 0);
    cut.serve(listener);
    a.ownership.show(Arc::new(View::new(2, members(1), "a")));
    assert_eq!(later(&a, &cut).await, Err(Unanswered::NotOwner));
    // Both are: nobody can write it, and it is not to be tried twice when the apiserver is back.
    let both = Replica::with(Ownership::cut_off("a", View::new(2, members(3), "a")), "a", a_address, 0);
    let answer = later(&both, &cut).await;
    assert!(matches!(answer, Ok(Outcome::Later { retry_after_seconds: 2..=10 })), "{answer:?}");
    assert_eq!(cut.taken.reports.lock().len(), 0);
}

#[tokio::test]
async fn many_at_a_time() {
    let [a, b] = Replica::several(["a", "b"]).await;
    let (link, device) = (a.link(&b, b.address), b.device());
    let all = (0..500).map(|_| link.forward(&device, false, Bytes::from_static(b"{}")));
    let answers = futures::future::join_all(all).await;
    // On a slow machine some do not get their turn; those were not sent.
    assert!(answers.iter().all(|answer| answer.is_ok() || *answer == Err(ForwardError::Busy)), "{answers:?}");
    assert_eq!(b.taken.reports.lock().len(), answers.iter().filter(|answer| answer.is_ok()).count());
    assert_eq!(Refusal::ALL.iter().map(|refusal| b.metrics.refusals(*refusal)).sum::<u64>(), 0);
}

#[tokio::test]
async fn a_wrong_address_of_ones_own() {
    let [a, b] = Replica::several(["a", "b"]).await;
    assert_eq!(a.link(&b, a.address).exchange().await, Err(LinkError::Myself));
    assert!(a.notes.is_untouched());
}

async fn rebind(address: SocketAddr) -> TcpListener {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
