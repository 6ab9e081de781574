//! The settings that the engine decides by, read once from a file and checked as a whole; and
//! the timers that follow from them.
//!
//! There are no defaults: the policy's author chooses each value. An existing [`Policy`]
//! satisfies every check here, so nothing later checks it again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::data::build_data;
pub use super::data::{Data, Durability, OnStall};
use super::document::{self, Key, Problems, Section, human};
use super::units::millis;

/// A checked policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Whether the controller may act.
    pub mode: Mode,
    /// How observations become health.
    pub detect: Detect,
    /// The write lease.
    pub lease: LeaseTimers,
    /// What the data must satisfy.
    pub data: Data,
    /// When the controller may act on its own.
    pub automation: Automation,
    /// How long the steps may take.
    pub steps: StepLimits,
}

/// Whether the controller may act on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Decides and logs; acts only on an operator's request.
    Observe,
    /// Acts on its own decisions.
    Automatic,
}

/// How observations become health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detect {
    /// How often each target is probed. 100 ms to 1 min.
    #[serde(rename = "probe_every_ms", with = "millis")]
    pub probe_every: Duration,
    /// How long one probe may take. 50 ms to 1 min.
    #[serde(rename = "probe_timeout_ms", with = "millis")]
    pub probe_timeout: Duration,
    /// How long a quorum must see a target unreachable before it counts as failed. 500 ms to 10
    /// min.
    #[serde(rename = "fail_after_ms", with = "millis")]
    pub fail_after: Duration,
    /// How long it must answer before it counts as healthy again. 500 ms to 1 h.
    #[serde(rename = "recover_after_ms", with = "millis")]
    pub recover_after: Duration,
    /// The age at which evidence no longer counts. 500 ms to 10 min.
    #[serde(rename = "stale_after_ms", with = "millis")]
    pub stale_after: Duration,
    /// How many vantage points must agree. 2 to 8.
    pub quorum: u32,
}

impl Detect {
    /// For how long an answer shows that a site is reached: the next look may be lost, and the one after
    /// it has its time. Evidence goes stale later, and a plan must not be opened by an answer from before
    /// the fault.
    pub fn reached_for(&self) -> Duration {
        let looks = self.probe_every.saturating_mul(2);
        let limit = looks.saturating_add(self.probe_timeout);
        limit.min(self.stale_after)
    }
}

/// The write lease (invariants.md I1). The same values apply to the controller, both agents and
/// their guards: each grant carries them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTimers {
    /// How often the active site's agent renews its lease. 100 ms to 1 min.
    #[serde(rename = "renew_every_ms", with = "millis")]
    pub renew_every: Duration,
    /// How long one grant is valid, on the agent's clock, from before its request. 500 ms to 1 h.
    #[serde(rename = "lease_ttl_ms", with = "millis")]
    pub lease_ttl: Duration,
    /// How often an agent asks its peer. 100 ms to 1 min.
    #[serde(rename = "peer_every_ms", with = "millis")]
    pub peer_every: Duration,
    /// How long one answer of the peer is valid. 500 ms to 1 h.
    #[serde(rename = "peer_ttl_ms", with = "millis")]
    pub peer_ttl: Duration,
    /// The limit for a whole fence, from the order or the deadline to the proof. 300 ms to 10 min.
    #[serde(rename = "fence_within_ms", with = "millis")]
    pub fence_within: Duration,
    /// The stages of a fence, which must fit into that limit.
    pub fence: FenceStages,
    /// How much faster one clock may run than another, in parts per million. 1 to 100,000.
    pub clock_drift_ppm: u32,
    /// Added at the end of waiting out, as a safety margin. 50 ms to 10 min.
    #[serde(rename = "margin_ms", with = "millis")]
    pub margin: Duration,
    /// When an agent fences itself.
    pub fence_on: FenceOn,
    /// Whether it does so when it is isolated.
    pub on_total_isolation: OnTotalIsolation,
}

/// How long each stage of a fence may take before the next, harder one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceStages {
    /// Fast shutdown: sessions end, a checkpoint is written.
    #[serde(rename = "fast_ms", with = "millis")]
    pub fast: Duration,
    /// Immediate shutdown: sessions end, nothing is written.
    #[serde(rename = "immediate_ms", with = "millis")]
    pub immediate: Duration,
    /// SIGKILL to every process, and the wait until they are gone.
    #[serde(rename = "kill_ms", with = "millis")]
    pub kill: Duration,
}

/// How often the guard checks its deadline: a fence begins at most this much late.
pub const GUARD_TICK: Duration = Duration::from_millis(100);

impl FenceStages {
    /// The longest that a fence by these stages takes, from the deadline to its end.
    pub fn longest(&self) -> Duration {
        let stages = self
            .fast
            .saturating_add(self.immediate)
            .saturating_add(self.kill);
        stages.saturating_add(GUARD_TICK)
    }
}

/// When an agent fences itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceOn {
    /// When it has lost the controller and the peer: losing the controller alone never stops
    /// production.
    Isolated,
    /// When it has lost the controller.
    LeaseLost,
}

/// What an agent does when it reaches neither controller nor peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTotalIsolation {
    /// Fences itself. Needed for a promotion that waits out the lease.
    Fence,
    /// Goes on. An unreachable site can then only be failed over by an operator's override.
    Keep,
}

/// When the controller may act on its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Automation {
    /// The minimum time between a failover and the next automatic one, even if re-armed. 1 s to 1
    /// day.
    #[serde(rename = "cooldown_ms", with = "millis")]
    pub cooldown: Duration,
    /// How long a controller only holds after it starts. At most 1 h.
    #[serde(rename = "startup_grace_ms", with = "millis")]
    pub startup_grace: Duration,
    /// How long an agent may try to restart a database that died before it counts as failed. At
    /// most 1 h; zero: no attempt.
    #[serde(rename = "local_restart_grace_ms", with = "millis")]
    pub local_restart_grace: Duration,
    /// What to do when a service fails while its database is healthy.
    pub api_failure: ApiFailure,
}

/// What to do when a service fails while its database is healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApiFailure {
    /// Hold, and only report it.
    Hold,
    /// Fail over, with a fence like any other failover.
    Failover,
}

/// How long the steps of a plan may take before they count as failed (before the pivot) or the plan
/// as stuck (after it). 1 s to 1 h each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepLimits {
    /// Proving that the old side is fenced, including the wait.
    #[serde(rename = "fence_ms", with = "millis")]
    pub fence: Duration,
    /// From the order to promote until the standby takes writes.
    #[serde(rename = "promote_ms", with = "millis")]
    pub promote: Duration,
    /// Until the workloads answer.
    #[serde(rename = "workloads_ms", with = "millis")]
    pub workloads: Duration,
    /// Moving one traffic target, until its system confirms.
    #[serde(rename = "traffic_ms", with = "millis")]
    pub traffic: Duration,
    /// Until the result is seen from outside.
    #[serde(rename = "verify_ms", with = "millis")]
    pub verify: Duration,
    /// Any other step.
    #[serde(rename = "other_ms", with = "millis")]
    pub other: Duration,
}

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

const SECOND: Duration = ms(1000);
const MINUTE: Duration = ms(60_000);
const HOUR: Duration = ms(3_600_000);
const DAY: Duration = ms(86_400_000);

impl Policy {
    /// Reads and checks a policy. Every mistake is reported, with its line.
    pub fn read(file: &str, text: &str) -> Result<Policy, Problems> {
        document::read(file, text, build)
    }

    /// Every key a policy has.
    pub fn keys() -> Vec<Key> {
        document::describe(build)
    }
}

fn build(root: &Section<'_>) -> Option<Policy> {
    let mode = root.choice(
        "mode",
        &[("observe", Mode::Observe), ("automatic", Mode::Automatic)],
    );
    let detect = build_detect(&root.section("detect"));
    let lease_section = root.section("lease");
    let lease = build_lease(&lease_section);
    let data = build_data(&root.section("data"));
    let automation = build_automation(&root.section("automation"));
    let steps = build_steps(&root.section("steps"));
    let policy = Policy {
        mode: mode?,
        detect: detect?,
        lease: lease?,
        data: data?,
        automation: automation?,
        steps: steps?,
    };
    check_against_each_other(&policy, root, &lease_section);
    Some(policy)
}

fn build_detect(at: &Section<'_>) -> Option<Detect> {
    let probe_every = at.duration("probe_every", ms(100)..=MINUTE);
    let probe_timeout = at.duration("probe_timeout", ms(50)..=MINUTE);
    let fail_after = at.duration("fail_after", ms(500)..=ms(600_000));
    let recover_after = at.duration("recover_after", ms(500)..=HOUR);
    let stale_after = at.duration("stale_after", ms(500)..=ms(600_000));
    let quorum = at.number("quorum", 2..=8);
    let detect = Detect {
        probe_every: probe_every?,
        probe_timeout: probe_timeout?,
        fail_after: fail_after?,
        recover_after: recover_after?,
        stale_after: stale_after?,
        quorum: u32::try_from(quorum?).ok()?,
    };
    let twice = detect.probe_every.saturating_mul(2);
    at_least(
        at,
        "fail_after",
        detect.fail_after,
        twice,
        "twice `probe_every`: one lost answer is not a failure",
    );
    at_least(
        at,
        "recover_after",
        detect.recover_after,
        detect.fail_after,
        "`fail_after`: recovering is judged more slowly than failing",
    );
    let one_look = detect.probe_every.saturating_add(detect.probe_timeout);
    at_least(
        at,
        "stale_after",
        detect.stale_after,
        one_look,
        "`probe_every` and `probe_timeout` together: otherwise evidence is stale before the next arrives",
    );
    Some(detect)
}

fn build_lease(at: &Section<'_>) -> Option<LeaseTimers> {
    let renew_every = at.duration("renew_every", ms(100)..=MINUTE);
    let lease_ttl = at.duration("lease_ttl", ms(500)..=HOUR);
    let peer_every = at.duration("peer_every", ms(100)..=MINUTE);
    let peer_ttl = at.duration("peer_ttl", ms(500)..=HOUR);
    let fence_within = at.duration("fence_within", ms(300)..=ms(600_000));
    let fast = at.duration("fence_fast", ms(50)..=ms(300_000));
    let immediate = at.duration("fence_immediate", ms(50)..=ms(300_000));
    let kill = at.duration("fence_kill", ms(50)..=ms(300_000));
    let drift = at.number("clock_drift_ppm", 1..=100_000);
    let margin = at.duration("margin", ms(50)..=ms(600_000));
    let on = [
        ("isolated", FenceOn::Isolated),
        ("lease-lost", FenceOn::LeaseLost),
    ];
    let fence_on = at.choice("fence_on", &on);
    let total = [
        ("fence", OnTotalIsolation::Fence),
        ("keep", OnTotalIsolation::Keep),
    ];
    let on_total_isolation = at.choice("on_total_isolation", &total);
    let lease = LeaseTimers {
        renew_every: renew_every?,
        lease_ttl: lease_ttl?,
        peer_every: peer_every?,
        peer_ttl: peer_ttl?,
        fence_within: fence_within?,
        fence: FenceStages {
            fast: fast?,
            immediate: immediate?,
            kill: kill?,
        },
        clock_drift_ppm: u32::try_from(drift?).ok()?,
        margin: margin?,
        fence_on: fence_on?,
        on_total_isolation: on_total_isolation?,
    };
    at_least(
        at,
        "lease_ttl",
        lease.lease_ttl,
        lease.renew_every.saturating_mul(3),
        "three times `renew_every`: two lost renewals must not end the lease",
    );
    at_least(
        at,
        "peer_ttl",
        lease.peer_ttl,
        lease.peer_every.saturating_mul(3),
        "three times `peer_every`: two lost answers must not end the lease",
    );
    at_least(
        at,
        "fence_within",
        lease.fence_within,
        lease.fence.longest(),
        "`fence_fast`, `fence_immediate`, `fence_kill` and the guard's tick of 100ms together: the bound must hold for the slowest fence",
    );
    Some(lease)
}

fn build_automation(at: &Section<'_>) -> Option<Automation> {
    let cooldown = at.duration("cooldown", SECOND..=DAY);
    let startup_grace = at.duration("startup_grace", ms(0)..=HOUR);
    let local_restart_grace = at.duration("local_restart_grace", ms(0)..=HOUR);
    let api = [
        ("hold", ApiFailure::Hold),
        ("failover", ApiFailure::Failover),
    ];
    let api_failure = at.choice("api_failure", &api);
    Some(Automation {
        cooldown: cooldown?,
        startup_grace: startup_grace?,
        local_restart_grace: local_restart_grace?,
        api_failure: api_failure?,
    })
}

fn build_steps(at: &Section<'_>) -> Option<StepLimits> {
    let bounds = SECOND..=HOUR;
    let fence = at.duration("fence", bounds.clone());
    let promote = at.duration("promote", bounds.clone());
    let workloads = at.duration("workloads", bounds.clone());
    let traffic = at.duration("traffic", bounds.clone());
    let verify = at.duration("verify", bounds.clone());
    let other = at.duration("other", bounds);
    Some(StepLimits {
        fence: fence?,
        promote: promote?,
        workloads: workloads?,
        traffic: traffic?,
        verify: verify?,
        other: other?,
    })
}

fn at_least(at: &Section<'_>, key: &str, value: Duration, least: Duration, why: &str) {
    if value < least {
        at.problem(
            key,
            format!(
                "`{key}` is {}, which is less than {}: {why}",
                human(value),
                human(least)
            ),
        );
    }
}

/// The rules that connect settings of different tables.
fn check_against_each_other(policy: &Policy, root: &Section<'_>, lease: &Section<'_>) {
    let longest_wait = policy.lease.longest_wait_out();
    let limit = policy.steps.fence;
    if limit < longest_wait {
        root.problem("steps", format!(
            "`steps.fence` is {}, but waiting out the lease takes up to {}: a fence by waiting could never be proven",
            human(limit), human(longest_wait)
        ));
    }
    let replay = policy.data.max_replay_time;
    if policy.steps.promote <= replay {
        root.problem("steps", format!(
            "`steps.promote` is {}, but `data.max_replay_time` lets the standby replay for up to {} first: a promotion that passes the gates could not finish in time",
            human(policy.steps.promote), human(replay)
        ));
    }
    check_effects(policy, root);
    if policy.lease.on_total_isolation == OnTotalIsolation::Keep
        && policy.lease.fence_on == FenceOn::LeaseLost
    {
        lease.problem("on_total_isolation", "`keep` contradicts `fence_on = \"lease-lost\"`: an agent that fences on a lost lease cannot keep writing when it has lost everything");
    }
}

/// Settings that could never take effect, because another one always ends first.
fn check_effects(policy: &Policy, root: &Section<'_>) {
    let (detect, data) = (&policy.detect, &policy.data);
    // What the standby is known to have is as old as the last probe of a primary that then was
    // silent for `fail_after`.
    let silent = detect.fail_after.saturating_add(detect.probe_every);
    if data.durability == Durability::Async && data.max_loss_window < silent {
        root.problem("data", format!(
            "`data.max_loss_window` is {}, but when `detect.fail_after` ({}) is over, the last probe of the active database is up to {} old: no automatic failover would ever pass. Raise `max_loss_window` to {} or more, or lower `fail_after`",
            human(data.max_loss_window), human(detect.fail_after), human(silent), human(silent)
        ));
    }
    if let (Durability::Sync, OnStall::ReleaseAfter { after }) = (data.durability, data.on_stall)
        && after < policy.lease.renew_every
    {
        let every = policy.lease.renew_every;
        root.problem("data", format!(
            "`data.on_stall` releases after {}, but the permission to go on without the standby comes with the answer to a report, every `lease.renew_every` ({}): commits would stall for that long. Write `release-after {}` or more, or lower `renew_every`",
            human(after), human(every), human(every)
        ));
    }
    // An agent probes its database, tries a start, and probes again at least a second later.
    let grace = policy.automation.local_restart_grace;
    if !grace.is_zero() && grace < SECOND {
        root.problem("automation", format!(
            "`automation.local_restart_grace` is {}, but a database is started once a second at most: no second attempt would ever be made. Write `0s` for none, or 1s or more",
            human(grace)
        ));
    }
    for (key, limit) in [
        ("other", policy.steps.other),
        ("verify", policy.steps.verify),
        ("traffic", policy.steps.traffic),
    ] {
        if limit < detect.probe_timeout {
            root.problem("steps", format!(
                "`steps.{key}` is {}, but one probe may take `detect.probe_timeout` ({}): the step could end before its first probe does. Raise the step, or lower `probe_timeout`",
                human(limit), human(detect.probe_timeout)
            ));
        }
    }
}

impl LeaseTimers {
    /// A duration on another clock, in the worst case of drift.
    pub fn with_drift(&self, duration: Duration) -> Duration {
        let nanos = duration.as_nanos();
        let extra = nanos
            .saturating_mul(u128::from(self.clock_drift_ppm))
            .div_ceil(1_000_000);
        let extra = Duration::from_nanos(u64::try_from(extra).unwrap_or(u64::MAX));
        duration.saturating_add(extra)
    }

    /// How long after the later end of its two sources a fence is certainly over: `fence_within`
    /// with drift, plus the margin.
    pub fn fence_and_margin(&self) -> Duration {
        self.with_drift(self.fence_within)
            .saturating_add(self.margin)
    }

    /// The longest wait, if the lease was vouched for and granted just now.
    pub fn longest_wait_out(&self) -> Duration {
        let right = self.with_drift(self.lease_ttl.max(self.peer_ttl));
        right.saturating_add(self.fence_and_margin())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: &str = include_str!("../../policies/fast.toml");
    const STANDARD: &str = include_str!("../../policies/standard.toml");
    const OBSERVE: &str = include_str!("../../policies/observe.toml");

    fn changed(from: &str, to: &str) -> String {
        assert!(FAST.contains(from), "{from}");
        match Policy::read("fast.toml", &FAST.replace(from, to)) {
            Ok(_) => "accepted".to_owned(),
            Err(problems) => problems.to_string(),
        }
    }

    #[test]
    fn the_shipped_policies_are_whole() {
        for text in [FAST, STANDARD, OBSERVE] {
            Policy::read("policy", text).unwrap();
        }
        assert_eq!(Policy::read("policy", OBSERVE).unwrap().mode, Mode::Observe);
    }

    #[test]
    fn a_policy_that_breaks_the_inequality_is_refused_with_the_numbers() {
        let said = changed("fence_within = \"650ms\"", "fence_within = \"640ms\"");
        assert!(
            said.contains("`fence_within` is 640ms, which is less than 650ms"),
            "{said}"
        );
        let said = changed("max_replay_time = \"2s\"", "max_replay_time = \"30s\"");
        assert!(said.contains("replay for up to 30s first"), "{said}");
        let said = changed("fence = \"30s\"", "fence = \"2s\"");
        assert!(
            said.contains("waiting out the lease takes up to 2s 351ms"),
            "{said}"
        );
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        for (from, to, said) in [
            ("fail_after = \"2s\"", "fail_after = \"500ms\"", "accepted"),
            (
                "probe_every = \"250ms\"",
                "probe_every = \"1500ms\"",
                "twice `probe_every`",
            ),
            (
                "recover_after = \"5s\"",
                "recover_after = \"1s\"",
                "more slowly than failing",
            ),
            (
                "lease_ttl = \"1s 500ms\"",
                "lease_ttl = \"1s\"",
                "three times `renew_every`",
            ),
            ("quorum = 2", "quorum = 1", "must be between 2 and 8"),
            (
                "\"release-after 5s\"",
                "\"release-after 5\"",
                "write it like `release-after 10s`",
            ),
            (
                "\"release-after 5s\"",
                "\"release-after 100ms\"",
                "500ms to 1h",
            ),
            ("\"release-after 5s\"", "\"block\"", "accepted"),
            (
                "fence_on = \"isolated\"",
                "fence_on = \"never\"",
                "must be one of isolated, lease-lost",
            ),
        ] {
            let answer = changed(from, to);
            assert!(answer.contains(said), "{to}: {answer}");
        }
    }

    #[test]
    fn a_setting_that_cannot_take_effect_is_refused_with_the_numbers_and_what_to_change() {
        for (from, to, said) in [
            (
                "max_loss_window = \"1m\"",
                "max_loss_window = \"2s\"",
                "up to 2s 250ms old: no automatic failover would ever pass. Raise `max_loss_window` to 2s 250ms",
            ),
            (
                "max_loss_window = \"1m\"",
                "max_loss_window = \"2250ms\"",
                "accepted",
            ),
            (
                "durability = \"async\"\n",
                "durability = \"sync\"\n",
                "accepted",
            ),
            (
                "local_restart_grace = \"0s\"",
                "local_restart_grace = \"300ms\"",
                "Write `0s` for none, or 1s or more",
            ),
            (
                "local_restart_grace = \"0s\"",
                "local_restart_grace = \"2m\"",
                "accepted",
            ),
            (
                "probe_timeout = \"1s\"",
                "probe_timeout = \"2900ms\"",
                "stale_after",
            ),
            ("other = \"10s\"", "other = \"1s\"", "accepted"),
        ] {
            let answer = changed(from, to);
            assert!(answer.contains(said), "{to}: {answer}");
        }
        let slow = FAST
            .replace("probe_timeout = \"1s\"", "probe_timeout = \"20s\"")
            .replace("stale_after = \"3s\"", "stale_after = \"30s\"");
        let said = Policy::read("slow", &slow).unwrap_err().to_string();
        assert!(
            said.contains(
                "`steps.other` is 10s, but one probe may take `detect.probe_timeout` (20s)"
            ),
            "{said}"
        );
        let sync = FAST
            .replace("durability = \"async\"", "durability = \"sync\"")
            .replace("release-after 5s", "release-after 500ms")
            .replace("renew_every = \"500ms\"", "renew_every = \"900ms\"");
        let said = Policy::read("sync", &sync).unwrap_err().to_string();
        assert!(
            said.contains("Write `release-after 900ms` or more"),
            "{said}"
        );
    }

    #[test]
    fn drift_only_ever_lengthens() {
        let policy = Policy::read("fast.toml", FAST).unwrap();
        assert_eq!(
            policy.lease.with_drift(ms(1000)),
            Duration::from_micros(1_000_500)
        );
        assert!(policy.lease.with_drift(Duration::from_nanos(1)) > Duration::from_nanos(1));
    }
}
