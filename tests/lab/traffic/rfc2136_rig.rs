//! A zone on a real name server.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use async_trait::async_trait;
use failover::adapters::rfc2136::{Rfc2136, Settings, TsigKey};
use failover::engine::answer::Answer;
use failover::lab::name_server::{NameServer, free_port, program};
use failover::ports::Traffic;
use tempfile::TempDir;

use super::wire::Wire;
use super::{Rig, only, site};
use crate::clock::MachineClock;

pub(super) struct Rfc2136Rig {
    target: Rfc2136,
    /// Somebody else with the same key.
    other: Rfc2136,
    wire: Wire,
    _server: NameServer,
    _dir: TempDir,
}

/// A DNS message over TCP with the opcode of an update.
fn is_update(sent: &[u8]) -> bool {
    sent.get(4).is_some_and(|flags| flags & 0x78 == 0x28)
}

#[async_trait]
impl Rig for Rfc2136Rig {
    async fn start() -> Self {
        let ip: IpAddr = Ipv4Addr::LOCALHOST.into();
        let dir = tempfile::tempdir().unwrap();
        let key = TsigKey {
            name: "failover".into(),
            secret: vec![7; 32],
        };
        let knotd = std::process::Command::new(program());
        let port = free_port(ip).unwrap();
        let server = NameServer::start(knotd, dir.path(), ip, port, "shop.test", key)
            .await
            .unwrap();
        let addresses = [
            ("aws", vec!["192.0.2.1", "2001:db8::1"]),
            ("gcp", vec!["198.51.100.1"]),
        ];
        let addresses = addresses.map(|(name, list)| {
            let list = list.iter().map(|ip| ip.parse().unwrap()).collect();
            (site(name), list)
        });
        let name = "dns".parse().unwrap();
        let settings = server.settings(name, "app.shop.test", addresses.into());
        let wire = Wire::to(server.address(), is_update).await;
        let target = |settings| Rfc2136::new(settings, Arc::new(MachineClock::default())).unwrap();
        Self {
            target: target(Settings {
                server: wire.address,
                ..settings.clone()
            }),
            other: target(settings),
            wire,
            _server: server,
            _dir: dir,
        }
    }

    fn target(&self) -> &dyn Traffic {
        &self.target
    }

    fn changes_sent(&self) -> usize {
        self.wire.changes()
    }

    fn lose_next_answer(&self) {
        self.wire.lose_next_answer();
    }

    async fn meddle(&self) {
        let found = self.other.read().await.unwrap();
        let both = Answer {
            weights: [(site("aws"), 100), (site("gcp"), 100)].into(),
            ..only("aws", 1)
        };
        self.other
            .apply(&found, &both, "", &|| Ok(()))
            .await
            .unwrap();
    }

    /// The name server answers by what stands in it.
    async fn publish(&self) {}
}
