//! The workload of a site: a small HTTP service on the site's own database. It is the customer's
//! program, so it knows nothing of failover but the epoch that it reads and shows.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{Json, Query, State};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Row};

use crate::adapters::postgres::Database;
use crate::engine::topology::SiteName;
use crate::ports::EffectError;

/// The header with the name of the site that answers.
pub const SITE_HEADER: HeaderName = HeaderName::from_static("x-failover-site");
/// The header with the epoch in the site's database; absent where none was ever written.
pub const EPOCH_HEADER: HeaderName = HeaderName::from_static("x-failover-epoch");

/// How long the health page may take: well below the 1 s of a usual probe.
const HEALTH_LIMIT: Duration = Duration::from_millis(500);
/// How long a client waits for a statement, connecting included.
const WRITE_LIMIT: Duration = Duration::from_secs(2);
/// Sessions for statements: 50 rows a second, each committed in some milliseconds, times four.
const SESSIONS: usize = 4;
/// Numbers in one answer of `GET /rows`.
const PAGE: i64 = 10_000;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS public.rows (
  number bigint PRIMARY KEY,
  client text NOT NULL,
  site text NOT NULL,
  written timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE IF NOT EXISTS public.checks (
  nonce text PRIMARY KEY,
  written timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE public.rows OWNER TO app;
ALTER TABLE public.checks OWNER TO app;
GRANT USAGE ON SCHEMA failover TO app;
GRANT SELECT ON failover.epoch TO app;";

/// Creates the tables of the workload where they are missing, and lets the role `app` read the
/// epoch. Needs a superuser, on a primary with the schema `failover`.
pub async fn prepare_tables(database: &Database, timeout: Duration) -> Result<(), EffectError> {
    Ok(database.run(TABLES, timeout).await?)
}

/// What the service is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteApiConfig {
    /// The site it runs at.
    pub site: SiteName,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Connection string of the site's own database over TCP, without a password:
    /// `host=127.9.1.1 port=5432 user=app dbname=app`.
    pub database: String,
    /// The file with the password; white space at its end does not count.
    pub password_file: PathBuf,
}

/// Serves until the process ends. A request that is not answered by then was not acknowledged.
pub async fn run(config: SiteApiConfig) -> anyhow::Result<()> {
    let password = std::fs::read_to_string(&config.password_file)
        .with_context(|| format!("read `{}`", config.password_file.display()))?;
    let mut login: Config = config.database.parse().context("read `database`")?;
    login
        .password(password.trim_end())
        .application_name("site-api")
        .connect_timeout(WRITE_LIMIT)
        .tcp_user_timeout(WRITE_LIMIT)
        .keepalives_idle(Duration::from_secs(2))
        .keepalives_interval(Duration::from_secs(1))
        .keepalives_retries(2);
    let api = Arc::new(Api {
        site: config.site,
        health: Sessions::new(&login, 1, "-c statement_timeout=500"),
        // Nothing that could cancel a commit's wait for the standby: PostgreSQL then reports
        // success for a row that only this site has (postgres.md P32).
        work: Sessions::new(&login, SESSIONS, "-c lock_timeout=1500"),
    });
    let router = Router::new()
        .route("/healthz", get(health))
        .route("/rows", post(write_row).get(read_rows))
        .route("/check", post(write_check).get(read_check))
        .with_state(api);
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listen on {}", config.listen))?;
    // The customer's program has the customer's limits, not ours: each user of the lab, and whoever
    // counts rows there, comes from one address.
    let at_once = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    axum::serve(at_once, router).await?;
    Ok(())
}

#[derive(Debug)]
struct Api {
    site: SiteName,
    health: Sessions,
    work: Sessions,
}

/// A row to write.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewRow {
    /// Its number; no two rows have the same.
    pub number: i64,
    /// Who writes it.
    pub client: String,
}

/// The acknowledgement of a row: it is committed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RowWritten {
    /// The site that wrote it.
    pub site: SiteName,
    /// The epoch that its database had in the same transaction; `None` before the first.
    pub epoch: Option<i64>,
}

/// One page of the numbers that are there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Page {
    /// Numbers, ascending.
    pub numbers: Vec<i64>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct Start {
    #[serde(default)]
    from: i64,
}

#[derive(Debug, Deserialize)]
struct Nonce {
    nonce: String,
}

async fn health(State(api): State<Arc<Api>>) -> Response {
    const READ: &str = "SELECT pg_is_in_recovery(), (SELECT epoch FROM failover.epoch)";
    let row = match api.health.one(READ, Vec::new(), HEALTH_LIMIT).await {
        Ok(rows) => rows.into_iter().next(),
        Err(failure) => return failure.into_response(),
    };
    let Some((standby, epoch)) = row.and_then(|row| {
        let standby: bool = row.try_get(0).ok()?;
        Some((standby, row.try_get::<_, Option<i64>>(1).ok()?))
    }) else {
        return unavailable("unreadable answer of the database");
    };
    let role = if standby { "standby" } else { "primary" };
    let body = Json(json!({ "site": api.site, "role": role, "epoch": epoch }));
    let site = [(SITE_HEADER, api.site.to_string())];
    match epoch {
        Some(epoch) => (site, [(EPOCH_HEADER, epoch.to_string())], body).into_response(),
        None => (site, body).into_response(),
    }
}

async fn write_row(State(api): State<Arc<Api>>, Json(new): Json<NewRow>) -> Response {
    const WRITE: &str = "
        WITH written AS (INSERT INTO public.rows (number, client, site) VALUES ($1, $2, $3))
        SELECT (SELECT epoch FROM failover.epoch)";
    let parameters: Parameters = vec![
        (Box::new(new.number), Type::INT8),
        (Box::new(new.client), Type::TEXT),
        (Box::new(api.site.to_string()), Type::TEXT),
    ];
    match api.work.one(WRITE, parameters, WRITE_LIMIT).await {
        Ok(rows) => {
            let epoch = rows.first().and_then(|row| row.try_get(0).ok()).flatten();
            let site = api.site.clone();
            Json(RowWritten { site, epoch }).into_response()
        }
        Err(failure) => failure.into_response(),
    }
}

async fn read_rows(State(api): State<Arc<Api>>, Query(Start { from }): Query<Start>) -> Response {
    const READ: &str = "SELECT number FROM public.rows WHERE number >= $1 ORDER BY 1 LIMIT $2";
    let parameters: Parameters = vec![(Box::new(from), Type::INT8), (Box::new(PAGE), Type::INT8)];
    let rows = match api.work.one(READ, parameters, WRITE_LIMIT).await {
        Ok(rows) => rows,
        Err(failure) => return failure.into_response(),
    };
    let full = i64::try_from(rows.len()).is_ok_and(|count| count == PAGE);
    let numbers: Result<Vec<i64>, _> = rows.iter().map(|row| row.try_get(0)).collect();
    let Ok(numbers) = numbers else {
        return unavailable("unreadable answer of the database");
    };
    let next = numbers.last().filter(|_| full).map(|last| last + 1);
    Json(Page { numbers, next }).into_response()
}

async fn write_check(State(api): State<Arc<Api>>, Query(check): Query<Nonce>) -> Response {
    // Old nonces go, so that the table does not grow for ever.
    const WRITE: &str = "
        WITH old AS (
          DELETE FROM public.checks WHERE written < clock_timestamp() - interval '1 hour'
        )
        INSERT INTO public.checks (nonce) VALUES ($1)
        ON CONFLICT (nonce) DO UPDATE SET written = excluded.written";
    answer_check(&api, WRITE, check, |_rows| true).await
}

async fn read_check(State(api): State<Arc<Api>>, Query(check): Query<Nonce>) -> Response {
    const READ: &str = "SELECT 1 FROM public.checks WHERE nonce = $1";
    answer_check(&api, READ, check, |rows| !rows.is_empty()).await
}

async fn answer_check(
    api: &Api,
    statement: &'static str,
    check: Nonce,
    good: impl Fn(&[Row]) -> bool,
) -> Response {
    let parameters: Parameters = vec![(Box::new(check.nonce.clone()), Type::TEXT)];
    match api.work.one(statement, parameters, WRITE_LIMIT).await {
        Ok(rows) if good(&rows) => (
            [(SITE_HEADER, api.site.to_string())],
            Json(json!({ "site": api.site, "nonce": check.nonce })),
        )
            .into_response(),
        Ok(_none) => (
            StatusCode::NOT_FOUND,
            Json(json!({ "reason": "no such nonce" })),
        )
            .into_response(),
        Err(failure) => failure.into_response(),
    }
}

fn unavailable(reason: impl ToString) -> Response {
    let body = Json(json!({ "reason": reason.to_string() }));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

type Parameters = Vec<(Box<dyn ToSql + Sync + Send>, Type)>;

/// Why a statement has no answer. Whether it was committed is known only where the database
/// itself says no.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no answer of the database within {0:?}")]
    Late(Duration),
    #[error("no session with the database: {0}")]
    NoSession(tokio_postgres::Error),
    #[error("the database says: {}", .0.as_db_error().map_or_else(|| .0.to_string(), |said| format!("{} ({})", said.message(), said.code().code())))]
    Server(tokio_postgres::Error),
    #[error("the statement was lost")]
    Lost,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        unavailable(self)
    }
}

/// A few sessions with one database, each made when it is first needed and again when it is lost.
#[derive(Debug)]
struct Sessions {
    login: Config,
    slots: Vec<Arc<Mutex<Option<Client>>>>,
    next: AtomicUsize,
}

impl Sessions {
    fn new(login: &Config, count: usize, options: &str) -> Self {
        let mut login = login.clone();
        login.options(options);
        Self {
            login,
            slots: (0..count).map(|_| Arc::default()).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// Runs one statement in a transaction of its own; returns when the database has committed it.
    ///
    /// A statement that is late keeps its session until it ends: nothing is sent after it, and a
    /// hung database gets no more sessions than there are slots.
    async fn one(
        &self,
        statement: &'static str,
        parameters: Parameters,
        limit: Duration,
    ) -> Result<Vec<Row>, Failure> {
        let login = self.login.clone();
        let work = async {
            let mut slot = self.slot().await;
            let work = tokio::spawn(async move {
                let client = match slot.take().filter(|client| !client.is_closed()) {
                    Some(client) => client,
                    None => open(&login).await.map_err(Failure::NoSession)?,
                };
                let parameters: Vec<(&(dyn ToSql + Sync), Type)> = parameters
                    .iter()
                    .map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone()))
                    .collect();
                let done = client.query_typed(statement, &parameters).await;
                *slot = Some(client);
                done.map_err(Failure::Server)
            });
            work.await.unwrap_or(Err(Failure::Lost))
        };
        timeout(limit, work)
            .await
            .unwrap_or(Err(Failure::Late(limit)))
    }

    /// A free session, or else the next in turn when it is free.
    async fn slot(&self) -> tokio::sync::OwnedMutexGuard<Option<Client>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len();
        let (before, from) = self.slots.split_at(turn);
        let mut free = from.iter().chain(before);
        if let Some(slot) = free.find_map(|slot| Arc::clone(slot).try_lock_owned().ok()) {
            return slot;
        }
        Arc::clone(&self.slots[turn]).lock_owned().await
    }
}

async fn open(login: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = login.connect(NoTls).await?;
    tokio::spawn(async move {
        // The end of a session shows in the next statement on it.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "session with the database ended");
        }
    });
    Ok(client)
}
