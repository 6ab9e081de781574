//! Makes the traffic targets that are Google's.

use std::sync::Arc;
use std::time::Duration;

use crate::adapters::gcp::Access;
use crate::adapters::gcp::backend::{self, Backend};
use crate::adapters::gcp::cloud_dns::{self, CloudDns};
use crate::adapters::http::HttpProber;
use crate::adapters::reread::CredentialBook;
use crate::adapters::weighted::{Kind, Place};
use crate::app::config::{
    CloudDnsConfig, GoogleAccess, GoogleBackendConfig, RecordConfig, RecordType, TrafficConfig,
};
use crate::ports::{Clock, EffectError};

/// Where a weighted record lies.
pub(super) fn place(record: &RecordConfig, kind: RecordType, timeout: Duration) -> Place {
    Place {
        zone: record.zone.clone(),
        record: record.record.clone(),
        kind: match kind {
            RecordType::A => Kind::A,
            RecordType::Aaaa => Kind::Aaaa,
            RecordType::Cname => Kind::Cname,
        },
        ttl_seconds: record.ttl_seconds,
        name_servers: record.name_servers.clone(),
        timeout,
    }
}

fn access(google: &GoogleAccess, book: &Arc<CredentialBook>) -> Result<Access, EffectError> {
    Access::new(google.key_file.as_deref(), google.endpoint.as_ref(), book)
}

pub(super) async fn make_cloud_dns(
    target: &TrafficConfig,
    zone: &CloudDnsConfig,
    clock: &Arc<dyn Clock>,
    book: &Arc<CredentialBook>,
) -> Result<CloudDns, EffectError> {
    let settings = cloud_dns::Settings {
        name: target.name.clone(),
        project: zone.access.project.clone(),
        managed_zone: zone.managed_zone.clone(),
        place: place(&zone.record, zone.record_type, target.timeout),
        values: zone.values.clone(),
        timeout: target.timeout,
    };
    let access = access(&zone.access, book)?;
    CloudDns::new(settings, &access, Arc::clone(clock)).await
}

pub(super) async fn make_backend(
    target: &TrafficConfig,
    service: &GoogleBackendConfig,
    http: HttpProber,
    (clock, book): (&Arc<dyn Clock>, &Arc<CredentialBook>),
) -> Result<Backend, EffectError> {
    let settings = backend::Settings {
        name: target.name.clone(),
        project: service.access.project.clone(),
        backend_service: service.backend_service.clone(),
        groups: service.groups.clone(),
        url: service.url.clone(),
        site_header: service.site_header.clone(),
        addresses: service.edges.clone(),
        timeout: target.timeout,
    };
    let access = access(&service.access, book)?;
    Backend::new(settings, &access, http, Arc::clone(clock)).await
}
