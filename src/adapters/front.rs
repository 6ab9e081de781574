//! Enters the service as its users do: asks a name server for the addresses, enters at each, and
//! sees which site answers. Writes and reads back where the configuration says how.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use axum::http::Uri;
use hickory_proto::rr::{RData, RecordType};

use super::dns::{Lookup, plain_name};
use super::http::{HttpProber, ProbeError};
use crate::engine::topology::SiteName;
use crate::ports::{FrontDoor, OutsideFault};

/// The way users enter.
#[derive(Debug)]
pub struct HttpFront {
    /// How to ask over HTTP.
    pub http: HttpProber,
    /// The page that users' first request goes to.
    pub url: Uri,
    /// The header by which a site names itself.
    pub site_header: String,
    /// Where a text can be written (POST) and read back (GET), as `?nonce=`.
    pub write_url: Option<Uri>,
    /// Whom to ask for the addresses, the next where one does not answer; the operating system's
    /// resolver where there is none.
    pub name_servers: Vec<SocketAddr>,
}

fn unseen(why: impl ToString) -> OutsideFault {
    OutsideFault::Unseen(why.to_string())
}

impl From<ProbeError> for OutsideFault {
    /// What does not let itself be connected to leads nobody anywhere: a client goes on to the
    /// next address.
    fn from(error: ProbeError) -> Self {
        let text = error.to_string();
        match error {
            ProbeError::Timeout | ProbeError::Refused | ProbeError::Unreachable(_) => {
                OutsideFault::Unseen(text)
            }
            ProbeError::Tls(_) | ProbeError::Protocol(_) | ProbeError::Status(_) => {
                OutsideFault::Wrong(text)
            }
        }
    }
}

impl HttpFront {
    async fn addresses(&self, within: Duration) -> Result<Vec<SocketAddr>, OutsideFault> {
        let host = self.url.host();
        let host = host.ok_or_else(|| unseen("the front door's address has no host"))?;
        let https = self.url.scheme_str() == Some("https");
        let port = self.url.port_u16().unwrap_or(if https { 443 } else { 80 });
        let found: Vec<SocketAddr> = if self.name_servers.is_empty() {
            let looked_up = tokio::net::lookup_host((host, port));
            let looked_up = tokio::time::timeout(within, looked_up).await;
            looked_up
                .map_err(|_late| unseen("the name was not resolved in time"))?
                .map_err(unseen)?
                .collect()
        } else {
            let address = |data: RData| data.ip_addr().map(|ip: IpAddr| SocketAddr::new(ip, port));
            let answers = self.ask_each(host, within).await?;
            answers.into_iter().filter_map(address).collect()
        };
        if found.is_empty() {
            Err(OutsideFault::Wrong("the name has no address".to_owned()))
        } else {
            Ok(found)
        }
    }

    /// The first answer of a name server, as a resolver gets it: one that is lost, with a site or
    /// without, is passed over. All have the time together, the first its share of it at least.
    async fn ask_each(&self, host: &str, within: Duration) -> Result<Vec<RData>, OutsideFault> {
        let name = plain_name(host).map_err(unseen)?;
        let share = u32::try_from(self.name_servers.len()).unwrap_or(u32::MAX);
        let mut missed = Vec::new();
        for server in &self.name_servers {
            let lookup = Lookup {
                name: name.clone(),
                kind: RecordType::A,
                timeout: within.checked_div(share).unwrap_or(within),
            };
            match lookup.ask(*server).await.map_err(OutsideFault::from) {
                Err(OutsideFault::Unseen(why)) => missed.push(format!("{server}: {why}")),
                seen => return seen,
            }
        }
        Err(OutsideFault::Unseen(missed.join(", ")))
    }

    async fn enter_at(
        &self,
        address: SocketAddr,
        within: Duration,
    ) -> Result<SiteName, OutsideFault> {
        let header = self.site_header.to_ascii_lowercase();
        let answer = self
            .http
            .probe_at(&self.url, address, within, &[&header])
            .await?;
        let wrong = OutsideFault::Wrong;
        let site = answer.headers.get(&header);
        let site = site.ok_or_else(|| wrong(format!("no header `{header}`")))?;
        site.parse()
            .map_err(|error: crate::engine::units::UnitError| wrong(error.to_string()))
    }

    /// Writes a text that nobody wrote before, and reads it back.
    async fn write_at(
        &self,
        url: &Uri,
        address: SocketAddr,
        within: Duration,
    ) -> Result<(), String> {
        let mut random = [0u8; 16];
        aws_lc_rs::rand::fill(&mut random).map_err(|error| error.to_string())?;
        let nonce = data_encoding::HEXLOWER.encode(&random);
        let separator = if url.query().is_some() { '&' } else { '?' };
        let url: Uri = format!("{url}{separator}nonce={nonce}")
            .parse()
            .map_err(|_cause| "`front.write_url` is not a valid URL")?;
        self.http
            .post_at(&url, address, within)
            .await
            .map_err(|error| format!("write: {error}"))?;
        let read = self.http.probe_at(&url, address, within, &[]).await;
        let read = read.map_err(|error| format!("read back: {error}"))?;
        let text = String::from_utf8_lossy(&read.body);
        if text.contains(&nonce) {
            Ok(())
        } else {
            Err("what was written was not read back".to_owned())
        }
    }
}

#[async_trait]
impl FrontDoor for HttpFront {
    async fn enter(
        &self,
        expected: &SiteName,
        within: Duration,
    ) -> Vec<(String, Result<SiteName, OutsideFault>)> {
        let addresses = match self.addresses(within).await {
            Ok(addresses) => addresses,
            Err(why) => return vec![(self.url.to_string(), Err(why))],
        };
        let mut entered = Vec::new();
        for address in addresses {
            let mut site = self.enter_at(address, within).await;
            if let (Ok(found), Some(url)) = (&site, &self.write_url)
                && found == expected
                && let Err(why) = self.write_at(url, address, within).await
            {
                site = Err(OutsideFault::Wrong(why));
            }
            entered.push((format!("{} at {address}", self.url), site));
        }
        entered
    }
}
