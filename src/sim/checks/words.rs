//! What was said, held against what was so: the loss that was declared, and fences by nobody's order.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Acknowledged, Checks};
use crate::engine::loss::DeclaredLoss;
use crate::engine::topology::SiteName;
use crate::engine::units::{Epoch, WallTime};
use crate::sim::invariant::Invariant;
use crate::sim::machine::{Machine, Truth, Written};
use crate::sim::world::Skew;

impl Checks {
    /// An agent has its database fenced.
    pub fn fenced_by_word(&mut self, at: Truth, site: &SiteName, epoch: Epoch, cause: &str) {
        if epoch > self.raised {
            let log = self.raised;
            let what =
                format!("{site} is fenced in epoch {epoch}, and the log got to {log}: {cause}");
            self.violated(Invariant::SignedWords, at, what);
        }
    }

    /// A guard fences what was promoted, because it has let go of the right that was there for it.
    pub fn by_own_hand(&mut self, machine: &mut Machine) {
        if let Some(at) = machine.fenced_without_right.take() {
            let what = format!("{} was promoted with a right, and is fenced", machine.site);
            self.violated(Invariant::OwnHand, at, what);
        }
    }

    /// The longest time without an acknowledged write between two moments.
    pub fn longest_gap(&self, from: Truth, to: Truth) -> Duration {
        let inside = self.acknowledged.iter().map(|write| write.at);
        let inside = inside.filter(|at| (from..to).contains(at));
        let mut last = from;
        let mut longest = Duration::ZERO;
        for at in inside.chain([to]) {
            longest = longest.max(at.saturating_sub(last));
            last = at;
        }
        longest
    }

    /// Whether a write that is lost lies within what was declared. By the controller's wall clock, as
    /// people read it, as long as nobody set that; by how long before the declaration it was, else.
    fn inside(&self, declared: &DeclaredLoss, at: Truth, neutral: Skew) -> bool {
        // The log counts in whole milliseconds.
        if self.stepped {
            let slack = Duration::from_millis(2);
            let before = self.declaring_at.saturating_sub(at);
            let drift = neutral.lasting(Duration::from_secs(1));
            let most = declared.window.map(|window| {
                let whole = window.as_millis().saturating_mul(drift.as_micros()) / 1_000_000;
                Duration::from_millis(u64::try_from(whole).unwrap_or(u64::MAX))
            });
            let not_after = at <= self.declared_at.saturating_add(slack);
            return not_after && most.is_none_or(|most| before <= most.saturating_add(slack * 5));
        }
        let when = neutral.wall(at);
        let after = WallTime(when.0.saturating_add(2));
        declared.from.is_none_or(|from| after >= from) && when <= declared.until
    }

    /// Whether the last plan said that nothing is lost: then nothing is excused either.
    pub(super) fn loses_nothing(&self) -> bool {
        let declared = self.declared.as_ref();
        declared.is_some_and(|declared| declared.nothing)
    }

    pub(super) fn check_loss(&mut self, at: Truth, new: &Machine, neutral: Skew) {
        let rows = new.wal.iter().filter_map(|record| match record.what {
            Written::Row(number) => Some(number),
            Written::Heartbeat(..) | Written::Epoch(_) | Written::Timeline(_) => None,
        });
        let rows: BTreeSet<u64> = rows.collect();
        let Some(declared) = self.declared.clone() else {
            return;
        };
        let lost: Vec<Acknowledged> = self
            .acknowledged
            .iter()
            .filter(|write| write.timeline < new.timeline && write.site != new.site)
            .filter(|write| !rows.contains(&write.number) && !self.lost.contains(&write.number))
            .cloned()
            .collect();
        let mut outside = None;
        for write in lost {
            self.lost.insert(write.number);
            let when = neutral.wall(write.at);
            let inside = self.inside(&declared, write.at, neutral);
            if !inside && write.excused && !declared.nothing {
                self.after_thaw += 1;
            } else if !inside && !self.vouched {
                outside = Some((write.number, when));
            }
        }
        if let Some((number, when)) = outside {
            let what = format!(
                "row {number}, acknowledged at {when}, is lost, but declared was {:?} to {}",
                declared.from, declared.until
            );
            self.violated(Invariant::DeclaredLoss, at, what);
        }
    }
}
