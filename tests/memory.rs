//! How much memory one group takes at most, whatever is reported about it. A process of its own,
//! because it counts what the whole process allocates.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test's helpers fail the test, and the figures are worth seeing"
)]

use std::alloc::System;
use std::time::Duration;

use cap::Cap;
use failover::app::brain::Brain;
use failover::engine::answer::Answer;
use failover::engine::chain::{Body, Chain, Digest, Entry, FORMAT};
use failover::engine::credential::{CertificateEnd, CredentialFacts};
use failover::engine::decision::decide;
use failover::engine::instance::{Instance, InstanceChange, Vouched};
use failover::engine::lease::Enforcer;
use failover::engine::observation::{
    DatabaseFacts, Facts, Finding, Heartbeat, Observation, ProbeFailure, ReceiverFacts,
    ReplayPause, ReplayState, SenderFacts,
};
use failover::engine::policy::Policy;
use failover::engine::rehearsal::{Subject, TroubleKind};
use failover::engine::saga::GroupState;
use failover::engine::situation::{AgentFacts, LocalDatabase, SeverRehearsal};
use failover::engine::skew::Skew;
use failover::engine::synchrony::{SyncFacts, WindowChange};
use failover::engine::topology::{GroupName, Role, Target, TargetKind, Topology, Vantage};
use failover::engine::units::{Epoch, Lsn, MonoTime, SystemId, Timeline, WallTime};
use failover::wire::written::Written;
use failover::wire::{
    Heard, ObserverReport, PlanStatus, Postmark, Report, SentObservation, Status,
};

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// The most that one group may take: what the parts below were measured to add up to, rounded up.
const MOST: usize = 96 * 1024;

const LIFE: u64 = 7;
const BEGAN: MonoTime = MonoTime(Duration::from_secs(1_000_000));

/// Names as long as they may be.
fn long(start: &str) -> String {
    format!("{start:x<40}")
}

fn topology() -> Topology {
    let targets = ["dns", "edge"];
    Topology {
        group: long("shop").parse::<GroupName>().unwrap(),
        first: long("aws").parse().unwrap(),
        second: long("gcp").parse().unwrap(),
        traffic: targets.map(|name| long(name).parse().unwrap()).into(),
    }
}

/// A text that is longer than any that is kept.
fn flood(start: &str) -> String {
    format!("{start} {}", "é\u{1b}".repeat(500))
}

/// The worst that can be reported.
struct Bad {
    brain: Brain,
    chain: Chain,
    now: MonoTime,
    count: u64,
}

impl Bad {
    fn new() -> Self {
        let fast = include_str!("../policies/fast.toml");
        let policy = Policy::read("fast.toml", fast).unwrap();
        let group = GroupState::new(&topology());
        let brain = Brain::new(topology(), policy, &group, BEGAN, LIFE)
            .observed_by([long("paris").parse().unwrap()])
            .holding_against(false, topology().traffic);
        let (chain, now) = (Chain::default(), BEGAN);
        let mut bad = Self {
            brain,
            chain,
            now,
            count: 0,
        };
        bad.log(Body::Opened {
            topology: topology(),
            format: Some(FORMAT),
        });
        bad.log(Body::Window {
            change: WindowChange::Closed {
                entry: 1,
                from: Lsn(0),
            },
        });
        for site in topology().sites() {
            let change = InstanceChange {
                site: site.clone(),
                instance: Instance { id: 1, place: 7 },
                before: None,
            };
            bad.log(Body::Instance { change });
        }
        bad
    }

    fn log(&mut self, body: Body) {
        let entry = Entry {
            seq: self.chain.entries + 1,
            at: self.wall(),
            mono_ms: 0,
            boot: "boot".to_owned(),
            group: topology().group,
            epoch: Epoch(1),
            actor: "controller".to_owned(),
            version: "0".to_owned(),
            settings: Digest::ZERO,
            body: body.clipped(),
            previous: self.chain.head,
        };
        self.chain.append(&entry).unwrap();
        self.brain.log_ends(self.chain.recent.clone());
    }

    fn group(&self) -> GroupState {
        self.chain.state().unwrap().clone()
    }

    fn wall(&self) -> WallTime {
        WallTime(1_700_000_000_000 + u64::try_from(self.now.0.as_millis()).unwrap())
    }

    fn pass(&mut self, wait: Duration) {
        self.now = self.now.plus(wait);
        self.count += 1;
    }

    fn database(&self, role: Role, crowd: usize) -> DatabaseFacts {
        let senders = (0..crowd).map(|number| SenderFacts {
            name: flood(&format!("reader {number}")),
            state: flood("streaming"),
            flushed: Some(Lsn(self.count * 100)),
            sync_state: flood("async"),
        });
        DatabaseFacts {
            role,
            system_id: SystemId(7),
            timeline: Timeline(1),
            version: 150_018,
            position: Lsn(self.count * 1000),
            replayed: Lsn(self.count * 900),
            receiver: Some(ReceiverFacts {
                status: flood("streaming"),
                last_message: None,
            }),
            senders: senders.collect(),
            heartbeat: Some(Heartbeat {
                sequence: u64::MAX,
                site: topology().first,
                written: WallTime(u64::MAX),
            }),
            epoch: Some(Epoch(1)),
            replay_pause: ReplayPause::None,
            replay_state: ReplayState::Held {
                by: flood("Lock/relation"),
            },
            apply_delay: Duration::ZERO,
            synchronous_names: flood("ANY 1"),
            commits_waiting: (0..crowd)
                .map(|number| flood(&format!("{} {number}", self.count)))
                .collect(),
            limits: [100, 8, 10, 0, 64],
            write_took: None,
            blocked: Some(flood("a lock")),
        }
    }

    /// What anybody sees of a target.
    fn finding(&self, site: usize, kind: TargetKind) -> Finding {
        match kind {
            // Every other time the facts, so that both are kept: what it said and that it failed.
            TargetKind::Database if self.count.is_multiple_of(2) => {
                let role = [Role::Primary, Role::Standby][site];
                Finding::Good(Facts::Database(Box::new(self.database(role, 40))))
            }
            TargetKind::Database => Finding::Bad(ProbeFailure::Blocked(flood("a lock"))),
            TargetKind::Api | TargetKind::Agent => {
                Finding::Bad(ProbeFailure::Unreachable(flood("no route")))
            }
        }
    }

    fn seen(&self) -> Vec<SentObservation> {
        let each = topology().sites().map(Clone::clone);
        let each = each.into_iter().enumerate();
        each.flat_map(|(index, site)| {
            [TargetKind::Api, TargetKind::Database].map(|kind| SentObservation {
                target: Target {
                    site: site.clone(),
                    kind,
                },
                began: Duration::ZERO,
                ended: Duration::ZERO,
                finding: self.finding(index, kind),
            })
        })
        .collect()
    }

    /// Our own looks and an observer's.
    fn looks(&mut self) {
        let sites = topology();
        let sites = sites.sites();
        for sent in self.seen() {
            let seen = sent.unpack(Vantage::Controller, self.now, &sites);
            self.brain.observe(&seen);
        }
        let report = ObserverReport {
            group: topology().group,
            name: long("paris").parse().unwrap(),
            observations: self.seen(),
            heard: Some(self.heard()),
            version: flood("0"),
        };
        let mut written = Written::new(report);
        written.by.program = flood("9");
        let name = written.message.name.clone();
        self.brain.observed(written.message, self.now).unwrap();
        self.brain.observer_runs(name, written.by.clipped());
    }

    fn heard(&self) -> Heard {
        let at = self.now.0;
        let postmark = Postmark { life: LIFE, at };
        let ago = Duration::ZERO;
        Heard { postmark, ago }
    }

    fn credentials(&self) -> CredentialFacts {
        let ends = (0..40).map(|number| CertificateEnd {
            owner: flood(&format!("{number} {}", self.count)),
            until: self.wall(),
        });
        CredentialFacts {
            ends: ends.collect(),
            refused: vec![flood("agent.pem"); 40],
        }
    }

    fn agent(&self, instance: u64) -> AgentFacts {
        AgentFacts {
            database: LocalDatabase::Down {
                since: Duration::ZERO,
                why: flood("signal 9"),
            },
            fenced: Some(Epoch(1)),
            severed: None,
            guarded: true,
            enforced_by: Enforcer::Guard,
            peer: Some(Duration::ZERO),
            peer_clock: Some(Skew {
                ahead_ms: 90_000,
                within: Duration::ZERO,
            }),
            synchrony: Some(SyncFacts {
                closed: None,
                waiting: true,
                confirmed: Some(Lsn(self.count * 5000)),
                stalled: Duration::ZERO,
                obstacle: Some(flood("no standby")),
            }),
            epoch_written: Some(Epoch(1)),
            rehearsal: Some(SeverRehearsal {
                ago: Duration::ZERO,
                obstacle: Some(flood("no")),
            }),
            slot: Some(flood("slot")),
            vouched: Some(Vouched {
                instance: Some(Instance {
                    id: 1,
                    place: instance,
                }),
                age: Duration::ZERO,
            }),
            deals_with: None,
            foreign: Some(flood("process 7")),
            pending: vec![flood("postgres.port"); 40],
            machine: Some(flood("pod")),
        }
    }

    /// Both agents report, and copies of them.
    fn reports(&mut self) {
        let group = self.group();
        for site in topology().sites() {
            for place in [7, self.count] {
                let instance = Some(Instance { id: 1, place });
                let report = Report {
                    group: topology().group,
                    site: site.clone(),
                    epoch: Epoch(1),
                    asks: true,
                    instance,
                    holds: false,
                    log: None,
                    facts: self.agent(place),
                    observations: self.seen(),
                    credentials: self.credentials(),
                    heard: Some(self.heard()),
                    mark: Postmark {
                        life: place,
                        at: self.now.0,
                    },
                    wall: self.wall(),
                    peer_mark: Some(self.heard()),
                    guard: None,
                    version: flood("0"),
                };
                let mut written = Written::new(report);
                written.by.program = flood("9");
                written.by = written.by.clone().clipped();
                written.message.guard = Some(written.by.clone());
                self.brain.agent_runs(&written, &group);
                let (now, wall) = (self.now, self.wall());
                self.brain.report(written.message, &group, now, wall);
            }
        }
    }

    fn rehearsals(&mut self) {
        for target in topology().traffic {
            let trouble = |start: &str| Some((TroubleKind::Astray, flood(start)));
            let place = |number: u64| Subject::Place {
                target: target.clone(),
                place: flood(&format!("{number} {}", self.count)),
            };
            let own = Subject::Traffic {
                target: target.clone(),
            };
            let mut found = vec![
                (own, trouble("refused")),
                (Subject::FrontDoor, trouble("elsewhere")),
                (Subject::Connections, trouble("none")),
            ];
            found.extend((0..50).map(|number| (place(number), trouble("elsewhere"))));
            self.brain.rehearsed(self.now, found);
            let answer = Answer::only(&topology().first, &topology(), Epoch(1));
            self.brain.traffic_says(target, answer);
        }
    }

    fn status(&mut self) -> Status {
        let (group, now, wall) = (self.group(), self.now, self.wall());
        let situation = self.brain.situation(&group, false, None, now, wall);
        let decision = decide(&situation, self.brain.policy());
        Status {
            schema_version: 1,
            at: wall,
            version: "0".to_owned(),
            fleet: self.brain.fleet(),
            policy: "fast.toml".to_owned(),
            data: Some(self.brain.policy().data.clone()),
            situation,
            decision,
            plan: PlanStatus::of(&group),
            log: (self.chain.entries, self.chain.head.to_string()),
        }
    }
}

/// Tells how much more is allocated than before.
fn tell(what: &str, before: &mut usize) -> usize {
    let now = MEMORY.allocated();
    let more = now.saturating_sub(*before);
    println!("{:>8.1} KiB  {what}", kib(more));
    *before = now;
    more
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn kib(bytes: usize) -> f64 {
    bytes as f64 / 1024.0
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_group_takes_96_kib_at_most_whatever_is_reported_about_it() {
    // What is allocated once, by whatever comes first.
    drop(Bad::new().status());
    println!("of one group, by what was reported:");
    let begun = MEMORY.allocated();
    let mut before = begun;
    let mut bad = Bad::new();
    let mut total = tell(
        "at first, with its policy and the state by the log",
        &mut before,
    );
    for _ in 0..3000 {
        let text = flood("note");
        let code = "sample".to_owned();
        bad.log(Body::Note { code, text });
    }
    total += tell("the log", &mut before);
    for _ in 0..200 {
        bad.pass(SECOND);
        bad.looks();
    }
    total += tell("looks of the controller and an observer", &mut before);
    for _ in 0..200 {
        bad.pass(SECOND);
        bad.reports();
    }
    total += tell("reports of the agents", &mut before);
    for _ in 0..200 {
        bad.pass(SECOND);
        bad.rehearsals();
        let (own, anchors) = (bad.credentials(), (3, 3));
        bad.brain.surroundings(anchors, own);
    }
    total += tell(
        "rehearsals, and the controller's own certificates",
        &mut before,
    );
    for _ in 0..6000 {
        bad.pass(SECOND);
        let facts = bad.database(Role::Primary, 1);
        let site = topology().first;
        let sites = topology();
        let finding = Finding::Good(Facts::Database(Box::new(facts)));
        bad.brain.observe(&Observation {
            target: Target {
                site,
                kind: TargetKind::Database,
            },
            vantage: Vantage::Controller,
            began: bad.now,
            ended: bad.now,
            finding: finding.clipped(&sites.sites()),
        });
    }
    for round in 0..4u32 {
        bad.pass(SECOND * (round % 2));
        bad.looks();
        bad.reports();
    }
    total += tell("an hour and a half of positions", &mut before);
    let status = bad.status();
    total += tell("what is shown", &mut before);
    println!("{:>8.1} KiB  in total", kib(total));
    assert!(status.situation.sites.len() == 2 && bad.count > 0);
    assert!(total <= MOST, "{total} bytes, the limit is {MOST}");
}
