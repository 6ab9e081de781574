//! The client's connections: which address, over what, and one row at a time on each.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::body::Bytes;
use axum::http::{Method, Request, StatusCode, header};
use hickory_proto::rr::{RData, RecordType};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::NoTls;
use tokio_postgres::types::Type;

use super::{ClientConfig, Route};
use crate::adapters::dns::{Lookup, plain_name};
use crate::engine::topology::SiteName;
use crate::lab::site_api::{NewRow, Page, RowWritten};

/// How long one name server may take.
const LOOKUP_LIMIT: Duration = Duration::from_secs(1);
/// How long the stubborn client waits before it asks again, as long as it has no address at all.
const FIRST_LOOKUP: Duration = Duration::from_millis(250);
/// The longest answer: a page of 10,000 numbers of up to 20 characters.
const BODY_LIMIT: usize = 256 * 1024;
/// How much of an error's text is kept, in characters.
const REASON_LIMIT: usize = 300;
/// How long one page of numbers may take.
const PAGE_LIMIT: Duration = Duration::from_secs(10);

/// Asks for the service's addresses, again and again where the route says so.
pub(super) enum Resolver {
    Name {
        servers: Vec<SocketAddr>,
        lookup: Lookup,
        port: u16,
        refresh: Option<Duration>,
    },
    Nothing,
}

impl Resolver {
    pub(super) fn new(route: &Route) -> anyhow::Result<Self> {
        let Route::Name {
            servers,
            name,
            port,
            refresh,
        } = route
        else {
            return Ok(Resolver::Nothing);
        };
        Ok(Resolver::Name {
            servers: servers.clone(),
            lookup: Lookup {
                name: plain_name(name).map_err(anyhow::Error::msg)?,
                kind: RecordType::A,
                timeout: LOOKUP_LIMIT,
            },
            port: *port,
            refresh: *refresh,
        })
    }

    /// Never ends. What was found stays when no server answers, as in a resolver's cache.
    pub(super) async fn run(self, found: watch::Sender<Vec<SocketAddr>>) -> Infallible {
        let Resolver::Name {
            servers,
            lookup,
            port,
            refresh,
        } = self
        else {
            return std::future::pending().await;
        };
        loop {
            for server in &servers {
                match lookup.ask(*server).await {
                    Ok(records) => {
                        let address = |record: &RData| {
                            let RData::A(ip) = record else { return None };
                            Some(SocketAddr::from((ip.0, port)))
                        };
                        found.send_replace(records.iter().filter_map(address).collect());
                        break;
                    }
                    Err(error) => tracing::debug!(%server, %error, "no address"),
                }
            }
            let wait = match refresh {
                Some(refresh) => refresh,
                None if found.borrow().is_empty() => FIRST_LOOKUP,
                None => std::future::pending().await,
            };
            tokio::time::sleep(wait).await;
        }
    }
}

/// One connection, made when it is needed.
pub(super) enum Session {
    Service {
        client: String,
        /// Which of several addresses is this session's.
        place: usize,
        addresses: watch::Receiver<Vec<SocketAddr>>,
        open: Option<Line>,
    },
    Database {
        client: String,
        login: Box<tokio_postgres::Config>,
        open: Option<tokio_postgres::Client>,
    },
}

impl Session {
    pub(super) fn new(
        config: &ClientConfig,
        place: usize,
        addresses: watch::Receiver<Vec<SocketAddr>>,
    ) -> anyhow::Result<Self> {
        let client = config.name.clone();
        Ok(match &config.route {
            Route::Name { .. } => Session::Service {
                client,
                place,
                addresses,
                open: None,
            },
            Route::Database {
                conninfo,
                password_file,
            } => {
                let password = std::fs::read_to_string(password_file)
                    .with_context(|| format!("read `{}`", password_file.display()))?;
                let mut login: tokio_postgres::Config =
                    conninfo.parse().context("read `conninfo`")?;
                login
                    .password(password.trim_end())
                    .application_name("stubborn");
                Session::Database {
                    client,
                    login: Box::new(login),
                    open: None,
                }
            }
        })
    }

    /// Forgets the connection.
    pub(super) fn hang_up(&mut self) {
        match self {
            Session::Service { open, .. } => *open = None,
            Session::Database { open, .. } => *open = None,
        }
    }

    /// Sends one number, once, and says who acknowledged it. After an error the connection is
    /// gone, unless the error is a whole answer.
    pub(super) async fn put(&mut self, number: i64) -> anyhow::Result<(SiteName, Option<i64>)> {
        match self {
            Session::Service {
                client,
                place,
                addresses,
                open,
            } => {
                let addresses = addresses.borrow().clone();
                let kept = open
                    .take()
                    .filter(|line| addresses.contains(&line.address) && !line.sender.is_closed());
                let mut line = if let Some(line) = kept {
                    line
                } else {
                    let count = addresses.len();
                    ensure!(count > 0, "the name has no address");
                    Line::open(addresses[*place % count]).await?
                };
                let row = NewRow {
                    number,
                    client: client.clone(),
                };
                let body = serde_json::to_vec(&row)?;
                let (status, body) = line.ask(Method::POST, "/rows", body.into()).await?;
                *open = Some(line);
                let written: RowWritten = read(status, &body)?;
                Ok((written.site, written.epoch))
            }
            Session::Database {
                client,
                login,
                open,
            } => {
                let session = match open.take().filter(|session| !session.is_closed()) {
                    Some(session) => session,
                    None => connect(login).await?,
                };
                let inserted = insert(&session, number, client).await;
                if !session.is_closed() {
                    *open = Some(session);
                }
                inserted
            }
        }
    }
}

async fn connect(login: &tokio_postgres::Config) -> anyhow::Result<tokio_postgres::Client> {
    let (session, connection) = login.connect(NoTls).await.context("connect")?;
    tokio::spawn(async move {
        // Its end shows in the next row.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "session with the database ended");
        }
    });
    Ok(session)
}

/// In the lab a server's `cluster_name` is the name of its site.
async fn insert(
    session: &tokio_postgres::Client,
    number: i64,
    client: &str,
) -> anyhow::Result<(SiteName, Option<i64>)> {
    const INSERT: &str = "
        INSERT INTO public.rows (number, client, site)
        VALUES ($1, $2, current_setting('cluster_name'))
        RETURNING site, (SELECT epoch FROM failover.epoch)";
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&number, Type::INT8), (&client, Type::TEXT)];
    let rows = session.query_typed(INSERT, &parameters).await?;
    let row = rows.first().context("no row")?;
    let site: String = row.try_get(0)?;
    Ok((site.parse()?, row.try_get(1)?))
}

/// One HTTP connection, with one request at a time. Nothing on it is ever sent twice, which a
/// pooling client would do for a request that met a closing connection.
pub(super) struct Line {
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Line {
    async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            anyhow::Ok(http1::handshake(TokioIo::new(stream)).await?)
        };
        let (sender, connection) = connect
            .await
            .with_context(|| format!("connect to {address}"))?;
        // Ends with its sender.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the service ended");
            }
        });
        Ok(Self { address, sender })
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_LIMIT)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("read the answer: {error}"))?;
        Ok((status, body.to_bytes()))
    }
}

fn read<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> anyhow::Result<T> {
    ensure!(
        status == StatusCode::OK,
        "status {status}: {}",
        String::from_utf8_lossy(body)
            .chars()
            .take(REASON_LIMIT)
            .collect::<String>()
    );
    serde_json::from_slice(body).context("read the answer")
}

/// All numbers that a site's database has, read through the site's service.
pub async fn present_numbers(service: SocketAddr) -> anyhow::Result<BTreeSet<i64>> {
    let mut present = BTreeSet::new();
    let mut from = Some(i64::MIN);
    while let Some(first) = from {
        let page = async {
            let mut line = Line::open(service).await?;
            let path = format!("/rows?from={first}");
            let (status, body) = line.ask(Method::GET, &path, Bytes::new()).await?;
            read::<Page>(status, &body)
        };
        let page = timeout(PAGE_LIMIT, page)
            .await
            .context("no page of numbers in time")??;
        present.extend(page.numbers);
        from = page.next;
    }
    Ok(present)
}
