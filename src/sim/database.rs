//! The database beside an agent, simulated: guard and PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::machine::{Truth, Written};
use super::network::host;
use super::site_ports::Place;
use super::world::{Node, State, World};
use crate::engine::lease::Enforcer;
use crate::engine::situation::SeverRehearsal;
use crate::engine::synchrony::SyncLook;
use crate::engine::topology::{Role, SiteName};
use crate::engine::units::{Epoch, Lsn, MonoTime, Timeline};
use crate::ports::{EffectError, Ledger, LocalLook, LocalRight, Server, Succession, Synchronous};

fn failed<T>(why: impl Into<String>) -> Result<T, EffectError> {
    Err(EffectError::Failed(why.into()))
}

/// Guard and database.
#[derive(Debug)]
pub struct SimDatabase(pub Place);

/// How long a start of PostgreSQL takes, in milliseconds.
const START: (u64, u64) = (100, 1500);

impl SimDatabase {
    fn start(&self, role: Role) -> Result<(), EffectError> {
        let started = self.0.world.with(|state, now| {
            let (least, most) = START;
            let took = state.chance.millis(least, most);
            if role == Role::Primary {
                state.share_storage(now, self.0.node, self.0.copy);
            }
            let machine = state.host(self.0.node, self.0.copy);
            if machine.by_hand.is_some() {
                return failed("processes of an earlier run are still there");
            }
            if machine.running {
                return Ok(false);
            }
            if machine.fence.is_some() {
                return failed("a fence is under way: wait for its end");
            }
            if machine.ruined {
                return failed("signal 11");
            }
            if machine.files != role || machine.unfit().is_some() {
                return failed("`standby.signal` does not fit");
            }
            machine.comes_up();
            machine.running = true;
            machine.ready = now.saturating_add(took);
            if role == Role::Standby {
                machine.right = None;
            }
            Ok(true)
        })?;
        if started {
            self.0.trace(|| format!("starts as {role}"));
        }
        Ok(())
    }

    fn hold(&self, right: &LocalRight) -> Result<(), EffectError> {
        self.0.world.with(|state, now| {
            let skew = state.skew(self.0.node);
            let until = right.until.map(|until| skew.truth(until));
            let machine = state.host(self.0.node, self.0.copy);
            machine.stages = right.fence;
            let armed = machine.arm(now, right.epoch, until);
            armed.map_err(EffectError::Refused)
        })
    }
}

#[async_trait]
impl Server for SimDatabase {
    fn enforced_by(&self) -> Enforcer {
        Enforcer::Guard
    }

    fn machine(&self) -> Option<String> {
        let cluster = |state: &mut State| state.cluster(self.0.node).map(|it| it.pod.to_string());
        let pod = self.0.world.with(|state, _| cluster(state));
        // A copy runs in no pod.
        pod.filter(|_| !self.0.copy)
    }

    async fn look(&self) -> Result<LocalLook, EffectError> {
        self.0.work(0, 1).await;
        Ok(self.0.world.with(|state, now| {
            let skew = state.skew(self.0.node);
            let machine = state.host(self.0.node, self.0.copy);
            let never = MonoTime(Duration::from_nanos(u64::MAX));
            LocalLook {
                starts_as: machine.files,
                unfit: machine.unfit(),
                runs_as: machine.seen_as(now),
                foreign: machine.by_hand.map(|_| "somebody else's server".to_owned()),
                pending: Vec::new(),
                recovering: None,
                right: machine
                    .right
                    .map(|(epoch, until)| (epoch, until.map_or(never, |until| skew.mono(until)))),
                fenced: machine.marker.clone(),
                ended: machine.ended.clone(),
                guard: None,
            }
        }))
    }

    async fn start_standby(&self) -> Result<(), EffectError> {
        self.0.work(1, 20).await;
        self.start(Role::Standby)
    }

    async fn start_primary(&self, right: &LocalRight) -> Result<(), EffectError> {
        self.0.work(1, 20).await;
        self.hold(right)?;
        self.start(Role::Primary)
    }

    async fn hold_right(&self, right: &LocalRight) -> Result<(), EffectError> {
        self.0.work(0, 1).await;
        self.hold(right)
    }

    async fn release_right(&self) -> Result<(), EffectError> {
        self.0.work(0, 1).await;
        self.0.world.with(|state, now| {
            let machine = state.host(self.0.node, self.0.copy);
            machine.give_up_right(now).map_err(EffectError::Refused)
        })
    }

    async fn fence(&self, epoch: Epoch, cause: &str) -> Result<String, EffectError> {
        self.0.work(0, 1).await;
        let ends = self.0.world.with(|state, now| {
            let machine = state.host(self.0.node, self.0.copy);
            if epoch < machine.epoch {
                return Err(EffectError::Refused(
                    "an order to fence that is old".to_owned(),
                ));
            }
            let ends = machine.begin_fence(now, epoch, cause).saturating_sub(now);
            let site = machine.site.clone();
            state.checks.fenced_by_word(now, &site, epoch, cause);
            Ok(ends)
        })?;
        self.0
            .trace(|| format!("fence of epoch {epoch} begins: {cause}"));
        tokio::time::sleep(ends).await;
        self.0.work(0, 1).await;
        let running = self.0.world.with(|state, _| {
            let machine = state.host(self.0.node, self.0.copy);
            machine.running && machine.role == Role::Primary
        });
        if running {
            return Err(EffectError::Unknown("processes live".to_owned()));
        }
        self.0.trace(|| "is fenced".to_owned());
        Ok("down".to_owned())
    }

    async fn unfence(&self, epoch: Epoch) -> Result<(), EffectError> {
        self.0.work(0, 1).await;
        self.0.world.with(|state, _| {
            let machine = state.host(self.0.node, self.0.copy);
            if machine.fence.is_some() {
                return Err(EffectError::Refused("a fence is under way".to_owned()));
            }
            if machine.marker.as_ref().is_some_and(|(old, _)| *old > epoch) {
                return Err(EffectError::Refused("fenced at a later epoch".to_owned()));
            }
            machine.marker = None;
            Ok(())
        })
    }
}

#[async_trait]
impl Succession for SimDatabase {
    async fn sever(&self, _within: Duration) -> Result<(Lsn, bool), EffectError> {
        self.0.work(1, 30).await;
        let severed = self.0.world.with(|state, now| {
            if state.deaf == Some(self.0.node) {
                return failed("no setting can be written");
            }
            let machine = state.host(self.0.node, self.0.copy);
            if !machine.running || now < machine.ready {
                return failed("connection refused");
            }
            if machine.role == Role::Primary {
                return Err(EffectError::Refused("this is a primary".to_owned()));
            }
            machine.connected = false;
            machine.heard = None;
            Ok(Lsn(machine.position()))
        })?;
        self.0.trace(|| format!("severed at {severed}"));
        self.0.work(20, 60).await;
        Ok((severed, true))
    }

    async fn reconnect(&self, _within: Duration) -> Result<(), EffectError> {
        self.0.work(1, 30).await;
        self.0.world.with(|state, now| {
            if state.deaf == Some(self.0.node) {
                return failed("no setting can be written");
            }
            let machine = state.host(self.0.node, self.0.copy);
            if !machine.running || now < machine.ready {
                return failed("connection refused");
            }
            machine.connected = true;
            Ok(())
        })?;
        self.0.trace(|| "reconnected".to_owned());
        Ok(())
    }

    async fn rehearse(
        &self,
        _fresh: bool,
        _peer_answers: bool,
        _within: Duration,
    ) -> Result<Option<SeverRehearsal>, EffectError> {
        self.0.work(1, 20).await;
        self.0.world.with(|state, now| {
            let machine = state.machine(self.0.node);
            if !machine.running || now < machine.ready {
                return failed("connection refused");
            }
            Ok((machine.role == Role::Standby).then_some(SeverRehearsal {
                ago: Duration::ZERO,
                obstacle: None,
            }))
        })
    }

    async fn keep_slot(&self, _name: &str, _within: Duration) -> Result<(), EffectError> {
        Ok(())
    }

    async fn promote(&self, within: Duration) -> Result<(Timeline, Lsn), EffectError> {
        if let Some(already) = self.is_primary(within).await? {
            return Ok(already);
        }
        let (world, node, copy) = (Arc::clone(&self.0.world), self.0.node, self.0.copy);
        let (took, life) = world.with(|state, _| {
            let most = state.slow_promote;
            let took = state.chance.millis(20, most);
            (took, state.host(node, copy).ready)
        });
        let (done, promoted) = oneshot::channel();
        // PostgreSQL goes on promoting, whoever waits for it, and forgets it with its end.
        tokio::spawn(async move {
            tokio::time::sleep(took).await;
            if host(&world, node).await {
                let promoted = if copy {
                    None
                } else {
                    promote(&world, node, life)
                };
                done.send(promoted).unwrap_or_default();
            }
        });
        let promoted = tokio::time::timeout(within, promoted).await;
        self.0.work(0, 3).await;
        match promoted {
            Ok(Ok(Some(at))) => Ok(at),
            Ok(Ok(None) | Err(_)) => failed("the server ended while it was promoted"),
            Err(_) => Err(EffectError::Unknown("not promoted in time".to_owned())),
        }
    }
}

#[async_trait]
impl Ledger for SimDatabase {
    async fn is_primary(&self, _within: Duration) -> Result<Option<(Timeline, Lsn)>, EffectError> {
        self.0.work(1, 5).await;
        self.0.world.with(|state, now| {
            let machine = state.host(self.0.node, self.0.copy);
            if !machine.running || now < machine.ready {
                return failed("connection refused");
            }
            let primary = machine.role == Role::Primary;
            Ok(primary.then(|| (Timeline(machine.timeline), Lsn(machine.position()))))
        })
    }

    async fn write_epoch(&self, epoch: Epoch, _within: Duration) -> Result<(), EffectError> {
        self.0.work(1, 10).await;
        self.0.world.with(|state, now| {
            let machine = state.host(self.0.node, self.0.copy);
            match machine.commit(now, Written::Epoch(epoch)) {
                Some(_) => Ok(()),
                None => failed("cannot write"),
            }
        })
    }
}

#[async_trait]
impl Synchronous for SimDatabase {
    async fn look_at_standby(
        &self,
        _standby: &SiteName,
        _within: Duration,
    ) -> Result<SyncLook, EffectError> {
        self.0.work(1, 5).await;
        self.0.world.with(|state, now| {
            let (primary, standby) = (self.0.node, self.0.node.peer());
            let follows = state.link(primary, standby).up && state.link(standby, primary).up;
            let machine = state.machine(primary);
            if !machine.could_write(now) {
                return failed("connection refused");
            }
            Ok(SyncLook {
                named: machine.synchronous,
                position: Lsn(machine.position()),
                flushed: follows.then_some(Lsn(machine.confirmed)),
                waiting: Vec::new(),
                obstacle: None,
            })
        })
    }

    async fn wait_for_standby(
        &self,
        _standby: &SiteName,
        _within: Duration,
    ) -> Result<Lsn, EffectError> {
        self.0.work(5, 40).await;
        let from = self.0.world.with(|state, now| {
            let machine = state.host(self.0.node, self.0.copy);
            if !machine.could_write(now) {
                return failed("connection refused");
            }
            machine.synchronous = true;
            Ok(Lsn(machine.position()))
        })?;
        self.0.trace(|| format!("commits wait from {from} on"));
        self.0.work(0, 5).await;
        Ok(from)
    }

    async fn go_on_alone(&self, _within: Duration) -> Result<(), EffectError> {
        self.0.work(1, 20).await;
        self.0.world.with(|state, now| {
            let machine = state.host(self.0.node, self.0.copy);
            if !machine.could_write(now) {
                return failed("connection refused");
            }
            machine.synchronous = false;
            Ok(())
        })?;
        self.0.trace(|| "commits go on alone".to_owned());
        self.0.work(0, 5).await;
        Ok(())
    }
}

fn promote(world: &World, node: Node, life: Truth) -> Option<(Timeline, Lsn)> {
    world.with(|state, now| {
        let neutral = state.skew(Node::Neutral);
        let machine = state.machine(node);
        if machine.files == Role::Primary && machine.role == Role::Standby {
            // It wants to take its file away, does not find it, and ends.
            machine.crash("exit status 1");
            return None;
        }
        if !machine.running || machine.ready != life || machine.role == Role::Primary {
            return None;
        }
        (machine.role, machine.files) = (Role::Primary, Role::Primary);
        machine.promoted = machine.right.map(|_| now);
        machine.connected = false;
        machine.synchronous = false;
        machine.confirmed = 0;
        machine.timeline = machine.timeline.saturating_add(1);
        let timeline = machine.timeline;
        machine.commit(now, Written::Timeline(timeline));
        let position = machine.position();
        let copied = state.copy.clone();
        let ([new, old], checks) = state.watched(node);
        checks.promoted(now, new, old, neutral);
        if let Some(copied) = copied.filter(|copied| copied.machine.site == old.site) {
            checks.promoted_beside(now, new, &copied.machine);
        }
        Some((Timeline(timeline), Lsn(position)))
    })
}
