//! A passive agent that somebody else has taken over: what it can say to its peer, and of what it
//! carries, with nobody's key but its own.

use super::chance::Chance;
use super::seals::SimKey;
use super::world::{Node, World};
use crate::engine::observation::{Facts, Finding};
use crate::engine::policy::FenceOn;
use crate::engine::topology::Role;
use crate::engine::units::{Epoch, Lsn};
use crate::ports::EffectError;
use crate::wire::sealed::{Sealed, SignedOrder, seal_answer};
use crate::wire::{Came, Order, OrderAnswer, PeerAnswer, Postmark, RelayAnswer, Report, What};

/// Whether the second site's agent lies in the world of this seed: in one of five.
pub fn of_seed(seed: u64) -> bool {
    Chance::new(seed ^ 0x6c69_6172).percent(20)
}

/// The largest epoch that is read.
const ABSURD: Epoch = Epoch((1 << 53) - 1);

/// What it says of an order that it should have carried; `None`: it carries it.
pub(super) fn about(world: &World, via: Node, order: &SignedOrder) -> Option<RelayAnswer> {
    let fenced = Ok(Came::Fenced {
        said: "believe me".to_owned(),
    });
    world.with(|state, _| {
        if state.liar != Some(via) || state.chance.percent(40) {
            return None;
        }
        let key = SimKey::of(world, &state.machine(via).site.clone());
        match state.chance.below(3) {
            0 => seal_answer(order, fenced, &key).ok().map(Ok),
            1 => state.carried.clone().map(Ok),
            _ => Some(Err(EffectError::Refused("fenced, believe me".to_owned()))),
        }
    })
}

/// What it answers to its peer instead of what it should.
pub(super) fn answer(world: &World, node: Node, true_answer: PeerAnswer) -> PeerAnswer {
    let instance = true_answer.instance;
    let epoch = true_answer.epoch;
    let wall = true_answer.wall;
    let (lie, key, replayed) = world.with(|state, _| {
        let lies = state.liar == Some(node) && state.chance.percent(30);
        let lie = lies.then(|| state.chance.below(4));
        let site = state.machine(node).site.clone();
        let memory = state.memory(node).as_ref();
        let replayed = memory.and_then(|memory| memory.obeyed.clone());
        (lie, SimKey::of(world, &site), replayed)
    });
    let superseded = |order, epoch| PeerAnswer {
        vouches: true,
        instance,
        superseded: true,
        order,
        epoch,
        wall,
    };
    match lie {
        Some(0) => superseded(None, ABSURD),
        Some(1) => superseded(forged(world, node, epoch.next(), &key), epoch.next()),
        Some(2) => superseded(replayed, ABSURD),
        // That the right stands, after a sever: no more than a word, where a grant is needed too.
        Some(_) if world.policy.lease.fence_on == FenceOn::LeaseLost => PeerAnswer {
            vouches: true,
            instance,
            superseded: false,
            order: None,
            epoch,
            wall,
        },
        None | Some(_) => true_answer,
    }
}

/// By how much more WAL than it has it says that its standby has.
const BOAST: u64 = 1 << 30;

fn boasts(world: &World, node: Node) -> bool {
    world.with(|state, _| state.liar == Some(node) && state.boasts)
}

fn boasted(position: Lsn) -> Lsn {
    Lsn(position.0.saturating_add(BOAST))
}

/// What it reports to the controller: that its standby has more than it has, and its primary less.
pub(super) fn report(world: &World, node: Node, mut report: Report) -> Report {
    if boasts(world, node) {
        for seen in &mut report.observations {
            let Finding::Good(Facts::Database(facts)) = &mut seen.finding else {
                continue;
            };
            // What it says of its own primary is the active side's word, which is trusted.
            let own = seen.target.site == report.site;
            match facts.role {
                Role::Standby if own => facts.position = boasted(facts.position),
                Role::Primary if !own => facts.position = Lsn(0),
                Role::Standby | Role::Primary => {}
            }
        }
    }
    report
}

/// What it answers when its standby is severed: that this one has more than it has.
pub(super) fn severed(world: &World, node: Node, answer: OrderAnswer) -> OrderAnswer {
    let boasts = boasts(world, node);
    answer.map(|mut came| {
        if boasts && let Came::Severed { position, .. } = &mut came {
            *position = boasted(*position);
        }
        came
    })
}

/// An order to sever that the controller never gave.
fn forged(world: &World, node: Node, epoch: Epoch, key: &SimKey) -> Option<Sealed> {
    let site = world.with(|state, _| state.machine(node).site.clone());
    let order = Order {
        instance: None,
        plan: 1,
        group: world.topology.group.clone(),
        site,
        epoch,
        mark: Postmark {
            life: 0,
            at: std::time::Duration::ZERO,
        },
        valid_for: std::time::Duration::ZERO,
        check_only: false,
        what: What::Sever,
    };
    let sealed = SignedOrder::seal(order, key).ok()?;
    Some(sealed.sealed().clone())
}
