//! How long users' commits wait for a standby. PostgreSQL says which sessions wait, but not since
//! when: that is measured over several probes (postgres.md P34).

use std::collections::BTreeMap;
use std::time::Duration;

use super::units::MonoTime;

/// The probes of sessions whose commits wait.
#[derive(Debug, Clone, Default)]
pub struct Waits {
    /// Each statement that waited at the last probe, and the first probe at which it did.
    since: BTreeMap<String, MonoTime>,
    last: MonoTime,
}

impl Waits {
    /// Adds which statements waited in a probe that began at `read`: one unique name for each.
    pub fn seen(&mut self, read: MonoTime, waiting: &[String]) {
        let since = waiting.iter().map(|statement| {
            let first = self.since.get(statement).copied().unwrap_or(read);
            (statement.clone(), first)
        });
        self.since = since.collect();
        self.last = read;
    }

    /// How long the longest-waiting statement has been seen waiting, as of the last probe.
    pub fn longest(&self) -> Duration {
        let first = self.since.values().min();
        first.map_or(Duration::ZERO, |first| self.last.since(*first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_waits_from_the_first_look_to_the_last_that_saw_it_wait() {
        let at = |seconds| MonoTime(Duration::from_secs(seconds));
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let mut waits = Waits::default();
        waits.seen(at(100), &names(&["a"]));
        assert_eq!(
            waits.longest(),
            Duration::ZERO,
            "it may have begun just now"
        );
        waits.seen(at(103), &names(&["a", "b"]));
        assert_eq!(waits.longest(), Duration::from_secs(3));
        waits.seen(at(105), &names(&["b"]));
        assert_eq!(waits.longest(), Duration::from_secs(2));
        waits.seen(at(106), &[]);
        assert_eq!(waits.longest(), Duration::ZERO);
    }
}
