//! Which installation of an agent speaks for a site. A certificate names a site, and a copied
//! machine has it too: the write lease belongs to one instance, and another one waits until the
//! first one's lease has certainly expired (invariants.md I13).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::document::human;
use super::policy::{FenceOn, LeaseTimers, OnTotalIsolation};
use super::topology::SiteName;
use super::units::{MonoTime, UnitError, millis, serde_as_text};

/// One installation of an agent: displayed and parsed as `ID@PLACE` in hexadecimal digits.
///
/// Restarts and reboots change neither. A copy has the same `id` and another `place`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    /// Generated at the agent's first start, and stored with its state.
    pub id: u128,
    /// A digest of what a copy does not share: the machine, and the file that contains the id.
    pub place: u64,
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}@{:016x}", self.id, self.place)
    }
}

impl FromStr for Instance {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || {
            UnitError::new(
                text,
                "an instance of an agent",
                "0123456789abcdef0123456789abcdef@0123456789abcdef",
            )
        };
        let (id, place) = text.split_once('@').ok_or_else(wrong)?;
        // `from_str_radix` would accept a sign and fewer digits.
        let digits = |hex: &str, count: usize| {
            let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            (hex.len() == count && hex.bytes().all(lower)).then_some(())
        };
        digits(id, 32).ok_or_else(wrong)?;
        digits(place, 16).ok_or_else(wrong)?;
        Ok(Self {
            id: u128::from_str_radix(id, 16).map_err(|_cause| wrong())?,
            place: u64::from_str_radix(place, 16).map_err(|_cause| wrong())?,
        })
    }
}

serde_as_text!(Instance);

/// From here on a site's lease and its agent's reports are those of this instance. The decision log
/// carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceChange {
    /// The site.
    pub site: SiteName,
    /// The instance that counts from now on.
    pub instance: Instance,
    /// The instance that counted before; `None` if none was known.
    pub before: Option<Instance>,
}

impl fmt::Display for InstanceChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "site `{}` is instance {}", self.site, self.instance)?;
        match self.before {
            Some(before) => write!(f, ", no longer {before}"),
            None => Ok(()),
        }
    }
}

/// The instance of the other site that an agent last vouched for, as it reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vouched {
    /// The instance; `None` if the request named none.
    pub instance: Option<Instance>,
    /// How long ago; since the agent's own start if it has not vouched since.
    #[serde(rename = "age_ms", with = "millis")]
    pub age: Duration,
}

/// What is known about the last lease of the counting instance, on the controller's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastWord {
    /// The last moment at which it may have been granted the lease.
    pub granted: MonoTime,
    /// The other site's agent's newest report: the earliest moment at which it was made, and how
    /// long before that the agent last vouched for this site.
    pub vouched: Option<(MonoTime, Duration)>,
}

/// Why an instance's lease has not certainly expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotOver {
    /// The last grant may still be valid, or the fence after it may not be over.
    Granted {
        /// For how much longer.
        left: Duration,
    },
    /// The other site's agent may still vouch for it: it has not reported that it does not.
    Vouched,
    /// It never ends: under the policy an isolated site goes on.
    Never,
}

impl fmt::Display for NotOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotOver::Granted { left } => {
                let whole = Duration::from_secs(left.as_secs().saturating_add(1));
                write!(f, "its last grant may be valid for another {}", human(whole))
            }
            NotOver::Vouched => f.write_str("the other site's agent may still vouch for its lease"),
            NotOver::Never => f.write_str(
                "with `on_total_isolation = \"keep\"` only an operator can say that its lease is over",
            ),
        }
    }
}

/// Whether the lease of the counting instance has certainly expired and its guard has fenced, so
/// that another instance of the same site may get it.
///
/// Once the last grant is over, only vouches of the other agent keep the lease, and a vouch does
/// not revive an expired lease. So once that agent reports, after the grant was over, that it has
/// not vouched for longer than a vouch is valid, the lease is over.
pub fn right_is_over(timers: &LeaseTimers, last: &LastWord, now: MonoTime) -> Result<(), NotOver> {
    if timers.on_total_isolation == OnTotalIsolation::Keep {
        return Err(NotOver::Never);
    }
    let lapsed = last.granted.plus(timers.with_drift(timers.lease_ttl));
    let fenced = lapsed.plus(timers.fence_and_margin());
    if now < fenced {
        let left = now.until(fenced);
        return Err(NotOver::Granted { left });
    }
    if timers.fence_on == FenceOn::LeaseLost {
        return Ok(());
    }
    // The clock that counts the age may be slow, and so may the holder's.
    let held = timers.with_drift(timers.with_drift(timers.peer_ttl));
    let long = held.saturating_add(timers.fence_and_margin());
    let silent = last
        .vouched
        .is_some_and(|(made, age)| made >= lapsed && age >= long);
    if silent {
        Ok(())
    } else {
        Err(NotOver::Vouched)
    }
}

/// Whether an agent vouches for a requester, given the instance that it accepts: the one that the
/// controller named, or the first that it heard. A requester without an instance runs an older
/// program, and is accepted only if no instance was ever named.
pub fn deals_with(known: Option<Instance>, given: Option<Instance>) -> bool {
    known.is_none() || known == given
}

#[cfg(test)]
mod tests {
    use super::super::policy::Policy;
    use super::*;

    const FIRST: Instance = Instance { id: 7, place: 1 };
    const COPY: Instance = Instance { id: 7, place: 2 };

    fn timers() -> LeaseTimers {
        Policy::read("fast", include_str!("../../policies/fast.toml"))
            .unwrap()
            .lease
    }

    fn at(ms: u64) -> MonoTime {
        MonoTime(Duration::from_millis(ms))
    }

    #[test]
    fn an_instance_prints_and_parses_and_nothing_else_does() {
        let text = FIRST.to_string();
        assert_eq!(text, "00000000000000000000000000000007@0000000000000001");
        assert_eq!(text.parse(), Ok(FIRST));
        for wrong in [
            "",
            "7@1",
            "+0000000000000000000000000000007@0000000000000001",
        ] {
            assert!(wrong.parse::<Instance>().is_err(), "{wrong}");
        }
        assert!(
            text.to_uppercase().parse::<Instance>().is_ok(),
            "no letters"
        );
        assert!(
            "0000000000000000000000000000000A@0000000000000001"
                .parse::<Instance>()
                .is_err()
        );
        assert_ne!(FIRST, COPY);
    }

    /// The last grant at 0; the report of the other agent made at `made`, its last word `age`
    /// before; asked at `now`.
    fn over(timers: &LeaseTimers, vouched: Option<(u64, u64)>, now: u64) -> Result<(), NotOver> {
        let vouched = vouched.map(|(made, age)| (at(made), Duration::from_millis(age)));
        let granted = at(0);
        right_is_over(timers, &LastWord { granted, vouched }, at(now))
    }

    #[test]
    fn a_right_is_over_when_its_grant_is_and_the_other_agent_says_that_it_let_none_stand() {
        let timers = timers();
        let lapsed = u64::try_from(timers.with_drift(timers.lease_ttl).as_millis()).unwrap();
        let fence = u64::try_from(timers.fence_and_margin().as_millis()).unwrap() + 1;
        let peer = timers.with_drift(timers.with_drift(timers.peer_ttl));
        let long = u64::try_from(peer.as_millis()).unwrap() + fence + 1;
        let end = lapsed + fence + 1;
        let late = end + long;
        #[rustfmt::skip]
        let table = [
            ("the grant still holds", Some((late, long)), end - 3, false),
            ("grant over, the other agent unheard", None, late, false),
            ("its word is from before the grant was over", Some((lapsed - 1, long)), late, false),
            ("it let the right stand a moment ago", Some((late, 0)), late, false),
            ("it let it stand while an answer may hold", Some((late, long - 2)), late, false),
            ("both are over", Some((lapsed + 1, long)), end, true),
            ("both are over for long", Some((late, late)), late * 9, true),
        ];
        for (name, vouched, now, ends) in table {
            assert_eq!(over(&timers, vouched, now).is_ok(), ends, "{name}");
        }
        let keep = LeaseTimers {
            on_total_isolation: OnTotalIsolation::Keep,
            ..timers.clone()
        };
        let never = over(&keep, Some((late, late)), late * 9);
        assert_eq!(never, Err(NotOver::Never), "nobody ends it");
        let strict = LeaseTimers {
            fence_on: FenceOn::LeaseLost,
            ..timers
        };
        assert_eq!(over(&strict, None, end), Ok(()), "only grants hold it");
        assert!(over(&strict, None, end - 3).is_err());
    }

    #[test]
    fn an_agent_deals_with_the_one_that_was_named() {
        assert!(deals_with(None, None), "older programs");
        assert!(deals_with(None, Some(FIRST)), "the first that it hears of");
        assert!(deals_with(Some(FIRST), Some(FIRST)));
        assert!(!deals_with(Some(FIRST), Some(COPY)));
        assert!(!deals_with(Some(FIRST), None));
    }

    #[test]
    fn a_holder_is_fenced_before_another_instance_is_let_in() {
        // The holder's clock runs slow by the whole bound, as that of the other agent does.
        let timers = timers();
        for vouched_at in [0, 500, 3000, 9000] {
            let mut holder = super::super::lease::Holder::granted(
                super::super::units::Epoch(1),
                at(0),
                timers.clone(),
            );
            holder.peer_answered(at(vouched_at));
            let right = holder.deadline().unwrap().since(at(0));
            let fenced = at(0).plus(timers.with_drift(right.saturating_add(timers.fence_within)));
            let first = (0_u64..60_000).step_by(10).find(|now| {
                let age = now.saturating_sub(vouched_at);
                over(&timers, Some((*now, age)), *now).is_ok()
            });
            assert!(at(first.unwrap()) > fenced, "{vouched_at}");
        }
    }
}
