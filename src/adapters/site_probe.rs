//! Looks at the sites of a group: the service over HTTP, the database on a fresh connection, the
//! anchors by a TCP connection. Used by the controller and by each agent.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use axum::http::Uri;
use futures_util::future::join_all;
use tokio::net::TcpStream;

use super::http::{HttpProber, ProbeError};
use super::postgres::{Connect, HeartbeatWrite, probe, room};
use crate::engine::observation::{Facts, Finding, ProbeFailure};
use crate::engine::topology::{SiteName, Target, TargetKind, Vantage};
use crate::engine::units::as_millis;
use crate::ports::Probe;

/// How one site is looked at.
#[derive(Debug)]
pub struct SiteAddress {
    /// The service's health page, by the site's own address.
    pub api: Uri,
    /// The database.
    pub database: Connect,
}

/// Looks at sites, from one vantage point.
#[derive(Debug)]
pub struct SiteProbe {
    /// From where.
    pub vantage: Vantage,
    /// How to ask over HTTP.
    pub http: HttpProber,
    /// The sites.
    pub sites: BTreeMap<SiteName, SiteAddress>,
    /// Places that have nothing to do with the sites, as `host:port`.
    pub anchors: Vec<String>,
}

impl From<ProbeError> for ProbeFailure {
    fn from(error: ProbeError) -> Self {
        match error {
            ProbeError::Timeout => ProbeFailure::Timeout(0),
            ProbeError::Refused => ProbeFailure::Refused,
            ProbeError::Unreachable(text) => ProbeFailure::Unreachable(text),
            ProbeError::Tls(text) => ProbeFailure::Unauthorized(text),
            ProbeError::Protocol(text) => ProbeFailure::Protocol(text),
            ProbeError::Status(status) => ProbeFailure::Status(status),
        }
    }
}

impl SiteProbe {
    /// Looks at a site's database at a place of the caller's.
    pub async fn look_at(&self, at: &Connect, site: &SiteName, within: Duration) -> Finding {
        let write = HeartbeatWrite {
            site: site.clone(),
            vantage: self.vantage.clone(),
        };
        match probe(at, Some(&write), within).await {
            Ok(facts) => Finding::Good(Facts::Database(Box::new(facts))),
            Err(failure) => Finding::Bad(failure),
        }
    }
}

#[async_trait]
impl Probe for SiteProbe {
    async fn look(&self, target: &Target, within: Duration) -> Finding {
        let Some(site) = self.sites.get(&target.site) else {
            return Finding::Bad(ProbeFailure::Protocol(format!(
                "`{}` is not configured",
                target.site
            )));
        };
        match target.kind {
            TargetKind::Api => match self.http.probe(&site.api, within, &[]).await {
                Ok(_) => Finding::Good(Facts::Api),
                Err(ProbeError::Timeout) => Finding::Bad(ProbeFailure::Timeout(as_millis(within))),
                Err(error) => Finding::Bad(error.into()),
            },
            TargetKind::Database => self.look_at(&site.database, &target.site, within).await,
            TargetKind::Agent => Finding::Bad(ProbeFailure::Protocol(
                "agents report by themselves".to_owned(),
            )),
        }
    }

    async fn room(&self, site: &SiteName, within: Duration) -> Option<Result<u64, String>> {
        let site = self.sites.get(site)?;
        match room(&site.database, within).await {
            Ok(left) => Some(Ok(left)),
            Err(full @ ProbeFailure::Exhausted(_)) => Some(Err(full.to_string())),
            // That is what the ordinary looks are for.
            Err(_) => None,
        }
    }

    async fn anchors(&self, within: Duration) -> (u32, u32) {
        let tries = self.anchors.iter().map(|anchor| async move {
            let connected = tokio::time::timeout(within, TcpStream::connect(anchor)).await;
            u32::from(matches!(connected, Ok(Ok(_))))
        });
        // All at once, so that one silent anchor does not delay the others.
        let reached = join_all(tries).await.into_iter().sum();
        (
            reached,
            u32::try_from(self.anchors.len()).unwrap_or(u32::MAX),
        )
    }
}
