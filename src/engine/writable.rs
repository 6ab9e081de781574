//! Whether a new primary takes writes in its epoch: seen by the controller, or by the agent beside
//! it where the controller is kept out.

use std::time::Duration;

use super::observation::{DatabaseFacts, Facts, Finding};
use super::situation::{AgentFacts, LocalDatabase, SiteFacts};
use super::topology::Role;
use super::units::Epoch;

/// Who saw it take a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenBy {
    /// The controller.
    Controller,
    /// The agent there, because something kept the controller out: what, and what the agent saw.
    Agent(String),
}

/// Whether a site's database takes writes in an epoch, by a look of the controller and by what is
/// known of the site; or what is missing.
///
/// Where the controller is not let in, does not get there, or is kept from its own rows, the agent
/// stands for it: by its look, which wrote and read back after the promotion, since it saw the
/// epoch; or, where that is kept out by the same cause (a password, a grant, a lock), by its word
/// that it wrote the epoch itself and read it back.
pub fn takes_writes(
    look: &Finding,
    site: Option<&SiteFacts>,
    epoch: Epoch,
    limit: Duration,
) -> Result<SeenBy, String> {
    let facts = match look {
        Finding::Good(Facts::Database(facts)) => facts,
        Finding::Good(Facts::Api | Facts::Agent) => return Err("no database answered".to_owned()),
        Finding::Bad(failure) => return agent_vouches(site, epoch, limit, &failure.to_string()),
    };
    match (missing(facts, epoch), &facts.blocked) {
        (None, _) => Ok(SeenBy::Controller),
        (Some(_), Some(blocked)) if facts.role == Role::Primary => {
            agent_vouches(site, epoch, limit, blocked)
        }
        (Some(why), _) => Err(why),
    }
}

fn agent_vouches(
    site: Option<&SiteFacts>,
    epoch: Epoch,
    limit: Duration,
    kept_out: &str,
) -> Result<SeenBy, String> {
    let look = site.and_then(|site| site.database.as_ref()?.within(limit));
    let agent = site.and_then(|site| site.agent.as_ref()?.within(limit));
    let vouched = |what: &str| Ok(SeenBy::Agent(format!("{what}: {kept_out}")));
    match look.map(|facts| missing(facts, epoch)) {
        Some(None) => vouched("was seen by its agent, not from here"),
        Some(Some(_)) | None if agent.is_some_and(|agent| wrote(agent, epoch)) => {
            vouched("was done by its agent, which read it back; looks are kept out")
        }
        Some(Some(why)) => Err(format!("{kept_out}; its agent says: {why}")),
        None => Err(kept_out.to_owned()),
    }
}

fn wrote(agent: &AgentFacts, epoch: Epoch) -> bool {
    agent.epoch_written == Some(epoch)
        && agent.fenced.is_none()
        && agent.database == LocalDatabase::Up
}

/// What is missing for a database to take writes in an epoch.
fn missing(facts: &DatabaseFacts, epoch: Epoch) -> Option<String> {
    if facts.role != Role::Primary {
        Some("it is a standby".to_owned())
    } else if facts.write_took.is_none() {
        Some("it took no write".to_owned())
    } else if let Some(names) = facts.waits_in_vain() {
        // Its users would hang, and our own writes do not show it (postgres.md P24).
        Some(format!(
            "its commits wait for {names}, and nobody of that name streams"
        ))
    } else if facts.epoch != Some(epoch) {
        let row = facts.epoch;
        let row = row.map_or("nothing".to_owned(), |epoch| epoch.to_string());
        Some(format!("its epoch row says {row}, not {epoch}"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::observation::ProbeFailure;
    use super::super::situation::samples::{aws, healthy, seconds};
    use super::*;

    const EPOCH: Epoch = Epoch(2);

    /// What the new primary says of itself.
    fn promoted() -> DatabaseFacts {
        let primary = healthy().with_database(aws(), |facts| facts.epoch = Some(EPOCH));
        primary.sites[&aws()].database.clone().unwrap().fact.own()
    }

    fn seen(change: impl FnOnce(&mut DatabaseFacts)) -> Finding {
        let mut facts = promoted();
        change(&mut facts);
        Finding::Good(Facts::Database(Box::new(facts)))
    }

    fn kept_out() -> Finding {
        Finding::Bad(ProbeFailure::Unauthorized("28P01".into()))
    }

    /// What the agent there saw, and whether it wrote the epoch itself.
    fn told(
        age: Duration,
        saw: impl FnOnce(&mut DatabaseFacts),
        wrote: Option<Epoch>,
    ) -> SiteFacts {
        let situation = healthy().with_site(aws(), |site| {
            let database = site.database.as_mut().unwrap();
            (database.age, database.fact) = (age, promoted().into());
            saw(&mut database.fact);
            let agent = site.agent.as_mut().unwrap();
            (agent.age, agent.fact.epoch_written) = (age, wrote);
        });
        situation.sites[&aws()].clone()
    }

    #[test]
    fn the_table() {
        let (well, old) = (|_: &mut DatabaseFacts| (), seconds(60));
        let now = Duration::ZERO;
        let unread = |facts: &mut DatabaseFacts| facts.epoch = None;
        let nobody = |facts: &mut DatabaseFacts| facts.synchronous_names = "gcp".into();
        #[rustfmt::skip]
        let table: Vec<(&str, Finding, SiteFacts, Result<&str, &str>)> = vec![
            ("seen", seen(well), told(old, well, None), Ok("from here")),
            ("a standby", seen(|it| it.role = Role::Standby), told(now, well, Some(EPOCH)), Err("it is a standby")),
            ("nothing written", seen(|it| it.write_took = None), told(now, well, Some(EPOCH)), Err("it took no write")),
            ("users would hang", seen(nobody), told(now, well, Some(EPOCH)), Err("its commits wait for gcp")),
            ("the old epoch", seen(|it| it.epoch = Some(Epoch(1))), told(now, well, None), Err("its epoch row says 1, not 2")),
            ("a service", Finding::Good(Facts::Api), told(now, well, Some(EPOCH)), Err("no database answered")),
            ("kept from our rows, its agent is not", seen(|it| { unread(it); it.blocked = Some("a lock".into()); }), told(now, well, None), Ok("seen by its agent")),
            ("kept out, its agent is not", kept_out(), told(now, well, None), Ok("seen by its agent")),
            ("both kept out, the agent wrote before", kept_out(), told(now, unread, Some(EPOCH)), Ok("done by its agent")),
            ("in an older epoch", kept_out(), told(now, unread, Some(Epoch(1))), Err("its agent says: its epoch row says nothing")),
            ("kept out, and its agent is silent", kept_out(), told(old, well, Some(EPOCH)), Err("28P01")),
        ];
        for (name, look, site, expected) in table {
            let found = takes_writes(&look, Some(&site), EPOCH, seconds(10));
            let told = match &found {
                Ok(SeenBy::Controller) => Ok("from here"),
                Ok(SeenBy::Agent(what)) => Ok(what.as_str()),
                Err(why) => Err(why.as_str()),
            };
            let same = match (told, expected) {
                (Ok(told), Ok(part)) | (Err(told), Err(part)) => told.contains(part),
                (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
            };
            assert!(same, "{name}: {found:?}");
        }
    }

    #[test]
    fn a_fenced_agents_word_of_what_it_wrote_counts_for_nothing() {
        let unread = |facts: &mut DatabaseFacts| facts.epoch = None;
        let mut site = told(Duration::ZERO, unread, Some(EPOCH));
        site.agent.as_mut().unwrap().fact.fenced = Some(EPOCH);
        assert!(takes_writes(&kept_out(), Some(&site), EPOCH, seconds(10)).is_err());
        assert!(takes_writes(&kept_out(), None, EPOCH, seconds(10)).is_err());
    }
}
