//! Mirrors `src/gateway/desired.rs`: answers about desired state, never from behind what the device has seen.

use super::super::guards::Guard;
use super::super::network::Node;
use super::super::report::{Get, GetAnswer, Item, device_name};
use super::super::world::{Event, World};
use super::{Process, Timer};
use praetor::desired::index::{Kind, desired};

const CATCH_UP_MS: u64 = 2_000;

impl Process {
    pub fn on_get(&mut self, world: &mut World, get: Get) {
        if !self.index.serves_devices() || !self.is_open() {
            return self.serve(world, &get, GetAnswer::Later);
        }
        if self.includes(world, &get) {
            return self.serve_state(world, &get);
        }
        let number = self.number();
        self.parked.insert(number, get);
        world.timer(self.at, CATCH_UP_MS, Timer::CatchUp(number));
    }

    /// As `Directory::synced_through`.
    fn includes(&self, world: &World, get: &Get) -> bool {
        if get.seen == 0 || !world.guards.on(Guard::MinRevision) {
            return true;
        }
        let shown = || self.index.device(&device_name(get.device)).is_some_and(|device| device.revision >= get.seen);
        self.index.progress(Kind::Process) >= get.seen && (self.index.progress(Kind::Switch) >= get.seen || shown())
    }

    /// Answers those that have waited for a watch.
    pub fn unpark(&mut self, world: &mut World) {
        let mut ready: Vec<u64> =
            self.parked.iter().filter(|(_, get)| self.includes(world, get)).map(|(number, _)| *number).collect();
        ready.sort_unstable();
        for number in ready {
            if let Some(get) = self.parked.remove(&number) {
                self.serve_state(world, &get);
            }
        }
    }

    pub fn on_catch_up(&mut self, world: &mut World, number: u64) {
        if let Some(get) = self.parked.remove(&number) {
            self.serve(world, &get, GetAnswer::Later);
        }
    }

    fn serve_state(&self, world: &mut World, get: &Get) {
        let Some(device) = self.index.device(&device_name(get.device)) else {
            return self.serve(world, get, GetAnswer::Unknown);
        };
        let items = desired(device, false).map(|process| Item {
            name: (*process.key.name).into(),
            uid: (*process.uid).into(),
            generation: process.generation,
            spec: process.spec.hash,
        });
        let items: Vec<Item> = items.collect();
        world.say(|| {
            let progress = Kind::ALL.map(|kind| self.index.progress(kind));
            let said = items.iter().map(|item| &*item.uid).collect::<Vec<_>>();
            format!(
                "r{}: serves {said:?} at {} of {progress:?} to tor-{}",
                self.at.replica, device.revision, get.device
            )
        });
        self.serve(world, get, GetAnswer::State(device.revision, items));
    }

    fn serve(&self, world: &mut World, get: &Get, answer: GetAnswer) {
        let (from, to) = (Node::Replica(self.at.replica), Node::Device(get.device));
        world.send(from, to, Event::Served(get.device, get.ticket, answer));
    }
}
