//! A managed zone in our double of Cloud DNS.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::http::Uri;
use failover::adapters::gcp::Access;
use failover::adapters::gcp::cloud_dns::{CloudDns, Settings};
use failover::adapters::weighted::{Kind, Place};
use failover::lab::doubles::cloud_dns::{CloudDnsDouble, MANAGED_ZONE, PROJECT};
use failover::lab::doubles::script::Script;
use failover::ports::Traffic;
use serde_json::{Value, json};

use super::wire::Wire;
use super::{Rig, site};
use crate::clock::MachineClock;
use crate::google::GoogleRig;

pub(crate) const RECORD: &str = "app.shop.test.";
pub(crate) const AWS: &str = "192.0.2.1";
pub(crate) const GCP: &str = "198.51.100.1";

pub(crate) struct CloudDnsRig {
    target: CloudDns,
    pub(crate) double: CloudDnsDouble,
    wire: Wire,
}

pub(crate) fn settings(name_server: SocketAddr) -> Settings {
    Settings {
        name: "dns".parse().unwrap(),
        project: PROJECT.into(),
        managed_zone: MANAGED_ZONE.into(),
        place: Place {
            zone: "shop.test".into(),
            record: "app.shop.test".into(),
            kind: Kind::A,
            ttl_seconds: 60,
            name_servers: vec![name_server],
            timeout: Duration::from_secs(2),
        },
        values: [(site("aws"), AWS.into()), (site("gcp"), GCP.into())].into(),
        timeout: Duration::from_secs(2),
    }
}

pub(crate) fn access(at: SocketAddr) -> Access {
    let endpoint: Uri = format!("http://{at}").parse().unwrap();
    Access::new(None, Some(&endpoint), &Arc::default()).unwrap()
}

pub(crate) async fn target(settings: Settings, at: SocketAddr) -> CloudDns {
    let clock = Arc::new(MachineClock::default());
    CloudDns::new(settings, &access(at), clock).await.unwrap()
}

/// A weighted record set as Google keeps it.
pub(crate) fn weighted(items: &[(&str, f64)]) -> Value {
    let items: Vec<Value> = items
        .iter()
        .map(|(value, weight)| json!({"rrdatas": [value], "weight": weight}))
        .collect();
    json!({
        "kind": "dns#resourceRecordSet", "name": RECORD, "type": "A", "ttl": 60,
        "routingPolicy": {"wrr": {"items": items}},
    })
}

#[async_trait]
impl Rig for CloudDnsRig {
    async fn start() -> Self {
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let double = CloudDnsDouble::start(any, any, "shop.test", Duration::ZERO)
            .await
            .unwrap();
        let wire = Wire::to(double.address, |sent| sent.starts_with(b"POST")).await;
        Self {
            target: target(settings(double.name_server()), wire.address).await,
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
        self.double.put(weighted(&[(AWS, 100.0), (GCP, 7.0)]));
    }

    /// The double lets its name server have what was written.
    async fn publish(&self) {}
}

#[async_trait]
impl GoogleRig for CloudDnsRig {
    fn script(&self) -> &Script {
        &self.double.script
    }

    async fn at(address: SocketAddr) -> Box<dyn Traffic> {
        let mut settings = settings(address);
        settings.timeout = Duration::from_millis(300);
        Box::new(target(settings, address).await)
    }
}
