//! Rehearses beforehand, slowly and beside everything else, what the steps after a promotion will
//! need: so that problems are known days before, and not when users have no site (invariants.md
//! I16).

use std::sync::Arc;
use std::time::Duration;

use super::control::{Handle, Input};
use super::executor::World;
use super::journal::Journal;
use crate::engine::rehearsal::{Found, Subject, TroubleKind};
use crate::engine::saga::GroupState;
use crate::engine::text::counted;
use crate::engine::topology::{SiteName, Topology};
use crate::ports::{Clock, EffectError, FrontDoor, OutsideFault, Traffic};

/// How often a traffic target and the standby's connections are probed.
const EVERY: Duration = Duration::from_secs(10);
/// How often the front door is entered, including a write if configured.
const FRONT_EVERY: Duration = Duration::from_secs(20);
/// How soon after a rehearsal the next one begins if somebody asks what would block a failover.
const ASKED_EVERY: Duration = Duration::from_secs(1);
/// The time limit for a probe that has none of its own.
const WITHIN: Duration = Duration::from_secs(5);
/// At most this many connections left is worth reporting.
const FEW: u64 = 5;

/// What to rehearse, and with what.
#[derive(Debug, Clone)]
pub struct Rehearser {
    /// What the steps would use.
    pub world: Arc<World>,
    /// The state according to the log.
    pub journal: Journal,
    /// Both sites.
    pub topology: Topology,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where results go.
    pub control: Handle,
}

/// One thing that is rehearsed for ever.
#[derive(Debug, Clone)]
enum Look {
    Traffic(Arc<dyn Traffic>),
    Front(Arc<dyn FrontDoor>),
    Connections,
    Infrastructure,
}

impl Rehearser {
    /// Rehearses for ever, each thing independently, so that a hanging one delays no other; ends
    /// when the receiver is gone.
    pub async fn run(self) -> (&'static str, anyhow::Result<()>) {
        let traffic = self.world.traffic.iter().cloned().map(Look::Traffic);
        let front = self.world.front.iter().cloned().map(Look::Front);
        let fences = !self.world.infrastructure.is_empty();
        let own = [Look::Connections].into_iter();
        let own = own.chain(fences.then_some(Look::Infrastructure));
        let looks = traffic.chain(front).chain(own);
        let mut tasks = tokio::task::JoinSet::new();
        for look in looks {
            let rehearser = self.clone();
            tasks.spawn(async move { rehearser.look_for_ever(look).await });
        }
        tasks.join_all().await;
        ("rehearsals", Ok(()))
    }

    async fn look_for_ever(&self, look: Look) {
        let every = match look {
            Look::Traffic(_) | Look::Connections | Look::Infrastructure => EVERY,
            Look::Front(_) => FRONT_EVERY,
        };
        loop {
            let began = self.clock.now();
            let group = self.journal.state();
            // A plan is moving what would be probed, and checks it itself.
            if group.open.is_none() {
                let found = match &look {
                    Look::Traffic(target) => at_target(target.as_ref(), &group).await,
                    Look::Front(front) => at_front(front.as_ref(), &group.active).await,
                    Look::Connections => self.connections(&group.active).await,
                    Look::Infrastructure => self.infrastructure(&group.active).await,
                };
                // A plan may have begun during the probe: then the result is ambiguous.
                let undisturbed = self.journal.state().open.is_none();
                let told = Input::Rehearsed(began, found);
                if undisturbed && self.control.tell(told).await.is_err() {
                    return;
                }
            }
            self.clock.sleep(ASKED_EVERY).await;
            tokio::select! {
                () = self.control.asked_to_rehearse() => {}
                () = self.clock.sleep(every.saturating_sub(ASKED_EVERY)) => {}
            }
        }
    }

    /// Looking again and again also makes a fence quicker that comes later.
    async fn infrastructure(&self, active: &SiteName) -> Vec<Found> {
        let Some(infrastructure) = self.world.infrastructure.get(active) else {
            return Vec::new();
        };
        let rehearsed = async {
            infrastructure.look().await?;
            infrastructure.rehearse().await
        };
        let trouble = rehearsed.await.err().map(trouble_of);
        vec![(Subject::Infrastructure, trouble)]
    }

    async fn connections(&self, active: &SiteName) -> Vec<Found> {
        let standby = self.topology.peer(active);
        let Some(room) = self.world.probe.room(standby, WITHIN).await else {
            return Vec::new();
        };
        let trouble = match room {
            Ok(left) if left > FEW => None,
            Ok(left) => {
                let left = counted(left, "connection", "connections");
                Some((TroubleKind::Scarce, format!("{left} left")))
            }
            Err(why) => Some((TroubleKind::Refused, why)),
        };
        vec![(Subject::Connections, trouble)]
    }
}

async fn at_target(target: &dyn Traffic, group: &GroupState) -> Vec<Found> {
    let name = target.name();
    let mut found = Vec::new();
    let own = Subject::Traffic {
        target: name.clone(),
    };
    let trouble = match target.read().await {
        Ok(read) => {
            let (answer, active) = (&read.answer, &group.active);
            let higher = answer.epoch.filter(|epoch| *epoch > group.epoch);
            if let Some(higher) = higher {
                let text = format!("it is in epoch {higher}, the log in {}", group.epoch);
                Some((TroubleKind::Refused, text))
            } else if answer.is_only(active) {
                // A difference from what was just read means that it was changed meanwhile; the
                // next probe will tell.
                match target.rehearse(&read).await {
                    Ok(()) | Err(EffectError::Conflict(_)) => None,
                    Err(error) => Some(trouble_of(error)),
                }
            } else {
                let on: Vec<String> = answer.sites_on().map(ToString::to_string).collect();
                let on = if on.is_empty() {
                    "no site".to_owned()
                } else {
                    on.join(" and ")
                };
                let text = format!("it leads to {on}, and `{active}` is active");
                Some((TroubleKind::Astray, text))
            }
        }
        Err(error) => Some(trouble_of(error)),
    };
    found.push((own, trouble));
    for view in target.verify_outside().await {
        let trouble = match view.answer {
            Ok(answer) if answer.is_only(&group.active) => None,
            Ok(answer) => {
                let on: Vec<String> = answer.sites_on().map(ToString::to_string).collect();
                let text = format!("{} answers {}", view.place, on.join(" and "));
                Some((TroubleKind::Astray, text))
            }
            Err(OutsideFault::Wrong(why)) => {
                Some((TroubleKind::Astray, format!("{}: {why}", view.place)))
            }
            Err(OutsideFault::Unseen(why)) => Some((TroubleKind::Silent, why)),
        };
        let subject = Subject::Place {
            target: name.clone(),
            place: view.place,
        };
        found.push((subject, trouble));
    }
    found
}

fn trouble_of(error: EffectError) -> (TroubleKind, String) {
    let kind = match &error {
        EffectError::Refused(_) => TroubleKind::Refused,
        EffectError::Failed(_)
        | EffectError::Late(_)
        | EffectError::Unknown(_)
        | EffectError::Conflict(_) => TroubleKind::Silent,
    };
    (kind, error.to_string())
}

/// The front door is good if one address leads to the active site and none elsewhere.
async fn at_front(front: &dyn FrontDoor, active: &SiteName) -> Vec<Found> {
    let (mut right, mut silent, mut wrong) = (0usize, Vec::new(), Vec::new());
    for (place, entered) in front.enter(active, WITHIN).await {
        match entered {
            Ok(site) if site == *active => right = right.saturating_add(1),
            Ok(site) => wrong.push(format!("{place} leads to {site}")),
            Err(OutsideFault::Wrong(why)) => wrong.push(format!("{place}: {why}")),
            Err(OutsideFault::Unseen(why)) => silent.push(format!("{place}: {why}")),
        }
    }
    let trouble = if !wrong.is_empty() {
        Some((TroubleKind::Astray, wrong.join("; ")))
    } else if right == 0 {
        Some((TroubleKind::Silent, silent.join("; ")))
    } else {
        None
    };
    vec![(Subject::FrontDoor, trouble)]
}
