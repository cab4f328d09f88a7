//! A run: the script's faults happen to replicas and devices, and after every step the rules are looked at.

use super::apiserver::{ApiServer, Health, key};
use super::checker::{Checker, Violation};
use super::device::Device;
use super::guards::Guards;
use super::network::Node;
use super::replica::{Process, Timer};
use super::report::{GetAnswer, ReportAnswer, device_name};
use super::rng::Rng;
use super::script::{Fault, Script};
use super::world::{Address, Event, Input, World};
use praetor::desired::index::Kind;
use serde_json::json;
use std::collections::VecDeque;

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    pub violation: Option<Violation>,
    pub writes: u64,
    pub deaths: u64,
    pub forwarded: u64,
    pub acks: u64,
    pub events: u64,
    pub spins: u64,
    pub steps: u64,
    /// Equal for equal runs.
    pub digest: u64,
}

/// A place where a process runs, or may.
#[derive(Default)]
struct Machine {
    life: u32,
    process: Option<Box<Process>>,
    /// Until when it stands still.
    stopped: bool,
    sleeping: bool,
    since: u64,
    waiting: VecDeque<Input>,
    /// For how long it is down after its end, milliseconds.
    down: u64,
}

struct Simulation {
    script: Script,
    world: World,
    api: ApiServer,
    machines: Vec<Machine>,
    devices: Vec<Device>,
    rng: Rng,
    digest: u64,
    steps: u64,
}

/// Runs a script to its end, or to the first violation.
pub fn run(script: &Script, guards: Guards, trace: bool) -> Report {
    let mut simulation = Simulation::new(script.clone(), guards, trace);
    simulation.begin();
    simulation.go();
    let Simulation { world, api, digest, steps, .. } = simulation;
    let checker = world.checker;
    Report {
        writes: checker.writes,
        deaths: checker.deaths,
        forwarded: checker.forwarded,
        acks: checker.acks,
        spins: checker.spins,
        events: api.events.len() as u64,
        violation: checker.violations.into_iter().next(),
        steps,
        digest,
    }
}

fn process_name(device: usize, process: usize) -> String {
    format!("p{process}-{}", device_name(device))
}

impl Simulation {
    fn new(script: Script, guards: Guards, trace: bool) -> Self {
        let seed = script.seed;
        Self {
            world: World::new(seed, script.replicas, guards, trace, Checker::default()),
            api: ApiServer::new(seed),
            machines: (0..script.replicas).map(|_| Machine::default()).collect(),
            devices: (0..script.devices).map(|index| Device::new(seed, index, script.replicas)).collect(),
            rng: Rng::new(seed, "simulation"),
            script,
            digest: 0,
            steps: 0,
        }
    }

    fn begin(&mut self) {
        self.world.now = 1_000;
        self.world.checker.tick(1_000);
        for device in 0..self.devices.len() {
            self.api.put(&mut self.world, Kind::Switch, &device_name(device), json!({}), "");
            for process in 0..self.script.processes {
                self.create(device, process);
            }
        }
        for replica in 0..self.machines.len() {
            let delay = self.rng.range(0, 4_000);
            self.world.after(delay, Event::Start(replica));
        }
        for device in &mut self.devices {
            device.start(&mut self.world, true);
        }
        for (number, (at, _)) in self.script.faults.iter().enumerate() {
            self.world.after(at - 1_000, Event::Act(number));
        }
        self.world.after(self.script.calm - 1_000, Event::Calm);
        self.world.after(5_000, Event::Bookmarks);
    }

    fn create(&mut self, device: usize, process: usize) {
        let version = self.rng.next() % 1_000_000;
        let spec = json!({
            "artifact": {"type": "oci", "url": format!("registry/agent:{version}")},
            "execution": {"backend": "initd", "command": ["/bin/agent"]},
        });
        self.api.put(&mut self.world, Kind::Process, &process_name(device, process), spec, &device_name(device));
    }

    fn go(&mut self) {
        while let Some(event) = self.world.next(self.script.end) {
            self.steps += 1;
            self.world.checker.tick(self.world.now);
            let elects = matches!(event, Event::Replica(_, _, Input::Answer(..)) | Event::Resume(_));
            self.step(event);
            self.digest =
                (self.digest ^ self.world.now ^ self.world.checker.writes << 40).wrapping_mul(0x0100_0000_01b3);
            if elects {
                self.check_leads();
            }
            if !self.world.checker.violations.is_empty() {
                return;
            }
        }
        self.check_end();
    }

    fn check_leads(&mut self) {
        let leads = |machine: &Machine| machine.process.as_ref().is_some_and(|process| process.leads(&self.world));
        let holders: Vec<usize> = (0..self.machines.len()).filter(|replica| leads(&self.machines[*replica])).collect();
        self.world.checker.leads(&holders);
    }

    fn check_end(&mut self) {
        let alive: Vec<bool> = self.devices.iter().map(|device| device.alive).collect();
        self.world.checker.converged(&self.api, &alive);
        let (last, end) = (self.world.checker.last_write, self.script.end);
        if last + 20_000 > end {
            self.world.checker.fail("it comes to rest", format!("a status was written at {last}"));
        }
        let processes: Vec<&Process> = self.machines.iter().filter_map(|machine| machine.process.as_deref()).collect();
        let mut problems = Vec::new();
        if processes.len() != self.machines.len() {
            problems.push("not every replica runs".to_owned());
        }
        if processes.iter().filter(|process| process.leads(&self.world)).count() != 1 {
            problems.push("there is no leader".to_owned());
        }
        for process in &processes {
            let replica = process.at.replica;
            if process.view.fingerprint != processes[0].view.fingerprint
                || process.view.members.len() != processes.len()
            {
                problems.push(format!("r{replica} sees {} members", process.view.members.len()));
            }
            if !process.is_idle() {
                problems.push(format!("r{replica} still has work"));
            }
            for ((kind, key), object) in &self.api.objects {
                if process.index.revision(*kind, &key.namespace, &key.name) != Some(object.revision()) {
                    problems.push(format!("r{replica} does not know {} as it is", key.name));
                }
            }
        }
        for problem in problems {
            self.world.checker.fail("everybody agrees", problem);
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Act(number) => self.act(number),
            Event::Calm => self.calm(),
            Event::Request(request) => {
                let (from, to) = (Node::Replica(request.from.replica), Node::Api);
                if !self.world.net.is_cut(from, to, self.world.now) {
                    self.api.take(&mut self.world, request);
                }
            }
            Event::Stream(replica, kind, number) => self.api.deliver(&mut self.world, replica, kind, number),
            Event::Bookmarks => {
                self.api.bookmarks(&mut self.world);
                let next = self.rng.range(20_000, 40_000);
                self.world.after(next, Event::Bookmarks);
            }
            Event::Start(replica) => self.start(replica),
            Event::Resume(address) => self.resume(address),
            Event::Replica(replica, life, input) => self.reach(replica, life, input),
            Event::Device(device, timer) => self.devices[device].on(&mut self.world, timer),
            Event::Answered(device, ticket, answer) => self.devices[device].answered(&mut self.world, ticket, answer),
            Event::Served(device, ticket, answer) => self.devices[device].served(&mut self.world, ticket, answer),
        }
    }

    /// Something arrives at a machine.
    fn reach(&mut self, replica: usize, life: Option<u32>, input: Input) {
        let machine = &mut self.machines[replica];
        if life.is_some_and(|life| life != machine.life) {
            return;
        }
        let Some(process) = &mut machine.process else { return self.refuse(&input) };
        if machine.stopped {
            // A machine that sleeps hears nothing; what reaches a stopped process waits in its sockets.
            // What a watch shows is sent again and again until it is taken.
            if !machine.sleeping || matches!(input, Input::Timer(_) | Input::Shown(..)) {
                if let Input::Report(report) = &input {
                    self.world.checker.waits(report.body.device, process.at);
                }
                machine.waiting.push_back(input);
            }
            return;
        }
        if matches!(input, Input::Timer(Timer::Exit)) {
            return self.end(replica);
        }
        process.on(&mut self.world, input);
    }

    /// Nobody listens: the connection is refused.
    fn refuse(&mut self, input: &Input) {
        let delay = self.rng.range(1, 30);
        match input {
            Input::Report(report) => {
                if let Some(ticket) = report.ticket {
                    self.world.after(delay, Event::Answered(report.body.device, ticket, ReportAnswer::Failed));
                }
            }
            Input::Get(get) => self.world.after(delay, Event::Served(get.device, get.ticket, GetAnswer::Later)),
            Input::Letter(letter) => {
                let silence = Input::Timer(Timer::Letter(letter.call));
                self.world.after(delay, Event::Replica(letter.from.replica, Some(letter.from.life), silence));
            }
            _ => {}
        }
    }

    fn start(&mut self, replica: usize) {
        let machine = &mut self.machines[replica];
        if machine.process.is_some() {
            return;
        }
        machine.life += 1;
        (machine.stopped, machine.sleeping) = (false, false);
        let at = Address { replica, life: machine.life };
        let now = self.world.now;
        let clock = &mut self.world.clocks[replica];
        (clock.started, clock.slept) = (now, 0);
        self.world.say(|| format!("r{replica}: starts, life {}", at.life));
        self.world.checker.runs(at, true);
        self.machines[replica].process = Some(Box::new(Process::new(&mut self.world, at)));
    }

    /// The process is gone; the next one starts after a while.
    fn end(&mut self, replica: usize) {
        let machine = &mut self.machines[replica];
        self.world.after(machine.down, Event::Start(replica));
        if let Some(process) = machine.process.take() {
            self.world.checker.lost_events(process.lost_events());
            self.world.say(|| format!("r{replica}: is gone"));
            self.world.checker.runs(Address { replica, life: machine.life }, false);
        }
        machine.waiting.clear();
        (machine.stopped, machine.sleeping) = (false, false);
        // Its watches end with it.
        self.api.disconnect(&mut self.world, Some(replica));
    }

    fn stop(&mut self, replica: usize, sleeping: bool, pause: u64) {
        let machine = &mut self.machines[replica];
        if machine.process.is_none() || machine.stopped {
            return;
        }
        (machine.stopped, machine.sleeping, machine.since) = (true, sleeping, self.world.now);
        self.world.say(|| format!("r{replica}: {} for {pause} ms", if sleeping { "sleeps" } else { "is stopped" }));
        let address = Address { replica, life: machine.life };
        self.world.checker.stands_still(address, true);
        self.world.after(pause, Event::Resume(address));
    }

    fn resume(&mut self, address: Address) {
        let machine = &mut self.machines[address.replica];
        if machine.life != address.life || !machine.stopped {
            return;
        }
        let slept = self.world.now - machine.since;
        if machine.sleeping {
            self.world.clocks[address.replica].slept += slept;
        }
        (machine.stopped, machine.sleeping) = (false, false);
        self.world.say(|| format!("r{}: goes on after {slept} ms", address.replica));
        self.world.checker.stands_still(address, false);
        // Times are looked at first; what waits in sockets is worked off in any order, and that takes a while.
        let (times, mut rest): (Vec<Input>, Vec<Input>) =
            machine.waiting.drain(..).partition(|input| matches!(input, Input::Timer(_)));
        for input in times {
            self.world.after(0, Event::Replica(address.replica, Some(address.life), input));
        }
        let most = if self.rng.chance(500) { 50 } else { 2_500 };
        for input in rest.drain(..) {
            // But watches keep their order.
            let delay = if matches!(input, Input::Shown(..)) { 0 } else { self.rng.range(0, most) };
            self.world.after(delay, Event::Replica(address.replica, Some(address.life), input));
        }
    }

    fn act(&mut self, number: usize) {
        let (_, fault) = self.script.faults[number];
        self.world.say(|| format!("--- {fault:?}"));
        let now = self.world.now;
        match fault {
            Fault::Crash { replica, down } => {
                self.machines[replica].down = down;
                self.end(replica);
            }
            Fault::Restart { replica, down } => {
                let machine = &mut self.machines[replica];
                if let Some(process) = machine.process.as_mut().filter(|process| !machine.stopped && !process.closing) {
                    machine.down = down;
                    self.world.checker.ends(process.at);
                    process.stop(&mut self.world);
                }
            }
            Fault::Pause { replica, pause } => self.stop(replica, false, pause),
            Fault::Sleep { replica, pause } => self.stop(replica, true, pause),
            Fault::Cut { from, to, time } => self.world.net.cut(from, to, now + time),
            Fault::Part { one, other, time } => {
                self.world.net.cut(one, other, now + time);
                self.world.net.cut(other, one, now + time);
            }
            Fault::ApiDown { time } => self.health(Health::Down, time),
            Fault::ApiHangs { time } => self.health(Health::Hanging, time),
            Fault::Stall { replica, kind, time } => self.api.hold(replica, kind, now + time),
            Fault::EndWatches { replica } => self.api.disconnect(&mut self.world, Some(replica)),
            Fault::Compact { tell } => self.api.compact(&mut self.world, tell),
            Fault::Weather(weather) => self.world.net.weather = weather,
            Fault::Death { device, time, reboot } => {
                self.devices[device].stop(&mut self.world);
                if let Some(time) = time {
                    self.script.faults.push((now + time, Fault::Return { device, reboot }));
                    self.world.after(time, Event::Act(self.script.faults.len() - 1));
                }
            }
            Fault::KnownDead { device } => self.world.checker.known_dead(&self.api, device),
            Fault::Return { device, reboot } => self.devices[device].start(&mut self.world, reboot),
            Fault::ApiBack => self.api.set_health(&mut self.world, Health::Up),
            Fault::Edit { device, process } => {
                if self.exists(device, process) {
                    self.create(device, process);
                }
            }
            Fault::Recreate { device, process, gap } => {
                if self.exists(device, process) {
                    self.api.delete(&mut self.world, Kind::Process, &process_name(device, process));
                    self.script.faults.push((now + gap, Fault::Toggle { device, process }));
                    self.world.after(gap, Event::Act(self.script.faults.len() - 1));
                }
            }
            Fault::Toggle { device, process } => {
                if self.exists(device, process) {
                    self.api.delete(&mut self.world, Kind::Process, &process_name(device, process));
                } else {
                    self.create(device, process);
                }
            }
        }
    }

    fn exists(&self, device: usize, process: usize) -> bool {
        self.api.objects.contains_key(&(Kind::Process, key(&process_name(device, process))))
    }

    fn health(&mut self, health: Health, time: u64) {
        self.api.set_health(&mut self.world, health);
        self.script.faults.push((self.world.now + time, Fault::ApiBack));
        self.world.after(time, Event::Act(self.script.faults.len() - 1));
    }

    /// All faults are over: from here on everything must come to rest.
    fn calm(&mut self) {
        self.world.say(|| "--- calm".into());
        self.world.net.heal();
        self.api.heal(&mut self.world);
        for device in &mut self.devices {
            device.rest();
        }
        for replica in 0..self.machines.len() {
            let address = Address { replica, life: self.machines[replica].life };
            self.resume(address);
        }
    }
}
