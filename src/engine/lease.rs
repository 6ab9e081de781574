//! The write lease: how it is granted, how its holder counts it, and when it has certainly
//! expired.
//!
//! Both sides count on their own monotonic clock, each from the moment that is unfavourable to
//! itself: the holder from before it asked, the granter from after it answered.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::instance::Instance;
use super::policy::{FenceOn, LeaseTimers, OnTotalIsolation};
use super::topology::SiteName;
use super::units::{Epoch, MonoTime, millis};

/// The granter's record of the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseBook {
    /// The current epoch.
    pub epoch: Epoch,
    /// The site that may hold the lease in it; `None` between raising the epoch and the pivot.
    pub holder: Option<SiteName>,
    /// The site that held the lease in the previous epoch, until it is known to be fenced.
    last_holder: SiteName,
    /// The last moment at which that site may have been granted the lease.
    last_grant: MonoTime,
    /// Whether we granted it ourselves, so that its agent was alive then; otherwise it is only the
    /// moment of taking over.
    alive_at_last_grant: Option<bool>,
    /// What the infrastructure of the last holder's site calls its machine.
    machine: Option<String>,
}

/// Why a grant is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Another site is active, or about to be.
    #[error("superseded: the epoch is {epoch}")]
    Superseded {
        /// The current epoch.
        epoch: Epoch,
    },
    /// The requester knows a higher epoch than the controller, which must not happen.
    #[error("the epoch is {epoch}, not {asked}")]
    FromTheFuture {
        /// The current epoch.
        epoch: Epoch,
        /// The requester's epoch.
        asked: Epoch,
    },
    /// Another instance of the requester's site holds the lease, or may still hold it.
    #[error("{}", other_instance(.counts.as_ref(), .why))]
    OtherInstance {
        /// The instance that counts, if one is known.
        counts: Option<Instance>,
        /// Why that instance's lease has not certainly expired.
        why: String,
    },
    /// The controller's log is behind the world: it only renews existing leases.
    #[error("the controller's decision log is behind: {witness} knows {knows}")]
    LogBehind {
        /// Who knows more.
        witness: String,
        /// What they know.
        knows: String,
    },
    /// Nobody has confirmed yet that the controller's log is current.
    #[error(
        "no other witness has confirmed since the controller started that its decision log is current"
    )]
    LogUnwitnessed,
}

fn other_instance(counts: Option<&Instance>, why: &str) -> String {
    match counts {
        Some(counts) => {
            format!(
                "another instance of this site counts, {counts}: {why} (see runbooks/second-instance.md)"
            )
        }
        None => format!("another instance of this site may hold the lease: {why}"),
    }
}

/// What is known about the old holder's last lease: the evidence for waiting it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastRight {
    /// The site.
    pub site: SiteName,
    /// The last moment at which it may have been granted the lease.
    pub granted: MonoTime,
    /// Whether its agent was alive then, and everything that may vouch for it is severed. If that
    /// is unknown, waiting proves nothing beyond what a plan recorded earlier.
    pub alive: Option<bool>,
    /// What the site's infrastructure calls the machine that held it: the uid of a pod. `None` where
    /// that is unknown, or the site has no such infrastructure.
    pub machine: Option<String>,
}

impl LeaseBook {
    /// The record after a start or a change of leader: somebody else may have granted until now,
    /// and it is unknown whether the holder's agent lives.
    pub fn taken_over(epoch: Epoch, active: SiteName, now: MonoTime) -> Self {
        Self {
            epoch,
            holder: Some(active.clone()),
            last_holder: active,
            last_grant: now,
            alive_at_last_grant: None,
            machine: None,
        }
    }

    /// What the infrastructure of the site that got the last grant calls its machine.
    pub fn granted_on(&mut self, machine: Option<String>) {
        self.machine = machine;
    }

    /// When this site may last have been granted the lease; `None` if another site held it since.
    pub fn granted_to(&self, site: &SiteName) -> Option<MonoTime> {
        (self.last_holder == *site).then_some(self.last_grant)
    }

    /// The last grant shows no longer that the holder's right can be waited out: nothing but its agent ends
    /// it, or its agent counts answers of another instance of the other site than the one that would be
    /// severed.
    pub fn cannot_wait_out(&mut self) {
        self.alive_at_last_grant = Some(false);
    }

    /// Grants the lease to a site that requests it in an epoch.
    pub fn grant(&mut self, site: &SiteName, asked: Epoch, now: MonoTime) -> Result<(), Refusal> {
        if asked > self.epoch {
            return Err(Refusal::FromTheFuture {
                epoch: self.epoch,
                asked,
            });
        }
        if asked < self.epoch || self.holder.as_ref() != Some(site) {
            return Err(Refusal::Superseded { epoch: self.epoch });
        }
        self.last_holder = site.clone();
        self.last_grant = now;
        self.alive_at_last_grant = Some(true);
        Ok(())
    }

    /// Raises the epoch: from now on nothing is granted until [`LeaseBook::pass_to`]. Call it only
    /// once the new epoch is durable. Raising to the current epoch again (when a plan is resumed)
    /// only takes the lease away.
    pub fn raise(&mut self, epoch: Epoch) {
        if epoch >= self.epoch {
            self.epoch = epoch;
            self.holder = None;
        }
    }

    /// Lets a site hold the lease in the current epoch: the new primary just before its promotion,
    /// or the old one when a plan is undone.
    pub fn pass_to(&mut self, site: SiteName) {
        self.holder = Some(site);
    }

    /// The previous holder's last lease.
    pub fn last_right(&self) -> LastRight {
        LastRight {
            site: self.last_holder.clone(),
            granted: self.last_grant,
            alive: self.alive_at_last_grant,
            machine: self.machine.clone(),
        }
    }
}

/// The holder's record of its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    epoch: Epoch,
    /// When the request of the newest grant was sent, or earlier.
    granted: MonoTime,
    /// When the request of the peer's newest answer was sent, or earlier.
    peer_answered: Option<MonoTime>,
    timers: LeaseTimers,
}

impl Holder {
    /// A lease granted to a request that was sent after `asked`.
    pub fn granted(epoch: Epoch, asked: MonoTime, timers: LeaseTimers) -> Self {
        Self {
            epoch,
            granted: asked,
            peer_answered: None,
            timers,
        }
    }

    /// The epoch it is held in.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// A further grant, to a request that was sent after `asked`. One of a lower epoch is ignored.
    pub fn renewed(&mut self, epoch: Epoch, asked: MonoTime, timers: LeaseTimers) {
        if epoch >= self.epoch {
            self.epoch = epoch;
            self.granted = self.granted.max(asked);
            self.timers = timers;
        }
    }

    /// The peer's agent answered a request that was sent after `asked`, and did not say that we are
    /// superseded. That extends a lease but never revives one: drop one that [`Holder::is_over`]
    /// first.
    pub fn peer_answered(&mut self, asked: MonoTime) {
        self.peer_answered = self.peer_answered.max(Some(asked));
    }

    /// Whether the lease has expired. Then only a new grant starts another.
    pub fn is_over(&self, now: MonoTime) -> bool {
        self.deadline().is_some_and(|end| now >= end)
    }

    /// When the lease expires unless it is renewed; `None` is never.
    ///
    /// The controller's grant is valid for `lease_ttl`. Under `fence_on = "isolated"` the peer's
    /// answer keeps the lease too, for `peer_ttl`: losing the controller alone never stops
    /// production.
    pub fn deadline(&self) -> Option<MonoTime> {
        let by_grant = self.granted.plus(self.timers.lease_ttl);
        match (self.timers.fence_on, self.timers.on_total_isolation) {
            (_, OnTotalIsolation::Keep) => None,
            (FenceOn::LeaseLost, OnTotalIsolation::Fence) => Some(by_grant),
            (FenceOn::Isolated, OnTotalIsolation::Fence) => {
                let by_peer = self
                    .peer_answered
                    .map(|asked| asked.plus(self.timers.peer_ttl));
                by_peer.max(Some(by_grant))
            }
        }
    }
}

/// Whether a site that asks its peer in epoch `asked` is superseded, by what that peer remembers:
/// the epoch for which it was severed, and the highest in which it held the lease or was told to
/// promote. The second still counts once the promotion has ended the sever.
pub fn is_superseded(asked: Epoch, severed: Option<Epoch>, known: Epoch) -> bool {
    severed > Some(asked) || known > asked
}

/// When a site that got its last grant at `granted`, and its peer's last vouch at `vouched`, is
/// certainly fenced, on the controller's clock (invariants.md F3). The peer measured the age of its
/// vouch on its own clock: the drift bound holds between any two of the three clocks, so the times
/// before and after its answer add up.
pub fn waited_out_at(timers: &LeaseTimers, vouched: MonoTime, granted: MonoTime) -> MonoTime {
    let by_peer = vouched.plus(timers.with_drift(timers.peer_ttl));
    let by_grant = granted.plus(timers.with_drift(timers.lease_ttl));
    by_peer.max(by_grant).plus(timers.fence_and_margin())
}

/// Whether waiting can prove a fence at all.
pub fn can_wait_out(timers: &LeaseTimers, last: &LastRight) -> bool {
    last.alive == Some(true) && timers.on_total_isolation == OnTotalIsolation::Fence
}

/// What ends a site's right to take writes at its deadline, whatever the site's agent does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enforcer {
    /// A guard that is the parent of PostgreSQL on the same machine.
    #[default]
    Guard,
    /// The agent itself, through the API of its own cluster: not when either of them is down.
    Api,
    /// Nothing.
    Nobody,
}

impl Enforcer {
    /// Whether the right is certainly over when its time is, so that waiting proves it.
    pub fn is_certain(self) -> bool {
        self == Enforcer::Guard
    }
}

/// The proof that a site cannot write: without one nothing is promoted (invariants.md I2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum FenceProof {
    /// The site's own agent confirms (invariants.md F1).
    Agent {
        /// Whether its answer was relayed by the other site's agent.
        relayed: bool,
        /// How it fenced, in its own words.
        said: String,
    },
    /// The site's infrastructure confirms that everything there has ended (invariants.md F2).
    Infrastructure {
        /// What it said, for people.
        said: String,
        /// What is read again before the pivot, in the infrastructure's own form.
        token: String,
    },
    /// The lease has certainly expired, and the guard has certainly fenced (invariants.md F3).
    WaitedOut {
        /// How long ago this process learned that the sever was confirmed.
        #[serde(rename = "severed_ms_ago", with = "millis")]
        severed_ago: Duration,
        /// How long ago the severed site last vouched; `None` in the log of an older controller,
        /// which used the sever instead.
        #[serde(
            default,
            rename = "vouched_ms_ago",
            with = "millis::option",
            skip_serializing_if = "Option::is_none"
        )]
        vouched_ago: Option<Duration>,
        /// How long ago the last lease may have been granted.
        #[serde(rename = "granted_ms_ago", with = "millis")]
        granted_ago: Duration,
    },
    /// A named operator asserted it (invariants.md F4).
    Override {
        /// The operator.
        operator: String,
        /// The operator's reason.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::super::policy::Policy;
    use super::*;

    fn timers() -> LeaseTimers {
        Policy::read("fast", include_str!("../../policies/fast.toml"))
            .unwrap()
            .lease
    }

    fn at(ms: u64) -> MonoTime {
        MonoTime(Duration::from_millis(ms))
    }

    fn site(name: &str) -> SiteName {
        name.parse().unwrap()
    }

    #[test]
    fn grants_only_to_the_holder_of_the_present_epoch() {
        let mut book = LeaseBook::taken_over(Epoch(3), site("aws"), at(0));
        assert_eq!(book.grant(&site("aws"), Epoch(3), at(1)), Ok(()));
        let superseded = Err(Refusal::Superseded { epoch: Epoch(3) });
        assert_eq!(book.grant(&site("gcp"), Epoch(3), at(1)), superseded);
        assert_eq!(book.grant(&site("aws"), Epoch(2), at(1)), superseded);
        assert!(book.grant(&site("aws"), Epoch(4), at(1)).is_err());
    }

    #[test]
    fn a_raised_epoch_grants_nothing_until_it_is_passed_on() {
        let mut book = LeaseBook::taken_over(Epoch(3), site("aws"), at(0));
        book.grant(&site("aws"), Epoch(3), at(5)).unwrap();
        book.raise(Epoch(4));
        assert!(book.grant(&site("aws"), Epoch(3), at(6)).is_err());
        assert!(book.grant(&site("aws"), Epoch(4), at(6)).is_err());
        assert_eq!(book.last_right().granted, at(5));
        book.pass_to(site("gcp"));
        assert_eq!(book.grant(&site("gcp"), Epoch(4), at(7)), Ok(()));
    }

    #[test]
    fn after_taking_over_the_last_right_is_now_and_nobody_is_known_to_live() {
        let book = LeaseBook::taken_over(Epoch(3), site("aws"), at(9));
        assert_eq!(book.last_right().granted, at(9));
        assert!(!can_wait_out(&timers(), &book.last_right()));
    }

    #[test]
    fn the_holder_counts_from_before_it_asked() {
        let mut holder = Holder::granted(Epoch(1), at(1000), timers());
        assert_eq!(holder.deadline(), Some(at(2500)));
        holder.renewed(Epoch(1), at(900), timers());
        assert_eq!(holder.deadline(), Some(at(2500)), "never backwards");
        holder.renewed(Epoch(0), at(9000), timers());
        assert_eq!(
            holder.deadline(),
            Some(at(2500)),
            "not by a grant of a lower epoch"
        );
    }

    #[test]
    fn losing_the_controller_alone_never_stops_production() {
        let mut holder = Holder::granted(Epoch(1), at(0), timers());
        for second in 1..100 {
            holder.peer_answered(at(second * 1000));
        }
        assert_eq!(holder.deadline(), Some(at(99_000 + 1200)));
        let strict = LeaseTimers {
            fence_on: FenceOn::LeaseLost,
            ..timers()
        };
        holder.renewed(Epoch(1), at(1), strict);
        assert_eq!(
            holder.deadline(),
            Some(at(1501)),
            "unless the policy is stricter"
        );
    }

    #[test]
    fn a_right_is_over_from_its_deadline_on() {
        let holder = Holder::granted(Epoch(1), at(0), timers());
        assert!(!holder.is_over(at(1499)));
        assert!(holder.is_over(at(1500)));
    }

    #[test]
    fn a_peer_that_was_severed_or_promoted_says_superseded_in_every_lower_epoch() {
        assert!(!is_superseded(Epoch(3), None, Epoch(3)));
        assert!(!is_superseded(Epoch(3), Some(Epoch(3)), Epoch(2)));
        assert!(is_superseded(Epoch(3), Some(Epoch(4)), Epoch(3)));
        assert!(is_superseded(Epoch(3), None, Epoch(4)));
    }

    #[test]
    fn waiting_out_covers_every_holder_within_the_bound_of_drift() {
        let timers = timers();
        // The holder's clock runs slow by the whole bound: its second lasts 1 + d of ours.
        for (vouched, granted) in [(0, 0), (5000, 0), (0, 5000), (2000, 1999)] {
            let mut holder = Holder::granted(Epoch(1), at(granted), timers.clone());
            holder.peer_answered(at(vouched));
            let on_its_clock = holder.deadline().unwrap();
            let begun = at(granted.max(vouched));
            let left = on_its_clock.since(begun);
            let on_ours = begun.plus(timers.with_drift(left));
            let fenced = on_ours.plus(timers.with_drift(timers.fence_within));
            assert!(waited_out_at(&timers, at(vouched), at(granted)) > fenced);
        }
    }
}
