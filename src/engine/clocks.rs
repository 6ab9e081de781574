//! How far the places' clocks are apart, as recently measured.

use super::policy::Policy;
use super::reason::{Code, Reason};
use super::situation::Situation;
use super::skew::{LIMIT, Skew};
use super::topology::SiteName;

/// The two clocks that differ most, if by too much; only recent measurements count.
pub fn clock_skew(situation: &Situation, policy: &Policy) -> Option<Reason> {
    let limit = policy.detect.stale_after;
    let mut worst: Option<(Skew, &SiteName, String)> = None;
    for (name, site) in &situation.sites {
        let Some(agent) = site.agent.as_ref().and_then(|agent| agent.within(limit)) else {
            continue;
        };
        let own = site
            .clock
            .map(|skew| (skew, name, "the controller's".to_owned()));
        let fresh = agent.peer.is_some_and(|heard| heard <= limit);
        let other = situation.sites.keys().find(|other| *other != name);
        let peer = agent.peer_clock.filter(|_| fresh).zip(other);
        let peer = peer.map(|(skew, other)| (skew, other, format!("that of `{name}`")));
        for found in own.into_iter().chain(peer) {
            if worst
                .as_ref()
                .is_none_or(|(skew, ..)| found.0.at_least() > skew.at_least())
            {
                worst = Some(found);
            }
        }
    }
    let (skew, site, of) = worst.filter(|(skew, ..)| skew.at_least() > LIMIT)?;
    let reason = Reason::time(Code::ClockSkew, skew.at_least(), LIMIT).at(site);
    Some(reason.because(format!("its clock is {skew} of {of}")))
}
