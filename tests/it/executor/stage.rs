//! The outside world of a controller, scripted: two sites, a traffic target, a log in memory, and
//! a clock that moves on when everybody waits.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use failover::app::brain::Brain;
use failover::app::control::{Control, Handle, Input};
use failover::app::executor::World;
use failover::app::journal::{Journal, JournalError, Stamp};
use failover::app::leadership::Leadership;
use failover::app::rehearser::Rehearser;
use failover::engine::answer::Answer;
use failover::engine::chain::{Body, Chain, Digest, Entry, read_line};
use failover::engine::credential::CredentialFacts;
use failover::engine::lease::Enforcer;
use failover::engine::observation::{
    DatabaseFacts, Facts, Finding, Observation, ProbeFailure, ReceiverFacts, ReplayPause,
    ReplayState, SenderFacts,
};
use failover::engine::policy::Policy;
use failover::engine::receipt::Receipt;
use failover::engine::saga::GroupState;
use failover::engine::situation::{AgentFacts, LocalDatabase, SeverRehearsal};
use failover::engine::topology::{
    Role, SiteName, Target, TargetKind, TargetName, Topology, Vantage,
};
use failover::engine::units::{Epoch, Lsn, MonoTime, SystemId, Timeline, WallTime};
use failover::ports::{
    Agents, AppendError, Clock, Confirmation, EffectError, FrontDoor, LogStore, OutsideFault,
    OutsideView, Probe, Still, Traffic, Versioned, Way,
};
use failover::wire::written::Written;
use failover::wire::{
    Came, Heard, Order, OrderAnswer, Postmark, Report, ReportAnswer, SentObservation, Status, What,
};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::infrastructure::Cluster;

pub(crate) fn aws() -> SiteName {
    "aws".parse().unwrap()
}

pub(crate) fn gcp() -> SiteName {
    "gcp".parse().unwrap()
}

pub(crate) fn topology() -> Topology {
    Topology {
        group: "shop".parse().unwrap(),
        first: aws(),
        second: gcp(),
        traffic: vec!["dns".parse().unwrap()],
    }
}

pub(crate) fn policy() -> Policy {
    Policy::read("fast.toml", include_str!("../../../policies/fast.toml")).unwrap()
}

/// What a primary says of its standby.
fn sender(received: u64) -> SenderFacts {
    SenderFacts {
        name: "gcp".to_owned(),
        state: "streaming".to_owned(),
        flushed: Some(Lsn(received)),
        sync_state: "async".to_owned(),
    }
}

type Timers = BTreeMap<(Duration, u64), oneshot::Sender<()>>;

/// Time that passes only when everybody waits.
#[derive(Debug, Default)]
pub(crate) struct TestClock {
    /// Now, and the number of the next timer.
    now: Mutex<(Duration, u64)>,
    timers: Mutex<Timers>,
}

impl TestClock {
    /// What wall clocks show at a moment.
    fn wall_at(now: MonoTime) -> WallTime {
        let passed = u64::try_from(now.0.as_millis()).unwrap() - 1_000_000;
        WallTime(1_767_225_600_000 + passed)
    }

    fn elapsed(&self) -> Duration {
        self.now.lock().unwrap().0
    }

    /// Time passes, and nobody runs.
    pub(crate) fn stand_still(&self, lasting: Duration) {
        self.now.lock().unwrap().0 += lasting;
    }

    /// Goes on to the next moment at which somebody wants to be woken.
    fn advance(&self) {
        let next = self.timers.lock().unwrap().pop_first();
        if let Some(((at, _), sleeper)) = next {
            let mut now = self.now.lock().unwrap();
            now.0 = now.0.max(at);
            drop(now);
            // Whoever slept may have been woken by something else.
            sleeper.send(()).unwrap_or_default();
        }
    }
}

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> MonoTime {
        MonoTime(Duration::from_secs(1000) + self.elapsed())
    }

    fn wall(&self) -> WallTime {
        Self::wall_at(self.now())
    }

    async fn sleep(&self, wait: Duration) {
        let (sleeper, woken) = oneshot::channel();
        let key = {
            let mut now = self.now.lock().unwrap();
            now.1 += 1;
            (now.0 + wait, now.1)
        };
        self.timers.lock().unwrap().insert(key, sleeper);
        woken.await.unwrap_or_default();
    }
}

/// The control loop's clock, which counts how often it goes to sleep.
#[derive(Debug)]
struct Counted {
    of: Arc<TestClock>,
    slept: Arc<AtomicU64>,
}

#[async_trait]
impl Clock for Counted {
    fn now(&self) -> MonoTime {
        self.of.now()
    }

    fn wall(&self) -> WallTime {
        self.of.wall()
    }

    async fn sleep(&self, wait: Duration) {
        self.slept.fetch_add(1, Ordering::Relaxed);
        self.of.sleep(wait).await;
    }
}

/// One site, as it really is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Site {
    /// Whether anything of it answers.
    pub(crate) reachable: bool,
    pub(crate) running: bool,
    pub(crate) primary: bool,
    /// Whether its agent asks for the right to take writes.
    pub(crate) asks: bool,
    /// Whether its own reports do not arrive.
    pub(crate) mute: bool,
    /// The newest epoch in which it was granted that right.
    pub(crate) granted: Option<Epoch>,
    /// How often it was granted it.
    pub(crate) grants: u32,
    pub(crate) fenced: bool,
    pub(crate) severed: bool,
    pub(crate) workloads: bool,
    pub(crate) epoch: Epoch,
    pub(crate) timeline: u32,
    /// What keeps every look from its database.
    pub(crate) kept_out: Option<ProbeFailure>,
}

/// The world, as it really is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Earth {
    pub(crate) aws: Site,
    pub(crate) gcp: Site,
    pub(crate) written: u64,
    pub(crate) received: u64,
    pub(crate) answer: Answer,
    pub(crate) version: u64,
    /// The pod that the active site's database runs in, if it runs in one, and whether it is wanted.
    pub(crate) pod: Option<(String, bool)>,
    /// Of which life the mark was in the order by which the active site was fenced.
    pub(crate) fenced_by: Option<u64>,
    /// Every change of the world by the controller, in order.
    pub(crate) effects: Vec<String>,
}

impl Earth {
    /// The traffic target answers so from now on.
    fn lead(&mut self, to: &Answer) {
        self.answer = to.clone();
        self.version += 1;
        let on: Vec<String> = to.sites_on().map(ToString::to_string).collect();
        self.effects
            .push(format!("traffic to {}", on.join(" and ")));
    }

    pub(crate) fn well() -> Self {
        let site = |primary| Site {
            reachable: true,
            running: true,
            primary,
            asks: primary,
            mute: false,
            granted: None,
            grants: 0,
            fenced: false,
            severed: false,
            workloads: primary,
            epoch: Epoch(1),
            timeline: 1,
            kept_out: None,
        };
        Self {
            aws: site(true),
            gcp: site(false),
            written: 0x300_0000,
            received: 0x300_0000,
            answer: Answer::only(&aws(), &topology(), Epoch(1)),
            version: 1,
            pod: None,
            fenced_by: None,
            effects: Vec::new(),
        }
    }

    pub(crate) fn site(&mut self, name: &SiteName) -> &mut Site {
        if *name == aws() {
            &mut self.aws
        } else {
            &mut self.gcp
        }
    }

    /// The active site is gone as a whole.
    pub(crate) fn lose_aws(&mut self) {
        self.aws.reachable = false;
        self.aws.running = false;
    }

    /// How often a standby was made primary.
    pub(crate) fn promotions(&self) -> usize {
        self.effects.iter().filter(|e| *e == "promote gcp").count()
    }

    fn find(&mut self, target: &Target) -> Finding {
        let streams = self.aws.running && self.aws.reachable && !self.gcp.severed;
        let (written, received) = (self.written, self.received);
        let site = self.site(&target.site).clone();
        if !site.reachable {
            return Finding::Bad(ProbeFailure::Timeout(1000));
        }
        match target.kind {
            TargetKind::Agent => Finding::Good(Facts::Agent),
            TargetKind::Api if site.workloads => Finding::Good(Facts::Api),
            TargetKind::Api => Finding::Bad(ProbeFailure::Refused),
            TargetKind::Database if !site.running => Finding::Bad(ProbeFailure::Refused),
            TargetKind::Database if site.kept_out.is_some() && site.primary => {
                Finding::Bad(site.kept_out.unwrap_or(ProbeFailure::Refused))
            }
            TargetKind::Database => {
                let standby = !site.primary;
                let position = Lsn(if standby { received } else { written });
                let receiver = standby.then(|| ReceiverFacts {
                    status: if streams { "streaming" } else { "waiting" }.to_owned(),
                    last_message: streams.then_some(Duration::ZERO),
                });
                Finding::Good(Facts::Database(Box::new(DatabaseFacts {
                    role: if standby {
                        Role::Standby
                    } else {
                        Role::Primary
                    },
                    system_id: SystemId(7),
                    timeline: Timeline(site.timeline),
                    version: 150_018,
                    position,
                    replayed: position,
                    receiver,
                    senders: site.primary.then(|| sender(received)).into_iter().collect(),
                    heartbeat: None,
                    epoch: Some(site.epoch),
                    replay_pause: ReplayPause::None,
                    replay_state: ReplayState::AtEnd,
                    apply_delay: Duration::ZERO,
                    synchronous_names: String::new(),
                    commits_waiting: Vec::new(),
                    limits: [100, 8, 10, 0, 64],
                    write_took: site.primary.then_some(Duration::from_millis(2)),
                    blocked: None,
                })))
            }
        }
    }

    /// A quarter of a second of writes.
    pub(crate) fn write(&mut self) {
        if self.aws.running {
            self.written += 4096;
            if !self.gcp.severed {
                self.received = self.written;
            }
        }
    }

    fn look(&mut self, site: &SiteName, kind: TargetKind, now: MonoTime) -> Observation {
        let target = Target {
            site: site.clone(),
            kind,
        };
        Observation {
            finding: self.find(&target),
            target,
            vantage: Vantage::Controller,
            began: now,
            ended: now,
        }
    }

    /// What the controller's probes see.
    pub(crate) fn seen(&mut self, now: MonoTime) -> Vec<Observation> {
        let kinds = [TargetKind::Api, TargetKind::Database];
        let targets = [aws(), gcp()].into_iter();
        let targets = targets.flat_map(|site| kinds.map(|kind| (site.clone(), kind)));
        targets
            .map(|(site, kind)| self.look(&site, kind, now))
            .collect()
    }

    /// What the agents report that can be reached.
    pub(crate) fn reports(&mut self, now: MonoTime) -> Vec<Report> {
        let both = [(aws(), gcp()), (gcp(), aws())];
        let reports = both.iter().map(|(site, peer)| self.report(site, peer, now));
        reports.collect::<Vec<_>>().into_iter().flatten().collect()
    }

    fn report(&mut self, site: &SiteName, peer: &SiteName, now: MonoTime) -> Option<Report> {
        let state = self.site(site).clone();
        let peer_up = self.site(peer).reachable;
        let pod = self.pod.as_ref().filter(|_| *site == aws());
        let machine = pod.map(|(uid, _)| uid.clone());
        let saw = [
            self.look(site, TargetKind::Database, now),
            self.look(peer, TargetKind::Api, now),
            self.look(peer, TargetKind::Database, now),
        ];
        let database = if state.running {
            LocalDatabase::Up
        } else {
            LocalDatabase::Down {
                since: Duration::from_secs(1),
                why: "killed by signal 9".to_owned(),
            }
        };
        (state.reachable && !state.mute).then(|| Report {
            group: topology().group,
            site: site.clone(),
            epoch: state.epoch,
            asks: state.asks && state.primary && !state.fenced,
            instance: None,
            holds: false,
            log: None,
            facts: AgentFacts {
                vouched: None,
                deals_with: None,
                synchrony: None,
                epoch_written: state.primary.then_some(state.epoch),
                rehearsal: (!state.primary).then_some(SeverRehearsal {
                    ago: Duration::ZERO,
                    obstacle: None,
                }),
                slot: None,
                foreign: None,
                pending: Vec::new(),
                database,
                fenced: state.fenced.then_some(state.epoch),
                severed: state.severed.then_some(Epoch(2)),
                guarded: true,
                enforced_by: Enforcer::Guard,
                machine,
                peer: peer_up.then_some(Duration::ZERO),
                peer_clock: None,
            },
            observations: saw.iter().map(|o| SentObservation::pack(o, now)).collect(),
            credentials: CredentialFacts::default(),
            heard: Some(Heard {
                postmark: Postmark {
                    life: LIFE,
                    at: now.0,
                },
                ago: Duration::ZERO,
            }),
            mark: Postmark {
                life: LIFE,
                at: now.0,
            },
            wall: TestClock::wall_at(now),
            peer_mark: peer_up.then_some(Heard {
                postmark: Postmark {
                    life: PASSED_ON,
                    at: now.0,
                },
                ago: Duration::ZERO,
            }),
            guard: None,
            version: "0".to_owned(),
        })
    }

    fn obey(&mut self, order: &Order) -> Came {
        let position = Lsn(self.received);
        let before = self.site(&order.site).clone();
        let site = self.site(&order.site);
        let came = match order.what {
            What::Fence => {
                site.fenced = true;
                site.running = false;
                let said = "down; refused".to_owned();
                Came::Fenced { said }
            }
            What::Unfence => {
                site.fenced = false;
                Came::Done
            }
            What::Sever => {
                site.severed = true;
                Came::Severed {
                    position,
                    replayed: true,
                    vouched_ago: Some(Duration::from_secs(1)),
                }
            }
            What::Reconnect => {
                site.severed = false;
                Came::Done
            }
            What::Promote if order.check_only && !site.primary => Came::NotDone,
            What::Desist if !site.primary => Came::Done,
            What::Promote | What::Desist => {
                let already = site.primary;
                site.primary = true;
                site.severed = false;
                site.timeline = 2;
                site.epoch = order.epoch;
                Came::Promoted {
                    timeline: Timeline(2),
                    position,
                    already,
                }
            }
            What::StartWorkloads | What::StopWorkloads => {
                site.workloads = order.what == What::StartWorkloads;
                Came::Done
            }
            What::AwaitWorkloads => Came::Done,
        };
        let changed = *site != before;
        if changed && order.what == What::Fence {
            self.fenced_by = Some(order.mark.life);
        }
        if changed {
            self.effects.push(format!("{} {}", name(order), order.site));
        }
        came
    }
}

fn name(order: &Order) -> String {
    let what = serde_json::to_string(&order.what).unwrap();
    let check = if order.check_only { "check " } else { "" };
    format!("{check}{}", what.trim_matches('"'))
}

/// What goes wrong with a call.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// It does not happen, and this comes back.
    Instead(EffectError),
    /// It happens, and this comes back.
    After(EffectError),
}

/// The world and everything scripted about it.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) clock: Arc<TestClock>,
    pub(crate) earth: Mutex<Earth>,
    /// What goes wrong with the next calls of a name; the last one for ever, where it says so.
    pub(crate) faults: Mutex<BTreeMap<String, VecDeque<Fault>>>,
    pub(crate) always: Mutex<BTreeMap<String, EffectError>>,
    pub(crate) afterwards: Mutex<BTreeMap<String, EffectError>>,
    /// Every call, also one that changes nothing.
    pub(crate) calls: Mutex<Vec<String>>,
    /// The log, and the world just before each line.
    pub(crate) log: Mutex<Vec<(Vec<u8>, Earth)>>,
    /// What other places outside show, of the traffic target and at the front door.
    pub(crate) elsewhere: Mutex<Vec<(String, Result<SiteName, OutsideFault>)>>,
    /// A second traffic target, moved before the other: how often it is out of reach, and what it
    /// answers.
    pub(crate) edge: Mutex<Option<(usize, Answer)>>,
    /// Which line cannot be written, and none after it.
    pub(crate) full_after: Mutex<Option<usize>>,
    /// A line that is written does not come to its end.
    pub(crate) still: Mutex<bool>,
    /// A traffic target that makes a change some time after it took it.
    pub(crate) later: Mutex<Later>,
    slept: Arc<AtomicU64>,
    target: TargetName,
}

/// A change that a traffic target took and makes later.
#[derive(Debug, Default)]
pub(crate) struct Later {
    /// How often it says that it has not made the change yet.
    pub(crate) asked: usize,
    answer: Option<Answer>,
}

/// A controller on a stage.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) handle: Handle,
    pub(crate) control: JoinHandle<Result<(), JournalError>>,
    pub(crate) status: watch::Receiver<Option<Status>>,
    /// Rehearses only where a test lets it.
    pub(crate) rehearser: Rehearser,
    others: Vec<JoinHandle<()>>,
}

impl Running {
    /// From now on nobody looks, and nobody reports.
    pub(crate) fn nothing_comes(&self) {
        self.others[0].abort();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.abort();
        self.others.iter().for_each(JoinHandle::abort);
    }
}

impl Stage {
    pub(crate) fn new(earth: Earth) -> Arc<Self> {
        Arc::new(Self {
            clock: Arc::default(),
            earth: Mutex::new(earth),
            faults: Mutex::default(),
            always: Mutex::default(),
            afterwards: Mutex::default(),
            calls: Mutex::default(),
            log: Mutex::default(),
            elsewhere: Mutex::default(),
            edge: Mutex::default(),
            full_after: Mutex::default(),
            still: Mutex::default(),
            later: Mutex::default(),
            slept: Arc::default(),
            target: "dns".parse().unwrap(),
        })
    }

    pub(crate) fn fault(&self, call: &str, fault: Fault) {
        let mut faults = self.faults.lock().unwrap();
        faults.entry(call.to_owned()).or_default().push_back(fault);
    }

    pub(crate) fn always(&self, call: &str, error: EffectError) {
        self.always.lock().unwrap().insert(call.to_owned(), error);
    }

    /// From when the faults of a call are used up.
    pub(crate) fn then_always(&self, call: &str, error: EffectError) {
        self.afterwards
            .lock()
            .unwrap()
            .insert(call.to_owned(), error);
    }

    pub(crate) fn heal(&self) {
        self.always.lock().unwrap().clear();
    }

    pub(super) fn fate(&self, call: &str) -> Option<Fault> {
        tracing::info!(call, "asked");
        self.calls.lock().unwrap().push(call.to_owned());
        if let Some(error) = self.always.lock().unwrap().get(call) {
            return Some(Fault::Instead(error.clone()));
        }
        let next = self.faults.lock().unwrap().get_mut(call)?.pop_front();
        let afterwards = self.afterwards.lock().unwrap();
        next.or_else(|| afterwards.get(call).cloned().map(Fault::Instead))
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Earth) -> T) -> T {
        change(&mut self.earth.lock().unwrap())
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        let log = self.log.lock().unwrap();
        let read = |line: &Vec<u8>| read_line(line.trim_ascii_end()).unwrap().1;
        log.iter().map(|(line, _)| read(line)).collect()
    }

    /// How often the control loop went to sleep.
    pub(crate) fn slept(&self) -> u64 {
        self.slept.load(Ordering::Relaxed)
    }

    /// Every event of a step and every end of a plan, as words.
    pub(crate) fn story(&self) -> Vec<String> {
        let tell = |entry: &Entry| match &entry.body {
            Body::Step { step, event, .. } => Some(format!("{step} {}", event.name())),
            Body::Outcome { ending, .. } => {
                let words = format!("{ending:?}");
                Some(words.split([' ', '{']).next().unwrap().to_lowercase())
            }
            Body::Opened { .. }
            | Body::Command { .. }
            | Body::Decision { .. }
            | Body::Plan { .. }
            | Body::Window { .. }
            | Body::Instance { .. }
            | Body::Note { .. } => None,
        };
        self.entries().iter().filter_map(tell).collect()
    }

    pub(crate) fn state(&self) -> GroupState {
        let mut chain = Chain::default();
        for (line, _) in self.log.lock().unwrap().iter() {
            chain.take(line.trim_ascii_end()).unwrap();
        }
        chain.state().unwrap().clone()
    }

    /// Starts a controller on what the log says so far.
    pub(crate) async fn start(self: &Arc<Self>) -> Running {
        let mut chain = Chain::default();
        for (line, _) in self.log.lock().unwrap().iter() {
            chain.take(line.trim_ascii_end()).unwrap();
        }
        let stamp = Stamp {
            boot: "boot".to_owned(),
            settings: Digest::ZERO,
        };
        let clock: Arc<dyn Clock> = self.clock.clone();
        let store = Box::new(Tape(Arc::clone(self)));
        let mut topology = topology();
        let mut traffic: Vec<Arc<dyn Traffic>> = vec![self.clone()];
        if self.edge.lock().unwrap().is_some() {
            let edge = Edge(self.clone(), "edge".parse().unwrap());
            topology.traffic.insert(0, edge.1.clone());
            traffic.insert(0, Arc::new(edge));
        }
        let opened = Journal::open(store, chain, topology.clone(), Arc::clone(&clock), stamp).await;
        let (journal, writer) = opened.unwrap();
        let world = World {
            agents: self.clone(),
            probe: self.clone(),
            traffic,
            front: Some(self.clone()),
            infrastructure: Cluster::of(self),
            leadership: Leadership::alone(Arc::clone(&clock)),
            crash: None,
        };
        let brain = Brain::new(topology, policy(), &journal.state(), clock.now(), LIFE);
        let (handle, inputs) = Handle::new();
        let ways = (handle.clone(), inputs);
        let name = "fast.toml".to_owned();
        let counted = Arc::new(Counted {
            of: self.clock.clone(),
            slept: Arc::clone(&self.slept),
        });
        let (control, status) = Control::new(brain, journal, counted, Arc::new(world), ways, name);
        let feeding = tokio::spawn(feed(Arc::clone(self), handle.clone()));
        let writing = tokio::spawn(async { writer.run().await.unwrap_or_default() });
        Running {
            handle,
            rehearser: control.rehearser(),
            control: tokio::spawn(control.run()),
            status,
            others: vec![feeding, writing],
        }
    }

    /// Lets time pass until something is so; fails when it is not after ten minutes.
    pub(crate) async fn until(&self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let end = self.clock.elapsed() + Duration::from_secs(600);
        while !so(self) {
            let now = self.clock.elapsed();
            let story = self.story().join("\n");
            assert!(now < end, "{what}: not within ten minutes\n{story}");
            self.pass(Duration::from_millis(100)).await;
        }
    }

    /// Lets time pass.
    pub(crate) async fn pass(&self, wait: Duration) {
        let end = self.clock.elapsed() + wait;
        let mut woken = std::pin::pin!(self.clock.sleep(wait));
        while self.clock.elapsed() < end {
            // Everybody who can go on does, as far as answers of one another go.
            for _ in 0..160 {
                tokio::task::yield_now().await;
            }
            tokio::select! {
                biased;
                () = &mut woken => return,
                () = std::future::ready(()) => self.clock.advance(),
            }
        }
    }

    /// Waits until the `n`th plan has ended.
    pub(crate) async fn end_of_plan(&self) {
        let end = |stage: &Self| {
            let story = stage.story();
            let last = story.last().map(String::as_str);
            matches!(last, Some("done" | "undone" | "stuck"))
        };
        self.until("the end of the plan", end).await;
    }
}

/// The log in memory.
#[derive(Debug)]
struct Tape(Arc<Stage>);

#[async_trait]
impl LogStore for Tape {
    async fn append(&mut self, line: &[u8]) -> Result<(), AppendError> {
        if *self.0.still.lock().unwrap() {
            std::future::pending::<()>().await;
        }
        let earth = self.0.earth.lock().unwrap().clone();
        let mut log = self.0.log.lock().unwrap();
        let full = *self.0.full_after.lock().unwrap();
        if full.is_some_and(|full| log.len() >= full) {
            return Err(AppendError::Failed("no space left on device".to_owned()));
        }
        log.push((line.to_vec(), earth));
        Ok(())
    }
}

#[async_trait]
impl Agents for Stage {
    async fn order(&self, order: &Order, by: Way, within: Duration) -> OrderAnswer {
        let away = !self.change(|earth| earth.site(&order.site).reachable);
        if away {
            self.clock.sleep(within.min(Duration::from_secs(1))).await;
            return Err(EffectError::Unknown("no answer".to_owned()));
        }
        if by == Way::Relayed && !self.change(|earth| earth.gcp.reachable) {
            return Err(EffectError::Failed("nobody relays".to_owned()));
        }
        match self.fate(&name(order)) {
            Some(Fault::Instead(error)) => Err(error),
            Some(Fault::After(error)) => {
                self.change(|earth| earth.obey(order));
                Err(error)
            }
            None => Ok(self.change(|earth| earth.obey(order))),
        }
    }
}

#[async_trait]
impl Probe for Stage {
    async fn look(&self, target: &Target, _within: Duration) -> Finding {
        if self.fate("look").is_some() {
            return Finding::Bad(ProbeFailure::Timeout(1000));
        }
        self.change(|earth| earth.find(target))
    }

    async fn anchors(&self, _within: Duration) -> (u32, u32) {
        (3, 3)
    }
}

#[async_trait]
impl Traffic for Stage {
    fn name(&self) -> &TargetName {
        &self.target
    }

    async fn read(&self) -> Result<Versioned, EffectError> {
        match self.fate("read traffic") {
            Some(Fault::Instead(error) | Fault::After(error)) => Err(error),
            None => Ok(self.change(|earth| Versioned {
                answer: earth.answer.clone(),
                token: earth.version.to_string(),
            })),
        }
    }

    async fn apply(
        &self,
        from: &Versioned,
        to: &Answer,
        _note: &str,
        still: Still<'_>,
    ) -> Result<Receipt, EffectError> {
        let fate = self.fate("move traffic");
        if let Some(Fault::Instead(error)) = fate {
            return Err(error);
        }
        still()?;
        let mut later = self.later.lock().unwrap();
        self.change(|earth| {
            if from.token != earth.version.to_string() {
                return Err(EffectError::Conflict("another version is there".to_owned()));
            }
            let version = earth.version + 1;
            if later.asked > 0 {
                later.answer = Some(to.clone());
            } else {
                earth.lead(to);
            }
            match fate {
                Some(Fault::After(error)) => Err(error),
                Some(Fault::Instead(_)) | None => {
                    Ok(Receipt::default().named("change", version.to_string()))
                }
            }
        })
    }

    async fn confirm(&self, receipt: &Receipt) -> Result<Confirmation, EffectError> {
        match self.fate("confirm traffic") {
            Some(Fault::Instead(error)) => return Err(error),
            Some(Fault::After(void)) => {
                self.later.lock().unwrap().answer = None;
                return Ok(Confirmation::Void(void.to_string()));
            }
            None => {}
        }
        let mut later = self.later.lock().unwrap();
        let due = (later.asked == 0).then(|| later.answer.take()).flatten();
        later.asked = later.asked.saturating_sub(1);
        self.change(|earth| {
            if let Some(answer) = due {
                earth.lead(&answer);
            }
            let written: u64 = receipt.ids["change"].parse().unwrap();
            Ok(if written <= earth.version {
                Confirmation::Made
            } else {
                Confirmation::Pending
            })
        })
    }

    async fn rehearse(&self, _from: &Versioned) -> Result<(), EffectError> {
        Ok(())
    }

    async fn verify_outside(&self) -> Vec<OutsideView> {
        let own = OutsideView {
            place: "192.0.2.53".to_owned(),
            answer: Ok(self.change(|earth| earth.answer.clone())),
        };
        let others = self.elsewhere.lock().unwrap().clone();
        let others = others.into_iter().map(|(place, seen)| OutsideView {
            place,
            answer: seen.map(|site| Answer::only(&site, &topology(), Epoch(2))),
        });
        [own].into_iter().chain(others).collect()
    }
}

/// The second traffic target of a stage.
#[derive(Debug)]
struct Edge(Arc<Stage>, TargetName);

impl Edge {
    fn with<T>(&self, with: impl FnOnce(&mut (usize, Answer)) -> T) -> T {
        with(self.0.edge.lock().unwrap().as_mut().unwrap())
    }
}

#[async_trait]
impl Traffic for Edge {
    fn name(&self) -> &TargetName {
        &self.1
    }

    async fn read(&self) -> Result<Versioned, EffectError> {
        self.with(|(lost, answer)| {
            if *lost > 0 {
                *lost -= 1;
                return Err(EffectError::Failed("no connection".to_owned()));
            }
            let answer = answer.clone();
            let token = String::new();
            Ok(Versioned { answer, token })
        })
    }

    async fn apply(
        &self,
        _from: &Versioned,
        to: &Answer,
        _note: &str,
        still: Still<'_>,
    ) -> Result<Receipt, EffectError> {
        still()?;
        self.with(|(_, answer)| *answer = to.clone());
        let on: Vec<String> = to.sites_on().map(ToString::to_string).collect();
        let effect = format!("edge to {}", on.join(" and "));
        self.0.change(|earth| earth.effects.push(effect));
        Ok(Receipt::default().named("change", "edge"))
    }

    async fn confirm(&self, _receipt: &Receipt) -> Result<Confirmation, EffectError> {
        Ok(Confirmation::Made)
    }

    async fn rehearse(&self, _from: &Versioned) -> Result<(), EffectError> {
        Ok(())
    }

    async fn verify_outside(&self) -> Vec<OutsideView> {
        let answer = self.with(|(_, answer)| answer.clone());
        vec![OutsideView {
            place: "192.0.2.99".to_owned(),
            answer: Ok(answer),
        }]
    }
}

#[async_trait]
impl FrontDoor for Stage {
    async fn enter(
        &self,
        expected: &SiteName,
        _within: Duration,
    ) -> Vec<(String, Result<SiteName, OutsideFault>)> {
        let serves = self.change(|earth| {
            let on = earth.answer.is_only(expected);
            let site = earth.site(expected);
            on && site.reachable && site.workloads && site.running && site.primary
        });
        let entered = if serves && self.fate("enter").is_none() {
            Ok(expected.clone())
        } else {
            Err(OutsideFault::Unseen("nobody answers".to_owned()))
        };
        let others = self.elsewhere.lock().unwrap().clone();
        let own = ("192.0.2.80".to_owned(), entered);
        [own].into_iter().chain(others).collect()
    }
}

/// Probes and agents' reports, four times a second.
/// Each controller here has this one life: reports reach it at once.
pub(crate) const LIFE: u64 = 1;

/// The life in a mark that came through the peer agent.
pub(crate) const PASSED_ON: u64 = 2;

async fn feed(stage: Arc<Stage>, handle: Handle) {
    loop {
        stage.clock.sleep(Duration::from_millis(250)).await;
        if round(&stage, &handle).await.is_none() {
            return;
        }
    }
}

async fn round(stage: &Stage, handle: &Handle) -> Option<()> {
    let now = stage.clock.now();
    let (seen, reports) = stage.change(|earth| {
        earth.write();
        (earth.seen(now), earth.reports(now))
    });
    handle
        .tell(Input::Anchors(3, 3, CredentialFacts::default()))
        .await
        .ok()?;
    handle.tell(Input::Observed(seen)).await.ok()?;
    for report in reports {
        let site = report.site.clone();
        let answer = handle
            .ask(|answer| Input::Reported(Box::new(Written::new(report)), answer))
            .await;
        hear(stage, &site, &answer.ok()?);
    }
    Some(())
}

/// An agent learns of the epoch in which its own site holds the right.
fn hear(stage: &Stage, site: &SiteName, answer: &ReportAnswer) {
    if answer.holder.as_ref() == Some(site) {
        stage.change(|earth| {
            let state = earth.site(site);
            state.epoch = state.epoch.max(answer.epoch);
            if let Some(Ok(grant)) = &answer.grant {
                state.grants += 1;
                state.granted = Some(grant.epoch);
            }
        });
    }
}
