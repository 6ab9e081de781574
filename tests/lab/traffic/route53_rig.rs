//! A hosted zone in ministack, and a name server that answers by it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use failover::adapters::dns::plain_name;
use failover::adapters::route53::{Access, Api, Route53};
use failover::lab::doubles::shares::{Share, Shares};
use failover::ports::Traffic;
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{Name, RData, RecordType};

use super::Rig;
use super::wire::Wire;
use crate::clock::MachineClock;
use crate::route53::doubles::Ministack;
use crate::route53::{GCP, by_hand, settings, weighted};

pub(super) struct Route53Rig {
    target: Route53,
    service: Ministack,
    zone: String,
    wire: Wire,
    users: Shares,
}

#[async_trait]
impl Rig for Route53Rig {
    async fn start() -> Self {
        let service = Ministack::start().await;
        let zone = service.zone("shop.test").await;
        let wire = Wire::to(service.address, |sent| sent.starts_with(b"POST")).await;
        let users = Shares::start((Ipv4Addr::LOCALHOST, 0).into())
            .await
            .unwrap();
        let access = Access::Key {
            id: "test".into(),
            secret: "test".into(),
        };
        let api = Api::connect(access, Some(&wire.endpoint()), Duration::from_secs(2)).await;
        let mut settings = settings(&zone);
        settings.place.name_servers = vec![users.address()];
        let target = Route53::new(settings, api, Arc::new(MachineClock::default())).unwrap();
        Self {
            target,
            service,
            zone,
            wire,
            users,
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
        by_hand(
            &self.service.client,
            &self.zone,
            weighted(GCP, "failover-gcp", 7),
        )
        .await;
    }

    async fn publish(&self) {
        let client = &self.service.client;
        let listed = client
            .list_resource_record_sets()
            .hosted_zone_id(&self.zone);
        let listed = listed.send().await.unwrap();
        let mut names: BTreeMap<(Name, RecordType), Vec<Share>> = BTreeMap::new();
        for set in listed.resource_record_sets() {
            let kind = match set.r#type().as_str() {
                "A" => RecordType::A,
                "TXT" => RecordType::TXT,
                _ => continue,
            };
            let data = |value: &str| {
                if kind == RecordType::A {
                    RData::A(value.parse().unwrap())
                } else {
                    RData::TXT(TXT::new(vec![value.trim_matches('"').to_owned()]))
                }
            };
            let records = set.resource_records().iter();
            let share = Share {
                weight: u32::try_from(set.weight().unwrap_or(1)).unwrap(),
                data: records.map(|record| data(record.value())).collect(),
            };
            let name = plain_name(set.name()).unwrap();
            names.entry((name, kind)).or_default().push(share);
        }
        self.users.hold(names);
    }
}
