//! When nodes renewed their leases, on our own clock. The time in a lease is the node's, and is only
//! compared for being another one.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::engine::units::MonoTime;

/// The leases that were read.
#[derive(Debug, Default)]
pub(super) struct Leases(BTreeMap<String, Lease>);

#[derive(Debug)]
struct Lease {
    renewed: String,
    /// When this renewal was last read.
    read: MonoTime,
    /// When an older one was last read: this one came after that.
    older: Option<MonoTime>,
}

impl Leases {
    /// A lease was read; `asked` is the moment before.
    pub(super) fn observe(&mut self, node: &str, renewed: String, asked: MonoTime) {
        let Some(lease) = self.0.get_mut(node) else {
            let lease = Lease {
                renewed,
                read: asked,
                older: None,
            };
            self.0.insert(node.to_owned(), lease);
            return;
        };
        if lease.renewed != renewed {
            lease.older = Some(lease.read);
            lease.renewed = renewed;
        }
        lease.read = asked;
    }

    /// How long ago the lease was renewed, at most; `None` where nobody saw that.
    pub(super) fn age(&self, node: &str, now: MonoTime) -> Option<Duration> {
        let older = self.0.get(node)?.older?;
        Some(now.since(older))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> MonoTime {
        MonoTime(Duration::from_secs(seconds))
    }

    #[test]
    fn a_renewal_is_as_old_as_the_last_look_that_did_not_show_it() {
        let mut leases = Leases::default();
        let age = |leases: &Leases, now| leases.age("a", at(now)).map(|age| age.as_secs());
        assert_eq!(age(&leases, 0), None);
        leases.observe("a", "one".into(), at(10));
        assert_eq!(age(&leases, 10), None, "nobody knows when that was");
        leases.observe("a", "one".into(), at(14));
        leases.observe("a", "two".into(), at(20));
        assert_eq!(age(&leases, 21), Some(7), "it came after 14");
        leases.observe("a", "two".into(), at(60));
        assert_eq!(age(&leases, 60), Some(46), "a lost node's grows old");
        assert_eq!(leases.age("b", at(60)), None);
    }
}
