//! Writes the epoch, and what probes need, into a database that takes writes.

use std::time::Duration;

use super::troubles::Trouble;
use super::{Keeper, News, SQL};
use crate::engine::topology::Role;
use crate::engine::units::{Epoch, MonoTime};
use crate::ports::EffectError;

/// How long to wait before writing the epoch again after a failure.
const MARK_AGAIN: Duration = Duration::from_secs(1);

/// Whether the database knows the epoch in which it takes writes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Marking {
    /// Not before this moment.
    Due(MonoTime),
    UnderWay,
    Done(Epoch),
}

/// The result.
#[derive(Debug)]
pub enum Marked {
    /// All of it is written.
    Whole,
    /// The epoch is written; what our probes need is not, and why.
    Epoch(EffectError),
    /// Nothing is known to be written, and why.
    Nothing(EffectError),
}

impl Keeper {
    /// Writes schema, epoch and grants into a primary that holds the write lease, until that
    /// succeeds: so a database that was just handed over needs no preparation by hand. Runs beside
    /// the keeper, because a commit may block.
    pub(super) fn mark(&mut self, now: MonoTime) {
        let primary = self.look.role() == Role::Primary && self.look.running();
        let Some(holder) = self.holder.as_ref().filter(|_| primary) else {
            return;
        };
        let epoch = holder.epoch();
        let due = match self.marking {
            Marking::Due(from) => now >= from,
            Marking::UnderWay => false,
            Marking::Done(written) => written != epoch,
        };
        if !due || self.promoting.is_some() {
            return;
        }
        self.marking = Marking::UnderWay;
        let database = self.database.clone();
        self.beside(async move {
            let marked = match database.ledger.write_epoch(epoch, SQL).await {
                Err(error) => Marked::Nothing(error),
                Ok(()) => match database.ledger.allow_looks(SQL).await {
                    Err(error) => Marked::Epoch(error),
                    Ok(()) => Marked::Whole,
                },
            };
            News::Marked(epoch, marked)
        });
    }

    pub(super) fn marked(&mut self, epoch: Epoch, marked: Marked) {
        let again = Marking::Due(self.clock.now().plus(MARK_AGAIN));
        match marked {
            Marked::Whole => {
                self.over(Trouble::EpochNotWritten);
                self.over(Trouble::GrantsNotMade);
                self.epoch_written = Some(epoch);
                self.marking = Marking::Done(epoch);
            }
            Marked::Epoch(error) => {
                self.trouble(Trouble::GrantsNotMade, &error);
                self.epoch_written = Some(epoch);
                self.marking = again;
            }
            Marked::Nothing(error) => {
                self.trouble(Trouble::EpochNotWritten, &error);
                self.marking = again;
            }
        }
    }
}
