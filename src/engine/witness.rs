//! Whether the decision log is behind the world. A starting controller knows only its log, which
//! may be yesterday's or empty: before it grants anything, the log is compared with what agents,
//! databases and traffic targets remember (invariants.md I12).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::answer::Answer;
use super::chain::{Fit, LogMark, Recent};
use super::saga::GroupState;
use super::situation::{LogBehind, LogFacts};
use super::topology::{SiteName, TargetName};
use super::units::Epoch;

/// By how many epochs a log may be behind for a claim to be believed. An epoch is one failover, so
/// a larger claim cannot be true.
const MOST_BEHIND: u64 = 1000;

/// The most entries that a log is believed to have: what JSON keeps exactly.
const MOST_ENTRIES: u64 = (1 << 53) - 1;

/// Who remembers an epoch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Witness {
    /// The agent of a site.
    Agent(SiteName),
    /// The epoch row in a site's database.
    Database(SiteName),
    /// The note beside a traffic target's answer.
    Traffic(TargetName),
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Witness::Agent(site) => write!(f, "the agent of site `{site}`"),
            Witness::Database(site) => write!(f, "the database of site `{site}`"),
            Witness::Traffic(target) => write!(f, "the note at traffic target `{target}`"),
        }
    }
}

/// The part of an agent's report that concerns the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentWord {
    /// Its site.
    pub site: SiteName,
    /// The highest epoch that it knows.
    pub epoch: Epoch,
    /// The end of the log when it last heard of it.
    pub log: Option<LogMark>,
    /// Whether its lease in that epoch has not expired since it was granted.
    pub holds: bool,
}

impl AgentWord {
    /// Whether it contradicts that the log is current.
    pub fn contradicts(&self, log: Log<'_>) -> bool {
        self.epoch > log.state.epoch || self.log.is_some_and(|mark| log.is_foreign(&mark))
    }
}

/// A log and its state.
#[derive(Debug, Clone, Copy)]
pub struct Log<'l> {
    /// The state of the group that follows from it.
    pub state: &'l GroupState,
    /// Its last entries.
    pub recent: &'l Recent,
}

impl Log<'_> {
    /// Whether a mark belongs to another log that nobody gave up.
    fn is_foreign(&self, mark: &LogMark) -> bool {
        let believed = (self.state.lost.saturating_add(1)..=MOST_ENTRIES).contains(&mark.entries);
        believed && matches!(self.recent.fits(mark), Fit::Longer | Fit::Other)
    }
}

/// Everything heard since this process took over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Testimony {
    /// The highest epoch that each witness reported.
    epochs: BTreeMap<Witness, Epoch>,
    /// The end of the log for each agent, as it last reported; `None` for one that reported none.
    marks: BTreeMap<SiteName, Option<LogMark>>,
    /// Each traffic target's answer; `None` for one that was not read yet.
    notes: BTreeMap<TargetName, Option<Answer>>,
    /// Whether the log was empty when this process began.
    began_empty: bool,
    /// The agents that knew no epoch when they first reported.
    new: BTreeSet<SiteName>,
    /// The sites whose database was seen as a standby, by us or by their own agent.
    standbys: BTreeSet<SiteName>,
    /// Whether an agent held an unbroken lease in the log's epoch, or an operator confirmed the
    /// log.
    settled: bool,
}

impl Testimony {
    /// Nothing heard yet. `began_empty`: this process created the log. `targets`: the traffic
    /// targets that will be read.
    pub fn awaited(began_empty: bool, targets: impl IntoIterator<Item = TargetName>) -> Self {
        Self {
            began_empty,
            notes: targets.into_iter().map(|name| (name, None)).collect(),
            ..Self::default()
        }
    }

    /// Adds an agent's report. Its age does not matter: what it remembers happened.
    pub fn agent(&mut self, word: &AgentWord, log: Log<'_>) {
        if !self.marks.contains_key(&word.site) && word.epoch == Epoch(0) && word.log.is_none() {
            self.new.insert(word.site.clone());
        }
        // A mark of another log stays, whatever a second instance of the site reports.
        let before = self.marks.get(&word.site).copied().flatten();
        let stays = before.filter(|mark| log.is_foreign(mark));
        let further = |new: LogMark| stays.is_none_or(|old| new.entries >= old.entries);
        let mark = word.log.filter(|new| further(*new)).or(stays);
        self.marks.insert(word.site.clone(), mark);
        self.knows(Witness::Agent(word.site.clone()), word.epoch);
        // Nothing is promoted past a lease that never expired.
        let ours = word.epoch == log.state.epoch && word.site == log.state.active;
        self.settled |= word.holds && ours && log.state.open.is_none();
    }

    /// Adds the epoch row of a site's database. `standby`: it is one, as seen by us or by its own
    /// agent.
    pub fn database(&mut self, site: &SiteName, row: Option<Epoch>, standby: bool) {
        if let Some(epoch) = row {
            self.knows(Witness::Database(site.clone()), epoch);
        }
        if standby {
            self.standbys.insert(site.clone());
        }
    }

    /// Adds a traffic target's answer.
    pub fn traffic(&mut self, target: TargetName, answer: Answer) {
        if let Some(epoch) = answer.epoch {
            self.knows(Witness::Traffic(target.clone()), epoch);
        }
        self.notes.insert(target, Some(answer));
    }

    /// Whether the group is new to this process and a site's agent: the log was empty, and the
    /// agent knew no epoch.
    pub fn begins_with(&self, site: &SiteName) -> bool {
        self.began_empty && self.new.contains(site)
    }

    /// An operator confirmed the log as it is now.
    pub fn adopted(&mut self) {
        self.settled = true;
    }

    fn knows(&mut self, witness: Witness, epoch: Epoch) {
        let known = self.epochs.entry(witness).or_default();
        *known = epoch.max(*known);
    }

    /// The highest epoch that anybody reported, and who.
    fn newest(&self, state: &GroupState) -> Option<(&Witness, Epoch)> {
        let most = state.epoch.0.saturating_add(MOST_BEHIND);
        let believed = self.epochs.iter().filter(|(_, epoch)| epoch.0 <= most);
        believed
            .map(|(witness, epoch)| (witness, *epoch))
            .max_by_key(|(_, epoch)| *epoch)
    }

    /// How many entries of another log anybody remembers.
    pub fn lost(&self, log: Log<'_>) -> u64 {
        let foreign = self.foreign_marks(log);
        foreign.map(|(_, mark)| mark.entries).max().unwrap_or(0)
    }

    fn foreign_marks<'t>(
        &'t self,
        log: Log<'t>,
    ) -> impl Iterator<Item = (&'t SiteName, LogMark)> + 't {
        let marks = self.marks.iter();
        let known = marks.filter_map(|(site, mark)| Some((site, (*mark)?)));
        known.filter(move |(_, mark)| log.is_foreign(mark))
    }

    /// Who knows more than the log, if anybody.
    pub fn behind(&self, log: Log<'_>) -> Option<LogBehind> {
        let state = log.state;
        if let Some((witness, epoch)) = self.newest(state).filter(|(_, it)| *it > state.epoch) {
            return Some(LogBehind {
                witness: witness.to_string(),
                knows: format!("epoch {epoch}"),
                holds: format!("epoch {}", state.epoch),
            });
        }
        let mut foreign = self.foreign_marks(log);
        let (site, mark) = foreign.next()?;
        let holds = log.recent.end().map_or(0, |end| end.entries);
        let head = mark.head.to_string();
        Some(LogBehind {
            witness: Witness::Agent(site.clone()).to_string(),
            knows: format!(
                "{} entries that end in {}",
                mark.entries,
                head.get(..16).unwrap_or(&head)
            ),
            holds: format!("{holds} entries that do not"),
        })
    }

    /// Whether anybody but the requester has confirmed that the log is current: only then does a
    /// site without the lease get it.
    ///
    /// Ways to confirm it: the other site's agent knows no later epoch, and only there could one
    /// have begun; the other site's database is a standby; the active site's lease never expired;
    /// an operator confirms. If the other site is gone for good: users are led to the requester in
    /// the log's epoch, and the requester remembers this very log. And a new group: an empty log,
    /// an agent that knows nothing, and no note that does.
    pub fn witnessed(&self, asker: &SiteName, log: Log<'_>) -> bool {
        if self.settled {
            return true;
        }
        let other = |witness: &Witness| matches!(witness, Witness::Agent(site) if site != asker);
        let others_word = self.epochs.keys().any(other);
        let standby = self.standbys.iter().any(|site| site != asker);
        others_word || standby || self.users_are_led_to(asker, log) || self.is_new(asker)
    }

    fn users_are_led_to(&self, asker: &SiteName, log: Log<'_>) -> bool {
        let remembers = self.marks.get(asker).copied().flatten();
        let same = remembers.is_some_and(|mark| log.recent.fits(&mark) == Fit::Same);
        let leads = |answer: &Option<Answer>| {
            let answer = answer.as_ref();
            answer.is_some_and(|it| it.is_only(asker) && it.epoch == Some(log.state.epoch))
        };
        same && !self.notes.is_empty() && self.notes.values().all(leads)
    }

    fn is_new(&self, asker: &SiteName) -> bool {
        self.begins_with(asker) && self.notes.values().all(Option::is_some)
    }

    /// For a situation: the answer that the active site would get to a new request.
    pub fn facts(&self, log: Log<'_>) -> LogFacts {
        LogFacts {
            stopped: None,
            behind: self.behind(log),
            unwitnessed: log.state.open.is_none() && !self.witnessed(&log.state.active, log),
        }
    }

    /// Whether an operator's statement agrees with what is seen: `holders` are the sites whose
    /// agents hold an unexpired lease, or request one in the adopted epoch, and `primaries` those
    /// whose database was recently seen as a primary.
    pub fn agrees(
        &self,
        adopted: (Epoch, &SiteName),
        holders: &BTreeMap<SiteName, Epoch>,
        primaries: &BTreeSet<SiteName>,
        state: &GroupState,
    ) -> Result<(), String> {
        let (epoch, active) = adopted;
        if epoch < state.epoch {
            return Err(format!(
                "the decision log is in epoch {} already, and an epoch only grows",
                state.epoch
            ));
        }
        let newest = self.newest(state);
        if let Some((witness, known)) = newest.filter(|(_, known)| *known > epoch) {
            return Err(format!("{witness} knows of epoch {known}"));
        }
        let known = newest.map_or(state.epoch, |(_, known)| known.max(state.epoch));
        if epoch > known {
            return Err(format!("nobody knows of an epoch after {known}"));
        }
        if let Some((site, held)) = holders.iter().find(|(site, _)| *site != active) {
            return Err(format!(
                "the agent of site `{site}` holds the lease in epoch {held}, or requests it"
            ));
        }
        if let Some(site) = primaries.iter().find(|site| *site != active) {
            return Err(format!("the database of site `{site}` is a primary"));
        }
        if self.standbys.contains(active) && !primaries.contains(active) {
            return Err(format!("the database of site `{active}` is a standby"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain::{Body, Chain, Digest, Entry};
    use super::super::situation::samples::{aws, gcp};
    use super::super::topology::Topology;
    use super::super::units::WallTime;
    use super::*;

    fn topology() -> Topology {
        Topology {
            group: "shop".parse().unwrap(),
            first: aws(),
            second: gcp(),
            traffic: vec![dns()],
        }
    }

    fn dns() -> TargetName {
        "dns".parse().unwrap()
    }

    /// A log of so many entries, all of them notes of this word.
    fn log(entries: u64, word: &str) -> Chain {
        let mut chain = Chain::default();
        for seq in 1..=entries {
            let (code, text) = ("note".to_owned(), word.to_owned());
            let body = match seq {
                1 => Body::Opened {
                    topology: topology(),
                    format: None,
                },
                _ => Body::Note { code, text },
            };
            let entry = Entry {
                seq,
                at: WallTime(0),
                mono_ms: 0,
                boot: "b".into(),
                group: "shop".parse().unwrap(),
                epoch: Epoch(1),
                actor: "controller".into(),
                version: "0".into(),
                settings: Digest::ZERO,
                body,
                previous: chain.head,
            };
            chain.append(&entry).unwrap();
        }
        chain
    }

    fn of(chain: &Chain) -> Log<'_> {
        Log {
            state: chain.state().unwrap(),
            recent: &chain.recent,
        }
    }

    fn word(site: SiteName, epoch: u64) -> AgentWord {
        AgentWord {
            site,
            epoch: Epoch(epoch),
            log: None,
            holds: false,
        }
    }

    fn leads(site: &SiteName, epoch: u64) -> Answer {
        Answer::only(site, &topology(), Epoch(epoch))
    }

    #[test]
    fn a_mark_fits_the_log_that_it_was_taken_from() {
        let (short, long, other) = (log(4, "a"), log(2000, "a"), log(4, "b"));
        let mark = short.recent.end().unwrap();
        assert_eq!(mark.entries, 4);
        assert_eq!(short.recent.fits(&mark), Fit::Same);
        assert_eq!(log(9, "a").recent.fits(&mark), Fit::Same);
        assert_eq!(log(3, "a").recent.fits(&mark), Fit::Longer);
        assert_eq!(other.recent.fits(&mark), Fit::Other);
        assert_eq!(long.recent.fits(&mark), Fit::TooOld);
        assert_eq!(Recent::default().fits(&mark), Fit::Longer);
    }

    #[test]
    fn whoever_knows_of_more_is_named() {
        let chain = log(5, "a");
        let mark = |entries, word: &str| log(entries, word).recent.end();
        let agent = |epoch, log| {
            let mut heard = Testimony::default();
            heard.agent(
                &AgentWord {
                    log,
                    ..word(gcp(), epoch)
                },
                of(&chain),
            );
            heard
        };
        let row = |epoch| {
            let mut heard = Testimony::default();
            heard.database(&gcp(), Some(Epoch(epoch)), false);
            heard
        };
        let note = |epoch| {
            let mut heard = Testimony::default();
            heard.traffic(dns(), leads(&gcp(), epoch));
            heard
        };
        #[rustfmt::skip]
        let table = [
            ("nobody spoke", Testimony::default(), None),
            ("an agent of this epoch", agent(1, None), None),
            ("an agent of the next", agent(2, None), Some("the agent of site `gcp`")),
            ("the row of this epoch", row(1), None),
            ("the row of the next", row(2), Some("the database of site `gcp`")),
            ("the note of this epoch", note(1), None),
            ("the note of the next", note(2), Some("the note at traffic target `dns`")),
            ("an agent that remembers this log", agent(1, mark(4, "a")), None),
            ("one that remembers a longer one", agent(1, mark(6, "a")), Some("the agent of site `gcp`")),
            ("one that remembers another one", agent(1, mark(4, "b")), Some("the agent of site `gcp`")),
            ("an epoch that nobody can remember", row(u64::MAX), None),
        ];
        for (name, heard, who) in table {
            let behind = heard.behind(of(&chain)).map(|behind| behind.witness);
            assert_eq!(behind.as_deref(), who, "{name}");
        }
    }

    #[test]
    fn what_is_remembered_of_a_log_that_was_given_up_counts_no_more() {
        let mut chain = log(5, "a");
        let mut heard = Testimony::default();
        let mark = log(7, "b").recent.end();
        heard.agent(
            &AgentWord {
                log: mark,
                ..word(gcp(), 1)
            },
            of(&chain),
        );
        assert!(heard.behind(of(&chain)).is_some());
        assert_eq!(heard.lost(of(&chain)), 7);
        chain.about.as_mut().unwrap().1.lost = 7;
        assert_eq!(heard.behind(of(&chain)), None);
    }

    #[test]
    fn a_right_that_is_to_begin_needs_a_witness() {
        let chain = log(5, "a");
        let mine = chain.recent.end();
        let targets = || [dns()];
        let heard = |began_empty, with: &dyn Fn(&mut Testimony)| {
            let mut heard = Testimony::awaited(began_empty, targets());
            with(&mut heard);
            heard
        };
        let says = |log, said: AgentWord| {
            move |heard: &mut Testimony| {
                heard.agent(
                    &AgentWord {
                        log,
                        ..said.clone()
                    },
                    of(&chain_of()),
                );
            }
        };
        fn chain_of() -> Chain {
            log(5, "a")
        }
        let holds = AgentWord {
            holds: true,
            ..word(aws(), 1)
        };
        let both = |one: &dyn Fn(&mut Testimony), two: &dyn Fn(&mut Testimony)| {
            let mut heard = heard(true, one);
            two(&mut heard);
            heard
        };
        let noted = |epoch| move |heard: &mut Testimony| heard.traffic(dns(), leads(&aws(), epoch));
        let none = |_: &mut Testimony| {};
        #[rustfmt::skip]
        let table = [
            ("nobody spoke", heard(false, &none), false),
            ("the asker itself", heard(false, &says(mine, word(aws(), 1))), false),
            ("its right never ended", heard(false, &says(mine, holds)), true),
            ("the other agent", heard(false, &says(None, word(gcp(), 1))), true),
            ("the other database is a standby", heard(false, &|it| it.database(&gcp(), Some(Epoch(1)), true)), true),
            ("the other database answers", heard(false, &|it| it.database(&gcp(), Some(Epoch(1)), false)), false),
            ("its own database", heard(false, &|it| it.database(&aws(), Some(Epoch(1)), true)), false),
            ("the note alone", heard(false, &noted(1)), false),
            ("the note, and the asker remembers this log", both(&says(mine, word(aws(), 1)), &noted(1)), true),
            ("the note, and the asker remembers nothing", both(&says(None, word(aws(), 1)), &noted(1)), false),
            ("the note of an epoch before", both(&says(mine, word(aws(), 1)), &noted(0)), false),
            ("a new log, an agent that knows of nothing, a note", both(&says(None, word(aws(), 0)), &noted(1)), true),
            ("a new log, a note that was not read", heard(true, &says(None, word(aws(), 0))), false),
            ("a new log, an agent that was there before", both(&says(None, word(aws(), 1)), &noted(0)), false),
            ("a person vouches", heard(false, &|it| it.adopted()), true),
        ];
        for (name, heard, witnessed) in table {
            assert_eq!(heard.witnessed(&aws(), of(&chain)), witnessed, "{name}");
        }
    }

    #[test]
    fn what_a_person_says_must_agree_with_what_is_seen() {
        let chain = log(5, "a");
        let state = chain.state().unwrap();
        let mut heard = Testimony::default();
        heard.agent(&word(gcp(), 3), of(&chain));
        let nobody = BTreeMap::new();
        let none = BTreeSet::new();
        let say = |epoch, site: &SiteName, holders: &BTreeMap<_, _>, primaries: &BTreeSet<_>| {
            heard.agrees((Epoch(epoch), site), holders, primaries, state)
        };
        let refused = |said: Result<(), String>, words: &str| {
            let why = said.unwrap_err();
            assert!(why.contains(words), "{why}");
        };
        assert_eq!(say(3, &gcp(), &nobody, &none), Ok(()));
        refused(say(0, &gcp(), &nobody, &none), "only grows");
        refused(say(2, &gcp(), &nobody, &none), "knows of epoch 3");
        refused(say(4, &gcp(), &nobody, &none), "nobody knows");
        let holds = [(gcp(), Epoch(3))].into();
        refused(say(3, &aws(), &holds, &none), "holds the lease");
        assert_eq!(say(3, &gcp(), &holds, &none), Ok(()));
        let primary = [gcp()].into();
        refused(say(3, &aws(), &nobody, &primary), "is a primary");
        let mut heard = heard.clone();
        heard.database(&aws(), None, true);
        let said = heard.agrees((Epoch(3), &aws()), &nobody, &none, state);
        refused(said, "is a standby");
    }
}
