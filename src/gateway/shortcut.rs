//! Edge: a device that says the same again is answered without reading its request as HTTP again.
//!
//! A connection remembers the bytes of the last head that ended in a 304, or in the ack of a report that left
//! nothing to do, and what that head meant. When exactly these bytes come again, only what can have changed is
//! looked at: the credentials, the device's desired state, the body. Everything else, and everything in doubt,
//! goes through hyper as if this file were not there.

use super::access_log;
use super::answer::{DATE_BYTES, Recalled};
use super::auth::same;
use super::connection::State;
use super::path::Route;
use super::pattern::Pattern;
use super::report::Reports;
use super::service::Gateway;
use crate::desired::directory::Lookup;
use crate::wire::etag::ETag;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// Longest head that is remembered, bytes.
const MAX_HEAD_BYTES: usize = 1024;

/// Most patterns that are made for one head.
const MAX_PATTERNS: u8 = 8;

/// What a request turned out to mean, told by the service.
#[derive(Debug)]
pub(super) struct Meaning {
    /// The number of the request on its connection.
    pub request: u32,
    /// Its route.
    pub route: Route,
    /// Its device, whose token it carried.
    pub device: Box<str>,
    /// The credentials by which the token was good.
    pub generation: u64,
    /// What its If-None-Match matched; `None` for a report.
    pub matched: Option<(ETag, u64)>,
}

/// Finds out where in the bytes of a connection a request begins.
///
/// After a request with a body of a known length, hyper holds nothing back if all bytes up to the first blank
/// line and that length make up all bytes that were read: the true head is never shorter than that.
#[derive(Debug, Default)]
struct Boundary {
    requests: u32,
    read: usize,
    head: Vec<u8>,
    lost: bool,
}

/// The short way of one connection.
pub(super) struct Shortcut<R> {
    gateway: Arc<Gateway<R>>,
    state: Arc<State>,
    boundary: Boundary,
    known: Option<Known>,
}

/// A head, and how it is answered.
struct Known {
    head: Vec<u8>,
    body_bytes: usize,
    meaning: Meaning,
    said: Said,
    answer: Recalled,
}

/// The last report that left nothing to do.
#[derive(Default)]
struct Said {
    /// With its bootId and its fingerprint.
    pattern: Option<(Pattern, Box<str>, u64)>,
    /// Patterns that were made so far.
    made: u8,
}

// === impl Boundary ===

impl Boundary {
    /// Bytes that are given to hyper.
    fn pass(&mut self, bytes: &[u8]) {
        if self.lost || bytes.is_empty() {
            return;
        }
        if self.read == 0 {
            let end = head_end(bytes).filter(|end| *end <= MAX_HEAD_BYTES);
            self.lost = end.is_none();
            self.head.clear();
            self.head.extend_from_slice(&bytes[..end.unwrap_or(0)]);
        }
        self.read += bytes.len();
    }

    /// Whether the next byte begins a request, when so many have been answered and the last one's body was so
    /// long.
    fn settle(&mut self, requests: u32, body_bytes: Option<usize>) -> bool {
        if self.read > 0 {
            let whole = body_bytes.is_some_and(|body| self.head.len().checked_add(body) == Some(self.read));
            self.lost |= !whole || requests != self.requests.wrapping_add(1);
            (self.read, self.requests) = (0, requests);
        }
        !self.lost
    }
}

/// The end of the first blank line.
fn head_end(bytes: &[u8]) -> Option<usize> {
    let ends = |at: &usize| match &bytes[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    };
    // Every head ends in its last bytes when nothing follows, so the usual search is short.
    bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').find_map(|(at, _)| ends(&at))
}

// === impl Shortcut ===

impl<R: Reports> Shortcut<R> {
    pub(super) fn new(gateway: Arc<Gateway<R>>, state: Arc<State>) -> Self {
        Self { gateway, state, boundary: Boundary::default(), known: None }
    }

    /// Bytes that are given to hyper.
    pub(super) fn pass(&mut self, bytes: &[u8]) {
        self.boundary.pass(bytes);
    }

    /// Whether the next byte begins a request. Called between two requests, when all answers are sent.
    pub(super) fn settle(&mut self) -> bool {
        let (requests, body_bytes) = (self.state.requests(), self.state.body_bytes());
        let passed = self.boundary.read > 0;
        let settled = self.boundary.settle(requests, body_bytes);
        if passed {
            let meaning = self.state.take_meaning().filter(|meaning| settled && meaning.request == requests);
            if let (Some(meaning), Some(body_bytes)) = (meaning, body_bytes) {
                let answer = Recalled::new(meaning.matched);
                let head = std::mem::take(&mut self.boundary.head);
                self.known = Some(Known { head, body_bytes, meaning, said: Said::default(), answer });
            }
        }
        settled
    }

    /// The whole answer to a request that is known; `None` when hyper has to read it.
    pub(super) fn answer(&mut self, request: &[u8]) -> Option<&[u8]> {
        let Self { gateway, state, known, .. } = self;
        let Known { head, body_bytes, meaning, said, answer } = known.as_mut()?;
        let (again, body) = request.split_at_checked(head.len())?;
        // In constant time, since there is a token in it.
        if body.len() != *body_bytes || !same(again, head) {
            return None;
        }
        if gateway.credentials.generation() != meaning.generation || state.is_last() || gateway.is_draining() {
            return None;
        }
        let started = match meaning.matched {
            Some((etag, revision)) => {
                if gateway.directory.lookup(&meaning.device) != (Lookup::Known { etag, revision }) {
                    return None;
                }
                None
            }
            None => {
                let started = Instant::now();
                // Should it panic, it does so again on the long way, and there it is answered 500.
                let settled = catch_unwind(AssertUnwindSafe(|| said.settles(gateway, meaning, body)));
                if !settled.unwrap_or(false) {
                    return None;
                }
                gateway.metrics.report_seconds.observe(started.elapsed().as_secs_f64());
                Some(started)
            }
        };
        state.begin(Some(*body_bytes));
        state.end(answer.status());
        self.boundary.requests = state.requests();
        gateway.metrics.answered(Some(meaning.route), answer.status());
        if gateway.access_log.wants(answer.status()) {
            let took = started.map(|started| started.elapsed()).unwrap_or_default();
            access_log::write(Some(meaning.route), &meaning.device, answer.status(), took);
        }
        let date: [u8; DATE_BYTES] = *gateway.date.read();
        Some(answer.at(&date))
    }
}

// === impl Said ===

impl Said {
    /// Whether a body is a report that leaves nothing to do.
    fn settles<R: Reports>(&mut self, gateway: &Gateway<R>, meaning: &Meaning, body: &[u8]) -> bool {
        if let Some((pattern, boot_id, fingerprint)) = &self.pattern
            && let Some(sequence) = pattern.sequence(body)
        {
            return gateway.reports.is_settled(&meaning.device, boot_id, sequence, *fingerprint);
        }
        let Some((boot_id, fingerprint)) = gateway.settle(meaning.route, &meaning.device, body) else { return false };
        // A device whose reports always differ somewhere gets no further ones.
        if self.made < MAX_PATTERNS {
            self.made += 1;
            self.pattern = Pattern::of(body).map(|pattern| (pattern, boot_id, fingerprint));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heads_end_at_the_first_blank_line() {
        for (bytes, end) in [
            ("", None),
            ("a\r\n", None),
            ("a\r\n\r\n", Some(5)),
            ("a\n\nb", Some(3)),
            ("a\r\n\nb", Some(4)),
            ("\r\n\r\na", Some(4)),
            ("a\n\r", None),
        ] {
            assert_eq!(head_end(bytes.as_bytes()), end, "{bytes:?}");
        }
    }

    #[test]
    fn only_whole_requests_end_at_a_boundary() {
        for (reads, requests, body, boundary) in [
            (vec!["h\r\n\r\n"], 1, Some(0), true),
            (vec!["h\r\n\r\nbo", "dy"], 1, Some(4), true),
            (vec!["h\r\n\r\nbo", "dy"], 1, Some(3), false),
            (vec!["h\r\n\r\n"], 1, None, false),
            (vec!["h\r\n", "\r\n"], 1, Some(0), false),
            (vec!["h\r\n\r\nh\r\n\r\n"], 2, Some(0), false),
            (vec!["h\r\n\r\nh"], 1, Some(0), false),
            (vec!["h\r\n\r\n"], 0, Some(0), false),
            (vec![], 0, None, true),
        ] {
            let mut at = Boundary::default();
            reads.iter().for_each(|read| at.pass(read.as_bytes()));
            assert_eq!(at.settle(requests, body), boundary, "{reads:?}");
            at.pass(b"h\r\n\r\n");
            assert_eq!(at.settle(requests + 1, Some(0)), boundary, "{reads:?}: what is lost stays lost");
        }
    }

    proptest! {
        /// Whatever is read, a boundary means that heads and bodies, as hyper would cut them, were used up.
        #[test]
        fn nothing_is_held_back(reads in prop::collection::vec("[h\r\n]{0,8}", 1..4), body in 0_usize..8) {
            let mut at = Boundary::default();
            reads.iter().for_each(|read| at.pass(read.as_bytes()));
            let all = reads.concat();
            if at.settle(1, Some(body)) && !all.is_empty() {
                let true_head = head_end(all.as_bytes()).unwrap();
                prop_assert!(true_head + body >= all.len());
            }
        }
    }
}
