//! Mirrors `src/desired/watch.rs`: list, then watch, for ever.

use super::super::apiserver::{Answer, Shown, Verb};
use super::super::world::World;
use super::{Process, Then, Timer};
use praetor::desired::index::Kind;
use std::collections::HashSet;

const LIST_TIMEOUT_MS: u64 = 30_000;
const WATCH_MS: u64 = 60_000;

/// The state of one watch.
#[derive(Debug, Default)]
pub struct Watch {
    /// Where the next watch starts; none: list first.
    from: Option<u64>,
    /// Of the list or watch that is under way.
    number: u64,
    failures: u32,
}

impl Process {
    /// Lists, or watches from where the last one ended.
    pub fn follow(&mut self, world: &mut World, kind: Kind) {
        let number = self.number();
        let watch = &mut self.watches[kind as usize];
        watch.number = number;
        match watch.from {
            None => self.call(world, Verb::List(kind), LIST_TIMEOUT_MS, Then::Listed(kind, number)),
            Some(from) => {
                self.call(world, Verb::Watch(kind, from, number), LIST_TIMEOUT_MS, Then::Watching(kind, number));
                let patience = WATCH_MS + self.rng.range(0, WATCH_MS / 2) + 5_000;
                world.timer(self.at, patience, Timer::Patience(kind, number));
            }
        }
    }

    fn again(&mut self, world: &mut World, kind: Kind) {
        let number = self.number();
        let watch = &mut self.watches[kind as usize];
        watch.number = number;
        watch.failures += 1;
        let most = (500_u64 << watch.failures.min(6)).min(30_000);
        let delay = self.rng.range(most / 2, most);
        world.timer(self.at, delay, Timer::Follow(kind, number));
    }

    pub fn on_follow(&mut self, world: &mut World, kind: Kind, number: u64) {
        if self.watches[kind as usize].number == number {
            self.follow(world, kind);
        }
    }

    /// The watch was to end by now; a silent connection does not.
    pub fn on_patience(&mut self, world: &mut World, kind: Kind, number: u64) {
        self.on_follow(world, kind, number);
    }

    pub fn on_listed(&mut self, world: &mut World, kind: Kind, number: u64, answer: Answer) {
        if self.watches[kind as usize].number != number {
            return;
        }
        let Answer::Listed(items, revision) = answer else { return self.again(world, kind) };
        world.say(|| format!("r{}: has {} of {kind:?} listed at {revision}", self.at.replica, items.len()));
        let keys: HashSet<_> = items.iter().map(|item| super::super::apiserver::key(item.name())).collect();
        for item in items {
            self.index.list_item(kind, item, revision);
        }
        self.index.finish_list(kind, &keys, revision);
        let watch = &mut self.watches[kind as usize];
        (watch.from, watch.failures) = (Some(revision), 0);
        self.follow(world, kind);
        self.opened(world);
        self.unpark(world);
    }

    pub fn on_watching(&mut self, world: &mut World, kind: Kind, number: u64, answer: &Answer) {
        if self.watches[kind as usize].number != number {
            return;
        }
        match answer {
            Answer::Watching => self.watches[kind as usize].failures = 0,
            Answer::Gone => self.relist(world, kind),
            _ => self.again(world, kind),
        }
    }

    /// All replicas list after a compaction; they spread.
    fn relist(&mut self, world: &mut World, kind: Kind) {
        let number = self.number();
        let watch = &mut self.watches[kind as usize];
        (watch.from, watch.number) = (None, number);
        let delay = self.rng.range(0, 2_000);
        world.timer(self.at, delay, Timer::Follow(kind, number));
    }

    pub fn on_shown(&mut self, world: &mut World, kind: Kind, number: u64, shown: Vec<Shown>) {
        for shown in shown {
            if self.watches[kind as usize].number != number {
                return;
            }
            let revision = match shown {
                Shown::Object(object) => {
                    let revision = object.revision();
                    self.index.apply(kind, (*object).clone());
                    revision
                }
                Shown::Deleted(object) => {
                    self.index.delete(kind, object.namespace(), object.name(), object.revision());
                    object.revision()
                }
                Shown::Bookmark(revision) => {
                    self.index.advance(kind, revision);
                    revision
                }
                Shown::Gone => return self.relist(world, kind),
                Shown::Closed => return self.again(world, kind),
            };
            self.watches[kind as usize].from = Some(revision);
        }
        self.unpark(world);
    }
}
