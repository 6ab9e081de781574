//! What the checkers show of what they know.

use super::Checks;
use crate::engine::chain::Chain;
use crate::engine::topology::SiteName;

impl Checks {
    /// The last events, for people.
    pub fn last_events(&self, count: usize) -> Vec<String> {
        let skip = self.events.len().saturating_sub(count);
        let shown = self.events.iter().skip(skip);
        shown
            .map(|(at, text)| format!("{:>10.3} s  {text}", at.as_secs_f64()))
            .collect()
    }

    /// The site that the log has as active.
    pub fn active(&self) -> Option<SiteName> {
        self.chain.state().map(|state| state.active.clone())
    }

    /// Where the open plan leads.
    pub fn going_to(&self) -> Option<SiteName> {
        let open = self.chain.state()?.open.as_ref()?;
        Some(open.plan.route.to.clone())
    }

    /// The chain as far as it is durable.
    pub fn chain(&self) -> Chain {
        self.chain.clone()
    }
}
