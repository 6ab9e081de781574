//! From observations to health: windows, quorum, recovery.
//!
//! A target is `Failed` only when at least a quorum of vantage points, with fresh evidence, has
//! seen it fail for the whole window without a gap, and none saw it healthy meanwhile. Stale or
//! contradictory evidence is `Unknown`. A new detector knows nothing, so a restart restarts all
//! windows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::observation::{Facts, Finding, Observation, ProbeFailure};
use super::policy::Detect;
use super::topology::{Target, Vantage};
use super::units::{MonoTime, millis};

/// The state of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It answers correctly.
    Healthy,
    /// It fails, but not for long enough or not seen by enough vantage points.
    Suspect,
    /// It failed: a quorum saw it fail for the whole window.
    Failed,
    /// The evidence is missing, stale, contradictory or says nothing about the target.
    Unknown,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Healthy => "healthy",
            State::Suspect => "suspect",
            State::Failed => "failed",
            State::Unknown => "unknown",
        })
    }
}

/// A target's health: its state, since when, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The verdict.
    pub state: State,
    /// How long `why` has been true.
    #[serde(rename = "since_ms", with = "millis")]
    pub since: Duration,
    /// Why, for people.
    pub why: String,
    /// What each vantage point says: the evidence for the state.
    pub votes: Vec<Vote>,
}

/// What one vantage point says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The vantage point.
    pub vantage: Vantage,
    /// `good`, or the failure.
    pub says: Arc<str>,
    /// Whether it counts for the target, against it, or not at all.
    pub kind: VoteKind,
    /// Whether the target itself answered that its disk is full or failing: alive, but useless.
    pub disk_failed: bool,
    /// What blocks its access to our own rows there, whatever else it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<Arc<str>>,
    /// How long it has said so without interruption.
    #[serde(rename = "since_ms", with = "millis")]
    pub since: Duration,
    /// How old the newest evidence is.
    #[serde(rename = "age_ms", with = "millis")]
    pub age: Duration,
}

/// Whether a vote counts for or against a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VoteKind {
    /// Seen healthy.
    For,
    /// Seen failing.
    Against,
    /// Says nothing about the target: not authorised, not understood.
    Mute,
}

/// What one vantage point has seen of one target.
#[derive(Debug, Clone)]
struct Track {
    kind: VoteKind,
    disk_failed: bool,
    blocked: Option<Arc<str>>,
    says: Arc<str>,
    /// When the first probe of the unbroken run began.
    run_began: MonoTime,
    /// When the last probe began and ended.
    last_began: MonoTime,
    last_ended: MonoTime,
}

/// What each vantage point has seen of one target. Boxed: a map has room for eleven from the first one
/// on.
type Tracks = BTreeMap<Vantage, Box<Track>>;

/// Stores the observations, and judges.
#[derive(Debug, Clone, Default)]
pub struct Detector {
    tracks: BTreeMap<Target, Tracks>,
    /// Targets that failed and have not yet been healthy for the recovery window.
    failed: BTreeSet<Target>,
}

impl Detector {
    /// Adds one observation. One that began before the same vantage point's last is ignored: it was
    /// overtaken. One that arrives when the last is already stale starts a new run: nobody knows
    /// what happened in between.
    pub fn observe(&mut self, observation: &Observation, policy: &Detect) {
        let (kind, says): (_, Arc<str>) = match &observation.finding {
            Finding::Good(_) => (VoteKind::For, "good".into()),
            Finding::Bad(failure) if failure.speaks_against_target() => {
                (VoteKind::Against, failure.to_string().into())
            }
            Finding::Bad(failure) => (VoteKind::Mute, failure.to_string().into()),
        };
        let tracks = self.tracks.entry(observation.target.clone()).or_default();
        let last = tracks.get(&observation.vantage);
        if last.is_some_and(|last| observation.began < last.last_began) {
            return;
        }
        let run_began = match last {
            Some(last) if last.kind == kind && !stale(last, observation.began, policy) => {
                last.run_began
            }
            Some(_) | None => observation.began,
        };
        let track = Track {
            kind,
            disk_failed: matches!(
                observation.finding,
                Finding::Bad(ProbeFailure::DiskFailed(_))
            ),
            blocked: blocked(&observation.finding, &says),
            says,
            run_began,
            last_began: observation.began,
            last_ended: observation.ended,
        };
        tracks.insert(observation.vantage.clone(), Box::new(track));
    }

    /// The target's health now.
    pub fn health(&mut self, target: &Target, now: MonoTime, policy: &Detect) -> Health {
        let empty = BTreeMap::new();
        let tracks = self.tracks.get(target).unwrap_or(&empty);
        let fresh = |track: &&Track| !stale(track, now, policy);
        let votes = tracks
            .iter()
            .map(|(vantage, track)| Vote {
                vantage: vantage.clone(),
                says: track.says.clone(),
                kind: track.kind,
                disk_failed: track.disk_failed,
                blocked: track.blocked.clone(),
                since: now.since(track.run_began),
                age: now.since(track.last_ended),
            })
            .collect();
        let of = |kind| {
            tracks
                .values()
                .map(AsRef::as_ref)
                .filter(fresh)
                .filter(move |track| track.kind == kind)
        };
        let against: Vec<&Track> = of(VoteKind::Against).collect();
        let good: Vec<&Track> = of(VoteKind::For).collect();
        let mute: Vec<&Track> = of(VoteKind::Mute).collect();
        let was_failed = self.failed.contains(target);
        let (state, since, why) = if against.is_empty() {
            judge_well(now, &good, &mute, tracks, was_failed, policy)
        } else {
            judge_failing(now, &against, &good, policy)
        };
        if state == State::Failed {
            self.failed.insert(target.clone());
        } else if state == State::Healthy {
            self.failed.remove(target);
        }
        Health {
            state,
            since,
            why,
            votes,
        }
    }
}

/// What blocked a probe's access to our own rows. `says`: its failure as text.
fn blocked(finding: &Finding, says: &Arc<str>) -> Option<Arc<str>> {
    match finding {
        Finding::Bad(ProbeFailure::Blocked(_)) => Some(Arc::clone(says)),
        Finding::Good(Facts::Database(facts)) => facts.blocked.as_deref().map(Into::into),
        Finding::Good(Facts::Api | Facts::Agent) | Finding::Bad(_) => None,
    }
}

/// Whether a vantage point's last observation is stale at `now`.
fn stale(track: &Track, at: MonoTime, policy: &Detect) -> bool {
    at.since(track.last_ended) > policy.stale_after
}

/// No vote counts against the target.
fn judge_well(
    now: MonoTime,
    good: &[&Track],
    mute: &[&Track],
    all: &Tracks,
    was_failed: bool,
    policy: &Detect,
) -> (State, Duration, String) {
    // The longest run: one vantage point is enough to see a target healthy.
    if let Some(best) = good.iter().min_by_key(|track| track.run_began) {
        let since = now.since(best.run_began);
        if was_failed && since < policy.recover_after {
            return (
                State::Suspect,
                since,
                "answers again, not yet for long enough".to_owned(),
            );
        }
        return (State::Healthy, since, "answers".to_owned());
    }
    if let Some(track) = mute.first() {
        return (
            State::Unknown,
            now.since(track.run_began),
            track.says.to_string(),
        );
    }
    match all.values().max_by_key(|track| track.last_ended) {
        Some(last) => (
            State::Unknown,
            now.since(last.last_ended),
            "evidence is stale".to_owned(),
        ),
        None => (State::Unknown, Duration::ZERO, "never seen".to_owned()),
    }
}

/// Some vote counts against the target.
fn judge_failing(
    now: MonoTime,
    against: &[&Track],
    good: &[&Track],
    policy: &Detect,
) -> (State, Duration, String) {
    let mut began: Vec<MonoTime> = against.iter().map(|track| track.run_began).collect();
    began.sort_unstable();
    let says = against
        .first()
        .map(|track| track.says.to_string())
        .unwrap_or_default();
    let quorum = usize::try_from(policy.quorum).unwrap_or(usize::MAX);
    // The window begins when the vote that completes the quorum began.
    let (window, complete) = match began.get(quorum.saturating_sub(1)) {
        Some(moment) => (*moment, true),
        None => (began.first().copied().unwrap_or(now), false),
    };
    let since = now.since(window);
    let seen_well = good.iter().any(|track| track.last_began >= window);
    if seen_well {
        (
            State::Unknown,
            since,
            format!("contradictory: {says}, yet others see it healthy"),
        )
    } else if !complete {
        let why = format!("{says}; seen by {} of {}", against.len(), policy.quorum);
        (State::Suspect, since, why)
    } else if since < policy.fail_after {
        (State::Suspect, since, says)
    } else {
        (State::Failed, since, says)
    }
}

#[cfg(test)]
mod tests {
    use super::super::topology::TargetKind;
    use super::*;

    fn policy() -> Detect {
        let seconds = Duration::from_secs;
        Detect {
            probe_every: seconds(1),
            probe_timeout: seconds(1),
            fail_after: seconds(10),
            recover_after: seconds(20),
            stale_after: seconds(5),
            quorum: 2,
        }
    }

    fn target() -> Target {
        Target {
            site: "aws".parse().unwrap(),
            kind: TargetKind::Database,
        }
    }

    const CONTROLLER: &str = "controller";
    const PEER: &str = "agent:gcp";
    const OBSERVER: &str = "observer:paris";

    struct Bench(Detector);

    impl Bench {
        fn see(&mut self, from: &str, seconds: std::ops::RangeInclusive<u64>, finding: &Finding) {
            for second in seconds {
                let seen = Observation {
                    target: target(),
                    vantage: from.parse().unwrap(),
                    began: MonoTime(Duration::from_secs(second)),
                    ended: MonoTime(Duration::from_secs(second)),
                    finding: finding.clone(),
                };
                self.0.observe(&seen, &policy());
            }
        }

        fn at(&mut self, second: u64) -> State {
            self.at_quorum(2, second)
        }

        fn at_quorum(&mut self, quorum: u32, second: u64) -> State {
            let policy = Detect { quorum, ..policy() };
            self.0
                .health(&target(), MonoTime(Duration::from_secs(second)), &policy)
                .state
        }
    }

    fn good() -> Finding {
        Finding::Good(Facts::Api)
    }

    fn bad() -> Finding {
        Finding::Bad(ProbeFailure::Refused)
    }

    fn bench() -> Bench {
        Bench(Detector::default())
    }

    #[test]
    fn unknown_first() {
        assert_eq!(bench().at(0), State::Unknown);
    }

    #[test]
    fn fails_only_when_a_quorum_agrees_for_the_whole_window() {
        let mut bench = bench();
        bench.see(CONTROLLER, 0..=3, &good());
        bench.see(CONTROLLER, 4..=15, &bad());
        bench.see(PEER, 6..=15, &bad());
        assert_eq!(bench.at(15), State::Suspect);
        bench.see(CONTROLLER, 16..=16, &bad());
        bench.see(PEER, 16..=16, &bad());
        assert_eq!(
            bench.at(16),
            State::Failed,
            "ten seconds after the second vote began"
        );
    }

    #[test]
    fn one_vantage_point_alone_never_makes_it_fail() {
        let mut bench = bench();
        bench.see(CONTROLLER, 0..=100, &bad());
        assert_eq!(bench.at(100), State::Suspect);
        bench.see(PEER, 90..=100, &good());
        assert_eq!(bench.at(100), State::Unknown, "contradictory");
    }

    #[test]
    fn a_quorum_of_three_needs_the_observer() {
        let mut bench = bench();
        bench.see(CONTROLLER, 0..=25, &bad());
        bench.see(PEER, 0..=25, &bad());
        assert_eq!(bench.at_quorum(3, 25), State::Suspect);
        bench.see(OBSERVER, 15..=25, &bad());
        assert_eq!(bench.at_quorum(3, 24), State::Suspect);
        assert_eq!(bench.at_quorum(3, 25), State::Failed);
    }

    #[test]
    fn a_quorum_of_two_needs_no_observer_and_heeds_one() {
        let mut lost = bench();
        lost.see(OBSERVER, 0..=2, &good());
        lost.see(CONTROLLER, 4..=14, &bad());
        lost.see(PEER, 4..=14, &bad());
        assert_eq!(
            lost.at(14),
            State::Failed,
            "the observer fell silent before"
        );
        let mut there = bench();
        there.see(OBSERVER, 0..=14, &good());
        there.see(CONTROLLER, 4..=14, &bad());
        there.see(PEER, 4..=14, &bad());
        assert_eq!(there.at(14), State::Unknown, "it sees the target well");
    }

    #[test]
    fn a_good_sight_from_before_the_failure_contradicts_nothing() {
        let mut bench = bench();
        bench.see("agent:aws", 0..=9, &good());
        bench.see(CONTROLLER, 10..=20, &bad());
        bench.see(PEER, 10..=20, &bad());
        assert_eq!(bench.at(13), State::Suspect);
        assert_eq!(bench.at(20), State::Failed);
    }

    #[test]
    fn one_good_sight_begins_the_window_anew() {
        let mut bench = bench();
        bench.see(CONTROLLER, 0..=9, &bad());
        bench.see(PEER, 0..=30, &bad());
        bench.see(CONTROLLER, 10..=10, &good());
        bench.see(CONTROLLER, 11..=20, &bad());
        assert_eq!(bench.at(20), State::Suspect);
    }

    #[test]
    fn stale_evidence_is_unknown_not_failed() {
        let mut bench = bench();
        bench.see(CONTROLLER, 0..=20, &bad());
        bench.see(PEER, 0..=20, &bad());
        assert_eq!(bench.at(20), State::Failed);
        assert_eq!(bench.at(26), State::Unknown);
    }

    #[test]
    fn evidence_that_was_missing_for_a_while_begins_the_window_anew() {
        let mut bench = bench();
        bench.see(CONTROLLER, 0..=40, &bad());
        bench.see(PEER, 0..=20, &bad());
        bench.see(PEER, 26..=40, &bad());
        assert_eq!(bench.at(35), State::Suspect, "the peer was not heard");
        assert_eq!(bench.at(36), State::Failed);
    }

    #[test]
    fn a_look_that_failed_to_arrive_interrupts_nothing() {
        let mut bench = bench();
        bench.see(CONTROLLER, 0..=20, &bad());
        bench.see(PEER, 0..=15, &bad());
        bench.see(PEER, 20..=20, &bad());
        assert_eq!(bench.at(20), State::Failed);
    }

    #[test]
    fn not_being_let_in_is_unknown_for_ever() {
        let mut bench = bench();
        bench.see(
            CONTROLLER,
            0..=100,
            &Finding::Bad(ProbeFailure::Unauthorized("28P01".into())),
        );
        bench.see(
            PEER,
            0..=100,
            &Finding::Bad(ProbeFailure::Unauthorized("28P01".into())),
        );
        assert_eq!(bench.at(100), State::Unknown);
    }

    #[test]
    fn recovery_has_its_own_longer_window() {
        let mut bench = bench();
        bench.see(CONTROLLER, 0..=20, &bad());
        bench.see(PEER, 0..=20, &bad());
        assert_eq!(bench.at(20), State::Failed);
        bench.see(CONTROLLER, 21..=40, &good());
        bench.see(PEER, 21..=40, &good());
        assert_eq!(bench.at(40), State::Suspect);
        bench.see(CONTROLLER, 41..=41, &good());
        assert_eq!(bench.at(41), State::Healthy);
    }

    #[test]
    fn an_observation_that_was_overtaken_is_left_out() {
        let mut bench = bench();
        bench.see(CONTROLLER, 5..=5, &good());
        bench.see(CONTROLLER, 3..=3, &bad());
        assert_eq!(bench.at(5), State::Healthy);
    }
}
