//! What follows from the state of the group, as the log has it, for whoever grants and decides:
//! whom a process that takes over lets hold the right, whether automation may act, and what an
//! open plan recorded.

use std::time::Duration;

use super::lease::LeaseBook;
use super::loss::RecordedLoss;
use super::saga::{GroupState, Moment};
use super::situation::{AutomationState, HoldFacts};
use super::step::Step;
use super::topology::SiteName;
use super::units::MonoTime;

/// The book of a process that takes over.
pub fn book_of(group: &GroupState, now: MonoTime) -> LeaseBook {
    let mut book = LeaseBook::taken_over(group.epoch, group.active.clone(), now);
    if let Some(saga) = &group.open {
        if saga.past_pivot() {
            book.pass_to(saga.plan.route.to.clone());
        } else if saga.begun(&Step::RaiseEpoch) {
            book.raise(group.epoch);
        }
    }
    book
}

/// Who is to hold the right, and does not by the book, without anybody passing it on: a plan that
/// failed before its pivot, or was undone, gives it back.
pub fn gives_back<'g>(group: &'g GroupState, book: &LeaseBook) -> Option<&'g SiteName> {
    let back = match &group.open {
        None => book.holder.is_none().then_some(&group.active),
        Some(saga) => saga.gives_back_to(),
    };
    back.filter(|site| book.holder.as_ref() != Some(*site))
}

/// Whether automation may act.
pub fn automation_of(group: &GroupState, now: &Moment) -> AutomationState {
    let hold = group.hold.as_ref();
    let hold = hold.and_then(|hold| Some((hold, hold.left(now)?)));
    let ended = group.last_plan.as_ref();
    AutomationState {
        hold: hold.map(|(hold, left)| HoldFacts {
            operator: hold.operator.clone(),
            reason: hold.reason.clone(),
            until: hold.until,
            left,
        }),
        disarmed: group.disarmed,
        last_failover: ended.map(|ended| ended.ago(now).max(Duration::from_millis(1))),
    }
}

/// What the open plan recorded as lost. Once its site is the active one it says nothing about a way back.
pub fn recorded_loss(group: &GroupState, now: &Moment) -> Option<RecordedLoss> {
    let open = group.open.as_ref();
    let saga = open.filter(|saga| saga.plan.route.from == group.active)?;
    let before = saga.opened.wall.since(saga.plan.known_at);
    Some(RecordedLoss {
        loss: saga.plan.loss.clone(),
        ago: saga.opened.ago(now).saturating_add(before),
    })
}

#[cfg(test)]
mod tests {
    use super::super::lease::LastRight;
    use super::super::plan::Plan;
    use super::super::saga::{Command, Ending, Happening};
    use super::super::situation::samples::{aws, gcp, healthy};
    use super::super::step::{Event, Fact};
    use super::super::topology::Topology;
    use super::super::units::{Epoch, WallTime};
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment {
            wall: WallTime(seconds * 1000),
            mono: Duration::from_secs(seconds),
            boot: "b".into(),
        }
    }

    fn now() -> MonoTime {
        MonoTime(Duration::from_secs(100))
    }

    struct Log(GroupState);

    impl Log {
        fn new() -> Self {
            Self(GroupState::new(&Topology {
                group: "shop".parse().unwrap(),
                first: aws(),
                second: gcp(),
                traffic: Vec::new(),
            }))
        }

        /// A plan that was opened at 10 s, on what was known at 9 s, and walked up to a step, with
        /// what became of that one last.
        fn walked(up_to: &Step, last: &Event) -> Self {
            let mut log = Self::new();
            let right = LastRight {
                site: aws(),
                granted: now(),
                alive: Some(true),
                machine: None,
            };
            let topology = Topology {
                group: "shop".parse().unwrap(),
                first: aws(),
                second: gcp(),
                traffic: Vec::new(),
            };
            let plan = Plan::failover(&healthy(), &topology, &right, WallTime(9000));
            let last_index = plan.steps.iter().position(|step| step == up_to).unwrap();
            log.happens(&Happening::Planned(&plan));
            for index in 0..last_index {
                log.step(index, &Event::Started);
                log.step(index, &Event::Done { fact: Fact::Done });
            }
            log.step(last_index, &Event::Started);
            if *last != Event::Started {
                log.step(last_index, last);
            }
            log
        }

        fn step(&mut self, index: usize, event: &Event) {
            self.happens(&Happening::Stepped {
                plan: 7,
                index,
                event,
            });
        }

        fn happens(&mut self, happening: &Happening<'_>) {
            self.0.apply(7, &at(10), happening).unwrap();
        }
    }

    fn failed() -> Event {
        Event::Failed { why: "no".into() }
    }

    #[test]
    fn a_process_that_takes_over_lets_hold_the_right_whom_the_log_names() {
        let done = Event::Done { fact: Fact::Done };
        #[rustfmt::skip]
        let table = [
            ("no plan", Log::new(), Some(aws()), Epoch(1)),
            ("nothing is done yet", Log::walked(&Step::Recheck, &done), Some(aws()), Epoch(1)),
            ("the epoch is about to be raised", Log::walked(&Step::RaiseEpoch, &Event::Started), None, Epoch(2)),
            ("the old site is fenced", Log::walked(&Step::Fence, &done), None, Epoch(2)),
            ("nobody knows whether it is promoted", Log::walked(&Step::Promote, &Event::Started), Some(gcp()), Epoch(2)),
            ("it is", Log::walked(&Step::Promote, &done), Some(gcp()), Epoch(2)),
            ("it certainly is not", Log::walked(&Step::Promote, &failed()), None, Epoch(2)),
        ];
        for (name, log, holder, epoch) in table {
            let book = book_of(&log.0, now());
            assert_eq!((book.holder, book.epoch), (holder, epoch), "{name}");
        }
    }

    #[test]
    fn a_plan_that_cannot_go_on_gives_the_right_back_and_no_other_does() {
        let given = |log: &Log| gives_back(&log.0, &book_of(&log.0, now())).cloned();
        let done = Event::Done { fact: Fact::Done };
        assert_eq!(given(&Log::new()), None, "it has the right");
        assert_eq!(given(&Log::walked(&Step::Fence, &done)), None);
        assert_eq!(given(&Log::walked(&Step::Fence, &failed())), Some(aws()));
        assert_eq!(given(&Log::walked(&Step::Promote, &done)), None);
        let mut undone = Log::walked(&Step::RaiseEpoch, &failed());
        let book = book_of(&undone.0, now());
        let why = String::new();
        let ending = &Ending::Undone { why };
        undone.happens(&Happening::Ended { plan: 7, ending });
        assert_eq!(gives_back(&undone.0, &book), Some(&aws()));
    }

    #[test]
    fn automation_is_held_for_as_long_as_a_person_said() {
        let mut log = Log::new();
        let command = &Command::Hold {
            reason: "maintenance".into(),
            until: WallTime(70_000),
        };
        let operator = "alice";
        log.happens(&Happening::Commanded { operator, command });
        let left = |second| {
            let hold = automation_of(&log.0, &at(second)).hold;
            hold.map(|hold| hold.left.as_secs())
        };
        assert_eq!((left(10), left(69), left(70)), (Some(60), Some(1), None));
        assert_eq!(automation_of(&log.0, &at(10)).last_failover, None);
    }

    #[test]
    fn what_a_plan_recorded_ages_from_when_it_was_known() {
        let log = Log::walked(&Step::Recheck, &Event::Started);
        let recorded = recorded_loss(&log.0, &at(40)).unwrap();
        assert_eq!(recorded.loss, healthy().loss());
        assert_eq!(recorded.ago, Duration::from_secs(31));
        assert_eq!(recorded_loss(&Log::new().0, &at(40)), None);
    }
}
