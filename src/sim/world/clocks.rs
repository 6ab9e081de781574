//! The clocks of processes, and how far those of the places are apart.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Life, Node, Skew, State, World};
use crate::engine::units::{MonoTime, WallTime};
use crate::ports::Clock;
use crate::sim::chance::Chance;

/// How far clocks are apart.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    /// The most that one clock runs faster than another, in millionths.
    pub drift_ppm: u64,
    /// The most that a wall clock is wrong, in milliseconds.
    pub wall_ms: u64,
}

impl Clocks {
    /// How far the clock of each place is off.
    pub(super) fn drawn(self, chance: &mut Chance) -> [Skew; 4] {
        let half = i64::try_from(self.drift_ppm / 2).unwrap_or(0);
        let mut skews = [Skew { ppm: 0, wall_ms: 0 }; 4];
        for skew in &mut skews {
            skew.ppm = chance.pick(&[-half, 0, half]).unwrap_or(0);
            let wall = i64::try_from(chance.below(self.wall_ms.saturating_add(1))).unwrap_or(0);
            skew.wall_ms = chance.pick(&[-wall, wall]).unwrap_or(0);
        }
        skews
    }
}

/// The clock of one process.
#[derive(Debug)]
pub struct SimClock {
    /// The world.
    pub world: Arc<World>,
    /// Where.
    pub node: Node,
    /// Whose.
    pub life: Arc<Life>,
}

#[async_trait]
impl Clock for SimClock {
    fn now(&self) -> MonoTime {
        self.world
            .with(|state, now| state.skew(self.node).mono(now))
    }

    fn wall(&self) -> WallTime {
        self.world
            .with(|state, now| state.skew(self.node).wall(now))
    }

    async fn sleep(&self, wait: Duration) {
        let skew = self.world.with(|state, _| state.skew(self.node));
        self.world.alive(&self.life).await;
        tokio::time::sleep(skew.lasting(wait)).await;
        self.world.alive(&self.life).await;
    }
}

impl State {
    /// A clock.
    pub fn skew(&self, node: Node) -> Skew {
        self.skews[node.index()]
    }

    /// Sets a wall clock by so much.
    pub fn step_clock(&mut self, node: Node, by_ms: i64) {
        let skew = &mut self.skews[node.index()];
        skew.wall_ms = skew.wall_ms.saturating_add(by_ms);
        self.checks.stepped |= node == Node::Neutral;
    }
}
