//! Everything that exists, behind one lock, and the one virtual clock.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::chance::Chance;
use super::checks::Checks;
use super::cluster::Cluster;
use super::machine::{Machine, Truth, stream};
use super::network::Door;
pub use super::skew::Skew;
use crate::agent::keeper::News;
use crate::app::control::Handle;
use crate::engine::answer::Answer;
use crate::engine::chain::{Broken, Chain};
use crate::engine::instance::Instance;
use crate::engine::policy::Policy;
use crate::engine::topology::{ObserverName, Role, SiteName, Topology};
use crate::engine::units::Epoch;
use crate::ports::AgentMemory;
use crate::wire::sealed::Sealed;

mod clocks;

pub use self::clocks::{Clocks, SimClock};

/// A place with a clock and links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// Where the controller runs.
    Neutral,
    /// The site that is active first.
    First,
    /// The other one.
    Second,
    /// Where the clients are.
    Clients,
}

impl Node {
    /// All of them.
    pub const ALL: [Node; 4] = [Node::Neutral, Node::First, Node::Second, Node::Clients];
    /// The two sites.
    pub const SITES: [Node; 2] = [Node::First, Node::Second];

    /// The other site; a place that is none is its own.
    pub fn peer(self) -> Node {
        match self {
            Node::First => Node::Second,
            Node::Second => Node::First,
            Node::Neutral | Node::Clients => self,
        }
    }

    /// The installation of the agent there.
    pub fn instance(self) -> Instance {
        let id = u128::try_from(self.index()).unwrap_or_default();
        Instance { id, place: 1 }
    }

    fn index(self) -> usize {
        match self {
            Node::Neutral => 0,
            Node::First => 1,
            Node::Second => 2,
            Node::Clients => 3,
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Node::Neutral => "N",
            Node::First => "A",
            Node::Second => "P",
            Node::Clients => "C",
        })
    }
}

/// A process: from its start to its end.
#[derive(Debug, Default)]
pub struct Life {
    dead: AtomicBool,
    frozen: AtomicBool,
}

impl Life {
    /// Whether it was not ended.
    pub fn lives(&self) -> bool {
        !self.dead.load(Ordering::Relaxed)
    }

    /// Ends it.
    pub fn end(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// Stops or continues it.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    fn frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }
}

/// One direction of one link.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Whether anything passes.
    pub up: bool,
    /// How long it usually takes.
    pub way: Duration,
    /// Since when it is as it is.
    pub since: Truth,
}

/// A host that was copied, disk and certificate and all. Both stand in one place and share their
/// storage; nobody addresses the copy.
#[derive(Debug, Clone)]
pub struct Copied {
    /// Of which host.
    pub of: Node,
    /// Its machine.
    pub machine: Machine,
    /// Its agent's disk.
    pub memory: Option<AgentMemory>,
}

/// Everything that can change.
#[derive(Debug)]
pub struct State {
    /// Where chance comes from.
    pub chance: Chance,
    links: [[Link; 4]; 4],
    skews: [Skew; 4],
    machines: [Machine; 2],
    /// What each agent's disk holds.
    pub memories: [Option<AgentMemory>; 2],
    /// The traffic target's answer and its version.
    pub traffic: (Answer, u64),
    /// Each site's cluster, if the sites are clusters.
    pub clusters: [Option<Cluster>; 2],
    /// The copy of a host that was made last, if one was.
    pub copy: Option<Copied>,
    /// How many copies were made.
    pub copies: u64,
    /// The decision log, line by line.
    pub log: Vec<Vec<u8>>,
    /// When each line was written.
    pub logged: Vec<Truth>,
    /// The log as far as a controller that started has read it: no line is read twice.
    read: Chain,
    /// The log's disk takes nothing until then.
    pub disk_full: Truth,
    /// Nor does it answer until then.
    pub disk_stalled: Truth,
    /// Appends take so many milliseconds at most.
    pub slow_disk: u64,
    /// Percent of messages that are lost.
    pub lossy: u64,
    /// Percent of answers of outside systems that are lost although the effect happened.
    pub ambiguous: u64,
    /// The longest a promotion takes, in milliseconds.
    pub slow_promote: u64,
    /// The site whose standby can be neither severed nor connected.
    pub deaf: Option<Node>,
    /// The site whose agent lies to its peer, and about what it carries.
    pub liar: Option<Node>,
    /// Whether that one says that its standby has more than it has.
    pub boasts: bool,
    /// A true answer that it once carried.
    pub carried: Option<Sealed>,
    /// Where agents are found.
    pub agents: [Option<Door<mpsc::Sender<News>>>; 2],
    /// Where controllers are found.
    pub controllers: [Option<Door<Handle>>; 2],
    /// How many lives controllers and agents had so far.
    lives: u64,
    /// Which of them leads, and until when.
    pub leader: Option<(usize, Truth)>,
    /// Whether the last logged decision was to fail over, for cause.
    pub decided: Option<bool>,
    /// When what a course is about went wrong.
    pub fault: Option<Truth>,
    /// Whether an extra observer has a say.
    pub observed: bool,
    /// What watches.
    pub checks: Checks,
}

impl State {
    /// The number of the next life of a controller or an agent.
    pub fn a_life(&mut self) -> u64 {
        self.lives = self.lives.saturating_add(1);
        self.lives
    }

    /// A link.
    pub fn link(&self, from: Node, to: Node) -> Link {
        self.links[from.index()][to.index()]
    }

    /// A host. A place without one shows the first site's.
    pub fn machine(&mut self, node: Node) -> &mut Machine {
        &mut self.machines[usize::from(node == Node::Second)]
    }

    /// A host, or its copy.
    pub fn host(&mut self, node: Node, copy: bool) -> &mut Machine {
        match &mut self.copy {
            Some(copied) if copy => &mut copied.machine,
            Some(_) | None => &mut self.machines[usize::from(node == Node::Second)],
        }
    }

    /// The disk of the agent on a host, or on its copy.
    pub fn disk(&mut self, node: Node, copy: bool) -> &mut Option<AgentMemory> {
        match &mut self.copy {
            Some(copied) if copy => &mut copied.memory,
            Some(_) | None => &mut self.memories[usize::from(node == Node::Second)],
        }
    }

    /// The log becomes what it was once: only so many lines are left of it.
    pub fn restore_log(&mut self, now: Truth, left: usize) {
        self.log.truncate(left);
        self.logged.truncate(left);
        self.read = Chain::default();
        self.checks.restored(now, &self.log);
    }

    /// A host's agent's disk.
    pub fn memory(&mut self, node: Node) -> &mut Option<AgentMemory> {
        &mut self.memories[usize::from(node == Node::Second)]
    }

    /// A controller as an agent, or a person, finds it: one of those that run.
    pub fn a_controller(&mut self) -> Option<Door<Handle>> {
        let running: Vec<usize> = [0, 1]
            .into_iter()
            .filter(|which| self.controllers[*which].is_some())
            .collect();
        let which = match running.as_slice() {
            [only] => *only,
            several => self.chance.pick(several)?,
        };
        self.controllers[which].clone()
    }

    /// Where a site's agent is found.
    pub fn agent(&mut self, node: Node) -> &mut Option<Door<mpsc::Sender<News>>> {
        &mut self.agents[usize::from(node == Node::Second)]
    }

    /// Both hosts, the one at a place first, and what watches them.
    pub fn watched(&mut self, node: Node) -> ([&Machine; 2], &mut Checks) {
        let [first, second] = &self.machines;
        let machines = if node == Node::Second {
            [second, first]
        } else {
            [first, second]
        };
        (machines, &mut self.checks)
    }

    /// The host at a place is made anew as a standby of the other.
    pub fn rebuild(&mut self, node: Node, now: Truth) {
        let [first, second] = &mut self.machines;
        if node == Node::Second {
            second.rebuild_from(first, now);
        } else {
            first.rebuild_from(second, now);
        }
    }

    /// Lets happen what happened until now.
    pub fn settle(&mut self, now: Truth) {
        for machine in &mut self.machines {
            machine.settle(now);
            self.checks.by_own_hand(machine);
        }
        let there = self.link(Node::First, Node::Second);
        let back = self.link(Node::Second, Node::First);
        let [first, second] = &mut self.machines;
        if there.up && back.up {
            stream(first, second, now, [there.way, back.way]);
            stream(second, first, now, [back.way, there.way]);
            if let Some(copied) = &mut self.copy {
                copied.machine.settle(now);
                let standby = match copied.of {
                    Node::Second => first,
                    Node::First | Node::Neutral | Node::Clients => second,
                };
                stream(&mut copied.machine, standby, now, [there.way, back.way]);
            }
        }
        for node in Node::SITES {
            let reaches = self.link(node, Node::Clients).up;
            for row in self.machine(node).released(now) {
                if reaches {
                    self.acknowledge(now, node, row);
                }
            }
        }
    }

    /// A client hears that its row is committed.
    pub fn acknowledge(&mut self, now: Truth, node: Node, row: u64) {
        let copied = self.copy.clone().filter(|copied| copied.of == node);
        let ([machine, other], checks) = self.watched(node);
        checks.acknowledged(now, machine, other, row);
        if let Some(copied) = copied {
            checks.wrote_beside(now, machine, &copied.machine, row);
        }
    }

    /// The same at the copy of a host.
    pub fn acknowledge_at_copy(&mut self, now: Truth, row: u64) {
        let Some(copied) = self.copy.clone() else {
            return;
        };
        let ([first, other], checks) = self.watched(copied.of);
        checks.acknowledged(now, &copied.machine, other, row);
        checks.wrote_beside(now, &copied.machine, first, row);
    }

    /// Puts a link up or down. What is on its way is lost.
    pub fn set_link(&mut self, now: Truth, from: Node, to: Node, up: bool) {
        self.settle(now);
        for machine in &mut self.machines {
            if !up {
                machine.confirming.clear();
            }
        }
        let link = &mut self.links[from.index()][to.index()];
        if link.up != up {
            link.up = up;
            link.since = now;
        }
    }

    /// What a controller that starts reads from the log.
    pub fn read_log(&mut self) -> Result<Chain, Broken> {
        let read = usize::try_from(self.read.entries).unwrap_or(usize::MAX);
        for line in self.log.iter().skip(read) {
            self.read.take(line.strip_suffix(b"\n").unwrap_or(line))?;
        }
        Ok(self.read.clone())
    }

    /// The place of a site.
    pub fn node(&self, site: &SiteName) -> Node {
        if self.machines[0].site == *site {
            Node::First
        } else {
            Node::Second
        }
    }
}

/// The world, shared by everything in it.
#[derive(Debug)]
pub struct World {
    began: Instant,
    state: Mutex<State>,
    /// In order of arrival, unlike a `watch`, which wakes by chance of its own.
    changed: Notify,
    /// The policy in force.
    pub policy: Policy,
    /// The group.
    pub topology: Topology,
    /// The extra observer that the controller believes.
    pub observer: Option<ObserverName>,
}

impl World {
    /// A healthy pair.
    pub fn new(
        seed: u64,
        policy: Policy,
        topology: Topology,
        clocks: Clocks,
        observer: Option<ObserverName>,
    ) -> Arc<Self> {
        let mut chance = Chance::new(seed);
        let mut links = [[Link {
            up: true,
            way: Duration::ZERO,
            since: Duration::ZERO,
        }; 4]; 4];
        for link in links.iter_mut().flatten() {
            link.way = chance.millis(1, 25);
        }
        let skews = clocks.drawn(&mut chance);
        let stages = policy.lease.fence;
        let first = Machine::new(topology.first.clone(), Role::Primary, stages);
        let second = Machine::new(topology.second.clone(), Role::Standby, stages);
        let mut machines = [first, second];
        // As if the agent had been there before.
        machines[0].right = Some((Epoch(1), Some(policy.lease.lease_ttl)));
        let answer = Answer::only(&topology.first, &topology, Epoch(1));
        let state = State {
            chance,
            links,
            skews,
            machines,
            memories: [None, None],
            traffic: (answer, 1),
            clusters: [None, None],
            copy: None,
            copies: 0,
            log: Vec::new(),
            logged: Vec::new(),
            read: Chain::default(),
            disk_full: Duration::ZERO,
            disk_stalled: Duration::ZERO,
            slow_disk: 4,
            lossy: 0,
            ambiguous: 0,
            slow_promote: 350,
            deaf: None,
            liar: None,
            boasts: false,
            carried: None,
            agents: [None, None],
            controllers: [None, None],
            lives: 0,
            leader: None,
            decided: None,
            fault: None,
            observed: observer.is_some(),
            checks: Checks::new(policy.clone()),
        };
        Arc::new(Self {
            began: Instant::now(),
            state: Mutex::new(state),
            changed: Notify::new(),
            policy,
            topology,
            observer,
        })
    }

    /// Now.
    pub fn now(&self) -> Truth {
        self.began.elapsed()
    }

    /// Reads or changes the world at this moment.
    pub fn with<T>(&self, what: impl FnOnce(&mut State, Truth) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.now();
        state.settle(now);
        what(&mut state, now)
    }

    /// Tells whoever waits that links or lives changed.
    pub fn changed(&self) {
        self.changed.notify_waiters();
    }

    /// Waits until something is so.
    pub async fn until(&self, so: impl Fn(&mut State) -> bool) {
        loop {
            let changed = self.changed.notified();
            if self.with(|state, _| so(state)) {
                return;
            }
            changed.await;
        }
    }

    /// Returns while a process runs; one that is frozen waits, one that ended waits for ever.
    pub async fn alive(&self, life: &Life) {
        loop {
            let changed = self.changed.notified();
            if life.lives() && !life.frozen() {
                return;
            }
            changed.await;
        }
    }

    /// Remembers an event for whoever looks for the cause.
    pub fn trace(&self, text: impl FnOnce() -> String) {
        self.with(|state, now| state.checks.trace(now, text()));
    }
}
