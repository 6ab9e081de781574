//! A backend service in our double of the load balancer, with two sites behind it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use failover::adapters::gcp::backend::{Backend, Settings};
use failover::adapters::http::{HttpProber, Roots};
use failover::lab::doubles::load_balancer::{self, LoadBalancer, PROJECT, SERVICE};
use failover::lab::doubles::script::Script;
use failover::ports::Traffic;
use serde_json::json;
use tokio::net::TcpListener;

use super::cloud_dns_rig::access;
use super::wire::Wire;
use super::{Rig, site};
use crate::clock::MachineClock;
use crate::google::GoogleRig;

pub(crate) const GROUPS: [(&str, &str); 2] = [
    ("aws", "zones/europe-west3-a/networkEndpointGroups/aws"),
    ("gcp", "zones/europe-west3-b/networkEndpointGroups/gcp"),
];

pub(crate) struct BackendRig {
    target: Backend,
    pub(crate) double: LoadBalancer,
    wire: Wire,
}

/// A service that says which site it is.
async fn service(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new().fallback(move || async move { [("x-failover-site", name)] });
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

pub(crate) async fn balancer(takes: Duration, lag: Duration) -> LoadBalancer {
    let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    let mut groups = Vec::new();
    for (name, end) in GROUPS {
        groups.push((end.to_owned(), service(name).await));
    }
    let settings = load_balancer::Settings {
        api: any,
        edge: any,
        groups,
        takes,
        lag,
    };
    LoadBalancer::start(settings).await.unwrap()
}

pub(crate) async fn target(api: SocketAddr, edges: Vec<SocketAddr>, timeout: Duration) -> Backend {
    let clock = Arc::new(MachineClock::default());
    let groups = GROUPS.map(|(name, end)| (site(name), vec![end.to_owned()]));
    let settings = Settings {
        name: "edge".parse().unwrap(),
        project: PROJECT.into(),
        backend_service: SERVICE.into(),
        groups: groups.into(),
        url: "http://app.shop.test/healthz".parse().unwrap(),
        site_header: "X-Failover-Site".into(),
        addresses: edges,
        timeout,
    };
    let http = HttpProber::new(&Roots::System, clock.clone()).unwrap();
    let made = Backend::new(settings, &access(api), http, clock).await;
    made.unwrap()
}

#[async_trait]
impl Rig for BackendRig {
    async fn start() -> Self {
        let double = balancer(Duration::from_millis(50), Duration::from_millis(100)).await;
        let wire = Wire::to(double.address, |sent| sent.starts_with(b"PATCH")).await;
        let within = Duration::from_secs(2);
        Self {
            target: target(wire.address, vec![double.edge], within).await,
            double,
            wire,
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
        let described = json!("changed by somebody else");
        self.double
            .meddle(|service| service["description"] = described);
    }

    /// The double lets its edge have what was written.
    async fn publish(&self) {}
}

#[async_trait]
impl GoogleRig for BackendRig {
    fn script(&self) -> &Script {
        &self.double.script
    }

    async fn at(address: SocketAddr) -> Box<dyn Traffic> {
        Box::new(target(address, vec![address], Duration::from_millis(300)).await)
    }
}
