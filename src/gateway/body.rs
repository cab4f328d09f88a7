//! Edge: request bodies, bounded in size, time and number.

use super::answer::Refusal;
use crate::wire::MAX_BODY_BYTES;
use bytes::{Bytes, BytesMut};
use futures::poll;
use http_body_util::BodyExt;
use hyper::body::Body;
use rand::Rng;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Longest time for a whole body.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Longest time that a long body waits for its turn.
const TURN_TIME: Duration = Duration::from_secs(5);
/// Bodies of more than one read that are gathered at a time: 16 MiB when all are as long as allowed.
const LONG_BODIES: usize = 64;

/// Reads bodies.
#[derive(Debug)]
pub struct Bodies {
    turns: Semaphore,
}

// === impl Bodies ===

impl Bodies {
    /// Reads a body to its end. One that comes in one read is not copied.
    ///
    /// # Errors
    /// When it is too long, too slow, or breaks off.
    pub async fn read<B>(&self, body: B) -> Result<Bytes, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
            return Err(Refusal::TooLarge);
        }
        let mut gathered = pin!(self.gather(body));
        // Most bodies are there already, and then no timer is needed.
        if let Poll::Ready(read) = poll!(gathered.as_mut()) {
            return read;
        }
        timeout(BODY_TIME, gathered).await.unwrap_or(Err(Refusal::TooSlow))
    }

    async fn gather<B>(&self, mut body: B) -> Result<Bytes, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let Some(first) = next(&mut body).await? else { return Ok(Bytes::new()) };
        if body.is_end_stream() && first.len() <= MAX_BODY_BYTES {
            return Ok(first);
        }
        let mut turn = None;
        let mut whole = BytesMut::new();
        while let Some(more) = next(&mut body).await? {
            if turn.is_none() {
                turn = Some(
                    timeout(TURN_TIME, self.turns.acquire())
                        .await
                        .map_err(|_| Refusal::Crowded(rand::rng().random_range(2..=10)))?,
                );
                whole.extend_from_slice(&first);
            }
            if whole.len() + more.len() > MAX_BODY_BYTES {
                return Err(Refusal::TooLarge);
            }
            whole.extend_from_slice(&more);
        }
        match turn {
            None if first.len() > MAX_BODY_BYTES => Err(Refusal::TooLarge),
            None => Ok(first),
            Some(_) => Ok(whole.freeze()),
        }
    }
}

impl Default for Bodies {
    fn default() -> Self {
        Self { turns: Semaphore::new(LONG_BODIES) }
    }
}

/// The next data of a body; trailers say nothing here.
async fn next<B>(body: &mut B) -> Result<Option<Bytes>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(_)) => return Err(Refusal::BrokenOff),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;
    use proptest::prelude::*;
    use std::io;

    fn chunks(parts: &[&[u8]]) -> impl Body<Data = Bytes> + Unpin {
        let frames: Vec<_> =
            parts.iter().map(|part| Ok::<_, io::Error>(Frame::data(Bytes::copy_from_slice(part)))).collect();
        StreamBody::new(stream::iter(frames))
    }

    #[tokio::test]
    async fn one_read_is_not_copied() {
        let sent = Bytes::from(vec![b'x'; 100]);
        let read = Bodies::default().read(Full::new(sent.clone())).await.unwrap();
        assert_eq!(read.as_ptr(), sent.as_ptr());
        assert_eq!(Bodies::default().read(Full::new(Bytes::new())).await, Ok(Bytes::new()));
    }

    #[tokio::test]
    async fn too_long_by_promise_and_by_count() {
        let bodies = Bodies::default();
        let (fits, longer) = (vec![0; MAX_BODY_BYTES], vec![0; MAX_BODY_BYTES + 1]);
        assert_eq!(bodies.read(Full::new(Bytes::from(fits.clone()))).await.map(|b| b.len()), Ok(MAX_BODY_BYTES));
        assert_eq!(bodies.read(Full::new(Bytes::from(longer.clone()))).await, Err(Refusal::TooLarge));
        assert_eq!(bodies.read(chunks(&[&fits])).await.map(|b| b.len()), Ok(MAX_BODY_BYTES));
        assert_eq!(bodies.read(chunks(&[&longer])).await, Err(Refusal::TooLarge));
        assert_eq!(bodies.read(chunks(&[&fits, b"x"])).await, Err(Refusal::TooLarge));
        let broken =
            StreamBody::new(stream::iter([Ok(Frame::data(Bytes::from_static(b"{"))), Err(io::Error::other("gone"))]));
        assert_eq!(bodies.read(broken).await, Err(Refusal::BrokenOff));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends() {
        let start = tokio::time::Instant::now();
        let drip = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, io::Error>(Frame::data(Bytes::from_static(b" "))), ()))
        });
        let read = Bodies::default().read(StreamBody::new(Box::pin(drip))).await;
        assert_eq!((read, start.elapsed()), (Err(Refusal::TooSlow), BODY_TIME));
    }

    #[tokio::test(start_paused = true)]
    async fn long_bodies_take_turns_and_short_ones_do_not_wait() {
        let bodies = Bodies::default();
        let all = bodies.turns.acquire_many(u32::try_from(LONG_BODIES).unwrap()).await.unwrap();
        assert!(matches!(bodies.read(chunks(&[b"a", b"b"])).await, Err(Refusal::Crowded(2..=10))));
        assert_eq!(bodies.read(chunks(&[b"a"])).await, Ok(Bytes::from_static(b"a")));
        drop(all);
        assert_eq!(bodies.read(chunks(&[b"a", b"b"])).await, Ok(Bytes::from_static(b"ab")));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_between_reads(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..6)) {
            let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let read = runtime.block_on(Bodies::default().gather(chunks(&slices)));
            prop_assert_eq!(read.unwrap(), parts.concat());
        }
    }
}
