//! Edge: replicas with something between them that delays, loses and cuts.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

/// What a wire does with what comes to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Nothing goes to the receiver for now.
    Hold,
    /// The receiver gets the request, and the connection breaks before its answer.
    LoseAnswers,
}

/// A wire in between.
struct Wire {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    /// How often something came to it.
    came: Arc<AtomicU64>,
}

impl Wire {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = watch::Sender::new(Mode::Pass);
        let (modes, came) = (mode.subscribe(), Arc::new(AtomicU64::new(0)));
        let comes = came.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, target, modes.clone(), comes.clone()));
            }
        });
        Self { address, mode, came }
    }
}

async fn carry(near: TcpStream, target: SocketAddr, mut modes: watch::Receiver<Mode>, comes: Arc<AtomicU64>) {
    let far = TcpStream::connect(target).await.unwrap();
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let mut answers_modes = modes.clone();
    let there = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = near_read.read(&mut bytes).await {
            comes.fetch_add(1, Ordering::Relaxed);
            if modes.wait_for(|mode| *mode != Mode::Hold).await.is_err()
                || far_write.write_all(&bytes[..count]).await.is_err()
            {
                return;
            }
        }
    };
    let back = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = far_read.read(&mut bytes).await {
            if *answers_modes.borrow_and_update() == Mode::LoseAnswers
                || near_write.write_all(&bytes[..count]).await.is_err()
            {
                return;
            }
        }
    };
    // Whichever ends first breaks the connection on both sides.
    tokio::select! { () = there => {}, () = back => {} }
}

#[tokio::test]
async fn what_was_lost_goes_again() {
    let [a, b] = Replica::several(["a", "b"]).await;
    let wire = Wire::to(b.address).await;
    let link = a.link(&b, wire.address);
    link.exchange().await.unwrap();
    a.notes.hear(1);
    wire.mode.send_replace(Mode::LoseAnswers);
    assert!(link.exchange().await.is_err());
    a.notes.hear(2);
    assert!(link.exchange().await.is_err());
    let known = b.notes.horizons();
    wire.mode.send_replace(Mode::Pass);
    link.exchange().await.unwrap();
    // The batches came although their answers did not; that does no harm.
    assert_eq!(b.notes.devices(), [1, 1, 2, 1, 2]);
    // No answer, no newer clock: the horizon stood still.
    assert!(known.windows(2).skip(1).all(|pair| pair[0] == pair[1]), "{known:?}");
    a.notes.hear(3);
    link.exchange().await.unwrap();
    assert_eq!(b.notes.devices()[5..], [3]);
}

#[tokio::test]
async fn a_batch_that_was_under_way_for_long_is_old() {
    for (minutes_ms, taken) in [(20_000, true), (40_000, false)] {
        let [a, b] = Replica::several(["a", "b"]).await;
        let wire = Wire::to(b.address).await;
        let link = a.link(&b, wire.address);
        link.exchange().await.unwrap();
        let sent_ms = b.notes.now_ms();
        a.notes.hear(1);
        wire.mode.send_replace(Mode::Hold);
        let before = wire.came.load(Ordering::Relaxed);
        let stuck = tokio::spawn(async move { (link.exchange().await, link) });
        until("it is under way", || wire.came.load(Ordering::Relaxed) > before).await;
        // Time passes for the receiver only.
        b.notes.advance(minutes_ms);
        wire.mode.send_replace(Mode::Pass);
        let (sent, _link) = stuck.await.unwrap();
        sent.unwrap();
        let horizons = b.notes.horizons();
        if taken {
            assert_eq!(horizons.len(), 2);
            assert!(horizons[1] <= sent_ms, "{horizons:?} {sent_ms}");
        } else {
            // Refused, and made anew with the clock as it is now.
            assert_eq!((horizons.len(), b.metrics.refusals(Refusal::Time)), (2, 1));
            assert!(horizons[1] >= sent_ms + minutes_ms);
        }
        assert_eq!(b.notes.devices(), [1]);
    }
}

#[tokio::test]
async fn one_that_does_not_answer_delays_nobody() {
    let [a, b] = Replica::several(["a", "b"]).await;
    // Accepted by the system, never answered.
    let hole = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let z = Member::new("z", 26, Some(hole.local_addr().unwrap()));
    a.ownership.show(Arc::new(View::new(2, vec![a.member(), b.member(), z.clone()], "a")));
    let shutdown = CancellationToken::new();
    let running = a.run(&shutdown);
    let start = Instant::now();
    until("the others are heard", || b.notes.witnessed.lock().len() >= 4).await;
    // Were they sent to one after the other, each round would take as long as the deadline.
    assert!(start.elapsed() < 4 * super::super::link::DEADLINE, "{:?}", start.elapsed());
    // The first one to try waits, those that come after the lost batch do not.
    until("the way is known to be closed", || {
        let forward = Relay::forward(&*a.peers, &z, "x", false, Bytes::new());
        futures::FutureExt::now_or_never(forward).is_some_and(|answer| answer == Err(Unanswered::Unreachable))
    })
    .await;
    assert_eq!((a.metrics.heard.get(), a.metrics.peers.get()), (0, 2));
    let stop = Instant::now();
    shutdown.cancel();
    running.await.unwrap();
    assert!(stop.elapsed() < Duration::from_secs(3), "{:?}", stop.elapsed());
}

#[tokio::test]
async fn only_one_that_takes_no_batches_is_given_up_early() {
    let [a, b] = Replica::several(["a", "b"]).await;
    let wire = Wire::to(b.address).await;
    let (link, shutdown) = (a.link(&b, wire.address), CancellationToken::new());
    let running = tokio::spawn(link.clone().run(shutdown.clone()));
    until("batches flow", || b.notes.witnessed.lock().len() >= 2).await;
    let device = b.device();
    let forward = |body: &'static str| link.forward(&device, false, Bytes::from_static(body.as_bytes()));

    // It has as many under way as it may, and never gets on: what has no turn is not sent.
    let stuck = futures::future::join_all((0..32).map(|_| forward("never")));
    let (stuck, busy) = tokio::join!(stuck, forward("{}"));
    assert_eq!(busy, Err(ForwardError::Busy));
    assert!(stuck.iter().all(|answer| *answer == Err(ForwardError::Timeout)), "{stuck:?}");
    assert!(b.taken.reports.lock().is_empty());
    assert!(forward("{}").await.is_ok());

    // Nothing comes through any more: what is under way ends with the batch.
    wire.mode.send_replace(Mode::Hold);
    assert!(matches!(forward("{}").await, Err(ForwardError::Unreachable(_))));
    wire.mode.send_replace(Mode::Pass);
    let start = Instant::now();
    while forward("{}").await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    shutdown.cancel();
    running.await.unwrap();
}
