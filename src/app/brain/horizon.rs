//! Until when nothing that the controller knows changes by itself.

use std::time::Duration;

use super::Brain;
use crate::engine::horizon::{horizon, passes};
use crate::engine::situation::Situation;
use crate::engine::units::MonoTime;

impl Brain {
    /// How long a situation assembled at `now`, and what follows from it, stays the same if nothing
    /// new is learned; up to a millisecond less, because ages are whole milliseconds.
    pub fn horizon(&self, situation: &Situation, now: MonoTime) -> Option<Duration> {
        let known = horizon(situation, &self.policy);
        known.into_iter().chain(self.unreached_in(now)).min()
    }

    /// How long until an answer of a site no longer shows that it is reached: a situation says only
    /// whether it is.
    fn unreached_in(&self, now: MonoTime) -> Option<Duration> {
        let limit = self.policy.detect.reached_for();
        let reached = self.reached.values();
        let left = reached.filter_map(|last| passes(now.since(*last), limit));
        left.min()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::reports::tests::{LIFE, primary, report, saw, topology};
    use super::*;
    use crate::engine::credential::{CertificateEnd, CredentialFacts, URGENT, WARNED};
    use crate::engine::decision::{Signature, decide};
    use crate::engine::detector::{Health, State};
    use crate::engine::horizon::{ages, earliest, ends, limits};
    use crate::engine::instance::Instance;
    use crate::engine::observation::{
        Facts, Finding, Observation, ProbeFailure, ReceiverFacts, ReplayState,
    };
    use crate::engine::policy::{ApiFailure, Policy};
    use crate::engine::rearm::rearms;
    use crate::engine::reason::Code;
    use crate::engine::rehearsal::{Subject, TroubleKind};
    use crate::engine::saga::{GroupState, Hold, Moment};
    use crate::engine::situation::samples::{aws, gcp, healthy, seconds};
    use crate::engine::situation::{AgentFacts, LocalDatabase};
    use crate::engine::topology::{Role, SiteName, Target, TargetKind, Vantage};
    use crate::engine::units::{Bytes, Lsn, WallTime};
    use crate::sim::chance::Chance;
    use crate::wire::{Heard, Postmark, Report, SentObservation};

    const MILLI: Duration = Duration::from_millis(1);

    /// A policy no two of whose limits are equal.
    fn policy() -> Policy {
        let fast = include_str!("../../../policies/fast.toml");
        let mut policy = Policy::read("fast", fast).unwrap();
        policy.detect.recover_after = seconds(5);
        policy.automation.startup_grace = seconds(4);
        policy.automation.cooldown = seconds(7);
        policy.automation.local_restart_grace = Duration::from_millis(2500);
        policy.automation.api_failure = ApiFailure::Failover;
        policy.data.max_loss_window = seconds(9);
        policy.data.max_loss = Bytes::mib(4);
        policy
    }

    /// What a look at a target finds.
    #[derive(Debug, Clone, Copy)]
    enum Found {
        Well,
        Failing,
        Mute,
        DiskFull,
        /// Nobody looks.
        Nothing,
    }

    /// How things are for a while.
    #[derive(Debug)]
    struct Phase {
        databases: [Found; 2],
        services: [Found; 2],
        /// What each agent says of its database, if it reports.
        agents: [Option<LocalDatabase>; 2],
        observed: bool,
        promoted: bool,
        streams: bool,
    }

    /// What must not change unseen.
    type Essence = (
        Signature,
        Vec<(Code, Option<SiteName>, bool)>,
        Vec<Code>,
        Vec<State>,
        Vec<bool>,
    );

    /// Hides ages from a horizon.
    type Hide = fn(&mut Situation);

    /// What a wrong horizon leaves out.
    #[derive(Debug, Clone, Copy)]
    enum Blind {
        Nothing,
        Limit(usize),
        Ages(Hide),
        Ends,
        Reached,
    }

    struct Bench {
        brain: Brain,
        group: GroupState,
        chance: Chance,
        phase: Phase,
        now: MonoTime,
        position: u64,
        blind: Blind,
        /// Of the moments at which it woke up, those at which something had changed.
        changed: u64,
    }

    const BEGAN: MonoTime = MonoTime(Duration::from_secs(1000));

    impl Bench {
        fn new(seed: u64, blind: Blind) -> Self {
            let mut chance = Chance::new(seed);
            let group = GroupState::new(&topology());
            let mut brain = Brain::new(topology(), policy(), &group, BEGAN, LIFE)
                .observed_by(["paris".parse().unwrap()]);
            let until = |left: Duration, chance: &mut Chance| {
                let left = left + chance.millis(0, 60_000);
                Self::wall(BEGAN).0 + u64::try_from(left.as_millis()).unwrap()
            };
            let limit = chance.pick(&[WARNED, URGENT]).unwrap();
            let ends = vec![CertificateEnd {
                owner: "authority".to_owned(),
                until: WallTime(until(limit, &mut chance)),
            }];
            let own = CredentialFacts {
                ends,
                ..CredentialFacts::default()
            };
            brain.surroundings((1, 1), own);
            let phase = Phase::drawn(&mut chance);
            Self {
                brain,
                group,
                chance,
                phase,
                now: BEGAN,
                position: 1000,
                blind,
                changed: 0,
            }
        }

        fn wall(now: MonoTime) -> WallTime {
            WallTime(1_700_000_000_000 + u64::try_from(now.0.as_millis()).unwrap())
        }

        fn known(&mut self, now: MonoTime) -> (Situation, Essence) {
            let wall = Self::wall(now);
            let situation = self.brain.situation(&self.group, false, None, now, wall);
            let decision = decide(&situation, self.brain.policy());
            let gates = decision.gates.iter().map(|gate| {
                let reason = &gate.reason;
                (reason.code, reason.site.clone(), gate.open)
            });
            let broken = decision.broken_promises.iter().map(|reason| reason.code);
            let sites = situation.sites.values();
            let state = |health: &Health| health.state;
            let states = sites
                .clone()
                .flat_map(|site| site.health.values().map(state));
            let rearms = rearms(&situation, self.brain.policy());
            let flags = sites.map(|site| site.reached).chain([rearms]);
            let essence = (
                decision.signature(),
                gates.collect(),
                broken.collect(),
                states.collect(),
                flags.collect(),
            );
            (situation, essence)
        }

        fn horizon(&self, situation: &Situation) -> Option<Duration> {
            let (policy, mut situation) = (self.brain.policy(), situation.clone());
            let mut limits = limits(policy);
            let (mut due, mut unreached) =
                (ends(&situation, policy), self.brain.unreached_in(self.now));
            match self.blind {
                Blind::Nothing => return self.brain.horizon(&situation, self.now),
                Blind::Limit(index) => drop(limits.remove(index)),
                Blind::Ages(hide) => hide(&mut situation),
                Blind::Ends => due.clear(),
                Blind::Reached => unreached = None,
            }
            let aging = earliest(&ages(&situation), &limits);
            aging.into_iter().chain(due).chain(unreached).min()
        }

        /// Decides as the control loop does until `next`, and looks whether anything changes
        /// between two of these moments.
        fn rest(&mut self, next: MonoTime) -> Result<(), String> {
            let mut before: Option<Essence> = None;
            while self.now < next {
                let (situation, essence) = self.known(self.now);
                self.changed += u64::from(before.is_some_and(|before| before != essence));
                let horizon = self.horizon(&situation);
                let due = horizon.map_or(next, |left| self.now.plus(left).min(next));
                let span = self.now.until(due);
                for at in [self.now.plus(span / 2), due.minus(MILLI)] {
                    let (_, then) = self.known(at.max(self.now));
                    if then != essence {
                        return Err(format!(
                            "{:?} after {:?}, before {horizon:?} have passed:\n{essence:?}\n{then:?}",
                            self.now.until(at),
                            self.now,
                        ));
                    }
                }
                (self.now, before) = (due, Some(essence));
            }
            Ok(())
        }

        /// Everybody who looks does so now.
        fn look(&mut self) {
            self.position += self.chance.below(1 << 20);
            for (index, site) in [aws(), gcp()].into_iter().enumerate() {
                for kind in [TargetKind::Api, TargetKind::Database] {
                    let began = self.now.minus(self.chance.millis(0, 400)).max(BEGAN);
                    if let Some(finding) = self.finding(index, kind) {
                        let site = site.clone();
                        self.brain.observe(&Observation {
                            target: Target { site, kind },
                            vantage: Vantage::Controller,
                            began,
                            ended: self.now,
                            finding,
                        });
                    }
                }
                if let Some(database) = self.phase.agents[index].clone() {
                    self.report(index, site, database);
                }
            }
            if self.phase.observed {
                let seen = self.seen();
                let told = report("paris", seen);
                let heard = Some(self.heard());
                self.brain
                    .observed(crate::wire::ObserverReport { heard, ..told }, self.now)
                    .unwrap();
            }
        }

        fn heard(&mut self) -> Heard {
            let at = self.now.minus(self.chance.millis(0, 50)).0;
            let postmark = Postmark { life: LIFE, at };
            let ago = Duration::ZERO;
            Heard { postmark, ago }
        }

        /// What another than the controller sees of both sites.
        fn seen(&mut self) -> Vec<SentObservation> {
            let mut seen = Vec::new();
            for (index, site) in ["aws", "gcp"].into_iter().enumerate() {
                for kind in [TargetKind::Api, TargetKind::Database] {
                    let age = self.chance.millis(0, 300);
                    let finding = self.finding(index, kind);
                    seen.extend(finding.map(|finding| saw(site, kind, finding, age)));
                }
            }
            seen
        }

        fn finding(&self, index: usize, kind: TargetKind) -> Option<Finding> {
            let found = match kind {
                TargetKind::Api => self.phase.services[index],
                TargetKind::Database => self.phase.databases[index],
                TargetKind::Agent => Found::Nothing,
            };
            let text = "sample".to_owned();
            Some(match (found, kind) {
                (Found::Nothing, _) => return None,
                (Found::Well, TargetKind::Database) => self.answer(index),
                (Found::Well, _) => Finding::Good(Facts::Api),
                (Found::Failing, _) => Finding::Bad(ProbeFailure::Timeout(1000)),
                (Found::Mute, _) => Finding::Bad(ProbeFailure::Unauthorized(text)),
                (Found::DiskFull, _) => Finding::Bad(ProbeFailure::DiskFailed(text)),
            })
        }

        fn answer(&self, index: usize) -> Finding {
            let Finding::Good(Facts::Database(mut facts)) = primary() else {
                unreachable!("a primary answers");
            };
            facts.position = Lsn(self.position);
            facts.replayed = facts.position;
            if index == 0 {
                facts.senders = vec![crate::engine::observation::SenderFacts {
                    name: "gcp".to_owned(),
                    state: "streaming".to_owned(),
                    flushed: Some(Lsn(self.position)),
                    sync_state: "async".to_owned(),
                }];
            } else if !self.phase.promoted {
                facts.role = Role::Standby;
                facts.replay_state = ReplayState::AtEnd;
                facts.receiver = self.phase.streams.then(|| ReceiverFacts {
                    status: "streaming".to_owned(),
                    last_message: None,
                });
            }
            Finding::Good(Facts::Database(facts))
        }

        fn report(&mut self, index: usize, site: SiteName, database: LocalDatabase) {
            let sample = healthy().sites[&site].agent.clone().unwrap().fact.own();
            let mut facts = AgentFacts {
                database,
                guarded: self.chance.percent(50),
                peer: Some(self.chance.millis(0, 3500)),
                ..sample
            };
            if let Some(rehearsal) = &mut facts.rehearsal {
                rehearsal.ago = self.chance.millis(100_000, 121_000);
            }
            let other = self.chance.percent(5);
            let instance = Instance {
                id: u128::from(other),
                place: 7,
            };
            let sent = Report {
                group: "shop".parse().unwrap(),
                epoch: self.group.epoch,
                asks: index == 0 && self.chance.percent(90),
                instance: Some(instance),
                holds: false,
                log: None,
                facts,
                observations: self.seen(),
                credentials: CredentialFacts::default(),
                heard: Some(self.heard()),
                mark: Postmark {
                    life: 1,
                    at: self.now.0,
                },
                wall: Self::wall(self.now),
                peer_mark: None,
                guard: None,
                version: "0".to_owned(),
                site,
            };
            let wall = Self::wall(self.now);
            self.brain.report(sent, &self.group, self.now, wall);
        }

        /// Things are otherwise from now on.
        fn turn(&mut self) {
            self.phase = Phase::drawn(&mut self.chance);
            let moment = |now: MonoTime| Moment {
                wall: Self::wall(now),
                mono: now.0,
                boot: String::new(),
            };
            let lasting = self.chance.below(20_000);
            self.group.hold = self.chance.percent(30).then(|| Hold {
                operator: "alice".to_owned(),
                reason: "maintenance".to_owned(),
                until: WallTime(Self::wall(self.now).0 + lasting),
                since: moment(self.now),
            });
            self.group.disarmed = self.chance.percent(20);
            let ended = self.now.minus(self.chance.millis(0, 5000));
            self.group.last_plan = self.chance.percent(40).then(|| moment(ended));
            let counts = Instance { id: 0, place: 7 };
            self.group.instances = BTreeMap::from([(aws(), counts), (gcp(), counts)]);
            let kinds = [TroubleKind::Silent, TroubleKind::Astray];
            let trouble = self.chance.pick(&kinds).unwrap();
            let trouble = (trouble, "sample".to_owned());
            let trouble = self.chance.percent(60).then_some(trouble);
            let subject = if self.chance.percent(50) {
                Subject::FrontDoor
            } else {
                Subject::Infrastructure
            };
            self.brain.rehearsed(self.now, vec![(subject, trouble)]);
        }

        fn walk(&mut self) -> Result<(), String> {
            for _ in 0..6 {
                self.turn();
                let end = self.now.plus(self.chance.millis(1000, 25_000));
                // Sometimes nothing is learned for a while.
                let quiet = self.chance.percent(30);
                while self.now < end {
                    let most = if quiet { 30_000 } else { 900 };
                    let wait = self.chance.millis(200, most);
                    self.rest(self.now.plus(wait))?;
                    self.look();
                }
            }
            Ok(())
        }
    }

    impl Phase {
        fn drawn(chance: &mut Chance) -> Self {
            use Found::{DiskFull, Failing, Mute, Nothing, Well};
            let often = [
                Well, Well, Well, Well, Failing, Failing, Failing, Mute, DiskFull, Nothing,
            ];
            let found = |chance: &mut Chance| chance.pick(&often).unwrap();
            let agent = |chance: &mut Chance| {
                let since = chance.millis(0, 3000);
                let still = chance.millis(0, 2000);
                Some(match chance.below(12) {
                    0 => LocalDatabase::Waiting { since },
                    1 | 2 => LocalDatabase::Recovering { since, still },
                    3 => LocalDatabase::Down {
                        since,
                        why: "sample".to_owned(),
                    },
                    4 | 5 => return None,
                    _ => LocalDatabase::Up,
                })
            };
            Self {
                databases: [found(chance), found(chance)],
                services: [found(chance), found(chance)],
                agents: [agent(chance), agent(chance)],
                observed: chance.percent(70),
                promoted: chance.percent(10),
                streams: chance.percent(80),
            }
        }
    }

    const SEEDS: u64 = 40;

    /// In so many seeds each thing that is left out must be missed.
    const SOUGHT: u64 = 200;

    #[test]
    fn nothing_changes_before_the_horizon() {
        let mut changed = 0;
        for seed in 0..SEEDS {
            let mut bench = Bench::new(seed, Blind::Nothing);
            let walked = bench.walk();
            assert_eq!(walked, Ok(()), "seed {seed}");
            changed += bench.changed;
        }
        assert!(changed > SEEDS, "only {changed} changes by time alone");
    }

    #[test]
    fn every_limit_and_every_age_is_needed() {
        const LONG: Duration = Duration::from_secs(86_400);
        let limits = 0..limits(&policy()).len();
        let ages: Vec<(&str, Hide)> = vec![
            ("in charge", |all| all.controller.in_charge = LONG),
            ("last failover", |all| all.automation.last_failover = None),
            ("loss", |all| {
                all.replication.covered = None;
                all.replication.primary = None;
            }),
            ("observers", |all| all.observers.clear()),
            ("rehearsals", |all| all.rehearsals.clear()),
            ("databases", |all| {
                all.sites.values_mut().for_each(|site| site.database = None);
            }),
            ("agents", |all| {
                all.sites.values_mut().for_each(|site| site.agent = None);
            }),
            ("second instances", |all| {
                all.sites.values_mut().for_each(|site| site.second = None);
            }),
            ("votes", |all| {
                let sites = all.sites.values_mut();
                sites.for_each(|site| site.health.clear());
            }),
        ];
        let blind = limits.map(|index| (format!("limit {index}"), Blind::Limit(index)));
        let blind = blind.chain(
            ages.into_iter()
                .map(|(name, hide)| (name.to_owned(), Blind::Ages(hide))),
        );
        let others = [("ends", Blind::Ends), ("reached", Blind::Reached)];
        let others = others.map(|(name, blind)| (name.to_owned(), blind));
        for (name, blind) in blind.chain(others) {
            let found = (0..SOUGHT).find(|seed| Bench::new(*seed, blind).walk().is_err());
            assert!(found.is_some(), "nobody notices that `{name}` is left out");
        }
    }
}
