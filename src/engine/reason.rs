//! The codes of the engine's reasons. Each is stable, names its page in `runbooks/`, and
//! appears with measured value, limit, unit and age wherever a decision is shown.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::text::counted;
use super::topology::SiteName;
use super::units::{Bytes, millis};

macro_rules! codes {
    ($($name:ident = $code:literal: $summary:literal,)*) => {
        /// Why something is done, or is not done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "the summaries say it, and generate the documentation")]
        pub enum Code {
            $(#[serde(rename = $code)] $name,)*
        }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The stable code, which is also the name of its page in `runbooks/`.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $code,)* }
            }

            /// What it means, in one sentence.
            pub fn summary(self) -> &'static str {
                match self { $(Code::$name => $summary,)* }
            }
        }
    };
}

codes! {
    Healthy = "healthy": "The active site serves and the standby follows.",
    ActiveSiteFailed = "active-site-failed": "A quorum of vantage points has seen the active database unreachable for as long as the policy requires.",
    ActiveDatabaseDown = "active-database-down": "The active site's agent reports its database down, and the time for a local restart is over.",
    ActiveDatabaseRecovering = "active-database-recovering": "The active database is recovering from a crash: its agent sees it make progress, and the time allowed for that is not over.",
    ActiveApiFailed = "active-api-failed": "The service at the active site fails while its database is healthy.",
    OperatorRequest = "operator-request": "An operator requested it.",
    NotSustained = "not-sustained": "The active site is failing, but not yet for as long as the policy requires.",
    QuorumMissing = "quorum-missing": "Too few vantage points see the failure.",
    ObserverSilent = "observer-silent": "An extra observer has not reported lately.",
    EvidenceMissing = "evidence-missing": "There is no fresh evidence about the active site, for or against.",
    ProbeNotAuthorised = "probe-not-authorised": "A probe is not authorised, which says nothing about the target.",
    OwnLookBlocked = "own-look-blocked": "The database refuses or blocks what only our probes do, which says nothing about whether users are served.",
    VantagePointsMute = "vantage-points-mute": "Too few vantage points can judge the active database: if its site died now, there would be no quorum.",
    ObserverSideFault = "observer-side-fault": "The active site is unreachable from some vantage point, but others see it work: the fault is on our side.",
    ReplicationAdvancing = "replication-advancing": "The standby was still receiving from the active database when last seen, so that database counts as alive.",
    OwnIsolation = "own-isolation": "The controller reaches too few sites and anchors to judge anybody else.",
    Starting = "starting": "The controller has just started, or has just taken over.",
    PolicyObserves = "policy-observes": "The policy only observes.",
    Held = "held": "An operator stopped automation.",
    Disarmed = "disarmed": "Automation is disarmed since the last failover, until reverse replication streams or an operator re-arms it.",
    CoolingDown = "cooling-down": "The last failover is too recent for another automatic one.",
    PlanOpen = "plan-open": "A plan is open; a group has one at a time.",
    PlanStuck = "plan-stuck": "A plan is stuck and needs an operator.",
    ReplicationBroken = "replication-broken": "The standby is not receiving from the active database.",
    StandbyUnreachable = "standby-unreachable": "The standby's database does not answer, or does not answer the controller.",
    StandbyAgentSilent = "standby-agent-silent": "The agent at the passive site has not reported lately.",
    StandbyNotInRecovery = "standby-not-in-recovery": "The database at the passive site is not a standby.",
    TwoPrimaries = "two-primaries": "Both databases accept writes.",
    ForeignDatabase = "foreign-database": "A server or program that the guard did not start occupies the place of a site's database, and the guard cannot end it.",
    SystemIdentifierDiffers = "system-identifier-differs": "The two databases are not a primary and its standby: their system identifiers differ.",
    TimelineDiverged = "timeline-diverged": "The standby does not follow the active database's timeline.",
    StandbyLimitsTooLow = "standby-limits-too-low": "A limit of the standby is lower than the primary's, so it stops replaying and refuses promotion.",
    StandbyApplyDelayed = "standby-apply-delayed": "The standby is configured to replay with a delay.",
    CannotSever = "cannot-sever": "The standby cannot be cut off and reconnected, or this was not tested lately.",
    ReplayStalled = "replay-stalled": "The standby does not replay what it has received, or not within the time that the policy allows.",
    VersionDiffers = "version-differs": "The two databases run different major versions.",
    LossUnknown = "loss-unknown": "The active side never reported its position, or how much of it the standby has, so no loss can be declared.",
    LossOverLimit = "loss-over-limit": "The estimated loss is larger than the policy allows.",
    LossWindowOverLimit = "loss-window-over-limit": "The last position that the standby is known to have is older than the policy allows.",
    FenceUnprovable = "fence-unprovable": "There is no way to prove that the old primary cannot write.",
    InfrastructureUnready = "infrastructure-unready": "The active site's infrastructure could not be told to fence it; other proofs may be available.",
    RpoWindowOpen = "rpo-window-open": "Commits do not wait for the standby, although the policy requires it: a failover now could lose some.",
    CommitsStalled = "commits-stalled": "Commits wait for a standby that does not confirm them.",
    CertificateEnding = "certificate-ending": "A certificate expires within thirty days.",
    CertificateUrgent = "certificate-urgent": "A certificate expires within seven days, or has expired.",
    SecretRefused = "secret-refused": "A file with a secret or certificate was replaced, and its new content is not used.",
    TrafficUnready = "traffic-unready": "We cannot read or change a traffic target, it holds foreign records, or it does not lead to the active site.",
    NameServerSilent = "name-server-silent": "A name server of a traffic target gives no usable answer; others do.",
    FrontDoorUnready = "front-door-unready": "The front-door check fails at the active site, so it could not confirm a failover either.",
    StandbyConnections = "standby-connections": "The standby has few or no connections left for the role that must see it take writes.",
    ClockSkew = "clock-skew": "Two wall clocks are so far apart that external systems will reject our keys and signatures.",
    LogBehind = "log-behind": "Somebody knows more than the decision log says: the log is outdated, or the wrong one.",
    LogUnwitnessed = "log-unwitnessed": "Since the controller started, nobody has confirmed that its decision log is current.",
    LogUnwritable = "log-unwritable": "The decision log cannot be written, and nothing is done that cannot be logged first.",
    SecondInstance = "second-instance": "Two installations of the same site's agent report: one is a copy.",
    SettingsPending = "settings-pending": "A site's database runs with settings that differ from its agent's file, until its next start.",
    ActiveSiteDegraded = "active-site-degraded": "Something at the active site is unhealthy, but a failover would not fix it.",
}

/// The content of `docs/reasons.md`: every code with its meaning and page.
pub fn table() -> String {
    let head = "# Reasons\n\n\
        Every decision carries at least one of these codes, with the measured value, its limit, their \
        unit and\nage. They are stable: alerts may rely on them. A test keeps this file in \
        step with `src/engine/reason.rs`.\n\n\
        | code | what it means |\n| --- | --- |\n";
    let rows = Code::ALL.iter().map(|code| {
        let summary = code.summary();
        format!("| [`{code}`](../runbooks/{code}.md) | {summary} |\n")
    });
    std::iter::once(head.to_owned()).chain(rows).collect()
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A reason's measured value, or its limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// A number in the reason's unit.
    Number(u64),
    /// A word.
    Text(String),
}

/// The unit of a reason's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Bytes of WAL.
    Bytes,
    /// Milliseconds.
    Ms,
    /// Vantage points.
    Vantages,
    /// No unit: the values are words.
    Word,
}

/// One reason: code, measured value, limit, unit and age.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The stable code.
    pub code: Code,
    /// The site, if it is about one.
    pub site: Option<SiteName>,
    /// What was measured.
    pub measured: Value,
    /// The limit it was compared with.
    pub limit: Value,
    /// The unit of both.
    pub unit: Unit,
    /// How long it has been true, if known.
    #[serde(rename = "since_ms", with = "millis::option")]
    pub since: Option<Duration>,
    /// Details for people.
    pub detail: Option<String>,
}

impl Reason {
    /// A reason about words.
    pub fn word(code: Code, measured: impl fmt::Display, limit: impl fmt::Display) -> Self {
        let text = |value: &dyn fmt::Display| Value::Text(value.to_string());
        Self::of(code, text(&measured), text(&limit), Unit::Word)
    }

    /// A reason about durations.
    pub fn time(code: Code, measured: Duration, limit: Duration) -> Self {
        let number = |value| Value::Number(super::units::as_millis(value));
        Self::of(code, number(measured), number(limit), Unit::Ms)
    }

    /// A reason about amounts of data.
    pub fn bytes(code: Code, measured: Bytes, limit: Bytes) -> Self {
        Self::of(
            code,
            Value::Number(measured.0),
            Value::Number(limit.0),
            Unit::Bytes,
        )
    }

    /// A reason about how many vantage points agree.
    pub fn vantages(code: Code, measured: usize, limit: u32) -> Self {
        let measured = u64::try_from(measured).unwrap_or(u64::MAX);
        Self::of(
            code,
            Value::Number(measured),
            Value::Number(u64::from(limit)),
            Unit::Vantages,
        )
    }

    fn of(code: Code, measured: Value, limit: Value, unit: Unit) -> Self {
        Self {
            code,
            site: None,
            measured,
            limit,
            unit,
            since: None,
            detail: None,
        }
    }

    /// The same, about one site.
    pub fn at(mut self, site: &SiteName) -> Self {
        self.site = Some(site.clone());
        self
    }

    /// The same, with since when.
    pub fn since(mut self, since: Duration) -> Self {
        self.since = Some(since);
        self
    }

    /// The same, with more for people.
    pub fn because(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

struct Shown<'v>(&'v Value, Unit);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.1) {
            (Value::Text(text), _) => f.write_str(text),
            (Value::Number(number), Unit::Bytes) => Bytes(*number).fmt(f),
            (Value::Number(number), Unit::Ms) => {
                humantime::format_duration(Duration::from_millis(*number)).fmt(f)
            }
            (Value::Number(number), Unit::Vantages) => {
                f.write_str(&counted(*number, "vantage point", "vantage points"))
            }
            (Value::Number(number), Unit::Word) => number.fmt(f),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(site) = &self.site {
            write!(f, "@{site}")?;
        }
        let (measured, limit) = (
            Shown(&self.measured, self.unit),
            Shown(&self.limit, self.unit),
        );
        write!(f, ": {measured} (limit {limit})")?;
        if let Some(since) = self.since {
            let whole = Duration::from_millis(super::units::as_millis(since));
            write!(f, ", for {}", humantime::format_duration(whole))?;
        }
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_shows_measured_value_limit_unit_and_since_when() {
        let site: SiteName = "gcp".parse().unwrap();
        let reason = Reason::bytes(Code::LossOverLimit, Bytes::mib(1229), Bytes::mib(16))
            .at(&site)
            .since(Duration::from_secs(3));
        assert_eq!(
            reason.to_string(),
            "loss-over-limit@gcp: 1.2 GiB (limit 16 MiB), for 3s"
        );
    }

    #[test]
    fn vantage_points_are_counted_as_people_count_them() {
        let says = |seen| Reason::vantages(Code::VantagePointsMute, seen, 2).to_string();
        for (seen, counted) in [(0, "0 vantage points"), (1, "1 vantage point")] {
            let whole = format!("vantage-points-mute: {counted} (limit 2 vantage points)");
            assert_eq!(says(seen), whole);
        }
    }

    #[test]
    fn codes_are_stable_words_and_each_once() {
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::ALL {
            let text = serde_json::to_string(code).unwrap();
            assert_eq!(text, format!("\"{code}\""));
            assert!(seen.insert(code.as_str()), "{code} twice");
            assert!(code.summary().ends_with('.'), "{code}");
        }
    }
}
